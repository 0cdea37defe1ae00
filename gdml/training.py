"""Training: from a dataset to a force field."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from .contractions import GemmContraction
from .dataset import Dataset
from .descriptors import InverseDistances, PairFeatures
from .errors import DataError, DataWarning, EnergyWarning, FitError, SymmetryError, name_frames
from .force_field import ForceField
from .kernels import RadialKernel, kernel_by_name
from .memory import check_closed_form
from .operators import Labels, TrainingOperator
from .progress import progress_bar
from .selection import choose_length_scale, hold_out
from .solvers import cholesky_factor, cholesky_solve
from .symmetry import PermutationGroup, molecular_group

DEFAULT_NOISE = 1e-10
# Trainings that only judge a length scale use at most this many unknowns.
MAX_SEARCH_UNKNOWNS = 6000


def fit(
    dataset: Dataset,
    *,
    validation: Dataset | None = None,
    symmetry: str | PermutationGroup | ArrayLike = "auto",
    descriptor: InverseDistances | None = None,
    kernel: str = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    use_energy: bool = False,
    progress: bool = False,
) -> ForceField:
    r"""Train a force field in closed form.

    Solves (K + λ I) α = y, with K the symmetrised kernel between the forces of
    all geometries.

    Parameters
    ----------
    dataset : Dataset
        At least two geometries of one molecule, with forces. All are used.
    validation : Dataset, optional
        Held-out geometries on which the length scale is chosen; by default a
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
    _check_labels(dataset, use_energy)
    plan = _plan(dataset, symmetry, descriptor, kernel, noise, use_energy)
    _check_duplicates(_features(plan, dataset).x.numpy())
    n_labels = 3 * dataset.n_atoms - 5 + use_energy  # of a linear molecule; others have one less
    check_closed_form(len(dataset), n_labels, plan.descriptor.size, plan.group.order)
    if length_scale == "auto":
        length_scale = _search(plan, dataset, validation, progress)
    return _train(plan, dataset, float(length_scale), progress)


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
        raise DataError("the geometries are periodic (pbc); only molecules can be trained so far")
    noise = DEFAULT_NOISE if noise == "auto" else float(noise)
    if not noise >= 0:
        raise FitError(f"the noise must not be negative, but it is {noise}")
    return _Plan(
        group=_group(dataset, symmetry),
        descriptor=descriptor or InverseDistances(dataset.n_atoms),
        kernel=kernel_by_name(kernel),
        noise=noise,
        use_energy=use_energy,
    )


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


def _check_duplicates(x: np.ndarray) -> None:
    pairs = _duplicates(x)
    if pairs:
        listed = ", ".join(f"{i} and {j}" for i, j in pairs[:5])
        raise DataError(
            f"{len(pairs)} geometries occur twice (frames {listed}{', ...' if len(pairs) > 5 else ''}), which makes "
            "the training matrix singular; remove them"
        )


def _duplicates(x: np.ndarray, tolerance: float = 1e-10) -> list[tuple[int, int]]:
    """Pairs of equal rows, found by sorting along one random direction."""
    direction = np.random.default_rng(0).normal(size=x.shape[1])
    order = np.argsort(x @ direction)
    close = np.abs(x[order[1:]] - x[order[:-1]]).max(1) < tolerance
    return [tuple(sorted((int(order[k]), int(order[k + 1])))) for k in np.flatnonzero(close)]


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
    with warnings.catch_warnings(), progress_bar("length scale", progress) as bar:
        warnings.simplefilter("ignore", EnergyWarning)  # said once, by the final training
        return choose_length_scale(lambda scale: _train(plan, training, scale, False), validation, spread, progress=bar)


def _train(plan: _Plan, dataset: Dataset, length_scale: float, progress: bool) -> ForceField:
    features = _features(plan, dataset)
    labels = Labels(features, dataset, plan.use_energy)
    kernel = plan.kernel(length_scale)
    contraction = GemmContraction(kernel, features.x, plan.descriptor.permutations(plan.group))
    operator = TrainingOperator(contraction, labels, plan.noise)
    with progress_bar("kernel matrix", progress) as bar:
        matrix = operator.to_dense(bar)
    with progress_bar("Cholesky", progress) as bar:
        factor = cholesky_factor(matrix, progress=bar)
    solution = cholesky_solve(factor, labels.values.flatten())
    c, w = labels.spread(solution.view_as(labels.values))
    offset = labels.offset
    if dataset.energy is not None and not plan.use_energy:
        e, _ = contraction.apply(features.x, c, w)
        offset = _constant(e.numpy(), dataset)
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
            "fingerprint": dataset.fingerprint,
            "energies": "relative" if dataset.energy is None else "absolute",
        },
    )


def _constant(integrated: np.ndarray, dataset: Dataset) -> float:
    """The constant of the energy, after a check that energies agree with forces.

    Parameters
    ----------
    integrated : (M,) array
        Energies that the forces imply, up to a constant.
    dataset : Dataset

    Raises
    ------
    DataError
        If the energies are of another unit or sign than the forces.
    """
    reference = dataset.energy
    difference = reference - integrated
    constant = float(difference.mean())
    spread = reference.std()
    if len(dataset) < 5 or spread == 0 or integrated.std() == 0:
        return constant
    correlation = float(np.corrcoef(integrated, reference)[0, 1])
    slope = float(spread / integrated.std())
    if correlation < -0.9:
        raise DataError("energies rise where the forces say they fall; are these gradients instead of forces?")
    if correlation > 0.9 and not 0.5 < slope < 2.0:
        raise DataError(
            f"energies vary {slope:.3g} times as much as the forces imply; they seem to be in different units "
            "(eV against kcal/mol is 23.06, Hartree 0.0367, and Hartree/Bohr against eV/Å 51.4)"
        )
    error = np.abs(difference - constant)
    typical = np.median(error)
    if error.mean() > 0.25 * spread:
        worst = np.argsort(-error)
        warnings.warn(
            f"energies disagree with the integrated forces by {1e3 * error.mean():.3g} meV on average, where they "
            f"vary by {1e3 * spread:.3g} meV; worst in {name_frames(worst)}. The forces are not affected. With few "
            "geometries this is normal, and use_energy helps; otherwise see whether energies and forces are of the "
            "same, converged calculation",
            EnergyWarning,
            stacklevel=4,
        )
    elif (error > 20 * typical).any():
        outliers = np.flatnonzero(error > 20 * typical)
        warnings.warn(
            f"the energies of {name_frames(outliers)} are off the integrated forces by more than 20 times the "
            f"typical {1e3 * typical:.3g} meV; look at these calculations",
            DataWarning,
            stacklevel=4,
        )
    return constant
