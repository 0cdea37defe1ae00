"""Learning curves, distillation, and the commands around training."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones

import gdml
from gdml import curves, distillation, sampling
from gdml.cli import main
from gdml.errors import CheckpointWarning, DataError, DynamicsError, FormatError, OutputError

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


def counted(monkeypatch, most):
    """Sizes of the trainings of curves; Ctrl-C in what would be one more than so many."""
    fit, trained = curves.fit, []

    def counting(training, **options):
        if len(trained) == most:
            raise KeyboardInterrupt
        trained.append(len(training))
        return fit(training, **options)

    monkeypatch.setattr(curves, "fit", counting)
    return trained


def test_curves_go_on(frames, tmp_path, monkeypatch):
    """After Ctrl-C, what is there is not trained again; nor is it for more sizes and repeats."""
    settings, path = {"n_test": 60, **FIXED, "keep": tmp_path / "c.json"}, tmp_path / "c.json"
    whole = gdml.learning_curve(frames[:120], [6, 9, 12], **settings | {"keep": None}, repeats=2)
    with monkeypatch.context() as patch:
        trained = counted(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            gdml.learning_curve(frames[:120], [6, 12], **settings, repeats=2)
        assert trained == [6, 6, 12]
        assert [len(draws) for draws in json.loads(path.read_text())["metrics"]] == [2, 1]
    with monkeypatch.context() as patch:
        trained = counted(patch, 1)
        found = gdml.learning_curve(frames[:120], [6, 12], **settings, repeats=2)
        assert trained == [12] and found.metrics == whole.metrics[::2]
    with monkeypatch.context() as patch:
        trained = counted(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            gdml.learning_curve(frames[:120], [6, 9, 12], **settings, repeats=2)
        content = json.loads(path.read_text())
        assert content["sizes"] == [6, 9, 12] and [len(draws) for draws in content["metrics"]] == [2, 1, 2]
    assert gdml.learning_curve(frames[:120], [6, 9, 12], **settings, repeats=2) == whole
    before = path.read_bytes()
    with pytest.raises(DataError, match="n = 6, 9, 12 with 2 draws, of which some are not asked for"):
        gdml.learning_curve(frames[:120], [6, 9], **settings, repeats=2)
    assert path.read_bytes() == before


def test_curves_of_something_else_are_refused(frames, tmp_path):
    path = tmp_path / "c.json"
    common = {"n_test": 60, "baseline": LennardJones(sigma=0.5), "kernel": gdml.kernels.Matern52(), "symmetry": "none"}
    common |= {"descriptor": gdml.InverseDistances(9), "length_scale": 20.0, "keep": path}
    gdml.learning_curve(frames[:120], [4], **common)
    for data, change in (
        (frames[:119], {"geometries": None}),
        (frames[:120], {"n_test": 50}),
        (frames[:120], {"seed": 1}),
        (frames[:120], {"method": "energy"}),
        (frames[:120], {"length_scale": 10.0}),
        (frames[:120], {"noise": 1e-8}),
        (frames[:120], {"baseline": LennardJones(sigma=0.6)}),
        (frames[:120], {"kernel": gdml.kernels.Gaussian()}),
        (frames[:120], {"descriptor": gdml.AutogradDescriptor(distances)}),
        (frames[:120], {"symmetry": np.array([np.arange(9)])}),
    ):
        (name,) = change
        settings = common | {key: value for key, value in change.items() if key != "geometries"}
        with pytest.raises(DataError, match=rf"{path}: this learning curve is of other data .* differs in {name} \("):
            gdml.learning_curve(data, [4], **settings)
    assert gdml.learning_curve(frames[:120], [4], **common).metrics[0][0].n_frames == 60
    for text in ("{}", "[1, 2]", path.read_text()[:50], '{"sizes": [3], "metrics": [], "settings": {}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(FormatError, match="no learning curve to go on with"):
            gdml.learning_curve(frames[:120], [4], **common | {"keep": tmp_path / "x.json"})


def distances(positions):
    i, j = torch.triu_indices(len(positions), len(positions), 1)
    return (positions[i] - positions[j]).norm(dim=1)


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
    monkeypatch.setattr(sampling, "RESTARTS", 2)
    with pytest.raises(DynamicsError, match="flew apart 3 times for 0 samples"):
        gdml.distill(teacher, frames[:60], 30, temperatures=(1e5,), **FIXED)
    with pytest.raises(DataError, match="too few to distill"):
        gdml.distill(teacher, frames[:60], 10)


class Killed(BaseException):
    pass


def kill_after(monkeypatch, looks):
    """End the program, as it were, in the midst of a look at walkers."""
    original, done = sampling._labelled, []

    def labelled(*arguments):
        done.append(None)
        if len(done) > looks:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(sampling, "_labelled", labelled)


SAMPLED = {"temperatures": (200.0, 300.0), "seed": 3}


@pytest.fixture
def brief(monkeypatch):
    """Samples that follow each other closely."""
    monkeypatch.setattr(sampling, "SETTLING_FS", 10.0)
    monkeypatch.setitem(sampling.sample.__kwdefaults__, "spacing_fs", 5.0)


@pytest.fixture
def whole(force_field, frames, brief):
    """Samples without an interruption: three looks at each temperature."""
    return sampling.sample(force_field, frames[:60], 42, **SAMPLED)


@pytest.mark.parametrize("looks", [0, 1, 3, 5])
def test_sampling_goes_on(force_field, frames, whole, tmp_path, monkeypatch, looks):
    """To the last bit as if it had not been interrupted, and without a look that was there already."""
    path = tmp_path / "s.npz"
    with monkeypatch.context() as patch:
        kill_after(patch, looks)
        with pytest.raises(Killed):
            sampling.sample(force_field, frames[:60], 42, **SAMPLED, keep=path)
    assert path.exists() == (looks > 0)
    with monkeypatch.context() as patch:
        kill_after(patch, 6 - looks)
        found = sampling.sample(force_field, frames[:60], 42, **SAMPLED, keep=path)
    assert found.fingerprint == whole.fingerprint
    monkeypatch.setattr(sampling, "_labelled", None)
    assert sampling.sample(force_field, frames[:60], 42, **SAMPLED, keep=path).fingerprint == whole.fingerprint


def test_after_walkers_flew_apart(force_field, frames, brief, tmp_path, monkeypatch):
    """What is drawn after that is the same too, and so is the number of failures after which it is given up."""
    monkeypatch.setattr(sampling, "RESTARTS", 1)
    original, ends = sampling._labelled, []
    for looks in (None, 3):
        calls = []

        def labelled(*arguments, calls=calls, looks=looks):
            calls.append(None)
            if len(calls) == 2:
                raise DynamicsError("flown apart")
            if len(calls) - 1 == looks:
                raise Killed
            return original(*arguments)

        monkeypatch.setattr(sampling, "_labelled", labelled)
        settings = SAMPLED | {"keep": tmp_path / f"{looks}.npz"}
        if looks:
            with pytest.raises(Killed):
                sampling.sample(force_field, frames[:60], 24, **settings)
            with np.load(settings["keep"]) as archive:
                assert archive["failures"] == 1
        ends.append(sampling.sample(force_field, frames[:60], 24, **settings))
    assert ends[0].fingerprint == ends[1].fingerprint


def test_samples_are_written_while_they_are_made(force_field, frames, brief, tmp_path, monkeypatch):
    """In each look, where it is time; a kill that leaves no chance to write loses no more than the last portion."""
    monkeypatch.setattr(sampling, "INTERVAL", 0.0)
    counts, write = [], sampling.write_archive

    def written(path, fields):
        write(path, fields)
        counts.append(len(fields["energy"]))
        if len(counts) == 2:
            monkeypatch.setattr(sampling, "write_archive", None)  # nothing any more
            raise Killed

    monkeypatch.setattr(sampling, "write_archive", written)
    with pytest.raises((Killed, TypeError)):
        sampling.sample(force_field, frames[:60], 42, **SAMPLED, keep=tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as archive:
        assert counts == [8, 16] and len(archive["energy"]) == 16


def test_a_full_disk_does_not_end_the_sampling(force_field, frames, whole, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.warns(CheckpointWarning, match="goes on without.*No space left"):
        found = sampling.sample(force_field, frames[:60], 42, **SAMPLED, keep=tmp_path / "s.npz")
    assert found.fingerprint == whole.fingerprint


def test_samples_of_something_else_are_refused(force_field, frames, brief, tmp_path):
    path, start = tmp_path / "s.npz", frames[:60]
    sampling.sample(force_field, start, 20, **SAMPLED, keep=path)
    for change, message in (
        ({"seed": 4}, r"seed \(3 there, 4 here\)"),
        ({"temperatures": (200.0,)}, r"temperatures \(\[200.0, 300.0\] there"),
        ({"timestep_fs": 0.25}, r"timestep_fs \(0.5 there"),
    ):
        with pytest.raises(DataError, match=message):
            sampling.sample(force_field, start, 20, **SAMPLED | change, keep=path)
    for model, geometries, n, name in (
        (gdml.fit(frames[:20], **FIXED), start, 20, "model"),
        (replace(force_field, offset=force_field.offset + 1.0), start, 20, "model"),
        (force_field, frames[:50], 20, "start"),
        (force_field, start, 30, "n"),
    ):
        with pytest.raises(DataError, match=rf"{path}: these samples are of another model.* differs in {name} \("):
            sampling.sample(model, geometries, n, **SAMPLED, keep=path)
    force_field.save(tmp_path / "m.npz")
    with pytest.raises(FormatError, match="no samples to go on from"):
        gdml.distill(force_field, start, 20, keep=tmp_path / "m.npz")
    with pytest.raises(OutputError, match="must end in .npz"):
        gdml.distill(force_field, start, 20, keep=tmp_path / "s.extxyz")


def test_distilling_goes_on_from_the_command_line(teacher, frames, brief, tmp_path, monkeypatch, capsys):
    """After a kill during the sampling, and another after the training; in the end, what was asked for is there."""
    data, model, fast = tmp_path / "d.extxyz", tmp_path / "m.npz", tmp_path / "fast.npz"
    frames[:60].write(data)
    teacher.save(model)
    command = ["distill", str(model), str(data), "-n", "24", "--temperature", "200", "-o", str(fast), "-q"]
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            main(command)
    assert {p.name for p in tmp_path.iterdir()} == {"d.extxyz", "m.npz", "fast.sampling.npz"}
    assert main([*command, "--seed", "1"]) == 3
    assert "seed (0 there, 1 here)" in capsys.readouterr().err

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        patch.setattr(distillation, "evaluate", killed)
        with pytest.raises(Killed):
            main(command)
    monkeypatch.setattr(sampling, "_labelled", None)
    assert main([*command, "--samples", str(tmp_path / "fast.sampling.npz")]) == 5
    assert "removed in the end" in capsys.readouterr().err
    assert main([*command, "--samples", str(tmp_path / "s.extxyz")]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"d.extxyz", "m.npz", "fast.npz", "s.extxyz"}
    assert len(gdml.read(tmp_path / "s.extxyz")) == 24


def test_commands(frames, teacher, brief, tmp_path, capsys):
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
