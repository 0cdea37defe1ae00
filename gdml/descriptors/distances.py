"""Other functions of the distances of all pairs of atoms."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, FitError
from ..geometry import pair_indices
from ..symmetry import Action, PermutationGroup
from .inverse_distances import InverseDistances, PairDescriptor, PairFeatures


class OfInverseDistances(PairDescriptor):
    """A function of inverse distances, entry by entry."""

    def evaluate(self, positions: Tensor) -> PairFeatures:
        """Descriptors and Jacobians at positions (M, N, 3), Å."""
        return self.of_inverse(InverseDistances(self.n_atoms).evaluate(positions))

    @abstractmethod
    def of_inverse(self, features: PairFeatures) -> PairFeatures:
        """The same from the inverse distances."""


@dataclass(frozen=True)
class ExponentialDistances(OfInverseDistances):
    r"""Exponentials of the distances of all pairs k = (i, j) of atoms.

    .. math:: x_k = e^{-|r_i - r_j| / a}

    Parameters
    ----------
    n_atoms : int
        N, at least 2.
    decay : float
        a, Å; positive.
    """

    n_atoms: int
    decay: float = 2.0

    name = "exponential-distances"

    def __post_init__(self):
        self._check("the decay of the exponentials", self.decay)

    def of_inverse(self, features: PairFeatures) -> PairFeatures:
        """Descriptors and Jacobians from the inverse distances."""
        x = torch.exp(-1.0 / (features.x * self.decay))
        # d exp(-1/(a u)) = x / (a u²) du of u = 1/s
        slopes = features.slopes * (x / (self.decay * features.x.square()))[..., None]
        return PairFeatures(x, slopes, features.first, features.second, self.n_atoms)

    def distances(self, x: np.ndarray) -> np.ndarray:
        """The distances s (..., D) in Å that entries (..., D) stand for."""
        return -self.decay * np.log(x)

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {"name": self.name, "decay": self.decay}


@dataclass(frozen=True)
class WeightedDistances(OfInverseDistances):
    r"""Powers of the inverse distances with a weight for each pair k = (i, j) of atoms.

    .. math:: x_k = m_k \, |r_i - r_j|^{-p_k}

    With weights for kinds of pairs this is a metric that says which distances matter;
    `gdml.learn_metric` finds them.

    Parameters
    ----------
    n_atoms : int
        N, at least 2.
    weights : sequence of float
        m, one for each of the N (N - 1) / 2 pairs in the order of `gdml.geometry.pair_indices`; positive.
    powers : sequence of float or float
        p; positive.

    Raises
    ------
    FitError
        If there are not as many, or they are not positive.
    """

    n_atoms: int
    weights: Sequence[float]
    powers: Sequence[float] | float = 1.0

    name = "weighted-distances"

    def __post_init__(self):
        powers = np.full(self.size, self.powers) if np.ndim(self.powers) == 0 else np.asarray(self.powers, dtype=float)
        object.__setattr__(self, "weights", tuple(np.asarray(self.weights, dtype=float).tolist()))
        object.__setattr__(self, "powers", tuple(powers.tolist()))
        for what, values in (("weights", self.weights), ("powers", self.powers)):
            if len(values) != self.size or not all(np.isfinite(v) and v > 0 for v in values):
                raise FitError(f"{self.n_atoms} atoms have {self.size} pairs, which need as many positive {what}")

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.weights, dtype=torch.float64), torch.tensor(self.powers, dtype=torch.float64)

    def of_inverse(self, features: PairFeatures) -> PairFeatures:
        """Descriptors and Jacobians from the inverse distances."""
        weights, powers = (t.to(features.x.device) for t in self._tensors)
        x = weights * features.x**powers
        slopes = features.slopes * (powers * x / features.x)[..., None]
        return PairFeatures(x, slopes, features.first, features.second, self.n_atoms)

    def action(self, group: PermutationGroup) -> Action:
        """How a group permutes the descriptor.

        Raises
        ------
        DataError
            If the group exchanges pairs of different weights or powers.
        """
        action = super().action(group)
        for what, values in (("weights", self.weights), ("powers", self.powers)):
            values = np.asarray(values)
            wrong = np.flatnonzero(np.abs(action.reduce(values, np.max) - values) > 1e-9 * values)
            if len(wrong):
                first, second = pair_indices(self.n_atoms)
                raise DataError(
                    f"the group exchanges the pair of atoms {second[wrong[0]]} and {first[wrong[0]]} with one that has "
                    f"other {what}; give pairs that it exchanges the same"
                )
        return action

    def distances(self, x: np.ndarray) -> np.ndarray:
        """The distances s (..., D) in Å that entries (..., D) stand for."""
        return (x / np.asarray(self.weights)) ** (-1.0 / np.asarray(self.powers))

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {"name": self.name, "weights": list(self.weights), "powers": list(self.powers)}
