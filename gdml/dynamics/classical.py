"""Classical molecular dynamics through ASE, watched while it runs."""

import warnings
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
    energy_drift : float
        Slope of the total energy, eV per atom and ps. Meaningful for NVE.
    energy_fluctuation : float
        Standard deviation of the total energy about that slope, eV per atom.
    n_outside : int
        Force calls outside the region of the training data.
    """

    steps: int
    time_fs: float
    temperature_K: float
    temperature_std_K: float
    energy_drift: float
    energy_fluctuation: float
    n_outside: int

    def __str__(self) -> str:
        return (
            f"{self.steps} steps, {self.time_fs:g} fs; temperature {self.temperature_K:.0f} ± "
            f"{self.temperature_std_K:.0f} K; total energy drifts {1e3 * self.energy_drift:.3g} meV/atom/ps, "
            f"fluctuates {1e3 * self.energy_fluctuation:.2g} meV/atom; "
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
    """Run molecular dynamics of a molecule; `atoms` end in the last state.

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
        ASE trajectory of every `interval`-th step.
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
    for name, value in (("temperature_K", temperature_K), ("timestep_fs", timestep_fs), ("steps", steps)):
        if not value > 0:
            raise DataError(f"{name} must be positive, but it is {value}")
    if trajectory is not None:
        check_writable(trajectory)
    calculator = GDMLCalculator(force_field)
    atoms.calc = calculator
    if not atoms.constraints:
        atoms.set_constraint(FixCom())
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature_K=temperature_K, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = _integrator(atoms, ensemble, timestep_fs, temperature_K, friction_per_fs, rng)
    samples = []

    def sample() -> None:
        samples.append((atoms.get_total_energy(), atoms.get_temperature()))
        _check_state(samples[-1], temperature_K, dynamics.nsteps, calculator)

    writer = None if trajectory is None else Trajectory(trajectory, "w", atoms)
    try:
        if writer is not None:
            dynamics.attach(writer.write, interval=interval)
        dynamics.attach(sample, interval=interval)
        with progress_bar("dynamics", progress) as bar, warnings.catch_warnings():
            warnings.simplefilter("once", ExtrapolationWarning)
            if bar:
                dynamics.attach(lambda: bar(dynamics.nsteps, steps), interval=interval)
            dynamics.run(steps)
    finally:
        if writer is not None:
            writer.close()
    return _report(np.array(samples), len(atoms), steps, timestep_fs, interval, calculator.n_outside)


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
        f"the molecule flew apart: at step {step} the temperature is {temperature:.3g} K (target {target:g} K), and "
        f"{calculator.n_outside} force calls were outside the training region; use a shorter timestep, or add "
        "geometries from this temperature to the training data"
    )


def _report(samples, n_atoms, steps, timestep_fs, interval, n_outside) -> MDReport:
    energy, temperature = samples.T
    drift = fluctuation = 0.0
    if len(energy) > 1:
        time_ps = 1e-3 * timestep_fs * interval * np.arange(len(energy))
        line = np.polynomial.Polynomial.fit(time_ps, energy / n_atoms, 1)
        drift = float(line.convert().coef[1]) if len(line.convert().coef) > 1 else 0.0
        fluctuation = float(np.std(energy / n_atoms - line(time_ps)))
    return MDReport(
        steps=steps,
        time_fs=steps * timestep_fs,
        temperature_K=float(temperature.mean()),
        temperature_std_K=float(temperature.std()),
        energy_drift=drift,
        energy_fluctuation=fluctuation,
        n_outside=n_outside,
    )
