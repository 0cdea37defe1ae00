"""Labels by ASE calculators: computed, remembered, and kept in files."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from joblib import Parallel, cpu_count, delayed
from threadpoolctl import threadpool_limits

from ..errors import BaselineError, FormatError, GDMLError
from ..npz import check_writable, read_archive, write_archive
from .catalogue import Term

TOGETHER = 16  # geometries that another process gets at a time
WORTH_STARTING = 8.0  # seconds of work from which on other processes are started
SMALL = 60  # atoms up to which a geometry is computed by one thread: several gain nothing, or hinder each other
REMEMBERED = 4096  # geometries
WRITE_EVERY = 30.0  # seconds


class BaselineLabels(NamedTuple):
    """Of M geometries: energy (M,) eV, forces (M, N, 3) eV/Å, stress (M, 6) eV/Å³ or None; or of one, without M."""

    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None = None


def geometries(
    numbers: np.ndarray, positions: np.ndarray, cells: np.ndarray | None, pbc: Sequence[bool]
) -> list[Atoms]:
    """Positions (M, N, 3), and one cell or M of them, as Atoms."""
    each = [None] * len(positions) if cells is None else np.broadcast_to(cells, (len(positions), 3, 3))
    return [Atoms(numbers, r, cell=cell, pbc=pbc) for r, cell in zip(positions, each)]


def stacked(found: Sequence[BaselineLabels], stress: bool) -> BaselineLabels:
    """Labels of one geometry each, as those of all."""
    energy, forces, pressure = zip(*found)
    return BaselineLabels(np.array(energy), np.array(forces), np.array(pressure) if stress else None)


def labels_of(calculators: Sequence[Calculator], atoms: Atoms, stress: bool) -> BaselineLabels:
    """The sum of several calculators for one geometry.

    Raises
    ------
    BaselineError
        If one fails, has no forces or no stress, or gives what is not finite.
    """
    parts = [_of_one(calculator, atoms, stress) for calculator in calculators]
    energy, forces, pressure = zip(*parts)
    return BaselineLabels(sum(energy), sum(forces), sum(pressure) if stress else None)


def _of_one(calculator: Calculator, atoms: Atoms, stress: bool) -> BaselineLabels:
    name, atoms = type(calculator).__name__, atoms.copy()
    atoms.calc = calculator
    try:
        found = BaselineLabels(
            float(atoms.get_potential_energy()),
            np.array(atoms.get_forces(), dtype=float),
            np.array(atoms.get_stress(), dtype=float) if stress else None,
        )
    except GDMLError:
        raise
    except PropertyNotImplementedError as error:
        raise BaselineError(f"{name} has no {'stress or ' if stress else ''}forces: {error}") from error
    except Exception as error:  # each calculator has its own
        raise BaselineError(f"{name}: {type(error).__name__}: {error}") from error
    if found.forces.shape != atoms.positions.shape:
        raise BaselineError(f"{name} gave forces of the shape {found.forces.shape} for {len(atoms)} atoms")
    if not all(np.isfinite(part).all() for part in found if part is not None):
        raise BaselineError(f"{name} gave NaN or infinite values")
    return found


@dataclass(frozen=True, eq=False)
class Workers:
    """Threads of this process, each with calculators of its own, for small geometries.

    Parameters
    ----------
    terms : sequence of Term
        By name, not given: a given calculator has one state.
    """

    terms: Sequence[Term]
    _own: threading.local = field(default_factory=threading.local, repr=False)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # The limit is that of each thread alone.
        return ThreadPoolExecutor(cpu_count(), initializer=threadpool_limits, initargs=(1, "openmp"))

    def _labels_of(self, atoms: Atoms, stress: bool) -> BaselineLabels:
        if not hasattr(self._own, "calculators"):
            self._own.calculators = [term.make() for term in self.terms]
        return labels_of(self._own.calculators, atoms, stress)

    def labels(self, frames: Sequence[Atoms], stress: bool) -> list[BaselineLabels]:
        """Of all geometries; raises what `labels_of` raises."""
        return list(self._pool.map(lambda atoms: self._labels_of(atoms, stress), frames))


def key_of(atoms: Atoms) -> str:
    """A geometry as a short text, to look its labels up by."""
    digest = hashlib.sha256()
    for part in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:32]


class Memory:
    """Labels of the last geometries."""

    def __init__(self):
        self.labels: OrderedDict[str, BaselineLabels] = OrderedDict()

    def get(self, key: str, stress: bool) -> BaselineLabels | None:
        labels = self.labels.get(key)
        return None if labels is None or (stress and labels.stress is None) else labels

    def put(self, key: str, labels: BaselineLabels) -> None:
        self.labels[key] = labels
        while len(self.labels) > REMEMBERED:
            self.labels.popitem(last=False)


class LabelFile:
    """Labels in a file (.npz), to which new ones are added.

    Parameters
    ----------
    path : path or None
        None stands for no file.
    identity : str
        Of the baseline; a file of another one is refused.
    n_atoms : int
        Of the geometries; a file of others is refused.

    Raises
    ------
    FormatError
        For a file of something else.
    OutputError
        If the place cannot be written to.
    """

    def __init__(self, path: str | Path | None, identity: str, n_atoms: int):
        self.path, self.identity = path, identity
        self.labels: dict[str, BaselineLabels] = {}
        self.written, self.n_written = time.perf_counter(), 0
        if path is not None and check_writable(path, ".npz").exists():
            self._read(n_atoms)

    def _read(self, n_atoms: int) -> None:
        archive = read_archive(self.path)
        if archive.text("format") != "gdml-baseline-labels" or archive.text("baseline") != self.identity:
            raise FormatError(f"{self.path}: these are no labels of the baseline {self.identity}; give another file")
        if archive["forces"].shape[1:] != (n_atoms, 3):
            raise FormatError(
                f"{self.path}: labels of {archive['forces'].shape[1]} atoms, not of {n_atoms}; give another file"
            )
        rows = zip(archive["keys"].tolist(), archive["energy"], archive["forces"], archive["stress"])
        for key, energy, forces, stress in rows:
            self.labels[key] = BaselineLabels(float(energy), forces, None if np.isnan(stress).any() else stress)
        self.n_written = len(self.labels)

    def get(self, key: str, stress: bool) -> BaselineLabels | None:
        labels = self.labels.get(key)
        return None if labels is None or (stress and labels.stress is None) else labels

    def put(self, key: str, labels: BaselineLabels) -> None:
        self.labels[key] = labels
        if time.perf_counter() - self.written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        self.written = time.perf_counter()
        if self.path is None or len(self.labels) == self.n_written:
            return
        energy, forces, stress = zip(*self.labels.values())
        write_archive(
            self.path,
            {
                "format": np.array("gdml-baseline-labels"),
                "baseline": np.array(self.identity),
                "keys": np.array(list(self.labels)),
                "energy": np.array(energy),
                "forces": np.array(forces),
                "stress": np.array([np.full(6, np.nan) if s is None else s for s in stress]),
            },
        )
        self.n_written = len(self.labels)


def compute(
    terms: Sequence[Term], here: Callable[[Atoms], BaselineLabels], frames: Sequence[Atoms], stress: bool
) -> Iterator[tuple[int, BaselineLabels | str]]:
    """Labels of geometries by their places, or what went wrong, in any order; by several processes if worth it."""
    start, done = time.perf_counter(), 0
    can_share = cpu_count() > 1 and all(term.given is None for term in terms)  # which may not survive a copy
    for place, atoms in enumerate(frames):
        yield place, _attempt(here, atoms)
        done = place + 1
        per_frame = (time.perf_counter() - start) / done
        if can_share and done > 1 and per_frame * (len(frames) - done) > WORTH_STARTING:
            break
    rest = range(done, len(frames))
    shares = [rest[k : k + TOGETHER] for k in range(0, len(rest), TOGETHER)]
    jobs = (delayed(_work)(terms, list(some), [frames[k] for k in some], stress) for some in shares)
    for part in Parallel(n_jobs=-1, return_as="generator_unordered")(jobs) if shares else ():
        yield from part


def _work(terms: Sequence[Term], places: list[int], frames: list[Atoms], stress: bool) -> list:
    """What another process does."""
    calculators = [term.make() for term in terms]
    return [
        (place, _attempt(lambda one: labels_of(calculators, one, stress), atoms))
        for place, atoms in zip(places, frames)
    ]


def _attempt(label: Callable[[Atoms], BaselineLabels], atoms: Atoms) -> BaselineLabels | str:
    try:
        return label(atoms)
    except BaselineError as error:
        return str(error)
