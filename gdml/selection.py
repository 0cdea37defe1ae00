"""Choice of hyper-parameters by the error on held-out geometries."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .dataset import Dataset
from .errors import DataError, FitError
from .hyperparameters import Chosen

MIN_FRAMES = 5  # below this nothing can be held out
GRID = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)  # length scales, in units of the spread
MORE = 3  # steps beyond the grid, where its end is the best


def hold_out(dataset: Dataset, most: int = 200) -> tuple[Dataset, Dataset]:
    """Split off a fifth of the geometries (at most `most`) to judge hyper-parameters by.

    The split is the same each time.

    Returns
    -------
    training, validation : Dataset

    Raises
    ------
    DataError
        With fewer than five geometries.
    """
    rest, held = split(dataset, most)
    return dataset[rest], dataset[held]


def split(dataset: Dataset, most: int = 200) -> tuple[list[int], np.ndarray]:
    """The same as places of geometries."""
    n = len(dataset)
    if n < MIN_FRAMES:
        raise DataError(
            f"{n} geometries are too few to choose a length scale on; give at least {MIN_FRAMES}, "
            "or a length_scale (20 is a fair guess for a molecule)"
        )
    held = dataset.sample(min(max(1, n // 5), most), seed=0)
    rest = [i for i in range(n) if i not in set(held.tolist())]
    return rest, held


def choose(
    judge: Callable[[float, float], float],
    spread: float,
    noises: Sequence[float],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """The length scale and noise with the smallest force error (RMSE) on geometries that were not trained on.

    Tries 8 to 512 times the spread of the descriptors in steps of two, further up
    where 512 is the best (as it is in crystals), then half a step to both sides
    of the best. The error often has a plateau, and with few
    geometries two minima, so that a descent from one guess would not do. Of several
    noises, those beside the best are tried then, and steps of the length scale again.

    Parameters
    ----------
    judge : callable
        From a length scale and a noise to that error; raises `FitError`, or is infinite, where there is no solution.
    spread : float
        Root mean square distance of the training geometries from their mean, in
        the descriptor.
    noises : sequence of float
        Those to be tried, the likeliest first.
    progress : callable(done, total), optional

    Returns
    -------
    Chosen

    Raises
    ------
    FitError
        If no length scale gave a solvable system.
    """
    search = _Search(judge, sorted(noises), progress)
    first = sorted(noises).index(noises[0])
    for multiple in GRID:
        search.judge(multiple * spread, first)
    while search.best[0] == max(search.errors)[0] and len(search.errors) < len(GRID) + MORE:
        search.judge(2.0 * search.best[0], first)
    search.steps_of_length(math.sqrt(2.0))
    if len(noises) > 1:
        search.steps_of_noise()
        search.steps_of_length(math.sqrt(2.0))
    (length_scale, noise), error = search.best, search.errors[search.best]
    if not math.isfinite(error):
        lengths = [length for length, _ in search.errors]
        raise FitError(
            f"no length scale between {min(lengths):.3g} and {max(lengths):.3g} gave a positive definite "
            "matrix; raise the noise, or look for geometries that are nearly equal"
        )
    return Chosen(length_scale, error, search.noises[noise])


class _Search:
    """Errors of the hyper-parameters tried so far: of length scales, and noises by their place among all."""

    def __init__(self, error_of: Callable[[float, float], float], noises: list[float], progress):
        self.error_of, self.noises, self.progress = error_of, noises, progress
        self.errors: dict[tuple[float, int], float] = {}

    @property
    def best(self) -> tuple[float, int]:
        return min(self.errors, key=self.errors.get)

    def judge(self, length_scale: float, noise: int) -> None:
        if (length_scale, noise) in self.errors:
            return
        try:
            error = self.error_of(length_scale, self.noises[noise])
        except FitError:  # too long: the matrix is singular to working precision
            error = math.inf
        self.errors[length_scale, noise] = error
        if self.progress:
            done, more = len(self.errors), 2 if len(self.noises) == 1 else 6
            self.progress(done, max(done, len(GRID) + more))

    def steps_of_length(self, factor: float) -> None:
        length_scale, noise = self.best
        for step in (1.0 / factor, factor):
            self.judge(length_scale * step, noise)

    def steps_of_noise(self) -> None:
        """One after the other, as long as it gets better."""
        for step in (-1, 1):
            while True:
                length_scale, noise = before = self.best
                if not 0 <= noise + step < len(self.noises):
                    break
                self.judge(length_scale, noise + step)
                if self.best == before:
                    break
