"""Averages of correlated samples, with standard errors from block averages."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Of each run. The longer the blocks, the less they are correlated, and the worse is their spread known.
BLOCKS = (80, 40, 20, 10, 5, 2, 1)
FEWEST = 10  # blocks of all runs together


class Average(NamedTuple):
    """A mean, and its standard error (NaN from too few samples)."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.6g} ± {self.error:.2g}"


def block_average(samples: ArrayLike) -> Average:
    """Mean of samples (n,) or (n, R) of R independent runs.

    The samples of a run are cut into blocks, whose means are independent where blocks
    are longer than the correlation time. The error is the largest of those from blocks of
    several lengths: where correlations are longer than a tenth of a single run, it is
    still too small.

    Source: H. Flyvbjerg, H. G. Petersen, J. Chem. Phys. 91, 461 (1989).
    """
    runs = _runs(samples)
    blocks = [_means(runs, count) for count in _counts(*runs.shape)]
    errors = [means.std(ddof=1) / np.sqrt(means.size) for means in blocks]
    return Average(float(runs.mean()) if runs.size else np.nan, float(max(errors, default=np.nan)))


def jackknife(statistic: Callable[..., float], *samples: ArrayLike) -> Average:
    """A function of samples, such as a variance, with its error by leaving out one block of time after another.

    Of many runs, one run after another is left out instead.
    """
    series = [_runs(s) for s in samples]
    everything = float(statistic(*series))
    n, n_runs = series[0].shape
    if n_runs >= FEWEST:
        without = [[np.delete(s, k, 1) for s in series] for k in range(n_runs)]
    else:
        length = n // FEWEST
        starts = range(0, FEWEST * length, length) if length else ()
        without = [[np.delete(s, slice(k, k + length), 0) for s in series] for k in starts]
    if not without:
        return Average(everything, np.nan)
    found = [float(statistic(*kept)) for kept in without]
    return Average(everything, float(np.sqrt((len(found) - 1) * np.var(found))))


def _runs(samples: ArrayLike) -> np.ndarray:
    samples = np.asarray(samples, dtype=float)
    return samples.reshape(len(samples), -1)


def _counts(n: int, n_runs: int) -> list[int]:
    """Of blocks, of each of the runs of n samples."""
    return [count for count in BLOCKS if count <= n and count * n_runs >= FEWEST]


def _means(runs: np.ndarray, count: int) -> np.ndarray:
    """Means (count, R) of that many blocks of each run."""
    length = len(runs) // count
    return runs[-length * count :].reshape(count, length, -1).mean(1)
