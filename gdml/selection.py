"""Choice of hyper-parameters by the error on held-out geometries."""

import math
from collections.abc import Callable
from typing import NamedTuple

from .dataset import Dataset
from .errors import DataError, FitError
from .force_field import ForceField
from .metrics import evaluate

MIN_FRAMES = 5  # below this nothing can be held out
GRID = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)  # length scales, in units of the spread
MORE = 3  # steps beyond the grid, where its end is the best


class Chosen(NamedTuple):
    """A length scale, and the root mean square error of forces (eV/Å) that it had on held-out geometries."""

    length_scale: float
    error: float


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
    n = len(dataset)
    if n < MIN_FRAMES:
        raise DataError(
            f"{n} geometries are too few to choose a length scale on; give at least {MIN_FRAMES}, "
            "or a length_scale (20 is a fair guess for a molecule)"
        )
    held = dataset.sample(min(max(1, n // 5), most), seed=0)
    rest = [i for i in range(n) if i not in set(held.tolist())]
    return dataset[rest], dataset[held]


def choose_length_scale(
    train: Callable[[float], ForceField],
    validation: Dataset,
    spread: float,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """The length scale with the smallest force error (RMSE) on held-out geometries.

    Tries 8 to 512 times the spread of the descriptors in steps of two, further up
    where 512 is the best (as it is in crystals), then half a step to both sides
    of the best. The error often has a plateau, and with few
    geometries two minima, so that a descent from one guess would not do.

    Parameters
    ----------
    train : callable
        From a length scale to a force field.
    validation : Dataset
    spread : float
        Root mean square distance of the training geometries from their mean, in
        the descriptor.
    progress : callable(done, total), optional

    Returns
    -------
    Chosen

    Raises
    ------
    FitError
        If no length scale gave a solvable system.
    """
    errors: dict[float, float] = {}

    def judge(length_scale: float) -> None:
        try:
            errors[length_scale] = evaluate(train(length_scale), validation).forces_rmse
        except FitError:  # too long: the matrix is singular to working precision
            errors[length_scale] = math.inf
        if progress:
            progress(len(errors), max(len(errors), len(GRID) + 2))

    for multiple in GRID:
        judge(multiple * spread)
    best = min(errors, key=errors.get)
    while best == max(errors) and len(errors) < len(GRID) + MORE:
        judge(2.0 * best)
        best = min(errors, key=errors.get)
    for step in (math.sqrt(0.5), math.sqrt(2.0)):
        judge(best * step)
    best = min(errors, key=errors.get)
    if not math.isfinite(errors[best]):
        raise FitError(
            f"no length scale between {min(errors):.3g} and {max(errors):.3g} gave a positive definite "
            "matrix; raise the noise, or look for geometries that are nearly equal"
        )
    return Chosen(best, errors[best])
