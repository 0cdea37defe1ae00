"""Bad input: an exception of ours that says what was found, where, and what to do."""

import zipfile

import ase.io
import numpy as np
import pytest

import gdml
from gdml.errors import DataError, DataWarning, FitError, FormatError, OutputError, SymmetryError

FORCES = np.zeros((2, 2, 3))
POSITIONS = np.array([[[0.0, 0, 0], [0, 0, 0.75]], [[0.0, 0, 0], [0, 0, 0.8]]])


def replaced(frames, **fields):
    given = {f: getattr(frames, f) for f in ("positions", "numbers", "energy", "forces")}
    return gdml.Dataset(**(given | fields))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["positions", "energy", "forces"])
def test_not_finite(frames, field, value):
    broken = getattr(frames, field).copy()
    broken[17] = value
    with pytest.raises(DataError, match=f"{field} of frame 17 is NaN or infinite"):
        replaced(frames, **{field: broken})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"positions": np.zeros((2, 6))}, "positions must have the shape"),
        ({"numbers": [1, 1, 1]}, "2 atoms have positions but 3 have numbers"),
        ({"forces": np.zeros((2, 3, 3))}, "forces must have the shape"),
        ({"energy": np.zeros(3)}, "energy must have the shape"),
        ({"stress": np.zeros((2, 3))}, "stress must have the shape"),
        ({"cell": np.zeros((4, 3, 3))}, "cell must have the shape"),
        ({"numbers": ["H", "H"]}, "numbers must be atomic numbers"),
        ({"numbers": [1, 200]}, "numbers must be atomic numbers"),
    ],
)
def test_wrong_shapes(fields, message):
    with pytest.raises(DataError, match=message):
        gdml.Dataset(**({"positions": POSITIONS, "numbers": [1, 1], "forces": FORCES} | fields))


def test_coincident_atoms(frames):
    positions = frames.positions.copy()
    positions[31, 4] = positions[31, 1]
    with pytest.raises(DataError, match="frame 31: atoms C1 and H4 are 0 Å apart"):
        replaced(frames, positions=positions)


def test_other_atoms_or_another_order(frames, molecules):
    ethanol = frames[:3].to_atoms()
    with pytest.raises(DataError, match="frame 3 is CH4, frame 0 is C2H6O; use one dataset for each"):
        gdml.read([*ethanol, *molecules["methane"].to_atoms()])
    ethanol[2] = ethanol[2][::-1]
    with pytest.raises(DataError, match=r"frame 2 has its atoms in another order than frame 0 \(first at index 0\)"):
        gdml.read(ethanol)
    with pytest.raises(DataError, match="holds no geometry"):
        gdml.read([])


def test_mixed_boundary_conditions(frames):
    ethanol = frames[:2].to_atoms()
    ethanol[1].pbc = True
    with pytest.raises(DataError, match="frame 1 has pbc"):
        gdml.read(ethanol)


def test_some_frames_without_labels(frames):
    atoms = frames[:8].to_atoms()
    for k in (2, 5):
        del atoms[k].calc.results["energy"]
    with pytest.raises(DataError, match="energy is missing in frames 2, 5 but present in 6 others"):
        gdml.read(atoms)


def test_two_kinds_of_labels(frames):
    atoms = frames[:2].to_atoms()
    for a in atoms:
        a.info["REF_energy"] = 1.0
    with pytest.raises(DataError, match="both energy and REF_energy; say which with energy_key"):
        gdml.read(atoms)
    assert gdml.read(atoms, energy_key="REF_energy").energy.tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match="no frame has 'E'; the frames have REF_energy"):
        gdml.read(atoms, energy_key="E")


def test_missing_forces(frames):
    with pytest.raises(DataError, match="has no forces; .* forces_key"):
        gdml.fit(gdml.Dataset(frames.positions, frames.numbers, frames.energy), length_scale=20.0)
    with pytest.raises(DataError, match="all forces are zero"):
        gdml.fit(replaced(frames, forces=np.zeros_like(frames.forces)), length_scale=20.0)


def test_too_few_frames(frames):
    with pytest.raises(DataError, match="at least one geometry"):
        frames[:0]
    with pytest.raises(DataError, match="1 geometry is not enough to train on"):
        gdml.fit(frames[:1], length_scale=20.0)


def test_too_few_frames_to_choose_on(frames):
    with pytest.raises(DataError, match="too few to choose a length scale"):
        gdml.fit(frames[:4])


def test_duplicates(frames):
    with pytest.raises(DataError, match=r"2 geometries occur twice \(frames (10 and 10|2 and 2), .*remove them"):
        gdml.fit(frames[[10, 1, 2, 10, 5, 2]], length_scale=20.0)
    group = gdml.molecular_group(frames)
    swap = group.permutations[1]
    # a turned copy is the same to a function of distances
    turned = frames.positions[[4, 4, 5]] @ np.array([[[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]])
    turned[0] = frames.positions[4][swap]  # and so is one with permuted hydrogens
    turned = turned.round(7)
    with pytest.raises(DataError, match="occur twice"):
        gdml.fit(gdml.Dataset(turned, frames.numbers, forces=frames.forces[[4, 4, 5]]), length_scale=20.0)


def test_results_of_another_geometry(frames, force_field):
    shared = gdml.GDMLCalculator(force_field)
    atoms = [a.copy() for a in frames[:3].to_atoms()]
    for a in atoms:
        a.calc = shared
        a.get_forces()
    with pytest.raises(DataError, match="the calculator of frame 0 holds results of other positions"):
        gdml.read(atoms)
    moved = frames[:2].to_atoms()
    moved[1].rattle(0.1)
    with pytest.raises(DataError, match="frame 1 holds results of other positions"):
        gdml.read(moved)


def test_frames_keep_their_numbers(frames):
    energy = frames.energy.copy()
    energy[100] += 1.0
    odd = replaced(frames, energy=energy)
    drawn = odd.sample(170, seed=2)
    assert 100 in drawn
    with pytest.warns(DataWarning, match="energies of frame 100 are off"):
        gdml.fit(odd[drawn], length_scale=20.0)


def test_validation_set(frames, molecules):
    with pytest.raises(DataError, match="frame 9 of the validation set: trained on, too"):
        gdml.fit(frames[:10], validation=frames[9:12])
    with pytest.raises(DataError, match="has no forces"):
        gdml.fit(frames[:10], validation=gdml.Dataset(frames.positions[20:], frames.numbers))
    methane = molecules["methane"]
    labelled = gdml.Dataset(methane.positions, methane.numbers, forces=methane.positions)
    with pytest.raises(DataError, match="the validation geometries are CH4"):
        gdml.fit(frames[:10], validation=labelled)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"noise": -1.0}, FitError, "noise must not be negative"),
        ({"noise": np.inf}, FitError, "noise must not be negative or infinite"),
        ({"noise": "much"}, FitError, "noise must be a number or 'auto', not 'much'"),
        ({"length_scale": None}, FitError, "length_scale must be a number or 'auto'"),
        ({"kernel": "cubic"}, FitError, "unknown kernel"),
        ({"length_scale": -3.0}, FitError, "length scale must be positive"),
        ({"symmetry": "all"}, SymmetryError, "symmetry is 'auto', 'none' or a group"),
        ({"symmetry": [[0, 1], [1, 0]]}, SymmetryError, "permutes 2 atoms, the geometries have 9"),
        ({"symmetry": [list(range(9)), [0, 2, 1, 3, 4, 5, 6, 7, 8]]}, SymmetryError, "puts O2 in the place of C1"),
    ],
)
def test_bad_settings(frames, settings, error, message):
    with pytest.raises(error, match=message):
        gdml.fit(frames[:5], **({"length_scale": 20.0} | settings))


def test_energies_wanted_but_absent(frames):
    with pytest.raises(DataError, match="use_energy needs energies"):
        gdml.fit(gdml.Dataset(frames.positions, frames.numbers, forces=frames.forces), use_energy=True)


def test_singular_matrix_advises(frames):
    with pytest.raises(FitError, match="raise the noise"):
        gdml.fit(frames[:60], length_scale=1e5, kernel="gaussian", noise=0.0)


# Files


@pytest.fixture
def archive(frames, tmp_path):
    frames[:5].write(tmp_path / "data.npz")
    return tmp_path / "data.npz"


@pytest.mark.parametrize("reader", [gdml.read, gdml.load])
@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.95])
def test_truncated_archives(archive, force_field, reader, keep, tmp_path):
    if reader is gdml.load:
        archive = tmp_path / "model.npz"
        force_field.save(archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(FormatError, match="not a readable .npz archive; it is cut short"):
        reader(archive)


@pytest.mark.parametrize("reader", [gdml.read, gdml.load])
def test_foreign_archives(reader, tmp_path):
    np.savez(tmp_path / "a.npz", weights=np.zeros(3), bias=np.zeros(2))
    with pytest.raises(FormatError, match=r"bias, weights"):
        reader(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(FormatError, match="single array"):
        reader(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_text("energies: 1 2 3")
    with pytest.raises(FormatError, match="not a readable"):
        reader(tmp_path / "c.npz")


def test_pickled_objects_are_never_loaded(archive, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Trap.spring, ())

        @staticmethod
        def spring():
            raise AssertionError("unpickled")

    with np.load(archive) as data:
        fields = dict(data)
    np.savez(tmp_path / "harmless.npz", **fields, comment=np.array({"a": 1}, dtype=object))
    assert len(gdml.read(tmp_path / "harmless.npz")) == 5
    fields["F"] = np.array({"a": 1}, dtype=object)
    np.savez(tmp_path / "refused.npz", **fields)
    with pytest.raises(FormatError, match="field 'F' is a pickled object"):
        gdml.read(tmp_path / "refused.npz")


def test_a_model_is_no_dataset_and_the_reverse(archive, force_field, tmp_path):
    force_field.save(tmp_path / "model.npz", format="sgdml")
    with pytest.raises(FormatError, match="no dataset but a file of type 'm'"):
        gdml.read(tmp_path / "model.npz")
    with pytest.raises(FormatError, match="this is no force field"):
        gdml.load(archive)


def test_damaged_models(force_field, tmp_path):
    force_field.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as data:
        fields = dict(data)
    for damage, message in [
        ({"recipe": np.asarray("{")}, "is damaged"),
        ({"recipe": np.asarray("{}")}, "is damaged"),
        ({"force_coefficients": fields["force_coefficients"][:5]}, "do not fit"),
        ({"references": fields["references"] * np.nan}, "NaN"),
        ({"permutations": fields["permutations"][:, :4]}, "is damaged"),
        ({"schema": np.asarray("abc")}, "later version"),
    ]:
        np.savez(tmp_path / "damaged.npz", **(fields | damage))
        with pytest.raises(FormatError, match=message):
            gdml.load(tmp_path / "damaged.npz")


def test_archives_of_other_programs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("t/data.pkl", b"x")
    with pytest.raises(FormatError, match="not a readable"):
        gdml.load(tmp_path / "a.npz")


def test_fields_of_different_lengths(archive, tmp_path):
    with np.load(archive) as data:
        fields = dict(data)
    np.savez(tmp_path / "short.npz", **(fields | {"E": fields["E"][:2]}))
    with pytest.raises(FormatError, match="different numbers of frames"):
        gdml.read(tmp_path / "short.npz")


def test_frames_that_are_not_there(frames, archive, tmp_path):
    frames[:5].write(tmp_path / "data.extxyz")
    for path in (archive, tmp_path / "data.extxyz"):
        with pytest.raises(DataError, match="there is no frame 99"):
            gdml.read(path, index=99)


def test_later_schema(force_field, tmp_path):
    force_field.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as data:
        fields = dict(data)
    np.savez(tmp_path / "later.npz", **(fields | {"schema": np.asarray(99)}))
    with pytest.raises(FormatError, match="later version"):
        gdml.load(tmp_path / "later.npz")


@pytest.mark.parametrize("reader", [gdml.read, gdml.load])
def test_missing_files(reader, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        reader(tmp_path / "nothing.npz")


def test_files_that_ase_cannot_read(tmp_path):
    (tmp_path / "a.extxyz").write_text("9\nProperties=species:S:1:pos:R:3\nC 0 0\n")
    with pytest.raises(FormatError, match="ASE could not read this file"):
        gdml.read(tmp_path / "a.extxyz")


def test_unwritable_places(frames, force_field, tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        force_field.save(tmp_path / "nowhere" / "model.npz")
    with pytest.raises(OutputError, match="this is a folder"):
        frames[:2].write(tmp_path)
    with pytest.raises(OutputError, match="energies and forces are kept by files that end in"):
        frames[:2].write(tmp_path / "a.unknownformat")


def test_a_failed_write_leaves_the_old_file(frames, force_field, tmp_path, monkeypatch):
    force_field.save(tmp_path / "model.npz")
    before = (tmp_path / "model.npz").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    monkeypatch.setattr(ase.io, "write", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        force_field.save(tmp_path / "model.npz")
    with pytest.raises(OutputError, match="No space left"):
        frames.write(tmp_path / "frames.extxyz")
    assert (tmp_path / "model.npz").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
