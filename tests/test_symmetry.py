"""Groups: closed, checked, found from any frames, and of the published orders."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

import gdml
from gdml.errors import SymmetryError
from gdml.geometry import pair_distances
from gdml.symmetry import PermutationGroup, molecular_group

ORDERS = [
    "ethanol", "benzene", "naphthalene", "aspirin", "paracetamol", "uracil", "malonaldehyde", "toluene",
    "acetylacetone", "ethylene", "formamide", "water", "ammonia", "methane", "propane", "methylamine",
    "carbon dioxide", "lactic acid",
]  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_orders(name, molecules, reference):
    assert molecular_group(molecules[name]).order == reference["group orders"][name]


@pytest.mark.parametrize("name, order", [("acetylacetone", 36), ("ethanol", 6), ("propane", 36), ("toluene", 12)])
def test_global_handedness(name, order, molecules):
    smaller = molecular_group(molecules[name], handedness="global")
    assert smaller.order == order
    everything = {tuple(p) for p in molecular_group(molecules[name]).permutations.tolist()}
    assert {tuple(p) for p in smaller.permutations.tolist()} <= everything
    with pytest.raises(SymmetryError, match="handedness is"):
        molecular_group(molecules[name], handedness="none")


@pytest.mark.parametrize("name", ["ethanol", "acetylacetone", "toluene", "propane"])
def test_permutations_exchange_equal_atoms_and_keep_the_shape(name, molecules):
    molecule = molecules[name]
    group = molecular_group(molecule)
    assert (molecule.numbers[group.permutations] == molecule.numbers).all()


@pytest.mark.parametrize("name", ["benzene", "ethylene", "methane", "water", "naphthalene"])
def test_rigid_molecules_look_the_same_after_each_permutation(name, molecules):
    molecule = molecules[name]
    before = pair_distances(molecule.positions)[0]
    for permutation in molecular_group(molecule).permutations:
        after = pair_distances(molecule.positions[:, permutation])[0]
        np.testing.assert_allclose(after, before, atol=0.02)


def test_atom_order_does_not_matter(molecules, rng):
    molecule = molecules["acetylacetone"]
    shuffle = rng.permutation(molecule.n_atoms)
    shuffled = gdml.Dataset(molecule.positions[:, shuffle], molecule.numbers[shuffle])
    expected = {tuple(np.argsort(shuffle)[p[shuffle]]) for p in molecular_group(molecule).permutations}
    assert {tuple(p) for p in molecular_group(shuffled).permutations} == expected


@pytest.mark.parametrize("n", [1, 2, 5, 50, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_does_not_depend_on_the_frames(frames, n, seed):
    assert molecular_group(frames[frames.sample(n, seed=seed)]) == molecular_group(frames)


@pytest.mark.parametrize(
    "file, order",
    [
        ("acac_300K_train.extxyz", 72),
        ("rmd17_aspirin.extxyz", 6),
        ("rmd17_ethanol.extxyz", 6),
        ("md17_uracil_forces.extxyz", 1),
        ("md17_malonaldehyde_forces.extxyz", 4),
    ],
)
def test_trajectories_at_temperature(shared, file, order):
    dataset = gdml.read(shared(f"molecules/{file}"))
    for frames in (dataset, dataset[:3], dataset[-20:]):
        assert molecular_group(frames).order == order


def test_mirror_images_among_the_frames(frames):
    mirrored = frames.positions[:9].copy()
    mirrored[3:6, :, 0] *= -1
    assert molecular_group(gdml.Dataset(mirrored, frames.numbers)) == molecular_group(frames)


OTHERS = {  # built by hand: bond lengths matter, angles hardly
    "H2": ("HH", [[0, 0, 0], [0, 0, 0.78]], 2),
    "F2": ("FF", [[0, 0, 0], [0, 0, 1.43]], 2),
    "hydrogen peroxide": ("OOHH", [[0.7, 0.7, 0], [0.7, -0.7, 0], [-0.1, 0.9, 0.5], [-0.1, -0.9, 0.5]], 2),
    "water dimer": (
        "OHHOHH",
        [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [2.87, 0, 0], [3.2, 0.5, 0.76], [3.2, 0.5, -0.76]],
        8,
    ),
    "methanimine": ("CNHHH", [[0, 0, 0], [1.27, 0, 0], [-0.55, 0.94, 0], [-0.55, -0.94, 0], [1.65, 0.94, 0]], 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_molecules(name):
    symbols, positions, order = OTHERS[name]
    assert molecular_group(gdml.read(Atoms(list(symbols), positions))).order == order


def test_rings_do_not_mirror_one_corner():
    """1,3,5-trioxane: all CH2 groups mirror together, 12 permutations of the 48 of its graph."""
    angles = np.arange(6) * np.pi / 3
    ring = np.stack([1.4 * np.cos(angles), 1.4 * np.sin(angles), 0.2 * (-1.0) ** np.arange(6)], 1)
    hydrogens = [[2.0 * np.cos(a), 2.0 * np.sin(a), 0.2 + h] for a in angles[::2] for h in (0.85, -0.6)]
    trioxane = Atoms("COCOCO" + "H6", np.concatenate([ring, hydrogens]))
    assert molecular_group(gdml.read(trioxane)).order == 12


def test_single_atom():
    assert molecular_group(gdml.read(Atoms("He"))).order == 1


def test_no_bonds_hint_at_units(molecules):
    molecule = molecules["ethanol"]
    stretched = gdml.Dataset(molecule.positions * 3, molecule.numbers)
    with pytest.raises(SymmetryError, match="are the positions in Å"):
        molecular_group(stretched)


def test_too_large_a_group(molecules):
    with pytest.raises(SymmetryError, match="more than 5 permutations"):
        molecular_group(molecules["ethanol"], max_order=5)


def test_orbits(molecules):
    orbits = molecular_group(molecules["ethanol"]).orbits()
    assert sorted(map(len, orbits)) == [1, 1, 1, 1, 2, 3]


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_generated_groups_are_groups(generators):
    group = PermutationGroup.generate(generators)
    rows = {tuple(p) for p in group.permutations.tolist()}
    assert all(tuple(g) in rows for g in generators)
    assert 120 % group.order == 0
    for a, b in itertools.product(group.permutations[:10], group.permutations):
        assert tuple(a[b].tolist()) in rows


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[0, 0, 1]], "row 0 is no permutation"),
        ([[0, 1, 2], [1, 2, 0]], "this is no group"),
        ([[1, 0, 2]], "identity is missing"),
        ([[0, 1, 2], [0, 1, 2]], "occurs twice"),
        ([[0, 1], [0, 2]], "row 1 is no permutation"),
    ],
)
def test_what_is_no_group(rows, message):
    with pytest.raises(SymmetryError, match=message):
        PermutationGroup(rows)


def test_closure_needs_more_than_one_generator():
    # Two commuting swaps without their product.
    with pytest.raises(SymmetryError, match="missing"):
        PermutationGroup([[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 3, 2]])


def test_trivial():
    assert PermutationGroup.trivial(4).order == 1
