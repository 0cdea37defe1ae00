"""Molecular dynamics: conservation, temperature, reproducibility, refusals."""

import dataclasses

import numpy as np
import pytest
from ase.constraints import FixAtoms
from ase.io import read

from gdml.dynamics import run_md
from gdml.errors import DataError, DynamicsError, ModelMismatchError, OutputError


@pytest.fixture
def atoms(frames):
    return frames[[3]].to_atoms()[0]


def test_nve_conserves_energy(force_field, atoms):
    report = run_md(force_field, atoms, steps=400, temperature_K=300, ensemble="nve", timestep_fs=0.25)
    assert abs(report.energy_drift) < 1e-3  # eV per atom and ps
    assert report.energy_fluctuation < 3e-4


def test_fluctuation_is_of_second_order_in_the_timestep(force_field, frames):
    reports = [
        run_md(force_field, frames[[3]].to_atoms()[0], steps=int(100 / dt), temperature_K=300, ensemble="nve",
               timestep_fs=dt, interval=1)
        for dt in (0.5, 0.25)
    ]  # fmt: skip
    assert reports[0].energy_fluctuation / reports[1].energy_fluctuation == pytest.approx(4.0, rel=0.3)


def test_langevin_holds_the_temperature(force_field, atoms):
    report = run_md(force_field, atoms, steps=3000, temperature_K=300, friction_per_fs=0.05)
    assert report.temperature_K == pytest.approx(300, rel=0.15)
    assert report.energy_drift is None
    assert "drifts" not in str(report)
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-8)


def test_same_seed_same_run(force_field, frames):
    ends = []
    for seed in (1, 1, 2):
        atoms = frames[[3]].to_atoms()[0]
        run_md(force_field, atoms, steps=20, temperature_K=300, seed=seed)
        ends.append(atoms.positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-4


def test_trajectory(force_field, atoms, tmp_path):
    run_md(force_field, atoms, steps=20, temperature_K=300, trajectory=tmp_path / "a.traj", interval=5)
    frames = read(tmp_path / "a.traj", ":")
    assert len(frames) == 5
    assert frames[-1].get_potential_energy() == pytest.approx(atoms.get_potential_energy())


def test_interval_longer_than_the_run(force_field, atoms, tmp_path):
    report = run_md(force_field, atoms, steps=4, temperature_K=300, trajectory=tmp_path / "a.traj", ensemble="nve")
    assert len(read(tmp_path / "a.traj", ":")) == 2
    assert report.energy_drift is None


def test_own_constraints_are_kept(force_field, atoms):
    atoms.set_constraint(FixAtoms([0]))
    start = atoms.positions[0].copy()
    run_md(force_field, atoms, steps=10, temperature_K=300)
    np.testing.assert_array_equal(atoms.positions[0], start)


def test_explosion_keeps_the_trajectory(force_field, atoms, tmp_path):
    wild = dataclasses.replace(force_field, w=-100 * force_field.w)
    with (
        pytest.warns(UserWarning, match="outside the region"),
        pytest.raises(DynamicsError, match="flew apart: at step .* outside the training region"),
    ):
        run_md(wild, atoms, steps=500, temperature_K=300, trajectory=tmp_path / "a.traj")
    assert len(read(tmp_path / "a.traj", ":")) >= 1


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"temperature_K": 0.0}, DataError, "temperature_K must be positive"),
        ({"temperature_K": np.nan}, DataError, "temperature_K must be positive"),
        ({"timestep_fs": np.inf}, DataError, "timestep_fs must be positive and finite"),
        ({"interval": 0}, DataError, "interval must be positive"),
        ({"friction_per_fs": -1.0}, DataError, "friction_per_fs must not be negative"),
        ({"trajectory": "a.extxyz"}, OutputError, "must end in .traj"),
        ({"timestep_fs": -1.0}, DataError, "timestep_fs must be positive"),
        ({"steps": 0}, DataError, "steps must be positive"),
        ({"ensemble": "npt"}, DataError, "ensemble is 'langevin' or 'nve'"),
        ({"trajectory": "/nowhere/a.traj"}, OutputError, "folder /nowhere does not exist"),
    ],
)
def test_bad_settings(force_field, atoms, settings, error, message):
    with pytest.raises(error, match=message):
        run_md(force_field, atoms, **({"steps": 5, "temperature_K": 300.0} | settings))


def test_other_molecule(force_field, molecules):
    with pytest.raises(ModelMismatchError):
        run_md(force_field, molecules["water"].to_atoms()[0], steps=5, temperature_K=300)
