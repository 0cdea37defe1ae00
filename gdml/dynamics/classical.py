"""Classical molecular dynamics through ASE, watched while it runs."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.io import Trajectory
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ..calculator import GDMLCalculator
from ..errors import DataError, DynamicsError, ExtrapolationWarning
from ..force_field import ForceField
from ..npz import check_writable
from ..progress import progress_bar
from .forces import check_precision_error

MAX_TEMPERATURE = 20.0  # times the target: atoms are flying apart


@dataclass(frozen=True)
class MDReport:
    """What a run of molecular dynamics was like.

    Attributes
    ----------
    steps : int
    time_fs : float
    temperature_K : float
        Mean kinetic temperature.
    temperature_std_K : float
    energy_drift : float or None
        Slope of the total energy, eV per atom and ps. None with a thermostat.
    energy_fluctuation : float or None
        Standard deviation of the total energy about that slope, eV per atom.
    n_outside : int
        Force calls outside the region of the training data.
    """

    steps: int
    time_fs: float
    temperature_K: float
    temperature_std_K: float
    energy_drift: float | None
    energy_fluctuation: float | None
    n_outside: int

    def __str__(self) -> str:
        conserved = ""
        if self.energy_drift is not None:
            conserved = (
                f"total energy drifts {1e3 * self.energy_drift:.3g} meV/atom/ps, "
                f"fluctuates {1e3 * self.energy_fluctuation:.2g} meV/atom; "
            )
        return (
            f"{self.steps} steps, {self.time_fs:g} fs; temperature {self.temperature_K:.0f} ± "
            f"{self.temperature_std_K:.0f} K; {conserved}"
            f"{self.n_outside} force calls outside the training region"
        )


def run_md(
    force_field: ForceField,
    atoms: Atoms,
    *,
    steps: int,
    temperature_K: float,
    timestep_fs: float = 0.5,
    ensemble: str = "langevin",
    friction_per_fs: float = 0.01,
    seed: int = 0,
    trajectory: str | Path | None = None,
    interval: int = 10,
    progress: bool = False,
) -> MDReport:
    """Run molecular dynamics of a molecule or crystal; `atoms` end in the last state.

    Parameters
    ----------
    force_field : ForceField
    atoms : Atoms
        Start; momenta are drawn at the temperature, with no overall motion.
        The centre of mass is held, unless there are other constraints.
    steps : int
    temperature_K : float
    timestep_fs : float
    ensemble : {"langevin", "nve"}
    friction_per_fs : float
        Of the Langevin thermostat.
    seed : int
    trajectory : path, optional
        ASE trajectory (``.traj``) of every `interval`-th step.
    interval : int
        Steps between samples of the report and of the trajectory.
    progress : bool

    Returns
    -------
    MDReport

    Raises
    ------
    ModelMismatchError
        If the force field is for other atoms.
    OutputError
        If the trajectory cannot be written, found before the run.
    DynamicsError
        If the molecule flies apart; the trajectory up to there is kept.
    """
    force_field.check_atoms(atoms.numbers)
    check_settings(temperature_K=temperature_K, timestep_fs=timestep_fs, steps=steps, interval=interval)
    if not 0 <= friction_per_fs < np.inf:
        raise DataError(f"friction_per_fs must not be negative, but it is {friction_per_fs}")
    interval = min(interval, steps)
    if trajectory is not None:
        check_writable(trajectory, ".traj")
    check_precision_error(force_field, atoms.positions[None], atoms.cell.array)
    calculator = GDMLCalculator(force_field)
    atoms.calc = calculator
    if not atoms.constraints:
        atoms.set_constraint(FixCom())
    rng = np.random.default_rng(seed)
    set_thermal_momenta(atoms, temperature_K, rng)
    dynamics = _integrator(atoms, ensemble, timestep_fs, temperature_K, friction_per_fs, rng)
    samples = []

    def sample() -> None:
        samples.append((atoms.get_total_energy(), atoms.get_temperature()))
        _check_state(samples[-1], temperature_K, dynamics.nsteps, calculator)

    _run(dynamics, atoms, steps, interval, sample, trajectory, progress)
    energy, temperature = np.array(samples).T
    drift, fluctuation = (None, None) if ensemble != "nve" else _drift(energy / len(atoms), timestep_fs * interval)
    return MDReport(
        steps=steps,
        time_fs=steps * timestep_fs,
        temperature_K=float(temperature.mean()),
        temperature_std_K=float(temperature.std()),
        energy_drift=drift,
        energy_fluctuation=fluctuation,
        n_outside=calculator.n_outside,
    )


def _run(dynamics, atoms, steps, interval, sample, trajectory, progress) -> None:
    """Run to the end; what the trajectory holds is kept also where the run fails."""
    writer = None if trajectory is None else Trajectory(trajectory, "w", atoms)
    try:
        if writer is not None:
            dynamics.attach(writer.write, interval=interval)
        dynamics.attach(sample, interval=interval)  # after the writer, which so has the step that fails
        with progress_bar("dynamics", progress) as bar, warnings.catch_warnings():
            warnings.simplefilter("once", ExtrapolationWarning)
            if bar:
                dynamics.attach(lambda: bar(dynamics.nsteps, steps), interval=interval)
            dynamics.run(steps)
    finally:
        if writer is not None:
            writer.close()


def set_thermal_momenta(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Momenta of a temperature, without motion of the whole; nor rotation, where nothing is periodic."""
    thermalize_momenta(atoms, temperature_K=temperature_K, rng=rng)
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raise unless these are some temperatures, K.

    Raises
    ------
    DataError
    """
    if np.ndim(temperatures) != 1 or not len(temperatures):
        raise DataError(f"temperatures are a list such as [300, 600], not {temperatures!r}")
    for temperature in temperatures:
        check_settings(temperature=temperature)


def check_settings(**settings: float) -> None:
    """Raise unless all are positive and finite."""
    for name, value in settings.items():
        if not 0 < value < np.inf:
            raise DataError(f"{name} must be positive and finite, but it is {value}")


def _integrator(atoms, ensemble, timestep_fs, temperature_K, friction_per_fs, rng) -> MolecularDynamics:
    timestep = timestep_fs * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, timestep=timestep)
    if ensemble == "langevin":
        friction = friction_per_fs / units.fs
        return Langevin(atoms, timestep=timestep, temperature_K=temperature_K, friction=friction, fixcm=False, rng=rng)
    raise DataError(f"the ensemble is 'langevin' or 'nve', not {ensemble!r}")


def _check_state(state: tuple[float, float], target: float, step: int, calculator: GDMLCalculator) -> None:
    energy, temperature = state
    if np.isfinite(energy) and temperature < MAX_TEMPERATURE * target:
        return
    raise DynamicsError(
        f"the atoms flew apart: at step {step} the temperature is {temperature:.3g} K (target {target:g} K), and "
        f"{calculator.n_outside} force calls were outside the training region; use a shorter timestep, or add "
        "geometries from this temperature to the training data"
    )


def _drift(energy: np.ndarray, interval_fs: float) -> tuple[float | None, float | None]:
    """Slope (per ps) of a line through the samples, and the spread about it; None from fewer than three."""
    if len(energy) < 3:
        return None, None
    time_ps = 1e-3 * interval_fs * np.arange(len(energy))
    slope, start = np.polyfit(time_ps, energy, 1)
    return float(slope), float(np.std(energy - start - slope * time_ps))
