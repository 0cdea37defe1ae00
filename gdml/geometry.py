"""Geometry of sets of atoms: pairs, rigid motions, bonds.

Nothing here knows a kernel, a label or a file.
"""

from functools import lru_cache

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor


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


def internal_basis(positions: Tensor) -> Tensor:
    """Orthonormal displacements that exclude translations and rotations.

    Whatever depends on interatomic distances alone has its Jacobian's rows in
    the span of this basis, so that nothing is lost by working in it.

    Parameters
    ----------
    positions : (M, N, 3) tensor

    Returns
    -------
    (M, 3N, q) tensor
        q = 3N - 6, or 3N - 5 as soon as one of the geometries is linear.
    """
    n_frames, n_atoms, _ = positions.shape
    centred = positions - positions.mean(1, keepdim=True)
    motions = positions.new_zeros(n_frames, n_atoms, 3, 6)
    axes = torch.eye(3, dtype=positions.dtype, device=positions.device)
    motions[..., :3] = axes
    for k in range(3):
        motions[..., 3 + k] = torch.linalg.cross(axes[k].expand_as(centred), centred)
    left, sizes, _ = torch.linalg.svd(motions.reshape(n_frames, 3 * n_atoms, 6), full_matrices=True)
    # A direction may stay that is a rigid motion, never the reverse: take the
    # smallest rank that occurs.
    rank = int((sizes > 1e-4 * sizes[:, :1]).sum(1).min())
    return left[:, :, rank:].contiguous()


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
