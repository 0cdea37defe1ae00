"""Any descriptors of geometries in a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import FitError
from ..symmetry import Action, Environments, PermutationGroup
from .base import Descriptor, Features


@dataclass(frozen=True)
class ConcatenatedFeatures(Features):
    """Descriptors of M geometries, in parts.

    Attributes
    ----------
    x : (M, D) tensor
    parts : tuple of Features
    weights : tuple of float
        That parts are multiplied by in x.
    """

    parts: tuple[Features, ...]
    weights: tuple[float, ...]

    @property
    def is_costly(self) -> bool:
        """Whether products with the Jacobian take so long that it should be kept, if there is memory."""
        return any(part.is_costly for part in self.parts)

    def _joined(self, function: Callable[[Features], Tensor]) -> Tensor:
        """What a function makes of the parts, in a row."""
        return torch.cat([weight * function(part) for weight, part in zip(self.weights, self.parts)], 1)

    def _summed(self, function: Callable[[Features, Tensor], Tensor], cotangents: Tensor) -> Tensor:
        """The sum of what a function makes of the parts and their share (M, D', ...) of cotangents."""
        shares = cotangents.split([part.x.shape[1] for part in self.parts], 1)
        return sum(function(part, weight * share) for weight, part, share in zip(self.weights, self.parts, shares))

    def jvp(self, displacements: Tensor) -> Tensor:
        """J v: change (M, D) of the descriptors under displacements (M, N, 3) of the atoms."""
        return self._joined(lambda part: part.jvp(displacements))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g: gradient (M, N, 3) on the atoms from a gradient (M, D) on the descriptors."""
        return self._summed(lambda part, g: part.vjp(g), cotangents)

    def vjp_many(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g for many g (M, D, b) on each geometry: (M, 3N, b)."""
        return self._summed(lambda part, g: part.vjp_many(g), cotangents)

    def jacobian(self) -> Tensor:
        """J itself, (M, D, 3N)."""
        return self._joined(lambda part: part.jacobian())

    @property
    def strain_slopes(self) -> Tensor:
        """Derivatives (M, D, 6) by strain, as those of `PeriodicFeatures`."""
        return self._joined(lambda part: part.strain_slopes)

    def strain_vjp(self, cotangents: Tensor) -> Tensor:
        """Derivatives (M, 6) by the strain from a gradient (M, D) on the descriptors."""
        return self._summed(lambda part, g: part.strain_vjp(g), cotangents)

    def map(self, take: Callable[[Tensor], Tensor]) -> "ConcatenatedFeatures":
        """Other geometries, by what takes their values from the arrays of these."""
        return replace(self, x=take(self.x), parts=tuple(part.map(take) for part in self.parts))


@dataclass(frozen=True)
class Concatenated(Descriptor):
    """Descriptors of any kind in a row, each times a weight, as long as they are of whole geometries.

    Of inverse distances alone, `SideBySide` does the same faster.

    Parameters
    ----------
    parts : sequence of Descriptor
    weights : sequence of float
        One for each part; positive. In inverse units of the part.

    Raises
    ------
    FitError
        If there are no parts, or the weights are not one positive number for each; when
        training begins, if a part has rows for atoms, which cannot be in a row with others.
    """

    parts: Sequence[Descriptor]
    weights: Sequence[float]

    name = "concatenated"

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        valid = all(np.isfinite(w) and w > 0 for w in self.weights)
        if not self.parts or len(self.weights) != len(self.parts) or not valid:
            raise FitError(f"{len(self.parts)} descriptors need as many positive weights, not {list(self.weights)}")

    @property
    def n_atoms(self) -> int:
        return self.parts[0].n_atoms

    @property
    def pbc(self) -> tuple[bool, bool, bool]:
        """Directions in which geometries repeat."""
        return self.parts[0].pbc

    @property
    def cell(self) -> tuple[tuple[float, ...], ...]:
        """The cell of periodic parts, Å."""
        return self.parts[0].cell

    @property
    def size(self) -> int:
        """Length D of a descriptor."""
        return sum(part.size for part in self.parts)

    def evaluate(self, positions: Tensor, **options) -> ConcatenatedFeatures:
        """Descriptors at positions (M, N, 3), Å, with the options of the parts."""
        features = tuple(part.evaluate(positions, **options) for part in self.parts)
        x = torch.cat([weight * part.x for weight, part in zip(self.weights, features)], 1)
        return ConcatenatedFeatures(x, features, self.weights)

    def summed_over(self, group: PermutationGroup) -> Action | Environments:
        """What the kernel is summed over: elements that do the same to a descriptor count once."""
        action = self.action(group)
        return action.distinct() if isinstance(action, Action) else action

    def action(self, group: PermutationGroup) -> Action:
        """How a group permutes the descriptor: x(R[s]) = x(R)[..., action.rows()[s]]."""
        return joined_action(self.parts, group)

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "Concatenated":
        """The descriptor for these atoms."""
        return replace(self, parts=[part.bound(numbers, positions, pbc, cell) for part in self.parts])

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {"name": self.name, "parts": [p.recipe() for p in self.parts], "weights": list(self.weights)}


def joined_action(parts: Sequence[Descriptor], group: PermutationGroup) -> Action:
    """How a group permutes descriptors in a row.

    Raises
    ------
    FitError
        If one of them has rows for atoms.
    """
    starts = np.cumsum([0, *[part.size for part in parts]])
    actions = [part.action(group) for part in parts]
    for part, action in zip(parts, actions):
        if isinstance(action, Environments):
            raise FitError(
                f"{part.name} has a row for each atom, which are compared, and cannot stand in a row with others"
            )
    shifted = [(start + a.translations, start + a.cosets) for start, a in zip(starts, actions)]
    return Action(*(np.concatenate(rows, axis=1) for rows in zip(*shifted)))
