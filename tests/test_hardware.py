"""Devices, precisions, and what is made of the memory there is."""

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones

import gdml
from gdml import hardware
from gdml.cli import main
from gdml.contractions import BACKENDS, GemmContraction, LatticeContraction, choose_backend, contraction, gemm
from gdml.descriptors import InverseDistances
from gdml.dynamics import RingPolymerMD, run_md, run_pimd
from gdml.errors import DataError, DeviceError, DynamicsWarning, MemoryBudgetError
from gdml.geometry import pair_indices
from gdml.kernels import KERNELS
from gdml.preconditioners import FACTORS
from gdml.symmetry import Action, CrystalGroup, PermutationGroup

from .pretended import DEVICE, Pretended, pretended_device

ACTION = InverseDistances(4).action(PermutationGroup.generate([[1, 0, 2, 3]]))
# As the least number of entries and images from which on a crystal's sums are Fourier's.
SPLIT = CrystalGroup([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]], [[0, 1, 2, 3]], spacegroup="", symprec=0)


NEON = bulk("Ne", "fcc", a=4.4, cubic=True) * (2, 1, 1)
CRYSTAL = {"reference": NEON, "length_scale": 2.0, "use_stress": True, "noise": 1e-3}


@pytest.fixture(scope="module")
def crystal() -> gdml.Dataset:
    """Neon at several volumes."""
    ideal, rng = NEON, np.random.default_rng(0)
    frames = []
    for strain in 0.02 * rng.normal(size=(10, 1, 1)):
        atoms = ideal.copy()
        atoms.set_cell(atoms.cell * (1 + strain[0, 0]), scale_atoms=True)
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.calc = LennardJones(sigma=2.8, epsilon=0.01, rc=6.0)
        atoms.get_stress()
        frames.append(atoms)
    return gdml.read(frames)


# Devices by their names


@pytest.mark.parametrize(
    "device, message",
    [
        ("cuda", "no GPU.*use device='cpu'"),
        ("cuda:7", "no GPU"),
        ("tpu", "names no device; known are cpu"),
        (3.5, "names no device"),
        ("mps", "type 'mps' is of no use"),
        ("meta", "type 'meta'"),
        (7, ""),
    ],
)
def test_devices_that_are_not_there(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=message):
        hardware.check_device(device)


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert hardware.check_devices(None) == ("cpu",)
    assert hardware.check_devices("cuda:0,cuda:1,cpu") == ("cuda:0", "cuda:1", "cpu")
    assert hardware.check_devices(["cuda", torch.device("cpu")]) == ("cuda:1", "cpu")
    with pytest.raises(DeviceError, match="no device 'cuda:2'; known are cpu, cuda:0, cuda:1"):
        hardware.check_device("cuda:2")
    with pytest.raises(DeviceError, match="no device is named"):
        hardware.check_devices([])


@pytest.mark.parametrize("name, dtype", [(None, "float64"), ("float32", "float32"), (torch.float64, "float64")])
def test_precisions(name, dtype):
    assert hardware.check_precision(name) == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "double precision", torch.int64])
def test_precisions_that_are_not_there(force_field, dtype):
    with pytest.raises(DeviceError, match="the dtype is 'float64' or 'float32'"):
        force_field.to(dtype=dtype)


@pytest.mark.parametrize("settings", [{"device": "cuda:9"}, {"dtype": "float8"}, {"backend": "abacus"}])
def test_what_is_not_there_is_found_before_the_work(frames, settings, force_field, tmp_path):
    with pytest.raises(DeviceError):
        gdml.fit(frames[:5], **settings)
    with pytest.raises(DeviceError):
        gdml.GDMLCalculator(force_field, **settings)
    force_field.save(tmp_path / "m.npz")
    with pytest.raises(DeviceError):
        gdml.load(tmp_path / "m.npz", **settings)


def test_on_the_command_line(force_field, frames, tmp_path, capsys):
    force_field.save(tmp_path / "m.npz")
    frames[:5].write(tmp_path / "f.extxyz")
    assert main(["test", str(tmp_path / "m.npz"), str(tmp_path / "f.extxyz"), "--device", "cuda:99"]) == 4
    assert "gdml: error: there is no" in capsys.readouterr().err
    arguments = ["--device", "cpu,cpu", "--dtype", "float32", "--backend", "gemm"]
    assert main(["test", str(tmp_path / "m.npz"), str(tmp_path / "f.extxyz"), *arguments]) == 0
    assert "float32 changes forces by" in capsys.readouterr().out


# All that is computed, on a device that only says that it is one


def on_both(frames: gdml.Dataset, **settings) -> tuple[gdml.ForceField, gdml.ForceField]:
    """Trained on the device, and on the CPU."""
    with pretended_device():
        there = gdml.fit(frames, device="gpu", **settings)
    here = gdml.fit(frames, **settings)
    assert there.devices == (str(DEVICE),) and here.devices == ("cpu",)
    np.testing.assert_allclose(there.w, here.w, atol=1e-9 * np.abs(here.w).max())
    assert there.offset == pytest.approx(here.offset)
    return there, here


@pytest.mark.parametrize("name", [*FACTORS, "none"])
@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
def test_conjugate_gradients(frames, name):
    settings = {"preconditioner": name, "solver": "cg", "rank": 30, "rtol": 1e-6, "noise": 1e-3}
    on_both(frames[:12], length_scale=20.0, use_energy=True, **settings)


def test_closed_form_and_prediction(frames):
    there, here = on_both(frames[:24])
    with pretended_device():
        found = there.predict(frames.positions[50:60])
        on_device = there.predict(Pretended(torch.tensor(frames.positions[50:60])))
        single = there.predict(frames.positions[50])
        outside = there.outside(2 * frames.positions[50])
        checked, _ = there.judged(frames.positions[50])
        with pytest.raises(gdml.errors.DataError, match="are 0 Å apart"):
            there.predict(0 * frames.positions[50])
    expected = here.predict(frames.positions[50:60])
    assert isinstance(on_device.forces, Pretended)
    for forces in (found.forces, on_device.forces.array.numpy()):
        np.testing.assert_allclose(forces, expected.forces, atol=1e-8)
    for one in (single, checked):
        np.testing.assert_allclose(one.forces, expected.forces[0], atol=1e-8)
    assert len(outside) == len(here.outside(2 * frames.positions[50])) > 0


def powers(positions):
    first, second = map(torch.tensor, pair_indices(len(positions)))
    r = (positions[first] - positions[second]).square().sum(1)
    return torch.cat([r**-0.5, r**-1.0])


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
@pytest.mark.parametrize("descriptor", ["many-body", gdml.AutogradDescriptor(powers)], ids=["atoms", "function"])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_other_descriptors(frames, descriptor, solver):
    settings = {"length_scale": 5.0, "noise": 1e-4, "solver": solver, "rtol": 1e-6}
    there, here = on_both(frames[:8], descriptor=descriptor, **settings)
    expected = here.predict(frames.positions[50:53]).forces
    with pretended_device():
        found = there.predict(frames.positions[50:53]).forces
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")
@pytest.mark.parametrize("backend", ["gemm", "lattice"])
@pytest.mark.parametrize("solver", [{"solver": "cholesky"}, {"solver": "cg", "rank": 30, "neighbours": 2}])
def test_crystals(crystal, backend, solver):
    there, here = on_both(crystal, backend=backend, use_energy=True, rtol=1e-9, **CRYSTAL, **solver)
    with pretended_device():
        found = there.predict(crystal.positions, crystal.cell, stress=True)
    for value, expected in zip(found, here.predict(crystal.positions, crystal.cell, stress=True)):
        np.testing.assert_allclose(value, expected, atol=1e-8)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
def test_validation_and_checkpoints(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.checkpoints, "INTERVAL", 0.0)
    settings = {"length_scale": 20.0, "solver": "cg", "rank": 40, "noise": 1e-3, "rtol": 1e-9}
    settings |= {"validation": frames[200:210], "checkpoint": tmp_path / "c.npz"}
    with pretended_device():
        gdml.fit(frames[:20], device="gpu", **settings)
        resumed = gdml.fit(frames[:20], device="gpu", **settings, resume=True)
    here = gdml.fit(frames[:20], **settings | {"checkpoint": None})
    np.testing.assert_allclose(resumed.w, here.w, atol=1e-9 * np.abs(here.w).max())


@pytest.mark.filterwarnings("ignore::gdml.errors.DynamicsWarning")
@pytest.mark.parametrize("thermostat", ["pile-l", "pile-g", "none"])
def test_path_integrals_stay_there(frames, force_field, thermostat, tmp_path):
    """No array leaves the device but at samples."""
    atoms = frames.to_atoms()[0]
    with pretended_device():
        there = force_field.to("gpu")
        settings = {"temperature_K": 300, "n_beads": 4, "thermostat": thermostat, "forces": there}
        run = RingPolymerMD(atoms, 0.5 * units.fs, **settings)
        run.run(12)
        assert isinstance(run.positions, Pretended)
        record = run_pimd(there, atoms, steps=20, temperature_K=300, n_beads=4, restart=tmp_path / "r.npz")
    assert np.isfinite(record.averages()["kinetic_cv"].mean)


@pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")
def test_path_integrals_at_a_pressure(crystal):
    with pretended_device():
        there = gdml.fit(crystal, **CRYSTAL, device="gpu")
        settings = {"temperature_K": 10, "n_beads": 4, "pressure": 0.0, "forces": there}
        run = RingPolymerMD(NEON.copy(), 1.0 * units.fs, **settings)
        run.run(12)
        assert isinstance(run.positions, Pretended)


def test_the_pretence_finds_mistakes():
    with pretended_device():
        there = torch.ones(3, device=DEVICE)
        assert isinstance(there + 1, Pretended)
        with pytest.raises(RuntimeError, match="of the CPU among those of the device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="cannot be NumPy's"):
            there.numpy()
        assert there.cpu().numpy().sum() == 3


# Several devices


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_batches_are_shared_out(force_field, frames, count):
    both = force_field.to("cpu,cpu,cpu")
    found, expected = (ff.predict(frames.positions[:count]) for ff in (both, force_field))
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-12)
    np.testing.assert_allclose(found.energy, expected.energy, atol=1e-12)
    assert both.predict(frames.positions[0]).forces.shape == (9, 3)
    for wrong, message in ((frames.positions[:0], "no geometry"), (np.nan * frames.positions[:4], "NaN")):
        with pytest.raises(DataError, match=message):
            both.predict(wrong)


def test_tensors_with_a_graph(force_field, frames):
    """Forces are the derivatives already; nothing is differentiated once more."""
    positions = torch.tensor(frames.positions[:2], requires_grad=True)
    found = force_field.predict(positions)
    assert not found.forces.requires_grad
    np.testing.assert_allclose(found.forces, force_field.predict(frames.positions[:2]).forces)


@pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")
def test_cells_are_shared_out(crystal):
    force_field = gdml.fit(crystal, **CRYSTAL)
    found = force_field.to(["cpu", "cpu"]).predict(crystal.positions, crystal.cell, stress=True)
    for value, expected in zip(found, force_field.predict(crystal.positions, crystal.cell, stress=True)):
        np.testing.assert_allclose(value, expected, atol=1e-12)
    for devices in ("cpu", "cpu, cpu"):
        with pytest.raises(DataError, match="10 geometries need one cell"):
            force_field.to(devices).predict(crystal.positions, crystal.cell[:8])


# Precision


@pytest.mark.parametrize("group, backend", [(ACTION, "gemm"), (InverseDistances(4).action(SPLIT), "lattice")])
def test_single_precision(rng, group, backend):
    """Its error is that of the numbers, not of their sum."""
    y, w, x = (torch.tensor(rng.normal(size=(n, 6))) for n in (400, 400, 7))
    c = torch.tensor(rng.normal(size=400))
    kernel = KERNELS["matern52"](1.3)
    single, double = (contraction(kernel, y, group, backend, dtype) for dtype in (torch.float32, torch.float64))
    for found, expected in zip(single.apply(x, c, w), double.apply(x, c, w)):
        assert found.dtype == torch.float64
        error = float((found - expected).abs().max()) / float(expected.abs().max())
        assert 1e-12 < error < 3e-5


def test_the_error_of_single_precision_is_told(frames):
    """It grows as the noise falls, and is zero in double precision."""
    errors, frames = [], gdml.Dataset(frames.positions, frames.numbers, forces=frames.forces)
    for noise in (1e-4, 1e-10):
        force_field = gdml.fit(frames[:60], length_scale=20.0, noise=noise, dtype="float32")
        assert force_field.dtype == "float32"
        errors.append(force_field.precision_error(frames.positions[100:110]))
        assert force_field.to(dtype="float64").precision_error(frames.positions[100:110]) == 0.0
    assert 1e-9 < errors[0] < errors[1]


def test_single_precision_is_not_saved(frames, force_field, tmp_path):
    force_field.to(dtype="float32").save(tmp_path / "m.npz")
    assert gdml.load(tmp_path / "m.npz").dtype == "float64"
    assert gdml.load(tmp_path / "m.npz", dtype="float32").dtype == "float32"
    assert force_field.to() is force_field


def test_dynamics_warn_of_single_precision(force_field, frames):
    atoms = frames.to_atoms()[0]
    single = force_field.to(dtype="float32")
    with pytest.warns(DynamicsWarning, match="float32 changes forces by .* compute in float64"):
        run_md(single, atoms.copy(), steps=2, temperature_K=300)
    with pytest.warns(DynamicsWarning, match="float32 changes forces by"):
        run_pimd(single, atoms.copy(), steps=2, temperature_K=300, n_beads=2)


# Backends


def test_each_backend_is_as_asked_for(rng):
    y = torch.tensor(rng.normal(size=(4, 6)))
    for name in ("gemm", "lattice"):
        assert type(contraction(KERNELS["matern52"](1.0), y, InverseDistances(4).action(SPLIT), name)) is BACKENDS[name]
    for action in (ACTION, Action(np.tile(np.arange(6), (2, 1)), np.arange(6)[None])):
        with pytest.raises(DeviceError, match="permute the pairs of atoms equally; use 'gemm'"):
            contraction(KERNELS["matern52"](1.0), y, action, "lattice")


def translations(n: int, size: int, cosets: int = 1) -> Action:
    return Action(np.array([np.roll(np.arange(size), k) for k in range(n)]), np.tile(np.arange(size), (cosets, 1)))


@pytest.mark.parametrize(
    "action, expected",
    [
        (translations(1, 36), "gemm"),
        (translations(1, 3, 10), "gemm"),
        (translations(32, 2016), "lattice"),
        (translations(4, 2016, 48), "lattice"),
        (translations(2, 2016, 48), "gemm"),  # too few translations
        (translations(4, 28), "gemm"),  # too little work
    ],
)
def test_the_fastest_backend(action, expected):
    assert choose_backend(action) == expected


# Memory


def test_tiles_are_halved_where_memory_is_short():
    done, failed = [], []

    def work(some: slice) -> None:
        if some.stop - some.start > 3:
            failed.append(some)
            raise torch.OutOfMemoryError
        done.append(some)

    hardware.in_tiles(20, 16, work)
    assert [i for some in done for i in range(20)[some]] == list(range(20))
    assert len(failed) == 3  # 16, 8 and 4 at a time
    assert hardware.in_tiles(20, 16, work) == 2
    with pytest.raises(torch.OutOfMemoryError):
        hardware.in_tiles(20, 16, lambda some: (_ for _ in ()).throw(torch.OutOfMemoryError()))


@pytest.mark.parametrize("way", [GemmContraction, LatticeContraction])
def test_predictions_do_with_less_memory(rng, way, monkeypatch):
    """Whatever a device has not the memory for is done in smaller parts."""
    y, w, x = (torch.tensor(rng.normal(size=(n, 6))) for n in (5, 5, 30))
    jets = way(KERNELS["matern52"](1.3), y, InverseDistances(4).action(SPLIT))
    expected = jets.apply(x, None, w)
    name = "_over_group" if way is GemmContraction else "_evaluate_tile"
    original, sizes = getattr(way, name), []

    def scarce(self, *arguments):
        queries = arguments[-1]
        sizes.append(len(queries))
        if len(queries) > 4:
            raise torch.OutOfMemoryError
        return original(self, *arguments)

    monkeypatch.setattr(way, name, scarce)
    for found, value in zip(jets.apply(x, None, w), expected):
        torch.testing.assert_close(found, value)
    assert sizes[:4] == [30, 15, 8, 4]


def no_memory(*_, **__) -> None:
    raise torch.OutOfMemoryError


def test_what_does_not_fit_is_said(frames, force_field, monkeypatch, tmp_path, capsys):
    """Descriptors are made of fewer geometries; where one is too many, it is an error of ours."""
    expected, original, sizes = force_field.predict(frames.positions[:60]), InverseDistances.evaluate, []

    def scarce(descriptor, positions):
        sizes.append(len(positions))
        return original(descriptor, positions) if len(positions) <= 10 else no_memory()

    monkeypatch.setattr(InverseDistances, "evaluate", scarce)
    np.testing.assert_allclose(force_field.predict(frames.positions[:60]).forces, expected.forces, atol=1e-12)
    assert sizes[:4] == [60, 30, 15, 8]
    monkeypatch.setattr(InverseDistances, "evaluate", no_memory)
    with pytest.raises(MemoryBudgetError, match="cpu has not the memory"):
        force_field.predict(frames.positions[:60])
    monkeypatch.undo()
    monkeypatch.setattr(GemmContraction, "pairs", no_memory)
    with pytest.raises(MemoryBudgetError, match="lower rank"):
        gdml.fit(frames[:20], length_scale=20.0)
    force_field.save(tmp_path / "m.npz")
    frames[:5].write(tmp_path / "f.extxyz")
    monkeypatch.setattr(gdml.cli, "predict", no_memory)
    assert main(["test", str(tmp_path / "m.npz"), str(tmp_path / "f.extxyz")]) == 4
    assert "gdml: error: a device has not the memory" in capsys.readouterr().err


def test_tiles_of_a_gpu_are_of_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    device = torch.device("cuda", 0)
    assert hardware.available_memory(device) == 9 * 10**9
    assert hardware.tile(device, gemm.TILE, 8) == 9 * 10**9 // (4 * 8 * 8)
    assert hardware.tile(torch.device("cpu"), gemm.TILE, 8) == gemm.TILE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 16 * 10**9))
    assert hardware.tile(device, gemm.TILE, 8) > 0
