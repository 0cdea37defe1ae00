"""The minima that dynamics reach, and the saddle points between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ase import Atoms

from ..calculator import check_pbc
from ..dataset import Dataset, read
from ..dynamics.classical import check_settings, check_temperatures
from ..errors import DataError
from ..force_field import ForceField
from ..progress import progress_bar
from ..sampling import sample
from .likeness import Likeness
from .points import UNKNOWN, Astray, Landscape, Point, point_at
from .relaxation import Relaxed, check_optimisation, checked_starts, relax_many
from .saddles import Climbed, climb_many

TEMPERATURES = (300.0, 600.0, 1000.0)
WALKERS, SPACING_FS = 32, 50.0  # of the dynamics, so that starts have little in common
COARSE, FINE = 0.005, 1e-4  # eV/Å, of forces of the batch, and of one of each kind of what it gives
ALIKE, ALIKE_ENERGY = 0.1, 2e-3  # Å and eV, within which geometries with such forces are of one kind
SAME, SAME_ENERGY = 0.05, 1e-4  # and with the finer ones
PUSH = 0.15  # Å, of all atoms together, off a saddle point
ROUNDS = 3  # of pushing off saddle points where relaxations have ended


@dataclass
class _Search:
    """A force field, and all that is asked of it at stationary points."""

    force_field: ForceField
    atoms: Atoms
    optimiser: str
    max_steps: int
    progress: bool
    likeness: Likeness = field(init=False)

    def __post_init__(self):
        self.cell = self.atoms.cell.array if self.force_field.is_periodic else None
        self.likeness = Likeness(self.force_field.group, self.cell, self.force_field.pbc or (False,) * 3)
        self.options = {"max_steps": self.max_steps, "optimiser": self.optimiser}
        self.options |= {"device": str(self.force_field.device), "progress": self.progress}

    def relax(self, positions: np.ndarray) -> tuple[list[Point], Astray]:
        """Minima, and the starts that came to none."""
        points: list[Point] = []
        lost: list[tuple[np.ndarray, float]] = []
        counts = np.ones(len(positions), dtype=int)
        for _ in range(ROUNDS):
            arrived, more = self._points(self._relaxed(positions), counts)
            lost += more
            points += [p for p in arrived if not p.modes.n_imaginary]
            tops = [p for p in arrived if p.modes.n_imaginary]
            if not tops:
                break
            # Both sides of where a relaxation ended on top of a barrier: it counts for one of them.
            positions = np.concatenate([self._pushed(p) for p in tops])
            counts = np.concatenate([[p.count, 0] for p in tops])
        else:
            lost += [(p.atoms.positions, p.largest) for p in tops for _ in range(p.count)]
        return self.named("M", points), _astray(lost, len(self.atoms))

    def _relaxed(self, positions: np.ndarray, fmax: float = COARSE) -> Relaxed:
        return relax_many(self.force_field, self.atoms, positions, fmax=fmax, **self.options)

    def climb(self, positions: np.ndarray, rng: np.random.Generator) -> list[Point]:
        """Saddle points with one direction that leads down."""
        found = self._climbed(positions, rng.normal(size=positions.shape))
        points, _ = self._points(found, np.ones(len(positions), dtype=int))
        return self.named("S", [p for p in points if p.modes.n_imaginary == 1])

    def _climbed(self, positions: np.ndarray, modes: np.ndarray, fmax: float = COARSE) -> Climbed:
        return climb_many(self.force_field, self.atoms, positions, modes, fmax=fmax, **self.options)

    def connect(self, saddles: list[Point], minima: list[Point]) -> tuple[list[Point], list[Point]]:
        """Saddle points with the names of the minima on both sides, and all minima; some of these may be new."""
        if not saddles:
            return minima, saddles
        sides = np.concatenate([self._pushed(saddle) for saddle in saddles])
        found = self._relaxed(sides, FINE)
        new, _ = self._points(found, np.zeros(len(sides), dtype=int))
        minima = self.named("M", minima + [p for p in new if not p.modes.n_imaginary])
        ends = zip(found.positions, found.energy, found.converged, strict=True)
        names = [self._name_of(r, e, minima) if arrived else UNKNOWN for r, e, arrived in ends]
        pairs = [
            sorted(pair, key=lambda name: (name == UNKNOWN, len(name), name))
            for pair in zip(names[::2], names[1::2], strict=True)
        ]
        return minima, [replace(saddle, ends=tuple(pair)) for saddle, pair in zip(saddles, pairs, strict=True)]

    def _name_of(self, positions: np.ndarray, energy: float, minima: list[Point]) -> str:
        """Which of the minima a relaxation ended at."""
        near = [p for p in minima if abs(p.energy - energy) <= ALIKE_ENERGY]
        if not near:
            return UNKNOWN
        one, *others = self.likeness.distances(np.stack([positions] + [p.atoms.positions for p in near]))
        apart = [self.likeness.between(one, other) for other in others]
        return near[int(np.argmin(apart))].name if min(apart) <= ALIKE else UNKNOWN

    def _points(self, found: Relaxed, counts: np.ndarray) -> tuple[list[Point], list]:
        """Stationary points where a batch ended, of each kind one with finer forces; and where it did not end."""
        done = np.flatnonzero(found.converged)
        missed = np.repeat(np.flatnonzero(~found.converged), counts[~found.converged])
        lost = [(found.positions[k], found.largest[k]) for k in missed]
        if not len(done):
            return [], lost
        groups = self.likeness.groups(found.positions[done], found.energy[done], ALIKE, ALIKE_ENERGY)
        groups = [done[group] for group in groups]
        fine, points = self._finer(found, np.array([rows[0] for rows in groups])), []
        with progress_bar("vibrations", self.progress) as bar:
            for k, count in enumerate(int(counts[rows].sum()) for rows in groups):
                if fine.converged[k]:
                    points.append(
                        point_at(self.force_field, self.atoms, fine.positions[k], float(fine.largest[k]), count)
                    )
                else:
                    lost += [(fine.positions[k], fine.largest[k])] * count
                if bar:
                    bar(k + 1, len(groups))
        return points, lost

    def _finer(self, found: Relaxed, rows: np.ndarray) -> Relaxed:
        if isinstance(found, Climbed):
            return self._climbed(found.positions[rows], found.modes[rows], FINE)
        return self._relaxed(found.positions[rows], FINE)

    def named(self, letter: str, points: list[Point]) -> list[Point]:
        """Points with names and without duplicates, whose counts are summed up; lowest first, marked ones last."""
        if not points:
            return []
        positions, energy = np.stack([p.atoms.positions for p in points]), np.array([p.energy for p in points])
        groups = self.likeness.groups(positions, energy, SAME, SAME_ENERGY)
        merged = [replace(points[rows[0]], count=sum(points[k].count for k in rows)) for rows in groups]
        merged.sort(key=lambda point: bool(point.mark))
        return [replace(point, name=f"{letter}{k + 1}") for k, point in enumerate(merged)]

    def _pushed(self, point: Point) -> np.ndarray:
        """Positions (2, N, 3) on both sides of a saddle point."""
        step = PUSH * point.modes.vectors[0]
        return point.atoms.positions + np.stack([step, -step])


def explore(
    force_field: ForceField,
    atoms: Atoms,
    *,
    n: int = 1000,
    temperatures: Sequence[float] = TEMPERATURES,
    timestep_fs: float = 0.5,
    starts: Dataset | None = None,
    saddles: int = 0,
    optimiser: str = "lbfgs",
    max_steps: int = 500,
    seed: int = 0,
    keep: str | Path | None = None,
    progress: bool = False,
) -> Landscape:
    """The minima that dynamics at some temperatures reach, and the saddle points between them.

    Snapshots of dynamics are relaxed in one batch. What is the same at the end but for a permutation of the force
    field's group or a mirror is one minimum; what differs by less than 0.1 Å and 2 meV may be taken for one.

    Parameters
    ----------
    force_field : ForceField
        With uncertainty (`gdml.with_uncertainty`), minima that it does not know well are marked. Of one in single
        precision, only the dynamics are: its forces do not converge.
    atoms : Atoms
        Where dynamics start, such as a training geometry; at a fixed cell.
    n : int
        Relaxations.
    temperatures : sequence of float
        Of the dynamics, K, each for as many snapshots.
    timestep_fs : float
    starts : Dataset, optional
        Geometries to relax, instead of dynamics; `n` and what dynamics need is not looked at then.
    saddles : int
        Searches for saddle points, from as many of the starts; none by default.
    optimiser : {"lbfgs", "fire"}
        Quasi-Newton steps, or damped dynamics, which take longer.
    max_steps : int
        Of a relaxation, or a search.
    seed : int
    keep : path, optional
        A file (.npz) that keeps the snapshots while they are made; see `gdml.sampling.sample`.
    progress : bool

    Returns
    -------
    Landscape

    Raises
    ------
    ModelMismatchError
        If these are not the force field's atoms.
    DataError
        For constraints, or settings that make no sense.
    DynamicsError
        If the dynamics fly apart again and again, and never give a snapshot.

    Warns
    -----
    DynamicsWarning
        If they do so at some temperature, so that there are fewer snapshots.
    """
    force_field.check_atoms(atoms.numbers)
    check_pbc(force_field, atoms)
    check_temperatures(temperatures)
    check_settings(timestep_fs=timestep_fs)
    check_optimisation(COARSE, max_steps, optimiser)
    if n < 1 or saddles < 0:
        raise DataError(f"n must be at least 1 and saddles not negative, but they are {n} and {saddles}")
    atoms = _bare(force_field, atoms)
    checked_starts(atoms, atoms.positions[None], "cpu")
    if starts is None:
        options = {"walkers": min(WALKERS, n), "spacing_fs": SPACING_FS, "keep": keep, "partial": True}
        options |= {"temperatures": temperatures, "timestep_fs": timestep_fs, "seed": seed, "progress": progress}
        starts = sample(force_field, read(atoms), n, **options)
    else:
        _check_starts(force_field, starts, atoms)
    search = _Search(force_field.to(dtype="float64"), atoms, optimiser, max_steps, progress)
    minima, lost = search.relax(starts.positions)
    found = []
    if saddles:
        rng = np.random.default_rng(seed)
        rows = np.resize(rng.permutation(len(starts)), saddles)  # some again, where there are fewer
        found = search.climb(starts.positions[rows], rng)
    n_lost = saddles - sum(point.count for point in found)
    minima, found = search.connect(found, minima)
    return Landscape(minima, found, starts, lost, saddles, n_lost)


def _bare(force_field: ForceField, atoms: Atoms) -> Atoms:
    """The atoms with their masses and constraints, but without what else they carry; periodic as the force field is."""
    bare = Atoms(atoms.numbers, atoms.positions, masses=atoms.get_masses(), constraint=atoms.constraints)
    if force_field.is_periodic:
        bare.cell, bare.pbc = atoms.cell, atoms.pbc
    return bare


def _check_starts(force_field: ForceField, starts: Dataset, atoms: Atoms) -> None:
    """Raise unless these are the same atoms in the same cell.

    Raises
    ------
    ModelMismatchError, DataError
    """
    force_field.check_atoms(starts.numbers)
    if not force_field.is_periodic:
        return
    cell = starts.periodic_cell
    if tuple(starts.pbc) != force_field.pbc or not np.allclose(cell, atoms.cell.array, atol=1e-6):
        raise DataError(
            "the starts are periodic in another way or in other cells than the structure; relaxations keep one cell: "
            "give starts in it, or the structure in theirs"
        )


def _astray(lost: list[tuple[np.ndarray, float]], n_atoms: int) -> Astray:
    positions = np.array([r for r, _ in lost]).reshape(-1, n_atoms, 3)
    return Astray(positions, np.array([largest for _, largest in lost]))
