"""Prediction, files of this package, and files of the sGDML package."""

import numpy as np
import pytest
import torch

import gdml
from gdml import force_field as force_field_module
from gdml.errors import DataError, DataWarning, FormatError, ModelMismatchError


def test_batch_single_and_tensor(frames, force_field, monkeypatch):
    positions = frames.positions[100:107]
    batch = force_field.predict(positions)
    assert batch.energy.shape == (7,)
    assert batch.forces.shape == (7, 9, 3)
    for k, geometry in enumerate(positions):
        single = force_field.predict(geometry)
        assert single.energy == pytest.approx(batch.energy[k], abs=1e-9)
        np.testing.assert_allclose(single.forces, batch.forces[k], atol=1e-10)
    tensors = force_field.predict(torch.tensor(positions))
    np.testing.assert_array_equal(tensors.forces.numpy(), batch.forces)
    assert force_field.predict(torch.tensor(positions[0])).energy.shape == ()
    monkeypatch.setattr(force_field_module, "MAX_FRAMES", 2)
    np.testing.assert_allclose(force_field.predict(positions).forces, batch.forces, atol=1e-10)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
@pytest.mark.parametrize("use_energy", [False, True])
@pytest.mark.parametrize("power", [1.0, 3.0])
def test_save_and_load(frames, tmp_path, use_energy, power):
    descriptor = gdml.InverseDistances(9, power)
    force_field = gdml.fit(frames[:20], length_scale=12.5, use_energy=use_energy, descriptor=descriptor)
    force_field.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz")
    left, right = (f.predict(frames.positions[50:60]) for f in (force_field, again))
    np.testing.assert_array_equal(left.energy, right.energy)
    np.testing.assert_array_equal(left.forces, right.forces)
    assert again.details == force_field.details
    assert again.details["fingerprint"] == frames[:20].fingerprint
    assert repr(again) == repr(force_field)
    with np.load(tmp_path / "model.npz") as archive:
        assert not any(archive[name].dtype.hasobject for name in archive.files)


@pytest.mark.parametrize("use_energy", [False, True])
def test_sgdml_round_trip(frames, tmp_path, use_energy):
    force_field = gdml.fit(frames[:20], length_scale=20.0, use_energy=use_energy)
    force_field.save(tmp_path / "model.npz", format="sgdml")
    again = gdml.load(tmp_path / "model.npz")
    left, right = (f.predict(frames.positions[50:60]) for f in (force_field, again))
    np.testing.assert_allclose(left.energy, right.energy, atol=1e-9)
    np.testing.assert_allclose(left.forces, right.forces, atol=1e-9)
    assert again.symmetry == force_field.symmetry


def test_sgdml_limits(frames, force_field, tmp_path):
    other = gdml.fit(frames[:10], length_scale=5.0, kernel="gaussian")
    with pytest.raises(ModelMismatchError, match="Matérn-5/2 kernel"):
        other.save(tmp_path / "model.npz", format="sgdml")
    with pytest.warns(DataWarning, match="length scale 12.5, which is no integer"):
        gdml.fit(frames[:10], length_scale=12.5).save(tmp_path / "model.npz", format="sgdml")
    with pytest.raises(DataError, match="the format is"):
        force_field.save(tmp_path / "model.npz", format="xml")


@pytest.mark.parametrize(
    "model, data, force_mae",
    [
        ("sgdml_2018_ethanol", "md17_ethanol.npz", 0.0153),
        ("sgdml_2018_uracil", "md17_uracil_forces.extxyz", 1.2e-7),  # the forces were made by this model
        ("sgdml_1.0.3_ethanol", "md17_ethanol.npz", 0.0209),
    ],
)
def test_models_of_the_incumbent(shared, model, data, force_mae):
    force_field = gdml.load(shared(f"models/{model}.npz"))
    metrics = gdml.evaluate(force_field, gdml.read(shared(f"molecules/{data}")))
    assert metrics.forces_mae < 1.02 * force_mae
    if metrics.energy_mae is not None:
        assert metrics.energy_mae < 0.010


def test_benzene_of_the_incumbent(shared, molecules):
    force_field = gdml.load(shared("models/sgdml_0.2_benzene.npz"))
    assert force_field.symmetry.order == 12
    benzene = molecules["benzene"]
    assert np.sort(force_field.numbers).tolist() == np.sort(benzene.numbers).tolist()
    # -147,900 kcal/mol: benzene at this level of theory
    assert force_field.offset == pytest.approx(-101448.59635252223 * 0.0433641039, rel=1e-6)


def test_periodic_model_of_the_incumbent(shared):
    with pytest.raises(FormatError, match="a model with a lattice"):
        gdml.load(shared("models/sgdml_0.4_m_ethanol.npz"))


def test_outside(frames, force_field):
    assert force_field.outside(frames.positions[10]) == []
    stretched = frames.positions[10].copy()
    stretched[3] += 0.6 * (stretched[3] - stretched[2])  # O-H
    excess = force_field.outside(stretched)
    assert {2, 3} in [set(e.atoms) for e in excess]
    worst = excess[0]
    i, j = worst.atoms
    assert worst.distance == pytest.approx(np.linalg.norm(stretched[i] - stretched[j]))
    assert worst.shortest < worst.longest
    assert not worst.shortest <= worst.distance <= worst.longest
    # the group's copies of the training geometries count as training geometries
    for permutation in force_field.symmetry.permutations:
        assert force_field.outside(frames.positions[10][permutation]) == []


@pytest.mark.parametrize("shape", [(8, 3), (9, 2), (9,), (2, 3, 9, 3)])
def test_wrong_shapes(force_field, shape):
    with pytest.raises(DataError, match=r"positions must have the shape \(9, 3\) or \(M, 9, 3\) for C2H6O"):
        force_field.predict(np.zeros(shape))


def test_not_finite(force_field, frames):
    positions = frames.positions[0].copy()
    positions[3, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        force_field.predict(positions)


def test_coincident_atoms(force_field, frames):
    positions = frames.positions[:3].copy()
    positions[2, 4] = positions[2, 1]
    with pytest.raises(DataError, match="geometry 2: atoms C1 and H4 are 0 Å apart"):
        force_field.predict(positions)


def test_distances_that_training_holds_fixed(molecules, rng):
    """A rigid molecule, turned about: inside of its training region in spite of rounding."""
    water = molecules["water"]
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(6)]
    positions = np.array([water.positions[0] @ turn for turn in turns])
    positions += 1e-9 * rng.normal(size=positions.shape)
    x = gdml.InverseDistances(3).evaluate(torch.tensor(positions)).x.numpy()
    rigid = gdml.ForceField(
        water.numbers, gdml.InverseDistances(3), gdml.PermutationGroup.trivial(3),
        gdml.kernels.Matern52(20.0), x[:3], None, 0 * x[:3],
    )  # fmt: skip
    assert all(rigid.outside(p) == [] for p in positions)


def test_metrics(frames, force_field):
    metrics = gdml.evaluate(force_field, frames[100:])
    prediction = force_field.predict(frames.positions[100:])
    assert metrics.forces_mae == pytest.approx(np.abs(prediction.forces - frames.forces[100:]).mean())
    assert metrics.energy_rmse == pytest.approx(np.sqrt(np.mean((prediction.energy - frames.energy[100:]) ** 2)))
    assert "forces MAE" in str(metrics)
    with pytest.raises(DataError, match="no labels"):
        gdml.evaluate(force_field, gdml.Dataset(frames.positions[:3], frames.numbers))
