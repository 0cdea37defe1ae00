"""Choice of hyper-parameters by the error on held-out geometries."""

import math
from collections.abc import Callable

from .dataset import Dataset
from .errors import DataError, FitError
from .force_field import ForceField
from .metrics import evaluate

MIN_FRAMES = 5  # below this nothing can be held out


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
    start: float,
    *,
    refine: int = 2,
    report: Callable[[float, float], None] | None = None,
) -> float:
    """The length scale with the smallest force error (RMSE) on held-out geometries.

    Doubles or halves from `start` until the error rises on both sides, then
    halves the step in the logarithm `refine` times. The error is a smooth curve
    with one minimum in practice, so that eight trainings do the work of a grid.

    Parameters
    ----------
    train : callable
        From a length scale to a force field.
    validation : Dataset
    start : float
        First guess, in units of the descriptor.
    refine : int
    report : callable(length_scale, error), optional

    Returns
    -------
    float

    Raises
    ------
    FitError
        If no length scale gave a solvable system.
    """
    errors: dict[float, float] = {}

    def error(length_scale: float) -> float:
        if length_scale not in errors:
            try:
                errors[length_scale] = evaluate(train(length_scale), validation).forces_rmse
            except FitError:  # too long: the matrix is singular to working precision
                errors[length_scale] = math.inf
            if report:
                report(length_scale, errors[length_scale])
        return errors[length_scale]

    best, step = start, 2.0
    error(best)
    for _ in range(refine + 1):
        best = _descend(error, best, step)
        step = math.sqrt(step)
    if not math.isfinite(errors[best]):
        raise FitError(
            f"no length scale between {min(errors):.3g} and {max(errors):.3g} gave a positive definite "
            "matrix; raise the noise, or look for geometries that are nearly equal"
        )
    return best


def _descend(error: Callable[[float], float], best: float, step: float, most: int = 12) -> float:
    """Step to the neighbour (a factor `step` away) with the smaller error while there is one."""
    for _ in range(most):
        candidate = min((best * step, best / step), key=error)
        if error(candidate) >= error(best):
            if math.isfinite(error(best)):
                return best
            candidate = best / step  # all singular: shorter ones are better conditioned
        best = candidate
    return best
