"""Training: from a dataset to a force field."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from .contractions import GemmContraction
from .cost import Problem, choose_solver
from .dataset import Dataset, read
from .descriptors import InverseDistances, PairFeatures
from .energies import compare_units, constant_of_energy
from .errors import DataError, FitError, SymmetryError, name_frames
from .force_field import ForceField
from .kernels import RadialKernel, kernel_by_name
from .memory import check_closed_form
from .operators import Labels, TrainingOperator
from .preconditioners import FACTORS, build
from .progress import iteration_bar, progress_bar
from .selection import GRID, choose_length_scale, hold_out
from .solvers import cg, cholesky_factor, cholesky_solve
from .symmetry import PermutationGroup, molecular_group

DEFAULT_NOISE = 1e-10
# Of conjugate gradients. From here on the error on held-out forces hardly moves;
# benchmarks/cg.py has the figures.
DEFAULT_RTOL = 1e-3
# With a validation set, CG ends before that if its force error has settled to this
# fraction between two looks at it, so many iterations apart.
SETTLED, LOOK_EVERY = 1e-3, 10
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
    rtol: float = DEFAULT_RTOL,
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
        Columns of the preconditioner; by default a twelfth of the unknowns.
    rtol : float
        For "cg": the norm of the residual over that of the labels. With a
        `validation` set, CG also ends where the force error on it has settled.
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

    Warns
    -----
    EnergyWarning
        If energies disagree with the integrated forces.
    """
    dataset = dataset if isinstance(dataset, Dataset) else read(dataset)
    _check_labels(dataset, use_energy)
    if validation is not None:
        _check_validation(dataset, validation)
    plan = _plan(dataset, symmetry, descriptor, kernel, noise, use_energy)
    _check_duplicates(dataset, plan)
    iterative = _Iterative(solver, preconditioner, rank, rtol)
    _check_solver(dataset, plan, iterative)
    check_energies(dataset, plan)
    if length_scale == "auto":
        length_scale = _search(plan, dataset, validation, progress)
    return _train(plan, dataset, _number("length_scale", length_scale), progress, iterative, validation)


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
    if group.n_atoms != dataset.n_atoms:
        raise SymmetryError(f"the group permutes {group.n_atoms} atoms, the geometries have {dataset.n_atoms}")
    exchanged = dataset.numbers[group.permutations] != dataset.numbers
    if exchanged.any():
        row, atom = np.argwhere(exchanged)[0]
        other = group.permutations[row, atom]
        raise SymmetryError(
            f"permutation {row} puts {dataset.label(other)} in the place of {dataset.label(atom)}; "
            "only equal atoms may be exchanged"
        )
    return group


def _check_labels(dataset: Dataset, use_energy: bool) -> None:
    dataset.require_forces()
    if len(dataset) < 2:
        raise DataError(f"{len(dataset)} geometry is not enough to train on; at least two are needed")
    if use_energy and dataset.energy is None:
        raise DataError("use_energy needs energies, and the dataset has none")
    if not np.abs(dataset.forces).max() > 0:
        raise DataError("all forces are zero; there is nothing to learn")


def _check_validation(dataset: Dataset, validation: Dataset) -> None:
    validation.require_forces()
    if not np.array_equal(dataset.numbers, validation.numbers):
        raise DataError(f"the validation geometries are {validation.formula}, or in another order than in training")
    known = {p.tobytes() for p in dataset.positions}
    shared = [i for i, p in enumerate(validation.positions) if p.tobytes() in known]
    if shared:
        raise DataError(f"{name_frames(validation.frame_numbers[shared])} of the validation set: trained on, too")


def _check_duplicates(dataset: Dataset, plan: _Plan) -> None:
    pairs = _duplicates(_features(plan, dataset).x.numpy(), plan.descriptor.permutations(plan.group))
    if pairs:
        listed = ", ".join(" and ".join(str(dataset.frame_numbers[i]) for i in pair) for pair in pairs[:5])
        raise DataError(
            f"{len(pairs)} geometries occur twice (frames {listed}{', ...' if len(pairs) > 5 else ''}), up to "
            "symmetry, which makes the training matrix singular; remove them"
        )


def _duplicates(x: np.ndarray, action: np.ndarray, tolerance: float = 1e-6) -> list[tuple[int, int]]:
    """Pairs of rows that are equal up to the group.

    They have equal values of an invariant function, and are neighbours when
    sorted by it.
    """
    direction = np.random.default_rng(0).normal(size=x.shape[1])
    images = np.stack([x[:, row] @ direction for row in action], 1)
    invariant = (images**2).sum(1)
    slope = 2 * np.abs(images).max() * np.abs(direction).sum() * len(action)
    order = np.argsort(invariant)
    near = np.flatnonzero(np.diff(invariant[order]) < tolerance * slope)
    pairs = [sorted((int(order[k]), int(order[k + 1]))) for k in near]
    return [(i, j) for i, j in pairs if np.abs(x[j][action] - x[i]).max(1).min() < tolerance]


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


@dataclass(frozen=True)
class _Iterative:
    """How the training system is solved."""

    solver: str = "cholesky"
    preconditioner: str = "rpcholesky"
    rank: int | str = "auto"
    rtol: float = DEFAULT_RTOL


def _check_solver(dataset: Dataset, plan: _Plan, how: _Iterative) -> None:
    """Find out before the work what can be found out: names, ranges, memory of the closed form."""
    if how.preconditioner not in (*FACTORS, "none"):
        raise FitError(f"unknown preconditioner {how.preconditioner!r}; known: {', '.join(FACTORS)} and none")
    if how.rank != "auto" and not _number("rank", how.rank) >= 1:
        raise FitError(f"the rank must be positive, not {how.rank}")
    if not 0 < how.rtol < 1:
        raise FitError(f"rtol must lie between 0 and 1, not {how.rtol}")
    if how.solver == "cholesky":
        n_labels = 3 * dataset.n_atoms - 5 + plan.use_energy  # of a linear molecule; others have one less
        check_closed_form(len(dataset), n_labels, plan.descriptor.size, plan.group.order)


def _solve(
    operator: TrainingOperator, plan: _Plan, how: _Iterative, validation: Dataset | None, progress: bool
) -> tuple[torch.Tensor, dict[str, str | int | float]]:
    """The solution of the training system, and an account of how it was found."""
    labels = operator.labels
    n_frames, n_labels = labels.values.shape
    problem = Problem(n_frames, n_labels, plan.descriptor.size, plan.group.order)
    rank = problem.default_rank() if how.rank == "auto" else min(int(how.rank), problem.n_unknowns)
    name, why = choose_solver(problem, operator, how.solver, rank)
    target = labels.values.flatten()
    if name == "cholesky":
        with progress_bar("kernel matrix", progress) as bar:
            matrix = operator.to_dense(bar)
        with progress_bar("Cholesky", progress) as bar:
            factor = cholesky_factor(matrix, progress=bar)
        return cholesky_solve(factor, target), {"name": name, "why": why}
    with progress_bar(f"preconditioner of rank {rank}", progress):
        preconditioner = build(how.preconditioner, operator, rank)
    watch = _Settled(operator, plan, validation)
    with iteration_bar(how.rtol, progress) as report:

        def callback(iteration: int, x: torch.Tensor, residual: float) -> bool:
            if report:
                report(iteration, x, residual)
            return watch(iteration, x)

        solution = cg(operator, target, preconditioner=preconditioner, rtol=how.rtol, callback=callback)
    solution.require_convergence()
    account = {"preconditioner": how.preconditioner, "rank": rank, "iterations": solution.n_iter}
    return solution.x, {"name": name, "why": why, **account, "residual": solution.residuals[-1]}


class _Settled:
    """Whether the force error on held-out geometries has stopped to change, asked after each iteration."""

    def __init__(self, operator: TrainingOperator, plan: _Plan, validation: Dataset | None):
        self.operator = operator
        self.errors: list[float] = []
        if validation is None:
            self.features = None
            return
        self.features = _features(plan, validation)
        self.forces = torch.tensor(validation.forces)

    def __call__(self, iteration: int, x: torch.Tensor) -> bool:
        if self.features is None or iteration % LOOK_EVERY:
            return False
        labels = self.operator.labels
        c, w = labels.spread(x.view_as(labels.values))
        _, g = self.operator.contraction.apply(self.features.x, c, w)
        self.errors.append(float((self.features.vjp(g) + self.forces).square().mean().sqrt()))
        *_, two_before, before, now = (float("inf"), float("inf"), *self.errors)
        return max(abs(now - before), abs(before - two_before)) < SETTLED * now


def _train(
    plan: _Plan,
    dataset: Dataset,
    length_scale: float,
    progress: bool = False,
    how: _Iterative = _Iterative(),
    validation: Dataset | None = None,
    *,
    judged_by_forces: bool = False,
) -> ForceField:
    """Solve for the coefficients; the constant of the energy is left out where forces alone matter."""
    features = _features(plan, dataset)
    labels = Labels(features, dataset, plan.use_energy)
    kernel = plan.kernel(length_scale)
    contraction = GemmContraction(kernel, features.x, plan.descriptor.permutations(plan.group))
    operator = TrainingOperator(contraction, labels, plan.noise)
    solution, account = _solve(operator, plan, how, validation, progress)
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
