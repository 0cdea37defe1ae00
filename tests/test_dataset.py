"""Reading, writing, sampling; every format gives back what went in."""

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

import gdml
from gdml.errors import DataError, DataWarning
from gdml.io import sgdml_md5
from gdml.units import energy_factor, length_factor


@pytest.mark.parametrize(
    "name, tolerance",
    [
        ("a.extxyz", 1e-7), ("a.xyz", 1e-7), ("a.extxyz.gz", 1e-7), ("a.extxyz.xz", 1e-7), ("a.traj", 0.0),
        ("a.db", 0.0), ("a.npz", 0.0),
    ],
)  # fmt: skip
def test_round_trip(frames, tmp_path, name, tolerance):
    few = frames[:6]
    few.write(tmp_path / name)
    again = gdml.read(tmp_path / name)
    for field in ("positions", "numbers", "energy", "forces"):
        np.testing.assert_allclose(getattr(again, field), getattr(few, field), rtol=0, atol=tolerance)


def test_periodic_round_trip(rng, tmp_path):
    cell = np.array([[4.0, 0.1, 0.0], [0.0, 4.2, 0.0], [0.3, 0.0, 4.1]])
    crystal = gdml.Dataset(rng.normal(size=(3, 2, 3)), [11, 17], forces=rng.normal(size=(3, 2, 3)), cell=cell, pbc=True)
    for name in ("c.extxyz", "c.npz", "c.traj"):
        crystal.write(tmp_path / name)
        again = gdml.read(tmp_path / name)
        np.testing.assert_allclose(again.cell, cell, atol=1e-7)
        assert again.pbc == (True, True, True)
    boxes = np.stack([cell, cell * 1.01, cell])
    varied = gdml.Dataset(crystal.positions, [11, 17], cell=boxes, pbc=True, stress=rng.normal(size=(3, 6)))
    varied.write(tmp_path / "v.extxyz")
    again = gdml.read(tmp_path / "v.extxyz")
    np.testing.assert_allclose(again.cell, boxes, atol=1e-7)
    np.testing.assert_allclose(again.stress, varied.stress, atol=1e-7)
    assert again[1:].cell.shape == (2, 3, 3)


def test_single_frame_and_index(frames, tmp_path):
    frames[:4].write(tmp_path / "a.extxyz")
    assert len(gdml.read(tmp_path / "a.extxyz", index=0)) == 1
    assert len(gdml.read(tmp_path / "a.extxyz", index="1:3")) == 2
    frames[:4].write(tmp_path / "a.npz")
    assert len(gdml.read(tmp_path / "a.npz", index="-1")) == 1
    assert len(gdml.read(frames[:1].to_atoms()[0])) == 1


@pytest.mark.parametrize("energy_key, forces_key", [("REF_energy", "REF_forces"), ("dft_E", "dft_F")])
def test_keys(frames, tmp_path, energy_key, forces_key):
    atoms = [Atoms(frames.numbers, p) for p in frames.positions[:3]]
    for a, e, f in zip(atoms, frames.energy, frames.forces):
        a.info[energy_key], a.arrays[forces_key] = e, f
    ase.io.write(tmp_path / "a.extxyz", atoms)
    given = {} if energy_key == "REF_energy" else {"energy_key": energy_key, "forces_key": forces_key}
    again = gdml.read(tmp_path / "a.extxyz", **given)
    np.testing.assert_allclose(again.forces, frames.forces[:3], atol=1e-7)
    np.testing.assert_allclose(again.energy, frames.energy[:3], atol=1e-7)


def test_labels_in_a_calculator_and_in_arrays(frames):
    in_calculator = Atoms(frames.numbers, frames.positions[0])
    in_calculator.calc = SinglePointCalculator(in_calculator, forces=frames.forces[0])
    in_arrays = Atoms(frames.numbers, frames.positions[1])
    in_arrays.arrays["forces"] = frames.forces[1]
    again = gdml.read([in_calculator, in_arrays])
    np.testing.assert_array_equal(again.forces, frames.forces[:2])
    assert again.energy is None


def test_stress_as_matrix(rng):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[5, 5, 5], pbc=True)
    atoms.info["virial_stress"] = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert gdml.read(atoms, stress_key="virial_stress").stress.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_units(frames, tmp_path, reference):
    atoms = [Atoms(frames.numbers, p / units.Bohr) for p in frames.positions[:3]]
    for a, e, f in zip(atoms, frames.energy, frames.forces):
        a.info["E"], a.arrays["F"] = e / units.Hartree, f / (units.Hartree / units.Bohr)
    again = gdml.read(atoms, energy_key="E", forces_key="F", energy_unit="Hartree", length_unit="Bohr")
    for field in ("positions", "energy", "forces"):
        np.testing.assert_allclose(getattr(again, field), getattr(frames[:3], field), rtol=1e-12)
    for name, value in reference["units in eV"].items():
        if name != "source":
            assert energy_factor(name) == pytest.approx(value, rel=1e-8)
    assert length_factor("bohr") == pytest.approx(reference["Bohr in Ang"], rel=1e-8)
    with pytest.raises(DataError, match="unknown unit of energy 'furlong'"):
        gdml.read(atoms, energy_key="E", energy_unit="furlong")


def test_units_of_the_sgdml_format(frames, tmp_path):
    kcal = units.kcal / units.mol
    fields = {
        "type": "d", "name": "x", "z": frames.numbers.astype(np.uint8), "R": frames.positions[:3],
        "E": frames.energy[:3, None] / kcal, "F": frames.forces[:3] / kcal,
    }  # fmt: skip
    np.savez(tmp_path / "old.npz", **fields)
    with pytest.warns(DataWarning, match="does not say its units"):
        old = gdml.read(tmp_path / "old.npz")
    np.savez(tmp_path / "new.npz", **fields, r_unit="Ang", e_unit="kcal/mol")
    for dataset in (old, gdml.read(tmp_path / "new.npz")):
        np.testing.assert_allclose(dataset.energy, frames.energy[:3], rtol=1e-12)
        np.testing.assert_allclose(dataset.forces, frames.forces[:3], rtol=1e-12)


def test_sgdml_files(shared):
    dataset = gdml.read(shared("molecules/md17_ethanol.npz"))
    assert (len(dataset), dataset.formula) == (2000, "C2H6O")
    assert dataset.energy.mean() == pytest.approx(-97196.86631215164 * units.kcal / units.mol, rel=1e-12)
    with np.load(shared("molecules/md17_ethanol.npz")) as archive:
        assert sgdml_md5({k: archive[k] for k in ("z", "R", "E", "F")}) == archive["md5"].item()


def test_frozen(frames):
    with pytest.raises(ValueError, match="read-only"):
        frames.positions[0] = 0.0
    with pytest.raises(AttributeError):
        frames.energy = None


def test_fingerprint_sees_every_label(frames):
    prints = {frames[:3].fingerprint, frames[1:4].fingerprint}
    prints.add(gdml.Dataset(frames.positions[:3], frames.numbers, forces=frames.forces[:3]).fingerprint)
    assert len(prints) == 3
    assert frames[:3].fingerprint == gdml.read(frames[:3].to_atoms()).fingerprint


@pytest.mark.parametrize("strata", ["energy", None])
def test_sampling(frames, strata):
    drawn = frames.sample(50, seed=3, strata=strata)
    assert len(set(drawn.tolist())) == 50
    assert (drawn == frames.sample(50, seed=3, strata=strata)).all()
    assert (drawn != frames.sample(50, seed=4, strata=strata)).any()
    others = frames.sample(190, seed=3, strata=strata, exclude=drawn)
    assert sorted([*drawn, *others]) == list(range(240))


def test_energy_strata_keep_the_distribution(frames):
    def distance(drawn):
        return np.abs(np.quantile(frames.energy[drawn], QUANTILES) - np.quantile(frames.energy, QUANTILES)).mean()

    QUANTILES = np.linspace(0.05, 0.95, 19)
    stratified, uniform = (
        np.mean([distance(frames.sample(40, seed=s, strata=strata)) for s in range(20)]) for strata in ("energy", None)
    )
    assert stratified < 0.5 * uniform


@pytest.mark.parametrize("n", [0, 241])
def test_too_many_asked_for(frames, n):
    with pytest.raises(DataError, match="240 to draw from"):
        frames.sample(n)
