"""Baselines: their own forces, what is added and subtracted, files, and what goes wrong."""

import json
import pickle
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.units import Bohr, Hartree

import gdml
from gdml.baselines import ZBL, FixedCharges, as_baseline, catalogue
from gdml.cli import main
from gdml.data import ethanol
from gdml.errors import BaselineError, BaselineWarning, FormatError, MissingExtraError, ModelMismatchError

LJ = "lj(epsilon=0.002, sigma=1.0)"
# Those here are for tests of everything else.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the baseline .* does not help"),
    pytest.mark.filterwarnings("ignore:the shortest lattice vector"),
]


class Counting(LennardJones):
    """Counts its calculations, and fails on some."""

    def __init__(self, fails=(), value=None, **options):
        super().__init__(epsilon=0.002, sigma=1.0)
        self.n, self.fails, self.value = 0, set(fails), value

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        self.n += 1
        if self.n in self.fails:
            raise RuntimeError("no convergence")
        super().calculate(atoms, properties, system_changes)
        if self.value is not None:
            self.results["forces"][0, 0] = self.value


class EnergyOnly(Calculator):
    implemented_properties = ["energy"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0}


@pytest.fixture(scope="module")
def frames():
    return ethanol()[:40]


@pytest.fixture(scope="module")
def field(frames):
    return gdml.fit(frames[:20], baseline=LJ, length_scale=20.0)


def crystal() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.15, seed=3)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * np.array([[1, 2, 0], [0, -1, 1], [1, 0, 1]])), scale_atoms=True)
    return atoms


@pytest.mark.parametrize("calculator", [ZBL(), ZBL(inner=0.5, outer=3.0), FixedCharges(Na=1, Cl=-1)])
def test_pair_potentials_against_differences_in_a_crystal(calculator):
    atoms = crystal()
    atoms.calc = calculator
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, 1e-4), atol=2e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, 1e-5), atol=1e-7)


@pytest.mark.parametrize("calculator", [ZBL(), FixedCharges(C=-0.3, O=-0.5, H=0.2)])
def test_pair_potentials_against_differences_in_a_molecule(calculator):
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, 1e-4), atol=1e-6)


def test_madelung_constants():
    """Of rock salt and caesium chloride (Kittel, Introduction to Solid State Physics, ch. 3)."""
    for structure, a, constant, per in (
        ("rocksalt", 5.64, 1.747565, 0.5),
        ("cesiumchloride", 4.0, 1.762675, 0.75**0.5),
    ):
        atoms = bulk("NaCl", structure, a=a)
        atoms.calc = FixedCharges(Na=1, Cl=-1)
        expected = -constant * Hartree * Bohr / (per * a)
        assert atoms.get_potential_energy() == pytest.approx(expected, rel=1e-6)


def test_zbl_is_the_bare_repulsion_of_near_nuclei():
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1e-4]])
    atoms.calc = ZBL()
    assert atoms.get_potential_energy() == pytest.approx(48 * Hartree * Bohr / 1e-4, rel=2e-3)
    atoms.positions[1, 2] = 4.0
    assert atoms.get_potential_energy() == 0


@pytest.mark.parametrize(
    "text, names",
    [
        ("zbl", ["zbl"]),
        ("ZBL + coulomb(Na=1, Cl=-1)", ["zbl", "coulomb(Na=1, Cl=-1)"]),
        (["zbl(outer=3)", LJ], ["zbl(outer=3)", LJ]),
        ("d4(method=pbe)+gfn2-xtb", ["d4(method=pbe)", "gfn2-xtb"]),
    ],
)
def test_names(text, names):
    assert [str(term) for term in as_baseline(text).terms] == names


@pytest.mark.parametrize(
    "given, message",
    [
        ("gfn3", "unknown baseline 'gfn3'; known: gfn1-xtb"),
        ("zbl(3)", "not of the form option=value"),
        ("zbl + ", "not of the form name"),
        ("lj(epsilon=", "not of the form name"),
        (3, "a name or an ASE calculator, not 3"),
        ([], "an empty list"),
    ],
)
def test_what_is_no_baseline_is_refused(given, message):
    with pytest.raises(BaselineError, match=message):
        as_baseline(given)


@pytest.mark.parametrize(
    "given, message",
    [
        ("zbl(inner=5)", "needs 0 <= inner < outer"),
        ("coulomb(Q=1)", "there is no Q"),
        ("coulomb(C=1)", "no charge for H, O"),
        ("zbl(radius=5)", "cannot be made: TypeError"),
        ("d4", "needs the functional"),
        ("lj(eps=5.0)", "LennardJones does not know eps; its options are"),
        (EnergyOnly(), "EnergyOnly has no forces"),
        (Counting(value=np.nan), "gave NaN or infinite values"),
        (Counting(fails=[5]), "failed on frame 4 .Counting: RuntimeError: no convergence.; leave such frames out"),
    ],
)
def test_baselines_that_fail(frames, given, message):
    with pytest.raises(BaselineError, match=message):
        gdml.fit(frames[:10], baseline=given, length_scale=20.0)


@pytest.mark.parametrize("package, name", [("tblite.ase", "gfn2-xtb"), ("dftd4.ase", "d4(method=pbe)")])
def test_a_missing_package_is_named(frames, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gdml\["):
        gdml.fit(frames[:10], baseline=name, length_scale=20.0)


@pytest.fixture
def named(monkeypatch):
    """A name for whatever calculator is put into the list."""
    made = []
    monkeypatch.setitem(catalogue.BY_NAME, "counting", lambda: made[-1])
    return made


def test_labels_are_cached_and_none_is_computed_twice(frames, tmp_path, named):
    """But one, to see that the file has what is found today."""
    path, first, second = tmp_path / "labels.npz", Counting(), Counting()
    named.append(first)
    labels = as_baseline("counting").labels(frames[:10], cache=path)
    named.append(second)
    again = as_baseline("counting").labels(frames[:14], cache=path)
    assert (first.n, second.n) == (10, 5)
    np.testing.assert_array_equal(labels.forces, again.forces[:10])
    with pytest.raises(FormatError, match="no labels of the baseline zbl"):
        as_baseline("zbl").labels(frames[:2], cache=path)
    with pytest.raises(FormatError, match="labels of 9 atoms, not of 2"):
        as_baseline("counting").labels(gdml.read(molecule("N2")), cache=path)
    named.append(Counting(value=1.0))
    with pytest.raises(BaselineError, match="labels of another version of counting; delete this file"):
        as_baseline("counting").labels(frames[:2], cache=path)
    with pytest.raises(BaselineError, match="would not know its settings"):
        as_baseline(Counting()).labels(frames[:2], cache=tmp_path / "other.npz")


def test_labels_of_the_other_frames_are_kept_where_one_fails(frames, tmp_path, named):
    path = tmp_path / "labels.npz"
    named.append(Counting(fails=[7]))
    with pytest.raises(BaselineError, match="frame 6"):
        as_baseline("counting").labels(frames[:10], cache=path)
    named.append(Counting())
    as_baseline("counting").labels(frames[:10], cache=path)
    assert named[-1].n == 2  # the missing one, and the check


def test_labels_by_several_processes_are_the_same(frames, monkeypatch):
    monkeypatch.setattr("gdml.baselines.labels.WORTH_STARTING", 0.0)
    one_by_one = as_baseline(LJ).evaluate(frames.numbers, frames.positions)
    np.testing.assert_allclose(as_baseline(LJ).labels(frames).forces, one_by_one.forces, atol=1e-12)


def test_what_the_baseline_explains_need_not_be_learned(frames, field):
    """Labels that are the baseline's plus others': the same force field as of the others, plus the baseline."""
    more = as_baseline(LJ).labels(frames)
    sums = gdml.Dataset(
        frames.positions, frames.numbers, energy=frames.energy + more.energy, forces=frames.forces + more.forces
    )
    with_baseline = gdml.fit(sums[:20], baseline=LJ, length_scale=20.0)
    direct = gdml.fit(frames[:20], length_scale=20.0).predict(frames.positions)
    found = with_baseline.predict(frames.positions)
    np.testing.assert_allclose(found.forces, direct.forces + more.forces, atol=1e-7)
    np.testing.assert_allclose(found.energy, direct.energy + more.energy, atol=1e-7)


def test_predictions_are_consistent(frames, field):
    """Forces are the slope of the energy, the Hessian that of forces, and ASE sees the sum."""
    atoms = Atoms(frames.numbers, frames.positions[30])
    found = field.predict(atoms.positions)
    atoms.calc = gdml.GDMLCalculator(field, warn_outside=False)
    np.testing.assert_allclose(atoms.get_forces(), found.forces, atol=1e-10)
    np.testing.assert_allclose(found.forces, calculate_numerical_forces(atoms, 1e-4), atol=1e-6)
    hessian = field.hessian(atoms.positions)
    moved = np.eye(27)[4].reshape(9, 3) * 1e-3
    slopes = field.predict(atoms.positions - moved).forces - field.predict(atoms.positions + moved).forces
    np.testing.assert_allclose(hessian[4], slopes.ravel() / 2e-3, atol=2e-4 * np.abs(hessian).max())
    assert gdml.evaluate(field, frames[20:]).forces_mae == pytest.approx(
        np.abs(field.predict(frames.positions[20:]).forces - frames.forces[20:]).mean()
    )


def test_stress_of_a_crystal_is_a_sum(tmp_path):
    ideal = bulk("Cu", cubic=True)
    frames = []
    for k in range(5):
        atoms = ideal.copy()
        atoms.set_cell(atoms.cell * (1 + 0.005 * (k - 3)), scale_atoms=True)
        atoms.rattle(0.08, seed=k)
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    field = gdml.fit(
        frames,
        reference=ideal,
        baseline="zbl(outer=3.5)",
        length_scale=2.0,
        noise=1e-8,
        use_stress=True,
        use_energy=True,
    )
    field.save(tmp_path / "m.npz")
    atoms = frames[0].copy()
    atoms.calc = gdml.GDMLCalculator(tmp_path / "m.npz", warn_outside=False)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, 1e-5), atol=1e-6)


def test_copies_for_other_processes(frames, field):
    again = pickle.loads(pickle.dumps(field.baseline))
    found, expected = (one.evaluate(frames.numbers, frames.positions[:3]).forces for one in (again, field.baseline))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(MissingExtraError, match="needs tblite"):
        raise pickle.loads(pickle.dumps(MissingExtraError("tblite", "this", "xtb")))


def test_files_keep_names_and_examples(frames, field, tmp_path):
    path = tmp_path / "m.npz"
    field.save(path)
    again = gdml.load(path)
    assert str(again.baseline) == LJ
    np.testing.assert_allclose(
        again.predict(frames.positions[30:]).forces, field.predict(frames.positions[30:]).forces, atol=1e-10
    )
    with pytest.raises(ModelMismatchError, match="no baseline"):
        field.save(tmp_path / "s.npz", format="sgdml")


def test_a_calculator_that_was_given_has_to_be_given_again(frames, tmp_path):
    path = tmp_path / "m.npz"
    field = gdml.fit(frames[:10], baseline=Counting(), length_scale=20.0)
    field.save(path)
    with pytest.raises(BaselineError, match=r"the calculator Counting.*gdml.load\(..., baseline=calculator\)"):
        gdml.load(path).predict(frames.positions[0])
    again = gdml.load(path, baseline=Counting())
    np.testing.assert_allclose(again.predict(frames.positions[30]).forces, field.predict(frames.positions[30]).forces)
    with pytest.raises(BaselineError, match="is not the one of the training"):
        gdml.load(path, baseline=Counting(value=0.5))
    with pytest.raises(BaselineError, match="of the training is Counting, the given one is zbl"):
        gdml.load(path, baseline="zbl")


def test_another_baseline_under_the_same_name_is_refused(frames, field, tmp_path):
    path = tmp_path / "m.npz"
    field.save(path)
    archive = dict(np.load(path))
    recipe = json.loads(str(archive["recipe"]))
    recipe["baseline"]["terms"][0]["options"]["sigma"] = 1.2
    np.savez(path, **archive | {"recipe": json.dumps(recipe)})
    with pytest.raises(BaselineError, match="is not the one of the training: its forces"):
        gdml.load(path).predict(frames.positions[0])


def test_a_force_field_without_baseline_takes_none(frames, tmp_path):
    gdml.fit(frames[:10], length_scale=20.0).save(tmp_path / "m.npz")
    with pytest.raises(BaselineError, match="without a baseline"):
        gdml.load(tmp_path / "m.npz", baseline="zbl")


def test_a_baseline_that_does_not_help_is_noticed(frames):
    with pytest.warns(BaselineWarning, match="does not help: with 24 geometries"):
        field = gdml.fit(frames[:30], baseline="lj(epsilon=2.0, sigma=1.5)", descriptor="inverse-distances")
    errors = field.details["baseline_errors"]
    assert errors["with"] > errors["without"] > 0


def test_one_that_helps_is_not(frames):
    pytest.importorskip("tblite")
    field = gdml.fit(frames[:20], baseline="gfn2-xtb", descriptor="inverse-distances")
    errors = field.details["baseline_errors"]
    assert errors["with"] < 0.7 * errors["without"]
    direct = gdml.fit(frames[:20], descriptor="inverse-distances")
    with_baseline, without = (gdml.evaluate(one, frames[20:]).forces_mae for one in (field, direct))
    assert with_baseline < 0.6 * without


def test_units_are_checked_on_the_labels_not_on_differences(frames):
    wrong = gdml.Dataset(frames.positions, frames.numbers, energy=frames.energy * 23.06, forces=frames.forces)
    with pytest.raises(gdml.errors.DataError, match="kcal/mol"):
        gdml.fit(wrong, baseline=LJ, length_scale=20.0)


def test_the_command_line(frames, tmp_path, capsys):
    data, model = tmp_path / "data.extxyz", tmp_path / "m.npz"
    frames.write(data)
    arguments = [
        "train",
        str(data),
        "-o",
        str(model),
        "--n-train",
        "20",
        "--length-scale",
        "20",
        "--noise",
        "1e-10",
        "-q",
    ]
    assert main([*arguments, "--baseline", LJ]) == 0
    assert f"baseline {LJ}" in capsys.readouterr().out
    (cache,) = tmp_path.glob("data.lj*.npz")
    assert len(np.load(cache)["keys"]) == 40


def test_geometries_at_the_same_time_are_as_one_after_the_other(frames):
    """Small geometries go to threads, and the error of one of them comes back."""
    positions = frames.positions[:6].copy()
    together = as_baseline("zbl").evaluate(frames.numbers, positions)
    alone = [as_baseline("zbl").evaluate(frames.numbers, one[None]) for one in positions]
    np.testing.assert_array_equal(together.forces, np.concatenate([one.forces for one in alone]))
    np.testing.assert_array_equal(together.energy, np.concatenate([one.energy for one in alone]))
    positions[3, 1] = positions[3, 0]
    with pytest.raises(BaselineError, match="LennardJones"):
        as_baseline("lj").evaluate(frames.numbers, positions)
