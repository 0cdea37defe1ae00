"""Bad input: an exception of ours that says what was found, where, and what to do."""

import numpy as np
import pytest

import gdml
from gdml.errors import DataError, FitError, FormatError, OutputError, SymmetryError

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
    with pytest.raises(DataError, match=r"2 geometries occur twice \(frames .*0 and 3.*\).*remove them"):
        gdml.fit(frames[[0, 1, 2, 0, 5, 2]], length_scale=20.0)
    # a turned copy is the same to a function of distances
    turned = frames.positions[[4, 4, 5]] @ np.array([[[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]])
    turned[0] = frames.positions[4]
    with pytest.raises(DataError, match="occur twice"):
        gdml.fit(gdml.Dataset(turned, frames.numbers, forces=frames.forces[[4, 4, 5]]), length_scale=20.0)


def test_periodic_geometries(frames):
    with pytest.raises(DataError, match="periodic"):
        gdml.fit(gdml.Dataset(POSITIONS, [1, 1], forces=FORCES + 0.1, cell=5 * np.eye(3), pbc=True))


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"noise": -1.0}, FitError, "noise must not be negative"),
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
    with pytest.raises(OutputError, match="ASE knows no format for this suffix"):
        frames[:2].write(tmp_path / "a.unknownformat")


def test_a_failed_write_leaves_the_old_file(force_field, tmp_path, monkeypatch):
    force_field.save(tmp_path / "model.npz")
    before = (tmp_path / "model.npz").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        force_field.save(tmp_path / "model.npz")
    assert (tmp_path / "model.npz").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
