"""A whole run of path-integral molecular dynamics: outputs, restart, progress."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom

from ..errors import DataError, ExtrapolationWarning, OutputError
from ..force_field import ForceField
from ..npz import check_writable
from ..progress import progress_bar
from .classical import check_settings
from .estimators import Record
from .restarts import BeadWriter, Restart, keep_frames, read_state
from .ring_polymer import RingPolymerMD


def run_pimd(
    force_field: ForceField,
    atoms: Atoms,
    *,
    steps: int,
    temperature_K: float,
    n_beads: int = 32,
    timestep_fs: float = 0.5,
    thermostat: str = "pile-l",
    propagator: str = "cayley",
    tau_fs: float = 100.0,
    pressure_GPa: float | None = None,
    seed: int = 0,
    interval: int = 10,
    trajectory: str | Path | None = None,
    bead_trajectory: str | Path | None = None,
    restart: str | Path | None = None,
    restart_interval: int = 1000,
    resume: bool = False,
    start: str | Path | None = None,
    heat_capacity: bool = False,
    progress: bool = False,
) -> Record:
    """Run path-integral molecular dynamics of a molecule or crystal; `atoms` end as the last centroid.

    See `RingPolymerMD` for the settings, and for what it does beyond.

    Parameters
    ----------
    force_field : ForceField
    atoms : Atoms
        Start of all beads; momenta are drawn at the temperature, unless there are
        some. The centre of mass is held, unless there are other constraints.
    steps : int
        In all, those of the interrupted run included.
    interval : int
        Steps between samples, and between frames of the trajectory.
    trajectory, bead_trajectory : path, optional
        ASE trajectories (``.traj``) of the centroid, and of all beads (P frames
        each `interval`-th step).
    restart : path, optional
        File (.npz) from which the run can go on, written every `restart_interval`
        steps, at the end, and when it stops for any reason.
    resume : bool
        Whether to go on from `restart`, where it exists.
    start : path, optional
        Restart file of another run of as many beads, whose beads this run starts from:
        for "t-rpmd" and "none", which do not bring beads into equilibrium.
    heat_capacity : bool
        Whether to sample for it, for two more force evaluations a sample.

    Returns
    -------
    Record
        Samples; see ``Record.averages``.

    Raises
    ------
    ModelMismatchError, DataError, OutputError
        For what does not fit, found before the run.
    DynamicsError
        If beads leave every meaningful region; the last good state is kept.
    """
    force_field.check_atoms(atoms.numbers)
    check_settings(steps=steps, interval=interval, restart_interval=restart_interval, timestep_fs=timestep_fs)
    for path in filter(None, (trajectory, bead_trajectory)):
        check_writable(path, ".traj")
    if not atoms.constraints:
        atoms.set_constraint(FixCom())
    resume = _resumes(resume, restart, trajectory, bead_trajectory)
    run = RingPolymerMD(
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature_K,
        n_beads=n_beads,
        thermostat=thermostat,
        propagator=propagator,
        tau=tau_fs * units.fs,
        pressure=None if pressure_GPa is None else pressure_GPa * units.GPa,
        forces=force_field,
        rng=np.random.default_rng(seed),
        trajectory=trajectory,
        append_trajectory=resume,
        loginterval=interval,
    )
    record = Record(run, heat_capacity)
    outputs = {"trajectory": _name(trajectory), "bead_trajectory": _name(bead_trajectory)}
    also = {"interval": str(interval), "heat_capacity": str(heat_capacity)} | outputs
    keeper = None if restart is None else Restart(run, restart, record, also)
    if resume:
        keeper.resume()
        if run.nsteps > steps:
            raise DataError(f"{restart}: this run has {run.nsteps} steps already, more than the {steps} in all")
        _cut(run, interval, trajectory, bead_trajectory)
    elif start is not None:
        run.start_from(read_state(start))
    run.attach(record, interval=interval)
    if bead_trajectory is not None:
        run.attach(BeadWriter(run, bead_trajectory, append=resume), interval=interval)
    with _shown(run, record, steps, interval, progress), _kept(run, keeper, restart_interval):
        run.run(steps - run.nsteps)
    return record


def _resumes(resume: bool, restart, trajectory, bead_trajectory) -> bool:
    """Whether there is a run to go on with; raise rather than overwrite one."""
    if resume and restart is None:
        raise DataError("to resume, say from which restart file")
    there = restart is not None and Path(restart).exists()
    if there and not resume:
        raise OutputError(f"{restart}: here is a run already; go on with it (--resume, or resume=True), or delete it")
    old = [path for path in (trajectory, bead_trajectory) if path is not None and Path(path).exists()]
    if resume and not there and old:
        raise OutputError(f"{restart}: there is no such restart file, and {old[0]} would be lost; give its right name")
    return there


def _name(path: str | Path | None) -> str:
    return "none" if path is None else Path(path).name


def _cut(run: RingPolymerMD, interval: int, trajectory, bead_trajectory) -> None:
    n_frames = run.nsteps // interval + 1 if run.nsteps else 0
    for path, each in ((trajectory, 1), (bead_trajectory, run.n_beads)):
        if path is not None:
            keep_frames(path, each * n_frames)


@contextlib.contextmanager
def _kept(run: RingPolymerMD, keeper: Restart | None, interval: int) -> Iterator[None]:
    """Write the restart file now and then, at the end, and where the run breaks off."""
    if keeper is None:
        yield
        return
    run.attach(keeper, interval=interval)
    try:
        yield
    except BaseException:  # Ctrl-C too: then the step under way is dropped
        keeper.write(run.last_good)
        raise
    keeper()


@contextlib.contextmanager
def _shown(run: RingPolymerMD, record: Record, steps: int, interval: int, enabled: bool) -> Iterator[None]:
    """A bar with the estimators of the moment."""
    with progress_bar("path-integral dynamics", enabled) as bar, warnings.catch_warnings():
        warnings.simplefilter("once", ExtrapolationWarning)
        if bar:
            run.attach(lambda: bar(run.nsteps, steps, record.line()), interval=interval)
        yield
