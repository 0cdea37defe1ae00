"""Sampling: labelled geometries of dynamics with a force field, which a file keeps while they are made."""

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from .dataset import Dataset, read
from .dynamics import RingPolymerMD
from .dynamics.classical import set_thermal_momenta
from .dynamics.settings import name_of
from .errors import (
    CheckpointWarning,
    DataError,
    DynamicsError,
    DynamicsWarning,
    ExtrapolationWarning,
    FormatError,
    OutputError,
)
from .force_field import ForceField
from .npz import Archive, check_writable, read_archive, refuse_another, write_archive
from .progress import progress_bar

FORMAT = "gdml-samples-1"
INTERVAL = 30.0  # seconds between two portions that the file gets
WALKERS = 8
SPACING_FS = 20.0  # between samples of a walker
SETTLING_FS = 200.0  # before its first
RESTARTS = 20  # of walkers that fly apart, and one more for as many samples, after which it is given up


def sample(
    force_field: ForceField,
    start: Dataset,
    n: int,
    *,
    temperatures: Sequence[float],
    timestep_fs: float = 0.5,
    walkers: int = WALKERS,
    spacing_fs: float = SPACING_FS,
    seed: int = 0,
    progress: bool = False,
    keep: str | Path | None = None,
    partial: bool = False,
) -> Dataset:
    """Geometries of dynamics with a force field, with its labels; none from outside of its training region.

    Parameters
    ----------
    force_field : ForceField
    start : Dataset
        Geometries that walkers start from.
    n : int
    temperatures : sequence of float
        Of the dynamics, K, each for as many samples.
    timestep_fs : float
    walkers : int
        Replicas of the dynamics, that go on side by side.
    spacing_fs : float
        Between samples of a walker.
    seed : int
    progress : bool
    keep : path, optional
        A file (.npz) that gets the samples every half a minute, and what is needed to go on to the last bit as
        if there had been no kill, by the same call.
    partial : bool
        Whether samples found before walkers flew apart again and again are enough, with a warning.

    Raises
    ------
    DynamicsError
        If walkers fly apart again and again.
    OutputError, FormatError, DataError
        For a file that cannot be written, is damaged, or has samples of another model or other settings.

    Warns
    -----
    CheckpointWarning
        If the file cannot be written any more, as on a full disk.
    DynamicsWarning
        If there are fewer samples than wanted.
    """
    settings = {
        "model": f"{name_of(force_field)}, constant {force_field.offset!r} eV",
        "start": start.fingerprint,
        "n": str(n),
        "temperatures": str([float(t) for t in temperatures]),
        "timestep_fs": str(float(timestep_fs)),
        "walkers": f"{walkers}, {float(spacing_fs)} fs",
        "seed": str(seed),
    }
    rng = np.random.default_rng(seed)
    walks = _Walks(force_field, start, n, temperatures, timestep_fs, rng, walkers, spacing_fs)
    file = _SampleFile(keep, settings, walks)
    with progress_bar("samples", progress) as bar:
        try:
            while len(walks.found) < n:
                walks.look()
                file.note()
                if bar:
                    bar(len(walks.found), n)
        except DynamicsError as error:
            if not (partial and walks.found):
                raise
            warnings.warn(f"these {len(walks.found)} samples have to do: {error}", DynamicsWarning, stacklevel=2)
        finally:  # also where the user interrupts
            file.write()
    return read(walks.found)


@dataclass
class _Walks:
    """Dynamics with some walkers, and then with others, and what they found.

    The random numbers of a group of walkers are known by the state of the generator before they were drawn.
    """

    force_field: ForceField
    start: Dataset
    n: int
    temperatures: Sequence[float]
    timestep_fs: float
    rng: np.random.Generator
    walkers: int
    spacing_fs: float
    found: list[Atoms] = field(default_factory=list)
    failures: int = 0
    dynamics: RingPolymerMD | None = None

    def __post_init__(self):
        self._remember()

    @property
    def _turn(self) -> tuple[float, int]:
        """The temperature that is being sampled, and how many samples it still gets."""
        each = -(-self.n // len(self.temperatures))
        turn, done = divmod(len(self.found), each)
        return self.temperatures[turn], min(each - done, self.n - len(self.found))

    def look(self) -> None:
        """Go to where walkers are looked at next, and take in what they have reached."""
        temperature, missing = self._turn
        try:
            seen = self._walked(temperature)
        except (DataError, DynamicsError) as error:  # of geometries, as those of walkers that fly apart
            self._fail(temperature, error)
        else:
            self.found += seen[:missing]
            if len(seen) >= missing:
                self.dynamics = None
        self._remember()

    def _walked(self, temperature: float) -> list[Atoms]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            if self.dynamics is None:
                self.before = self.rng.bit_generator.state
                self.dynamics = self._begun(temperature)
                self.dynamics.run(round(SETTLING_FS / self.timestep_fs))
            self.dynamics.run(max(1, round(self.spacing_fs / self.timestep_fs)))
            return _labelled(self.dynamics, self.force_field)

    def _begun(self, temperature: float) -> RingPolymerMD:
        """Dynamics of new walkers."""
        replicas = []
        for k in self.rng.integers(len(self.start), size=self.walkers):
            (atoms,) = self.start[int(k)].to_atoms()
            atoms.calc = None
            set_thermal_momenta(atoms, temperature, self.rng)
            replicas.append(atoms)
        return RingPolymerMD(
            replicas,
            self.timestep_fs * units.fs,
            temperature_K=temperature,
            n_beads=1,
            forces=self.force_field,
            rng=self.rng,
        )

    def _fail(self, temperature: float, error: Exception) -> None:
        self.dynamics = None
        self.failures += 1
        if self.failures > RESTARTS + len(self.found) // RESTARTS:
            raise DynamicsError(
                f"dynamics at {temperature:g} K flew apart {self.failures} times for {len(self.found)} samples "
                f"({error}); sample at lower temperatures, or train the force field on more geometries"
            ) from error

    def _remember(self) -> None:
        """Note all that goes on from here depends on; an interruption comes in the midst of a look."""
        rng = self.rng.bit_generator.state if self.dynamics is None else self.before
        moving = {} if self.dynamics is None else self.dynamics.state()
        self._last = (len(self.found), {"failures": self.failures, "rng": json.dumps(rng)}, moving)

    def fields(self) -> dict[str, np.ndarray]:
        """What `restore` needs, as of the last look."""
        n, fields, moving = self._last
        frames = self.found[:n]
        fields = fields | {
            "positions": [atoms.positions for atoms in frames],
            "cells": [atoms.cell.array for atoms in frames],
            "energy": [atoms.calc.results["energy"] for atoms in frames],
            "forces": [atoms.calc.results["forces"] for atoms in frames],
        }
        return fields | {f"state_{name}": value for name, value in moving.items()}

    def restore(self, archive: Archive) -> None:
        """The inverse of `fields`."""
        (template,) = self.start[0].to_atoms()
        labels = zip(*(archive[name] for name in ("positions", "cells", "energy", "forces")))
        self.found = [_with_labels(template, r, float(e), f, cell) for r, cell, e, f in labels]
        self.failures = int(archive["failures"])
        self.rng.bit_generator.state = json.loads(archive.text("rng"))
        moving = {name.removeprefix("state_"): v for name, v in archive.items() if name.startswith("state_")}
        if moving:
            self.before = self.rng.bit_generator.state
            self.dynamics = self._begun(self._turn[0])
            self.dynamics.restore(moving)
        self._remember()


def _labelled(dynamics: RingPolymerMD, force_field: ForceField) -> list[Atoms]:
    """Where walkers are now, with labels; those outside of the training region are left out."""
    positions, energies, forces = (
        part[:, 0].cpu().numpy() for part in (dynamics.positions, dynamics.potential, dynamics.bead_forces)
    )
    frames = [_with_labels(*one) for one in zip(dynamics.replicas, positions, energies.tolist(), forces)]
    return [
        a for a in frames if not force_field.outside(a.positions, a.cell.array if force_field.is_periodic else None)
    ]


def _with_labels(
    template: Atoms, positions: np.ndarray, energy: float, forces: np.ndarray, cell: np.ndarray | None = None
) -> Atoms:
    atoms = template.copy()
    atoms.positions = positions
    if cell is not None:
        atoms.cell = cell
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


class _SampleFile:
    """Where samples are kept; with None as its path, nowhere."""

    def __init__(self, path: str | Path | None, settings: dict[str, str], walks: _Walks):
        self.path, self.settings, self.walks = path, settings, walks
        self.written = time.monotonic()
        if path is not None and check_writable(path, ".npz").exists():
            self._read()
        self.n_written = len(walks.found)

    def _read(self) -> None:
        archive = read_archive(self.path)
        if archive.text("format") != FORMAT:
            raise FormatError(f"{self.path}: these are no samples to go on from; give another file")
        known = json.loads(archive.text("settings"))
        refuse_another(self.path, known, self.settings, "these samples are of another model, or made otherwise")
        self.walks.restore(archive)

    def note(self) -> None:
        """Write if the last portion is old enough."""
        if time.monotonic() - self.written >= INTERVAL:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        fields, self.written = {"format": FORMAT, "settings": json.dumps(self.settings)}, time.monotonic()
        if self.path is None or len(self.walks.found) == self.n_written:
            return
        fields |= self.walks.fields()
        try:
            write_archive(self.path, {name: np.asarray(value) for name, value in fields.items()})
        except OutputError as error:
            message = f"samples were not written, the sampling goes on without: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=3)
        self.n_written = len(self.walks.found)
