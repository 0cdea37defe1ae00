"""Force fields from files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .baselines import Baseline, as_baseline
from .committee import Committee
from .descriptors import AutogradDescriptor, Concatenated, Descriptor, InverseDistances, from_recipe
from .errors import BaselineError, DataError, FitError, FormatError, ModelMismatchError, SymmetryError
from .force_field import FORMAT, SCHEMA, ForceField
from .kernels import FunctionKernel, KernelSum, RadialKernel, kernel_by_name, kernel_from_recipe
from .npz import Archive, read_archive
from .posterior import Posterior
from .sgdml_models import from_sgdml, is_sgdml_model
from .states.force_field import FORMAT as STATES_FORMAT
from .states.force_field import State, StatesForceField
from .states.posterior import StatesPosterior
from .symmetry import CrystalGroup, PermutationGroup


def load(
    path: str | Path,
    *,
    device: str | torch.device | Sequence[str] | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str | None = None,
    descriptor: Descriptor | None = None,
    kernel: RadialKernel | None = None,
    baseline: object = None,
    state: State | None = None,
) -> ForceField | StatesForceField:
    """Read a force field: a file of this package, or of any version of the sGDML package.

    Parameters
    ----------
    path : path
    device, dtype, backend
        Where and how it is evaluated; see `ForceField.to`.
    descriptor : AutogradDescriptor or Concatenated, optional
        That it was trained with, if a function was given: files hold no code.
    kernel : FunctionKernel, or a sum with one, optional
        Likewise.
    baseline : ASE calculator, or what else `gdml.fit` takes, optional
        Likewise, if it was a calculator and not a name; checked against forces from the training.
    state : optional
        Of a file of several states: the one whose force field is wanted.

    Returns
    -------
    ForceField, or StatesForceField
        The latter of a file of several states, if no state was given.

    Raises
    ------
    DeviceError
        For a device, precision or backend that is not there.
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is another kind of file, cut short, or of a later version; or if a function
        is needed and not given, or is not the one of the training.
    ModelMismatchError
        If a state was given that was not in the training data, or the file is not one of several states.
    BaselineError, MissingExtraError
        If the given baseline is not that of the training. One with a name is only checked when
        it is first needed.
    """
    force_field = _read(Path(path), descriptor, kernel, as_baseline(baseline))
    if state is not None:
        force_field = at_state(force_field, state)
    if baseline is not None:
        force_field.baseline.check()
    if device is dtype is backend is None:
        return force_field
    return force_field.to(device, dtype, backend)


def at_state(force_field: ForceField | StatesForceField, state: State | None) -> ForceField:
    """The force field of one state; one that knows no states as it is.

    Raises
    ------
    ModelMismatchError
        If there is no such state, or it has to be said which.
    """
    if isinstance(force_field, StatesForceField):
        return force_field.at(state)
    if state is not None:
        raise ModelMismatchError(f"this force field knows no states, and the state {state!r} was asked for")
    return force_field


def _read(
    path: Path, descriptor: Descriptor | None, kernel: RadialKernel | None, baseline: Baseline | None
) -> ForceField | StatesForceField:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    archive = read_archive(path)
    if is_sgdml_model(archive):
        if baseline is not None:
            raise BaselineError(f"{path}: a model of the sGDML package has no baseline, and {baseline} was given")
        return _from_sgdml(archive)
    if archive.text("format") not in (FORMAT, STATES_FORMAT):
        known = ", ".join(sorted(archive)[:8])
        raise FormatError(f"{path}: this is no force field; the file has the fields {known}")
    if archive.text("schema") != str(SCHEMA):
        raise FormatError(f"{path}: written by a later version (schema {archive['schema']}); update gdml")
    try:
        force_field = _checked(_from_fields(archive, descriptor, kernel), archive)
        given = {"baseline": _baseline(archive, baseline), "error_model": _error_model(force_field, archive)}
        force_field = replace(force_field, **given)
        is_of_states = archive.text("format") == STATES_FORMAT
        return StatesForceField.from_archive(force_field, archive) if is_of_states else force_field
    except (KeyError, ValueError, TypeError, FitError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: this force field is damaged ({error})") from error


def _group_from_fields(archive: Archive) -> PermutationGroup:
    if "translations" not in archive:
        return PermutationGroup(archive["permutations"])
    return CrystalGroup(
        archive["translations"],
        archive["cosets"],
        spacegroup=archive.text("spacegroup"),
        symprec=float(archive["symprec"]),
    )


def _from_fields(archive: Archive, descriptor: Descriptor | None, kernel: RadialKernel | None) -> ForceField:
    recipe = json.loads(archive.text("recipe"))
    numbers = archive["numbers"]
    return ForceField(
        numbers=numbers,
        descriptor=_descriptor(recipe["descriptor"], numbers, descriptor),
        group=_group_from_fields(archive),
        kernel=_kernel(recipe["kernel"], kernel),
        y=archive["references"],
        c=archive.get("energy_coefficients"),
        w=archive["force_coefficients"],
        offset=float(archive["offset"]),
        details=recipe["details"],
        ranges=archive.get("ranges"),
        reference_numbers=archive.get("reference_numbers"),
    )


def _baseline(archive: Archive, given: Baseline | None) -> Baseline | None:
    recipe = json.loads(archive.text("recipe")).get("baseline")
    if recipe is None and given is not None:
        raise BaselineError(f"{archive.path}: this force field was trained without a baseline, and {given} was given")
    return None if recipe is None else Baseline.from_recipe(recipe, given)


def _error_model(force_field: ForceField, archive: Archive) -> Posterior | Committee | None:
    recipe = json.loads(archive.text("recipe")).get("error_model")
    if recipe is None:
        return None
    kind = {"posterior": Posterior, "committee": Committee, "states": StatesPosterior}[recipe.pop("kind")]
    prefix = "error_model_"
    arrays = {name.removeprefix(prefix): torch.tensor(archive[name]) for name in archive if name.startswith(prefix)}
    return kind(force_field.kernel, force_field.reference_action, **arrays, **recipe)


def _descriptor(recipe: dict, numbers: np.ndarray, given: Descriptor | None) -> Descriptor:
    """The descriptor of a recipe; what was a function in it is taken from the given one."""
    if recipe["name"] == Concatenated.name and _needs_function(recipe):
        parts = given.parts if isinstance(given, Concatenated) else [given] * len(recipe["parts"])
        if len(parts) != len(recipe["parts"]):
            raise FormatError(f"the descriptor has {len(recipe['parts'])} parts, the given one {len(parts)}")
        made = [_descriptor(part, numbers, one) for part, one in zip(recipe["parts"], parts)]
        return Concatenated(made, recipe["weights"])
    if not _needs_function(recipe):
        return from_recipe(recipe, len(numbers))
    what = f"the function {recipe['function']}, which a file cannot hold"
    if not isinstance(given, AutogradDescriptor):
        raise FormatError(f"the descriptor is {what}; give it: gdml.load(..., descriptor=AutogradDescriptor(...))")
    try:
        found = given.bound(numbers, np.array(recipe["example"])[None], tuple(recipe["pbc"]), recipe["cell"])
    except (DataError, FitError, SymmetryError) as error:
        raise FormatError(f"the descriptor is {what}; the given one does not fit its atoms: {error}") from error
    if not _alike(json.loads(json.dumps(found.recipe())), recipe):
        raise FormatError(f"the descriptor is {what}; the given one has other values than in training")
    return found


def _kernel(recipe: dict, given: RadialKernel | None) -> RadialKernel:
    """The kernel of a recipe; what was a function in it is taken from the given one, or from its parts."""
    if not _needs_function(recipe):
        return kernel_from_recipe(recipe)
    if recipe["name"] == KernelSum.name:
        parts = given.parts if isinstance(given, KernelSum) else [given] * len(recipe["parts"])
        made = tuple(_kernel(part, one) for part, one in zip(recipe["parts"], parts, strict=True))
        return KernelSum(recipe["length_scale"], made, tuple(recipe["weights"]))
    what = f"the function {recipe['function']}, which a file cannot hold"
    if not isinstance(given, FunctionKernel):
        raise FormatError(f"the kernel is {what}; give it: gdml.load(..., kernel=FunctionKernel(...))")
    kernel = given.with_length_scale(recipe["length_scale"])
    if not _alike(kernel.recipe(), recipe):
        raise FormatError(f"the kernel is {what}; the given one has other values than in training")
    return kernel


def _needs_function(recipe: dict) -> bool:
    """Whether something in a recipe was given as a function."""
    return "function" in recipe or any(map(_needs_function, recipe.get("parts", [])))


def _alike(a: object, b: object) -> bool:
    """Whether recipes are the same but for rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a if key != "function")
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-8, atol=1e-10))
    return a == b


def _checked(force_field: ForceField, archive: Archive) -> ForceField:
    """The force field, if its parts fit together and are finite."""
    y, w, c = force_field.y, force_field.w, force_field.c
    expected = (len(y), force_field.reference_action.size)
    if y.shape != expected or w.shape != expected or (c is not None and c.shape != expected[:1]):
        raise FormatError(f"{archive.path}: the shapes of references {y.shape} and coefficients {w.shape} do not fit")
    if force_field.group.n_atoms != len(force_field.numbers):
        raise FormatError(f"{archive.path}: the permutations are of {force_field.group.n_atoms} atoms")
    if not all(np.isfinite(part).all() for part in (y, w, force_field.offset) + (() if c is None else (c,))):
        raise FormatError(f"{archive.path}: the coefficients contain NaN or infinite values")
    return force_field


def _from_sgdml(archive: Archive) -> ForceField:
    parts = from_sgdml(archive)
    kernel = kernel_by_name("matern52")(parts.pop("length_scale"))
    return _checked(ForceField(descriptor=InverseDistances(len(parts["numbers"])), kernel=kernel, **parts), archive)
