r"""Radial kernels.

A kernel is a function k(r) of the distance in descriptor space. Everything the
package needs of it follows from the operator

.. math:: \mathcal{D} = -\frac{1}{r} \frac{d}{dr},

applied again and again: the *profile* (k, 𝒟k, 𝒟²k). For the kernels here each
of the three is positive, decreasing, and finite at r = 0. With d = x - y,

.. math::

   \partial_y k = \mathcal{D}k \, d, \qquad
   \partial_x \partial_y^T k = \mathcal{D}k \, I - \mathcal{D}^2 k \, d d^T .
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import FitError


@dataclass(frozen=True)
class RadialKernel(ABC):
    """A radial kernel with a length scale.

    Subclasses say what the kernel is in units of its length scale
    (`unit_profile`) and, as `steepness`, how many of its natural lengths make
    one length scale, so that a contraction may scale the descriptors once
    instead of every distance.

    Attributes
    ----------
    length_scale : float
        In units of the descriptor; positive.
    """

    length_scale: float = 1.0

    name: ClassVar[str]
    steepness: ClassVar[float] = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.length_scale) and self.length_scale > 0):
            raise FitError(f"the length scale must be positive and finite, not {self.length_scale}")

    @property
    def natural_length(self) -> float:
        """The length t in which `unit_profile` measures distances."""
        return self.length_scale / self.steepness

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(k, 𝒟k, 𝒟²k) at distances r, with 𝒟 = -(1/r) d/dr."""
        t = self.natural_length
        k, d1, d2 = self.unit_profile(r / t)
        return k, d1 / t**2, d2 / t**4

    @staticmethod
    @abstractmethod
    def unit_profile(s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        """The profile at s = r / natural_length, for a natural length of one.

        k itself is left out (None) with ``value=False``: forces do not need it.
        """

    @staticmethod
    @abstractmethod
    def unit_formula(s: Any) -> tuple[Any, Any, Any]:
        """The same in plain arithmetic and ``.exp()``, for symbolic s."""


class Matern52(RadialKernel):
    r"""Matérn kernel with smoothness 5/2, the default.

    .. math:: k = (1 + s + s^2/3) e^{-s}, \quad s = \sqrt{5} r / \ell

    Source: Chmiela et al., Nat. Commun. 9, 3887 (2018), eq. 6.
    """

    name = "matern52"
    steepness = math.sqrt(5.0)

    @staticmethod
    def unit_profile(s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        # e^{-s} / 3 is the highest derivative; the factor costs nothing in the exponent.
        d2 = torch.rsub(s, -math.log(3.0)).exp_()
        d1 = torch.addcmul(d2, s, d2)
        k = torch.addcmul(3.0 * d1, s * s, d2) if value else None
        return k, d1, d2

    @staticmethod
    def unit_formula(s: Any) -> tuple[Any, Any, Any]:
        d2 = (-s).exp() / 3.0
        d1 = d2 * (s + 1.0)
        return d1 * 3.0 + s * s * d2, d1, d2


class Gaussian(RadialKernel):
    r"""Gaussian kernel, k = exp(-s²/2) with s = r / ℓ."""

    name = "gaussian"

    @staticmethod
    def unit_profile(s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        k = torch.exp(-0.5 * s * s)
        return k, k, k

    @staticmethod
    def unit_formula(s: Any) -> tuple[Any, Any, Any]:
        k = (s * s * -0.5).exp()
        return k, k, k


KERNELS: dict[str, type[RadialKernel]] = {cls.name: cls for cls in (Matern52, Gaussian)}


def kernel_by_name(name: str) -> type[RadialKernel]:
    """The kernel class called `name`."""
    if name not in KERNELS:
        raise FitError(f"unknown kernel {name!r}; known kernels are {', '.join(sorted(KERNELS))}")
    return KERNELS[name]
