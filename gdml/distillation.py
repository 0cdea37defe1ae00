"""Distillation: a force field without baseline that learns from one with, on geometries of its dynamics."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from .dataset import Dataset, read
from .dynamics.classical import check_temperatures
from .errors import DataError
from .force_field import ForceField
from .metrics import Metrics, evaluate
from .sampling import sample
from .training import fit

JUDGED = 0.1  # of the samples, that the student is judged by
TIMED = 30  # single predictions that speeds are measured with


class Distilled(NamedTuple):
    """A student, and how it compares.

    Attributes
    ----------
    force_field : ForceField
        The student.
    samples : Dataset
        Geometries with the teacher's labels, of which the last ones were held out.
    against_teacher : Metrics
        On these.
    ms_teacher, ms_student : float
        Milliseconds for one geometry, as in dynamics.
    """

    force_field: ForceField
    samples: Dataset
    against_teacher: Metrics
    ms_teacher: float
    ms_student: float


def distill(
    teacher: ForceField,
    start: Dataset | Atoms | Sequence[Atoms] | str | Path,
    n: int = 2000,
    *,
    temperatures: Sequence[float] = (500.0,),
    timestep_fs: float = 0.5,
    seed: int = 0,
    progress: bool = False,
    keep: str | Path | None = None,
    **options: Any,
) -> Distilled:
    """Train a force field without baseline on what one with a baseline says; no reference calculation is needed.

    Parameters
    ----------
    teacher : ForceField
    start : Dataset, or what `gdml.read` takes
        Geometries that dynamics start from: best those that the teacher was trained on.
    n : int
        Geometries to sample by dynamics with the teacher, and to label by it.
    temperatures : sequence of float
        Of the dynamics, K; best up to somewhat above those of later use.
    timestep_fs : float
    seed : int
    progress : bool
    keep : path, optional
        A file (.npz) that keeps the samples while they are made. By the same call, a run that was killed goes on
        with them as if it had not been, and another student learns from them; to be deleted when they are not
        needed any more. To go on with the training too, give ``checkpoint`` and ``resume=True``.
    **options
        As of `gdml.fit`.

    Returns
    -------
    Distilled

    Raises
    ------
    DynamicsError
        If dynamics with the teacher fly apart again and again.
    DataError
        For fewer than twenty samples, or samples in the file of another model or other settings.
    OutputError, FormatError
        For a file that cannot be written, is damaged, or of something else.
    """
    if n < 20:
        raise DataError(f"{n} samples are too few to distill from; take at least 20, best some thousand")
    start = start if isinstance(start, Dataset) else read(start)
    teacher.check_atoms(start.numbers)
    check_temperatures(temperatures)
    settings = {"temperatures": temperatures, "timestep_fs": timestep_fs, "seed": seed}
    samples = sample(teacher, start, n, **settings, progress=progress, keep=keep)
    samples = samples[np.random.default_rng(seed).permutation(n)]
    n_held = max(5, int(JUDGED * n))
    training, held = samples[: n - n_held], samples[n - n_held :]
    student = fit(training, validation=held, symmetry=teacher.group, progress=progress, **options)
    known = {"n_train": teacher.details.get("n_train"), "baseline": str(teacher.baseline)}
    student = replace(student, details=student.details | {"teacher": known})
    one = held.positions[: min(TIMED, n_held)]
    cells = None if held.periodic_cell is None else np.broadcast_to(held.cell, (len(held), 3, 3))
    times = [_milliseconds(field, one, cells) for field in (replace(teacher, error_model=None), student)]
    return Distilled(student, samples, evaluate(student, held), *times)


def _milliseconds(force_field: ForceField, positions: np.ndarray, cells: np.ndarray | None) -> float:
    """Median time of a prediction for one geometry."""
    times = []
    for k, one in enumerate(positions):
        one = one + 1e-6  # which a baseline has not seen yet
        start = time.perf_counter()
        force_field.predict(one, None if cells is None else cells[k])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))
