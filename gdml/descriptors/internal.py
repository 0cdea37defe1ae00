"""Internal coordinates: bonds, angles and dihedrals of a molecule."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..errors import FitError
from ..geometry import bonds, median_distances
from .autograd import Differentiated

NEARLY_LINEAR = np.cos(np.radians(170.0))


@dataclass(frozen=True)
class InternalCoordinates(Differentiated):
    """Bonds as inverse lengths, angles as cosines, dihedrals as cosines and sines.

    Of a molecule whose bonds stay: atoms are bonded if their median distance is below
    1.3 times the sum of their covalent radii. Dihedrals next to angles that come
    within 10° of 180° are left out. What is not bonded is not seen.

    Parameters
    ----------
    bond_weight, angle_weight, dihedral_weight : float
        That entries are multiplied by, positive; bonds in Å.

    Raises
    ------
    FitError
        When training begins: for periodic systems, and molecules without angles or in
        several parts.
    """

    bond_weight: float = 3.0
    angle_weight: float = 1.0
    dihedral_weight: float = 0.5
    bonds: tuple[tuple[int, int], ...] = field(default=(), kw_only=True, repr=False)
    angles: tuple[tuple[int, int, int], ...] = field(default=(), kw_only=True, repr=False)
    dihedrals: tuple[tuple[int, int, int, int], ...] = field(default=(), kw_only=True, repr=False)

    name = "internal-coordinates"
    is_local = False

    def __post_init__(self):
        for what in ("bond_weight", "angle_weight", "dihedral_weight"):
            if not (np.isfinite(getattr(self, what)) and getattr(self, what) > 0):
                raise FitError(f"{what} of internal coordinates must be positive, not {getattr(self, what)}")

    @property
    def title(self) -> str:
        return self.name

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "InternalCoordinates":
        """The coordinates of these atoms, with the bonds of the geometries (M, N, 3)."""
        if any(pbc):
            raise FitError("internal coordinates are for molecules, and these geometries are periodic")
        pairs, angles, dihedrals = _coordinates(np.asarray(numbers), np.asarray(positions))
        if not angles:
            raise FitError("internal coordinates need bonds that make angles, and there are none")
        one = replace(self, bonds=pairs, angles=angles, dihedrals=dihedrals)
        return super(InternalCoordinates, one).bound(numbers, positions, pbc, cell)

    def values(self, positions: Tensor, cells: Tensor | None = None) -> Tensor:
        """The descriptors (M, D) alone, as torch can differentiate them."""

        def step(first: Tensor, second: Tensor) -> Tensor:
            return positions[:, second] - positions[:, first]

        a, b = torch.tensor(self.bonds, device=positions.device).T
        parts = [self.bond_weight / torch.linalg.vector_norm(step(a, b), dim=2)]
        i, j, k = torch.tensor(self.angles, device=positions.device).T
        parts.append(self.angle_weight * torch.cosine_similarity(step(j, i), step(j, k), dim=2))
        if self.dihedrals:
            i, j, k, p = torch.tensor(self.dihedrals, device=positions.device).T
            u, v, w = step(i, j), step(j, k), step(k, p)
            m, n = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
            axis = v / torch.linalg.vector_norm(v, dim=2, keepdim=True)
            scale = self.dihedral_weight / (torch.linalg.vector_norm(m, dim=2) * torch.linalg.vector_norm(n, dim=2))
            parts.append(scale * (m * n).sum(2))
            parts.append(scale * (torch.linalg.cross(m, n) * axis).sum(2))
        return torch.cat(parts, 1)

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        names = "bond_weight", "angle_weight", "dihedral_weight", "bonds", "angles", "dihedrals", "numbers", "example"
        return {"name": self.name, **{name: getattr(self, name) for name in names}, "shape": self.shape}


def _coordinates(numbers: np.ndarray, positions: np.ndarray) -> tuple[tuple, tuple, tuple]:
    """Bonds, angles and dihedrals, each once."""
    bonded = bonds(numbers, median_distances(positions))
    n_parts = connected_components(bonded)[0]
    if n_parts > 1:
        raise FitError(f"internal coordinates see what is bonded, and the molecule is in {n_parts} parts")
    near = [np.flatnonzero(row).tolist() for row in bonded]
    pairs = [(i, j) for i in range(len(numbers)) for j in near[i] if i < j]
    angles = [(i, j, k) for j in range(len(numbers)) for i in near[j] for k in near[j] if i < k]
    linear = {(i, j, k) for i, j, k in angles if _cosines(positions, i, j, k).min() < NEARLY_LINEAR}
    dihedrals = [
        (i, j, k, m)
        for j, k in pairs
        for i in near[j]
        for m in near[k]
        if len({i, j, k, m}) == 4 and not {(min(i, k), j, max(i, k)), (min(j, m), k, max(j, m))} & linear
    ]
    return tuple(pairs), tuple(angles), tuple(dihedrals)


def _cosines(positions: np.ndarray, i: int, j: int, k: int) -> np.ndarray:
    u, v = positions[:, i] - positions[:, j], positions[:, k] - positions[:, j]
    return (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
