"""What a descriptor is: a map from a geometry to a vector, with its Jacobian."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..symmetry import Action, Environments, PermutationGroup


@dataclass(frozen=True)
class Features(ABC):
    """Descriptors of M geometries, with what their Jacobians do.

    Attributes
    ----------
    x : (M, D) tensor
    """

    x: Tensor

    @property
    def is_costly(self) -> bool:
        """Whether products with the Jacobian take so long that it should be kept, if there is memory."""
        return False

    @abstractmethod
    def jvp(self, displacements: Tensor) -> Tensor:
        """J v: change (M, D) of the descriptors under displacements (M, N, 3) of the atoms."""

    @abstractmethod
    def vjp(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g: gradient (M, N, 3) on the atoms from a gradient (M, D) on the descriptors."""

    @abstractmethod
    def vjp_many(self, cotangents: Tensor) -> Tensor:
        """Jᵀ g for many g (M, D, b) on each geometry: (M, 3N, b)."""

    @abstractmethod
    def jacobian(self) -> Tensor:
        """J itself, (M, D, 3N)."""

    @abstractmethod
    def map(self, take: Callable[[Tensor], Tensor]) -> "Features":
        """Other geometries, by what takes their values from the arrays of these."""

    def __getitem__(self, frames: Tensor | slice) -> "Features":
        """Some of the geometries."""
        return self.map(lambda values: values[frames])


class Descriptor(ABC):
    """A map from geometries to vectors; see `gdml.descriptors`.

    Attributes
    ----------
    size : int
        Length D of a descriptor.
    pbc : three bools
        Directions in which geometries repeat.
    """

    name: ClassVar[str]
    # Noises that are tried where none is given, the likeliest one first.
    noises: ClassVar[tuple[float, ...]] = (1e-10,)
    pbc: tuple[bool, bool, bool] = (False, False, False)

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def evaluate(self, positions: Tensor, **options) -> Features:
        """Descriptors at positions (M, N, 3), Å; periodic ones take cells and strain, too."""

    @abstractmethod
    def action(self, group: PermutationGroup) -> Action | Environments:
        """How a group permutes the descriptor, or which of its rows are compared."""

    def summed_over(self, group: PermutationGroup) -> Action | Environments:
        """What the kernel is summed over: the action, or less of it where that is the same."""
        return self.action(group)

    @abstractmethod
    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "Descriptor":
        """The descriptor for these atoms, if it can be that; positions (M, N, 3) are examples of geometries."""
        return self
