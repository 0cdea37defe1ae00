"""Training: from a dataset to a force field."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from .baselines import Baseline, as_baseline
from .checkpoints import Journal
from .checks import check_duplicates, check_labels, check_validation
from .contractions import check_backend
from .cost import Problem
from .dataset import Dataset, read
from .descriptors import Descriptor
from .energies import compare_units
from .errors import BaselineWarning, DataError, FitError
from .force_field import ForceField
from .hardware import check_device, check_precision
from .hyperparameters import Chosen
from .kernels import RadialKernel
from .metric import can_learn, learn
from .plan import (
    MIN_SEARCHED,
    Plan,
    can_leave_out,
    choose_by_grid,
    choose_by_leaving_out,
    descriptors_of,
    features_of,
    for_more,
    make_plan,
    most_searched,
    number_of,
    searched,
    solve_plan,
    spread_of,
    symmetry_of,
)
from .processes import Shares, Team, own_device
from .selection import GRID, MIN_FRAMES, hold_out, split
from .solution import ForceMonitor, Method
from .symmetry import Environments, PermutationGroup

# Energies are checked against forces on frames with this many atoms in all, and
# not where there are fewer frames than can tell.
MAX_CHECKED = 600
MIN_CHECKED = 10
# Unknowns of the trainings with and without a baseline that tell whether it helps.
MAX_COMPARED = 2000


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
    baseline: object = None,
    baseline_cache: str | Path | None = None,
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
        Other geometries on which the length scale is chosen. By default a few geometries of a molecule are predicted
        each from all others for that, in closed form; of more than some 1500 labels, or where a metric
        is learned, a fifth of the dataset is held out, and then trained on too.
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
    baseline : str, ASE calculator or sequence of these, optional
        A cheap potential, or a sum of some. What is learned is the difference of the labels to it,
        and predictions are sums; with fewer than some hundred geometries often by far the
        best that one can do. By name: "gfn2-xtb", "gfn1-xtb" (for solids), "d3(method=pbe)",
        "d4(method=pbe)", "zbl", "coulomb(K=1, Cl=-1)", "lj(epsilon=0.01, sigma=3.4)", also
        as a sum with "+". Options in brackets are those of the calculator.
    baseline_cache : path, optional
        A file (.npz) of the baseline's labels: what is there is not computed again.
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
    BaselineError, MissingExtraError
        For a baseline that is unknown, fails on a geometry (the message names them), or is not installed.
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
    BaselineWarning
        If forces of held-out geometries are predicted better without the baseline.
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
    team, given = Team.current(), Given(dataset, validation)
    baseline = as_baseline(baseline)
    if baseline is not None:
        dataset, validation = given.minus(baseline, baseline_cache, progress, team)
        baseline = baseline.with_example(given.dataset)
        if use_stress and not dataset.has_stress:
            raise DataError(f"use_stress needs stress of the baseline, too, and {baseline} has none")
    plan = make_plan(dataset, group, descriptor, kernel, noise, use_energy, use_stress, backend, device)
    method = Method(solver, preconditioner, rank, neighbours, rtol)
    learns = (descriptor is None or descriptor == "auto") and length_scale == "auto" and can_learn(plan, dataset)
    problem = _problem(plan, method, given, length_scale) | {"metric": "learned" if learns else "given"}
    problem["baseline"] = str(baseline)
    team.check_same(problem | {"backend": backend, "dtype": str(dtype), "device": device.type})
    method.check(size_of(plan, dataset, team))
    x = descriptors_of(plan, dataset)
    team.agree(lambda: check_duplicates(dataset, x.cpu().numpy(), plan.action))
    journal = Journal.open(checkpoint, problem, resume, team)
    team.agree(lambda: check_energies(given.dataset, plan))
    if length_scale != "auto":
        chosen = Chosen(number_of("length_scale", length_scale), None, plan.noises[0])
    elif journal.chosen:
        chosen = journal.chosen
    else:
        chosen = team.agree(lambda: find_hyperparameters(plan, dataset, validation, learns, progress))
    journal.note_choice(chosen)
    if baseline is not None and journal.compared is None:
        journal.note_comparison(team.agree(lambda: _compared(plan, given, Given(dataset, validation))))
    errors = journal.compared or {}
    if errors:
        team.agree(lambda: _warn_of_no_help(errors, baseline))
    if chosen.descriptor is not None:
        plan = plan.with_descriptor(chosen.descriptor)
        x = descriptors_of(plan, dataset)
    monitor = ForceMonitor(expected=chosen.error)
    if validation is not None:
        part = Shares(team, len(validation)).own
        forces = torch.tensor(validation.forces[part], device=plan.device)
        monitor = ForceMonitor(features_of(plan, validation)[part], forces)
    force_field = solve_plan(plan, dataset, chosen, progress, method, monitor, journal, team, x)
    details = force_field.details | {"fingerprint": given.dataset.fingerprint}
    if errors:
        details |= {"baseline": str(baseline), "baseline_errors": errors}
    return replace(force_field, baseline=baseline, details=details).to(dtype=dtype)


@dataclass(frozen=True)
class Given:
    """Geometries to train on, and those to judge by if there are some."""

    dataset: Dataset
    validation: Dataset | None

    def minus(self, baseline: Baseline, cache: str | Path | None, progress: bool, team: Team) -> tuple:
        """The same with the differences to a baseline, that the first process computes."""
        team.check_same({"geometries": self.dataset.fingerprint})
        parts = (self.dataset, self.validation)
        return team.agree(lambda: tuple(p and baseline.difference(p, cache=cache, progress=progress) for p in parts))


def _compared(plan: Plan, direct: Given, difference: Given) -> dict[str, float]:
    """Errors on held-out geometries with a baseline and without, both of small trainings; none of too few."""
    if difference.validation is None and len(difference.dataset) < MIN_FRAMES:
        return {}
    errors, most = {}, most_searched(plan, unknowns=MAX_COMPARED)
    frames, held = (np.arange(len(direct.dataset)), None) if direct.validation else split(direct.dataset)
    frames = np.random.default_rng(0).permutation(frames)[:most]
    for name, given in {"without": direct, "with": difference}.items():
        training = given.dataset[frames]
        validation = given.validation if held is None else given.dataset[held]
        try:
            errors[name] = choose_by_grid(plan, training, validation, False).error
        except FitError:  # there is no length scale for it
            errors[name] = float("inf")
    return errors | {"n_train": len(training), "n_held": len(validation)}


def _warn_of_no_help(errors: dict[str, float], baseline: Baseline) -> None:
    if errors["with"] >= errors["without"]:
        warnings.warn(
            f"the baseline {baseline} does not help: with {errors['n_train']} geometries, the force error (RMSE) on "
            f"{errors['n_held']} others is {1e3 * errors['with']:.3g} meV/Å with it and {1e3 * errors['without']:.3g} "
            "without; leave it out, or take another",
            BaselineWarning,
            stacklevel=5,
        )


def find_hyperparameters(
    plan: Plan, dataset: Dataset, validation: Dataset | None, learns: bool, progress: bool
) -> Chosen:
    """The hyper-parameters, and the error to expect with all of the dataset: errors fall like 1/n at best."""
    training = dataset
    if validation is None and not learns and can_leave_out(plan, dataset):
        return choose_by_leaving_out(plan, dataset, progress)
    if validation is None:
        training, validation = hold_out(dataset)
    if learns:
        metric = learn(plan, training, validation, progress=progress, n_all=len(dataset))
        best, n_used = metric.chosen, metric.n_judged
    else:
        best, n_used = choose_by_grid(plan, training, validation, progress), len(searched(plan, training))
        best, n_used = for_more(plan, training, validation, best, n_used, len(dataset))
    return best._replace(error=best.error * n_used / len(dataset))


def identity(recipe: object) -> str:
    """A recipe as text, without the last digits, in which functions are what their values are."""

    def rounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: rounded(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [rounded(v) for v in value]
        return f"{value:.8g}" if isinstance(value, float) else value

    text = json.dumps(rounded(recipe))
    return text if len(text) < 200 else f"{text[:80]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def size_of(plan: "Plan", dataset: Dataset, team: Team) -> Problem:
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


def _problem(plan, method, given, length_scale) -> dict[str, str]:
    """All that the outcome of a training depends on, for its checkpoint."""
    dataset, validation = given.dataset, given.validation
    group = hashlib.sha256(plan.group.permutations.tobytes()).hexdigest()[:16]
    return {
        "geometries": dataset.fingerprint,
        "validation": validation.fingerprint if validation is not None else "none",
        "symmetry": f"order {plan.group.order}, {group}",
        "descriptor": identity(plan.descriptor.recipe()),
        "kernel": identity(plan.kernel.with_length_scale(1.0).recipe()),
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
