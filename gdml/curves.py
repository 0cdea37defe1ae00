"""Learning curves: errors on other geometries against the number that was trained on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .baselines import as_baseline
from .dataset import Dataset
from .errors import DataError
from .metrics import Metrics, evaluate
from .npz import check_writable, whole_file
from .pool import select
from .progress import progress_bar
from .training import fit


@dataclass(frozen=True)
class LearningCurve:
    """Errors of trainings of several sizes, each with several draws of the training geometries.

    Attributes
    ----------
    sizes : list of int
    metrics : list of list of Metrics
        Of each size, one for each draw.
    n_test : int
        Geometries that the errors are on, the same ones for all.
    """

    sizes: list[int]
    metrics: list[list[Metrics]]
    n_test: int

    @property
    def median_draws(self) -> list[Metrics]:
        """Of each size, the draw with the median of the force MAE, the lower one of two."""
        return [sorted(draws, key=lambda one: one.forces_mae)[(len(draws) - 1) // 2] for draws in self.metrics]

    def save(self, path: str | Path) -> None:
        """Write as JSON, in eV and Å.

        Raises
        ------
        OutputError
        """
        content = {
            "n_test": self.n_test,
            "sizes": self.sizes,
            "metrics": [[asdict(m) for m in d] for d in self.metrics],
        }
        with whole_file(check_writable(path)) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")

    def __str__(self) -> str:
        rows = [f"{'n':>6s}  force MAE (meV/Å), median and all of {len(self.metrics[0])} draws"]
        for size, median, draws in zip(self.sizes, self.median_draws, self.metrics):
            each = ", ".join(f"{1e3 * one.forces_mae:.2f}" for one in draws)
            rows.append(f"{size:6d}  {1e3 * median.forces_mae:8.2f}   {each}")
        return "\n".join(rows)


def learning_curve(
    dataset: Dataset,
    sizes: Sequence[int],
    *,
    n_test: int | None = None,
    repeats: int = 1,
    method: str = "random",
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> LearningCurve:
    """Train with several numbers of geometries, and judge all on the same others.

    Parameters
    ----------
    dataset : Dataset
    sizes : sequence of int
    n_test : int, optional
        Geometries set aside to judge by; by default what is left, at most 500.
    repeats : int
        Draws of the training geometries of each size.
    method : str
        How they are drawn: "random", or another one of `gdml.select`; "farthest" and "pivoted" draw
        one set only.
    seed : int
    progress : bool
    **options
        As of `gdml.fit`.

    Returns
    -------
    LearningCurve

    Raises
    ------
    DataError
        If there are too few geometries.
    """
    sizes, repeats = sorted({int(n) for n in sizes}), repeats if method in ("random", "energy") else 1
    n_test = min(500, len(dataset) - max(sizes, default=0)) if n_test is None else n_test
    if not sizes or sizes[0] < 2 or repeats < 1 or not 1 <= n_test <= len(dataset) - sizes[-1]:
        raise DataError(
            f"sizes {sizes} with {n_test} geometries to judge by cannot be drawn from {len(dataset)}; "
            "sizes are at least 2, and something has to be left"
        )
    held = dataset.sample(n_test, seed=seed, strata=None)
    test, pool = dataset[held], dataset[np.setdiff1d(np.arange(len(dataset)), held)]
    metrics: list[list[Metrics]] = []
    options["baseline"] = as_baseline(options.get("baseline"))  # once, so that it remembers
    symmetric = {key: options[key] for key in ("symmetry", "reference") if options.get(key) is not None}
    with progress_bar("learning curve", progress) as bar:
        for size in sizes:
            metrics.append([])
            for draw in range(repeats):
                training = pool[np.sort(select(pool, size, method=method, seed=seed + draw, **symmetric))]
                metrics[-1].append(evaluate(fit(training, **options), test))
                if bar:
                    bar(len(metrics) * repeats - repeats + draw + 1, len(sizes) * repeats)
    return LearningCurve(sizes, metrics, n_test)
