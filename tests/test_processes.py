"""Several processes with shares of the geometries, against one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones

import gdml
from gdml import checkpoints, processes
from gdml.cli import main
from gdml.data import ethanol
from gdml.errors import DataError, FitError, ProcessError
from gdml.preconditioners import FACTORS, neighbours
from gdml.processes import Shares, Team

from .together import run_together

# Trainings this small make energies that the package warns of.
pytestmark = pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")
SIZES = [(5, 2), (7, 1), (2, 3)]  # blocks, and rows of each


def shared_out(n: int, unit: int) -> dict[str, list]:
    """Each way to move rows, and what it should give, on this process."""
    team = Team.current()
    shares = Shares(team, n, unit)
    whole = torch.arange(n * unit * 3.0).view(-1, 3)
    part = whole[shares.own]
    same = torch.tensor([0, n * unit - 1, 1, 0])
    different = torch.arange(n * unit).roll(team.rank)[: 2 + team.rank]
    of_one = different[: 2 * team.is_first]
    in_step = list(shares.in_step(torch.arange(4 * team.rank), 3))
    return {
        "gather": [shares.gather(part), whole],
        "rows": [shares.rows(part, same), whole[same]],
        "fetch": [shares.fetch(part, different), whole[different]],
        "fetch by one": [shares.fetch(part, of_one), whole[of_one]],
        "sum": [shares.sum(torch.full((2, 2), 1.0 + team.rank)), torch.full((2, 2), 3.0)],
        "owned": [shares.owned(torch.arange(n * unit)).sum(), torch.tensor(len(part))],
        "in step": [torch.cat(in_step), torch.arange(4 * team.rank)],
        "as many": [torch.tensor(len(in_step)), torch.tensor(2)],
        "agreed": [torch.tensor(team.agree(lambda: 10 + team.rank)), torch.tensor(10)],
        "most and least": [torch.tensor([team.most(team.rank), team.least(team.rank)]), torch.tensor([1, 0])],
    }


def shared_out_in_all_sizes() -> list[dict]:
    return [shared_out(*sizes) for sizes in SIZES]


def test_rows_are_moved(tmp_path):
    for of_process in run_together(tmp_path, shared_out_in_all_sizes):
        for sizes, found in zip(SIZES, of_process, strict=True):
            for name, (value, expected) in found.items():
                torch.testing.assert_close(value, expected, msg=f"{name} {sizes}")


def test_alone():
    """One process does all of it without moving anything."""
    shares = Shares(Team(), 4, 2)
    whole, rows = torch.arange(8.0), torch.tensor([5, 0])
    assert shares.own == slice(0, 8) and shares.gather(whole) is whole and shares.sum(whole) is whole
    torch.testing.assert_close(shares.rows(whole, rows), whole[rows])
    torch.testing.assert_close(shares.fetch(whole, rows), whole[rows])
    with pytest.raises(ZeroDivisionError):
        Team().agree(lambda: 1 / 0)


ROCK_SALT = bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (2, 1, 1)


def crystal() -> gdml.Dataset:
    """Displaced rock salt: translations, and so Fourier sums; forces of a pair potential."""
    frames, rng = [], np.random.default_rng(0)
    for _ in range(10):
        atoms = ROCK_SALT.copy()
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.calc = LennardJones(sigma=2.4, epsilon=0.1, rc=5.0)
        atoms.get_stress()
        frames.append(atoms)
    return gdml.read(frames)


TIGHT = {"length_scale": 20.0, "solver": "cg", "rank": 40, "rtol": 1e-10, "noise": 1e-3}
CASES = {
    **{name: TIGHT | {"preconditioner": name, "neighbours": 3} for name in FACTORS if name != "svd"},
    "none": TIGHT | {"preconditioner": "none"},
    "no neighbours": TIGHT | {"neighbours": 0},
    "energies": TIGHT | {"use_energy": True},
    "baseline": TIGHT | {"baseline": "zbl"},
    "translations": TIGHT | {"length_scale": 2.0, "use_energy": True, "neighbours": 2},
}


def training(name: str) -> gdml.ForceField:
    return gdml.fit(crystal() if name == "translations" else ethanol()[:41], **CASES[name])


def all_trainings() -> list[gdml.ForceField]:
    return [training(name) for name in CASES]


def test_two_processes_train_as_one(tmp_path):
    first, second = run_together(tmp_path, all_trainings)
    for name, one, other in zip(CASES, first, second, strict=True):
        alone = training(name)
        np.testing.assert_array_equal(one.w, other.w, err_msg=name)
        np.testing.assert_allclose(one.w, alone.w, atol=1e-8 * np.abs(alone.w).max(), rtol=0, err_msg=name)
        assert one.offset == pytest.approx(alone.offset, abs=1e-7), name
        for key in ("iterations", "rank"):
            assert one.details["solver"][key] == alone.details["solver"][key], name


def automatic() -> list[gdml.ForceField]:
    """All that is chosen by itself: the length scale, the rank, the end by held-out forces."""
    frames = ethanol()
    validated = gdml.fit(frames[:41], validation=frames[200:211], length_scale=20.0)
    return [gdml.fit(frames[:41]), validated]


def test_what_is_chosen_is_chosen_together(tmp_path, monkeypatch):
    both = run_together(tmp_path, automatic)
    for of_first, of_second, alone in zip(*both, automatic(), strict=True):
        np.testing.assert_array_equal(of_first.w, of_second.w)
        assert of_first.length_scale == alone.length_scale
        assert of_first.details["solver"]["why"] == "2 processes"
        found, expected = (ff.predict(ethanol().positions[220:]).forces for ff in (of_first, alone))
        assert np.abs(found - expected).mean() < 0.1 * np.abs(expected - ethanol().forces[220:]).mean()


def wrong_trainings() -> list[Exception]:
    frames, found = ethanol(), []
    for data, settings in (
        (frames[[0, 0, 1]], {}),
        (frames[:1], {}),
        (frames[:20], {"solver": "cholesky"}),
        (frames[:20], {"solver": "cg", "preconditioner": "svd"}),
        (frames[:20], {"solver": "cg", "rtol": 1e-14, "noise": 0.0, "rank": 5, "length_scale": 20.0}),
    ):
        with pytest.raises(gdml.GDMLError) as caught:
            gdml.fit(data, **settings)
        found.append(caught.value)
    return found


def test_errors_reach_all_processes(tmp_path):
    """The same on each, so that none is left waiting."""
    for errors in run_together(tmp_path, wrong_trainings):
        expected = [
            (DataError, "geometries occur twice"),
            (DataError, "not enough to train on"),
            (ProcessError, "the closed form is for one process"),
            (ProcessError, "'svd' builds the whole matrix"),
            (FitError, ""),
        ]
        for error, (kind, message) in zip(errors, expected, strict=True):
            assert isinstance(error, kind) and message in str(error)


def too_many() -> gdml.ForceField:
    return gdml.fit(ethanol()[:2])


def test_more_processes_than_geometries(tmp_path):
    for error in run_together(tmp_path, too_many, size=3):
        assert isinstance(error, ProcessError) and "3 processes share out 2 geometries" in str(error)


def dies(checkpoint: Path) -> None:
    """The second process is gone after a few iterations."""
    checkpoints.INTERVAL, original, calls = 0.0, checkpoints.Journal.note, []

    def note(journal: checkpoints.Journal, *arguments) -> None:
        original(journal, *arguments)
        calls.append(journal)
        if len(calls) == 5 and not journal.team.is_first:
            os._exit(9)

    checkpoints.Journal.note = note
    gdml.fit(ethanol()[:41], **TIGHT, checkpoint=checkpoint)


def test_a_process_that_dies_stops_the_others(tmp_path, capfd):
    path = tmp_path / "t.npz"
    error, nothing = run_together(tmp_path, dies, path)
    assert nothing is None
    assert isinstance(error, ProcessError) and "has stopped" in str(error) and "--resume" in str(error)
    resumed, alone = (
        gdml.fit(ethanol()[:41], **TIGHT, checkpoint=p, resume=True) for p in (path, tmp_path / "new.npz")
    )
    assert resumed.details["solver"]["iterations"] == alone.details["solver"]["iterations"]
    np.testing.assert_allclose(resumed.w, alone.w, atol=1e-8 * np.abs(alone.w).max(), rtol=0)


def in_small_steps() -> gdml.ForceField:
    """Shares of different sizes, and so steps in which some processes have nothing to do."""
    neighbours.TILE = 1
    return gdml.fit(crystal(), **CASES["translations"] | {"use_stress": True}, reference=ROCK_SALT)


def test_uneven_shares(tmp_path, monkeypatch):
    """Ten geometries for three processes, one block at a time."""
    found = run_together(tmp_path, in_small_steps, size=3)
    alone = gdml.fit(crystal(), **CASES["translations"] | {"use_stress": True}, reference=ROCK_SALT)
    for one in found:
        np.testing.assert_allclose(one.w, alone.w, atol=1e-8 * np.abs(alone.w).max(), rtol=0)


def odd_trainings() -> list:
    """A single geometry to validate with; then different settings, data and precisions."""
    frames, first = ethanol(), Team.current().is_first
    found = [gdml.fit(frames[:12], validation=frames[100:101], **TIGHT)]
    for data, settings in (
        (frames[:20], {"noise": 1e-3 if first else 1e-2}),
        (frames[:20] if first else frames[1:21], {}),
        (frames[:20] if first else frames[:19], {}),
        (frames[:20], {"dtype": "float64" if first else "float32"}),
    ):
        with pytest.raises(ProcessError) as caught:
            gdml.fit(data, **TIGHT | settings)
        found.append(str(caught.value))
    return found


def test_what_processes_do_not_share(tmp_path):
    """Each is named, on all of them."""
    for rank, (force_field, *messages) in enumerate(run_together(tmp_path, odd_trainings)):
        assert len(force_field.y) == 12
        for message, name in zip(messages, ("noise", "geometries", "geometries", "dtype"), strict=True):
            assert "do not train on the same" in message
            assert (name if rank else "another one differs") in message


def test_a_rank_alone_is_none(tmp_path, monkeypatch):
    """As some batch systems set it for single programs."""
    monkeypatch.setenv("RANK", "1")
    assert processes.is_first()
    with processes.started_together() as team:
        assert team.size == 1


def test_on_the_command_line(tmp_path, capsys):
    data, models = tmp_path / "ethanol.extxyz", [tmp_path / "one.npz", tmp_path / "two.npz"]
    ethanol()[:60].write(data)
    arguments = ["train", data, "--n-train", "40", "--n-valid", "10", "--length-scale", "20", "--solver", "cg"]
    arguments += [
        "--noise",
        "1e-3",
        "--rtol",
        "1e-10",
        "--quiet",
        "--learning-curve",
        tmp_path / "curve.png",
        "--output",
    ]
    assert main([*map(str, [*arguments, models[0]])]) == 0
    alone = capsys.readouterr()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gdml"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, [*arguments, models[1]])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for out, err in (alone, (done.stdout, done.stderr)):
        assert out.count("validation: ") == 1 and out.count("n = 40: ") == 1
        assert "gdml: error" not in err
    one, two = map(gdml.load, models)
    np.testing.assert_allclose(one.w, two.w, atol=1e-8 * np.abs(one.w).max(), rtol=0)
