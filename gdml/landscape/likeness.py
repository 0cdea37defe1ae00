"""When two geometries are the same: whatever the order of equal atoms, however they are turned or mirrored."""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import torch

from ..geometry import nearest_images, pair_indices, pair_permutation
from ..symmetry import PermutationGroup

AT_ONCE = 16  # permutations that are compared, before it is asked whether one will do


class Likeness:
    r"""The largest difference of an interatomic distance between geometries, over a group of permutations.

    .. math:: d(a, b) = \min_{s \in S} \max_{i > j} \big| |r^a_i - r^a_j| - |r^b_{s(i)} - r^b_{s(j)}| \big|

    Zero for geometries that rigid motions, a mirror and S make the same; of molecules, for no others. Nearest
    images of a small cell do not tell all geometries apart, so that energies are looked at, too.

    Parameters
    ----------
    group : PermutationGroup
    cell : (3, 3) array, Å, optional
        Of a periodic system, whose distances are those of the nearest images.
    pbc : three bools
    """

    def __init__(
        self, group: PermutationGroup, cell: np.ndarray | None = None, pbc: Sequence[bool] = (False, False, False)
    ):
        self.cell, self.pbc = cell, pbc
        self.images = np.stack([pair_permutation(p) for p in group.permutations])
        self.pairs = pair_indices(group.n_atoms)

    def distances(self, positions: np.ndarray) -> np.ndarray:
        """Distances (M, N(N-1)/2), Å, of all pairs in geometries (M, N, 3)."""
        first, second = self.pairs
        difference = torch.tensor(positions[:, first] - positions[:, second])
        if any(self.pbc):
            difference = nearest_images(difference, self.cell, self.pbc)
        return torch.linalg.vector_norm(difference, dim=2).numpy()

    def between(self, one: np.ndarray, other: np.ndarray) -> float:
        """d of two geometries' distances (N(N-1)/2,), Å."""
        return float(np.abs(other[self.images] - one).max(1).min())

    def are_alike(self, one: np.ndarray, other: np.ndarray, within: float) -> bool:
        """Whether d of two geometries' distances is at most so much."""
        # Permutations leave the sorted distances as they are: a bound that costs nothing.
        if np.abs(np.sort(one) - np.sort(other)).max() > within:
            return False
        parts = (self.images[k : k + AT_ONCE] for k in range(0, len(self.images), AT_ONCE))
        return any((np.abs(other[part] - one).max(1) <= within).any() for part in parts)

    def groups(
        self, positions: np.ndarray, energy: np.ndarray, within: float = 0.1, energy_within: float = 2e-3
    ) -> list[np.ndarray]:
        """Which of M geometries are the same.

        Each in turn, from the lowest energy on, joins the first group whose lowest one is like it.

        Parameters
        ----------
        positions : (M, N, 3) array, Å
        energy : (M,) array, eV
        within : float, Å
            Up to which d they are the same.
        energy_within : float, eV
            Up to which difference they may be.

        Returns
        -------
        list of int arrays
            Rows, in the order of energy, the lowest first.
        """
        distances = self.distances(positions)
        found: list[list[int]] = []
        for k in np.argsort(energy, kind="stable").tolist():
            low = energy[k] - energy_within
            near = takewhile(lambda g, low=low: energy[g[0]] >= low, reversed(found))
            same = next((g for g in near if self.are_alike(distances[g[0]], distances[k], within)), None)
            if same is None:
                found.append([k])
            else:
                same.append(k)
        return [np.array(group) for group in found]
