"""Geometry of sets of atoms: pairs, periodic images, rigid motions, bonds.

Nothing here knows a kernel, a label or a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from ase.data import covalent_radii
from ase.geometry import minkowski_reduce
from numpy.typing import ArrayLike
from torch import Tensor

from .errors import DataError

MIN_SHARPNESS = 1e-6  # of a lattice: the smallest singular value of its unit vectors
NUMBERS_AT_A_TIME = 1024 * 1024  # in an array of (differences, images)


@lru_cache(maxsize=64)
def pair_indices(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (i, j) with i > j of each pair, in the order of the lower triangle."""
    first, second = np.tril_indices(n_atoms, k=-1)
    first.setflags(write=False)
    second.setflags(write=False)
    return first, second


def pair_permutation(permutation: np.ndarray) -> np.ndarray:
    """Action on the pairs of a permutation of the atoms.

    Parameters
    ----------
    permutation : (N,) int array
        Atom `permutation[a]` takes the place of atom a.

    Returns
    -------
    (N(N-1)/2,) int array
        Pair `result[k]` takes the place of pair k.
    """
    n_atoms = len(permutation)
    first, second = pair_indices(n_atoms)
    number = np.zeros((n_atoms, n_atoms), dtype=np.int64)
    number[first, second] = number[second, first] = np.arange(len(first))
    return number[permutation[first], permutation[second]]


def pair_distances(positions: np.ndarray) -> np.ndarray:
    """Distances (M, N(N-1)/2) of all pairs in geometries (M, N, 3), no images."""
    first, second = pair_indices(positions.shape[1])
    return np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)


@dataclass(frozen=True)
class Lattice:
    """The translations along which a cell repeats, in one to three directions.

    Attributes
    ----------
    basis : (P, 3) array, Å
        Minkowski-reduced: as short as can be.
    rivals : (n, 3) array, Å
        Translations, zero first, of which one takes a difference that is wrapped
        into the reduced cell to where it is shortest.
    """

    basis: np.ndarray
    rivals: np.ndarray

    @classmethod
    def of_cell(cls, cell: ArrayLike, pbc: Sequence[bool]) -> "Lattice":
        """The lattice of a cell (3, 3), Å, a vector per row.

        Rows of directions that are not periodic are not looked at; as in ASE,
        they may be zero.

        Raises
        ------
        DataError
            If nothing is periodic, or the lattice vectors are not finite, or
            lie in one line or plane.
        """
        cell, pbc = np.asarray(cell, dtype=float), np.asarray(pbc, dtype=bool)
        if cell.shape != (3, 3) or pbc.shape != (3,):
            raise DataError(f"a cell has the shape (3, 3) and pbc three flags, not {cell.shape} and {pbc.shape}")
        if not pbc.any():
            raise DataError("pbc is False in all three directions; InverseDistances is for molecules")
        if not _independent(cell[pbc]):
            raise DataError(
                f"the vectors {cell[pbc].tolist()} Å of the periodic directions {_axes(pbc)} span no lattice: "
                "they must be finite, and point in different directions; correct the cell or pbc"
            )
        # Whatever the other rows are, the lattice does not depend on them.
        basis = np.asarray(minkowski_reduce(np.where(pbc[:, None], cell, 0.0), pbc)[0])[pbc]
        return cls(basis, _rivals(basis))

    @property
    def shortest(self) -> float:
        """Length of the shortest translation, Å."""
        return float(np.linalg.norm(self.basis, axis=1).min())

    def nearest(self, difference: Tensor) -> Tensor:
        """Differences (..., 3), Å, moved by translations to where they are shortest.

        Of equally short ones, any. Gradients pass through, at fixed lattice.
        """
        basis, rivals = difference.new_tensor(self.basis), difference.new_tensor(self.rivals)
        flat = difference.detach().reshape(-1, 3)
        shifts = -(flat @ difference.new_tensor(np.linalg.pinv(self.basis))).round_() @ basis
        if len(rivals) > 1:
            squares = (rivals * rivals).sum(1)
            parts = (flat + shifts).split(max(1, NUMBERS_AT_A_TIME // len(rivals)))
            best = [torch.addmm(squares, part, rivals.T, alpha=2.0).argmin(1) for part in parts]
            shifts += rivals[torch.cat(best)]
        return difference + shifts.view_as(difference)

    def images(self, excess: float) -> np.ndarray:
        """Translations that matter to a sum over images which falls off with the squared distance.

        Parameters
        ----------
        excess : float
            Of images of v, those with |v + L|² below |v|² + excess matter, Å².

        Returns
        -------
        (n, 3) array
            What matters to any v that is its own nearest image; zero is left out.
        """
        lengths = np.linalg.norm(self.basis, axis=1)
        radius = 0.5 * np.linalg.norm(lengths)  # no v is longer within the lattice's span
        counts, points = _points(self.basis, radius + np.sqrt(radius**2 + excess))
        # No basis vector makes v shorter: |2 v · b| <= |b|².
        least = (points**2).sum(1) - np.abs(counts) @ lengths**2
        return points[(least < excess) & counts.any(1)]


def nearest_images(difference: Tensor, cell: ArrayLike | Tensor, pbc: Sequence[bool]) -> Tensor:
    """Differences moved by lattice vectors to where they are shortest, in any cell.

    To round the fractions is not enough where the cell is skewed: it gets a
    quarter of random vectors wrong in a primitive fcc cell.

    Parameters
    ----------
    difference : (M, D, 3) tensor, Å
        Gradients pass through, at fixed lattice.
    cell : (3, 3) or (M, 3, 3), Å
        One for all frames, or one for each.
    pbc : three bools
        Directions that are not periodic are left alone.

    Returns
    -------
    (M, D, 3) tensor
        Of equally short images, any.

    Raises
    ------
    DataError
        As in `Lattice.of_cell`.
    """
    cell = np.asarray(cell, dtype=float)
    if cell.ndim == 2:
        return Lattice.of_cell(cell, pbc).nearest(difference)
    return torch.stack([Lattice.of_cell(c, pbc).nearest(d) for d, c in zip(difference, cell, strict=True)])


def _independent(vectors: np.ndarray) -> bool:
    if not np.isfinite(vectors).all():
        return False
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    return bool(sizes.all()) and np.linalg.svd(vectors / sizes, compute_uv=False).min() > MIN_SHARPNESS


def _axes(pbc: np.ndarray) -> str:
    return "".join(name for name, periodic in zip("abc", pbc) if periodic)


def _points(basis: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n, P) and vectors (n, 3) of all translations of at most a length, the zero vector first."""
    # |n_i| = |L · dual_i| is at most radius times the length of the dual vector.
    most = np.floor(radius * np.linalg.norm(np.linalg.pinv(basis), axis=0) + 1e-9).astype(int)
    counts = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in most], indexing="ij"), -1).reshape(-1, len(basis))
    points = counts @ basis
    lengths = np.linalg.norm(points, axis=1)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius]
    return counts[order], points[order]


def _rivals(basis: np.ndarray) -> np.ndarray:
    """Translations that can make a vector with fractions within ±1/2 shorter; zero first.

    Such a vector is v = Σ f_i b_i with |f_i| <= 1/2, so that
    |v + L|² - |v|² = |L|² + 2 v · L is at least |L|² - Σ |b_i · L|. Where that is
    not negative, L need not be tried: orthogonal cells leave none but zero. Nor
    can it be where |L| > 2 |v|, and |v| is at most half of the sum of the |b_i|.
    """
    _, points = _points(basis, np.linalg.norm(basis, axis=1).sum())
    rivals = (points**2).sum(1) * (1 + 1e-12) < np.abs(points @ basis.T).sum(1)
    rivals[0] = True
    return points[rivals]


def internal_basis(positions: Tensor, rotations: bool = True, agree: Callable[[int], int] = int) -> Tensor:
    """Orthonormal displacements that exclude translations and rotations.

    Whatever depends on interatomic distances alone has its Jacobian's rows in
    the span of this basis, so that nothing is lost by working in it.

    Parameters
    ----------
    positions : (M, N, 3) tensor
    rotations : bool
        Whether rotations are rigid motions; those of atoms in a lattice are not.
    agree : callable(int) -> int
        The smallest of the numbers of rigid motions here and in geometries elsewhere.

    Returns
    -------
    (M, 3N, q) tensor
        q = 3N - 6, or 3N - 5 as soon as one of the geometries is linear; 3N - 3
        without rotations.
    """
    motions = rigid_motions(positions, rotations)
    # Many small matrices, which a GPU would treat one by one.
    left, sizes, _ = (part.to(positions.device) for part in torch.linalg.svd(motions.cpu()))
    # A direction may stay that is a rigid motion, never the reverse: take the
    # smallest rank that occurs.
    rank = agree(int((sizes > 1e-4 * sizes[:, :1]).sum(1).min()))
    return left[:, :, rank:].contiguous()


def rigid_motions(positions: Tensor, rotations: bool = True) -> Tensor:
    """Displacements (M, 3N, 6) of geometries (M, N, 3) by translations and rotations, or (M, 3N, 3) by the former."""
    n_frames, n_atoms, _ = positions.shape
    centred = positions - positions.mean(1, keepdim=True)
    motions = positions.new_zeros(n_frames, n_atoms, 3, 6 if rotations else 3)
    axes = torch.eye(3, dtype=positions.dtype, device=positions.device)
    motions[..., :3] = axes
    for k in range(3) if rotations else ():
        motions[..., 3 + k] = torch.linalg.cross(axes[k].expand_as(centred), centred)
    return motions.flatten(1, 2)


def median_distances(positions: np.ndarray, max_frames: int = 500) -> np.ndarray:
    """Median over the frames of each pair's distance, as (N, N); zero on the diagonal."""
    n_atoms = positions.shape[1]
    chosen = np.linspace(0, len(positions) - 1, min(len(positions), max_frames)).astype(int)
    first, second = pair_indices(n_atoms)
    result = np.zeros((n_atoms, n_atoms))
    result[first, second] = np.median(pair_distances(positions[chosen]), axis=0)
    return result + result.T


def bonds(numbers: np.ndarray, distances: np.ndarray, scale: float = 1.3) -> np.ndarray:
    """Which pairs are bonded: closer than `scale` times the sum of covalent radii.

    Parameters
    ----------
    numbers : (N,) int array
    distances : (N, N) array, Å

    Returns
    -------
    (N, N) bool array
    """
    radii = covalent_radii[numbers]
    bonded = distances < scale * (radii[:, None] + radii[None, :])
    np.fill_diagonal(bonded, False)
    return bonded


def lengths(positions: Tensor, pairs: Sequence[Sequence[int]]) -> Tensor:
    """Distances (M, k) of pairs of atoms in geometries (M, N, 3)."""
    i, j = _columns(positions, pairs)
    return torch.linalg.vector_norm(positions[:, j] - positions[:, i], dim=2)


def angles(positions: Tensor, triples: Sequence[Sequence[int]]) -> Tensor:
    """Angles (M, k) at the second of three atoms, from 0 to π; without a gradient where the three are in line."""
    i, j, k = _columns(positions, triples)
    u, v = positions[:, i] - positions[:, j], positions[:, k] - positions[:, j]
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=2), (u * v).sum(2))


def dihedrals(positions: Tensor, quadruples: Sequence[Sequence[int]]) -> Tensor:
    """Dihedral angles (M, k) of four atoms, from -π to π, in the sign of IUPAC; zero where the outer ones eclipse."""
    i, j, k, m = _columns(positions, quadruples)
    u, v, w = (positions[:, b] - positions[:, a] for a, b in ((i, j), (j, k), (k, m)))
    n = torch.linalg.cross(v, w)
    axis = torch.linalg.vector_norm(v, dim=2)
    return torch.atan2(axis * (u * n).sum(2), (torch.linalg.cross(u, v) * n).sum(2))


def _columns(positions: Tensor, atoms: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(np.asarray(atoms, dtype=int), device=positions.device).T
