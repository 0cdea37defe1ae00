r"""Training on anything linear in the energy: some forces, energies alone, products with Hessians.

An observation is a number :math:`y_a = \sum_b A_{ab} f_b`, with f the energies and their
slopes along x, y and z of each atom at a number of geometries, the points. A row of A with
a single one is an energy or a component of a force; the product of a Hessian with a vector v is

.. math:: (H v)_i \approx \frac{1}{2h} \left[ \partial_i E(R + h v) - \partial_i E(R - h v) \right] ,

two slopes at two points, off by h² times a fourth derivative of the energy. With K the kernel
between all f, the coefficients of the observations are :math:`(A K A^T + \lambda I)^{-1} y`, and
the force field has the coefficients :math:`A^T \alpha` on its points.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), ch. 9.4, for
linear functionals of a Gaussian process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from .contractions import contraction
from .dataset import Dataset
from .descriptors import Descriptor, Features
from .errors import DataError, FitError, MemoryBudgetError, NotPositiveDefiniteError, name_frames
from .force_field import ForceField
from .hardware import available_memory
from .kernels import RadialKernel
from .operators import Labels, TrainingOperator
from .plan import Plan, make_plan, number_of, spread_of, symmetry_of
from .processes import Shares, Team
from .progress import progress_bar
from .region import own_ranges
from .selection import GRID
from .solvers import cholesky_factor, cholesky_solve
from .symmetry import PermutationGroup

STEP = 0.01  # Å, that atoms are moved by for products with Hessians


@dataclass(frozen=True, eq=False)
class Observations:
    """Numbers that are linear in the energy of a molecule at some points.

    Made by `of_energies`, `of_forces`, `of_hessian_products` and `of_hessians`, and added.

    Attributes
    ----------
    numbers : (N,) int array
    positions : (P, N, 3) array, Å
        The points.
    matrix : (n, P (3N + 1)) sparse array
        A: what each observation takes of the energy of each point, and of its 3N slopes.
    values : (n,) array
        In eV, eV/Å or eV/Å².
    """

    numbers: np.ndarray
    positions: np.ndarray
    matrix: sparse.csr_array
    values: np.ndarray = field(repr=False)

    def __post_init__(self):
        expected = len(self.values), len(self.positions) * self.block
        if self.matrix.shape != expected:
            raise DataError(f"the matrix of {len(self)} observations has the shape {self.matrix.shape}, not {expected}")
        wrong = np.flatnonzero(~np.isfinite(self.values))
        if len(wrong):
            raise DataError(f"observations {wrong[:5].tolist()} are not finite; leave them out")
        if not len(self):
            raise DataError("there are no observations")

    @property
    def block(self) -> int:
        """Numbers of each point: its energy, and 3N slopes."""
        return 3 * len(self.numbers) + 1

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of_energies(cls, numbers: ArrayLike, positions: ArrayLike, energies: ArrayLike) -> "Observations":
        """Energies (M,) of geometries (M, N, 3), eV; those that are NaN are not known."""
        numbers, positions, energies = _arrays(numbers, positions, energies=(energies, ()))
        known = np.flatnonzero(np.isfinite(energies))
        columns = known * (3 * len(numbers) + 1)
        return cls(numbers, positions, _selection(columns, len(positions), len(numbers)), energies[known])

    @classmethod
    def of_forces(cls, numbers: ArrayLike, positions: ArrayLike, forces: ArrayLike) -> "Observations":
        """Forces (M, N, 3) of geometries (M, N, 3), eV/Å; those that are NaN are not known."""
        numbers, positions, forces = _arrays(numbers, positions, forces=(forces, (len(np.asarray(numbers)), 3)))
        point, slope = np.nonzero(np.isfinite(forces.reshape(len(forces), -1)))
        columns = point * (3 * len(numbers) + 1) + 1 + slope
        values = -forces.reshape(len(forces), -1)[point, slope]
        return cls(numbers, positions, _selection(columns, len(positions), len(numbers)), values)

    @classmethod
    def of_hessian_products(
        cls, numbers: ArrayLike, positions: ArrayLike, vectors: ArrayLike, products: ArrayLike, *, step: float = STEP
    ) -> "Observations":
        """Products (M, N, 3) of Hessians at geometries (M, N, 3) with vectors (M, N, 3), eV/Å² times their unit.

        Each stands for slopes at two points, by which atoms are moved by at most `step` in Å.
        """
        shape = (len(np.asarray(numbers)), 3)
        numbers, positions, vectors, products = _arrays(
            numbers, positions, vectors=(vectors, shape), products=(products, shape)
        )
        lengths = np.abs(vectors).max((1, 2))
        if not (lengths > 0).all() or not step > 0:
            raise DataError(f"{name_frames(np.flatnonzero(~(lengths > 0)))}: vectors are zero, or the step is")
        h = (step / lengths)[:, None, None]
        points = np.stack([positions + h * vectors, positions - h * vectors], 1).reshape(-1, *shape)
        n, width = len(positions), products[0].size
        columns = (2 * np.arange(n)[:, None] * (width + 1) + 1 + np.arange(width)).ravel()
        plus, minus = (_selection(columns + k * (width + 1), 2 * n, len(numbers)) for k in (0, 1))
        factors = sparse.diags_array(np.repeat(0.5 / h[:, 0, 0], width))
        return cls(numbers, points, sparse.csr_array(factors @ (plus - minus)), products.ravel())

    @classmethod
    def of_hessians(
        cls, numbers: ArrayLike, positions: ArrayLike, hessians: ArrayLike, *, step: float = STEP
    ) -> "Observations":
        """Hessians (M, 3N, 3N) at geometries (M, N, 3), eV/Å²: products with all 3N directions."""
        positions, hessians = np.asarray(positions, dtype=float), np.asarray(hessians, dtype=float)
        n, width = len(positions), positions[0].size
        if hessians.shape != (n, width, width):
            raise DataError(f"{n} geometries have Hessians of the shape {(n, width, width)}, not {hessians.shape}")
        directions = np.tile(np.eye(width).reshape(width, -1, 3), (n, 1, 1))
        products = hessians.reshape(n * width, -1, 3)
        return cls.of_hessian_products(numbers, np.repeat(positions, width, 0), directions, products, step=step)

    def __add__(self, other: "Observations") -> "Observations":
        if not isinstance(other, Observations):
            return NotImplemented
        if not np.array_equal(self.numbers, other.numbers):
            raise DataError("observations of other atoms cannot be added")
        return Observations(
            self.numbers,
            np.concatenate([self.positions, other.positions]),
            sparse.csr_array(sparse.block_diag([self.matrix, other.matrix])),
            np.concatenate([self.values, other.values]),
        )

    @property
    def of_energy(self) -> np.ndarray:
        """What each observation (n,) has of the energies: one for an energy, zero for differences and slopes."""
        return self.matrix[:, :: self.block].sum(1)

    def predicted(self, force_field: ForceField) -> np.ndarray:
        """What a force field says to each observation, (n,)."""
        found = force_field.predict(self.positions)
        slopes = -found.forces.reshape(len(self.positions), -1)
        return self.matrix @ np.column_stack([found.energy, slopes]).ravel()


def _arrays(numbers: ArrayLike, positions: ArrayLike, **others: tuple[ArrayLike, tuple]) -> list[np.ndarray]:
    """Arrays of the right shapes, with what there is for each geometry."""
    numbers, positions = np.asarray(numbers, dtype=int), np.asarray(positions, dtype=float)
    if positions.ndim != 3 or positions.shape[1:] != (len(numbers), 3) or not len(positions):
        raise DataError(f"positions must have the shape (M, {len(numbers)}, 3), not {positions.shape}")
    if not np.isfinite(positions).all():
        raise DataError("positions contain NaN or infinite values")
    result = [numbers, positions]
    for name, (values, shape) in others.items():
        values = np.asarray(values, dtype=float)
        if values.shape != (len(positions), *shape):
            raise DataError(f"{name} must have the shape {(len(positions), *shape)}, not {values.shape}")
        result.append(values)
    return result


def _selection(columns: np.ndarray, n_points: int, n_atoms: int) -> sparse.csr_array:
    """A matrix that selects columns."""
    rows = np.arange(len(columns))
    shape = len(columns), n_points * (3 * n_atoms + 1)
    return sparse.csr_array((np.ones(len(columns)), (rows, columns)), shape=shape)


def fit_observations(
    observations: Observations,
    *,
    symmetry: str | PermutationGroup | ArrayLike = "auto",
    descriptor: Descriptor | str = "inverse-distances",
    kernel: str | RadialKernel = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    progress: bool = False,
) -> ForceField:
    """Train a force field on any linear observations, in closed form.

    Parameters
    ----------
    observations : Observations
    symmetry, descriptor, kernel, noise
        As in `gdml.fit`; the noise is in the units of all observations.
    length_scale : float or "auto"
        By default that of the smallest leave-one-out error, each observation predicted by all others.
    progress : bool

    Returns
    -------
    ForceField
        Its energies are relative if no observation is one.

    Raises
    ------
    DataError, SymmetryError
        As `gdml.fit`.
    MemoryBudgetError
        If the matrix between all observations would not fit.
    NotPositiveDefiniteError
        If the matrix is singular to working precision.
    """
    points = Dataset(observations.positions, observations.numbers)
    group = symmetry_of(points, symmetry, None, "auto")
    plan = make_plan(points, group, descriptor, kernel, noise, True, False, "auto", torch.device("cpu"))
    is_absolute = bool(observations.of_energy.any())
    offset = _offset(observations) if is_absolute else 0.0
    values = torch.tensor(observations.values - offset * observations.of_energy)
    system = _System(plan, points, observations, values)
    system.check_memory()
    scale = system.best_length_scale(progress) if length_scale == "auto" else number_of("length_scale", length_scale)
    c, w = system.solution(scale)
    return ForceField(
        numbers=observations.numbers,
        descriptor=plan.descriptor,
        group=group,
        kernel=plan.kernel.with_length_scale(scale),
        y=system.labels.features.x.numpy(),
        c=c.numpy(),
        w=w.numpy(),
        offset=offset,
        details={
            "n_train": len(points),
            "n_observations": len(observations),
            "noise": plan.noises[0],
            "solver": {"name": "cholesky", "why": "the only one for observations"},
            "energies": "absolute" if is_absolute else "relative",
        },
        ranges=own_ranges(plan.descriptor, group, points),
    )


def _offset(observations: Observations) -> float:
    """The mean energy."""
    share = observations.of_energy
    return float(share @ observations.values / (share @ share))


class _Points(Labels):
    """The energy and all 3N slopes of points, without values."""

    def __init__(self, features: Features, n_atoms: int):
        n = len(features.x)
        self.features, self.shares = features, Shares(Team(), n)
        self.use_energy, self.use_stress, self.offset = True, False, 0.0
        self.basis = torch.eye(3 * n_atoms, dtype=torch.float64).expand(n, -1, -1)
        self.values = features.x.new_zeros(n, 3 * n_atoms + 1)
        self.c = torch.zeros(3 * n_atoms + 1, dtype=torch.float64)
        self.c[0] = 1.0


class _System:
    """The linear system of some observations, for any length scale."""

    def __init__(self, plan: Plan, points: Dataset, observations: Observations, values: Tensor):
        self.plan, self.values, self.block = plan, values, observations.block
        self.labels = _Points(plan.descriptor.evaluate(torch.tensor(points.positions)), points.n_atoms)
        self.a = observations.matrix.tocsc()

    def check_memory(self) -> None:
        """Raise `MemoryBudgetError` unless the matrix, its inverse, and the points' dual jets fit."""
        n, (points, size) = len(self.values), self.labels.features.x.shape
        needed = 8 * (2 * n**2 + 2 * points * size * self.block)
        if needed > (budget := available_memory("cpu")):
            raise MemoryBudgetError(
                f"{n} observations at {points} points need {needed / 1e9:.1f} GB in closed form, and "
                f"{budget / 1e9:.1f} GB are available; leave some out"
            )

    def operator(self, length_scale: float) -> TrainingOperator:
        kernel = self.plan.kernel.with_length_scale(length_scale)
        jets = contraction(kernel, self.labels.features.x, self.plan.action, "gemm")
        return TrainingOperator(jets, self.labels, 0.0)

    def matrix(self, operator: TrainingOperator) -> Tensor:
        """A K Aᵀ + λ I, from the columns of K that belong to one point at a time."""
        result = np.zeros((len(self.values),) * 2)
        points = torch.arange(len(self.labels.values))
        for j in range(len(points)):
            right = self.a[:, j * self.block : (j + 1) * self.block]
            used = np.unique(right.indices)  # observations that this point has a part in
            columns = operator.blocks(points, torch.full_like(points, j)).flatten(0, 1).numpy()
            result[:, used] += self.a @ (columns @ right[used].T.toarray())
        matrix = torch.from_numpy(result)
        matrix.diagonal().add_(self.plan.noises[0])
        return matrix

    def solution(self, length_scale: float) -> tuple[Tensor, Tensor]:
        """Dual jets on the points."""
        operator = self.operator(length_scale)
        alpha = cholesky_solve(cholesky_factor(self.matrix(operator)), self.values)
        return operator.dual_jets(torch.tensor(self.a.T @ alpha.numpy()))

    def leave_one_out(self, length_scale: float) -> float:
        """Root mean square of what observations differ by from the prediction of all others, α_i / (P)_ii."""
        try:
            factor = cholesky_factor(self.matrix(self.operator(length_scale))).tril_()
        except NotPositiveDefiniteError:
            return math.inf
        inverse = torch.cholesky_inverse(factor)
        return float((inverse @ self.values / inverse.diagonal()).square().mean().sqrt())

    def best_length_scale(self, progress: bool) -> float:
        spread = spread_of(self.plan, self.labels.features.x)
        if not spread > 0:
            raise DataError("all points are the same geometry; give a length_scale, or more points")
        lengths: Sequence[float] = [multiple * spread for multiple in GRID]
        with progress_bar("length scale", progress) as bar:
            errors = []
            for k, length in enumerate(lengths):
                errors.append(self.leave_one_out(length))
                if bar:
                    bar(k + 1, len(lengths))
        if not math.isfinite(min(errors)):
            raise FitError("no length scale gave a positive definite matrix; raise the noise, or thin out observations")
        return float(lengths[int(np.argmin(errors))])
