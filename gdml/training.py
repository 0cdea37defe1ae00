"""Training: from a dataset to a force field."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from .checkpoints import Journal
from .checks import check_duplicates, check_group, check_labels, check_validation
from .contractions import GemmContraction
from .dataset import Dataset, read
from .descriptors import InverseDistances, PairFeatures
from .energies import compare_units, constant_of_energy
from .errors import DataError, FitError, SymmetryError
from .force_field import ForceField
from .kernels import RadialKernel, kernel_by_name
from .operators import Labels, TrainingOperator
from .progress import progress_bar
from .selection import GRID, choose_length_scale, hold_out
from .solution import CLOSED_FORM, DEFAULT_NEIGHBOURS, DEFAULT_RTOL, ForceMonitor, Method, solve
from .symmetry import PermutationGroup, molecular_group

DEFAULT_NOISE = 1e-10
# Trainings that only judge a length scale use at most this many unknowns.
MAX_SEARCH_UNKNOWNS = 6000
# Energies are checked against forces on frames with this many atoms in all, and
# not where there are fewer frames than can tell.
MAX_CHECKED = 600
MIN_CHECKED = 10


def fit(
    dataset: Dataset | str | Path | list[Atoms],
    *,
    validation: Dataset | None = None,
    symmetry: str | PermutationGroup | ArrayLike = "auto",
    descriptor: InverseDistances | None = None,
    kernel: str = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    use_energy: bool = False,
    solver: str = "auto",
    preconditioner: str = "rpcholesky",
    rank: int | str = "auto",
    neighbours: int = DEFAULT_NEIGHBOURS,
    rtol: float = DEFAULT_RTOL,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> ForceField:
    r"""Train a force field.

    Solves (K + λ I) α = y, with K the symmetrised kernel between the forces of
    all geometries.

    Parameters
    ----------
    dataset : Dataset, or what `gdml.read` takes
        At least two geometries of one molecule, with forces. All are used.
    validation : Dataset, optional
        Other geometries on which the length scale is chosen; by default a
        fifth of the dataset is held out for that, and then trained on too.
    symmetry : {"auto", "none"}, PermutationGroup or (|S|, N) int array
        Permutations of equal atoms. "auto" finds those that the molecule's
        dynamics can reach (`gdml.symmetry.molecules`).
    descriptor : InverseDistances, optional
        By default r^-1 of all pairs.
    kernel : {"matern52", "gaussian"}
    length_scale : float or "auto"
        In units of the descriptor (1/Å for the default). As ``sig`` in sGDML.
    noise : float or "auto"
        λ, in units of the kernel's second derivative; 1e-10 by default. As
        ``lam`` in sGDML.
    use_energy : bool
        Whether energies are trained on too. Otherwise they only fix the
        constant, and serve as a check of the forces.
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
    neighbours : int
        How many of the nearest geometries the preconditioner sees together with
        each one; for what its columns leave out.
    rtol : float
        For "cg": the norm of the residual over that of the labels. With a
        `validation` set, CG also ends where the force error on it has settled.
    checkpoint : path, optional
        A file (.npz) that keeps, every half a minute, what is needed to go on; to
        be deleted when the force field is saved.
    resume : bool
        Whether to go on from the checkpoint, where there is one.
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
    dataset = dataset if isinstance(dataset, Dataset) else read(dataset)
    check_labels(dataset, use_energy)
    if validation is not None:
        check_validation(dataset, validation)
    plan = _plan(dataset, symmetry, descriptor, kernel, noise, use_energy)
    x = _features(plan, dataset).x.numpy()
    check_duplicates(dataset, x, plan.descriptor.permutations(plan.group))
    method = Method(solver, preconditioner, rank, neighbours, rtol)
    n_labels = 3 * dataset.n_atoms - 5 + use_energy  # of a linear molecule; others have one less
    method.check(len(dataset), n_labels, plan.descriptor.size, plan.group.order)
    journal = Journal.open(checkpoint, _problem(plan, method, dataset, validation, length_scale), resume)
    check_energies(dataset, plan)
    if length_scale == "auto":
        length_scale = journal.length_scale or _search(plan, dataset, validation, progress)
    length_scale = _number("length_scale", length_scale)
    journal.note_length_scale(length_scale)
    return _train(plan, dataset, length_scale, progress, method, validation, journal)


def _problem(plan, method, dataset, validation, length_scale) -> dict[str, str]:
    """All that the outcome of a training depends on, for its checkpoint."""
    group = hashlib.sha256(plan.group.permutations.tobytes()).hexdigest()[:16]
    return {
        "geometries": dataset.fingerprint,
        "validation": validation.fingerprint if validation is not None else "none",
        "symmetry": f"order {plan.group.order}, {group}",
        "descriptor": str(plan.descriptor),
        "kernel": plan.kernel.name,
        "noise": str(plan.noise),
        "use_energy": str(plan.use_energy),
        "length_scale": str(length_scale),
        **{key: str(value) for key, value in asdict(method).items()},
    }


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the length scale."""

    group: PermutationGroup
    descriptor: InverseDistances
    kernel: type[RadialKernel]
    noise: float
    use_energy: bool


def _plan(dataset, symmetry, descriptor, kernel, noise, use_energy) -> _Plan:
    if any(dataset.pbc):
        raise DataError(
            "the geometries are periodic (pbc), and only molecules can be trained so far; if these are molecules in a "
            "box, make them whole and set pbc to False"
        )
    noise = DEFAULT_NOISE if noise == "auto" else _number("noise", noise)
    if not 0 <= noise < np.inf:
        raise FitError(f"the noise must not be negative or infinite, but it is {noise}")
    return _Plan(
        group=_group(dataset, symmetry),
        descriptor=descriptor or InverseDistances(dataset.n_atoms),
        kernel=kernel_by_name(kernel),
        noise=noise,
        use_energy=use_energy,
    )


def _number(name: str, value: float | str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise FitError(f"{name} must be a number or 'auto', not {value!r}") from error


def _group(dataset: Dataset, symmetry: str | PermutationGroup | ArrayLike) -> PermutationGroup:
    if isinstance(symmetry, str):
        if symmetry == "auto":
            return molecular_group(dataset)
        if symmetry == "none":
            return PermutationGroup.trivial(dataset.n_atoms)
        raise SymmetryError(f"symmetry is 'auto', 'none' or a group, not {symmetry!r}")
    group = symmetry if isinstance(symmetry, PermutationGroup) else PermutationGroup(symmetry)
    check_group(dataset, group)
    return group


def _features(plan: _Plan, dataset: Dataset) -> PairFeatures:
    return plan.descriptor.evaluate(torch.tensor(dataset.positions))


def _search(plan: _Plan, dataset: Dataset, validation: Dataset | None, progress: bool) -> float:
    training = dataset
    if validation is None:
        training, validation = hold_out(dataset)
    most = max(2, MAX_SEARCH_UNKNOWNS // (3 * dataset.n_atoms))
    if len(training) > most:
        training = training[training.sample(most)]
    spread = float(_features(plan, training).x.std(0).norm())
    with progress_bar("length scale", progress) as bar:
        return choose_length_scale(
            lambda scale: _train(plan, training, scale, judged_by_forces=True), validation, spread, progress=bar
        )


def _train(
    plan: _Plan,
    dataset: Dataset,
    length_scale: float,
    progress: bool = False,
    method: Method = CLOSED_FORM,
    validation: Dataset | None = None,
    journal: Journal | None = None,
    *,
    judged_by_forces: bool = False,
) -> ForceField:
    """Solve for the coefficients; the constant of the energy is left out where forces alone matter."""
    features = _features(plan, dataset)
    labels = Labels(features, dataset, plan.use_energy)
    kernel = plan.kernel(length_scale)
    contraction = GemmContraction(kernel, features.x, plan.descriptor.permutations(plan.group))
    operator = TrainingOperator(contraction, labels, plan.noise)
    monitor = ForceMonitor()
    if validation is not None:
        monitor = ForceMonitor(_features(plan, validation), torch.tensor(validation.forces))
    solution, account = solve(operator, method, monitor, progress, journal or Journal())
    c, w = labels.spread(solution.view_as(labels.values))
    offset = labels.offset
    if dataset.energy is not None and not plan.use_energy and not judged_by_forces:
        e, _ = contraction.apply(features.x, c, w)
        offset = constant_of_energy(e.numpy(), dataset)
    return ForceField(
        numbers=dataset.numbers,
        descriptor=plan.descriptor,
        group=plan.group,
        kernel=kernel,
        y=features.x.numpy(),
        c=None if c is None else c.numpy(),
        w=w.numpy(),
        offset=offset,
        details={
            "name": dataset.name,
            "n_train": len(dataset),
            "noise": plan.noise,
            "solver": account,
            "fingerprint": dataset.fingerprint,
            "energies": "relative" if dataset.energy is None else "absolute",
        },
    )


def check_energies(dataset: Dataset, plan: _Plan) -> None:
    """Raise if energies are of another unit or sign than the forces.

    A small force field is trained on the forces of a few frames, and its
    energies are compared.
    """
    if dataset.energy is None or len(dataset) < MIN_CHECKED:
        return
    if not np.ptp(dataset.energy) > 0:
        raise DataError("all energies are equal, but the forces are not zero; leave the energies out, or mend them")
    few = dataset[dataset.sample(min(len(dataset), max(MIN_CHECKED, MAX_CHECKED // dataset.n_atoms)))]
    spread = float(_features(plan, few).x.std(0).norm())
    try:
        force_field = _train(replace(plan, use_energy=False), few, GRID[3] * spread, judged_by_forces=True)
    except FitError:  # then the training itself will say so
        return
    compare_units(force_field.predict(few.positions).energy, few.energy)
