"""The region of the training data, as the range of distances of each pair of atoms."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from .dataset import Dataset
from .descriptors import Descriptor, InverseDistances, PairDescriptor, PeriodicInverseDistances, SideBySide
from .geometry import pair_indices
from .symmetry import Action, PermutationGroup

UNBOUND = 1e6  # 1/Å: no atoms are so near


class Excess(NamedTuple):
    """A pair of atoms outside the range of its distances in the training data."""

    atoms: tuple[int, int]
    distance: float
    shortest: float
    longest: float


def is_of_pairs(descriptor: Descriptor) -> bool:
    """Whether the entries of a descriptor stand for distances of pairs of atoms."""
    return isinstance(descriptor, (PairDescriptor, SideBySide))


def watched(descriptor: Descriptor) -> PairDescriptor | SideBySide:
    """A descriptor of the same atoms whose entries stand for distances: itself, where they do."""
    if is_of_pairs(descriptor):
        return descriptor
    if any(descriptor.pbc):
        return PeriodicInverseDistances(descriptor.n_atoms, descriptor.cell, descriptor.pbc, 1.0)
    return InverseDistances(descriptor.n_atoms)


def ranges_of(descriptor: Descriptor, group: PermutationGroup, positions: np.ndarray, cells=None) -> np.ndarray:
    """The smallest and largest entries (2, D) of `watched` over geometries (M, N, 3) and the group."""
    pairs = watched(descriptor)
    x = pairs.evaluate(torch.tensor(positions), **({} if cells is None else {"cells": cells})).x.numpy()
    return over_group(x, pairs.action(group))


def own_ranges(descriptor: Descriptor, group: PermutationGroup, dataset: Dataset) -> np.ndarray | None:
    """The ranges that a force field has to keep: none, where its references tell them."""
    if is_of_pairs(descriptor):
        return None
    return ranges_of(descriptor, group, dataset.positions, dataset.periodic_cell)


def over_group(x: np.ndarray, action: Action) -> np.ndarray:
    """The smallest and largest entries (2, D) of descriptors (M, D) and their images."""
    return np.stack([action.reduce(x.min(0), np.min), action.reduce(x.max(0), np.max)])


def ranges_by_element(ranges: np.ndarray, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Ranges (2, D') of inverse distances for other atoms: up to the largest of each pair of elements.

    Pairs of elements that did not occur have none, and are held to no range.
    """
    (first, second), (i, j) = pair_indices(len(numbers)), pair_indices(len(others))
    kinds = np.sort([numbers[first], numbers[second]], axis=0).T
    largest = [
        max((ranges[1][(kinds == kind).all(1)]).tolist(), default=UNBOUND)
        for kind in np.sort([others[i], others[j]], axis=0).T
    ]
    return np.stack([np.zeros(len(largest)), largest])


@dataclass(frozen=True, eq=False)
class Region:
    """Ranges of distances, and what is outside of them.

    Parameters
    ----------
    descriptor : PairDescriptor or SideBySide
    ranges : (2, D) array
        The smallest and largest values of its entries in training.
    """

    descriptor: PairDescriptor | SideBySide
    ranges: np.ndarray

    @cached_property
    def _wide(self) -> tuple[np.ndarray, np.ndarray]:
        """The ranges, widened."""
        low, high = self.ranges
        # Half of the width, and something for distances that training holds fixed.
        margin = np.maximum(0.5 * (high - low), 0.01 * np.abs(high + low))
        return low - margin, high + margin

    def excesses(self, x: np.ndarray) -> list[Excess]:
        """What of one descriptor (D,) is outside; worst first."""
        low, high = self._wide
        excess = np.maximum(low - x, x - high)
        if excess.max() <= 0:
            return []
        worst = np.argsort(-excess / (high - low + 1e-12))
        return [self._excess(int(k), x[k]) for k in worst if excess[k] > 0]

    def farthest(self, x: np.ndarray) -> tuple[float, Excess | None]:
        """The pair that is farthest out in descriptors (M, D); see `ForceField.farthest_outside`."""
        with np.errstate(divide="ignore"):  # what has no longest distance
            shortest, longest = (self.descriptor.distances(end) for end in self.ranges[::-1])
        distances = self.descriptor.distances(x)
        widths = np.maximum(distances - longest, shortest - distances)
        widths /= np.where(np.isinf(longest), 0.5 * shortest, np.maximum(longest - shortest, 0.02 * longest))
        geometry, entry = np.unravel_index(np.argmax(widths), widths.shape)
        if not widths[geometry, entry] > 0.5:
            return 0.0, None
        return float(widths[geometry, entry]), self._excess(int(entry), x[geometry, entry])

    def _excess(self, entry: int, value: float) -> Excess:
        with np.errstate(divide="ignore"):
            ends = [self.descriptor.explain(entry, v[entry])[2] for v in self.ranges[::-1]]
        first, second, distance = self.descriptor.explain(entry, value)
        return Excess((first, second), distance, *ends)
