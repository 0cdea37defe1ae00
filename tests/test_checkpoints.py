"""A training that is killed goes on where it was; a checkpoint is never trusted blindly."""

import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import gdml
from gdml import checkpoints
from gdml.cli import main
from gdml.errors import BaselineWarning, CheckpointWarning, DataError, FitError, FormatError, OutputError

SETTINGS = {"length_scale": 20.0, "solver": "cg", "rtol": 1e-6, "rank": 60}


class Killed(Exception):
    pass


@pytest.fixture
def often(monkeypatch):
    """A checkpoint in each iteration."""
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)


def kill_after(monkeypatch, count):
    """End the program, as it were, after so many checkpoints."""
    written, original = [], checkpoints.write_archive

    def write(path, fields):
        original(path, fields)
        written.append(path)
        if len(written) == count:
            raise Killed

    monkeypatch.setattr(checkpoints, "write_archive", write)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("validate", [False, True])
def test_the_same_answer_as_uninterrupted(frames, tmp_path, monkeypatch, often, count, validate):
    settings = SETTINGS | {"validation": frames[200:] if validate else None}
    path = tmp_path / "t.npz"
    whole = gdml.fit(frames[:40], **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, count)
        with pytest.raises(Killed):
            gdml.fit(frames[:40], **settings, checkpoint=path)
    resumed = gdml.fit(frames[:40], **settings, checkpoint=path, resume=True)
    assert resumed.details["solver"]["iterations"] == whole.details["solver"]["iterations"]
    np.testing.assert_array_equal(resumed.w, whole.w)


def test_after_the_rank_has_grown(frames, tmp_path, monkeypatch, often):
    monkeypatch.setattr(gdml.cost.Problem, "patience", lambda problem, rank: 4)
    settings = SETTINGS | {"rank": "auto"}
    whole = gdml.fit(frames[:40], **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            gdml.fit(frames[:40], **settings, checkpoint=tmp_path / "t.npz")
    resumed = gdml.fit(frames[:40], **settings, checkpoint=tmp_path / "t.npz", resume=True)
    assert resumed.details["solver"]["rank"] == whole.details["solver"]["rank"]
    np.testing.assert_array_equal(resumed.w, whole.w)


def test_the_length_scale_is_not_chosen_again(frames, tmp_path, monkeypatch, often):
    kill_after(monkeypatch, 1)
    settings = {"solver": "cg", "checkpoint": tmp_path / "t.npz"}
    with pytest.raises(Killed):
        gdml.fit(frames[:20], **settings)
    monkeypatch.setattr(gdml.training, "find_hyperparameters", None)
    assert gdml.fit(frames[:20], **settings, resume=True).length_scale > 0


@pytest.mark.parametrize("n, is_warned_of", [(20, True), (4, False)])
def test_the_baseline_is_not_judged_again(frames, tmp_path, monkeypatch, often, n, is_warned_of):
    """What was found is in the force field and is warned of as before; of four geometries, that nothing was."""
    settings = {"solver": "cg", "baseline": "zbl", "length_scale": 20.0}
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        whole = gdml.fit(frames[:n], **settings)
    assert any(w.category is BaselineWarning for w in before) == is_warned_of
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            gdml.fit(frames[:n], **settings, checkpoint=tmp_path / "t.npz")
    monkeypatch.setattr(gdml.training, "_compared", None)
    with warnings.catch_warnings(record=True) as after:
        warnings.simplefilter("always")
        resumed = gdml.fit(frames[:n], **settings, checkpoint=tmp_path / "t.npz", resume=True)
    assert ("baseline_errors" in whole.details) == is_warned_of
    for key in ("baseline", "baseline_errors"):
        assert resumed.details.get(key) == whole.details.get(key)
    assert [str(w.message) for w in after] == [str(w.message) for w in before]


@pytest.mark.filterwarnings("ignore::gdml.errors.BaselineWarning")
def test_what_was_reached_is_not_written_over(frames, tmp_path, monkeypatch, often):
    """A training that goes on and is killed again at once has lost nothing."""
    settings = SETTINGS | {"baseline": "zbl", "checkpoint": tmp_path / "t.npz"}
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            gdml.fit(frames[:20], **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            gdml.fit(frames[:20], **settings, resume=True)
    with np.load(tmp_path / "t.npz") as archive:
        assert "x" in archive.files and "without" in str(archive["compared"])


def unfinished(frames, path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            gdml.fit(frames[:40], **SETTINGS, checkpoint=path)


def test_a_checkpoint_is_not_overwritten_unasked(frames, tmp_path, monkeypatch, often):
    path = tmp_path / "t.npz"
    unfinished(frames, path, monkeypatch)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="unfinished training; go on with it .--resume"):
        gdml.fit(frames[:40], **SETTINGS, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rtol": 1e-5}, "rtol .1e-06 there, 1e-05 here"),
        ({"length_scale": 21.0}, "length_scale"),
        ({"noise": 1e-9}, "noise"),
        ({"symmetry": "none"}, "symmetry .order 6"),
        ({"use_energy": True}, "use_energy"),
    ],
)
def test_another_problem(frames, tmp_path, monkeypatch, often, change, message):
    path = tmp_path / "t.npz"
    unfinished(frames, path, monkeypatch)
    with pytest.raises(DataError, match=message):
        gdml.fit(frames[:40], **SETTINGS | change, checkpoint=path, resume=True)
    with pytest.raises(DataError, match="geometries"):
        gdml.fit(frames[1:41], **SETTINGS, checkpoint=path, resume=True)


@pytest.mark.parametrize("length", [0, 100, 2000])
def test_cut_short(frames, tmp_path, monkeypatch, often, length):
    path = tmp_path / "t.npz"
    unfinished(frames, path, monkeypatch)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FormatError, match="cut short"):
        gdml.fit(frames[:40], **SETTINGS, checkpoint=path, resume=True)


def test_another_file(frames, force_field, tmp_path):
    force_field.save(tmp_path / "model.npz")
    with pytest.raises(FormatError, match="no checkpoint of a training"):
        gdml.fit(frames[:40], **SETTINGS, checkpoint=tmp_path / "model.npz", resume=True)


def test_a_full_disk_does_not_end_the_training(frames, tmp_path, monkeypatch, often):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.warns(CheckpointWarning, match="goes on without.*No space left"):
        force_field = gdml.fit(frames[:40], **SETTINGS, checkpoint=tmp_path / "t.npz")
    np.testing.assert_array_equal(force_field.w, gdml.fit(frames[:40], **SETTINGS).w)
    assert os.listdir(tmp_path) == []


def test_a_training_that_fails_keeps_its_checkpoint(frames, tmp_path, monkeypatch, often):
    monkeypatch.setattr(sys.modules["gdml.solvers.cg"], "PATIENCE", 5)
    with pytest.raises(FitError, match="did not converge"):
        gdml.fit(frames[:40], **SETTINGS | {"rtol": 1e-15}, checkpoint=tmp_path / "t.npz")
    assert (tmp_path / "t.npz").exists()


PROGRAM = """
import sys
from gdml import checkpoints
from gdml.cli import main
checkpoints.INTERVAL = 0.0
sys.exit(main(sys.argv[1:]))
"""


def test_killed_and_resumed_on_the_command_line(frames, tmp_path, capsys):
    """SIGKILL while it iterates: the model is the same, and the checkpoint is gone in the end."""
    frames.write(tmp_path / "e.extxyz")

    def command(rtol, model):
        settings = ["--length-scale", "20", "--solver", "cg", "--rtol", rtol, "--rank", "20", "-q", "--n-train", "60"]
        return ["train", str(tmp_path / "e.extxyz"), *settings, "-o", str(tmp_path / model)]

    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *command("1e-7", "m.npz")])
    checkpoint, deadline = tmp_path / "m.checkpoint.npz", time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not (tmp_path / "m.npz").exists()
    assert main([*command("1e-6", "m.npz"), "--resume"]) == 3
    assert "differs in rtol" in capsys.readouterr().err
    assert main(command("1e-7", "m.npz")) == 5
    assert "--resume" in capsys.readouterr().err
    assert main([*command("1e-7", "m.npz"), "--resume"]) == 0 and not checkpoint.exists()
    assert main(command("1e-7", "whole.npz")) == 0
    resumed, whole = (gdml.load(tmp_path / name) for name in ("m.npz", "whole.npz"))
    np.testing.assert_allclose(resumed.w, whole.w, rtol=0, atol=1e-5 * np.abs(whole.w).max())
