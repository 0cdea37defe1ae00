"""Averages of correlated samples, with standard errors from block averages."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

N_BLOCKS = 20


class Average(NamedTuple):
    """A mean, and its standard error (NaN from too few samples)."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.6g} ± {self.error:.2g}"


def block_average(samples: ArrayLike, n_blocks: int = N_BLOCKS) -> Average:
    """Mean of samples (n,) or (n, R) of R independent runs.

    The samples of a run are cut into blocks, whose means are nearly independent if
    blocks are longer than the correlation time.

    Source: H. Flyvbjerg, H. G. Petersen, J. Chem. Phys. 91, 461 (1989).
    """
    samples = np.asarray(samples, dtype=float)
    runs = samples.reshape(len(samples), -1)
    length = len(runs) // n_blocks
    if length == 0:
        return Average(float(runs.mean()) if runs.size else np.nan, np.nan)
    blocks = runs[-length * n_blocks :].reshape(n_blocks, length, -1).mean(1)
    return Average(float(runs.mean()), float(blocks.std(ddof=1) / np.sqrt(blocks.size)))


def jackknife(statistic, *samples: ArrayLike, n_blocks: int = N_BLOCKS) -> Average:
    """A function of means, such as a variance, with its error by leaving out one block of time after another."""
    series = [np.asarray(s, dtype=float).reshape(len(s), -1) for s in samples]
    length = len(series[0]) // n_blocks
    everything = float(statistic(*series))
    if length == 0:
        return Average(everything, np.nan)
    without = []
    for block in range(n_blocks):
        kept = np.r_[0 : block * length, (block + 1) * length : len(series[0])]
        without.append(float(statistic(*(s[kept] for s in series))))
    return Average(everything, float(np.sqrt((n_blocks - 1) * np.var(without))))
