r"""How sure a force field is, by a committee: force fields that were each trained on half of the geometries.

Members share kernel, descriptor and symmetry, and lack different halves. With f_k what member k of
K predicts and f̄ their mean, the standard deviation is

.. math:: \sigma = s \sqrt{\frac{1}{K-1} \sum_k (f_k - \bar f)^2} ,

where the scale s is such that nine tenths of the errors are within 1.645 standard deviations. A member costs
about as much as a prediction, however many geometries there are, where the variance of `gdml.posterior` costs
the square of the number of labels.

Source: Seung, Opper and Sompolinsky, Query by committee, COLT (1992); the calibrated committees of Musil,
Willatt, Langovoy and Ceriotti, J. Chem. Theory Comput. 15, 906 (2019).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .contractions import Contraction, contraction
from .descriptors import Features
from .kernels import RadialKernel
from .symmetry import Action, Environments


@dataclass(frozen=True, eq=False)
class Committee:
    """Standard deviations from what members disagree about.

    Parameters
    ----------
    kernel : RadialKernel
    action : Action or Environments
    y : (n, D) tensor
        Descriptors of all training geometries.
    w : (K, n, D) tensor
        Each member's coefficients; zero where it was not trained.
    c : (K, n) tensor, optional
        Likewise, of energies.
    scale, energy_scale : float
        s of forces, and of energies.
    calibration : str
        How that was found.
    usual : float, eV/Å
        Deviation of forces, root mean square, that nine in ten training geometries do not have, each judged by
        members that do not know it.
    """

    kernel: RadialKernel
    action: Action | Environments
    y: Tensor
    w: Tensor
    c: Tensor | None = None
    scale: float = 1.0
    energy_scale: float = 1.0
    calibration: str = "none"
    usual: float = math.inf

    def recipe(self) -> dict[str, object]:
        """What a file needs besides arrays."""
        names = "scale", "energy_scale", "calibration", "usual"
        return {"kind": "committee"} | {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, Tensor]:
        """What a file needs besides the recipe."""
        return {name: getattr(self, name) for name in ("y", "w", "c") if getattr(self, name) is not None}

    @cached_property
    def _members(self) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Energies and gradients by each member, of which only the points it was trained on are summed over."""
        members = []
        for k, w in enumerate(self.w):
            own = (w != 0).any(1) if self.c is None else (w != 0).any(1) | (self.c[k] != 0)
            jets: Contraction = contraction(self.kernel, self.y[own], self.action)
            members.append(jets.bind(None if self.c is None else self.c[k][own], w[own]))
        return members

    @cached_property
    def _means(self) -> Tensor:
        """Each member's mean energy over the training geometries (K,)."""
        return torch.stack([member(self.y)[0].mean() for member in self._members])

    def predictions(self, features: Features, member: int) -> tuple[Tensor, Tensor]:
        """Energies (M,), relative to the mean over the training geometries, and slopes (M, 3N) by one member."""
        e, g = self._members[member](features.x)
        return e - self._means[member], features.vjp(g).flatten(1)

    def deviations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Standard deviations of energies (M,) and forces (M, 3N)."""
        energy, forces = spread([self.predictions(features, k) for k in range(len(self.w))])
        return self.energy_scale * energy, self.scale * forces


def spread(predictions: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Standard deviations of what several members predict."""
    return tuple(torch.stack(part).std(0) for part in zip(*predictions))


def halves(n: int, n_members: int, seed: int = 0) -> np.ndarray:
    """Which of n geometries which of K members are trained on, (K, n) bool: each by half of the members.

    Members come in pairs, of which one has what the other lacks.
    """
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n_members // 2):
        own = np.zeros(n, dtype=bool)
        own[rng.permutation(n)[: n // 2]] = True
        rows += [own, ~own]
    return np.array(rows)
