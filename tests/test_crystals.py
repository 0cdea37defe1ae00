"""Groups of crystals, surfaces and wires: orders from theory, operations as spglib finds them."""

import ase.io
import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111, graphene, hcp0001, make_supercell, nanotube
from ase.spacegroup import crystal

import gdml
from gdml.errors import DataWarning, SymmetryError
from gdml.symmetry import (
    CrystalGroup,
    PermutationGroup,
    crystal_group,
    direct_product,
    molecular_group,
    symmetrised_reference,
)

SKEW = [[1, 2, 0], [0, 1, 5], [3, 0, 1]]  # determinant 31


def rocksalt(repeat=2) -> Atoms:
    return bulk("KCl", "rocksalt", a=6.292, cubic=True).repeat(repeat)


def perovskite() -> Atoms:
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]
    return crystal(["Sr", "Ti", "O"], sites, spacegroup=221, cellpar=[3.9, 3.9, 3.9, 90, 90, 90])


def quartz(spacegroup: int) -> Atoms:
    sites = [(0.47, 0, 0), (0.41, 0.27, 0.12)]
    return crystal(["Si", "O"], sites, spacegroup=spacegroup, cellpar=[4.9, 4.9, 5.4, 90, 90, 120])


def vacancy() -> Atoms:
    atoms = rocksalt()
    del atoms[5]
    return atoms


def interstitial() -> Atoms:
    """Hydrogen at an octahedral site of palladium."""
    host = bulk("Pd", a=3.89, cubic=True).repeat(2)
    return host + Atoms("H", [[1.945, 1.945, 1.945]])


def slab(builder=fcc111, site=None, size=(3, 3, 3)) -> Atoms:
    atoms = builder("Cu", size, vacuum=6)
    if site:
        add_adsorbate(atoms, "O", 1.2, site)
    return atoms


def stack(n_layers: int) -> Atoms:
    """Equal graphene sheets on top of each other, 3.35 Å apart, that fill the cell."""
    sheet = graphene(size=(2, 2, 1), vacuum=0.0)
    sheet.cell[2] = [0, 0, 3.35]
    atoms = sheet.repeat((1, 1, n_layers))
    atoms.pbc = (True, True, False)
    return atoms


def chain() -> Atoms:
    return Atoms("Au4", [[0, 0, 2.5 * i] for i in range(4)], cell=[9, 9, 10], pbc=(False, False, True))


# Builder, symbol, order of the translations, and of the point operations that keep the lattice of the cell,
# without those that leave every atom where it is: turning over a flat sheet, mirroring an edge of two layers.
CASES = {
    "fcc, primitive 3x3x3": (lambda: bulk("Cu").repeat(3), "Fm-3m (225)", 27, 48),
    "fcc, 125 atoms": (lambda: bulk("Al").repeat(5), "Fm-3m (225)", 125, 48),
    "fcc, cubic 2x2x3": (lambda: bulk("Cu", cubic=True).repeat((2, 2, 3)), "Fm-3m (225)", 48, 16),
    "fcc, cubic 1x2x3": (lambda: bulk("Cu", cubic=True).repeat((1, 2, 3)), "Fm-3m (225)", 24, 4),
    "fcc, skewed": (lambda: make_supercell(bulk("Cu"), SKEW), "Fm-3m (225)", 31, 2),
    "bcc, cubic": (lambda: bulk("Fe", cubic=True).repeat(3), "Im-3m (229)", 54, 48),
    "bcc, primitive": (lambda: bulk("Fe").repeat(3), "Im-3m (229)", 27, 48),
    "hcp": (lambda: bulk("Ti").repeat((3, 3, 2)), "P6_3/mmc (194)", 18, 24),
    "hcp, oblong": (lambda: bulk("Ti").repeat((4, 3, 2)), "P6_3/mmc (194)", 24, 4),
    "diamond": (lambda: bulk("C").repeat(3), "Fd-3m (227)", 27, 48),
    "rocksalt": (rocksalt, "Fm-3m (225)", 32, 48),
    "perovskite": (lambda: perovskite().repeat(3), "Pm-3m (221)", 27, 48),
    "wurtzite": (lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2).repeat((3, 3, 2)), "P6_3mc (186)", 18, 12),
    "quartz, left": (lambda: quartz(154).repeat(2), "P3_221 (154)", 8, 6),
    "quartz, right": (lambda: quartz(152), "P3_121 (152)", 1, 6),
    "vacancy": (vacancy, "Pm-3m (221)", 1, 48),
    "interstitial": (interstitial, "Pm-3m (221)", 1, 48),
    "graphene": (lambda: graphene(size=(3, 3, 1), vacuum=8), "p6/mmm (80)", 9, 12),
    "graphene, no cell across": (lambda: graphene(size=(5, 5, 1)), "p6/mmm (80)", 25, 12),
    "graphene, oblong": (lambda: graphene(size=(4, 3, 1), vacuum=8), "p6/mmm (80)", 12, 2),
    "slab 111": (slab, "p-3m1 (72)", 9, 12),
    "slab 100, even": (lambda: slab(fcc100, size=(3, 3, 4)), "p4/nmm (64)", 9, 16),
    "slab 0001": (lambda: hcp0001("Ti", (3, 3, 3), vacuum=5), "p-6m2 (78)", 9, 12),
    "adsorbate, fcc site": (lambda: slab(site="fcc"), "p3m1 (69)", 1, 6),
    "adsorbate, hollow site": (lambda: slab(fcc100, site="hollow"), "p4mm (55)", 1, 8),
    "adsorbate, bridge": (lambda: slab(fcc100, site="bridge"), "pmm2 (23)", 1, 4),
    "sheets": (lambda: stack(3), "p6/mmm (80)", 4, 24),
    "tube (5,5)": (lambda: nanotube(5, 5, length=2, vacuum=6), "rod group with 80 operations", 2, 40),
    "tube (7,0)": (lambda: nanotube(7, 0, length=2, vacuum=6), "rod group with 112 operations", 2, 56),
    "tube (4,2)": (lambda: nanotube(4, 2, length=1, vacuum=6), "rod group with 56 operations", 1, 56),
    "chain": (chain, "rod group with 8 operations", 4, 2),
}


@pytest.fixture(scope="module")
def found():
    """Structure and group of each case, made when first asked for."""
    made = {}

    def get(name: str) -> tuple[Atoms, CrystalGroup]:
        if name not in made:
            atoms = CASES[name][0]()
            made[name] = atoms, crystal_group(atoms)
        return made[name]

    return get


def as_set(rows: np.ndarray) -> set[tuple]:
    return set(map(tuple, rows.tolist()))


@pytest.mark.parametrize("name", CASES)
def test_orders(name, found):
    _, spacegroup, n_translations, n_cosets = CASES[name]
    _, group = found(name)
    assert group.spacegroup == spacegroup
    assert (len(group.translations), len(group.cosets)) == (n_translations, n_cosets)
    assert group.order == n_translations * n_cosets


@pytest.mark.parametrize("name", CASES)
def test_elements_and_distances_are_kept(name, found):
    atoms, group = found(name)
    distances = atoms.get_all_distances(mic=True)
    for row in np.concatenate([group.translations, group.cosets]):  # the others are their products
        assert (atoms.numbers[row] == atoms.numbers).all()
        np.testing.assert_allclose(distances[row][:, row], distances, atol=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_each_element_is_one_product(name, found):
    _, group = found(name)
    t, q = group.translations, group.cosets
    assert (t[0] == np.arange(group.n_atoms)).all() and (q[0] == t[0]).all()
    made = [tuple(a[b].tolist()) for a in t for b in q]
    assert len(set(made)) == len(made) == group.order
    assert set(made) == as_set(group.permutations)


@pytest.mark.parametrize("name", CASES)
def test_closed_and_translations_normal(name, found, rng):
    atoms, group = found(name)
    rows, elements, translations = group.permutations, as_set(group.permutations), as_set(group.translations)
    for a, b in rng.integers(group.order, size=(200, 2)):
        assert tuple(rows[a][rows[b]].tolist()) in elements
    for t in group.translations:
        assert (t[group.translations] == group.translations[:, t]).all()
        conjugated = group.cosets[:, t][np.arange(len(group.cosets))[:, None], np.argsort(group.cosets, axis=1)]
        assert as_set(conjugated) <= translations


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1][0].isupper()])
def test_same_operations_as_spglib(name, found):
    atoms, group = found(name)
    assert as_set(group.permutations) == spglib_permutations(atoms)


def spglib_permutations(atoms: Atoms) -> set[tuple]:
    scaled = atoms.get_scaled_positions()
    dataset = spglib.get_symmetry_dataset((atoms.cell[:], scaled, atoms.numbers), symprec=1e-3)
    rows = set()
    for rotation, translation in zip(dataset.rotations, dataset.translations):
        difference = (scaled @ rotation.T + translation)[:, None] - scaled
        lengths = np.linalg.norm((difference - np.round(difference)) @ atoms.cell[:], axis=2)
        assert lengths.min(1).max() < 1e-3
        rows.add(tuple(lengths.argmin(1).tolist()))
    return rows


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
@pytest.mark.parametrize("seed", range(12))
def test_any_supercell(seed):
    rng = np.random.default_rng(seed)
    matrix = np.zeros((3, 3))
    while not 2 <= abs(np.linalg.det(matrix)) <= 20:
        matrix = rng.integers(-3, 4, size=(3, 3))
    primitive = [bulk("Cu"), bulk("Ti"), bulk("C"), perovskite()][seed % 4]
    atoms = make_supercell(primitive, matrix)
    group = crystal_group(atoms)
    assert as_set(group.permutations) == spglib_permutations(atoms)
    assert len(group.translations) == round(abs(np.linalg.det(matrix)))


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
@pytest.mark.parametrize(
    "atoms, order",
    [(bulk("Cu"), 1), (bulk("C"), 2), (bulk("Fe", cubic=True), 2), (bulk("Ti"), 2), (rocksalt(1), 192 // 8)],
    ids=["fcc", "diamond", "bcc", "hcp", "rocksalt"],
)
def test_tiny_cells_have_fewer_permutations_than_operations(atoms, order):
    group = crystal_group(atoms)
    assert as_set(group.permutations) == spglib_permutations(atoms)
    assert group.order == order


@pytest.mark.parametrize(
    "file, order", [("kcl64", 1536), ("si64", 1536), ("mgo64", 1536), ("nacl64", 1536), ("al125_500K", 6000)]
)
def test_published_references(shared, file, order):
    reference = ase.io.read(shared(f"crystals/{file}_reference.extxyz"))
    group = crystal_group(reference)
    assert group.order == order
    frames = ase.io.read(shared(f"crystals/{file}.extxyz"), ":26")
    positions = np.array([atoms.positions for atoms in frames])
    averaged = symmetrised_reference(positions, reference.cell[:], reference.numbers)
    assert crystal_group(averaged) == group


# What must not matter.

VARIED = ["rocksalt", "fcc, skewed", "hcp", "quartz, left", "interstitial"]
VARIED += ["slab 111", "adsorbate, fcc site", "tube (5,5)"]


@pytest.mark.parametrize("name", VARIED)
def test_order_of_atoms(name, found, rng):
    atoms, group = found(name)
    shuffle = rng.permutation(len(atoms))
    expected = as_set(np.argsort(shuffle)[group.permutations[:, shuffle]])
    shuffled = crystal_group(atoms[shuffle])
    assert as_set(shuffled.permutations) == expected
    assert as_set(shuffled.translations) == as_set(np.argsort(shuffle)[group.translations[:, shuffle]])


@pytest.mark.parametrize("name", VARIED)
def test_origin_orientation_and_wrapping(name, found, rng):
    atoms, group = found(name)
    moved = atoms.copy()
    moved.rotate(37.0, (1.0, 2.0, -0.5), rotate_cell=True)
    moved.positions += rng.uniform(-20, 20, 3)
    moved.positions += rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc @ moved.cell[:]
    assert crystal_group(moved) == group
    moved.wrap(eps=0)
    if atoms.pbc.all():
        assert crystal_group(moved) == group


@pytest.mark.parametrize("name", VARIED)
def test_choice_of_the_cell(name, found):
    """Another basis of the same lattice, left-handed too, and another vacuum."""
    atoms, group = found(name)
    other = atoms.copy()
    mixed, longer = [[0, 1, 0], [1, 3, 0], [-2, 1, 1]], np.diag(np.where(atoms.pbc, 1, 2))
    other.set_cell(np.where(np.outer(atoms.pbc, atoms.pbc), mixed, longer) @ atoms.cell[:])
    same = crystal_group(other)
    assert same == group
    assert same.spacegroup == group.spacegroup


@pytest.mark.parametrize("name", VARIED)
def test_noise_below_symprec(name, found, rng):
    atoms, group = found(name)
    noisy = atoms.copy()
    way = rng.uniform(-1, 1, (len(atoms), 3))
    way -= way.mean(0)  # symprec is about the ideal structure that fits best
    noisy.positions += 0.04 * way / np.linalg.norm(way, axis=1).max()
    assert crystal_group(noisy, symprec=0.081 if "tube" in name else 0.041) == group
    assert crystal_group(noisy, symprec=1e-4).order == 1


@pytest.mark.parametrize("name", ["graphene", "slab 111", "tube (7,0)", "chain", "hcp"])
@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 0, 1), (1, 0, 2)])
def test_names_of_the_axes(name, axes, found):
    """The same structure with cell vectors and coordinates renamed."""
    atoms, group = found(name)
    axes = np.array(axes)
    renamed = Atoms(atoms.numbers, atoms.positions[:, axes], cell=atoms.cell[:][axes][:, axes], pbc=atoms.pbc[axes])
    assert crystal_group(renamed) == group


def test_a_distorted_cell_is_less_symmetric():
    atoms = rocksalt()
    atoms.set_cell(atoms.cell[:] * [[1], [1], [1.01]], scale_atoms=True)
    group = crystal_group(atoms)
    assert (group.spacegroup, group.order) == ("I4/mmm (139)", 32 * 16)
    assert crystal_group(atoms, symprec=0.15).order == 1536


# Directions without periodicity.


@pytest.mark.parametrize("name", ["graphene", "slab 111", "slab 0001", "adsorbate, fcc site", "tube (7,0)"])
def test_vacuum_or_no_periodicity(name, found):
    """With enough vacuum a box is as good, but for turns that the box does not have."""
    atoms, group = found(name)
    boxed = atoms.copy()
    boxed.pbc = True
    assert as_set(crystal_group(boxed).permutations) <= as_set(group.permutations)
    if "tube" not in name:
        assert crystal_group(boxed) == group


def test_the_period_of_the_vacuum_is_no_symmetry():
    layers = stack(3)
    assert crystal_group(layers).order == 4 * 24
    layers.pbc = True
    assert crystal_group(layers).order == 12 * 24


def test_bonds_across_what_is_not_periodic():
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.pbc = (True, True, False)
    with pytest.raises(SymmetryError, match="pbc is False along c, but there is no vacuum.* 2.55 Å"):
        crystal_group(atoms)
    atoms.pbc = (False, True, False)
    with pytest.raises(SymmetryError, match="pbc is False along (a|c), but"):
        crystal_group(atoms)
    atoms.cell[0] *= 2
    with pytest.raises(SymmetryError, match="pbc is False along c, but"):
        crystal_group(atoms)


# Products.


def test_molecule_on_a_sheet(molecules):
    sheet, benzene = graphene(size=(3, 3, 1), vacuum=8), molecular_group(molecules["benzene"])
    substrate = crystal_group(sheet)
    group = direct_product([(substrate, np.arange(18)), (benzene, np.arange(18, 30))], 30)
    assert isinstance(group, CrystalGroup)
    assert (group.order, len(group.translations), len(group.cosets)) == (108 * 12, 9, 12 * 12)
    assert (group.translations[:, 18:] == np.arange(18, 30)).all()
    assert group.spacegroup == "p6/mmm (80)"
    reverse = direct_product([(benzene, np.arange(18, 30)), (substrate, np.arange(18))], 30)
    assert type(reverse) is PermutationGroup
    assert reverse == group and hash(reverse) == hash(group)


def test_interstitial_in_a_host(rng):
    atoms = interstitial()[rng.permutation(33)]
    host = np.flatnonzero(atoms.symbols == "Pd")
    group = direct_product([(crystal_group(atoms[host]), host)], 33)
    assert group.order == 32 * 48
    hydrogen = np.flatnonzero(atoms.symbols == "H")
    assert (group.permutations[:, hydrogen] == hydrogen).all()
    assert as_set(crystal_group(atoms).permutations) <= as_set(group.permutations)


@pytest.mark.parametrize(
    "groups, message",
    [
        ([], "no groups"),
        ([([0, 1], 2), ([1, 2], 2)], "groups 0 and 1 both act on atom 1;"),
        ([([0, 1, 2], 3), ([2, 1], 2)], "atom 2 and 1 more"),
        ([([0, 1, 2], 2)], "needs as many indices"),
        ([([0.0, 1.0], 2)], "type float64"),
        ([([0, 8], 2)], "acts on atoms 0 to 8, of 0 to 7"),
        ([([0, -1], 2)], "acts on atoms -1 to 0"),
        ([([1, 1], 2)], "occurs twice"),
    ],
)
def test_products_that_make_no_sense(groups, message):
    with pytest.raises(SymmetryError, match=message):
        direct_product([(PermutationGroup.trivial(n), atoms) for atoms, n in groups], 8)


def test_too_large_a_product(found):
    _, group = found("rocksalt")
    with pytest.raises(SymmetryError, match="1536 x 1536 = 2359296 elements"):
        direct_product([(group, np.arange(64)), (group, np.arange(64, 128))], 128)


# The constructor.


def test_as_a_permutation_group(found):
    _, group = found("hcp")
    plain = PermutationGroup(group.permutations)
    assert group == plain and hash(group) == hash(plain)
    assert not group.permutations.flags.writeable
    assert repr(group) == "CrystalGroup(P6_3/mmc (194), n_atoms=36, order=432: 18 translations x 24)"
    assert gdml.crystal_group is crystal_group
    assert CrystalGroup.trivial(3).order == 1


@pytest.mark.parametrize(
    "translations, cosets, message",
    [
        ([[0, 1, 2], [1, 0, 2]], [[0, 1, 2], [1, 2, 0], [2, 0, 1]], "no normal subgroup"),
        ([[0, 1, 2], [1, 0, 2]], [[0, 1, 2], [1, 0, 2]], "occurs twice"),
        ([[0, 1, 2], [1, 0, 2]], [[1, 0, 2]], "identity is not among the cosets"),
        ([[0, 1, 2], [1, 0, 2]], [[0, 1, 2], [0, 2, 1]], "no group"),
        (PermutationGroup.generate([[1, 2, 0], [1, 0, 2]]).permutations, [[0, 1, 2]], "do not commute"),
    ],
)
def test_what_is_no_crystal_group(translations, cosets, message):
    with pytest.raises(SymmetryError, match=message):
        CrystalGroup(translations, cosets, spacegroup="P1 (1)", symprec=1e-3)


# Errors.


def damaged(atoms: Atoms, **changes) -> Atoms:
    for key, value in changes.items():
        setattr(atoms, key, value)
    return atoms


@pytest.mark.parametrize(
    "atoms, message",
    [
        (damaged(rocksalt(), pbc=False), "use molecular_group"),
        (Atoms(cell=[3, 3, 3], pbc=True), "no atoms"),
        (damaged(rocksalt(), positions=np.full((64, 3), np.nan)), "position of atom 0 is"),
        (Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "the cell is singular"),
        (Atoms("H", pbc=True), "the cell is singular"),
        (damaged(graphene(), pbc=True), "the cell is singular"),
        (rocksalt() + Atoms("K", [[0.0, 0.0, 12.584]]), "atoms 0 and 64 are .* remove one if it was given twice"),
    ],
)
def test_bad_references(atoms, message):
    with pytest.raises(SymmetryError, match=message):
        crystal_group(atoms)


@pytest.mark.parametrize("symprec", [0, -1e-3, np.nan, np.inf])
def test_bad_tolerance(symprec):
    with pytest.raises(SymmetryError, match="symprec is a positive length"):
        crystal_group(bulk("Cu"), symprec=symprec)


def test_tolerance_that_merges_atoms():
    with pytest.raises(SymmetryError, match="symprec=0.8 Å needs more than 3.2; .* lower symprec"):
        crystal_group(rocksalt(), symprec=0.8)


def test_between_two_symmetries():
    atoms = rocksalt()
    atoms.positions[3, 0] += 0.0403  # and some operations move it by more than others
    atoms.positions[20] += 0.0201
    with pytest.raises(SymmetryError, match="lies between two symmetries.*symmetrised_reference"):
        crystal_group(atoms, symprec=0.02)


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
def test_spglib_that_disagrees(monkeypatch):
    monkeypatch.setattr(spglib, "get_symmetry_dataset", lambda *args, **kwargs: None)
    with pytest.raises(SymmetryError, match="spglib finds no space group"):
        crystal_group(rocksalt())
    monkeypatch.undo()
    whole = spglib.get_symmetry_dataset
    monkeypatch.setattr(
        spglib, "get_symmetry_dataset", lambda cell, symprec: whole((cell[0] * [[1], [1], [1.1]], *cell[1:]), symprec)
    )
    with pytest.raises(SymmetryError, match=r"1536 operations fit; spglib finds I4/mmm \(139\) with 512"):
        crystal_group(rocksalt())


# References from frames.


def trembling(atoms: Atoms, rng, n_frames=100, size=0.1) -> np.ndarray:
    """Frames around an ideal structure, adrift, and wrapped where it is periodic."""
    frames = atoms.positions + rng.normal(0, size, (n_frames, len(atoms), 3))
    frames += np.linspace(0, 30, n_frames)[:, None, None] * atoms.pbc @ atoms.cell[:] / 10
    for frame in frames:
        copy = atoms.copy()
        copy.positions = frame
        copy.wrap()
        frame[:] = copy.positions
    return frames


@pytest.mark.parametrize("name", VARIED)
def test_reference_from_frames(name, found, rng):
    atoms, group = found(name)
    reference = symmetrised_reference(trembling(atoms, rng), atoms.cell[:], atoms.numbers, atoms.pbc)
    again = crystal_group(reference, symprec=1e-5)
    assert again == group
    assert reference.info["spacegroup"] == group.spacegroup
    assert reference.info["moved"] < 0.07
    difference = reference.get_all_distances(mic=True) - atoms.get_all_distances(mic=True)
    assert np.abs(difference).max() < 0.04


def polar() -> Atoms:
    """A tetragonal distortion in a cubic cell."""
    atoms = perovskite().repeat(2)
    atoms.positions[atoms.symbols == "Ti", 2] += 0.12
    return atoms


def test_a_real_distortion_survives_a_small_tolerance(rng):
    atoms = polar()
    frames = trembling(atoms, rng, size=0.05)
    reference = symmetrised_reference(frames, atoms.cell[:], atoms.numbers, max_symprec=0.04)
    assert reference.info["spacegroup"] == "P4mm (99)"
    with pytest.warns(DataWarning, match="if a distortion is real, give a max_symprec below"):
        reference = symmetrised_reference(frames, atoms.cell[:], atoms.numbers)
    assert reference.info["spacegroup"] == "Pm-3m (221)"


def test_one_frame(found):
    atoms, group = found("rocksalt")
    assert crystal_group(symmetrised_reference([atoms.positions], atoms.cell[:], atoms.numbers)) == group


def test_frames_that_give_no_reference(rng):
    atoms = rocksalt()
    frames = trembling(atoms, rng, 20)
    frames[:, 7] += np.linspace(0, 5, 20)[:, None]
    with pytest.raises(SymmetryError, match=r"atom 7 \(Cl\) moves by .* does not stay"):
        symmetrised_reference(frames, atoms.cell[:], atoms.numbers)
    with pytest.raises(SymmetryError, match=r"shape \(M, 64, 3\), not \(20, 3\)"):
        symmetrised_reference(frames[:, 0], atoms.cell[:], atoms.numbers)
    with pytest.raises(SymmetryError, match="max_symprec is a length"):
        symmetrised_reference(frames, atoms.cell[:], atoms.numbers, max_symprec=0.0)
    with pytest.raises(SymmetryError, match="use molecular_group"):
        symmetrised_reference(frames, atoms.cell[:], atoms.numbers, pbc=False)
