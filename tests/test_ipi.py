"""The worked examples of the documentation: i-PI with forces from this package."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

import gdml

EXAMPLES = Path(__file__).parent.parent / "docs" / "ipi"
PROGRAMS = Path(sys.executable).parent
pytest.importorskip("ipi", reason="pip install 'gdml[ipi]'")


def program(name):
    found = shutil.which(name, path=PROGRAMS)
    assert found, f"{name} is not installed"
    return found


@pytest.fixture
def folder(tmp_path, force_field, frames):
    """With model, start and inputs, shortened."""
    force_field.save(tmp_path / "ethanol.npz")
    atoms = frames.to_atoms()[0]
    atoms.calc = None
    atoms.center(vacuum=10)
    atoms.pbc = False
    atoms.write(tmp_path / "start.extxyz")
    driver = subprocess.run([program("gdml"), "ipi", "--path"], capture_output=True, text=True, check=True).stdout
    for example in EXAMPLES.glob("*.xml"):
        text = example.read_text().replace("DRIVER", driver.strip())
        text = text.replace("<total_steps> 100", "<total_steps> 10").replace("gdml_ethanol", tmp_path.name)
        (tmp_path / example.name).write_text(text)
    return tmp_path


def check(folder, name, force_field):
    values = np.loadtxt(folder / f"{name}.out")
    start = read(folder / "start.extxyz")
    assert values[0, 4] == pytest.approx(force_field.predict(start.positions).energy, rel=1e-7)
    assert np.ptp(values[:, 2]) < 0.2
    assert values[-1, 4] != values[0, 4]


def test_beads_in_one_call(folder, force_field):
    result = subprocess.run([program("i-pi"), "direct.xml"], cwd=folder, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    check(folder, "direct", force_field)


def test_through_a_socket(folder, force_field):
    server = subprocess.Popen([program("i-pi"), "socket.xml"], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if Path(f"/tmp/ipi_{folder.name}").exists():
                break
            time.sleep(0.1)
        command = [program("gdml"), "ipi", "ethanol.npz", "start.extxyz", "--unix", folder.name]
        subprocess.run(command, cwd=folder, capture_output=True, timeout=200, check=True)
        server.wait(timeout=60)
    finally:
        server.kill()
    check(folder, "socket", force_field)


def test_virial_of_a_crystal(tmp_path):
    """In atomic units, as i-PI has them."""
    from ipi.utils.units import unit_to_internal

    from gdml.ipi_driver import GDMLDriver

    rng = np.random.default_rng(0)
    ideal = bulk("Al", cubic=True) * 2
    frames = gdml.Dataset(
        ideal.positions + rng.normal(scale=0.05, size=(4, 32, 3)),
        ideal.numbers,
        forces=rng.normal(size=(4, 32, 3)),
        cell=ideal.cell.array,
        pbc=True,
    )
    force_field = gdml.fit(frames, reference=ideal, length_scale=20.0, noise=1e-3)
    force_field.save(tmp_path / "al.npz")
    ideal.write(tmp_path / "al.extxyz")
    driver = GDMLDriver(str(tmp_path / "al.extxyz"), str(tmp_path / "al.npz"))
    length = unit_to_internal("length", "angstrom", 1.0)
    cell, positions = ideal.cell.array.T * length, frames.positions * length
    batch = driver([cell] * 4, list(positions))
    found = force_field.predict(frames.positions, stress=True)
    for k, (energy, forces, virial, _) in enumerate(batch):
        assert energy == pytest.approx(unit_to_internal("energy", "electronvolt", found.energy[k]))
        np.testing.assert_allclose(forces, unit_to_internal("force", "ev/ang", found.forces[k]))
        trace = -found.stress[k, :3].sum() * ideal.get_volume()
        assert np.trace(np.reshape(virial, (3, 3))) == pytest.approx(unit_to_internal("energy", "electronvolt", trace))
    assert driver(cell, positions[1])[0] == batch[1][0]
