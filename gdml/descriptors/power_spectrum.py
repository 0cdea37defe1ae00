r"""The power spectrum of what surrounds each atom: smooth overlaps of atomic positions.

With radial functions :math:`g_n(r) = e^{-(r - R_n)^2 / 2 \sigma^2} f(r)` on a grid of R and the
cutoff :math:`f(r) = (1 + \cos(\pi r / r_c)) / 2`, the power spectrum of the density of neighbours
around atom i is, for each two of the elements z and radii n, and each order l,

.. math::

   x_{zn, z'n', l} = \sum_{j: z_j = z} \sum_{k: z_k = z'}
                     g_n(r_{ij}) \, g_{n'}(r_{ik}) \, P_l(\cos\theta_{jik}) ,

by the addition theorem of spherical harmonics, which need not be formed.

Source: A. P. Bartók, R. Kondor, G. Csányi, Phys. Rev. B 87, 184115 (2013).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import FitError
from ..symmetry import Environments, PermutationGroup
from .autograd import Differentiated
from .many_body import known_atoms


@dataclass(frozen=True)
class PowerSpectrum(Differentiated):
    """Power spectra around each atom (see `gdml.descriptors.power_spectrum`), for molecules.

    The kernel compares atoms of the same element; energies are sums over atoms.

    Parameters
    ----------
    cutoff : float
        r_c, Å.
    n_radial : int
        Radii of the grid, up to the cutoff.
    max_order : int
        The largest l.
    weight : float
        That entries are multiplied by.

    Raises
    ------
    FitError
        If a parameter is not positive, or, when training begins, for periodic systems.
    """

    cutoff: float = 6.0
    n_radial: int = 7
    max_order: int = 4
    weight: float = 1.0
    elements: tuple[int, ...] = ()

    name = "power-spectrum"
    is_costly = True
    is_local = True
    noises = (1e-6, 1e-7, 1e-5, 1e-4)

    def __post_init__(self):
        for what in ("cutoff", "n_radial", "max_order", "weight"):
            value = getattr(self, what)
            if not (math.isfinite(value) and value > 0):
                raise FitError(f"{what} of the power spectrum must be positive, not {value}")

    @property
    def title(self) -> str:
        return self.name

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "PowerSpectrum":
        """The descriptor for these atoms."""
        if any(pbc):
            raise FitError("the power spectrum is for molecules, and these geometries are periodic")
        return replace(self, elements=tuple(sorted({int(z) for z in numbers}))).for_atoms(numbers)

    def for_atoms(self, numbers: np.ndarray) -> "PowerSpectrum":
        """The same for other atoms of the elements that it knows; see `ManyBody.for_atoms`."""
        numbers = known_atoms(numbers, self.elements)
        n_channels = len(self.elements) * self.n_radial
        width = (self.max_order + 1) * n_channels * (n_channels + 1) // 2
        return replace(self, numbers=numbers, shape=(len(numbers), width))

    @property
    def intermediates(self) -> int:
        return 12 * self.size + 4 * len(self.numbers) ** 3

    @cached_property
    def _channels(self) -> Tensor:
        """Which element (N, elements) each atom is, as zeros and ones."""
        numbers = np.array(self.numbers)
        return torch.tensor(numbers[:, None] == np.array(self.elements), dtype=torch.float64)

    def values(self, positions: Tensor, cells: Tensor | None = None) -> Tensor:
        """The descriptors (M, D) alone, as torch can differentiate them."""
        n = len(self.numbers)
        others = torch.tensor([[j for j in range(n) if j != i] for i in range(n)], device=positions.device)
        away = positions[:, others] - positions[:, :, None]  # (M, N, N - 1, 3)
        r = torch.linalg.vector_norm(away, dim=3)
        cosines = (away / r[..., None]) @ (away / r[..., None]).mT
        radii = torch.linspace(0.8, self.cutoff, self.n_radial, dtype=r.dtype, device=r.device)
        width = (self.cutoff - 0.8) / self.n_radial
        cut = 0.5 + 0.5 * torch.cos(torch.minimum(r, r.new_tensor(self.cutoff)) * (math.pi / self.cutoff))
        radial = torch.exp(-0.5 * ((r[..., None] - radii) / width).square()) * cut[..., None]
        elements = self._channels.to(r.device)[others]  # (N, N - 1, elements)
        channels = (elements[..., :, None] * radial[..., None, :]).flatten(3)
        first, second = torch.triu_indices(channels.shape[3], channels.shape[3], device=r.device)
        orders = [(channels.mT @ (p @ channels))[..., first, second] for p in self._legendre(cosines)]
        return (self.weight * torch.cat(orders, 2)).flatten(1)

    def _legendre(self, x: Tensor) -> list[Tensor]:
        """Legendre polynomials up to the largest order, by Bonnet's recursion."""
        values = [torch.ones_like(x), x]
        for order in range(1, self.max_order):
            values.append(((2 * order + 1) * x * values[-1] - order * values[-2]) / (order + 1))
        return values

    def action(self, group: PermutationGroup) -> Environments:
        """Which rows of the descriptor are compared."""
        return Environments(np.array(self.numbers), self.shape[1])

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {
            "name": self.name,
            **{k: getattr(self, k) for k in ("cutoff", "n_radial", "max_order", "weight", "elements", "numbers")},
        }
