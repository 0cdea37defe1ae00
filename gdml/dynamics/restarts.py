"""Runs that can be killed at any time: their state in a file that is always whole, and outputs that continue."""

import json
from pathlib import Path

import numpy as np
from ase.io import Trajectory

from ..errors import FormatError, OutputError
from ..npz import Archive, check_writable, read_archive, refuse_another, whole_file, write_archive
from .estimators import Record
from .ring_polymer import RingPolymerMD

FORMAT = "gdml-ring-polymer-1"


class Restart:
    """Writes the state of a run, and the samples so far; attach it: ``run.attach(restart, interval=1000)``.

    Parameters
    ----------
    run : RingPolymerMD
    path : path
        Of the file (.npz).
    record : Record, optional
        Samples, to be kept too; to be attached before this.
    also : dict of str, optional
        What else a run that goes on from the file must have in common with it.

    Raises
    ------
    OutputError
        If the place cannot be written to.
    """

    looks_at_atoms = False

    def __init__(
        self, run: RingPolymerMD, path: str | Path, record: Record | None = None, also: dict[str, str] | None = None
    ):
        self.run, self.path, self.record = run, check_writable(path, ".npz"), record
        self.also = also or {}

    def __call__(self) -> None:
        self.write(self.run.state())

    def write(self, state: dict[str, np.ndarray]) -> None:
        """Write a state, with the samples up to its step; at the start, observers will be called again."""
        step = int(state["step"])
        samples = {} if self.record is None or step == 0 else self.record.until(step)
        fields = {"format": FORMAT, "settings": json.dumps(self._settings)}
        fields |= {f"state_{name}": value for name, value in state.items()}
        fields |= {f"sample_{name}": value for name, value in samples.items()}
        write_archive(self.path, {name: np.asarray(value) for name, value in fields.items()})

    def resume(self) -> None:
        """Set the run, and the record, to what the file holds.

        Raises
        ------
        FormatError
            If the file is no such file, or is damaged.
        DataError
            If it is of another run; the message says what differs.
        """
        archive = _read(self.path)
        known = json.loads(archive.text("settings"))
        refuse_another(self.path, known, self._settings, "this restart file is of another run")
        self.run.restore(_under(archive, "state_"))
        if self.record is not None:
            self.record.restore(_under(archive, "sample_"))

    @property
    def _settings(self) -> dict[str, str]:
        return self.run.settings | self.also


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """The state in a restart file, for `RingPolymerMD.start_from`.

    Raises
    ------
    FormatError
        If the file is no restart file, or is damaged.
    """
    return _under(_read(Path(path)), "state_")


def _read(path: Path) -> Archive:
    archive = read_archive(path)
    if archive.text("format") != FORMAT:
        raise FormatError(f"{path}: this is no restart file of path-integral dynamics")
    return archive


def _under(archive: dict, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in archive.items() if name.startswith(prefix)}


class BeadWriter:
    """Writes all beads of the first replica to an ASE trajectory, P frames at a time.

    Attach it: ``run.attach(BeadWriter(run, "beads.traj"), interval=100)``.
    """

    def __init__(self, run: RingPolymerMD, path: str | Path, append: bool = False):
        self.run, self.path = run, check_writable(path, ".traj")
        if not append:
            self.path.unlink(missing_ok=True)

    def __call__(self) -> None:
        with Trajectory(self.path, "a") as trajectory:
            for bead in self.run.positions[0].cpu().numpy():
                frame = self.run.atoms.copy()
                frame.set_constraint()
                frame.arrays.pop("momenta", None)
                frame.positions = bead
                trajectory.write(frame)


def keep_frames(path: str | Path, n_frames: int) -> None:
    """Cut a trajectory to its first frames: what a killed run wrote after its last restart file is written again.

    None at all means that there is no such file yet.

    Raises
    ------
    OutputError
        If there are fewer.
    """
    path = check_writable(path, ".traj")
    if n_frames == 0:
        path.unlink(missing_ok=True)
        return
    if not path.exists():
        raise OutputError(
            f"{path}: the trajectory that the run is to go on with is not there; put it back, or start anew"
        )
    try:
        opened = Trajectory(path)
    except Exception as error:
        raise FormatError(f"{path}: this trajectory cannot be read ({error}); put it back, or start anew") from error
    with opened as old:
        if len(old) < n_frames:
            raise OutputError(f"{path}: {len(old)} frames, where {n_frames} are to be gone on from; start anew")
        if len(old) == n_frames:
            return
        with whole_file(path) as partial, Trajectory(partial, "w") as new:
            for k in range(n_frames):
                new.write(old[k])
