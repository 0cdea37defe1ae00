"""Distillation: a force field without baseline that learns from one with, on geometries of its dynamics."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from .dataset import Dataset, read
from .dynamics import RingPolymerMD
from .dynamics.classical import check_temperatures, set_thermal_momenta
from .errors import DataError, DynamicsError, ExtrapolationWarning
from .force_field import ForceField
from .metrics import Metrics, evaluate
from .progress import progress_bar
from .training import fit

WALKERS = 8
SPACING_FS = 20.0  # between samples of a walker
SETTLING_FS = 200.0  # before its first
JUDGED = 0.1  # of the samples, that the student is judged by
RESTARTS = 20  # of walkers that fly apart, and one more for as many samples, after which it is given up
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
        Where to write the samples, before the training.
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
        For fewer than twenty samples.
    """
    if n < 20:
        raise DataError(f"{n} samples are too few to distill from; take at least 20, best some thousand")
    start = start if isinstance(start, Dataset) else read(start)
    teacher.check_atoms(start.numbers)
    check_temperatures(temperatures)
    samples = sample(
        teacher, start, n, temperatures=temperatures, timestep_fs=timestep_fs, seed=seed, progress=progress
    )
    if keep is not None:
        samples.write(keep)
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


def sample(
    force_field: ForceField,
    start: Dataset,
    n: int,
    *,
    temperatures: Sequence[float],
    timestep_fs: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> Dataset:
    """Geometries of dynamics with a force field, with its labels; none from outside of its training region.

    Raises
    ------
    DynamicsError
        If walkers fly apart again and again.
    """
    rng, found, failures = np.random.default_rng(seed), [], 0
    each = -(-n // len(temperatures))
    with progress_bar("samples", progress) as bar:
        for temperature in temperatures:
            goal = min(n, len(found) + each)
            while len(found) < goal:
                walkers = _walkers(start, temperature, rng)
                try:
                    for atoms in _walk(force_field, walkers, temperature, timestep_fs, rng):
                        found.append(atoms)
                        if bar:
                            bar(len(found), n)
                        if len(found) == goal:
                            break
                except (DataError, DynamicsError) as error:  # of geometries, as those of walkers that fly apart
                    failures += 1
                    if failures > RESTARTS + len(found) // RESTARTS:
                        raise DynamicsError(
                            f"dynamics at {temperature:g} K flew apart {failures} times for {len(found)} samples "
                            f"({error}); sample at lower temperatures, or train the teacher on more geometries"
                        ) from error
    return read(found)


def _walkers(start: Dataset, temperature: float, rng: np.random.Generator) -> list[Atoms]:
    walkers = []
    for k in rng.integers(len(start), size=WALKERS):
        (atoms,) = start[int(k)].to_atoms()
        atoms.calc = None
        set_thermal_momenta(atoms, temperature, rng)
        walkers.append(atoms)
    return walkers


def _walk(force_field, walkers, temperature, timestep_fs, rng) -> Iterator[Atoms]:
    """Geometries with labels, one after the other, without end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        dynamics = RingPolymerMD(
            walkers, timestep_fs * units.fs, temperature_K=temperature, n_beads=1, forces=force_field, rng=rng
        )
        dynamics.run(round(SETTLING_FS / timestep_fs))
        while True:
            dynamics.run(max(1, round(SPACING_FS / timestep_fs)))
            yield from _labelled(dynamics, force_field)


def _labelled(dynamics: RingPolymerMD, force_field: ForceField) -> Iterator[Atoms]:
    """Where walkers are now, with labels; those outside of the training region are left out."""
    positions, energies, forces = (
        part[:, 0].cpu().numpy() for part in (dynamics.positions, dynamics.potential, dynamics.bead_forces)
    )
    for k, walker in enumerate(dynamics.replicas):
        atoms = walker.copy()
        atoms.positions = positions[k]
        if force_field.outside(atoms.positions, atoms.cell.array if force_field.is_periodic else None):
            continue
        atoms.calc = SinglePointCalculator(atoms, energy=float(energies[k]), forces=forces[k])
        yield atoms


def _milliseconds(force_field: ForceField, positions: np.ndarray, cells: np.ndarray | None) -> float:
    """Median time of a prediction for one geometry."""
    times = []
    for k, one in enumerate(positions):
        one = one + 1e-6  # which a baseline has not seen yet
        start = time.perf_counter()
        force_field.predict(one, None if cells is None else cells[k])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))
