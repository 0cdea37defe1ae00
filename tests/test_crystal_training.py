"""Training on crystals, from frames to stress and dynamics: copper by effective medium theory."""

from contextlib import nullcontext
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import gdml
from gdml import contractions, operators
from gdml.cli import main
from gdml.descriptors import PeriodicInverseDistances, SideBySide, SmoothInverseDistances
from gdml.errors import (
    DataError,
    DataWarning,
    EnergyWarning,
    ExtrapolationWarning,
    ModelMismatchError,
    SymmetryError,
)

# The cells here are small, for speed.
pytestmark = pytest.mark.filterwarnings("ignore:the shortest lattice vector")


def shaken(ideal, n_frames, seed=0):
    """Frames with random displacements, and their forces."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n_frames):
        atoms = ideal.copy()
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def ideal():
    return bulk("Cu") * (2, 2, 3)


@pytest.fixture(scope="module")
def copper(ideal):
    return gdml.read(shaken(ideal, 30))


@pytest.fixture(autouse=True, scope="module")
def with_fourier_sums():
    """Also where they are not faster, as in these small cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contractions, "MANY_ENTRIES", 1)
        yield


@pytest.fixture(scope="module")
def force_field(copper, ideal):
    return gdml.fit(copper[:12], reference=ideal)


def test_learns_with_all_symmetries_what_it_does_not_without(copper, force_field, ideal):
    assert force_field.group.order == 12 * 4  # of the cube, only the rhombohedral part that keeps a 2 x 2 x 3 cell
    assert isinstance(force_field.descriptor, SideBySide)
    rest = copper[12:]
    plain = gdml.fit(copper[:12], symmetry="none", length_scale=force_field.length_scale)
    symmetric, without = (gdml.evaluate(f, rest).forces_mae for f in (force_field, plain))
    assert symmetric < 0.2 * without
    assert symmetric < 0.05 * np.abs(rest.forces).mean()


def test_reference_is_found_from_the_frames(copper, force_field):
    found = gdml.fit(copper[:12], length_scale=force_field.length_scale)
    assert found.group == force_field.group


def test_moves_of_the_lattice_change_nothing(force_field, copper, rng):
    positions = copper.positions[20]
    energy, forces, _ = force_field.predict(positions)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-9)
    images = rng.integers(-2, 3, size=positions.shape) @ force_field.cell
    for row, moved in [(np.arange(12), positions + images + 0.3)] + [
        (row, positions[row]) for row in force_field.group.permutations[::7]
    ]:
        other = force_field.predict(moved)
        assert other.energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(other.forces, forces[row], atol=1e-8)


def test_stress_by_finite_differences(force_field, copper):
    atoms = copper.to_atoms()[3]
    atoms.set_cell(atoms.cell.array @ np.array([[1.01, 0, 0], [0.02, 1, 0], [0, 0.01, 0.98]]), scale_atoms=True)
    atoms.calc = gdml.GDMLCalculator(force_field, warn_outside=False)
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), expected, atol=1e-8)
    assert np.abs(expected).min() > 1e-5


def test_fourier_sums_are_the_direct_sums(force_field, copper, monkeypatch):
    assert force_field.group.split()[0].shape == (12, 12)
    found = []
    for least in (1, 10**9):
        monkeypatch.setattr(contractions, "MANY_ENTRIES", least)
        again = gdml.ForceField(**{k: getattr(force_field, k) for k in force_field.__dataclass_fields__})
        found.append(again.predict(copper.positions[12:]))
    found, expected = found
    np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-10)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-10)


def test_saved_and_loaded(force_field, copper, tmp_path):
    force_field.save(tmp_path / "cu.npz")
    again = gdml.load(tmp_path / "cu.npz")
    assert again.group.split()[0].shape == (12, 12)
    assert again.group.spacegroup == force_field.group.spacegroup
    np.testing.assert_array_equal(again.predict(copper.positions).forces, force_field.predict(copper.positions).forces)
    with pytest.raises(ModelMismatchError, match="inverse distances with power 1 only"):
        force_field.save(tmp_path / "other.npz", format="sgdml")


def test_conjugate_gradients_train_as_the_closed_form(copper, ideal, force_field):
    settings = {"reference": ideal, "length_scale": force_field.length_scale, "noise": 1e-8}
    closed = gdml.fit(copper[:12], **settings, solver="cholesky")
    iterative = gdml.fit(copper[:12], **settings, solver="cg", rank=100, rtol=1e-7)
    left, right = (f.predict(copper.positions[12:]).forces for f in (closed, iterative))
    np.testing.assert_allclose(left, right, atol=1e-4 * np.abs(left).max())


def test_other_descriptor(copper, ideal):
    nearest = PeriodicInverseDistances(12, ideal.cell.array, power=1.0)
    force_field = gdml.fit(copper[:6], reference=ideal, descriptor=nearest, length_scale=1.0)
    assert force_field.descriptor == nearest


def test_command_line(copper, ideal, tmp_path, capsys):
    ase.io.write(tmp_path / "cu.extxyz", shaken(ideal, 14))
    ase.io.write(tmp_path / "ideal.vasp", ideal)
    model = str(tmp_path / "m.npz")
    data = str(tmp_path / "cu.extxyz")
    train = ["train", data, "--n-train", "8", "--reference", str(tmp_path / "ideal.vasp"), "-o", model, "-q"]
    assert main(train) == 0
    assert main(["test", model, data]) == 0
    assert main(["show", model]) == 0
    assert "symmetry of order 48 (Fm-3m (225); 12 translations x 4)" in capsys.readouterr().out
    assert main(["md", model, data, "--temperature", "100", "--steps", "5", "-o", str(tmp_path / "md.traj")]) == 0
    last = ase.io.read(tmp_path / "md.traj")
    assert last.pbc.all()
    np.testing.assert_allclose(last.cell.array, ideal.cell.array, atol=1e-10)


# Stress


@pytest.fixture(scope="module")
def cube():
    """Large enough that no atom is a neighbour twice."""
    return bulk("Cu", cubic=True) * (2, 2, 2)


@pytest.fixture(scope="module")
def strained(cube):
    """Frames with cells of their own, and stress."""
    rng = np.random.default_rng(3)
    frames = shaken(cube, 18, seed=3)
    for atoms in frames:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.01, size=(3, 3))), scale_atoms=True)
        atoms.get_stress()
    return gdml.read(frames)


def test_stress_is_learned_from_strained_cells(strained, cube):
    assert strained.cell.shape == (18, 3, 3)
    training, test = strained[:10], strained[10:]
    learned = gdml.fit(training, reference=cube, use_stress=True)
    # From forces alone, nobody knows how the energy changes from cell to cell.
    with pytest.warns(EnergyWarning, match="disagree with the integrated forces"):
        blind = gdml.fit(training, reference=cube, length_scale=learned.length_scale)
    with_stress, without = (gdml.evaluate(f, test) for f in (learned, blind))
    assert with_stress.stress_mae < 0.3 * without.stress_mae
    assert with_stress.stress_mae < 0.1 * np.abs(test.stress).mean()
    assert with_stress.forces_mae < 1.2 * without.forces_mae


@pytest.mark.parametrize(("use_energy", "dense"), [(False, operators.DENSE), (True, operators.DENSE), (True, 1)])
def test_stress_labels_by_conjugate_gradients(strained, cube, use_energy, dense, monkeypatch):
    monkeypatch.setattr(operators, "DENSE", dense)
    settings = {"reference": cube, "length_scale": 10.0, "noise": 1e-6, "use_energy": use_energy, "use_stress": True}
    closed = gdml.fit(strained[:4], **settings, solver="cholesky")
    iterative = gdml.fit(strained[:4], **settings, solver="cg", rank=60, rtol=1e-8)
    left, right = (f.predict(strained.positions, strained.cell, stress=True) for f in (closed, iterative))
    for found, expected in zip(left, right):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_relaxation_of_the_cell(strained, cube):
    force_field = gdml.fit(strained[:10], reference=cube, use_stress=True)
    atoms = cube.copy()
    atoms.set_cell(1.01 * atoms.cell.array, scale_atoms=True)
    atoms.calc = gdml.GDMLCalculator(force_field, warn_outside=False)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001, steps=100)
    expected = cube.copy()
    expected.calc = EMT()
    BFGS(FrechetCellFilter(expected), logfile=None).run(fmax=0.001, steps=100)
    assert atoms.get_volume() == pytest.approx(expected.get_volume(), rel=0.003)


# What does not fit


def test_cells(copper, ideal):
    with pytest.raises(DataError, match="has no cell|have no cell"):
        gdml.fit(gdml.Dataset(copper.positions, copper.numbers, forces=copper.forces, pbc=True))
    cells = np.repeat(ideal.cell.array[None], 30, 0)
    cells[4] *= 1.1
    other = gdml.Dataset(copper.positions, copper.numbers, forces=copper.forces, cell=cells, pbc=True)
    with pytest.raises(SymmetryError, match="the frames differ in their cells.* give a reference"):
        gdml.fit(other)
    with pytest.raises(DataError, match="use_stress needs stress labels"):
        gdml.fit(replace(copper, stress=None), reference=ideal, use_stress=True)


def changed(atoms, **properties):
    atoms = atoms.copy()
    for name, value in properties.items():
        setattr(atoms, name, value)
    return atoms


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda a: changed(a, numbers=np.full(12, 28)), SymmetryError, "the reference is Ni12, the frames are Cu12"),
        (lambda a: changed(a, pbc=(True, True, False)), SymmetryError, "the reference has pbc="),
        (lambda a: changed(a, cell=1.01 * a.cell.array), SymmetryError, "the cell of the reference"),
        (lambda a: changed(a, positions=a.positions[[0, 0, *range(2, 12)]]), DataError, "cannot be told to be those"),
        (lambda a: "nowhere.vasp", FileNotFoundError, "nowhere.vasp"),
        (lambda a: [a], DataError, "must be ase.Atoms, or the path of a file, not list"),
    ],
)
def test_references_that_do_not_fit(copper, ideal, change, error, message):
    with pytest.raises(error, match=message):
        gdml.fit(copper[:4], reference=change(ideal), length_scale=1.0)


@pytest.mark.parametrize("numbers", [[29] * 12, [29, 79, 29, 29] * 3], ids=["elemental", "alloy"])
def test_reference_in_another_order(copper, ideal, numbers, rng):
    frames, ideal = replace(copper[:6], numbers=np.array(numbers)), changed(ideal, numbers=numbers)
    ordered = gdml.fit(frames, reference=ideal, length_scale=10.0)
    with pytest.warns(DataWarning, match="were sorted to those of the frames"):
        shuffled = gdml.fit(frames, reference=ideal[rng.permutation(12)], length_scale=10.0)
    assert shuffled.group == ordered.group
    np.testing.assert_allclose(shuffled.w, ordered.w, rtol=1e-6, atol=1e-6 * np.abs(ordered.w).max())


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("atoms", [bulk("Cu") * (2, 2, 3), fcc111("Cu", (2, 2, 3), vacuum=6.0)], ids=["bulk", "slab"])
def test_frames_that_drifted_and_were_wrapped(atoms, shuffled, rng):
    """With the first atom displaced most; the group is the same."""
    atoms = atoms.copy()
    atoms.pbc = atoms.cell.array.any(1)
    atoms.constraints = []
    positions = atoms.positions + rng.normal(scale=0.05, size=(5, len(atoms), 3))
    positions[:, 0, 0] += 0.4
    drift = np.array([0.9, 0.4, 0.0 if not atoms.pbc[2] else 0.7])
    frames = []
    for k, one in enumerate(positions):
        frame = changed(atoms, positions=one + k * drift)
        frame.wrap()
        frames.append(frame)
    wrapped = np.array([f.positions for f in frames])
    dataset = gdml.Dataset(
        wrapped, atoms.numbers, forces=rng.normal(size=wrapped.shape), cell=atoms.cell.array, pbc=atoms.pbc
    )
    reference = atoms[rng.permutation(len(atoms))] if shuffled else atoms
    with pytest.warns(DataWarning, match="were sorted") if shuffled else nullcontext():
        force_field = gdml.fit(dataset, reference=reference, length_scale=10.0, noise=1e-3)
    expected = gdml.crystal_group(atoms)
    np.testing.assert_array_equal(
        np.unique(force_field.group.permutations, axis=0), np.unique(expected.permutations, axis=0)
    )


def test_strained_frames_with_a_reference_of_another_size(rng):
    """Compared as fractions, with the mean cell, which is not that of the first frame."""
    ideal = bulk("Cu") * (1, 1, 8)
    factors = [1.09, 1.06, 1.06, 1.03]
    cells = np.array([f * ideal.cell.array for f in factors])
    positions = np.array([f * ideal.positions for f in factors]) + rng.normal(scale=0.05, size=(4, 8, 3))
    dataset = gdml.Dataset(positions, ideal.numbers, forces=rng.normal(size=(4, 8, 3)), cell=cells, pbc=True)
    force_field = gdml.fit(dataset, reference=ideal, length_scale=10.0, noise=1e-3)
    assert force_field.group == gdml.crystal_group(ideal)
    np.testing.assert_allclose(force_field.cell, 1.06 * ideal.cell.array)
    with pytest.raises(SymmetryError, match="the cell of the reference"):
        gdml.fit(dataset, reference=changed(ideal, cell=0.9 * ideal.cell.array), length_scale=10.0)
    for wrong in (np.zeros((3, 3)), cells[2][[1, 0, 2]], 1.3 * cells[2]):
        with pytest.raises(SymmetryError, match="^frame 2: the cell of the reference is"):
            gdml.fit(replace(dataset, cell=np.array([*cells[:2], wrong, cells[3]])), reference=ideal, length_scale=10.0)


@pytest.mark.parametrize("rattle", [0.002, 0.005])
def test_a_reference_that_is_not_quite_ideal(copper, ideal, rattle):
    rough = ideal.copy()
    rough.rattle(rattle, seed=1)
    with pytest.raises(SymmetryError, match="operations, but within 0.03 Å .* give symprec=0.03 to take these"):
        gdml.fit(copper[:5], reference=rough, length_scale=10.0)
    force_field = gdml.fit(copper[:5], reference=rough, symprec=0.03, length_scale=10.0)
    assert force_field.group == gdml.crystal_group(ideal)
    with pytest.warns(DataWarning, match="the reference has no symmetry"):
        gdml.fit(copper[:5], reference=copper.to_atoms()[7], length_scale=10.0)


def test_descriptors_of_other_geometries(copper, ideal, frames):
    cell = ideal.cell.array
    for descriptor in (
        gdml.InverseDistances(12),
        SmoothInverseDistances(11, cell),
        SmoothInverseDistances(12, cell, pbc=(True, True, False)),
        SmoothInverseDistances(12, 1.1 * cell),
    ):
        with pytest.raises(DataError, match="the descriptor is for"):
            gdml.fit(copper[:5], reference=ideal, descriptor=descriptor)
    with pytest.raises(DataError, match="the descriptor is for"):
        gdml.fit(frames[:5], descriptor=SmoothInverseDistances(9, np.eye(3) * 10))


def test_stress_that_was_not_trained_on(force_field, copper):
    atoms = copper.to_atoms()[0]
    atoms.calc = gdml.GDMLCalculator(force_field)
    with pytest.warns(ExtrapolationWarning, match="trained without"):
        atoms.get_stress()


def test_what_the_sgdml_format_cannot_hold(copper, tmp_path):
    with pytest.raises(DataError, match="no room for stress; write .extxyz"):
        copper.write(tmp_path / "x.npz")
    sheet = replace(copper, stress=None, pbc=(True, True, False))
    with pytest.raises(DataError, match=r"no room for pbc=\[True, True, False\]"):
        sheet.write(tmp_path / "x.npz")
    replace(copper, stress=None, pbc=False).write(tmp_path / "x.npz")
    assert gdml.read(tmp_path / "x.npz").pbc == (False, False, False)


def test_stress_of_an_odd_shape(ideal):
    frame = shaken(ideal, 1)[0]
    frame.calc = None
    frame.info |= {"energy": 0.0, "stress": np.zeros(5)}
    frame.arrays["forces"] = np.ones((12, 3))
    with pytest.raises(DataError, match=r"stress has the shape \(5,\)"):
        gdml.read([frame])


def test_one_frame_in_another_order(copper, ideal):
    positions = copper.positions[:4].copy()
    positions[2, [3, 7]] = positions[2, [7, 3]]
    with pytest.raises(DataError, match="frame 2: atoms are far from their places .* is their order the same"):
        gdml.fit(replace(copper[:4], positions=positions), reference=ideal, length_scale=1.0)


def test_an_atom_that_wanders_through_its_host(rng):
    """The host's group: the atom's place does not break it, wherever it is."""
    host = bulk("Pd", cubic=True) * 2
    group = gdml.direct_product([(gdml.crystal_group(host), np.arange(32))], 33)
    sites = np.array([host.positions[0] + fraction * host.cell.array[0] / 2 for fraction in (0.5, 0.45, 0.4)])
    ideal = [host + Atoms("H", [site]) for site in sites]
    frames = gdml.read([atoms for each in ideal for atoms in shaken(each, 6)])
    force_field = gdml.fit(frames[::2], symmetry=group)
    without = gdml.fit(frames[::2], symmetry="none", length_scale=force_field.length_scale)
    errors = [gdml.evaluate(each, frames[1::2]).forces_mae for each in (force_field, without)]
    assert errors[0] < 0.3 * errors[1]
    moved = frames.to_atoms()[1]
    moved.positions[32] += host.cell.array[1] / 2
    moved.calc = EMT()
    assert np.abs(force_field.predict(moved.positions).forces - moved.get_forces()).mean() < 2 * errors[0]


def test_a_cell_that_is_too_small(copper, ideal):
    with pytest.warns(DataWarning, match="shortest lattice vector, 5.11 Å, is hardly twice .* a larger supercell"):
        gdml.fit(copper[:4], reference=ideal, length_scale=10.0)


@pytest.mark.parametrize("cell", [np.diag([5.0, 5.0, 0.0]), np.ones((3, 3))])
def test_singular_cells(copper, cell):
    with pytest.raises((DataError, SymmetryError), match="lattice|singular|cell"):
        gdml.fit(replace(copper, cell=cell))


def test_left_handed_cells(copper, ideal):
    mirrored = replace(copper[:6], positions=-copper.positions[:6], forces=-copper.forces[:6], cell=-ideal.cell.array)
    reference = changed(ideal, positions=-ideal.positions, cell=-ideal.cell.array)
    left = gdml.fit(mirrored, reference=reference, length_scale=10.0)
    right = gdml.fit(copper[:6], reference=ideal, length_scale=10.0)
    np.testing.assert_allclose(left.predict(-copper.positions[8]).forces, -right.predict(copper.positions[8]).forces)


def test_reference_of_a_molecule(frames, ideal):
    with pytest.raises(DataError, match="a reference is for periodic geometries"):
        gdml.fit(frames[:5], reference=ideal)


def test_atoms_that_repeat_in_other_directions(force_field, copper):
    atoms = copper.to_atoms()[0]
    atoms.pbc = (True, True, False)
    atoms.calc = gdml.GDMLCalculator(force_field)
    with pytest.raises(ModelMismatchError, match="the force field is for pbc"):
        atoms.get_forces()


def test_a_slab_has_no_stress():
    ideal = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    force_field = gdml.fit(shaken(ideal, 8), length_scale=10.0)
    assert force_field.pbc == (True, True, False)
    atoms = shaken(ideal, 1, seed=5)[0]
    expected = atoms.get_forces()
    atoms.calc = gdml.GDMLCalculator(force_field)
    assert np.abs(atoms.get_forces() - expected).mean() < 0.5 * np.abs(expected).mean()
    with pytest.raises(NotImplementedError, match="no stress"):
        atoms.get_stress()


def test_what_only_crystals_have(frames):
    force_field = gdml.fit(frames[:10], length_scale=20.0)
    with pytest.raises(DataError, match="not periodic in the way"):
        force_field.predict(frames.positions[0], stress=True)
    with pytest.raises(DataError, match="not periodic in the way"):
        force_field.predict(frames.positions[0], cell=np.eye(3))


# Phonons


def test_phonons(copper, ideal):
    pytest.importorskip("phonopy")
    reference = bulk("Cu", cubic=True) * (2, 2, 2)
    force_field = gdml.fit(shaken(reference, 8), reference=reference)
    phonon = gdml.phonons(force_field, reference)
    assert len(phonon.primitive) == 1
    constants = phonon.force_constants
    np.testing.assert_allclose(constants.sum(1), 0, atol=1e-8)  # acoustic sum rule
    atoms = reference.copy()
    atoms.calc = EMT()
    expected = []
    for step in (0.01, -0.01):
        moved = atoms.copy()
        moved.calc = EMT()
        moved.positions[0, 0] += step
        expected.append(-moved.get_forces() / step)
    expected = sum(expected) / 2
    np.testing.assert_allclose(constants[0, :, 0], expected, atol=0.02 * np.abs(expected).max())


def test_phonons_of_another_structure(force_field, frames):
    pytest.importorskip("phonopy")
    with pytest.raises(ModelMismatchError, match="the atoms are Ni"):
        gdml.phonons(force_field, bulk("Ni") * (2, 2, 3))
    with pytest.raises(DataError, match="this one is for the molecule C2H6O"):
        gdml.phonons(gdml.fit(frames[:8], length_scale=20.0), frames.to_atoms()[0])


def test_phonons_of_bad_references(force_field, ideal, rng):
    with pytest.raises(ModelMismatchError, match="is for pbc="):
        gdml.phonons(force_field, changed(ideal, pbc=(True, True, False)))
    with pytest.raises(DataError, match="in the order of the training geometries"):
        gdml.phonons(force_field, ideal[[5, 3, 0, 11, 8, 1, 2, 4, 6, 7, 9, 10]])


@pytest.mark.parametrize("third", [0.0, 25.0])
def test_phonons_of_a_slab(third, rng):
    """Also where there is no third vector, and atoms are below zero."""
    slab = fcc111("Cu", (2, 2, 2), vacuum=0.0)
    slab.constraints = []
    slab.positions[:, 2] -= 1.0
    slab.cell[2] = [0, 0, third]
    slab.pbc = (True, True, False)
    positions = slab.positions + rng.normal(scale=0.05, size=(8, 8, 3))
    dataset = gdml.Dataset(
        positions, slab.numbers, forces=slab.positions - positions, cell=slab.cell.array, pbc=slab.pbc
    )
    phonon = gdml.phonons(gdml.fit(dataset, reference=slab, length_scale=20.0), slab)
    # Each atom is bound to its place, as nearly as a function of distances can say it.
    assert len(phonon.primitive) == 2
    assert phonon.force_constants.shape[1] == 8
    assert np.trace(phonon.force_constants[0, phonon.primitive.p2s_map[0]]) > 1.0
