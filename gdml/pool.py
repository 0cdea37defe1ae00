"""Choice of the geometries that are worth labels, from a pool of many."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .contractions import Contraction, contraction
from .dataset import Dataset, read
from .errors import DataError, FitError, MemoryBudgetError
from .hardware import available_memory
from .operators import TrainingOperator
from .plan import Plan, descriptors_of, labels_of, make_plan, spread_of, symmetry_of
from .processes import Shares, Team
from .progress import Report, progress_bar

METHODS = ("farthest", "pivoted", "energy", "random")
LENGTH = 32.0  # length scale of the kernel that "pivoted" looks at, in units of the spread
FLOOR = 1e-12  # of the diagonal, below which nothing is left to be described
HALF = 2  # of the memory may be used


def select(
    pool: Dataset | str | Path | list[Atoms],
    n: int,
    *,
    method: str = "farthest",
    start: Sequence[int] = (),
    symmetry: str = "auto",
    reference: Atoms | str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Choose geometries to label, or to train on.

    Parameters
    ----------
    pool : Dataset, or what `gdml.read` takes
        Labels are only needed for "energy".
    n : int
        How many, besides those of `start`.
    method : {"farthest", "pivoted", "energy", "random"}
        "farthest": each the farthest from all chosen so far, by descriptors up to symmetry.
        "pivoted": each the one whose forces are known least from those chosen, by
        the pivots of a Cholesky factorisation of the kernel matrix, geometry by geometry; memory
        and time grow with the square of n. "energy": one from each of n strata of the energy.
        "random": uniform.
    start : sequence of int
        Geometries that are chosen already.
    symmetry, reference
        As of `gdml.fit`.
    seed : int
        Of "energy" and "random".
    progress : bool

    Returns
    -------
    (n,) int array
        Their places in the pool; in the order of the choice, where there is one.

    Raises
    ------
    DataError
        If the pool has fewer geometries, or no energies where these are needed.
    FitError
        For an unknown method.
    MemoryBudgetError
        If "pivoted" would need more memory than there is.
    """
    pool = pool if isinstance(pool, Dataset) else read(pool)
    if method not in METHODS:
        raise FitError(f"the method is one of {', '.join(METHODS)}, not {method!r}")
    start = np.unique(np.asarray(start, dtype=int))
    if len(start) and not 0 <= start[0] <= start[-1] < len(pool):
        raise DataError(f"start has places {start[0]} to {start[-1]}, and the pool has 0 to {len(pool) - 1}")
    if not 0 < n <= len(pool) - len(start):
        raise DataError(
            f"{n} geometries were asked for, but the pool has {len(pool) - len(start)}"
            + (f" besides the {len(start)} chosen before" if len(start) else "")
        )
    if method == "energy" and pool.energy is None:
        raise DataError("strata of the energy need energies, and the pool has none; use another method")
    if method in ("energy", "random"):
        return pool.sample(n, seed=seed, strata="energy" if method == "energy" else None, exclude=start.tolist())
    group = symmetry_of(pool, symmetry, reference, "auto")
    plan = make_plan(pool, group, None, "matern52", "auto", False, False, "auto", torch.device("cpu"))
    with progress_bar("selection", progress) as bar:
        if method == "pivoted":
            return _pivoted(plan, pool, n, start, bar)
        x = descriptors_of(plan, pool)
        return farthest(contraction(plan.kernel, x, plan.action), n, start, bar)


def farthest(jets: Contraction, n: int, start: Sequence[int] = (), bar: Report | None = None) -> np.ndarray:
    """Reference points, each the farthest from those before it, up to symmetry.

    The first is the farthest from `start`, or where that is empty the nearest to the mean.
    """
    chosen = list(start)
    nearest = jets.x.new_full((len(jets.x),), torch.inf)
    for point in chosen:
        torch.minimum(nearest, _distances(jets, point), out=nearest)
    while len(chosen) < len(start) + n:
        first = not chosen
        point = int(jets.y.square().sum(1).argmin()) if first else int(nearest.argmax())
        chosen.append(point)
        torch.minimum(nearest, _distances(jets, point), out=nearest)
        nearest[point] = -1.0
        if bar:
            bar(len(chosen) - len(start), n)
    return np.array(chosen[len(start) :])


def _distances(jets: Contraction, point: int) -> Tensor:
    distances = jets.smallest_distances(jets.x[point : point + 1])[0].clone()
    distances[point] = -1.0
    return distances


def _pivoted(plan: Plan, pool: Dataset, n: int, start: np.ndarray, bar: Report | None) -> np.ndarray:
    blank = replace(pool, energy=None, stress=None, forces=np.zeros_like(pool.positions))
    labels = labels_of(plan, blank, Shares(Team(), len(pool)))
    kernel = plan.kernel.with_length_scale(LENGTH * spread_of(plan, labels.features.x))
    operator = TrainingOperator(contraction(kernel, labels.features.x, plan.action), labels, 0.0)
    n_labels, most = operator.block_size, len(start) + n
    needed = 8 * operator.shape[0] * most * n_labels
    if needed > available_memory(plan.device) / HALF:
        raise MemoryBudgetError(
            f"pivots for {most} of {len(pool)} geometries would need {needed / 1e9:.1f} GB; "
            'choose fewer, from a smaller pool, or by method="farthest"'
        )
    factor, done = labels.values.new_zeros(operator.shape[0], most * n_labels), 0
    missing = operator.diagonal().view(len(pool), n_labels).sum(1)
    floor = FLOOR * float(missing.max())
    chosen = []
    while len(chosen) < most:
        point = int(start[len(chosen)]) if len(chosen) < len(start) else int(missing.argmax())
        rows = torch.arange(point * n_labels, (point + 1) * n_labels)
        columns = operator.columns(rows).addmm_(factor[:, :done], factor[rows, :done].mT, alpha=-1)
        values, vectors = torch.linalg.eigh(columns[rows])
        kept = values > floor
        fresh = columns @ (vectors[:, kept] / values[kept].sqrt())
        factor[:, done : done + fresh.shape[1]] = fresh
        done += fresh.shape[1]
        missing -= fresh.square().sum(1).view(len(pool), n_labels).sum(1)
        missing[point] = -torch.inf
        chosen.append(point)
        if bar:
            bar(len(chosen), most)
    return np.array(chosen[len(start) :])
