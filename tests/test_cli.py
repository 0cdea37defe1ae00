"""The command line, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time

import ase.io
import numpy as np
import pytest

import gdml
from gdml.cli import main

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def files(frames, tmp_path_factory):
    """A file of geometries, and a model trained on some of them."""
    folder = tmp_path_factory.mktemp("cli")
    frames.write(folder / "ethanol.extxyz")
    code = main(
        ["train", str(folder / "ethanol.extxyz"), "--n-train", "40", "--n-valid", "30", "--length-scale", "20", "-q",
         "-o", str(folder / "model.npz"), "--plot", str(folder / "parity.png"),
         "--learning-curve", str(folder / "curve.svg")]
    )  # fmt: skip
    assert code == 0
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_descriptors_by_name(frames, tmp_path, capsys):
    frames[:14].write(tmp_path / "few.extxyz")
    command = ["train", str(tmp_path / "few.extxyz"), "-o", str(tmp_path / "m.npz"), "--length-scale", "6"]
    assert main([*command, "--descriptor", "many-body", "--kernel", "gaussian", "--noise", "1e-6", "--quiet"]) == 0
    assert "many-body, gaussian with length scale 6" in capsys.readouterr().out
    assert main(["test", str(tmp_path / "m.npz"), str(tmp_path / "few.extxyz")]) == 0
    assert main([*command, "--descriptor", "nonsense"]) == 4
    assert "unknown descriptor 'nonsense'; known by name are auto, internal" in capsys.readouterr().err


def test_train(files, frames):
    force_field = gdml.load(files / "model.npz")
    assert len(force_field.y) == 40
    assert force_field.symmetry.order == 6
    assert (files / "parity.png").stat().st_size > 10_000
    assert (files / "curve.svg").read_text().startswith("<?xml")


def test_train_chooses_the_length_scale(files, capsys, tmp_path):
    code, out, _ = run(capsys, "train", files / "ethanol.extxyz", "--n-train", 15, "-q", "-o", tmp_path / "m.npz")
    assert code == 0
    assert "15 training geometries" in out
    assert "validation: 200 geometries; forces MAE" in out


@pytest.mark.parametrize("sizes", [["--n-valid", "20"], ["--n-train", "230"], ["--n-train", "240"], []])
def test_sizes_of_training_and_validation(files, capsys, tmp_path, sizes, frames):
    ase.io.write(tmp_path / "few.extxyz", frames[:30].to_atoms())
    data = files / "ethanol.extxyz" if "--n-train" in sizes else tmp_path / "few.extxyz"
    code, out, _ = run(capsys, "train", data, "--length-scale", 20, "-q", "-o", tmp_path / "m.npz", *sizes)
    assert code == 0
    assert ("validation" in out) == (sizes in (["--n-valid", "20"], ["--n-train", "230"]))


def test_test(files, capsys, tmp_path):
    code, out, _ = run(capsys, "test", files / "model.npz", files / "ethanol.extxyz", "--plot", tmp_path / "a.pdf")
    assert code == 0 and out.startswith("240 geometries; forces MAE") and (tmp_path / "a.pdf").exists()
    code, out, _ = run(capsys, "test", files / "model.npz", files / "ethanol.extxyz", "--json")
    metrics = gdml.evaluate(gdml.load(files / "model.npz"), gdml.read(files / "ethanol.extxyz"))
    assert json.loads(out) == metrics.to_dict()


def test_show(files, capsys):
    code, out, _ = run(capsys, "show", files / "model.npz")
    assert code == 0 and "C2H6O, 40 training geometries, symmetry of order 6" in out and "fingerprint" in out
    code, out, _ = run(capsys, "show", files / "ethanol.extxyz")
    assert code == 0 and "240 geometries of C2H6O (9 atoms)" in out and "largest 7.82" in out


def test_convert(files, capsys, tmp_path):
    steps = [("ethanol.extxyz", "a.npz"), ("a.npz", "b.traj"), ("b.traj", "c.extxyz")]
    for source, target in steps:
        source = tmp_path / source if (tmp_path / source).exists() else files / source
        code, out, _ = run(capsys, "convert", source, tmp_path / target)
        assert code == 0 and "240 geometries of C2H6O" in out
    before, after = gdml.read(files / "ethanol.extxyz"), gdml.read(tmp_path / "c.extxyz")
    np.testing.assert_allclose(after.forces, before.forces, atol=1e-7)


def test_convert_models(files, capsys, tmp_path):
    assert "sGDML 1.0.3" in run(capsys, "convert", files / "model.npz", tmp_path / "a.npz")[1]
    assert "format of gdml" in run(capsys, "convert", tmp_path / "a.npz", tmp_path / "b.npz")[1]
    models = [gdml.load(p) for p in (files / "model.npz", tmp_path / "b.npz")]
    positions = gdml.read(files / "ethanol.extxyz").positions[:5]
    np.testing.assert_allclose(*(m.predict(positions).forces for m in models), atol=1e-9)


def test_md(files, capsys, tmp_path):
    code, out, _ = run(
        capsys, "md", files / "model.npz", files / "ethanol.extxyz", "--index", 5, "--temperature", 300,
        "--steps", 50, "--ensemble", "nve", "-q", "-o", tmp_path / "a.traj",
    )  # fmt: skip
    assert code == 0 and "50 steps, 25 fs" in out and "total energy drifts" in out
    assert len(ase.io.read(tmp_path / "a.traj", ":")) == 6


def test_demo(capsys, tmp_path):
    code, out, _ = run(capsys, "demo", tmp_path / "demo")
    assert code == 0
    assert out.count("$ gdml") == 3
    assert "160 training geometries" in out
    assert "1000 steps, 500 fs" in out


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["train", "{f}/nothing.extxyz", "-o", "{t}/m.npz"], 3, "there is no such file"),
        (["train", "{f}/ethanol.extxyz", "-o", "{t}/no/m.npz"], 5, "does not exist; create it first"),
        (["train", "{f}/ethanol.extxyz", "--n-train", "500", "-o", "{t}/m.npz"], 3, "500 frames were asked for"),
        (["train", "{f}/ethanol.extxyz", "--n-train", "200", "--n-valid", "50", "-o", "{t}/m.npz"], 3, "taken already"),
        (["train", "{f}/ethanol.extxyz", "--kernel", "cubic", "-o", "{t}/m.npz"], 4, "unknown kernel"),
        (["train", "{f}/ethanol.extxyz", "--forces-key", "F", "-o", "{t}/m.npz"], 3, "no frame has 'F'"),
        (["train", "{f}/ethanol.extxyz", "-o", "{t}/m.npz", "--plot", "{t}/no/a.png"], 5, "create it first"),
        (["train", "{f}/ethanol.extxyz", "-o", "{t}/m.model"], 5, "must end in .npz"),
        (["train", "{f}/ethanol.extxyz", "-o", "{t}/m.npz", "--plot", "{t}/a.png"], 3, "needs held-out geometries"),
        (["test", "{f}/model.npz", "{t}/water.extxyz"], 3, "this force field is for C2H6O, the atoms are H2O"),
        (["test", "{f}/ethanol.extxyz", "{f}/ethanol.extxyz"], 3, "not a readable .npz archive"),
        (["md", "{f}/model.npz", "{t}/water.extxyz", "--temperature", "300", "--steps", "5"], 3, "the atoms are H2O"),
        (["train", "{f}/ethanol.extxyz", "-o", "{t}/m.npz", "--plot", "{t}/a.foo"], 5, "no format of pictures"),
        (["train", "{f}/ethanol.extxyz", "-o", "{t}/m.npz", "--plot", "{t}/a"], 5, "no format of pictures"),
        (
            ["md", "{f}/model.npz", "{f}/ethanol.extxyz", "--index", "999", "--temperature", "300", "--steps", "5"],
            3,
            "there is no frame 999",
        ),
        (["convert", "{f}/ethanol.extxyz", "{t}/a.pdb"], 5, "energies and forces are kept by"),
        (["demo", "{f}/ethanol.extxyz"], 5, "exists"),
        (["show", "{t}/foreign.npz"], 3, "neither a model nor a dataset"),
    ],
)
def test_errors_and_exit_codes(files, molecules, capsys, tmp_path, arguments, code, message):
    ase.io.write(tmp_path / "water.extxyz", molecules["water"].to_atoms())
    np.savez(tmp_path / "foreign.npz", a=1)
    found, _, err = run(capsys, *[a.format(f=files, t=tmp_path) for a in arguments])
    assert (found, err.startswith("gdml: error: "), message in err) == (code, True, True), err
    assert not (tmp_path / "m.npz").exists()


def test_warnings_are_one_line(capsys, frames, tmp_path, rng):
    odd = gdml.Dataset(frames.positions[:50], frames.numbers, rng.permutation(frames.energy[:50]), frames.forces[:50])
    odd.write(tmp_path / "odd.extxyz")
    code, _, err = run(capsys, "train", tmp_path / "odd.extxyz", "--length-scale", 20, "-q", "-o", tmp_path / "m.npz")
    assert code == 0
    assert [line[:15] for line in err.splitlines()] == ["gdml: warning: "]


def test_usage():
    seeds = [["train", "a", "-o", "b", "--seed", "-1"], ["train", "a", "-o", "b", "--noise", "x"]]
    for arguments in ([], ["train"], ["nonsense"], *seeds):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2


@pytest.mark.parametrize("when", ["import", "training"])
def test_interrupt_leaves_no_file(files, tmp_path, when):
    """Ctrl-C: exit code 130, no traceback, and no model, whole or half."""
    command = [sys.executable, "-m", "gdml", "train", files / "ethanol.extxyz", "-o", tmp_path / "m.npz"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    os.set_blocking(process.stderr.fileno(), False)
    seen, deadline = b"", time.monotonic() + 60
    while when == "training" and b"length scale" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read() or b""
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        seen += process.stderr.read() or b""
        time.sleep(0.05)
    seen += process.stderr.read() or b""
    assert process.returncode in ((130,) if when == "training" else (130, -signal.SIGINT)), seen.decode()
    assert b"Traceback" not in seen or process.returncode == -signal.SIGINT
    assert when == "import" or b"interrupted" in seen
    assert os.listdir(tmp_path) == []


def test_energies_only(files, capsys, frames, tmp_path):
    gdml.Dataset(frames.positions, frames.numbers, energy=frames.energy).write(tmp_path / "e.extxyz")
    code, out, _ = run(capsys, "test", files / "model.npz", tmp_path / "e.extxyz", "--plot", tmp_path / "a.png")
    assert code == 0 and "forces" not in out and (tmp_path / "a.png").exists()


def test_missing_matplotlib(files, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, "test", files / "model.npz", files / "ethanol.extxyz", "--plot", tmp_path / "a.png")
    assert code == 6
    assert "pip install 'gdml[plot]'" in err
