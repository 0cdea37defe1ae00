"""Powers of the inverse distances between all pairs of atoms."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, FitError
from ..geometry import pair_indices, pair_permutation
from ..symmetry import Action, PermutationGroup
from .base import Descriptor, Features


@dataclass(frozen=True)
class PairFeatures(Features):
    """Descriptors of M geometries, with their Jacobians in pair form.

    Entry k of a descriptor depends on the two atoms of pair k alone, and
    through their difference: its gradient is `slopes[:, k]` on the first and
    the negative of that on the second.

    Attributes
    ----------
    x : (M, D) tensor
    slopes : (M, D, 3) tensor
    first, second : (D,) int tensors
    n_atoms : int
    """

    slopes: Tensor
    first: Tensor
    second: Tensor
    n_atoms: int

    def jvp(self, displacements: Tensor) -> Tensor:
        """J v: change (M, D) of the descriptors under displacements (M, N, 3) of the atoms."""
        difference = displacements[:, self.first] - displacements[:, self.second]
        return torch.linalg.vecdot(self.slopes, difference)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g: gradient (M, N, 3) on the atoms from a gradient (M, D) on the descriptors."""
        terms = self.slopes * cotangents[..., None]
        result = terms.new_zeros(len(terms), self.n_atoms, 3)
        return result.index_add_(1, self.first, terms).index_add_(1, self.second, terms, alpha=-1)

    def vjp_many(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g for many g (M, D, b) on each geometry: (M, 3N, b)."""
        size, width = self.slopes.shape[1], 3 * self.n_atoms
        device = self.slopes.device
        entries = torch.arange(size, device=device).repeat_interleave(3)
        components = torch.arange(3, device=device).repeat(size)
        rows = torch.cat([3 * atoms.repeat_interleave(3) + components for atoms in (self.first, self.second)])
        order = torch.argsort(rows * size + entries.repeat(2))
        starts = torch.searchsorted(rows[order], torch.arange(width + 1, device=device))
        result = cotangents.new_empty(len(cotangents), width, cotangents.shape[2])
        for slopes, g, into in zip(self.slopes, cotangents, result):
            values = torch.cat([slopes.flatten(), -slopes.flatten()])[order]
            with warnings.catch_warnings():  # torch calls its sparse matrices a beta version
                warnings.simplefilter("ignore", UserWarning)
                transposed = torch.sparse_csr_tensor(starts, entries.repeat(2)[order], values, (width, size))
            into.copy_(transposed @ g)
        return result

    def map(self, take: Callable[[Tensor], Tensor]) -> "PairFeatures":
        """Other geometries, by what takes their values from the arrays of these."""
        return replace(self, x=take(self.x), slopes=take(self.slopes))

    def jacobian(self) -> Tensor:
        """J itself, (M, D, 3N)."""
        n_frames, size, _ = self.slopes.shape
        result = self.slopes.new_zeros(n_frames, size, self.n_atoms, 3)
        pairs = torch.arange(size, device=self.slopes.device)
        result[:, pairs, self.first] = self.slopes
        result[:, pairs, self.second] = -self.slopes
        return result.reshape(n_frames, size, 3 * self.n_atoms)


@cache
def pairs_on(device: torch.device, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Atoms (i, j) of each pair as `geometry.pair_indices` has them, on a device."""
    return tuple(torch.tensor(np.array(i), device=device) for i in pair_indices(n_atoms))


class PairDescriptor(Descriptor):
    """A descriptor with one entry for each pair of atoms, that falls with their distance.

    Attributes
    ----------
    n_atoms : int
        N, at least 2.
    """

    n_atoms: int

    def _check(self, what: str, value: float) -> None:
        if self.n_atoms < 2:
            raise FitError("a single atom has no distances and so no forces to learn")
        if not (math.isfinite(value) and value > 0):
            raise FitError(f"{what} must be positive and finite, not {value}")

    @property
    def size(self) -> int:
        """Length D of a descriptor."""
        return self.n_atoms * (self.n_atoms - 1) // 2

    @abstractmethod
    def evaluate(self, positions: Tensor) -> PairFeatures:
        """Descriptors and Jacobians at positions (M, N, 3), Å."""

    def action(self, group: PermutationGroup) -> Action:
        """How a group permutes the descriptor: x(R[s]) = x(R)[..., action.rows()[s]]."""
        return Action(*(np.array([pair_permutation(row) for row in rows]) for rows in group.split()))

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "PairDescriptor":
        """The descriptor, if it is for these atoms."""
        if self.n_atoms != len(numbers) or tuple(self.pbc) != tuple(pbc):
            raise DataError(
                f"the descriptor is for {self.n_atoms} atoms with pbc={list(self.pbc)}, the geometries have "
                f"{len(numbers)} with {list(pbc)}; of periodic ones there are SmoothInverseDistances and "
                "PeriodicInverseDistances"
            )
        if any(pbc) and np.abs(np.asarray(self.cell) - cell)[list(pbc)].max() > 1e-3:
            raise DataError(
                f"the descriptor is for the cell {np.asarray(self.cell).tolist()}, that of the geometries is "
                f"{cell.tolist()}"
            )
        return self

    def explain(self, entry: int, value: float) -> tuple[int, int, float]:
        """What an entry of the descriptor means: its two atoms, and their distance s in Å."""
        first, second = pair_indices(self.n_atoms)
        values = np.ones(self.size)
        values[entry] = value
        return int(second[entry]), int(first[entry]), float(self.distances(values)[entry])

    @abstractmethod
    def distances(self, x: np.ndarray) -> np.ndarray:
        """The distances s (..., D) in Å that entries (..., D) stand for."""


class PowerDescriptor(PairDescriptor):
    """A descriptor x_k = s_k^-p of a distance s for each pair k of atoms.

    Attributes
    ----------
    power : float
        p; positive.
    """

    power: float

    def _check_power(self) -> None:
        self._check("the power of the inverse distances", self.power)

    def distances(self, x: np.ndarray) -> np.ndarray:
        """The distances s (..., D) in Å that entries (..., D) stand for."""
        return x ** (-1.0 / self.power)

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {"name": self.name, "power": self.power}


@dataclass(frozen=True)
class InverseDistances(PowerDescriptor):
    r"""Powers of the inverse distances of all pairs k = (i, j) of atoms.

    .. math:: x_k = |r_i - r_j|^{-p}

    Source: Chmiela et al., Sci. Adv. 3, e1603015 (2017), for p = 1.

    Parameters
    ----------
    n_atoms : int
        N, at least 2.
    power : float
        p; positive.
    """

    n_atoms: int
    power: float = 1.0

    name = "inverse-distances"

    def __post_init__(self):
        self._check_power()

    def evaluate(self, positions: Tensor) -> PairFeatures:
        """Descriptors and Jacobians at positions (M, N, 3), Å."""
        if positions.shape[1] != self.n_atoms:
            raise DataError(f"the descriptor is for {self.n_atoms} atoms, the geometries have {positions.shape[1]}")
        first, second = pairs_on(positions.device, self.n_atoms)
        difference = positions[:, first] - positions[:, second]
        squared = torch.linalg.vecdot(difference, difference)
        x = squared.pow(-0.5 * self.power)
        slopes = difference * (-self.power * x / squared)[..., None]
        return PairFeatures(x, slopes, first, second, self.n_atoms)
