"""Training: from a dataset to a force field."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from .checkpoints import Journal
from .checks import check_duplicates, check_labels, check_validation
from .contractions import check_backend
from .cost import Problem
from .dataset import Dataset, read
from .descriptors import Descriptor
from .energies import compare_units
from .errors import DataError, FitError
from .force_field import ForceField
from .hardware import check_device, check_precision
from .hyperparameters import Chosen
from .kernels import RadialKernel
from .metric import can_learn, judges, learn
from .plan import (
    MIN_SEARCHED,
    Plan,
    choose_by_grid,
    descriptors_of,
    features_of,
    make_plan,
    most_searched,
    number_of,
    searched,
    solve_plan,
    spread_of,
    symmetry_of,
)
from .processes import Shares, Team, own_device
from .selection import GRID, hold_out
from .solution import ForceMonitor, Method
from .symmetry import Environments, PermutationGroup

# Energies are checked against forces on frames with this many atoms in all, and
# not where there are fewer frames than can tell.
MAX_CHECKED = 600
MIN_CHECKED = 10


def fit(
    dataset: Dataset | str | Path | list[Atoms],
    *,
    validation: Dataset | None = None,
    reference: Atoms | str | Path | None = None,
    symmetry: str | PermutationGroup | ArrayLike = "auto",
    symprec: float | str = "auto",
    descriptor: Descriptor | str = "auto",
    kernel: str | RadialKernel = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    use_energy: bool = False,
    use_stress: bool = False,
    solver: str = "auto",
    preconditioner: str = "rpcholesky",
    rank: int | str = "auto",
    neighbours: int | str = "auto",
    rtol: float | str = "auto",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    backend: str = "auto",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool = False,
) -> ForceField:
    r"""Train a force field.

    Solves (K + λ I) α = y, with K the symmetrised kernel between the forces of
    all geometries. Where torch's default process group is initialised, as by
    ``torchrun``, its processes share out the geometries, and all get the same
    force field; see `gdml.processes`.

    Parameters
    ----------
    dataset : Dataset, or what `gdml.read` takes
        At least two geometries of one molecule, with forces. All are used.
    validation : Dataset, optional
        Other geometries on which the length scale is chosen; by default a
        fifth of the dataset is held out for that, and then trained on too.
    reference : ase.Atoms or path, optional
        Of a crystal, surface or wire: the ideal structure, from which the symmetry
        is found. By default the symmetrised mean of the frames.
    symmetry : {"auto", "none"}, PermutationGroup or (|S|, N) int array
        Permutations of equal atoms. "auto" finds those that the molecule's
        dynamics can reach (`gdml.symmetry.molecules`), or those of the crystal's
        space group (`gdml.symmetry.crystals`).
    symprec : float or "auto"
        How far atoms of the reference may be, in Å, from where operations put them; by
        default almost nowhere, and a reference that is nearly more symmetric is refused.
    descriptor : Descriptor or str
        An object of `gdml.descriptors`, "inverse-distances", "internal-coordinates" or
        "many-body" (kernels between atoms: best for few geometries, slower). "auto" are inverse distances
        of all pairs; with ``length_scale="auto"``, and of twenty or more geometries of a
        molecule, their weights and powers are learned (`gdml.learn_metric`).
    kernel : str or RadialKernel
        "matern32", "matern52", "matern72", "gaussian" (also called RBF), "rational-quadratic", or an
        object of `gdml.kernels`; its own length scale is replaced.
    length_scale : float or "auto"
        In units of the descriptor (1/Å for the default). As ``sig`` in sGDML.
    noise : float or "auto"
        λ, in units of the kernel's second derivative. By default 1e-10, or with kernels
        between atoms chosen with the length scale. As ``lam`` in sGDML.
    use_energy : bool
        Whether energies are trained on too. Otherwise they only fix the
        constant, and serve as a check of the forces.
    use_stress : bool
        Whether stress is trained on too, of geometries that are periodic in three
        directions. Worth it where cells differ between frames.
    solver : {"auto", "cholesky", "cg"}
        Closed form, or preconditioned conjugate gradients that never store K.
        "auto" predicts the time and memory of both; what it chose and why is in
        ``force_field.details["solver"]``.
    preconditioner : {"rpcholesky", "cholesky", "leverage", "uniform", "svd", "none"}
        For "cg".
    rank : int or "auto"
        Columns of the preconditioner. By default what promises the shortest time
        from the decay that a small factor shows, and twice as many where CG turns
        out to be slow.
    neighbours : int or "auto"
        How many of the nearest geometries the preconditioner sees together with
        each one, for what its columns leave out; by default 4, and 0 for crystals.
    rtol : float or "auto"
        For "cg": the norm of the residual over that of the labels at which it
        ends. By default a twentieth of the force error on other geometries: on the
        `validation` set, looked at now and then, or as the choice of the length
        scale found it; 3e-4 where neither is there.
    checkpoint : path, optional
        A file (.npz) that keeps, every half a minute, what is needed to go on; to
        be deleted when the force field is saved.
    resume : bool
        Whether to go on from the checkpoint, where there is one.
    backend : {"auto", "gemm", "keops", "lattice"}
        How sums over geometries and symmetry are computed; see `ForceField.to`.
    device : str or torch.device, optional
        Where to train, and to evaluate the force field: "cpu" by default, "cuda", "cuda:1", ...
    dtype : {"float64", "float32"}, optional
        In which the force field is evaluated; see `ForceField.to`. Training is in double
        precision: the matrix is no longer positive definite in single.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    ForceField

    Raises
    ------
    DataError
        For data that cannot be trained on; the message names the frames.
    SymmetryError
        For a group that does not fit the atoms.
    DeviceError
        For a device, precision or backend that is not there.
    ProcessError
        If there are more processes than geometries, or another one has stopped.
    MemoryBudgetError
        Before anything is computed, if the matrix would not fit.
    NotPositiveDefiniteError
        If the matrix is singular to working precision.
    OutputError, FormatError, DataError
        For a checkpoint that is in the way, is damaged, or of another training.

    Warns
    -----
    CheckpointWarning
        If a checkpoint cannot be written, as on a full disk.
    EnergyWarning
        If energies disagree with the integrated forces.
    """
    device, dtype, backend = check_device(own_device(device)), check_precision(dtype), check_backend(backend)
    dataset = dataset if isinstance(dataset, Dataset) else read(dataset)
    check_labels(dataset, use_energy)
    if validation is not None:
        check_validation(dataset, validation)
    if use_stress and not dataset.has_stress:
        raise DataError("use_stress needs stress labels, a cell, and geometries that are periodic in three directions")
    group = symmetry_of(dataset, symmetry, reference, symprec)
    team = Team.current()
    plan = make_plan(dataset, group, descriptor, kernel, noise, use_energy, use_stress, backend, device)
    method = Method(solver, preconditioner, rank, neighbours, rtol)
    learns = (descriptor is None or descriptor == "auto") and length_scale == "auto" and can_learn(plan, dataset)
    problem = _problem(plan, method, dataset, validation, length_scale) | {"metric": "learned" if learns else "given"}
    team.check_same(problem | {"backend": backend, "dtype": str(dtype), "device": device.type})
    method.check(_size_of(plan, dataset, team))
    x = descriptors_of(plan, dataset)
    team.agree(lambda: check_duplicates(dataset, x.cpu().numpy(), plan.action))
    journal = Journal.open(checkpoint, problem, resume, team)
    team.agree(lambda: check_energies(dataset, plan))
    if length_scale != "auto":
        chosen = Chosen(number_of("length_scale", length_scale), None, plan.noises[0])
    elif journal.chosen:
        chosen = journal.chosen
    else:
        chosen = team.agree(lambda: _search(plan, dataset, validation, learns, progress))
    journal.note_choice(chosen)
    if chosen.descriptor is not None:
        plan = plan.with_descriptor(chosen.descriptor)
        x = descriptors_of(plan, dataset)
    monitor = ForceMonitor(expected=chosen.error)
    if validation is not None:
        part = Shares(team, len(validation)).own
        forces = torch.tensor(validation.forces[part], device=plan.device)
        monitor = ForceMonitor(features_of(plan, validation)[part], forces)
    force_field = solve_plan(plan, dataset, chosen, progress, method, monitor, journal, team, x)
    return force_field.to(dtype=dtype)


def _search(plan: Plan, dataset: Dataset, validation: Dataset | None, learns: bool, progress: bool) -> Chosen:
    """The hyper-parameters, and the error to expect with all of the dataset: errors fall like 1/n at best."""
    training = dataset
    if validation is None:
        training, validation = hold_out(dataset)
    if learns:
        best, used = learn(plan, training, validation, progress=progress).chosen, judges(plan, training)
    else:
        best, used = choose_by_grid(plan, training, validation, progress), searched(plan, training)
    return best._replace(error=best.error * len(used) / len(dataset))


def _identity(recipe: object) -> str:
    """A recipe as text, without the last digits, in which functions are what their values are."""

    def rounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: rounded(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [rounded(v) for v in value]
        return f"{value:.8g}" if isinstance(value, float) else value

    text = json.dumps(rounded(recipe))
    return text if len(text) < 200 else f"{text[:80]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _size_of(plan: "Plan", dataset: Dataset, team: Team) -> Problem:
    """The problem, as far as it is known before the matrix is."""
    # Of a linear molecule; others have one less.
    n_labels = 3 * dataset.n_atoms - (3 if any(dataset.pbc) else 5) + plan.use_energy + 6 * plan.use_stress
    order, n_translations = plan.action.order, len(plan.action.translations)
    return Problem(
        len(dataset),
        n_labels,
        plan.descriptor.size,
        order,
        n_translations=n_translations,
        device=plan.device,
        n_processes=team.size,
        is_local=isinstance(plan.action, Environments),
    )


def _problem(plan, method, dataset, validation, length_scale) -> dict[str, str]:
    """All that the outcome of a training depends on, for its checkpoint."""
    group = hashlib.sha256(plan.group.permutations.tobytes()).hexdigest()[:16]
    return {
        "geometries": dataset.fingerprint,
        "validation": validation.fingerprint if validation is not None else "none",
        "symmetry": f"order {plan.group.order}, {group}",
        "descriptor": _identity(plan.descriptor.recipe()),
        "kernel": _identity(plan.kernel.with_length_scale(1.0).recipe()),
        "noise": str(plan.noises),
        "use_energy": str(plan.use_energy),
        "use_stress": str(plan.use_stress),
        "length_scale": str(length_scale),
        **{key: str(value) for key, value in asdict(method).items()},
    }


def check_energies(dataset: Dataset, plan: Plan) -> None:
    """Raise if energies are of another unit or sign than the forces.

    A small force field is trained on the forces of a few frames, and its
    energies are compared.
    """
    if dataset.energy is None or len(dataset) < MIN_CHECKED:
        return
    if not np.ptp(dataset.energy) > 0:
        raise DataError("all energies are equal, but the forces are not zero; leave the energies out, or mend them")
    most = min(MAX_CHECKED // dataset.n_atoms, most_searched(plan))
    few = dataset[dataset.sample(min(len(dataset), max(MIN_SEARCHED + 1, most)))]
    spread = spread_of(plan, features_of(plan, few).x)
    chosen = Chosen(GRID[3] * spread, None, plan.noises[0])
    try:
        force_field = solve_plan(replace(plan, use_energy=False), few, chosen, judged_by_forces=True)
    except FitError:  # then the training itself will say so
        return
    compare_units(force_field.predict(few.positions, few.periodic_cell).energy, few.energy)
