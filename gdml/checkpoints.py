"""Checkpoints: what an unfinished training needs to go on, in a file that is always whole."""

import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from .descriptors import from_recipe
from .errors import CheckpointWarning, FormatError, OutputError
from .hyperparameters import Chosen
from .npz import Archive, check_writable, read_archive, refuse_another, write_archive
from .processes import Shares, Team
from .solvers import State

FORMAT = "gdml-checkpoint-2"
INTERVAL = 30.0  # seconds between two checkpoints


class Journal:
    """The state of a training, written to a file every now and then.

    Parameters
    ----------
    path : path or None
        Of the file (.npz); with None nothing is written.
    problem : dict of str
        All that the training depends on, in words; a checkpoint of another
        problem is refused.
    team : Team, optional
        Of processes that train together, whatever their number was before; the first
        of them writes and reads the file.

    Attributes
    ----------
    chosen : Chosen or None
        The hyper-parameters, as soon as they are chosen.
    compared : dict or None
        Errors with a baseline and without, as soon as they are known.
    rank : int
        Of the preconditioner; 0 before conjugate gradients begin.
    spent : int
        Iterations with preconditioners of lower rank.
    state : State or None
        Whole, where the training has several processes.
    errors : list of float
        On held-out forces so far.
    """

    def __init__(self, path: str | Path | None = None, problem: dict[str, str] | None = None, team: Team | None = None):
        self.problem, self.team = problem or {}, team or Team()
        self.path = None if path is None else self.team.agree(lambda: check_writable(path, ".npz"))
        self.chosen: Chosen | None = None
        self.compared: dict | None = None
        self.rank = self.spent = 0
        self.state: State | None = None
        self.errors: list[float] = []
        self._last = time.monotonic()

    @classmethod
    def open(
        cls, path: str | Path | None, problem: dict[str, str], resume: bool, team: Team | None = None
    ) -> "Journal":
        """A new journal, or with `resume` that of an unfinished training, where there is one.

        Raises
        ------
        OutputError
            If the place cannot be written to, or holds a checkpoint and is not to
            be resumed from.
        FormatError
            If the file is no checkpoint, or cut short.
        DataError
            If the checkpoint is of another problem; the message says what differs.
        """
        journal = cls(path, problem, team)
        archive = journal.team.agree(lambda: journal._read(resume))
        if archive is not None:
            journal._load(archive)
        return journal

    def _read(self, resume: bool) -> Archive | None:
        """What the file holds that is to be resumed from, if there is one."""
        if self.path is None or not self.path.exists():
            return None
        if not resume:
            raise OutputError(
                f"{self.path}: here is the checkpoint of an unfinished training; go on with it (--resume, or "
                "resume=True), or delete it to start anew"
            )
        return read_archive(self.path)

    def _load(self, archive: Archive) -> None:
        if archive.text("format") != FORMAT:
            raise FormatError(f"{self.path}: this is no checkpoint of a training; delete it, or give another name")
        known = json.loads(archive.text("problem"))
        refuse_another(self.path, known, self.problem, "this checkpoint is of another training")
        length_scale, error, noise = (float(archive[name]) for name in ("length_scale", "expected_error", "noise"))
        recipe = json.loads(archive.text("descriptor"))
        descriptor = from_recipe(recipe["recipe"], recipe["n_atoms"]) if recipe else None
        self.chosen = Chosen(length_scale, None if math.isnan(error) else error, noise, descriptor)
        self.compared = json.loads(archive.text("compared", "null"))
        if "x" in archive:
            self.rank, self.spent = int(archive["rank"]), int(archive["spent"])
            vectors = [torch.tensor(archive[name]) for name in ("x", "r", "p", "rz")]
            self.state = State(*vectors, archive["residuals"].tolist(), bool(archive["fresh"]))
            self.errors = archive["errors"].tolist()

    def note_choice(self, chosen: Chosen) -> None:
        """Keep the hyper-parameters, which may have taken long to choose."""
        self.chosen = chosen
        self._note_beginning()

    def note_comparison(self, compared: dict) -> None:
        """Keep the errors with a baseline and without, after the choice."""
        self.compared = compared
        self._note_beginning()

    def _note_beginning(self) -> None:
        """Write what is known before conjugate gradients, unless the file has more."""
        if self.state is None and self._is_due():
            self._write({})

    def note(self, rank: int, spent: int, state: State, errors: list[float], unknowns: Shares) -> None:
        """Keep where conjugate gradients are, if the last checkpoint is old enough."""
        if state.p is None or not self._is_due():
            return
        vectors = {name: unknowns.gather(getattr(state, name)).cpu() for name in ("x", "r", "p")}
        others = {"rz": state.rz.cpu(), "residuals": state.residuals, "fresh": state.fresh}
        self._write({"rank": rank, "spent": spent, "errors": errors} | vectors | others)

    def _is_due(self) -> bool:
        """Whether the last checkpoint is old enough, by the clock of the first process."""
        return self.path is not None and self.team.agree(lambda: time.monotonic() - self._last >= INTERVAL)

    def _write(self, fields: dict) -> None:
        if self.team.is_first:
            self._write_file(fields)
        self._last = time.monotonic()

    def _write_file(self, fields: dict) -> None:
        length_scale, error, noise, descriptor = self.chosen
        recipe = None if descriptor is None else {"recipe": descriptor.recipe(), "n_atoms": descriptor.n_atoms}
        chosen = {
            "length_scale": length_scale,
            "expected_error": math.nan if error is None else error,
            "noise": noise,
            "descriptor": json.dumps(recipe),
            "compared": json.dumps(self.compared),
        }
        fields = {"format": FORMAT, "problem": json.dumps(self.problem)} | chosen | fields
        try:
            write_archive(self.path, {name: np.asarray(value) for name, value in fields.items()})
        except OutputError as error:
            message = f"no checkpoint was written, the training goes on without: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
