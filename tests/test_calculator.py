"""The ASE calculator: conventions, refusals, warnings."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.optimize import BFGS

import gdml
from gdml.errors import ExtrapolationWarning, ModelMismatchError


@pytest.fixture
def atoms(frames, force_field):
    atoms = frames[[200]].to_atoms()[0]
    atoms.calc = gdml.GDMLCalculator(force_field)
    return atoms


def test_results(atoms, force_field):
    energy, forces, _ = force_field.predict(atoms.positions)
    assert atoms.get_potential_energy() == energy
    assert atoms.get_potential_energy(force_consistent=True) == energy
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    assert gdml.GDMLCalculator.implemented_properties == ["energy", "free_energy", "forces", "stress"]


def test_forces_by_finite_differences(atoms):
    np.testing.assert_allclose(calculate_numerical_forces(atoms, eps=1e-4), atoms.get_forces(), atol=1e-5)


def test_reads_a_file(force_field, atoms, tmp_path):
    force_field.save(tmp_path / "model.npz")
    calculator = gdml.GDMLCalculator(tmp_path / "model.npz")
    assert calculator.get_potential_energy(atoms) == atoms.get_potential_energy()


def test_relaxation(atoms):
    assert BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)


@pytest.mark.parametrize(
    "other, message",
    [
        (molecule("CH3OH"), "this force field is for C2H6O, the atoms are CH4O"),
        (molecule("CH3CH2OH")[::-1], "another order than in training: index 0 is H, expected C"),
    ],
)
def test_other_atoms(force_field, other, message):
    other.calc = gdml.GDMLCalculator(force_field)
    with pytest.raises(ModelMismatchError, match=message):
        other.get_potential_energy()


def test_warns_once_outside_the_training_region(atoms):
    atoms.positions[3] += 0.6 * (atoms.positions[3] - atoms.positions[2])
    with pytest.warns(ExtrapolationWarning, match=r"O2 and H3 are 1\.\d+ Å apart, in training 0\.\d+ to 1\.\d+"):
        atoms.get_forces()
    atoms.rattle(1e-3)
    atoms.get_forces()
    assert atoms.calc.n_outside == 2


def test_warning_can_be_left_out(atoms, force_field):
    calculator = gdml.GDMLCalculator(force_field, warn_outside=False)
    silent = Atoms(atoms.numbers, 1.3 * atoms.positions, calculator=calculator)
    silent.get_forces()
    assert silent.calc.n_outside == 1
