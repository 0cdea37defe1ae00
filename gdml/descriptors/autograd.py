"""Descriptors given as functions of the positions; their derivatives come by differentiation.

Source of the idea: N. F. Schmitz, K.-R. Müller, S. Chmiela, J. Phys. Chem. Lett. 13, 10183 (2022).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from ase.geometry import complete_cell
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..errors import DataError, FitError, SymmetryError
from ..hardware import tile
from ..symmetry import Action, Environments, PermutationGroup
from .base import Descriptor, Features
from .periodic import voigt_on

NUMBERS = 16 * 1024 * 1024  # in the descriptors of a few geometries, with what their evaluation needs
INTERMEDIATES = 32  # numbers that the evaluation of an entry is taken to need
EXAMPLES, JITTER = 3, 0.05  # geometries, and Å by which their atoms are moved, that checks are made on
SAME = 1e-7  # relative difference of descriptors that are the same but for rounding
WRONG = (TypeError, ValueError, IndexError, AttributeError, RuntimeError, NotImplementedError)
STEP, SLOPES = 1e-4, 1e-3  # Å, of finite differences, and the relative error that a derivative may have


@dataclass(frozen=True)
class AutogradFeatures(Features):
    """Descriptors of M geometries; what Jacobians do is computed when asked for.

    Attributes
    ----------
    x : (M, D) tensor
    descriptor : Differentiated
    positions : (M, N, 3) tensor
    cells : (M, 3, 3) tensor or None
    graph : pair of tensors or None
        Of a few geometries: positions, and descriptors as a function of them.
    strain_slopes : (M, D, 6) tensor or None
        As those of `PeriodicFeatures`.
    """

    descriptor: "Differentiated"
    positions: Tensor
    cells: Tensor | None = None
    graph: tuple[Tensor, Tensor] | None = None
    strain_slopes: Tensor | None = None

    @property
    def is_costly(self) -> bool:
        """Whether products with the Jacobian take so long that it should be kept, if there is memory."""
        return self.descriptor.is_costly

    def jvp(self, displacements: Tensor) -> Tensor:
        """J v: change (M, D) of the descriptors under displacements (M, N, 3) of the atoms."""
        return self._by_parts(lambda f, r, v: torch.func.jvp(f, (r,), (v,))[1], displacements)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g: gradient (M, N, 3) on the atoms from a gradient (M, D) on the descriptors."""
        if self.graph is not None:
            positions, x = self.graph
            return torch.autograd.grad(x, positions, cotangents, retain_graph=True)[0]
        return self._by_parts(_gradient, cotangents)

    def vjp_many(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g for many g (M, D, b) on each geometry: (M, 3N, b)."""
        step = self._dense_at_once
        parts = [slice(k, k + step) for k in range(0, len(self.x), step)]
        return torch.cat([self[some].jacobian().mT @ cotangents[some] for some in parts])

    def jacobian(self) -> Tensor:
        """J itself, (M, D, 3N)."""
        width = self.positions[0].numel()
        directions = torch.eye(width, dtype=self.x.dtype, device=self.x.device).view(width, 1, -1, 3)

        def dense(f: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
            along = torch.vmap(lambda v: torch.func.jvp(f, (r,), (v.expand_as(r),))[1])
            return along(directions).permute(1, 2, 0)

        return self._by_parts(dense, step=self._dense_at_once)

    @property
    def _dense_at_once(self) -> int:
        """How many dense Jacobians to make at a time, each with 3N directions."""
        return max(1, self.descriptor.at_once(self.positions.device) // self.positions[0].numel())

    def strain_vjp(self, cotangents: Tensor) -> Tensor:
        """Derivatives (M, 6) by the strain from a gradient (M, D) on the descriptors."""
        return torch.einsum("md,mdv->mv", cotangents, self.strain_slopes)

    def _by_parts(self, function: Callable, *values: Tensor, step: int | None = None) -> Tensor:
        """A function of the map from positions to descriptors, of positions, and of values, in a few parts."""
        step = step or self.descriptor.at_once(self.positions.device)
        results = []
        for start in range(0, len(self.x), step):
            some = slice(start, start + step)
            cells = None if self.cells is None else self.cells[some]
            f = partial(self.descriptor.values, cells=cells)
            results.append(function(f, self.positions[some].contiguous(), *(v[some] for v in values)))
        return torch.cat(results)

    def map(self, take: Callable[[Tensor], Tensor]) -> "AutogradFeatures":
        """Other geometries, by what takes their values from the arrays of these."""
        arrays = {name: getattr(self, name) for name in ("x", "positions", "cells", "strain_slopes")}
        taken = {name: None if array is None else take(array) for name, array in arrays.items()}
        return replace(self, **taken, graph=None)


def _gradient(f: Callable[[Tensor], Tensor], positions: Tensor, cotangents: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = positions.detach().requires_grad_()
        return torch.autograd.grad(f(leaf), leaf, cotangents)[0]


@dataclass(frozen=True)
class Differentiated(Descriptor):
    """A descriptor whose Jacobians come by differentiation of its values.

    Its fields are what is known once it is bound to atoms.
    """

    numbers: tuple[int, ...] = field(default=(), kw_only=True)
    example: tuple[tuple[float, ...], ...] = field(default=(), kw_only=True, repr=False)
    cell: tuple[tuple[float, ...], ...] | None = field(default=None, kw_only=True)
    pbc: tuple[bool, bool, bool] = field(default=(False, False, False), kw_only=True)
    shape: tuple[int, ...] = field(default=(), kw_only=True)

    # Whether products with the Jacobian take so long that training should keep it.
    is_costly: ClassVar[bool] = False

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is called in messages."""

    @abstractmethod
    def values(self, positions: Tensor, cells: Tensor | None = None) -> Tensor:
        """The descriptors (M, D) alone, as torch can differentiate them."""

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether there is a row for each atom, which are compared by the kernel."""

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    @property
    def size(self) -> int:
        """Length D of a descriptor."""
        return math.prod(self.shape)

    def at_once(self, device: torch.device) -> int:
        """How many geometries to evaluate at a time."""
        return max(1, tile(device, NUMBERS, 1) // max(1, self.intermediates))

    @property
    def intermediates(self) -> int:
        """Numbers that are held for each geometry in an evaluation."""
        return INTERMEDIATES * self.size

    def evaluate(self, positions: Tensor, cells: Any = None, strain: bool = False) -> AutogradFeatures:
        """Descriptors at positions (M, N, 3), Å, in cells (3, 3) or (M, 3, 3), Å.

        Raises
        ------
        DataError
            If a descriptor is not finite, or of another size than in training.
        """
        if positions.shape[1] != self.n_atoms:
            raise DataError(f"the descriptor is for {self.n_atoms} atoms, the geometries have {positions.shape[1]}")
        cells = self._cells(positions, cells)
        graph = None
        if positions.requires_grad:
            x = self.values(positions, cells)
        elif len(positions) <= self.at_once(positions.device):
            with torch.enable_grad():
                leaf = positions.detach().requires_grad_()
                graph = leaf, self.values(leaf, cells)
            x = graph[1].detach()
        else:
            step = self.at_once(positions.device)
            cells_of = [None] * len(positions) if cells is None else cells.split(step)
            x = torch.cat([self.values(r, c) for r, c in zip(positions.split(step), cells_of)])
        self._check_values(x, positions)
        slopes = self._strain_slopes(positions, cells) if strain else None
        return AutogradFeatures(x, self, positions, cells, graph, slopes)

    def _cells(self, positions: Tensor, cells: Any) -> Tensor | None:
        if not any(self.pbc):
            return None
        cells = self.cell if cells is None else np.asarray(cells)
        return positions.new_tensor(cells).expand(len(positions), 3, 3)

    def _check_values(self, x: Tensor, positions: Tensor) -> None:
        if x.shape[1] != self.size:
            raise DataError(f"the descriptor has {x.shape[1]} entries here, and had {self.size} in training")
        wrong = (~x.isfinite().all(1)).nonzero()[:, 0]
        if len(wrong):
            raise DataError(_name_wrong(int(wrong[0]), positions[wrong[0]].detach().cpu()))

    def _strain_slopes(self, positions: Tensor, cells: Tensor) -> Tensor:
        rows, columns = voigt_on(positions.device)
        strains = positions.new_zeros(6, 3, 3)
        strains[torch.arange(6), rows, columns] += 0.5
        strains[torch.arange(6), columns, rows] += 0.5
        parts = []
        for both in zip(*(a.split(self.at_once(positions.device)) for a in (positions, cells))):
            slopes = [torch.func.jvp(self.values, both, tuple(a @ strain for a in both))[1] for strain in strains]
            parts.append(torch.stack(slopes, 2))
        return torch.cat(parts)

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "Differentiated":
        """The descriptor for these atoms, checked on examples of geometries (M, N, 3)."""
        settings = {
            "numbers": tuple(int(z) for z in numbers),
            "example": tuple(map(tuple, np.asarray(positions[0]).tolist())),
            "cell": tuple(map(tuple, np.asarray(cell).tolist())) if any(pbc) else None,
            "pbc": tuple(bool(p) for p in pbc),
        }
        one = replace(self, **settings)
        try:
            one.values(*one._examples(2))  # several are vectorised, and a single one is not
            x = one.values(*one._examples(1))
        except WRONG as error:
            raise FitError(
                f"the descriptor {self.title} cannot be evaluated for {len(numbers)} atoms ({error}); it has to be "
                "made of operations that torch.vmap can vectorise, and to give one tensor"
            ) from error
        one = replace(one, shape=one._shape(x))
        try:
            _check_function(one, x)
        except WRONG as error:
            if isinstance(error, FitError):
                raise
            raise FitError(
                f"the descriptor {self.title} cannot be differentiated ({error}); write distances as norms"
            ) from error
        return one

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of one descriptor, if these (1, D) are what they should be."""
        if x.dtype != torch.float64:
            raise FitError(
                f"the descriptor {self.title} is {x.dtype}, not double precision; keep the type of positions"
            )
        if not self.is_local:
            return (x.shape[1],)
        n_atoms = len(self.numbers)
        if x.shape[1] % n_atoms:
            raise FitError(
                f"the descriptor {self.title} has {x.shape[1]} entries, which are no rows for {n_atoms} atoms; a local "
                "descriptor gives a tensor (N, W)"
            )
        return n_atoms, x.shape[1] // n_atoms

    def _examples(self, n: int) -> tuple[Tensor, ...]:
        """Geometries near to the example, and their cells."""
        example = torch.tensor(self.example, dtype=torch.float64)
        noise = torch.randn(n, *example.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        positions = example + JITTER * noise
        cells = self._cells(positions, None)
        return (positions,) if cells is None else (positions, cells)

    def summed_over(self, group: PermutationGroup) -> Action | Environments:
        """What the kernel is summed over: elements that do the same to a descriptor count once."""
        action = self.action(group)
        return action.distinct() if isinstance(action, Action) else action

    def action(self, group: PermutationGroup) -> Action | Environments:
        """How a group permutes the descriptor, found by permuting atoms; or which of its rows are compared."""
        if self.is_local:
            return self._environments
        return Action(*(np.array([self._entries(row) for row in rows]) for rows in group.split()))

    @cached_property
    def _environments(self) -> Environments:
        numbers = np.array(self.numbers)
        for first, second in _neighbours_of_a_kind(numbers):
            exchanged = np.arange(len(numbers))
            exchanged[[first, second]] = second, first
            exchanged = exchanged.tolist()
            positions, *cells = self._examples(EXAMPLES)
            both = positions, positions[:, exchanged]
            x, permuted = (self.values(r, *cells).unflatten(1, self.shape) for r in both)
            if _differ(permuted, x[:, exchanged]):
                raise SymmetryError(
                    f"to exchange the equal atoms {first} and {second} does more to the descriptor {self.title} than "
                    "to exchange their rows; a local descriptor must not depend on the order of atoms"
                )
        return Environments(numbers, self.shape[1])

    @property
    def _given(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """How atoms permute entries, if that was said."""
        return None

    def _entries_by_value(self, x: np.ndarray, permuted: np.ndarray) -> np.ndarray:
        weights = np.random.default_rng(0).normal(size=len(x))
        entries = np.empty(x.shape[1], dtype=np.int64)
        entries[np.argsort(weights @ permuted, kind="stable")] = np.argsort(weights @ x, kind="stable")
        return entries

    def _entries(self, permutation: np.ndarray) -> np.ndarray:
        """The permutation of entries with x(R[p]) = x(R)[..., entries], by their values on a few geometries."""
        positions, *cells = self._examples(EXAMPLES)
        x, permuted = (self.values(r, *cells).numpy() for r in (positions, positions[:, permutation.tolist()]))
        entries = self._entries_by_value(x, permuted) if self._given is None else np.asarray(self._given(permutation))
        if _differ(permuted, x[:, entries]):
            moved = np.flatnonzero(permutation != np.arange(len(permutation)))
            raise SymmetryError(
                f"the descriptor {self.title} is not invariant under the group: the permutation of the atoms "
                f"{moved.tolist()} to {permutation[moved].tolist()} does more than to permute its entries; give "
                "symmetry='none', or a descriptor that treats equal atoms alike"
            )
        return entries


@dataclass(frozen=True)
class AutogradDescriptor(Differentiated):
    """A descriptor that is given as a function.

    Parameters
    ----------
    function : callable
        From positions (N, 3) in Å, and of a periodic system the cell (3, 3) too, to the
        descriptor: a tensor (D,), or (N, W) with ``local=True``. In operations that torch
        can differentiate and vectorise: without loops or branches that depend on values.
        It must not change when the geometry is moved or turned.
    local : bool
        Whether the descriptor has a row for each atom. The kernel then compares atoms of
        the same element (`gdml.symmetry.Environments`), and needs no group.
    batched : bool
        Whether the function takes positions (M, N, 3), and cells (M, 3, 3), at once.
    permute : callable, optional
        From a permutation of atoms p (N,) to that of entries q (D,), with x(R[p]) = x(R)[q]. By
        default it is found, by the values of entries; what is given is checked by them.

    Raises
    ------
    FitError
        When training begins (`bound`): if the function cannot be evaluated or
        differentiated, gives values that are not finite, is constant, or changes when the
        geometry is moved or turned.
    SymmetryError
        If a permutation of the group does more to the descriptor than to permute its entries.

    Examples
    --------
    >>> def exponentials(positions):
    ...     i, j = torch.triu_indices(len(positions), len(positions), 1)
    ...     return torch.exp(-(positions[i] - positions[j]).norm(dim=1))
    >>> descriptor = gdml.AutogradDescriptor(exponentials)
    """

    function: Callable[..., Tensor]
    local: bool = False
    batched: bool = False
    permute: Callable[[np.ndarray], np.ndarray] | None = None

    name = "function"

    @property
    def title(self) -> str:
        """What the function is called."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    @property
    def is_local(self) -> bool:
        """Whether there is a row for each atom, which are compared by the kernel."""
        return self.local

    @property
    def _given(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return self.permute

    def __repr__(self) -> str:
        return f"AutogradDescriptor({self.title}, local={self.local}, size={self.size if self.shape else 'unknown'})"

    def values(self, positions: Tensor, cells: Tensor | None = None) -> Tensor:
        """The descriptors (M, D) alone, as torch can differentiate them."""
        arguments = (positions,) if cells is None else (positions, cells)
        if not self.batched and len(positions) == 1:  # which vectorisation would double the time of
            return self.function(*(a[0] for a in arguments)).flatten()[None]
        return (self.function if self.batched else torch.vmap(self.function))(*arguments).flatten(1)

    def recipe(self) -> dict[str, object]:
        """What a model file can keep of it; the function it cannot."""
        example = torch.tensor(self.example, dtype=torch.float64)[None]
        return {
            "name": self.name,
            "function": self.title,
            "example": [list(row) for row in self.example],
            "values": self.evaluate(example).x[0].tolist(),
            "pbc": list(self.pbc),
            "cell": self.cell,
        }


def _name_wrong(geometry: int, positions: Tensor) -> str:
    """Why the descriptor of a geometry (N, 3) is not finite."""
    if not positions.isfinite().all():
        return f"geometry {geometry}: positions contain NaN or infinite values"
    distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
    first, second = divmod(int(distances.argmin()), len(positions))
    return (
        f"geometry {geometry}: the descriptor is not finite; atoms {first} and {second} are "
        f"{float(distances[first, second]):.3g} Å apart"
    )


def _neighbours_of_a_kind(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of equal atoms whose exchanges generate all permutations of equal atoms."""
    atoms = [np.flatnonzero(numbers == kind) for kind in np.unique(numbers)]
    return [pair for some in atoms for pair in zip(some[:-1].tolist(), some[1:].tolist())]


def _differ(a: Any, b: Any) -> bool:
    return bool(abs(a - b).max() > SAME * max(1e-12, float(abs(b).max())))


def _check_function(one: Differentiated, x: Tensor) -> None:
    """Raise unless a function is finite, differentiable, not constant, and does not see how geometries are turned."""
    what, (positions, *cells) = f"the descriptor {one.title}", one._examples(1)
    if not x.isfinite().all():
        raise FitError(f"{what} is not finite for a geometry of the training data")
    leaf = positions.clone().requires_grad_()
    with torch.enable_grad():
        if not one.values(leaf, *cells).requires_grad:
            raise FitError(f"{what} cannot be differentiated: it detaches its result from positions, or is constant")
    direction = torch.randn(positions.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    slopes = torch.func.jvp(lambda r: one.values(r, *cells), (positions,), (direction,))[1]
    gradient = _gradient(lambda r: one.values(r, *cells), positions, x)
    if not (slopes.isfinite().all() and gradient.isfinite().all()):
        raise FitError(
            f"the derivatives of {what} are not finite: does it take the distance of an atom to itself, or the arc "
            "cosine of an angle of 180°?"
        )
    ends = [one.values(positions + step * direction, *cells) for step in (STEP, -STEP)]
    differences = (ends[0] - ends[1]) / (2 * STEP)
    if not differences.abs().max() > 1e-13 / STEP * max(1e-3, float(x.abs().max())):
        raise FitError(f"{what} is constant; there is nothing to learn from it")
    wrong = (slopes - differences).abs()[0] / differences.abs().max()
    if wrong.max() > SLOPES:
        raise FitError(
            f"{what} cannot be differentiated: entry {int(wrong.argmax())} changes otherwise than its derivative says, "
            "as if parts of it were rounded or detached"
        )
    _check_invariance(one, what, positions, cells, x)


def _check_invariance(one: Differentiated, what: str, positions: Tensor, cells: list[Tensor], x: Tensor) -> None:
    moved = {"the geometry is moved": positions + positions.new_tensor([0.3, -0.7, 1.1])}
    if any(one.pbc):
        vectors = positions.new_tensor(complete_cell(np.asarray(one.cell)))[np.flatnonzero(one.pbc)]
        moved["an atom is moved by a lattice vector"] = positions.clone()
        moved["an atom is moved by a lattice vector"][:, 0] += vectors[0]
    else:
        turn = positions.new_tensor(Rotation.random(random_state=0).as_matrix())
        moved["the geometry is turned"] = positions @ turn.T
    for how, geometry in moved.items():
        other = one.values(geometry, *cells)
        if _differ(other, x):
            entry = int((other - x).abs()[0].argmax())
            raise FitError(
                f"{what} changes when {how} (entry {entry} from {float(x[0, entry]):.6g} to "
                f"{float(other[0, entry]):.6g}), and energies do not; build it from distances and angles"
            )
