"""Learning curves: errors on other geometries against the number that was trained on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from .baselines import Baseline, as_baseline
from .baselines.labels import key_of
from .crystals import mean_cell
from .dataset import Dataset
from .descriptors import Descriptor
from .errors import DataError, FormatError
from .kernels import RadialKernel
from .metrics import Metrics, evaluate
from .npz import check_writable, refuse_another, whole_file
from .pool import select
from .progress import progress_bar
from .symmetry import PermutationGroup
from .training import fit, identity

# Options of a training that say where or how it computes, not what.
ELSEWHERE = {"baseline_cache", "backend", "device", "progress"}


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
    settings : dict of str
        What else the errors depend on, in words.
    """

    sizes: list[int]
    metrics: list[list[Metrics]]
    n_test: int
    settings: dict[str, str] = field(default_factory=dict)

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
            "settings": self.settings,
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
    keep: str | Path | None = None,
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
    keep : path, optional
        A file (JSON, as of `LearningCurve.save`) that is written after each training. What is there is not trained
        again, so that what was killed goes on by the same call; so does one with more sizes or repeats.
    **options
        As of `gdml.fit`.

    Returns
    -------
    LearningCurve

    Raises
    ------
    DataError
        If there are too few geometries, or errors in the file of other data or settings.
    OutputError, FormatError
        For a file that cannot be written, or of something else.
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
    options["baseline"] = as_baseline(options.get("baseline"))  # once, so that it remembers
    symmetric = {key: options[key] for key in ("symmetry", "reference") if options.get(key) is not None}
    settings = {"geometries": dataset.fingerprint, "n_test": str(n_test), "method": method, "seed": str(seed)}
    settings |= {
        key: _in_words(value, dataset) for key, value in options.items() if key not in ELSEWHERE and value is not None
    }
    wanted = [(size, draw) for size in sizes for draw in range(repeats)]
    points = {} if keep is None else _kept(check_writable(keep), settings, wanted)
    with progress_bar("learning curve", progress) as bar:
        for done, (size, draw) in enumerate(wanted, 1):
            if (size, draw) not in points:
                training = pool[np.sort(select(pool, size, method=method, seed=seed + draw, **symmetric))]
                points[size, draw] = evaluate(fit(training, **options), test)
                if keep is not None:
                    _curve(points, n_test, settings).save(keep)
            if bar:
                bar(done, len(wanted))
    return _curve(points, n_test, settings)


def _curve(points: dict[tuple[int, int], Metrics], n_test: int, settings: dict[str, str]) -> LearningCurve:
    """A curve, perhaps unfinished, of errors by size and draw."""
    sizes = sorted({size for size, _ in points})
    metrics = [[points[key] for key in sorted(points) if key[0] == size] for size in sizes]
    return LearningCurve(sizes, metrics, n_test, settings)


def _kept(path: Path, settings: dict[str, str], wanted: list[tuple[int, int]]) -> dict[tuple[int, int], Metrics]:
    """The errors in a file by size and draw."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        known, rows = content["settings"], list(zip(content["sizes"], content["metrics"], strict=True))
        points = {(size, draw): Metrics(**one) for size, draws in rows for draw, one in enumerate(draws)}
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: this is no learning curve to go on with; give another file ({error!r})") from error
    refuse_another(path, known, settings, "this learning curve is of other data or settings")
    if set(points) - set(wanted):
        sizes, most = ", ".join(str(size) for size, _ in rows), max(len(draws) for _, draws in rows)
        raise DataError(
            f"{path}: this learning curve has n = {sizes} with {most} draws, of which some are not asked for; "
            "ask for them too, or give another file"
        )
    return points


def _in_words(value: object, dataset: Dataset) -> str:
    """An option of a training as text that is another one for another value."""
    if isinstance(value, Dataset):
        return value.fingerprint
    if isinstance(value, Atoms):
        return key_of(value)
    if isinstance(value, Baseline):  # calculators that were given are known by what they do
        forces = np.round(value.with_example(dataset).example.forces, 3) + 0.0
        return f"{value}, {identity(forces.tolist())}"
    if isinstance(value, Descriptor):
        cell = mean_cell(dataset) if any(dataset.pbc) else None
        return identity(value.bound(dataset.numbers, dataset.positions, dataset.pbc, cell).recipe())
    if isinstance(value, RadialKernel):
        return identity(value.with_length_scale(1.0).recipe())  # its own is replaced
    if isinstance(value, PermutationGroup):
        value = value.permutations
    return identity(np.asarray(value).tolist()) if isinstance(value, (np.ndarray, list, tuple)) else str(value)
