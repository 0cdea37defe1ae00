"""Free energies over dihedral angles, with errors, and how far two of them are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..dynamics.averages import FEWEST, Average
from ..errors import DataError
from ..geometry import dihedrals

TIME_BLOCKS = 20  # of fewer replicas than can be left out one by one
HALF = 0.5  # counts of a bin without any, which bounds its free energy from below


@dataclass(frozen=True, eq=False)
class FreeEnergy:
    r"""-ln p over angles, in kT, from histograms of independent blocks.

    Parameters
    ----------
    counts : (B, m) or (B, m, m) array
        Histograms of B blocks, over one or two angles.

    Attributes
    ----------
    edges : (m + 1,) array
        Of the bins of each angle, radians from -π to π.
    """

    counts: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        return np.linspace(-np.pi, np.pi, self.counts.shape[1] + 1)

    @cached_property
    def values(self) -> np.ndarray:
        """In kT, (m,) or (m, m), the lowest zero; infinite without counts."""
        with np.errstate(divide="ignore"):
            values = -np.log(self.counts.sum(0))
        return values - values.min()

    @cached_property
    def populations(self) -> np.ndarray:
        """Fractions of all samples, of the shape of values."""
        total = self.counts.sum(0)
        return total / total.sum()

    @cached_property
    def errors(self) -> np.ndarray:
        """Standard errors of values, in kT, by leaving out one block after another; NaN where fewer than two count.

        The constant is such that the mean over populations is the same each time.
        """
        found = np.array([self._without(block) for block in range(len(self.counts))])
        n = len(found)
        errors = np.sqrt((n - 1) / n * ((found - found.mean(0)) ** 2).sum(0))
        return np.where((self.counts > 0).sum(0) > 1, errors, np.nan)

    def _without(self, block: int) -> np.ndarray:
        values = _bounded(self.counts.sum(0) - self.counts[block])
        return values - (self.populations * values).sum()

    def deviation(self, reference: "FreeEnergy") -> Average:
        r"""How far this is from a reference, in kT, weighted by the reference's population.

        .. math:: \Delta = \min_c \Big[ \sum_i p_i \left( F_i - F_i^\text{ref} - c \right)^2 \Big]^{1/2}

        A bin that this has no counts in is taken to have half a count. The standard error leaves out blocks of both,
        one after the other. Noise of either does not cancel: two halves of one set of samples have a
        deviation, too, and that is the least that can be seen.

        Raises
        ------
        DataError
            For other bins.
        """
        if self.counts.shape[1:] != reference.counts.shape[1:]:
            raise DataError(
                f"free energies with the bins {self.counts.shape[1:]} and {reference.counts.shape[1:]} do not compare"
            )
        mine, other = self.counts.sum(0), reference.counts.sum(0)
        varied = [[_distance(mine - block, other) for block in self.counts]]
        varied += [[_distance(mine, other - block) for block in reference.counts]]
        variance = sum((len(v) - 1) * np.var(v) for v in varied)
        return Average(_distance(mine, other), float(np.sqrt(variance)))


def _bounded(counts: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(counts, HALF))


def _distance(counts: np.ndarray, reference: np.ndarray) -> float:
    weights = reference / reference.sum()
    difference = _bounded(counts) - _bounded(reference)
    mean = (weights * difference).sum()
    return float(np.sqrt((weights * (difference - mean) ** 2).sum()))


def free_energy(positions: ArrayLike, quadruples: Sequence[Sequence[int]], bins: int = 24) -> FreeEnergy:
    """The free energy over one or two dihedral angles, from samples at equilibrium.

    Parameters
    ----------
    positions : (T, R, N, 3) or (T, N, 3) array, Å
        Of R replicas, or of one trajectory, in the order of time.
    quadruples : sequence of one or two quadruples
        Beads of the angles.
    bins : int
        Of each angle.

    Returns
    -------
    FreeEnergy
        Its blocks are the replicas, or where there are fewer than ten, twentieths of their time.

    Raises
    ------
    DataError
        For too few samples, or more than two angles.
    """
    positions = np.asarray(positions, dtype=float)
    positions = positions[:, None] if positions.ndim == 3 else positions
    if positions.ndim != 4 or positions.shape[3] != 3:
        raise DataError(f"positions are (times, replicas, beads, 3), not {positions.shape}")
    if len(quadruples) not in (1, 2) or bins < 2:
        raise DataError(f"a free energy is over one or two angles and at least two bins, not {len(quadruples)}, {bins}")
    times, replicas = positions.shape[:2]
    found = dihedrals(torch.tensor(positions).flatten(0, 1), quadruples).numpy().reshape(times, replicas, -1)
    if replicas >= FEWEST:
        blocks = [found[:, k] for k in range(replicas)]
    else:
        blocks = [part.reshape(-1, found.shape[2]) for part in np.array_split(found, TIME_BLOCKS) if part.size]
    if len(blocks) < 2:
        raise DataError(f"{times} samples of {replicas} replicas are too few for a free energy with an error")
    span = [(-np.pi, np.pi)] * len(quadruples)
    return FreeEnergy(np.array([np.histogramdd(block, bins, span)[0] for block in blocks]))
