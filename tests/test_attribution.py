"""Contributions of pairs and atoms: complete, of the right sign, invariant under the group; files and pictures."""

import gzip
import json
import sys

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.integrate import quad

import gdml
from gdml.cli import main
from gdml.errors import ConvergenceError, DataError, MissingExtraError, OutputError

pytestmark = pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")


@pytest.fixture(scope="module")
def found(force_field, frames):
    return gdml.contributions(force_field, frames.positions[:20])


@pytest.fixture(scope="module")
def crystal():
    """Argon: the force field and its geometries."""
    rng, ideal, frames = np.random.default_rng(0), bulk("Ar", a=5.3, cubic=True).repeat(2), []
    for _ in range(6):
        atoms = ideal.copy()
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.0, smooth=True)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    dataset = gdml.read(frames)
    return gdml.fit(dataset, reference=ideal, length_scale=1.0), dataset


def test_they_sum_to_the_energy(found, force_field, frames):
    energies = force_field.predict(frames.positions[:20]).energy
    for part in (found.pairs, found.atoms):
        sums = part.sum(1)
        np.testing.assert_allclose(sums, found.energy, atol=1e-6)
        np.testing.assert_allclose(np.diff(sums), np.diff(energies), atol=2e-6)


def test_a_pair_against_an_integral_by_scipy(found, force_field, frames):
    x = force_field.descriptor.evaluate(torch.tensor(frames.positions[:1])).x
    action = force_field.descriptor.action(force_field.group)
    x0 = torch.tensor(force_field.y[:, action.rows()].mean((0, 1)))  # of all copies, written out
    entry = int(np.abs(found.pairs[0]).argmax())

    def slope(t):
        energies = [force_field.at_descriptors(x0 + (t + h) * (x - x0))[0] for h in (-1e-5, 1e-5)]
        return float(energies[1] - energies[0]) / 2e-5

    def slope_of_entry(t):
        there, along = x0 + t * (x - x0), torch.zeros_like(x)
        along[0, entry] = (x - x0)[0, entry]
        energies = [force_field.at_descriptors(there + h * along)[0] for h in (-1e-5, 1e-5)]
        return float(energies[1] - energies[0]) / 2e-5

    assert quad(slope, 0, 1, epsabs=1e-7)[0] == pytest.approx(found.energy[0], abs=1e-6)
    assert quad(slope_of_entry, 0, 1, epsabs=1e-7)[0] == pytest.approx(found.pairs[0, entry], abs=1e-6)


def test_permuted_geometries_have_permuted_contributions(force_field, frames):
    one, group = frames.positions[3], force_field.group.permutations
    found = gdml.contributions(force_field, np.array([one[s] for s in group]))
    for atoms, s in zip(found.atoms, group):
        np.testing.assert_allclose(atoms, found.atoms[0][s], atol=1e-8)


def test_a_stretched_bond_is_what_costs(force_field, frames):
    """Of a minimum with one hydrogen pulled out, the pair of the bond contributes most."""
    dataset = frames[frames.energy.argmin()]
    (atoms,) = dataset.to_atoms()
    relaxed = gdml.relax(force_field, atoms, fmax=1e-2)
    carbon = 0
    away = relaxed.get_distances(carbon, range(len(relaxed)))
    hydrogen = next(int(k) for k in np.argsort(away) if relaxed.numbers[k] == 1)
    stretched = relaxed.copy()
    stretched.positions[hydrogen] += 0.08 * (relaxed.positions[hydrogen] - relaxed.positions[carbon]) / away[hydrogen]
    before, after = (gdml.contributions(force_field, one.positions) for one in (relaxed, stretched))
    change = (after.pairs - before.pairs)[0]
    assert {int(after.first[change.argmax()]), int(after.second[change.argmax()])} == {carbon, hydrogen}


def test_learned_metrics_and_crystals(frames, crystal):
    """Several entries for each pair, and distances that are the nearest images'."""
    field = gdml.fit(frames[:30])
    found = gdml.contributions(field, frames.positions[:3])
    np.testing.assert_allclose(
        np.diff(found.pairs.sum(1)), np.diff(field.predict(frames.positions[:3]).energy), atol=2e-6
    )
    force_field, geometries = crystal
    found = gdml.contributions(force_field, geometries.positions[:3])
    np.testing.assert_allclose(
        np.diff(found.atoms.sum(1)), np.diff(force_field.predict(geometries.positions[:3]).energy), atol=2e-6
    )
    atoms = geometries.to_atoms()[0]
    expected = atoms.get_all_distances(mic=True)[found.first, found.second]
    near = expected < 0.4 * atoms.cell.lengths().min()
    np.testing.assert_allclose(found.distances[0][near], expected[near], rtol=0.05)


def test_files_and_pictures(force_field, frames, tmp_path, capsys):
    force_field.save(tmp_path / "m.npz")
    frames[:4].write(tmp_path / "few.extxyz")
    out, picture = tmp_path / "c.extxyz", tmp_path / "c.png"
    arguments = ["contributions", str(tmp_path / "m.npz"), str(tmp_path / "few.extxyz"), "-o", str(out)]
    assert main([*arguments, "--plot", str(picture)]) == 0
    assert "O2" in capsys.readouterr().out and picture.stat().st_size > 10_000
    expected = gdml.contributions(force_field, frames.positions[:4]).atoms
    for atoms, values in zip(ase.io.read(out, ":"), expected, strict=True):
        np.testing.assert_allclose(atoms.get_array("contribution"), values, atol=1e-6)


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_file_for_the_viewer(force_field, frames, tmp_path, ending):
    pytest.importorskip("chemiscope")
    force_field.save(tmp_path / "m.npz")
    frames[:4].write(tmp_path / "few.extxyz")
    path = tmp_path / f"viewer{ending}"
    files = [str(tmp_path / name) for name in ("m.npz", "few.extxyz")]
    assert main(["contributions", *files, "--viewer", str(path)]) == 0
    content = json.loads(gzip.decompress(path.read_bytes()) if ending == ".json.gz" else path.read_text())
    found, properties = gdml.contributions(force_field, frames.positions[:4]), content["properties"]
    assert [one["size"] for one in content["structures"]] == [9] * 4
    np.testing.assert_allclose(content["structures"][3]["x"], frames.positions[3, :, 0], atol=1e-6)
    for name, target, expected in (
        ("energy", "structure", found.energy),
        ("contribution", "atom", found.atoms.ravel()),
    ):
        assert (properties[name]["target"], properties[name]["units"]) == (target, "eV")
        np.testing.assert_allclose(properties[name]["values"], expected, atol=1e-6)
    # The values of atoms are in the order of the environments.
    own = properties["atom"]["values"], properties["symbol"]["values"]
    for environment, atom, symbol in zip(content["environments"], *own, strict=True):
        assert environment["center"] == atom
        assert content["structures"][environment["structure"]]["names"][int(atom)] == symbol
    with pytest.raises(OutputError, match=r"ends in \.json or \.json\.gz"):
        found.write_viewer(frames[:4].to_atoms(), tmp_path / "viewer.html")


def test_the_viewer_needs_the_extra(found, force_field, frames, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "chemiscope", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gdml\[viewer\]'"):
        found.write_viewer(frames[:20].to_atoms(), tmp_path / "viewer.json")
    # Before the work: of files that are not there, nothing is said.
    assert main(["contributions", "no.npz", "no.extxyz", "--viewer", str(tmp_path / "viewer.json")]) == 6
    assert "gdml[viewer]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_taken_apart_is_said(force_field, frames):
    with pytest.raises(DataError, match="9 atoms"):
        gdml.contributions(force_field, frames.positions[0, :5])
    internal = gdml.fit(frames[:8], descriptor="internal-coordinates", length_scale=5.0)
    with pytest.raises(DataError, match="not of pairs"):
        gdml.contributions(internal, frames.positions[0])
    with pytest.raises(ConvergenceError, match="far outside"):
        gdml.contributions(force_field, frames.positions[0], tolerance=0.0)
