"""Coarse-grained force fields: mappings, priors, noise, both ways of training, dynamics, free energies."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.fd import calculate_numerical_forces

import gdml
from gdml import coarse
from gdml.baselines import Bonded, as_baseline
from gdml.coarse.fitting import mean_forces
from gdml.coarse.prior import far_pairs, without_prior
from gdml.contractions import contraction
from gdml.data import ethanol
from gdml.dynamics import OverdampedLangevin
from gdml.errors import BaselineError, DataError, DynamicsError, FitError, MissingExtraError, OutputError
from gdml.geometry import angles, dihedrals, lengths
from gdml.operators import TrainingOperator
from gdml.plan import labels_of, make_plan
from gdml.processes import Shares, Team

T = 300.0
KT = units.kB * T
ANGLES = [(0, 1, 2, 3), (1, 2, 3, 4)]
CHAIN = Bonded(
    bonds=[(i, i + 1, 8.0, 1.5) for i in range(4)],
    angles=[(i, i + 1, i + 2, 2.0, 1.9) for i in range(3)],
    dihedrals=[(*ANGLES[0], 0.02, -0.03, 0.01, 0.0), (*ANGLES[1], -0.03, 0.02, 0.0, 0.02)],
)


def chains(n: int, seed: int = 0) -> np.ndarray:
    """Chains (n, 5, 3) with bonds and angles as at 300 K with `CHAIN`, and any dihedral angles."""
    rng = np.random.default_rng(seed)
    length = rng.normal(1.5, np.sqrt(KT / 8), (n, 4, 1))
    angle = rng.normal(1.9, np.sqrt(KT / 2), (n, 3, 1))
    twist = rng.uniform(-np.pi, np.pi, (n, 3, 1))
    axis, side = np.tile([0.0, 0.0, 1.0], (n, 1)), np.tile([1.0, 0.0, 0.0], (n, 1))
    points = [np.zeros((n, 3)), length[:, 0] * axis]
    for k in range(3):
        side = np.cos(twist[:, k]) * side + np.sin(twist[:, k]) * np.cross(axis, side)
        turned = -np.cos(angle[:, k]) * axis + np.sin(angle[:, k]) * side
        axis, side = turned, np.cos(angle[:, k]) * side + np.sin(angle[:, k]) * axis
        points.append(points[-1] + length[:, k + 1] * axis)
    return np.stack(points, 1)


def beads(n: int, noise: float = 0.0, seed: int = 0) -> gdml.Dataset:
    """Chains with the forces of `CHAIN` and noise of a standard deviation in eV/Å."""
    positions = chains(n, seed)
    _, forces = CHAIN.batch(torch.tensor(positions))
    noise = noise * np.random.default_rng(seed + 1).normal(size=forces.shape)
    return gdml.Dataset(positions=positions, numbers=[6, 7, 6, 6, 7], forces=forces.numpy() + noise)


# Mappings


def test_centres_of_mass(rng):
    numbers = [6, 1, 1, 8, 1]
    mapping = coarse.Mapping.of_groups([[0, 1, 2], [3, 4]], numbers)
    atoms = Atoms(numbers, rng.normal(size=(5, 3)))
    expected = [atoms[[0, 1, 2]].get_center_of_mass(), atoms[[3, 4]].get_center_of_mass()]
    np.testing.assert_allclose(mapping.positions(atoms.positions), expected)
    forces = rng.normal(size=(4, 5, 3))
    np.testing.assert_allclose(mapping.forces(forces)[:, 1], forces[:, 3] + forces[:, 4])
    np.testing.assert_array_equal(mapping.numbers, [6, 8])


@pytest.mark.parametrize("overlap", [False, True])
def test_mapped_forces_are_those_of_a_potential_of_the_beads(rng, overlap):
    """Of a potential of beads alone, U(M r), the atoms' forces are Mᵀ F, and mapping gives F again."""
    matrix = np.array([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]])
    if overlap:
        matrix = np.array([[0.25, 0.5, 0.25, 0], [0, 0.2, 0.3, 0.5]])
    mapping = coarse.Mapping(matrix)
    forces = rng.normal(size=(3, 2, 3))
    np.testing.assert_allclose(mapping.forces(matrix.T @ forces), forces)
    np.testing.assert_allclose(mapping.force_matrix @ matrix.T, np.eye(2), atol=1e-12)


def test_slice():
    frames = ethanol()[:3]
    mapping = coarse.Mapping.of_slice([2, 0], frames.numbers)
    found = mapping(frames)
    np.testing.assert_array_equal(found.positions, frames.positions[:, [2, 0]])
    np.testing.assert_array_equal(found.forces, frames.forces[:, [2, 0]])
    np.testing.assert_array_equal(found.numbers, frames.numbers[[2, 0]])
    assert found.energy is None


def test_least_noise(rng):
    """Independent noise on atoms, of different size, is averaged with the inverse variances as weights."""
    sizes = np.array([0.1, 1.0, 2.0, 0.5])
    forces = rng.normal(size=(4000, 4, 3)) * sizes[:, None]
    atoms = gdml.Dataset(positions=np.tile(2.0 * np.eye(4)[:, :3], (4000, 1, 1)), numbers=[1] * 4, forces=forces)
    mapping = coarse.Mapping.of_groups([[0, 1], [2, 3]], [1] * 4, masses=[1, 3, 1, 1])
    quiet = mapping.with_least_noise(atoms)
    np.testing.assert_allclose(quiet.force_matrix @ mapping.matrix.T, np.eye(2), atol=1e-10)
    weights = mapping.matrix / sizes**2
    expected = weights / (weights @ mapping.matrix.T).diagonal()[:, None]
    np.testing.assert_allclose(quiet.force_matrix, expected, atol=0.05)
    assert (quiet(atoms).forces.var((0, 2)) < mapping(atoms).forces.var((0, 2))).all()


def test_names():
    atoms = ["N", "H", "CA", "HA", "C"]
    mapping = coarse.Mapping.of_names(atoms, {"amide": ["N", "H"], "rest": ["C", "CA", "HA"]}, [7, 1, 6, 1, 6])
    assert mapping.names == ["amide", "rest"]
    np.testing.assert_array_equal(mapping.matrix != 0, [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])


def test_selections():
    """What is asked of a universe is its masses and selections."""
    chosen = {"name O": [0], "name H*": [1, 2]}
    universe = SimpleNamespace(
        atoms=SimpleNamespace(masses=[15.999, 1.008, 1.008]),
        select_atoms=lambda text: SimpleNamespace(indices=np.array(chosen[text])),
    )
    mapping = coarse.Mapping.of_selections(universe, {"oxygen": "name O", "hydrogens": "name H*"})
    np.testing.assert_array_equal(mapping.numbers, [8, 1])
    np.testing.assert_allclose(mapping.matrix, [[1, 0, 0], [0, 0.5, 0.5]])


def test_files_of_universes_need_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "MDAnalysis", None)
    with pytest.raises(MissingExtraError, match=r"gdml\[coarse\]"):
        coarse.Mapping.of_selections("protein.pdb", {"A": "name CA"})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: coarse.Mapping([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), r"1 atoms are in no bead \(2\)"),
        (lambda: coarse.Mapping.of_groups([[0], [2]], [1, 1, 1]), r"1 atoms are in no bead \(1\)"),
        (lambda: coarse.Mapping([[1.0, 0.0], [0.0, 0.0]], names=["A", "B"]), "bead B is empty"),
        (lambda: coarse.Mapping.of_groups([[0], []], [1]), "bead 1 is empty"),
        (lambda: coarse.Mapping([[0.5, 0.4]]), "weights add up to 0.9"),
        (lambda: coarse.Mapping([[np.nan, 1.0]]), "finite"),
        (lambda: coarse.Mapping([[0.5, 0.5]], [[1.0, 0.5]]), "forces that are mapped so are not the beads'"),
        (lambda: coarse.Mapping([[0.5, 0.5], [0.5, 0.5]]), "depend on each other"),
        (lambda: coarse.Mapping([1.0, 0.0]), "matrix"),
        (lambda: coarse.Mapping.of_groups([[0, 0], [1]], [1, 1]), "given twice"),
        (lambda: coarse.Mapping.of_slice([3], [1, 1]), "there is no atom 3"),
        (lambda: coarse.Mapping.of_names(["C", "C"], {"A": ["C"]}, [6, 6]), r"atoms \[0, 1\] are all called 'C'"),
        (lambda: coarse.Mapping.of_names(["C"], {"A": ["X"]}, [6]), "there is no atom called 'X'"),
        (lambda: coarse.Mapping.of_groups([[0]], [1], masses=[0.0]), "positive masses"),
        (lambda: coarse.Mapping([[1.0]], names=["A", "B"]), "as many names"),
    ],
)
def test_bad_mappings(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_frames_that_cannot_be_mapped():
    frames = ethanol()[:2]
    mapping = coarse.Mapping.of_slice([0, 1], frames.numbers)
    with pytest.raises(DataError, match="no forces"):
        mapping(replace(frames, forces=None))
    with pytest.raises(DataError, match="of 9 atoms"):
        mapping.positions(frames.positions[:, :3])
    with pytest.raises(DataError, match="whole molecules"):
        mapping(replace(frames, cell=np.eye(3) * 20, pbc=True))


# Priors


def test_bonded_against_differences():
    prior = Bonded(**CHAIN.options, repulsions=[(0, 4, 2.5, 0.03)])
    for positions in chains(3):
        atoms = Atoms("C5", positions)
        atoms.calc = prior
        np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, 1e-5), atol=1e-6)


def test_bonded_against_its_formula():
    """A right angle, a dihedral of 90°, and a repulsion at its size."""
    positions = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 2.0, 0], [0, 2.0, 1.0]]]).double()
    assert float(dihedrals(positions, [(0, 1, 2, 3)])) == pytest.approx(-np.pi / 2)  # as IUPAC has it
    prior = Bonded(
        bonds=[(1, 2, 3.0, 1.5)],
        angles=[(0, 1, 2, 2.0, 1.0)],
        repulsions=[(0, 1, 1.0, 0.4)],
        dihedrals=[(0, 1, 2, 3, 0.1, 0.2, 0.3, 0.4)],
    )
    expected = 0.5 * 3 * 0.25 + 0.5 * 2 * (np.pi / 2 - 1) ** 2 + 0.4 - 0.2 - 0.3
    assert float(prior.batch(positions)[0]) == pytest.approx(expected)


def test_a_batch_is_the_sum_of_its_geometries():
    positions = chains(4)
    energy, forces = CHAIN.batch(torch.tensor(positions))
    for k, one in enumerate(positions):
        atoms = Atoms("C5", one)
        atoms.calc = CHAIN
        assert atoms.get_potential_energy() == pytest.approx(float(energy[k]))
        np.testing.assert_allclose(atoms.get_forces(), forces[k])
    together = as_baseline([CHAIN, "zbl"]).evaluate(np.full(5, 6), positions)
    alone = [as_baseline(part).evaluate(np.full(5, 6), positions) for part in (CHAIN, "zbl")]
    np.testing.assert_allclose(together.forces, alone[0].forces + alone[1].forces)


@pytest.mark.parametrize(
    "terms, message",
    [
        ({}, "there are no terms"),
        ({"bonds": [(0, 1, 1.0)]}, "2 atoms and 2 parameters"),
        ({"dihedrals": [(0, 1, 2, 3, 1.0)]}, "an even number of parameters"),
        ({"bonds": [(0, 0, 1.0, 1.0)]}, "atoms must differ"),
        ({"bonds": [(0, 1, -1.0, 1.0)]}, "not negative"),
        ({"angles": [(0, 1, 2, np.inf, 1.0)]}, "finite"),
    ],
)
def test_bad_terms(terms, message):
    with pytest.raises(BaselineError, match=message):
        Bonded(**terms)


def test_bonded_of_more_atoms_than_there_are():
    with pytest.raises(BaselineError, match="for 5 atoms, the geometry has 4"):
        CHAIN.batch(torch.zeros(1, 4, 3))


def distributed(n: int) -> np.ndarray:
    """Chains of four, with a length, an angle and a dihedral from Boltzmann distributions, with volume elements."""
    rng = np.random.default_rng(3)

    def draw(density, low, high):
        grid = np.linspace(low, high, 20001)
        total = np.cumsum(density(grid))
        return np.interp(rng.random(n), total / total[-1], grid)

    length = draw(lambda r: r**2 * np.exp(-0.5 * 5.0 * (r - 1.5) ** 2 / KT), 1.0, 2.0)
    angle = draw(lambda t: np.sin(t) * np.exp(-0.5 * 0.8 * (t - 1.8) ** 2 / KT), 0.3, 3.1)
    twist = draw(lambda p: np.exp(-(0.02 * np.cos(p) + 0.03 * np.sin(2 * p)) / KT), -np.pi, np.pi)
    zero, one = np.zeros(n), np.ones(n)
    first = np.stack([zero, zero, zero], 1)
    second = first + np.stack([zero, zero, length], 1)
    third = second + 1.4 * np.stack([np.sin(angle), zero, -np.cos(angle)], 1)
    # Built with the first step as axis: the dihedral of (3, 0, 1, 2), about the bond 0-1.
    fourth = 1.2 * np.stack([np.cos(twist), -np.sin(twist), 0.1 * one], 1)
    return np.stack([first, second, third, fourth], 1)


def test_boltzmann_inversion_of_what_is_known():
    data = gdml.Dataset(positions=distributed(40_000), numbers=[6] * 4)
    options = {"bonds": [(0, 1)], "angles": [(0, 1, 2)], "dihedrals": [(3, 0, 1, 2)], "repulsions": [(2, 3)]}
    prior = coarse.fit_prior(data, T, **options)
    ((_, _, k, r0),) = prior.options["bonds"]
    assert k == pytest.approx(5.0, rel=0.02) and r0 == pytest.approx(1.5, abs=1e-3)
    ((_, _, _, k, theta0),) = prior.options["angles"]
    assert k == pytest.approx(0.8, rel=0.02) and theta0 == pytest.approx(1.8, abs=3e-3)
    np.testing.assert_allclose(prior.options["dihedrals"][0][4:], [0.02, 0, 0, 0.03, 0, 0], atol=1.5e-3)
    ((_, _, sigma, epsilon),) = prior.options["repulsions"]
    assert sigma == float(lengths(torch.tensor(data.positions), [(2, 3)]).min()) and epsilon == pytest.approx(KT)


def test_terms_of_a_branched_molecule():
    bonds = [(0, 1), (1, 2), (1, 3), (3, 4)]
    assert coarse.angles_of(bonds) == [(0, 1, 2), (0, 1, 3), (2, 1, 3), (1, 3, 4)]
    assert coarse.dihedrals_of(bonds) == [(0, 1, 3, 4), (2, 1, 3, 4)]
    assert far_pairs(6, [*bonds, (4, 5)]) == [(0, 5), (2, 5)]
    prior = coarse.fit_prior(beads(60), T)  # of a chain
    assert [len(prior.options[name]) for name in ("bonds", "angles", "repulsions", "dihedrals")] == [4, 3, 1, 2]


def test_priors_that_cannot_be():
    data = beads(60)
    rigid = data.positions.copy()
    rigid[:, 0] = rigid[:, 1] + [0.0, 0.0, 1.5]
    with pytest.raises(DataError, match=r"bond of the beads \(0, 1\) varies by .* rigid"):
        coarse.fit_prior(replace(data, positions=rigid), T)
    with pytest.raises(DataError, match="of which there are 5"):
        coarse.fit_prior(data, T, bonds=[(0, 7)])
    with pytest.raises(DataError, match="temperature_K must be positive"):
        coarse.fit_prior(data, -1.0)
    with pytest.raises(DataError, match="order"):
        coarse.fit_prior(data, T, order=0)


def test_a_prior_that_explodes():
    data = beads(60)
    wall = Bonded(repulsions=[(0, 2, 30.0, 1.0)])
    with pytest.raises(BaselineError, match="the prior explodes: its force on frame .* look at its repulsions"):
        coarse.fit(data, T, prior=wall)
    with pytest.raises(BaselineError, match="explodes"):  # lengths in nm, so that a bond of 1 % varies by nothing
        coarse.fit_prior(replace(data, forces=1e-6 * data.forces), T)


# Motions and noise

CHAIN_MOTIONS = coarse.Motions(5, [(i, i + 1) for i in range(4)])


def turns_of_space(n: int, seed: int = 5) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, 3, 3)))[0]
    return turn * np.linalg.det(turn)[:, None, None]


def test_motions_are_dual_to_internal_coordinates():
    """Along one of them, one length, angle or dihedral changes by one, and no other."""
    leaf = torch.tensor(chains(6)).requires_grad_()
    triples = [(0, 1, 2), (1, 2, 3), (2, 3, 4)]
    found = lengths(leaf, [(i, i + 1) for i in range(4)]), angles(leaf, triples), dihedrals(leaf, ANGLES)
    slopes = [torch.autograd.grad(q.sum(), leaf, retain_graph=True)[0].flatten(1) for q in torch.cat(found, 1).T]
    duality = torch.stack(slopes, 1) @ CHAIN_MOTIONS.along(leaf.detach())
    torch.testing.assert_close(duality, torch.eye(9, dtype=torch.float64).expand(6, 9, 9), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "n, bonds, n_turns",
    [
        (6, [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)], 1),
        (6, [(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5)], 1),  # a ring and a tail
        (4, [(0, 1), (0, 2), (0, 3)], 0),
        (2, [(0, 1)], 0),
    ],
)
def test_motions_of_branches_and_rings(n, bonds, n_turns, rng):
    motions, positions = coarse.Motions(n, bonds), torch.tensor(rng.normal(size=(3, n, 3)))
    along = motions.along(positions)
    assert along.shape == (3, 3 * n, max(1, 3 * n - 6)) and len(motions.turns) == n_turns
    assert (torch.linalg.matrix_rank(along) == along.shape[2]).all()
    moved = motions.turned(positions, torch.full((3, n_turns), 0.7))
    torch.testing.assert_close(lengths(moved, bonds), lengths(positions, bonds))
    if n_turns:
        change = dihedrals(moved, motions.dihedrals) - dihedrals(positions, motions.dihedrals)
        torch.testing.assert_close(change.cos(), torch.full_like(change, np.cos(0.7)))
        step = (motions.turned(positions, torch.full((3, 1), 1e-6)) - positions).flatten(1) / 1e-6
        slopes = torch.linalg.lstsq(along, step[..., None]).solution[..., 0]
        expected = torch.zeros_like(slopes)
        expected[:, motions.turns] = 1.0
        torch.testing.assert_close(slopes, expected, atol=1e-4, rtol=0)


def test_beads_apart_have_no_motions():
    with pytest.raises(DataError, match=r"leave the beads \[\[0, 1\], \[2\]\] apart"):
        coarse.Motions(3, [(0, 1)])


def test_generalised_forces_and_back(rng):
    positions, g = torch.tensor(chains(4)), torch.tensor(rng.normal(size=(4, 9)))
    forces = CHAIN_MOTIONS.cartesian(positions, g)
    torch.testing.assert_close(CHAIN_MOTIONS.generalised(positions, forces), g)
    torch.testing.assert_close(forces.sum(1), torch.zeros(4, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def uneven_noise(positions: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Forces of zero mean, whose generalised forces have a covariance."""
    g = np.random.default_rng(seed).multivariate_normal(np.zeros(9), covariance, size=len(positions))
    return CHAIN_MOTIONS.cartesian(torch.tensor(positions), torch.tensor(g)).numpy()


def uneven() -> np.ndarray:
    """A covariance of noise that is strong along bonds, weak along turns, and correlated."""
    factor = np.tril(0.3 * np.random.default_rng(1).normal(size=(9, 9))) + np.eye(9)
    factor *= np.array([1.0, 1.5, 0.8, 1.0, 0.6, 0.5, 0.5, 0.1, 0.05])[:, None]
    return factor @ factor.T


def test_noise_is_found_again():
    """Around a mean force that is smaller, of frames that are turned at random."""
    covariance, data = uneven(), beads(2000)
    forces = 0.1 * data.forces + uneven_noise(data.positions, covariance)
    turned = turns_of_space(2000)
    found = [
        coarse.estimate_noise(replace(data, positions=r, forces=f), coarse.default_descriptor(5), CHAIN_MOTIONS)
        for r, f in ((data.positions, forces), (data.positions @ turned, forces @ turned))
    ]
    np.testing.assert_allclose(*found, atol=1e-9)
    size = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(found[0] / size / size[:, None], covariance / size / size[:, None], atol=0.25)


def test_noise_is_positive_where_there_is_none():
    found = coarse.estimate_noise(beads(60), coarse.default_descriptor(5), CHAIN_MOTIONS)
    assert np.linalg.eigvalsh(found).min() > 0


def test_noise_needs_frames():
    with pytest.raises(DataError, match="too few to estimate"):
        coarse.estimate_noise(beads(20), coarse.default_descriptor(5), CHAIN_MOTIONS)


def boltzmann(n: int, seed: int = 0) -> np.ndarray:
    """Chains as `CHAIN` has them in equilibrium at 300 K, its dihedral angles included."""
    found = chains(20 * n, seed)
    energy, _ = Bonded(dihedrals=CHAIN.options["dihedrals"]).batch(torch.tensor(found))
    chances = np.exp(-(energy - energy.min()).numpy() / KT)
    kept = found[np.random.default_rng(seed).random(len(found)) < chances]
    assert len(kept) >= n
    return kept[:n]


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_turned_frames_have_the_mean_force_of_their_density(noise):
    r"""By parts, ⟨g h(φ)⟩ = -kT ⟨h'(φ)⟩ for any h; noise of forces is no more than that of the turns."""
    positions, width = boltzmann(2000), 0.2
    _, forces = CHAIN.batch(torch.tensor(positions))
    forces = forces.numpy() + noise * np.random.default_rng(3).normal(size=positions.shape)
    data = gdml.Dataset(positions=positions, numbers=[6] * 5, forces=forces)
    found = coarse.turned(data, CHAIN_MOTIONS, T, width, PRIOR, np.random.default_rng(4))
    positions = torch.tensor(found.positions)
    g, phi = CHAIN_MOTIONS.generalised(positions, torch.tensor(found.forces)), dihedrals(positions, ANGLES)
    for h, slope in ((phi.cos(), -phi.sin()), (phi.sin(), phi.cos()), ((2 * phi).cos(), -2 * (2 * phi).sin())):
        terms = g[:, 7:] * h + KT * slope
        assert (terms.mean(0).abs() < 4 * terms.std(0) / 2000**0.5).all()
    assert (g[:, 7:].std(0) < 1.05 * KT / width).all()
    untouched = CHAIN_MOTIONS.generalised(torch.tensor(data.positions), torch.tensor(data.forces))
    torch.testing.assert_close(g[:, :7], untouched[:, :7])


# Fits


@pytest.fixture(scope="module")
def noisy() -> gdml.Dataset:
    return beads(160, 0.3)


@pytest.fixture(scope="module")
def given(noisy) -> coarse.Scales:
    return coarse.Scales(2.0, 0.05, 0.09 * UNIT)


PRIOR = Bonded(bonds=CHAIN.options["bonds"], angles=CHAIN.options["angles"])
# Generalised forces that forces with independent noise of 1 eV/Å have.
UNIT = np.mean([a.T @ a for a in CHAIN_MOTIONS.along(torch.tensor(chains(200))).numpy()], axis=0)
FORCES = {"prior": PRIOR, "width": 0.0}


def dense(data: gdml.Dataset, along=None, length_scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The kernel matrix, labels and their directions."""
    group = gdml.PermutationGroup.trivial(5)
    plan = make_plan(
        data, group, coarse.default_descriptor(5), "matern52", 0, False, False, "auto", torch.device("cpu")
    )
    labels = labels_of(replace(plan, along=along), data, Shares(Team(), len(data)))
    jets = contraction(plan.kernel.with_length_scale(length_scale), labels.features.x, plan.action)
    operator = TrainingOperator(jets, labels, 0.0)
    lower = operator.to_dense()
    matrix = torch.tril(lower) + torch.tril(lower, -1).mT
    v = torch.arange(len(matrix), dtype=matrix.dtype).sin()
    torch.testing.assert_close(operator.matmul(v), matrix @ v)
    return matrix, labels.values, labels.basis


def test_labels_along_other_motions(noisy):
    """The matrix between them is that of Cartesian slopes, multiplied by the motions from both sides."""
    few = noisy[:6]
    whitened = CHAIN_MOTIONS.whitened(torch.tensor(uneven()))
    found, values, basis = dense(few, whitened)
    plain, slopes, orthonormal = dense(few)
    change = torch.block_diag(*(orthonormal.mT @ basis))
    torch.testing.assert_close(found, change.mT @ plain @ change)
    torch.testing.assert_close(values.flatten(), change.mT @ slopes.flatten())


def test_whitened_noise_is_independent():
    positions = chains(20_000)
    noise = torch.tensor(uneven_noise(positions, uneven()))
    along = CHAIN_MOTIONS.whitened(torch.tensor(uneven()))(torch.tensor(positions))
    values = torch.einsum("mi,miq->mq", noise.flatten(1), along)
    torch.testing.assert_close(values.mT.cov(), torch.eye(9, dtype=torch.float64), atol=0.05, rtol=0)


def test_one_fit_is_the_posterior_mean(noisy):
    """Of a Gaussian process of energies with a variance, and generalised forces with noise, in dense matrices."""
    scales = coarse.Scales(2.0, 0.05, uneven())
    field = coarse.fit(noisy, T, **FORCES, scales=scales)
    assert field.details["coarse"]["energy"] == 0.05
    kernel, values, basis = dense(without_prior(noisy, PRIOR), CHAIN_MOTIONS.along)
    noise = torch.block_diag(*[torch.tensor(uneven())] * len(noisy))
    expected = 0.05**2 * kernel @ torch.linalg.solve(0.05**2 * kernel + noise, values.flatten())
    forces = torch.tensor(field.predict(noisy.positions).forces) - PRIOR.batch(torch.tensor(noisy.positions))[1]
    found = -torch.einsum("mi,miq->mq", forces.flatten(1), basis)
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-3, atol=1e-6)


def test_fits_do_not_depend_on_how_frames_are_turned(noisy):
    turn = turns_of_space(len(noisy))
    other = replace(noisy, positions=noisy.positions @ turn, forces=noisy.forces @ turn)
    fields = [
        coarse.fit(one, T, **FORCES, scales=coarse.Scales(2.0, 0.05, uneven()), solver="cholesky")
        for one in (noisy, other)
    ]
    np.testing.assert_allclose(*(f.predict(noisy.positions).forces for f in fields), atol=1e-8)


def test_noise_as_it_is_beats_noise_as_a_number():
    """On the mean: forces of other chains are found better than with the same noise in all directions."""
    positions, others = chains(100), beads(100, seed=9)
    _, exact = CHAIN.batch(torch.tensor(positions))
    isotropic = np.trace(uneven()) / np.trace(UNIT) * UNIT
    errors = []
    for seed in range(3):
        forces = exact.numpy() + uneven_noise(positions, uneven(), seed)
        data = gdml.Dataset(positions=positions, numbers=[6, 7, 6, 6, 7], forces=forces)
        fields = [coarse.fit(data, T, **FORCES, scales=coarse.Scales(2.0, 0.05, c)) for c in (uneven(), isotropic)]
        errors.append([np.square(f.predict(others.positions).forces - others.forces).mean() for f in fields])
    as_it_is, as_a_number = np.mean(errors, axis=0)
    assert as_it_is < 0.7 * as_a_number


def test_positions_teach_what_forces_do_not(monkeypatch):
    """Of frames whose forces are all noise, torques about dihedral angles are learned from where they are."""
    monkeypatch.setattr(coarse.fitting, "DRAWN", 1200)  # for less time
    positions = boltzmann(500)
    noise = np.random.default_rng(2).normal(size=positions.shape)
    data = gdml.Dataset(positions=positions, numbers=[6, 7, 6, 6, 7], forces=3.0 * noise)
    data = replace(data, forces=data.forces + PRIOR.batch(torch.tensor(positions))[1].numpy())
    others = torch.tensor(boltzmann(100, seed=9))
    g = CHAIN_MOTIONS.generalised(others, CHAIN.batch(others)[1] - PRIOR.batch(others)[1])[:, 7:]
    errors = []
    for width in (0.2, 0.0):
        scales = coarse.choose_scales(data, T, prior=PRIOR, width=width, length_scale=1.0, energy=KT)
        field = coarse.fit(data, T, prior=PRIOR, width=width, scales=scales)
        learned = torch.tensor(field.predict(others.numpy()).forces) - PRIOR.batch(others)[1]
        found = CHAIN_MOTIONS.generalised(others, learned)[:, 7:]
        errors.append(float((found - g).square().mean() / g.square().mean()))
    assert errors[0] < 0.25 < errors[1]


def test_iterations_find_the_same(noisy, given):
    options = FORCES | {"scales": given, "rtol": 1e-8}
    exact, iterated = (coarse.fit(noisy, T, **options, solver=s) for s in ("cholesky", "cg"))
    both = [one.predict(noisy.positions).forces for one in (exact, iterated)]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_it_learns_below_the_noise():
    """Errors on other chains fall with the frames, below that of the prior alone, and far below the noise."""
    others, noise = beads(200, seed=9), 0.1
    errors = []
    for n in (50, 400):
        scales = coarse.Scales(2.0, 0.05, noise**2 * UNIT)
        found = coarse.fit(beads(n, noise), T, **FORCES, scales=scales).predict(others.positions).forces
        errors.append(np.sqrt(np.mean((found - others.forces) ** 2)))
    _, of_prior = PRIOR.batch(torch.tensor(others.positions))
    alone = float((of_prior - torch.tensor(others.forces)).square().mean().sqrt())
    assert errors[1] < errors[0] < alone
    assert errors[1] < 0.15 * noise


def test_mirror_images_have_different_energies(noisy, given):
    field = coarse.fit(noisy, T, **FORCES, scales=given)
    mirrored = noisy.positions * [1, 1, -1]
    energy, other = field.predict(noisy.positions[:20]).energy, field.predict(mirrored[:20]).energy
    exact, exact_other = (CHAIN.batch(torch.tensor(r[:20]))[0].numpy() for r in (noisy.positions, mirrored))
    assert np.corrcoef(energy - other, exact - exact_other)[0, 1] > 0.5


def test_files_hold_priors(noisy, given, tmp_path):
    field = coarse.fit(noisy, T, **FORCES, scales=given)
    field.save(tmp_path / "beads.npz")
    loaded = gdml.load(tmp_path / "beads.npz")
    np.testing.assert_array_equal(*(one.predict(noisy.positions[:5]).forces for one in (field, loaded)))
    assert loaded.details["coarse"]["energy"] == 0.05


def test_choice_of_scales():
    """The energy is 2 kT for each of two turns; lengths within a standard error of the best, as short as can be."""
    data = beads(80, 0.05)
    found = coarse.choose_scales(data, T, **FORCES)
    assert found.energy == pytest.approx(2 * KT * 2**0.5)
    best = min(found.candidates, key=lambda one: one.error)
    near = [one for one in found.candidates if one is best or one.minus(best).mean <= one.minus(best).error]
    assert found.length_scale == min(one.length_scale for one in near)
    assert len(found.details["tried"]) == len(found.candidates) - 1
    np.testing.assert_allclose(np.diagonal(found.noise), 0.05**2 * np.diagonal(UNIT), rtol=0.5)


def test_choice_of_scales_without_a_prior():
    """Of those within a standard error of the best, the largest λ, by ratios of signal to noise."""
    data = beads(60, 0.05)
    found = coarse.choose_scales(data, T, width=0.0)
    best = min(found.candidates, key=lambda one: one.error)
    (taken,) = [one for one in found.candidates if (one.length_scale, one.energy) == (found.length_scale, found.energy)]
    assert taken is best or taken.minus(best).mean <= taken.minus(best).error
    assert all(one.noise <= taken.noise or one.minus(best).mean > one.minus(best).error for one in found.candidates)
    assert len({one.energy for one in found.candidates}) > 2


def test_scales_that_cannot_be(noisy):
    with pytest.raises(DataError, match="no forces"):
        coarse.fit(replace(noisy, forces=None), T)
    with pytest.raises(DataError, match="give both, or none"):
        coarse.choose_scales(noisy, T, length_scale=1.0)
    with pytest.raises(DataError, match="must be positive"):
        coarse.choose_scales(noisy, T, length_scale=1.0, energy=-0.1)
    with pytest.raises(DataError, match="positive definite matrix of the 9"):
        coarse.choose_scales(noisy, T, noise=np.eye(3))
    with pytest.raises(DataError, match="width must be positive"):
        coarse.choose_scales(noisy, T, width=-0.1)
    with pytest.raises(FitError, match="too few to choose"):
        coarse.choose_scales(noisy[:6], T, noise=np.eye(9))


# Two layers


def test_stratified_draws_are_even(rng):
    values = np.concatenate([rng.uniform(0, 1, 900), rng.uniform(1, 2, 90), rng.uniform(2, 3, 10)])[:, None]
    values[0], values[-1] = 0.0, 3.0
    drawn = coarse.stratified(values, 90, 3, rng)
    assert len(set(drawn.tolist())) == 90
    np.testing.assert_array_equal(np.histogram(values[drawn, 0], 3, (0, 3))[0], [40, 40, 10])
    np.testing.assert_array_equal(coarse.stratified(values, 1000, 3, rng), np.arange(1000))
    with pytest.raises(DataError, match="1001 frames are to be drawn of 1000"):
        coarse.stratified(values, 1001, 3, rng)
    with pytest.raises(DataError, match="collective variables"):
        coarse.stratified(values[:, 0], 10, 3, rng)


def test_mean_forces(rng):
    data, noise = beads(4), rng.normal(size=(3, 4, 9))
    positions = torch.tensor(data.positions)
    forces = data.forces + np.array([CHAIN_MOTIONS.cartesian(positions, torch.tensor(one)).numpy() for one in noise])
    found, covariance = mean_forces(data, forces, CHAIN_MOTIONS)
    np.testing.assert_allclose(found.forces, forces.mean(0), atol=1e-12)
    expected = np.mean([np.cov(noise[:, k].T) for k in range(4)], axis=0) / 3
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def angles_of_chains(positions: np.ndarray) -> np.ndarray:
    return dihedrals(torch.tensor(positions), ANGLES).numpy()


def test_ensemble_against_its_formula(noisy, given):
    """Two models of all frames are the same one; the second layer then goes through its forces."""
    n = len(noisy)
    options = FORCES | {"n_models": 2, "n_first": n, "n_second": n, "scales": given}
    field = coarse.fit_ensemble(noisy, T, angles_of_chains, **options)
    single = coarse.fit(noisy, T, **FORCES, scales=given)
    assert field.details["ensemble"]["noise"] == pytest.approx(1e-3 * np.sqrt(np.diagonal(given.noise)))
    both = [one.predict(noisy.positions).forces for one in (field, single)]
    np.testing.assert_allclose(*both, atol=2e-3)
    assert np.abs(both[0] - noisy.forces).max() > 0.3  # and not through the noise


def test_ensembles_differ_by_what_they_are_averaged_for(noisy, given):
    sizes = {"n_first": 60, "n_second": 100}
    found = [
        coarse.fit_ensemble(noisy, T, angles_of_chains, n_models=k, **FORCES, scales=given, **sizes) for k in (3, 12)
    ]
    few, many = (np.array(field.details["ensemble"]["noise"]) for field in found)
    assert np.mean(few / many) == pytest.approx(2.0, rel=0.3)
    assert len(found[0].y) == 100
    with pytest.raises(DataError, match="at least two models"):
        coarse.fit_ensemble(noisy, T, angles_of_chains, n_models=1)


def test_copies_are_drawn_for_barriers(noisy, given):
    """As many as there are frames, three thousand at least, as far as copies reach."""
    assert len(coarse.fit(noisy, T, prior=PRIOR, scales=given).y) == 8 * len(noisy)


# Dynamics


def well(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Springs of 3 eV/Å² from the origin."""
    return 1.5 * positions.square().sum((1, 2)), -3.0 * positions


def test_overdamped_variance_in_a_well():
    """Exact, kT / k, for every step that is stable, here 0.8 of the largest."""
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(2000, 2, 3, dtype=torch.float64)
    run = OverdampedLangevin(lambda r: well(r)[1], start, KT, 0.8 * 2 * KT / 3.0, generator)
    run.run(30)
    squares = []
    for _ in range(60):
        run.run(5)
        squares.append(float(run.positions.square().mean()))
    assert np.mean(squares) == pytest.approx(KT / 3.0, rel=0.01)
    assert run.n_steps == 330


@pytest.mark.parametrize("dynamics", ["langevin", "overdamped"])
def test_sampling_a_well(dynamics):
    options = {"friction_per_fs": 0.02, "diffusion": 2e-3, "timestep_fs": 2.0}
    found = coarse.sample(
        well, np.zeros((200, 2, 3)), temperature_K=T, steps=600, interval=20, dynamics=dynamics, seed=1, **options
    )
    assert found.shape == (30, 200, 2, 3)
    assert (found[8:] ** 2).mean() == pytest.approx(KT / 3.0, rel=0.04)
    again = coarse.sample(
        well, np.zeros((200, 2, 3)), temperature_K=T, steps=40, interval=20, dynamics=dynamics, seed=1, **options
    )
    np.testing.assert_array_equal(found[:2], again)


@pytest.mark.parametrize("dynamics", ["langevin", "overdamped"])
def test_leaving_the_region_is_said(noisy, given, dynamics):
    """Of beads that nothing holds together."""
    field = coarse.fit(noisy[:40], T, **FORCES, scales=given)
    free, starts = replace(field, w=0 * field.w, baseline=None), noisy.positions[:3]
    with pytest.raises(DynamicsError, match="apart, in training"):
        coarse.sample(free, starts, temperature_K=T, steps=2000, dynamics=dynamics, diffusion=1e-3, seed=0)


def test_priors_take_batches_in_dynamics():
    found = [
        coarse.sample(forces, chains(3), temperature_K=T, steps=20, interval=10, seed=0)
        for forces in (CHAIN, CHAIN.batch)
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"starts": np.zeros((2, 3))}, "starts are"),
        ({"temperature_K": 0.0}, "temperature_K must be positive"),
        ({"steps": 10}, "nothing is kept"),
        ({"dynamics": "nve"}, "langevin"),
        ({"diffusion": -1.0}, "diffusion"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(DataError, match=message):
        coarse.sample(well, **({"starts": np.zeros((2, 1, 3)), "temperature_K": T, "steps": 100} | settings))


# Free energies


def twisted(angle: np.ndarray) -> np.ndarray:
    """Chains (..., 4, 3) with a dihedral angle."""
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    points = [(one, zero, zero), (zero, zero, zero), (zero, zero, one), (np.cos(angle), np.sin(angle), one)]
    return np.stack([np.stack(p, -1) for p in points], -2)


def drawn_angles(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """From exp(-cos φ)."""
    grid = np.linspace(-np.pi, np.pi, 20001)
    total = np.cumsum(np.exp(-np.cos(grid)))
    return np.interp(np.random.default_rng(seed).random(shape), total / total[-1], grid)


def test_free_energy_of_what_is_known():
    found = coarse.free_energy(twisted(drawn_angles((4000, 20), 0)), [(0, 1, 2, 3)], bins=18)
    middle = 0.5 * (found.edges[1:] + found.edges[:-1])
    expected = np.cos(middle)
    weights = found.populations
    difference = found.values - expected
    difference -= (weights * difference).sum()
    assert np.abs(difference).max() < 0.06  # of which a third comes from the width of the bins
    # The error of a logarithm of a count of independent samples is one over its root.
    np.testing.assert_allclose(found.errors, 1 / np.sqrt(found.counts.sum(0)), rtol=0.7)
    assert np.median(found.errors * np.sqrt(found.counts.sum(0))) == pytest.approx(1.0, rel=0.2)


def test_deviation():
    """Of a part of the samples that is moved into another half of the circle, and of nothing but noise."""
    one = coarse.FreeEnergy(np.tile([100.0, 300.0], (10, 1)))
    other = coarse.FreeEnergy(np.tile([200.0, 200.0], (10, 1)))
    by_hand = np.array([np.log(100 / 200), np.log(300 / 200)])
    assert one.deviation(other).mean == pytest.approx(by_hand.std())
    assert one.deviation(one).mean == 0
    a, b = (coarse.free_energy(twisted(drawn_angles((1000, 12), k)), [(0, 1, 2, 3)]) for k in (1, 2))
    found = a.deviation(b)
    assert 0 < found.mean < 0.1 and 0 < found.error < 0.05


def test_empty_bins_are_bounded():
    reference = coarse.FreeEnergy(np.array([[50.0, 50.0], [50.0, 50.0]]))
    half = coarse.FreeEnergy(np.array([[100.0, 0.0], [100.0, 0.0]]))
    assert half.deviation(reference).mean == pytest.approx(0.5 * np.log(200 / 0.5))
    assert np.isinf(half.values[1]) and np.isnan(half.errors[1])


def test_one_trajectory_is_cut_into_blocks():
    found = coarse.free_energy(twisted(drawn_angles((400,), 0)), [(0, 1, 2, 3)] * 2, bins=6)
    assert found.counts.shape == (20, 6, 6)
    assert found.counts.sum() == 400


def test_bad_samples():
    with pytest.raises(DataError, match="one or two angles"):
        coarse.free_energy(np.zeros((5, 4, 3)), [(0, 1, 2, 3)] * 3)
    with pytest.raises(DataError, match="positions are"):
        coarse.free_energy(np.zeros((4, 3)), [(0, 1, 2, 3)])
    with pytest.raises(DataError, match="do not compare"):
        coarse.FreeEnergy(np.ones((3, 4))).deviation(coarse.FreeEnergy(np.ones((3, 5))))
    with pytest.raises(DataError, match="too few"):
        coarse.free_energy(np.zeros((1, 4, 3)), [(0, 1, 2, 3)])


def test_both_dihedral_descriptors_know_left_from_right(rng):
    positions = torch.tensor(chains(6))
    descriptor = gdml.Dihedrals(ANGLES).bound([6] * 5, positions.numpy(), (False,) * 3)
    x = descriptor.evaluate(positions).x
    phi, theta = dihedrals(positions, ANGLES), angles(positions, [(0, 1, 2), (1, 2, 3), (2, 3, 4)]).sin()
    sines = theta[:, :2] * theta[:, 1:]
    torch.testing.assert_close(x, torch.cat([sines * phi.cos(), sines * phi.sin()], 1))
    mirrored = descriptor.evaluate(positions * torch.tensor([1.0, 1.0, -1.0])).x
    torch.testing.assert_close(mirrored, torch.cat([x[:, :2], -x[:, 2:]], 1))
    with pytest.raises(FitError, match="four different atoms"):
        gdml.Dihedrals([(0, 1, 2, 2)])


def test_dihedrals_are_smooth_where_atoms_are_in_line():
    line = torch.tensor([[[0.0, 0, 0], [0, 0, 1], [0, 0, 2], [0.5, 0.2, 2.7]]]).double().requires_grad_()
    x = gdml.Dihedrals([(0, 1, 2, 3)]).values(line)
    assert torch.equal(x, torch.zeros_like(x))
    assert all(torch.autograd.grad(v, line, retain_graph=True)[0].isfinite().all() for v in x[0])


@pytest.mark.parametrize("quadruples", [[(0, 1, 2, 3)], [(0, 1, 2, 3)] * 2])
def test_pictures(quadruples, tmp_path):
    found = coarse.free_energy(twisted(drawn_angles((400, 12), 0)), quadruples)
    gdml.plots.plot_free_energy({"one": found, "two": found}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(OutputError, match="no format"):
        gdml.plots.plot_free_energy({"one": found}, tmp_path / "a.nonsense")


def test_the_default_descriptor_follows_the_priors_bonds(noisy):
    star = Bonded(bonds=[(0, 1, 1.0, 1.5), (1, 2, 1.0, 1.5), (1, 3, 1.0, 2.0), (3, 4, 1.0, 1.5)])
    scales = coarse.Scales(2.0, 0.05, np.eye(9))
    field = coarse.fit(noisy[:20], T, prior=star, width=0.0, scales=scales)
    assert field.descriptor.parts[1].quadruples == ((0, 1, 3, 4), (2, 1, 3, 4))


def test_batches_that_are_not_finite_are_named():
    together = np.concatenate([chains(1), np.zeros((1, 5, 3))])
    with pytest.raises(BaselineError, match="not finite on frame 1"):
        as_baseline(Bonded(repulsions=[(0, 1, 1.0, 1.0)])).evaluate(np.full(5, 6), together)
