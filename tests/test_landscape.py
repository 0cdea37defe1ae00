"""Many relaxations and searches for saddle points at once, and what is made of them."""

import csv
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms

import gdml
from gdml.cli import main
from gdml.errors import DataError, DynamicsError, DynamicsWarning, ModelMismatchError
from gdml.geometry import pair_indices
from gdml.landscape import Likeness, as_text, climb_many, relax_many
from gdml.landscape.saddles import softest_mode
from gdml.symmetry import PermutationGroup

from .test_minima import differences

CLUSTER = Atoms("Ar7", np.zeros((7, 3)))
# All minima of seven Lennard-Jones atoms: C. J. Tsai, K. D. Jordan, J. Phys. Chem. 97, 11227 (1993).
SEVEN_ATOMS = [-16.505384, -15.935043, -15.593211, -15.533060]


def lennard_jones(positions):
    """Energies (M,) and forces (M, N, 3) in units of the well's depth and σ."""
    leaf = positions.detach().requires_grad_()
    first, second = map(torch.tensor, pair_indices(positions.shape[1]))
    s6 = ((leaf[:, first] - leaf[:, second]) ** 2).sum(2) ** -3
    energy = 4 * (s6**2 - s6).sum(1)
    return energy.detach(), -torch.autograd.grad(energy.sum(), leaf)[0]


def clusters(rng, n):
    """Random geometries without atoms on top of each other."""
    found = []
    while len(found) < n:
        r = rng.uniform(-1.0, 1.0, (7, 3)) * 1.1
        if np.linalg.norm(r[:, None] - r[None], axis=2)[np.triu_indices(7, 1)].min() > 0.7:
            found.append(r)
    return np.array(found)


@pytest.fixture(scope="module")
def relaxed():
    return relax_many(lennard_jones, CLUSTER, clusters(np.random.default_rng(3), 60), fmax=1e-6, max_steps=2000)


@pytest.fixture(scope="module")
def all_orders():
    swap, turn = [1, 0, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0]
    return Likeness(PermutationGroup.generate([swap, turn]))


def test_minima_of_seven_atoms(relaxed, all_orders):
    assert relaxed.converged.all()
    groups = all_orders.groups(relaxed.positions, relaxed.energy, 1e-3, 1e-4)
    np.testing.assert_allclose([relaxed.energy[rows[0]] for rows in groups], SEVEN_ATOMS, atol=2e-6)
    assert sorted(np.concatenate(groups)) == list(range(60))


def test_saddles_of_seven_atoms(relaxed, rng):
    starts = relaxed.positions[:15] + rng.normal(size=(15, 7, 3)) * 0.05
    found = climb_many(lennard_jones, CLUSTER, starts, rng.normal(size=starts.shape), fmax=1e-5, max_steps=150)
    assert found.converged.sum() >= 10
    for k in np.flatnonzero(found.converged):

        def gradient(r):
            return -lennard_jones(r.view(1, 7, 3))[1].view(-1)

        r = torch.tensor(found.positions[k]).view(-1)
        steps = 1e-5 * torch.eye(21, dtype=torch.float64)
        hessian = torch.stack([(gradient(r + s) - gradient(r - s)) / 2e-5 for s in steps])
        values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T).numpy())
        assert values[0] < 0 and (values < -1e-2).sum() >= 1
        assert values[values < -1e-2].min() == pytest.approx(found.curvature[k], rel=0.05)
        assert found.energy[k] > SEVEN_ATOMS[0]


@pytest.mark.parametrize("optimiser", ["lbfgs", "fire"])
def test_batch_is_many_alone(optimiser, rng):
    """Each geometry has its own memory, and leaves the batch without harm to others."""
    starts = clusters(rng, 5)
    together = relax_many(lennard_jones, CLUSTER, starts, fmax=1e-3, optimiser=optimiser, max_steps=2000)
    assert together.converged.all() and len(set(together.steps)) > 1
    for k in range(5):
        alone = relax_many(lennard_jones, CLUSTER, starts[k : k + 1], fmax=1e-3, optimiser=optimiser, max_steps=2000)
        assert alone.steps[0] == together.steps[k]
        np.testing.assert_allclose(alone.positions[0], together.positions[k], atol=1e-7)


def test_softest_mode(rng):
    matrices = torch.tensor(rng.normal(size=(6, 12, 12)))
    matrices = matrices + matrices.mT
    guesses = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(6, 12))), dim=1)
    values, vectors = torch.linalg.eigh(matrices)
    guesses[0] = vectors[0, :, 0]  # nothing to improve
    modes, curvature = softest_mode(lambda v: (matrices @ v[..., None])[..., 0], guesses, 40)
    np.testing.assert_allclose(curvature, values[:, 0], atol=1e-6)
    np.testing.assert_allclose((modes * vectors[:, :, 0]).sum(1).abs(), 1, atol=1e-4)


def test_failures_are_kept_apart(relaxed, rng):
    """One geometry whose forces fail does not stop the others."""
    far = relaxed.positions[0].copy()
    far[0] += 100.0

    def fails_far_out(positions):
        if bool((positions.abs() > 50).any()):
            raise DataError("far out")
        return lennard_jones(positions)

    starts = np.stack([relaxed.positions[1] + 0.05 * rng.normal(size=(7, 3)), far, relaxed.positions[2]])
    found = relax_many(fails_far_out, CLUSTER, starts, fmax=1e-4)
    assert found.converged.tolist() == [True, False, True]
    assert np.isnan(found.energy[1]) and np.isfinite(found.energy[[0, 2]]).all()
    np.testing.assert_array_equal(found.positions[1], far)


def test_failures_while_climbing(relaxed, rng):
    """Also where it is only the dimer's other end."""
    marked = relaxed.positions[1] + 20.0

    def fails_near_one(positions):
        if bool(((positions - torch.tensor(marked)).abs().amax((1, 2)) < 0.5).any()):
            raise ValueError("no forces here")
        return lennard_jones(positions)

    starts = np.stack([relaxed.positions[0] + 0.05 * rng.normal(size=(7, 3)), marked])
    modes = rng.normal(size=starts.shape)
    found = climb_many(fails_near_one, CLUSTER, starts, modes, max_steps=30)
    alone = climb_many(lennard_jones, CLUSTER, starts[:1], modes[:1], max_steps=30)
    assert not found.converged[1] and np.isnan(found.largest[1])
    np.testing.assert_allclose(found.positions[0], alone.positions[0], atol=1e-9)


def test_linear_ones_do_not_change_others(rng):
    """A rotation less in one geometry is none of the others' business."""
    bent, line = rng.normal(size=(3, 3)), np.outer([-1.2, 0.0, 1.2], [1.0, 0.0, 0.0])
    atoms, modes = Atoms("Ar3", np.zeros((3, 3))), rng.normal(size=(2, 3, 3))
    alone = climb_many(lennard_jones, atoms, 1.2 * bent[None], modes[:1], max_steps=20)
    both = climb_many(lennard_jones, atoms, np.stack([1.2 * bent, line]), modes, max_steps=20)
    np.testing.assert_allclose(both.positions[0], alone.positions[0], atol=1e-8)


def test_failure_of_all_says_why(relaxed):
    def wrong(positions):
        energy, forces = lennard_jones(positions)
        return energy, forces[:, :3]

    with pytest.raises(DataError, match=r"\(M, N, 3\)"):
        relax_many(wrong, CLUSTER, relaxed.positions[:3])


def test_calculators_relax_one_by_one(rng):
    atoms = CLUSTER.copy()
    starts = clusters(rng, 2)
    expected = relax_many(lennard_jones, atoms, starts, fmax=1e-3, max_steps=2000)
    found = relax_many(LennardJones(rc=100.0, smooth=False), atoms, starts, fmax=1e-3, max_steps=2000)
    np.testing.assert_allclose(found.energy, expected.energy, atol=1e-4)


def test_likeness(frames, force_field, rng):
    likeness = Likeness(force_field.group)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # or a mirror
    r = frames.positions[0]
    copies = np.stack([r, 1.0 + r[force_field.group.permutations[-1]] @ rotation.T, -r, frames.positions[1]])
    one, *others = likeness.distances(copies)
    apart = [likeness.between(one, other) for other in others]
    np.testing.assert_allclose(apart[:2], 0, atol=1e-12)
    assert apart[2] > 0.05
    assert apart[2] == pytest.approx(likeness.between(others[2], one))


def test_likeness_of_a_crystal(rng):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    moved = atoms.positions + atoms.cell[0] * np.eye(8)[:, :1] + 0.3
    likeness = Likeness(PermutationGroup.trivial(8), atoms.cell.array, atoms.pbc)
    one, other = likeness.distances(np.stack([atoms.positions, moved]))
    assert likeness.between(one, other) < 1e-12


@pytest.fixture(scope="module")
def found(force_field, frames):
    """Of ethanol, from training geometries."""
    atoms = frames[0].to_atoms()[0]
    return gdml.explore(force_field, atoms, starts=frames[:60], saddles=40)


def test_minima_of_ethanol(found, force_field):
    assert sum(point.count for point in found.minima) + len(found.unconverged.positions) == 60
    assert [point.name for point in found.minima[:2]] == ["M1", "M2"]
    for point in found.minima:
        again = gdml.relax(force_field, point.atoms)
        assert point.energy == pytest.approx(again.get_potential_energy(), abs=1e-6)
        assert point.largest < 1e-3 and point.modes.n_imaginary == 0
        expected = np.sort(gdml.vibrations(force_field, again).get_frequencies().real)[-21:]
        np.testing.assert_allclose(point.modes.frequencies, expected, atol=0.5)
        assert point.modes.zero_point == pytest.approx(expected.sum() / 2 * 1.239842e-4, rel=1e-3)
        assert point.atoms.get_potential_energy() == point.energy


def test_saddles_of_ethanol(found, force_field):
    """One direction leads down, to a minimum on both sides."""
    assert found.saddles
    names = {point.name: point.energy for point in found.minima}
    for saddle in found.saddles:
        assert saddle.largest < 1e-3 and saddle.modes.n_imaginary == 1
        hessian = differences(force_field, saddle.atoms.positions)
        assert (np.linalg.eigvalsh(hessian) < -0.05).sum() == 1
        barriers = found.barriers(saddle)
        for name, barrier in zip(saddle.ends, barriers, strict=True):
            assert barrier > 0 and barrier == pytest.approx(saddle.energy - names[name])
    turns = [np.abs(dihedral_of_oxygen(p.atoms)) for p in found.minima]
    assert min(turns) < 90 < max(turns)  # gauche and trans


def dihedral_of_oxygen(atoms):
    """C-C-O-H, in degrees from -180 to 180, of ethanol in the order of the package's data."""
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    carbon = sorted(np.flatnonzero(atoms.numbers == 6), key=lambda k: atoms.get_distance(oxygen, k))
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    own = min(hydrogens, key=lambda k: atoms.get_distance(oxygen, k))
    angle = atoms.get_dihedral(carbon[1], carbon[0], oxygen, own)
    return angle - 360 if angle > 180 else angle


def test_single_precision_finds_the_same(found, force_field, frames):
    """Points themselves are in double precision."""
    again = gdml.explore(force_field.to(dtype="float32"), frames[0].to_atoms()[0], starts=frames[:60])
    assert [p.count for p in again.minima] == [p.count for p in found.minima]
    np.testing.assert_allclose([p.energy for p in again.minima], [p.energy for p in found.minima], atol=1e-7)


def test_order_of_atoms_and_frame_do_not_matter(found, force_field, frames, rng):
    """Copies of the starts by the group, turned, end at the same points."""
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    copies = [
        r[p] @ rotation.T for r, p in zip(frames.positions[:20], np.tile(force_field.group.permutations, (20, 1)))
    ]
    starts = gdml.Dataset(np.array(copies), frames.numbers)
    again = gdml.explore(force_field, starts[0].to_atoms()[0], starts=starts)
    known = np.array([point.energy for point in found.minima])
    for point in again.minima:
        assert np.abs(known - point.energy).min() < 1e-6


def test_what_training_does_not_know_is_marked(found, force_field, frames):
    """Uncertain points come last, and energies are over the lowest of the others."""
    sure = gdml.with_uncertainty(force_field, frames[:60])
    spread = [float(np.sqrt((sure.uncertainty(p.atoms.positions).forces ** 2).mean())) for p in found.minima]
    best = int(np.argmin(spread))
    for usual, expected in ((0.0, len(spread)), (np.sort(spread)[:2].mean(), len(spread) - 1), (1.0, 0)):
        judge = replace(sure, error_model=replace(sure.error_model, usual=usual))
        again = gdml.explore(judge, frames[0].to_atoms()[0], starts=frames[:60])
        assert again.n_marked == expected
        assert [p.mark for p in again.minima] == [""] * (len(spread) - expected) + ["uncertain"] * expected
        assert ("marked" in as_text(again)) == bool(expected)
        if expected == len(spread) - 1:
            assert again.minima[0].energy == pytest.approx(found.minima[best].energy, abs=1e-6)
    far = replace(found.minima[0], outside=sure.outside(3 * frames.positions[0])[0])
    assert far.mark == "outside"


def test_dynamics_give_starts(force_field, frames, monkeypatch, tmp_path):
    monkeypatch.setattr("gdml.landscape.exploration.SPACING_FS", 10.0)
    options = {"n": 8, "temperatures": [300, 600], "seed": 2}
    found = gdml.explore(force_field, frames[0].to_atoms()[0], keep=tmp_path / "samples.npz", **options)
    assert len(found.starts) == 8 and (tmp_path / "samples.npz").exists()
    assert not any(force_field.outside(r) for r in found.starts.positions)
    assert sum(point.count for point in found.minima) + len(found.unconverged.positions) == 8


def test_dynamics_that_fly_apart_give_what_there_is(force_field, frames, monkeypatch):
    monkeypatch.setattr("gdml.landscape.exploration.SPACING_FS", 5.0)
    monkeypatch.setattr("gdml.sampling.RESTARTS", 1)
    monkeypatch.setattr("gdml.sampling.SETTLING_FS", 5.0)
    atoms = frames[0].to_atoms()[0]
    with pytest.warns(DynamicsWarning, match="have to do"):
        found = gdml.explore(force_field, atoms, n=4, temperatures=[300, 1e6])
    assert len(found.starts) == 2
    with pytest.raises(DynamicsError, match="flew apart"):
        gdml.explore(force_field, atoms, n=4, temperatures=[1e6])


BAD = {
    "constraints": (lambda a: a.set_constraint(FixAtoms([0])), {}, "constraints"),
    "n": (lambda a: None, {"n": 0}, "n must be"),
    "optimiser": (lambda a: None, {"optimiser": "newton"}, "lbfgs, fire"),
    "steps": (lambda a: None, {"max_steps": 0}, "max_steps"),
    "temperature": (lambda a: None, {"temperatures": [-1.0]}, "positive"),
}


@pytest.mark.parametrize("change, options, message", BAD.values(), ids=BAD)
def test_bad_settings(force_field, frames, change, options, message):
    atoms = frames[0].to_atoms()[0]
    change(atoms)
    with pytest.raises(DataError, match=message):
        gdml.explore(force_field, atoms, **{"n": 2, "starts": frames[:2]} | options)


def test_masses_are_those_of_the_atoms(force_field, frames):
    atoms = frames[0].to_atoms()[0]
    light = gdml.explore(force_field, atoms, starts=frames[:1]).minima[0].modes.frequencies
    atoms.set_masses(np.where(atoms.numbers == 1, 2.014, atoms.get_masses()))
    heavy = gdml.explore(force_field, atoms, starts=frames[:1]).minima[0].modes.frequencies
    assert 0.70 < heavy[-1] / light[-1] < 0.75  # O-D and O-H


def test_every_start_is_accounted_for(found, force_field, frames):
    """Also those that a relaxation leaves on top of a barrier."""
    top = gdml.Dataset(np.repeat(found.saddles[0].atoms.positions[None], 5, 0), frames.numbers)
    for steps in (1, 15, 500):
        again = gdml.explore(force_field, frames[0].to_atoms()[0], starts=top, max_steps=steps)
        assert sum(point.count for point in again.minima) + len(again.unconverged.positions) == 5


def test_more_searches_than_starts(force_field, frames):
    found = gdml.explore(force_field, frames[0].to_atoms()[0], starts=frames[:2], saddles=5)
    assert found.n_searches == 5 == sum(point.count for point in found.saddles) + found.n_lost
    assert "5 searches" in as_text(found)


@pytest.mark.filterwarnings("ignore:the shortest lattice vector")
def test_a_crystal_keeps_its_cell():
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    frames = []
    for seed in range(4):
        one = atoms.copy()
        one.rattle(0.1, seed=seed)
        one.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=8.0)
        one.get_forces()
        frames.append(one)
    training = gdml.read(frames)
    force_field = gdml.fit(training, reference=atoms, length_scale=20.0, noise=1e-8)
    found = gdml.explore(force_field, atoms, starts=training)
    assert sum(point.count for point in found.minima) + len(found.unconverged.positions) == 4
    assert len(found.minima[0].modes.frequencies) == 9
    wide = atoms.copy()
    wide.set_cell(1.05 * atoms.cell, scale_atoms=True)
    with pytest.raises(DataError, match="cell"):
        gdml.explore(force_field, wide, starts=training)


def test_other_atoms(force_field, frames):
    with pytest.raises(ModelMismatchError):
        gdml.explore(force_field, Atoms("H2O", np.eye(3)))
    with pytest.raises(DataError, match=r"\(M, 7, 3\)"):
        relax_many(lennard_jones, CLUSTER, np.zeros((2, 6, 3)))
    with pytest.raises(DataError, match="NaN"):
        relax_many(lennard_jones, CLUSTER, np.full((2, 7, 3), np.nan))
    with pytest.raises(DataError, match="modes"):
        climb_many(lennard_jones, CLUSTER, np.ones((2, 7, 3)), np.zeros((2, 7, 3)))


@pytest.fixture
def files(force_field, frames, tmp_path):
    force_field.save(tmp_path / "model.npz")
    frames[:12].write(tmp_path / "starts.extxyz")
    return [str(tmp_path / name) for name in ("model.npz", "starts.extxyz", "minima.extxyz")]


def test_command(files, tmp_path, capsys):
    model, starts, output = files
    table, picture = tmp_path / "table.csv", tmp_path / "levels.svg"
    command = ["explore", model, starts, "-o", output, "--starts", starts, "--saddles", "12", "--quiet"]
    assert main([*command, "--table", str(table), "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    minima = ase.io.read(output, ":")
    assert f"12 relaxations, {len(minima)} distinct minima" in said
    assert minima[0].info["name"] == "M1" and len(minima[0].info["frequencies"]) == 21
    assert np.abs(minima[0].get_forces()).max() < 1e-3
    rows = list(csv.DictReader(table.open()))
    assert float(rows[0]["energy (meV)"]) == 0 and rows[0]["name"] == "M1"
    saddles = ase.io.read(tmp_path / "minima.saddles.extxyz", ":")
    assert len(rows) == len(minima) + len(saddles)
    assert saddles[0].info["frequencies"][0] < 0 and saddles[0].info["ends"]
    assert b"S1" in picture.read_bytes() or picture.stat().st_size > 10_000


def test_command_spares_what_it_reads(files, tmp_path, capsys):
    model, starts, _ = files
    own = ["explore", model, starts, "--starts", starts, "--quiet", "-o"]
    assert main([*own, str(tmp_path / "model.extxyz")]) == 0  # beside model.npz
    assert gdml.load(model).formula == "C2H6O"
    before = (tmp_path / "starts.extxyz").read_bytes()
    assert main([*own, starts]) == 3
    assert "written over" in capsys.readouterr().err and (tmp_path / "starts.extxyz").read_bytes() == before


def test_command_goes_on_from_samples(files, tmp_path, monkeypatch, capsys):
    """Where nothing has converged, dynamics need not be done again."""
    monkeypatch.setattr("gdml.landscape.exploration.SPACING_FS", 10.0)
    model, structure, output = files
    command = ["explore", model, structure, "-o", output, "-n", "4", "--temperature", "300", "--quiet"]
    assert main([*command, "--max-steps", "1"]) == 3
    assert (tmp_path / "minima.samples.npz").exists()
    monkeypatch.setattr("gdml.sampling._Walks.look", None)  # no more of these
    assert main(command) == 0
    assert not (tmp_path / "minima.samples.npz").exists()
    assert not (tmp_path / "minima.unconverged.extxyz").exists()


def test_picture_of_two_atoms(tmp_path):
    from gdml.plots import _draw, _figure

    figure, (axis,) = _figure(1)
    _draw(Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), ["k", "r"], axis)
    figure.savefig(tmp_path / "co.png")


def test_command_without_convergence(files, tmp_path, capsys):
    """They are reported, and kept apart."""
    model, starts, output = files
    assert main(["explore", model, starts, "-o", output, "--starts", starts, "--max-steps", "2", "--quiet"]) == 3
    told = capsys.readouterr()
    assert "12 did not converge" in told.out and "--max-steps" in told.err
    lost = ase.io.read(tmp_path / "minima.unconverged.extxyz", ":")
    assert len(lost) == 12 and lost[0].info["largest_force"] > 0.005
    assert not (tmp_path / "minima.extxyz").exists()
