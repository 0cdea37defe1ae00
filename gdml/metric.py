r"""Learned metrics: hyper-parameters by the gradient of an error through the solution.

Entries of a descriptor are of kinds: pairs of atoms by their elements and bonds apart, or
the parts of `ManyBody` by their elements. Each kind has a weight m, and distances have a
power p, or two with entries side by side,

.. math:: x_k = m_{t(k)} \, u_k^{\,p} ,

and there is the noise λ. All three objectives are functions of the matrix K + λI =: P⁻¹ and
the labels y, with α = P y:

* *leave-one-out*: the residuals of each geometry, predicted by all others, are
  :math:`r_i = (P_{ii})^{-1} \alpha_i` with blocks of P; the mean of their squares. With
  :math:`u_i = 2 (P_{ii})^{-1} r_i / N`, :math:`A_i = P_{\cdot i} u_i` and
  :math:`B_i = P_{\cdot i} r_i`, the derivative by the matrix is
  :math:`\sum_i A_i B_i^T - A_i \alpha^T`.
* *held-out*: the mean square of K_v α - y_v on other geometries. With its derivative v by the
  predictions, those by the matrices are :math:`v \alpha^T` and :math:`-P K_v^T v \, \alpha^T`.
* *likelihood*: :math:`\tfrac12 \log y^T \alpha + \tfrac1{2N} \log\det P^{-1}`, the negative
  logarithm of the marginal likelihood with the best amplitude; its derivative is
  :math:`(P - N \alpha \alpha^T / y^T \alpha) / 2N`.

These are carried through the blocks of the matrix by automatic differentiation, a column of
blocks at a time, so that memory is that of the matrix.

Sources: S. Sundararajan and S. S. Keerthi, Neural Comput. 13, 1103 (2001), for leave-one-out;
Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), ch. 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from scipy.optimize import minimize
from torch import Tensor

from .contractions import contraction
from .dataset import Dataset, read
from .descriptors import Descriptor, InverseDistances, ManyBody, SideBySide, WeightedDistances
from .errors import DataError, FitError
from .geometry import median_distances, pair_indices
from .hyperparameters import Chosen
from .kernels import RadialKernel
from .operators import Labels
from .plan import Plan, choose_by_grid, error_of, for_more, judges, labels_of, make_plan, searched, symmetry_of
from .processes import Shares, Team
from .progress import progress_bar
from .selection import hold_out
from .symmetry import Action, PermutationGroup
from .symmetry.molecules import bond_graph

MAX_UNKNOWNS = 1500  # of the matrices that gradients are taken through
STRIP = 1024 * 1024  # numbers in the differences of descriptors that are treated together
MAX_OPERATIONS = 6e10  # of one gradient; a second or a few
MIN_FRAMES, MAX_STEPS = 20, 30
MIN_USED = 8  # geometries that gradients are taken with; where fewer can be afforded, nothing is learned
SETTLED = 3e-4  # change of the objective, a logarithm, at which the descent ends
FARTHEST = 4  # bonds apart, beyond which all pairs of two elements are of a kind
FREEDOM = np.log(30.0)  # of the logarithm of a weight
NOISES = np.log([1e-13, 1e-2])  # between which the noise may move
BETWEEN = np.log([0.1, 4.0])  # for powers
POWERS = (1.0, 3.0)  # to start with
OTHERS = 0.3  # spread of entries with the second power, over that with the first, to start with
FAILED = 1e3  # objective where the matrix is singular


@dataclass(frozen=True)
class Metric:
    """What `learn_metric` found, and what it compared.

    Attributes
    ----------
    start : Descriptor
        Whose entries were weighted.
    kernel : RadialKernel
    chosen : Chosen
        Hyper-parameters, and the descriptor if it was better on held-out geometries than a length scale alone.
    errors : dict
        Force RMSE on held-out geometries, eV/Å, by "grid" (a length scale alone) and "learned".
    weights : dict
        By kind of entry: the learned weight over that of the grid; empty if nothing was learned.
    powers : list of float
        Of the distances.
    history : list of float
        The logarithm of the objective after each step.
    n_judged : int
        Geometries of the trainings whose error the choice has.
    """

    start: Descriptor
    kernel: RadialKernel
    chosen: Chosen
    errors: dict[str, float]
    weights: dict[str, float]
    powers: list[float]
    history: list[float] = field(default_factory=list)
    n_judged: int = 0

    @property
    def is_learned(self) -> bool:
        """Whether it was better than the grid on held-out geometries; if not, this is the grid's choice."""
        return self.chosen.descriptor is not None

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor with its weights."""
        return self.chosen.descriptor or self.start

    @property
    def options(self) -> dict[str, Any]:
        """Keywords for `gdml.fit`."""
        found = self.chosen
        return {
            "descriptor": self.descriptor,
            "kernel": self.kernel,
            "length_scale": found.length_scale,
            "noise": found.noise,
        }


def learn_metric(
    dataset: Dataset | str | Path | list[Atoms],
    *,
    descriptor: ManyBody | None = None,
    symmetry: str | PermutationGroup = "auto",
    kernel: str | RadialKernel = "matern52",
    noise: float | str = "auto",
    objective: str = "leave-one-out",
    max_steps: int = MAX_STEPS,
    powers: Sequence[float] = POWERS,
    progress: bool = False,
) -> Metric:
    """Learn which distances, or which parts of a descriptor, matter.

    Starts from the length scale that the grid of `gdml.fit` finds, and follows the
    gradient of the objective (L-BFGS) on as many geometries as give 1500 unknowns. A fifth of
    the dataset judges at the end: what is not better there than the grid's choice is dropped. The
    length scale is then made to fit the number of all geometries (`gdml.plan.for_more`).

    Parameters
    ----------
    dataset : Dataset, or what `gdml.read` takes
        At least twenty geometries of a molecule.
    descriptor : ManyBody, optional
        Whose parts are weighted; by default inverse distances.
    symmetry, kernel, noise
        As in `gdml.fit`; a noise that is given stays.
    objective : {"leave-one-out", "held-out", "likelihood"}
        See `gdml.metric`. "held-out" learns from half of the geometries for the error on the other.
    max_steps : int
    powers : sequence of float
        Of the distances, to start with: as many stand side by side, each with weights of its own.
    progress : bool

    Returns
    -------
    Metric
        ``gdml.fit(dataset, **metric.options)`` trains with it.

    Raises
    ------
    DataError
        For fewer than twenty geometries, or periodic ones.
    FitError
        For another descriptor or objective.
    """
    dataset = dataset if isinstance(dataset, Dataset) else read(dataset)
    dataset.require_forces()
    if any(dataset.pbc):
        raise DataError("metrics are learned for molecules, and these geometries are periodic")
    if len(dataset) < MIN_FRAMES:
        raise DataError(f"{len(dataset)} geometries are too few to learn a metric from; give at least {MIN_FRAMES}")
    if descriptor is not None and not isinstance(descriptor, ManyBody):
        raise FitError(f"metrics are learned for inverse distances and ManyBody, not for {descriptor}")
    group = symmetry_of(dataset, symmetry, None, "auto")
    plan = make_plan(dataset, group, descriptor, kernel, noise, False, False, "auto", torch.device("cpu"))
    return learn(plan, *hold_out(dataset), objective, max_steps, powers, progress, len(dataset))


def can_learn(plan: Plan, dataset: Dataset) -> bool:
    """Whether there is something to learn a metric from, and it is not the first thing to be spared."""
    known = not any(dataset.pbc) and len(dataset) >= MIN_FRAMES and _can_be_weighted(plan.descriptor)
    return known and _most_used(plan) >= MIN_USED


def _most_used(plan: Plan) -> int:
    """Geometries that gradients can be taken with: one costs 3 n² L D (3 |S| + L) + 2 (n L)³ operations."""
    n_labels = max(1, 3 * plan.descriptor.n_atoms - 6)
    size = plan.descriptor.size * (1 if isinstance(plan.descriptor, ManyBody) else len(POWERS))
    blocks = 3 * n_labels * size * (3 * plan.action.order + n_labels)
    n = MAX_UNKNOWNS // n_labels
    while n > 1 and blocks * n**2 + 2 * (n * n_labels) ** 3 > MAX_OPERATIONS:
        n -= 1
    return n


def learn(
    plan: Plan,
    training: Dataset,
    validation: Dataset,
    objective: str = "leave-one-out",
    max_steps: int = MAX_STEPS,
    powers: Sequence[float] = POWERS,
    progress: bool = False,
    n_all: int | None = None,
) -> Metric:
    """As `learn_metric`, for geometries that are split already, and so many in the end."""
    if objective not in OBJECTIVES:
        raise FitError(f"the objective is one of {', '.join(OBJECTIVES)}, not {objective!r}")
    n_all = n_all or len(training)
    grid = choose_by_grid(plan, training, validation, progress)
    few = training[training.sample(min(len(training), max(4, _most_used(plan))))]
    powers = () if isinstance(plan.descriptor, ManyBody) else tuple(powers)
    on_cpu = replace(plan, device=torch.device("cpu"))  # where so small a problem is fast enough
    problem = _Problem.of(on_cpu, few, _kinds(plan, training, len(powers)), grid, powers)
    history: list[float] = []
    with progress_bar("metric", progress) as bar:
        theta = _descend(problem, OBJECTIVES[objective], max_steps, history, bar)
    found = Chosen(1.0, None, float(np.exp(theta[-1])), problem.descriptor_at(theta))
    # What is better with the few geometries of the search need not be so with many.
    judging = judges(plan, training)
    error = error_of(plan.with_descriptor(found.descriptor), judging, validation, found)
    if len(judging) > len(searched(plan, training)):
        grid = grid._replace(error=error_of(plan, judging, validation, grid))
    errors = {"grid": grid.error, "learned": error}
    if not error < grid.error:
        grid, n_judged = for_more(plan, training, validation, grid, len(searched(plan, training)), n_all)
        return Metric(plan.descriptor, plan.kernel, grid, errors, {}, [], history, max(n_judged, len(judging)))
    weights = dict(zip(problem.names, np.exp(theta - problem.start).tolist()))
    learned = plan.with_descriptor(found.descriptor)
    found, n_judged = for_more(learned, training, validation, found._replace(error=error), len(few), n_all)
    return Metric(plan.descriptor, plan.kernel, found, errors, weights, problem.powers_at(theta), history, n_judged)


class _Kinds(NamedTuple):
    """Of each entry (D,) its kind, and what kinds are called."""

    of_entries: np.ndarray
    names: list[str]


def _kinds(plan: Plan, dataset: Dataset, n_parts: int) -> _Kinds:
    """Kinds of pairs, again for each of several powers; or parts of `ManyBody`."""
    if isinstance(plan.descriptor, ManyBody):
        return _Kinds(plan.descriptor.parts_of_entries(), plan.descriptor.part_names())
    numbers = dataset.numbers
    graph = bond_graph(numbers, median_distances(dataset.positions))
    apart = dict(nx.all_pairs_shortest_path_length(graph, FARTHEST))
    first, second = pair_indices(len(numbers))
    bonds = np.array([apart[i].get(j, FARTHEST) for i, j in zip(first.tolist(), second.tolist())])
    # What the group exchanges is of one kind, that of the nearest.
    bonds = InverseDistances(len(numbers)).action(plan.group).reduce(bonds, np.min)
    elements = np.sort([numbers[first], numbers[second]], axis=0).T
    kinds, of_entries = np.unique(np.column_stack([elements, bonds]), axis=0, return_inverse=True)
    names = [_pair_name(*kind) for kind in kinds.tolist()]
    if n_parts == 1:
        return _Kinds(of_entries.ravel(), names)
    of_parts = [of_entries.ravel() + k * len(names) for k in range(n_parts)]
    return _Kinds(np.concatenate(of_parts), [f"{name} ({k + 1})" for k in range(n_parts) for name in names])


def _can_be_weighted(descriptor: Descriptor) -> bool:
    return isinstance(descriptor, ManyBody) or descriptor == InverseDistances(descriptor.n_atoms)


def _pair_name(first: int, second: int, bonds: int) -> str:
    apart = f"{FARTHEST} or more bonds" if bonds == FARTHEST else f"{bonds} bond{'s' if bonds > 1 else ''}"
    return f"{chemical_symbols[first]}-{chemical_symbols[second]}, {apart}"


@dataclass
class _Problem:
    """A few geometries with their descriptors and labels, as functions of the parameters θ.

    θ are the logarithms of weights, of the power where there is one, and of the noise.
    """

    plan: Plan
    kinds: _Kinds
    u: Tensor
    w: Tensor
    labels: Labels
    start: np.ndarray
    n_powers: int

    @classmethod
    def of(cls, plan: Plan, dataset: Dataset, kinds: _Kinds, grid: Chosen, powers: Sequence[float]) -> "_Problem":
        labels = labels_of(plan, dataset, Shares(Team(), len(dataset)))
        w, u = labels.duals(torch.arange(len(dataset))), labels.features.x
        weights = np.ones(len(kinds.names))
        if powers:
            spreads = np.array([float(u.pow(p).std(0).norm()) for p in powers])
            shares = np.array([1.0, *[OTHERS] * (len(powers) - 1)]) * spreads[0] / spreads
            weights = np.repeat(shares, len(kinds.names) // len(powers))
            action = SideBySide([plan.descriptor] * len(powers), shares).action(plan.group)
            plan = replace(plan, action=action)
        start = np.log([*(weights / grid.length_scale), *powers, grid.noise])
        return cls(plan, kinds, u, w, labels, start, len(powers))

    @property
    def names(self) -> list[str]:
        return self.kinds.names

    @property
    def y(self) -> Tensor:
        """Labels (n, L)."""
        return self.labels.values

    def powers_at(self, theta: np.ndarray) -> list[float]:
        return np.exp(theta[len(self.names) : -1]).tolist()

    def bounds(self) -> list[tuple[float, float]]:
        weights = [(s - FREEDOM, s + FREEDOM) for s in self.start[: len(self.names)]]
        return weights + [tuple(BETWEEN)] * self.n_powers + [self._noises]

    @property
    def _noises(self) -> tuple[float, float]:
        """Between which the logarithm of the noise may move: not at all, if it was given."""
        is_free = self.plan.noises == self.plan.descriptor.noises
        return tuple(NOISES) if is_free else (self.start[-1], self.start[-1])

    def descriptor_at(self, theta: np.ndarray) -> Descriptor:
        weights = np.exp(theta[: len(self.names)])
        if not self.n_powers:
            return self.plan.descriptor.scaled(weights)
        of_parts = np.split(weights[self.kinds.of_entries], self.n_powers)
        n_atoms = self.plan.descriptor.n_atoms
        parts = [WeightedDistances(n_atoms, w, p) for w, p in zip(of_parts, self.powers_at(theta))]
        return parts[0] if len(parts) == 1 else SideBySide(parts, [1.0] * len(parts))

    def features_at(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors (n, D) and the labels' dual jets (n, D, L)."""
        weights = theta[: len(self.names)].exp()[torch.tensor(self.kinds.of_entries)]
        if not self.n_powers:
            return self.u * weights, self.w * weights[:, None]
        parts = []
        for m, power in zip(weights.chunk(self.n_powers), theta[len(self.names) : -1].exp()):
            x = m * self.u.pow(power)
            parts.append((x, self.w * (power * x / self.u)[..., None]))
        return tuple(torch.cat(values, 1) for values in zip(*parts))

    def blocks(self, x: Tensor, w: Tensor, rows: slice, columns: slice) -> Tensor:
        """Blocks (m, L, c, L) of the matrix in some rows and columns."""
        kernel = self.plan.kernel.with_length_scale(1.0)
        if isinstance(self.plan.action, Action):
            return _blocks(kernel, self._images, x[rows], w[rows], x[columns], w[columns])
        jets, c = contraction(kernel, x, self.plan.action, "gemm"), self.labels.c
        at = [torch.full((len(x[rows]),), j) for j in range(columns.start, columns.stop)]
        return torch.stack([jets.pairs(x[rows], c, w[rows], j, c, w[j]) for j in at], 2)

    @cached_property
    def _images(self) -> Tensor:
        return torch.tensor(self.plan.action.rows())

    @property
    def _strips(self) -> list[slice]:
        """Columns that are treated together."""
        n, n_labels = self.y.shape
        numbers = n * len(self.w[0]) * max(1, self.n_powers)
        numbers *= self.plan.action.order if isinstance(self.plan.action, Action) else n_labels
        step = max(1, STRIP // numbers)
        return [slice(k, min(k + step, n)) for k in range(0, n, step)]

    def matrix(self, x: Tensor, w: Tensor) -> Tensor:
        """The matrix (n L, n L) without the noise."""
        n, n_labels = self.y.shape
        result = x.new_empty(n, n_labels, n, n_labels)
        for columns in self._strips:
            below = slice(columns.start, n)
            blocks = self.blocks(x, w, below, columns)
            result[below, :, columns] = blocks
            result[columns, :, below] = blocks.permute(2, 3, 0, 1)
        return result.view(n * n_labels, n * n_labels)

    def objective(self, theta: np.ndarray, function: Callable) -> tuple[float, np.ndarray]:
        """The value, and its gradient by θ."""
        n, n_labels = self.y.shape
        parameters = torch.tensor(theta).requires_grad_()
        with torch.enable_grad():
            x, w = self.features_at(parameters)
        with torch.no_grad():
            matrix, noise = self.matrix(x, w), float(np.exp(theta[-1]))
            matrix.diagonal().add_(noise)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if info:
                return FAILED, np.zeros_like(theta)
            value, slope = function(factor, matrix, self.y)
        leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
        by_blocks = (slope + slope.mT).view(n, n_labels, n, n_labels)
        for columns in self._strips:  # of the symmetric matrix only what is on and below the diagonal
            below = slice(columns.start, n)
            weight = by_blocks[below, :, columns].clone()
            weight[: columns.stop - columns.start] *= 0.5  # which stands there twice
            with torch.enable_grad():
                total = (self.blocks(*leaves, below, columns) * weight).sum()
            total.backward()
        with torch.enable_grad():
            (x * leaves[0].grad).sum().add((w * leaves[1].grad).sum()).backward()
        gradient = parameters.grad.numpy()
        gradient[-1] += noise * float(slope.diagonal().sum())
        return float(value), gradient


def _blocks(kernel: RadialKernel, images: Tensor, x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Blocks (m, L, c, R) between force labels w (m, D, L) at x and v (c, D, R) at y, in operations for all at once.

    As those of `Contraction.pairs`, which are of single pairs; here differentiation wants few and large ones.
    """
    (m, size), (c, order, n_right) = x.shape, (len(y), len(images), v.shape[2])
    v = v[:, images]  # (c, |S|, D, R)
    d = x[:, None, None] - y[:, images]  # (m, c, |S|, D)
    _, d1, d2 = kernel.unit_profile(torch.linalg.vector_norm(d, dim=3) / kernel.natural_length, value=False)
    d1, d2 = d1 / kernel.natural_length**2, d2 / kernel.natural_length**4
    pull = torch.bmm(d1.transpose(0, 1), v.flatten(2)).view(c, m, size, n_right)
    result = torch.bmm(w.mT, pull.permute(1, 2, 0, 3).reshape(m, size, -1)).view(m, -1, c, n_right)
    u = torch.bmm(d.permute(1, 2, 0, 3).reshape(c * order, m, size), v.flatten(0, 1)).view(c, order, m, n_right)
    left = torch.bmm(d.flatten(1, 2), w).view(m, c, order, -1) * d2[..., None]
    minus = left.mT.reshape(m * c, -1, order) @ u.permute(2, 0, 1, 3).reshape(m * c, order, n_right)
    return result - minus.view(m, c, -1, n_right).transpose(1, 2)


def _descend(problem: _Problem, function: Callable, max_steps: int, history: list[float], bar) -> np.ndarray:
    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return problem.objective(theta, function)

    def note(intermediate_result) -> None:
        history.append(float(intermediate_result.fun))
        if bar:
            bar(len(history), max_steps)

    found = minimize(
        objective,
        problem.start,
        jac=True,
        method="L-BFGS-B",
        bounds=problem.bounds(),
        callback=note,
        options={"maxiter": max_steps, "ftol": SETTLED},
    )
    return found.x


def leave_one_out(factor: Tensor, matrix: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the mean square of residuals (n, L), and its derivative by the matrix."""
    n, n_labels = y.shape
    inverse = torch.cholesky_inverse(factor)
    alpha = inverse @ y.flatten()
    own = inverse.view(n, n_labels, n, n_labels).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    r = torch.linalg.solve(own, alpha.view(n, n_labels))
    value = r.square().mean()
    u = torch.linalg.solve(own, r) * (2.0 / r.numel())
    columns = inverse.view(-1, n, n_labels)
    a, b = (torch.einsum("Nil,il->Ni", columns, v) for v in (u, r))
    slope = a @ b.mT
    slope.addr_(a.sum(1), alpha, alpha=-1)
    return value.log(), slope / value


def held_out(factor: Tensor, matrix: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the mean square error on the second half of geometries, trained on the first."""
    half = y[: len(y) // 2].numel()
    inner = factor[:half, :half]  # of the leading block
    cross = matrix[half:, :half]
    alpha = torch.cholesky_solve(y.flatten()[:half, None], inner)[:, 0]
    r = cross @ alpha - y.flatten()[half:]
    value = r.square().mean()
    v = r * (2.0 / r.numel() / value)
    slope = torch.zeros_like(matrix)
    slope[half:, :half] = torch.outer(v, alpha)
    back = torch.cholesky_solve((cross.mT @ v)[:, None], inner)[:, 0]
    slope[:half, :half] = -torch.outer(back, alpha)
    return value.log(), slope


def likelihood(factor: Tensor, matrix: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The negative logarithm of the marginal likelihood for each label, with the best amplitude."""
    flat = y.flatten()
    inverse = torch.cholesky_inverse(factor)
    alpha = inverse @ flat
    q = flat @ alpha
    value = 0.5 * q.log() + factor.diagonal().log().sum() / len(flat)
    return value, inverse.div_(2 * len(flat)).addr_(alpha, alpha, alpha=float(-0.5 / q))


OBJECTIVES = {"leave-one-out": leave_one_out, "held-out": held_out, "likelihood": likelihood}
