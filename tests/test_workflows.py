"""Learning curves, distillation, and the commands around training."""

import json

import ase.io
import numpy as np
import pytest

import gdml
from gdml import distillation
from gdml.cli import main
from gdml.errors import DataError, DynamicsError

pytestmark = pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")
FIXED = {"descriptor": "inverse-distances", "length_scale": 20.0}


def test_learning_curves(frames, tmp_path):
    curve = gdml.learning_curve(frames[:120], [40, 10], n_test=60, repeats=2, **FIXED)
    assert curve.sizes == [10, 40] and [len(d) for d in curve.metrics] == [2, 2]
    first, second = (one.forces_mae for one in curve.median_draws)
    assert second < 0.6 * first
    assert all(one.n_frames == 60 for draws in curve.metrics for one in draws)
    curve.save(tmp_path / "curve.json")
    content = json.loads((tmp_path / "curve.json").read_text())
    assert content["metrics"][1][0]["forces_mae"] == curve.metrics[1][0].forces_mae
    assert "40" in str(curve)


@pytest.mark.parametrize("sizes, n_test", [([10, 200], None), ([1], 10), ([10], 111), ([], 5)])
def test_curves_that_cannot_be_drawn(frames, sizes, n_test):
    with pytest.raises(DataError, match="cannot be drawn from 120"):
        gdml.learning_curve(frames[:120], sizes, n_test=n_test, **FIXED)


@pytest.fixture(scope="module")
def teacher(frames):
    return gdml.fit(frames[:60], baseline="zbl", **FIXED)


def test_distillation(teacher, frames):
    """The student follows its teacher, and has its constant; what it learned from is the teacher's."""
    found = gdml.distill(teacher, frames[:60], 50, temperatures=(200.0, 300.0), **FIXED)
    student, samples = found.force_field, found.samples
    assert student.baseline is None and len(samples) == 50
    expected = teacher.predict(samples.positions)
    np.testing.assert_allclose(samples.forces, expected.forces, atol=1e-6)
    np.testing.assert_allclose(samples.energy, expected.energy, atol=1e-6)
    assert found.against_teacher.n_frames == 5
    spread = np.abs(samples.forces).mean()
    assert found.against_teacher.forces_mae < 0.1 * spread
    assert found.against_teacher.energy_mae < 0.5 * samples.energy.std()
    assert student.details["teacher"] == {"n_train": 60, "baseline": "zbl"}
    assert found.ms_teacher > 0 < found.ms_student
    assert not any(teacher.outside(p) for p in samples.positions)


def test_teachers_that_fly_apart_are_given_up(teacher, frames, monkeypatch):
    monkeypatch.setattr(distillation, "RESTARTS", 2)
    with pytest.raises(DynamicsError, match="flew apart 3 times for 0 samples"):
        gdml.distill(teacher, frames[:60], 30, temperatures=(1e5,), **FIXED)
    with pytest.raises(DataError, match="too few to distill"):
        gdml.distill(teacher, frames[:60], 10)


def test_commands(frames, teacher, tmp_path, capsys):
    data, model, fast = tmp_path / "d.extxyz", tmp_path / "m.npz", tmp_path / "fast.npz"
    frames[:80].write(data)
    assert main(["select", str(data), "-n", "5", "-q"]) == 0
    assert len(capsys.readouterr().out.split()) == 5
    assert main(["select", str(data), "-n", "70", "--method", "energy", "-o", str(tmp_path / "s.extxyz"), "-q"]) == 0
    assert len(ase.io.read(tmp_path / "s.extxyz", ":")) == 70
    curve, picture = tmp_path / "c.json", tmp_path / "c.png"
    arguments = [
        "--sizes",
        "6",
        "12",
        "--descriptor",
        "inverse-distances",
        "-o",
        str(curve),
        "--plot",
        str(picture),
        "-q",
    ]
    assert main(["curve", str(data), *arguments, "--plot", str(picture)]) == 0
    assert json.loads(curve.read_text())["sizes"] == [6, 12] and picture.exists()
    teacher.save(model)
    arguments = ["-n", "24", "--temperature", "200", "-o", str(fast), "--test", str(data), "-q"]
    assert main(["distill", str(model), str(data), *arguments]) == 0
    out = capsys.readouterr().out
    assert "times faster" in out and "student against the reference" in out
    assert gdml.load(fast).details["teacher"]["baseline"] == "zbl"


def test_active_learning_from_the_command_line(frames, tmp_path, capsys):
    pytest.importorskip("tblite")
    data, model = tmp_path / "start.xyz", tmp_path / "m.npz"
    frames[int(frames.energy.argmin())].write(data)
    arguments = ["--calculator", "gfn2-xtb", "--budget", "9", "--temperature", "300,500", "-o", str(model)]
    assert main(["learn", str(data), *arguments]) == 0
    out = capsys.readouterr().out
    assert "9 labels: " in out and "9 labels in" in out
    assert len(ase.io.read(tmp_path / "m.labels.extxyz", ":")) == 9
    assert gdml.load(model).uncertainty(frames.positions[0]).forces.shape == (9, 3)


def test_uncertainty_from_the_command_line(frames, tmp_path, capsys):
    data, model, picture = tmp_path / "d.extxyz", tmp_path / "m.npz", tmp_path / "r.png"
    frames[:80].write(data)
    arguments = ["--n-train", "30", "--length-scale", "20", "--uncertainty", "-q", "-o", str(model)]
    assert main(["train", str(data), *arguments]) == 0
    assert "coverage of 90 % intervals" in capsys.readouterr().out
    frames[100:130].write(data)
    assert main(["test", str(model), str(data), "--reliability", str(picture)]) == 0
    assert "coverage of 90 % intervals" in capsys.readouterr().out and picture.exists()
    assert main(["test", str(tmp_path / "m.npz"), str(data), "--json"]) == 0


def test_a_pool_smaller_than_asked_for(frames, tmp_path, capsys):
    data = tmp_path / "d.extxyz"
    frames[:8].write(data)
    assert main(["select", str(data), "-n", "9"]) == 3
    assert "the pool has 8" in capsys.readouterr().err
