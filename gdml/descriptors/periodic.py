r"""Powers of the inverse distances between all pairs of atoms of a periodic system.

Entry k belongs to a pair (i, j) of the N atoms of the cell and depends on their
difference d = r_i - r_j up to lattice vectors L. Two distances do:

* the nearest image, :math:`s^2 = \min_L |d + L|^2`. Exact, and what the
  literature uses, but its slope jumps where two images are equally near, at
  the faces of the Wigner-Seitz cell; in a symmetric supercell, the pairs half
  a box apart sit right there.
* a soft minimum, :math:`s^2 = -2 \sigma^2 \log \sum_L \exp(-|d + L|^2 / 2 \sigma^2)`.
  It has all derivatives everywhere between the atoms, and differs from the
  nearest image only where others are about as near.

Both are the same for every choice of the cell's vectors, and have the full
symmetry of the lattice. Strain ε moves atoms and lattice alike,
r -> (1 + ε) r. Distances of an atom to its own images are no entries: at a
fixed cell they are constant. Under strain they change, and the other entries
have to stand for them; use a supercell where that matters.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import DataError, FitError
from ..geometry import NUMBERS_AT_A_TIME, Lattice, pair_indices
from .inverse_distances import PairFeatures, PowerDescriptor, pairs_on

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # rows and columns of xx, yy, zz, yz, xz, xy
MIN_DISTANCE = 1e-6  # Å; closer atoms are taken to be at the same place
MAX_SOFTNESS = 0.25  # beyond, atoms that are well apart can have a soft distance of zero
NEGLIGIBLE = 36.0  # exp(-36) is the last bit of a sum that starts with one


@cache
def voigt_on(device: torch.device) -> Tensor:
    """Rows and columns (2, 6) of the entries of a strain, on a device."""
    return torch.tensor(VOIGT, device=device)


@dataclass(frozen=True)
class PeriodicFeatures(PairFeatures):
    """Descriptors of M periodic geometries, with their Jacobians in pair form.

    Attributes
    ----------
    strain_slopes : (M, D, 6) tensor or None
        Derivatives with respect to the strain ε of atoms and cell, in the order
        xx, yy, zz, yz, xz, xy. Entry yz is the derivative along ε_yz = ε_zy,
        halved, as in a stress of ASE. None unless asked for.
    """

    strain_slopes: Tensor | None = None

    def map(self, take: Callable[[Tensor], Tensor]) -> "PeriodicFeatures":
        """Other geometries, by what takes their values from the arrays of these."""
        strain = None if self.strain_slopes is None else take(self.strain_slopes)
        return replace(super().map(take), strain_slopes=strain)

    def strain_vjp(self, cotangents: Tensor) -> Tensor:
        """Derivatives (M, 6) by the strain from a gradient (M, D) on the descriptors.

        From the gradient of an energy in eV, this over the volume in Å³ is the
        stress in ASE's sign and order.
        """
        return torch.einsum("md,mdv->mv", cotangents, self.strain_slopes)


@dataclass(frozen=True)
class _PeriodicPairs(PowerDescriptor):
    """What the periodic descriptors share: x = s^-p with a periodic distance s.

    Subclasses give s², and half of its derivatives.
    """

    n_atoms: int
    cell: ArrayLike
    pbc: Sequence[bool] = (True, True, True)
    power: float = 3.0

    def __post_init__(self):
        self._check_power()
        # Tuples, so that equal descriptors are equal, and nobody changes them.
        cell, pbc = np.asarray(self.cell, dtype=float), np.asarray(self.pbc, dtype=bool)
        object.__setattr__(self, "cell", tuple(map(tuple, np.atleast_2d(cell).tolist())))
        object.__setattr__(self, "pbc", tuple((np.repeat(pbc, 3) if pbc.ndim == 0 else pbc).tolist()))
        _ = self.lattice  # raises now what would be raised later

    @cached_property
    def lattice(self) -> Lattice:
        """The lattice of the descriptor's own cell."""
        return Lattice.of_cell(self.cell, self.pbc)

    @abstractmethod
    def _distances(self, difference: Tensor, lattice: Lattice, strain: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """s² (m, D) and half its derivatives by the differences (m, D, 3) and, if asked for, by strain (m, D, 6)."""

    def evaluate(
        self, positions: Tensor, cells: ArrayLike | Tensor | None = None, strain: bool = False
    ) -> PeriodicFeatures:
        """Descriptors and Jacobians of geometries.

        Parameters
        ----------
        positions : (M, N, 3) tensor, Å
            Need not be wrapped into the cell.
        cells : (3, 3) or (M, 3, 3), Å, optional
            One for all geometries, or one for each. By default the
            descriptor's own.
        strain : bool
            Whether derivatives with respect to strain are needed, too.

        Raises
        ------
        DataError
            If the number of atoms or cells is wrong, a position is not finite,
            two atoms are at the same place, or a cell spans no lattice.
        """
        self._check_positions(positions)
        first, second = pairs_on(positions.device, self.n_atoms)
        difference = positions[:, first] - positions[:, second]
        parts = [self._distances(d, lattice, strain) for d, lattice in self._by_lattice(difference, cells)]
        squared, half, half_strain = (None if p[0] is None else torch.cat(p) for p in zip(*parts))
        self._check_apart(squared)
        x = squared.pow(-0.5 * self.power)
        factor = (-self.power * x / squared)[..., None]
        by_strain = half_strain * factor if strain else None
        return PeriodicFeatures(x, half * factor, first, second, self.n_atoms, by_strain)

    def _by_lattice(self, difference: Tensor, cells: ArrayLike | Tensor | None) -> list[tuple[Tensor, Lattice]]:
        if cells is None:
            return [(difference, self.lattice)]
        cells = np.asarray(cells, dtype=float)
        if cells.shape[-2:] == (3, 3) and (cells == np.asarray(self.cell)).all():
            return [(difference, self.lattice)]
        if cells.shape == (3, 3):
            return [(difference, Lattice.of_cell(cells, self.pbc))]
        if cells.shape != (len(difference), 3, 3):
            raise DataError(
                f"{len(difference)} geometries need one cell (3, 3), or ({len(difference)}, 3, 3); not {cells.shape}"
            )
        if (cells == cells[0]).all():
            return [(difference, self._lattice_of(0, cells[0]))]
        return [(d[None], self._lattice_of(frame, cells[frame])) for frame, d in enumerate(difference)]

    def _lattice_of(self, frame: int, cell: np.ndarray) -> Lattice:
        try:
            return Lattice.of_cell(cell, self.pbc)
        except DataError as error:
            raise DataError(f"frame {frame}: {error}") from None

    def _check_positions(self, positions: Tensor) -> None:
        if positions.shape[1:] != (self.n_atoms, 3):
            raise DataError(
                f"the descriptor is for positions (frames, {self.n_atoms}, 3), not {tuple(positions.shape)}"
            )
        wrong = torch.nonzero(~positions.isfinite().all(2))
        if len(wrong):
            frame, atom = wrong[0].tolist()
            raise DataError(f"frame {frame}: the position of atom {atom} is not finite; remove the frame")

    def _check_apart(self, squared: Tensor) -> None:
        wrong = torch.nonzero(~(squared > MIN_DISTANCE**2))
        if len(wrong):
            frame, pair = wrong[0].tolist()
            first, second = (int(i[pair]) for i in pair_indices(self.n_atoms))
            raise DataError(
                f"frame {frame}: atoms {second} and {first} are at the same place, up to lattice vectors; "
                "remove one of them, or correct the cell"
            )

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {**super().recipe(), "cell": [list(row) for row in self.cell], "pbc": list(self.pbc)}


@dataclass(frozen=True)
class PeriodicInverseDistances(_PeriodicPairs):
    r"""Powers of the inverse distances of all pairs of atoms to their nearest images.

    .. math:: x_k = s_k^{-p}, \quad s_k = \min_L |r_i - r_j + L|

    Source: Sauceda et al., Nat. Commun. 13, 3733 (2022), for p = 1.

    Parameters
    ----------
    n_atoms : int
        N, at least 2.
    cell : (3, 3), Å
    pbc : three bools
    power : float
        p; positive.

    Raises
    ------
    DataError
        If the cell spans no lattice along the periodic directions.
    FitError
        If there is a single atom, or the power is not positive.
    """

    name = "periodic-inverse-distances"

    def _distances(self, difference: Tensor, lattice: Lattice, strain: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        nearest = lattice.nearest(difference)
        rows, columns = voigt_on(nearest.device)
        by_strain = nearest[..., rows] * nearest[..., columns] if strain else None
        return torch.linalg.vecdot(nearest, nearest), nearest, by_strain


@dataclass(frozen=True)
class SmoothInverseDistances(_PeriodicPairs):
    r"""Powers of inverse distances that are smooth across the faces of the Wigner-Seitz cell.

    .. math:: x_k = s_k^{-p}, \quad s_k^2 = -2 \sigma^2 \log \sum_L \exp(-|r_i - r_j + L|^2 / 2 \sigma^2)

    Parameters
    ----------
    n_atoms : int
        N, at least 2.
    cell : (3, 3), Å
    pbc : three bools
    power : float
        p; positive.
    softness : float
        σ over the shortest lattice vector of `cell`; above zero, at most 0.25.
        Geometries with cells of their own have the same σ.

    Raises
    ------
    DataError
        If the cell spans no lattice along the periodic directions.
    FitError
        If there is a single atom, the power is not positive, or the softness is
        out of its range.
    """

    softness: float = 0.15

    name = "smooth-inverse-distances"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.softness <= MAX_SOFTNESS:
            raise FitError(
                f"the softness must be above 0 and at most {MAX_SOFTNESS}, not {self.softness}; "
                "for the nearest image alone there is PeriodicInverseDistances"
            )

    @property
    def sigma(self) -> float:
        """σ, Å."""
        return self.softness * self.lattice.shortest

    def _distances(self, difference: Tensor, lattice: Lattice, strain: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        nearest = lattice.nearest(difference)
        images = nearest.new_tensor(lattice.images(2 * self.sigma**2 * NEGLIGIBLE))
        parts = nearest.view(-1, 3).split(max(1, NUMBERS_AT_A_TIME // max(1, len(images))))
        results = zip(*[_soft_minimum(v, images, 2 * self.sigma**2, strain) for v in parts])
        shape = nearest.shape[:-1]
        return tuple(None if r[0] is None else torch.cat(r).view(*shape, *r[0].shape[1:]) for r in results)

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        return {**super().recipe(), "softness": self.softness}


def _soft_minimum(v: Tensor, images: Tensor, width: float, strain: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """-width · log Σ exp(-|v + L|² / width) and half its derivatives by v and by strain.

    The sum runs over `images` and zero, which is the largest term: v (m, 3) are
    nearest images, so that no exponent is positive.
    """
    squares = (images * images).sum(1)
    weights = torch.addmm(squares, v, images.T, alpha=2.0).div_(-width).exp_()
    others = weights.sum(1)
    weights = weights / (1.0 + others[:, None])
    pull = weights @ images
    squared = torch.linalg.vecdot(v, v) - width * others.log1p()
    if not strain:
        return squared, v + pull, None
    # Σ w (v + L)(v + L)ᵀ, with the weights of all images adding up to one.
    rows, columns = voigt_on(v.device)
    by_strain = v[:, rows] * (v + pull)[:, columns] + pull[:, rows] * v[:, columns]
    by_strain += weights @ (images[:, rows] * images[:, columns])
    return squared, v + pull, by_strain
