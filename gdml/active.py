"""Active learning: dynamics with the force field choose the geometries that the reference method labels.

Walkers start from labelled geometries at all temperatures asked for, and go on from round to
round; where forces become too uncertain, or energies too high, they start anew. Of all that they
saw in a round, one of the more uncertain is labelled, written to disk, and taken in: not the most
uncertain, since extremes alone teach little about what is between them. The uncertainty is the root
mean square of the standard deviations of forces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator

from .baselines import Baseline, as_baseline
from .baselines.labels import labels_of
from .dataset import Dataset, read
from .dynamics import RingPolymerMD
from .dynamics.classical import check_temperatures, set_thermal_momenta
from .errors import BaselineError, ConvergenceError, DataError, FitError, GDMLError
from .growing import Growing
from .io import write_frames
from .npz import check_writable
from .progress import progress_bar
from .selection import MIN_FRAMES

FIRST = 5  # geometries that are shaken from the structure, before there is a force field
# Å: standard deviation of the first of them, from which those that have the thermal energy follow; and at most.
SHAKEN, MOST_SHAKEN = 0.02, 0.2
WORTH = 3e-3  # eV/Å: uncertainty that is worth a label; reference methods are hardly converged to less
MOST = 0.2  # uncertainty at which walkers start anew, over the typical force: beyond, they would go astray
HOT = 2.0  # energy over the lowest, in units of the thermal one, up to which a geometry is of interest
WALKERS, LOOK = 4, 20  # walkers at a temperature, and steps between looks
UPPER = 0.75  # quantile of the uncertainties seen in a round, above which one is drawn
CALM = 3  # rounds without anything worth a label, after which all is known
AGAIN = 1.4  # times as many geometries as before have hyper-parameters chosen again
RECENT = 10  # new geometries that the error is judged by
FAILURES = 5  # in a row, after which the reference calculator is given up


class Seen(NamedTuple):
    """A geometry that walkers saw: its uncertainty (eV/Å), positions (Å), cell, and the temperature (K)."""

    uncertainty: float
    positions: np.ndarray
    cell: np.ndarray | None
    temperature: float


class Outcome(NamedTuple):
    """What active learning came to.

    Attributes
    ----------
    force_field : ForceField
        With uncertainty.
    dataset : Dataset
        All labelled geometries.
    errors : list of float
        Of the labels that dynamics asked for: RMSE of the forces that were predicted, eV/Å.
    failed : int
        Geometries on which the reference calculator failed.
    reason : str
        Why it ended.
    """

    force_field: Any
    dataset: Dataset
    errors: list[float]
    failed: int
    reason: str


def learn_actively(
    structure: Atoms,
    calculator: BaseCalculator,
    labels: str | Path,
    *,
    budget: int = 50,
    temperatures: Sequence[float] = (300.0,),
    n_beads: int = 1,
    timestep_fs: float = 0.5,
    max_steps: int = 1000,
    goal: float | None = None,
    first: int = FIRST,
    seed: int = 0,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> Outcome:
    """Let dynamics choose the geometries that a reference calculator labels.

    Parameters
    ----------
    structure : ase.Atoms
        Where to start; best a minimum.
    calculator : ASE calculator
        The reference, with energies and forces.
    labels : path
        Extended XYZ of the labelled geometries. Each is written before it is used; what is
        there already is used and not computed again, so that a killed run goes on by the same call.
        Geometries on which the calculator fails are put into a file beside, and tried again then.
    budget : int
        Labelled geometries in all, with those of the file.
    temperatures : sequence of float
        Of the dynamics, K.
    n_beads : int
        More than one: path-integral dynamics, and single beads of the walkers are looked at, and labelled.
    timestep_fs, max_steps
        Of the dynamics, and how many steps walkers go at most.
    goal : float, optional
        RMSE of forces, eV/Å, of the last ten new labels, at which it ends.
    first : int
        Geometries that are shaken from the structure at the beginning; five or more, or with
        a ``length_scale`` two.
    seed : int
    progress : bool
    report : callable(str), optional
        Gets a line for each label.
    **options
        As of `gdml.fit`, such as ``baseline="gfn2-xtb"``.

    Returns
    -------
    Outcome

    Raises
    ------
    DataError
        If the budget is too small, or labels are not what they should be.
    OutputError
        If the labels cannot be written.
    ConvergenceError
        If the calculator fails again and again.
    """
    check_temperatures(temperatures)
    fewest = 2 if options.get("length_scale", "auto") != "auto" else MIN_FRAMES
    if not fewest <= first <= budget:
        raise DataError(
            f"there are {first} geometries to begin with; at least {fewest} are needed, and at most the budget"
        )
    store = Labelled(labels, structure, calculator, as_baseline(options.get("baseline")))
    options["baseline"] = store.baseline
    store.retry(budget)
    _begin(store, structure, first, seed, thermal_energy(structure, max(temperatures), n_beads))
    run = _Run(store, options, list(temperatures), n_beads, timestep_fs, max_steps, np.random.default_rng(seed))
    with progress_bar("labels", progress) as bar:
        reason = "the budget is spent"
        while len(store) < budget:
            if goal is not None and run.recent_error < goal:
                reason = f"the error of the last {RECENT} labels is below {1e3 * goal:g} meV/Å"
                break
            if not run.round():
                reason = f"dynamics at {run.named_temperatures} find nothing uncertain any more"
                break
            if bar:
                bar(len(store), budget)
            if report:
                report(run.account)
    run.final()
    return Outcome(run.growing.force_field, run.growing.dataset, run.errors, len(store.failed), reason)


def thermal_energy(structure: Atoms, temperature: float, n_beads: int) -> float:
    """Mean potential energy of harmonic atoms over the lowest, eV; of quantum ones a rough guess."""
    return 0.5 * max(1, 3 * len(structure) - 6) * units.kB * temperature * n_beads**0.5


def _begin(store: "Labelled", structure: Atoms, first: int, seed: int, highest: float) -> None:
    """The structure and some that are shaken from it, until there are enough; the same where it is called again.

    The first is shaken a little. It tells how much the others may be, up to the highest energy.
    """
    rng, known = np.random.default_rng([seed, 1]), store.frames + store.failed
    for k in count():
        if len(store) >= first:
            return
        width = SHAKEN * min(k, 1) if k < 2 else store.width_of(highest) * min(1.0, k / (first - 1)) ** 0.5
        positions = structure.positions + rng.normal(0.0, 1.0, structure.positions.shape) * width
        if not any(np.allclose(positions, atoms.positions, atol=1e-7) for atoms in known):
            store.label(positions)


class Labelled:
    """Labelled geometries in a file, each on disk before it is used.

    Parameters
    ----------
    path : path
    structure : Atoms
    calculator : ASE calculator
    baseline : Baseline, optional
        What fails with it is not labelled.
    """

    def __init__(
        self, path: str | Path, structure: Atoms, calculator: BaseCalculator, baseline: Baseline | None = None
    ):
        self.path = check_writable(path, ".extxyz")
        self.beside = self.path.with_name(f"{self.path.stem}.failed.extxyz")
        missing = {"energy", "forces"} - set(calculator.implemented_properties)
        if missing:
            raise DataError(
                f"the reference calculator {type(calculator).__name__} has no {' and no '.join(sorted(missing))}"
            )
        self.structure, self.calculator = structure.copy(), calculator
        self.structure.set_constraint()
        self.baseline = baseline
        self.frames: list[Atoms] = self._read(self.path)
        self.failed: list[Atoms] = self._read(self.beside)
        self.in_a_row = 0

    def _read(self, path: Path) -> list[Atoms]:
        frames = []
        if path.exists():
            frames = read(path).to_atoms() if path == self.path else ase.io.read(path, ":", format="extxyz")
        if frames and not np.array_equal(frames[0].numbers, self.structure.numbers):
            raise DataError(f"{path}: geometries of {frames[0].get_chemical_formula()}, not of the structure given")
        return frames

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def dataset(self) -> Dataset:
        return read(self.frames)

    def width_of(self, energy: float) -> float:
        """How much to shake the structure, Å, for so much energy, eV, as the label nearest to it tells."""
        lowest = min(atoms.get_potential_energy() for atoms in self.frames)
        moved = [(((one.positions - self.structure.positions) ** 2).mean(), one) for one in self.frames]
        known = [(away, one.get_potential_energy() - lowest) for away, one in moved if away > 1e-8]
        if not known:
            return SHAKEN
        away, needed = min(known)
        return min(MOST_SHAKEN, float(np.sqrt(away * energy / max(needed, 1e-6))))

    def retry(self, budget: int) -> None:
        """Label what failed in an earlier run."""
        for atoms in self.failed[:]:
            if len(self) < budget and self.label(atoms.positions, atoms.cell.array, again=True):
                self.failed = [one for one in self.failed if one is not atoms]
                self._write(self.beside, self.failed)
        self.in_a_row = 0

    def label(self, positions: np.ndarray, cell: np.ndarray | None = None, again: bool = False) -> Dataset | None:
        """Compute, write and give the labels of a geometry; None where the calculator fails.

        Raises
        ------
        ConvergenceError
            If it fails again and again.
        """
        atoms = self.structure.copy()
        atoms.positions = np.round(positions, 8)  # as the file will have them
        if cell is not None:
            atoms.cell = cell
        wants_stress = bool(atoms.pbc.all()) and "stress" in self.calculator.implemented_properties
        try:
            if self.baseline is not None:  # which is cheaper
                self.baseline.evaluate(atoms.numbers, atoms.positions[None], atoms.cell.array, atoms.pbc)
            found = labels_of([self.calculator], atoms, wants_stress)
        except BaselineError as error:
            if again:
                return None
            self.failed.append(atoms)
            self._write(self.beside, self.failed)
            self.in_a_row += 1
            if self.in_a_row >= FAILURES:
                raise ConvergenceError(
                    f"the reference calculator failed on {FAILURES} geometries in a row ({error}); these are in "
                    f"{self.beside}, and tried again by the next run"
                ) from error
            return None
        self.in_a_row = 0
        stress = {} if found.stress is None else {"stress": found.stress}
        atoms.calc = SinglePointCalculator(atoms, energy=found.energy, forces=found.forces, **stress)
        self.frames.append(atoms)
        self._write(self.path, self.frames)
        return read([ase.io.read(self.path, -1, format="extxyz")])

    @staticmethod
    def _write(path: Path, frames: list[Atoms]) -> None:
        if not frames:
            path.unlink(missing_ok=True)
            return
        write_frames(frames, path)


@dataclass
class _Run:
    """Rounds of dynamics, each for one label."""

    store: Labelled
    options: dict[str, Any]
    temperatures: list[float]
    n_beads: int
    timestep_fs: float
    max_steps: int
    rng: np.random.Generator
    errors: list[float] = field(default_factory=list)
    states: dict[float, dict[str, np.ndarray]] = field(default_factory=dict)
    calm: int = 0

    def __post_init__(self):
        self._train()

    def _train(self) -> None:
        self.growing, self.n_chosen = Growing.start(self.store.dataset, **self.options), len(self.store)

    @property
    def named_temperatures(self) -> str:
        return ", ".join(f"{t:g}" for t in self.temperatures) + " K"

    @property
    def recent_error(self) -> float:
        """RMSE of the predictions for the last new labels; infinite while there are few."""
        recent = self.errors[-RECENT:]
        return float(np.sqrt(np.mean(np.square(recent)))) if len(recent) == RECENT else np.inf

    @property
    def limit(self) -> float:
        """The uncertainty at which walkers start anew."""
        typical = np.median(np.sqrt((self.growing.dataset.forces**2).mean((1, 2))))
        return MOST * float(typical)

    def round(self) -> bool:
        """Walk, and label something uncertain; whether there was anything."""
        while self.calm < CALM:
            seen = [one for temperature in self.temperatures for one in self._walk(temperature)]
            if max(one.uncertainty for one in seen) < WORTH:
                self.calm += 1
                continue
            self.calm = 0
            if self._label(self._drawn(seen)):
                return True
        return False

    def _drawn(self, seen: list[Seen]) -> Seen:
        """One of the more uncertain, of any temperature that has such."""
        worst = np.quantile([one.uncertainty for one in seen], UPPER, method="lower")
        above = [one for one in seen if one.uncertainty >= worst]
        temperature = self.rng.choice(np.unique([one.temperature for one in above]))
        above = [one for one in above if one.temperature == temperature]
        return above[self.rng.integers(len(above))]

    def _label(self, chosen: Seen) -> bool:
        """Label a geometry and take it in; whether the reference calculator could."""
        one = self.store.label(chosen.positions, chosen.cell)
        if one is None:
            return False
        prediction = self.growing.force_field.predict(one.positions[0], chosen.cell).forces
        error = float(np.sqrt(((prediction - one.forces[0]) ** 2).mean()))
        self.errors.append(error)
        self.account = (
            f"{len(self.store)} labels: {chosen.temperature:g} K, uncertainty {1e3 * chosen.uncertainty:.0f}, "
            f"error {1e3 * error:.0f} meV/Å"
        )
        self._take_in(one)
        return True

    def _take_in(self, one: Dataset) -> None:
        if len(self.store) >= AGAIN * self.n_chosen:
            self._train()
            return
        try:
            self.growing = self.growing.add(one)
        except FitError:  # nearly what is known: the hyper-parameters do not fit any more
            self._train()

    def final(self) -> None:
        """Choose hyper-parameters once more, with all labels."""
        if len(self.store) > self.n_chosen:
            self._train()

    def _walk(self, temperature: float) -> list[Seen]:
        """What walkers see; the next round goes on from where they are."""
        dynamics, seen = self._dynamics(temperature), []
        for _ in range(max(1, self.max_steps // LOOK)):
            try:
                dynamics.run(LOOK)
            except GDMLError:  # the force field is bad there
                dynamics = self._fresh(temperature)
                continue
            found, lost = self._look(dynamics, temperature)
            seen += found
            self._renew(dynamics, lost, temperature)
        self.states[temperature] = dynamics.state()
        return seen or [self._shaken(temperature)]

    def _shaken(self, temperature: float) -> Seen:
        """The structure, shaken, as what is surely uncertain."""
        structure = self.store.structure
        width = self.store.width_of(thermal_energy(structure, temperature, self.n_beads))
        cell = structure.cell.array if structure.pbc.any() else None
        return Seen(np.inf, self.rng.normal(structure.positions, width), cell, temperature)

    def _dynamics(self, temperature: float) -> RingPolymerMD:
        """Walkers where they were, as far as that is still good."""
        dynamics = self._fresh(temperature)
        if temperature in self.states:
            dynamics.start_from(self.states[temperature])
            self._renew(dynamics, self._look(dynamics, temperature)[1], temperature)
        return dynamics

    def _fresh(self, temperature: float) -> RingPolymerMD:
        """Walkers that start from labelled geometries."""
        return RingPolymerMD(
            [self._walker(temperature) for _ in range(WALKERS)],
            self.timestep_fs * units.fs,
            temperature_K=temperature,
            n_beads=self.n_beads,
            forces=self.growing.force_field,
            rng=self.rng,
        )

    def _renew(self, dynamics: RingPolymerMD, lost: np.ndarray, temperature: float) -> None:
        """Let lost walkers start from labelled geometries."""
        if lost.any():
            state, fresh = dynamics.state(), self._fresh(temperature).state()
            for name in {"q", "p", "cells"} & set(state):
                state[name][lost] = fresh[name][lost]
            dynamics.start_from(state)

    def _highest(self, temperature: float) -> float:
        """Energy of geometries that are of interest at most."""
        thermal = thermal_energy(self.store.structure, temperature, self.n_beads)
        return self.growing.dataset.energy.min() + HOT * thermal

    def _look(self, dynamics: RingPolymerMD, temperature: float) -> tuple[list[Seen], np.ndarray]:
        """A bead of each replica that is not too hot; and which replicas are that, or too uncertain."""
        field, beads = self.growing.force_field, self.rng.integers(self.n_beads, size=WALKERS)
        batch = dynamics.positions[np.arange(WALKERS), beads].cpu().numpy()
        cells = np.array([a.cell.array for a in dynamics.replicas]) if field.is_periodic else None
        hot = np.asarray(field.predict(batch, cells).energy) > self._highest(temperature)
        deviations = np.sqrt((field.uncertainty(batch, cells).forces ** 2).mean((1, 2)))
        seen = [
            Seen(float(deviations[k]), batch[k], None if cells is None else cells[k], temperature)
            for k in np.flatnonzero(~hot)
        ]
        return seen, hot | (deviations > self.limit)

    def _walker(self, temperature: float) -> Atoms:
        cool = np.flatnonzero(self.growing.dataset.energy <= self._highest(temperature))
        atoms = self.store.frames[self.rng.choice(cool)].copy()
        set_thermal_momenta(atoms, temperature, self.rng)
        return atoms
