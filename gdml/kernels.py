r"""Radial kernels.

A kernel is a function k(r) of the distance in descriptor space. Everything the
package needs of it follows from the operator

.. math:: \mathcal{D} = -\frac{1}{r} \frac{d}{dr},

applied again and again: the *profile* (k, 𝒟k, 𝒟²k). For the kernels here each
of the three is positive and decreasing, and at r = 0 k, 𝒟k and r² 𝒟²k are finite.
With d = x - y,

.. math::

   \partial_y k = \mathcal{D}k \, d, \qquad
   \partial_x \partial_y^T k = \mathcal{D}k \, I - \mathcal{D}^2 k \, d d^T .
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import FitError

# Below this many natural lengths, what diverges at zero (and is multiplied by more than it
# diverges by) is taken as it is there.
SMALLEST = 1e-7
# The same for derivatives by differentiation, whose rounding errors grow like 1/s³; the
# terms that they stand in are then off by about 1e-11.
SMALLEST_BY_AUTOGRAD = 1e-5


@dataclass(frozen=True)
class RadialKernel(ABC):
    """A radial kernel with a length scale.

    Subclasses say what the kernel is in units of its length scale
    (`unit_profile`) and, as `steepness`, how many of its natural lengths make
    one length scale, so that a contraction may scale the descriptors once
    instead of every distance. Kernels can be added, and multiplied by positive
    numbers: ``Matern52() + 0.1 * Gaussian(5.0)``.

    Attributes
    ----------
    length_scale : float
        In units of the descriptor; positive.

    Raises
    ------
    FitError
        If the length scale, or another parameter, is not positive and finite.
    """

    length_scale: float = 1.0

    name: ClassVar[str]
    steepness: ClassVar[float] = 1.0

    def __post_init__(self):
        _check_positive("the length scale", self.length_scale)

    @property
    def natural_length(self) -> float:
        """The length t in which `unit_profile` measures distances."""
        return self.length_scale / self.steepness

    def with_length_scale(self, length_scale: float) -> "RadialKernel":
        """The same kernel with another length scale."""
        return replace(self, length_scale=length_scale)

    def profile(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(k, 𝒟k, 𝒟²k) at distances r, with 𝒟 = -(1/r) d/dr."""
        t = self.natural_length
        k, d1, d2 = self.unit_profile(r / t)
        return k, d1 / t**2, d2 / t**4

    @abstractmethod
    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        """The profile at s = r / natural_length, for a natural length of one.

        k itself is left out (None) with ``value=False``: forces do not need it.
        """

    @abstractmethod
    def unit_third(self, s: Tensor) -> Tensor:
        """𝒟³k at s, which second derivatives of the energy need."""

    @abstractmethod
    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        """The profile in plain arithmetic, ``.exp()`` and powers, for symbolic s."""

    def recipe(self) -> dict[str, Any]:
        """What a model file needs to make this kernel again; see `kernel_from_recipe`."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def __add__(self, other: "RadialKernel") -> "KernelSum":
        if not isinstance(other, RadialKernel):
            return NotImplemented
        mine, others = (k if isinstance(k, KernelSum) else KernelSum(parts=(k,)) for k in (self, other))
        return KernelSum(
            parts=tuple(p.with_length_scale(p.length_scale * k.length_scale) for k in (mine, others) for p in k.parts),
            weights=mine.weights + others.weights,
        )

    def __mul__(self, factor: float) -> "KernelSum":
        if not isinstance(factor, (int, float)):
            return NotImplemented
        if isinstance(self, KernelSum):
            return replace(self, weights=tuple(factor * w for w in self.weights))
        return KernelSum(parts=(self,), weights=(factor,))

    __rmul__ = __mul__


def _plus(a: Any, b: Any) -> Any:
    """The sum of values, of which both or none are wanted."""
    return None if a is None or b is None else a + b


def _check_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise FitError(f"{what} must be positive and finite, not {value}")


class Matern32(RadialKernel):
    r"""Matérn kernel with smoothness 3/2.

    .. math:: k = (1 + s) e^{-s}, \quad s = \sqrt{3} r / \ell

    The forces of such a force field have kinks at the training geometries. Those at one of
    them are right to 1e-8 only, since there rounding errors of distances count.
    """

    name = "matern32"
    steepness = math.sqrt(3.0)

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        d1 = torch.exp(-s)
        k = torch.addcmul(d1, s, d1) if value else None
        return k, d1, d1 / s.clamp(min=SMALLEST)

    def unit_third(self, s: Tensor) -> Tensor:
        s = s.clamp(min=SMALLEST)
        return (1.0 + s) * torch.exp(-s) / s**3

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        d1 = (-s).exp()
        return d1 * (s + 1.0), d1, d1 / ((s - SMALLEST).relu() + SMALLEST)


class Matern52(RadialKernel):
    r"""Matérn kernel with smoothness 5/2, the default.

    .. math:: k = (1 + s + s^2/3) e^{-s}, \quad s = \sqrt{5} r / \ell

    Source: Chmiela et al., Nat. Commun. 9, 3887 (2018), eq. 6.
    """

    name = "matern52"
    steepness = math.sqrt(5.0)

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        # e^{-s} / 3 is the highest derivative; the factor costs nothing in the exponent.
        d2 = torch.rsub(s, -math.log(3.0)).exp_()
        d1 = torch.addcmul(d2, s, d2)
        k = torch.addcmul(3.0 * d1, s * s, d2) if value else None
        return k, d1, d2

    def unit_third(self, s: Tensor) -> Tensor:
        return torch.exp(-s) / (3.0 * s.clamp(min=SMALLEST))

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        d2 = (-s).exp() / 3.0
        d1 = d2 * (s + 1.0)
        return d1 * 3.0 + s * s * d2, d1, d2


class Matern72(RadialKernel):
    r"""Matérn kernel with smoothness 7/2.

    .. math:: k = (1 + s + 2 s^2/5 + s^3/15) e^{-s}, \quad s = \sqrt{7} r / \ell

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eq. 4.16.
    """

    name = "matern72"
    steepness = math.sqrt(7.0)

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        third = torch.rsub(s, -math.log(15.0)).exp_()
        d2 = torch.addcmul(third, s, third)
        square = s * s
        d1 = torch.addcmul(3.0 * d2, square, third)
        k = (15.0 * (third + s * third)).addcmul_(square * (s + 6.0), third) if value else None
        return k, d1, d2

    def unit_third(self, s: Tensor) -> Tensor:
        return torch.exp(-s) / 15.0

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        third = (-s).exp() / 15.0
        square = s * s
        return third * (15.0 * (s + 1.0) + square * (s + 6.0)), third * (3.0 * (s + 1.0) + square), third * (s + 1.0)


class Gaussian(RadialKernel):
    r"""Gaussian kernel, k = exp(-s²/2) with s = r / ℓ; also called RBF."""

    name = "gaussian"

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        k = torch.exp(-0.5 * s * s)
        return k, k, k

    def unit_third(self, s: Tensor) -> Tensor:
        return torch.exp(-0.5 * s * s)

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        k = (s * s * -0.5).exp()
        return k, k, k


@dataclass(frozen=True)
class RationalQuadratic(RadialKernel):
    r"""Rational quadratic kernel: a mixture of Gaussians of all lengths.

    .. math:: k = (1 + s^2 / 2 \alpha)^{-\alpha}, \quad s = r / \ell

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eq. 4.19.

    Parameters
    ----------
    length_scale : float
    alpha : float
        Positive; the larger, the nearer to the Gaussian.
    """

    alpha: float = 2.0

    name = "rational-quadratic"

    def __post_init__(self):
        super().__post_init__()
        _check_positive("alpha", self.alpha)

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        base = 1.0 + s * s / (2.0 * self.alpha)
        k = base.pow(-self.alpha)
        d1 = k / base
        return k, d1, d1 / base * ((self.alpha + 1.0) / self.alpha)

    def unit_third(self, s: Tensor) -> Tensor:
        base = 1.0 + s * s / (2.0 * self.alpha)
        return base.pow(-self.alpha - 3.0) * ((self.alpha + 1.0) * (self.alpha + 2.0) / self.alpha**2)

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        base = s * s / (2.0 * self.alpha) + 1.0
        k = (base.log() * -self.alpha).exp()
        d1 = k / base
        return k, d1, d1 / base * ((self.alpha + 1.0) / self.alpha)


@dataclass(frozen=True)
class KernelSum(RadialKernel):
    """A sum of kernels with positive weights, as ``Matern52() + 0.1 * Gaussian(5.0)`` makes it.

    Parameters
    ----------
    length_scale : float
        Those of the parts are in units of this one.
    parts : tuple of RadialKernel
    weights : tuple of float
        One by default.

    Raises
    ------
    FitError
        If there are no parts, or a weight is not positive.
    """

    parts: tuple[RadialKernel, ...] = ()
    weights: tuple[float, ...] = ()

    name = "sum"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0,) * len(self.parts))
        if not self.parts or len(self.weights) != len(self.parts):
            raise FitError(f"a sum of {len(self.parts)} kernels cannot have {len(self.weights)} weights")
        for weight in self.weights:
            _check_positive("the weight of a kernel in a sum", weight)

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        return self._summed(lambda part, s: part.unit_profile(s, value), s)

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        return self._summed(lambda part, s: part.unit_formula(s), s)

    def _summed(self, profile: Callable, s: Any) -> tuple[Any, Any, Any]:
        total = None
        for weight, part in zip(self.weights, self.parts):
            t = part.natural_length
            k, d1, d2 = profile(part, s * (1.0 / t))
            terms = None if k is None else k * weight, d1 * (weight / t**2), d2 * (weight / t**4)
            total = terms if total is None else tuple(_plus(a, b) for a, b in zip(total, terms))
        return total

    def unit_third(self, s: Tensor) -> Tensor:
        lengths = [part.natural_length for part in self.parts]
        terms = zip(self.weights, self.parts, lengths)
        return sum(w / t**6 * part.unit_third(s / t) for w, part, t in terms)

    def recipe(self) -> dict[str, Any]:
        return {**super().recipe(), "parts": [part.recipe() for part in self.parts]}


@dataclass(frozen=True)
class FunctionKernel(RadialKernel):
    r"""A kernel given as a function k(s) of s = r / ℓ; its derivatives come by differentiation.

    With :math:`q = s^2` the operator is :math:`\mathcal{D} = -2\, d/dq`.

    Parameters
    ----------
    length_scale : float
    function : callable
        From a tensor of distances s to one of values, entry by entry, in
        differentiable operations of torch. It has to be positive definite in as many
        dimensions as the descriptor has; training fails otherwise.

    Raises
    ------
    FitError
        If the values are not finite or not of the shape of s, or the second derivative
        of the kernel does not exist at zero, as that of exp(-s).
    """

    function: Callable[[Tensor], Tensor] | None = None

    name = "function"

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.function):
            raise FitError("FunctionKernel needs a function of the distance: FunctionKernel(function=...)")
        s = torch.tensor([SMALLEST_BY_AUTOGRAD, 1e-4, 1e-3, 0.5, 1.0, 2.0], dtype=torch.float64)
        try:
            value = self.function(s)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise FitError(f"the kernel's function cannot be evaluated for a tensor of distances: {error}") from error
        if not isinstance(value, Tensor) or value.shape != s.shape or not value.isfinite().all():
            raise FitError(f"the kernel's function must give a finite value for each distance, not {value}")
        try:
            _, d1, d2 = self.unit_profile(s)
        except (RuntimeError, NotImplementedError) as error:
            raise FitError(f"the kernel's function cannot be differentiated: {error}") from error
        if not (d1.isfinite().all() and d2.isfinite().all()) or _grows(d1[:3]):
            raise FitError(
                f"the second derivative of the kernel diverges at zero: -k'(s)/s is {float(d1[2]):.3g} at s = 0.001 "
                f"and {float(d1[0]):.3g} at {float(s[0]):g}; gradients need a kernel that is flat there, like Matern32"
            )
        if not float(d1[0]) > 0:
            raise FitError(
                f"the kernel's function does not fall from a maximum at zero: -k'(s)/s is {float(d1[0]):.3g}"
            )

    def unit_profile(self, s: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
        q = s.clamp(min=SMALLEST_BY_AUTOGRAD).square()
        d1, d2 = torch.func.jvp(partial(_lowered, self._of_square), (q,), (torch.ones_like(q),))
        return (self.function(s) if value else None), d1, -2.0 * d2

    def unit_third(self, s: Tensor) -> Tensor:
        q = s.clamp(min=SMALLEST_BY_AUTOGRAD).square()
        return _lowered(partial(_lowered, partial(_lowered, self._of_square)), q)

    def _of_square(self, q: Tensor) -> Tensor:
        return self.function(q.sqrt())

    def unit_formula(self, s: Any) -> tuple[Any, Any, Any]:
        raise FitError("a kernel given as a function has no symbolic form; use backend='gemm'")

    def recipe(self) -> dict[str, Any]:
        described = getattr(self.function, "__qualname__", repr(self.function))
        values = self.function(torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)).tolist()
        return {"name": self.name, "length_scale": self.length_scale, "function": described, "values": values}


def _grows(d1: Tensor) -> bool:
    """Whether 𝒟k goes on growing towards zero, from decade to decade, as a power or as a logarithm."""
    last, before = float(d1[0] - d1[1]), float(d1[1] - d1[2])
    return float(d1[0]) > 0 and last > 0.5 * before and last > 1e-3 * abs(float(d1[0]))


def _lowered(f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """𝒟f = -2 df/dq of an entrywise function of q = s²."""
    return -2.0 * torch.func.jvp(f, (q,), (torch.ones_like(q),))[1]


KERNELS: dict[str, type[RadialKernel]] = {
    cls.name: cls for cls in (Matern32, Matern52, Matern72, Gaussian, RationalQuadratic)
}


def kernel_by_name(name: str) -> type[RadialKernel]:
    """The kernel class called `name`."""
    if name not in KERNELS:
        raise FitError(f"unknown kernel {name!r}; known kernels are {', '.join(sorted(KERNELS))}")
    return KERNELS[name]


def kernel_from_recipe(recipe: dict[str, Any]) -> RadialKernel:
    """The kernel that a model file describes.

    Raises
    ------
    FitError
        If it is unknown, or was given as a function, which a file cannot keep.
    """
    settings = dict(recipe)
    name = settings.pop("name")
    if name == FunctionKernel.name:
        raise FitError(f"the kernel is the function {settings['function']}, which a model file cannot hold")
    if name == KernelSum.name:
        parts: Sequence[dict] = settings.pop("parts")
        return KernelSum(parts=tuple(map(kernel_from_recipe, parts)), **settings)
    return kernel_by_name(name)(**settings)
