"""Periodic descriptors: exact images, derivatives by positions and strain, invariances, smoothness."""

import itertools

import numpy as np
import pytest
import spglib
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.calculator import Calculator
from ase.calculators.fd import calculate_numerical_stress
from ase.geometry.geometry import general_find_mic
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gdml.descriptors.periodic
import gdml.geometry
from gdml.descriptors import PeriodicInverseDistances, SmoothInverseDistances
from gdml.errors import DataError, FitError
from gdml.geometry import Lattice, nearest_images
from gdml.symmetry import PermutationGroup

N = 4
FCC = 4.3 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
BCC = 3.4 * np.array([[-1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
HEXAGONAL = np.array([[6.0, 0.0, 0.0], [-3.0, 27**0.5, 0.0], [0.0, 0.0, 7.0]])
TRICLINIC = np.array([[6.0, 0.3, -0.2], [2.1, 5.5, 0.4], [-1.3, 2.4, 6.5]])
SKEWED = np.array([[5.0, 0.0, 0.0], [14.3, 5.5, 0.0], [-9.1, 17.2, 6.0]])
SYSTEMS = {
    "cubic": (6.0 * np.eye(3), (True, True, True)),
    "fcc": (FCC, (True, True, True)),
    "bcc": (BCC, (True, True, True)),
    "hexagonal": (HEXAGONAL, (True, True, True)),
    "triclinic": (TRICLINIC, (True, True, True)),
    "skewed": (SKEWED, (True, True, True)),
    "slab": (HEXAGONAL + np.diag([0.0, 0.0, 13.0]), (True, True, False)),
    "slab in a leaning cell": (TRICLINIC, (True, False, True)),
    "slab without a third vector": (HEXAGONAL * [[1.0], [1.0], [0.0]], (True, True, False)),
    "wire": (np.diag([0.0, 5.0, 0.0]), (False, True, False)),
}
KINDS = [PeriodicInverseDistances, SmoothInverseDistances]
systems = pytest.mark.parametrize("cell, pbc", SYSTEMS.values(), ids=SYSTEMS)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def geometry(cell, pbc, rng, n_frames=2, n_atoms=N, apart=1.0) -> torch.Tensor:
    """Random positions in the reduced cell and beyond it, with atoms that are not too close."""
    lattice = Lattice.of_cell(cell, pbc)
    frames = []
    while len(frames) < n_frames:
        positions = torch.tensor(rng.uniform(-1, 1, (n_atoms, len(lattice.basis))) @ lattice.basis)
        positions += torch.tensor(rng.uniform(-1.5, 1.5, (n_atoms, 3)))
        difference = lattice.nearest(positions[:, None] - positions)
        if (difference.norm(dim=-1) + 2 * apart * torch.eye(n_atoms) > apart).all():
            frames.append(positions)
    return torch.stack(frames)


def strained(strain, positions, cell):
    """Atoms and lattice after r -> (1 + ε) r."""
    deform = np.eye(3) + strain
    return positions @ torch.tensor(deform.T), cell @ deform.T


def brute_force(difference, cell, pbc, radius):
    """All images (K, n, 3) of differences (K, 3) with translations within a radius of minus the difference."""
    vectors = cell[np.array(pbc)]
    counts = np.ceil(
        (radius + np.linalg.norm(difference, axis=1).max()) * np.linalg.norm(np.linalg.pinv(vectors), axis=0)
    )
    shifts = np.array(list(itertools.product(*[np.arange(-c, c + 1) for c in counts]))) @ vectors
    return difference[:, None] + shifts


# Images


@systems
def test_nearest_images_against_brute_force(cell, pbc, rng):
    lattice = Lattice.of_cell(cell, pbc)
    difference = rng.uniform(-8, 8, (40, 3))
    nearest = nearest_images(torch.tensor(difference)[None], cell, pbc)[0].numpy()
    # Wrapped first, so that a small sphere of the reduced lattice holds the answer.
    images = brute_force(
        nearest, lattice.basis, [True] * len(lattice.basis), 2.0 * np.linalg.norm(lattice.basis, axis=1).max()
    )
    np.testing.assert_allclose(
        np.linalg.norm(nearest, axis=1), np.linalg.norm(images, axis=2).min(1), rtol=1e-13, atol=1e-13
    )
    steps = (nearest - difference) @ np.linalg.pinv(cell[np.array(pbc)])
    np.testing.assert_allclose(steps, steps.round(), atol=1e-11)
    np.testing.assert_allclose(steps.round() @ cell[np.array(pbc)], nearest - difference, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-8, 8), min_size=9, max_size=9),
    st.lists(st.floats(-60, 60), min_size=3, max_size=3),
    st.tuples(*[st.booleans()] * 3).filter(any),
)
def test_nearest_images_in_any_cell(entries, difference, pbc):
    # ASE is exact if the other vectors are normal to the periodic ones, for which zeros
    # stand; and not in find_mic, which trusts rounding too far in cells that are not reduced.
    cell = np.reshape(entries, (3, 3)) * np.array(pbc)[:, None]
    sizes = np.linalg.norm(cell[np.array(pbc)], axis=1, keepdims=True)
    assume(sizes.min() > 0.5 and np.linalg.svd(cell[np.array(pbc)] / sizes, compute_uv=False).min() > 0.02)
    nearest = nearest_images(torch.tensor(difference, dtype=torch.float64).view(1, 1, 3), cell, pbc)
    expected = general_find_mic(np.array([difference]), cell, pbc)[1][0]
    assert float(nearest.norm()) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("name, wrong", [("cubic", 0.0), ("fcc", 0.25), ("hexagonal", 0.18)])
def test_rounding_is_not_enough(name, wrong, rng):
    """The reason for all this; and that the brute-force tests would notice."""
    cell, pbc = SYSTEMS[name]
    fractions = rng.uniform(-0.5, 0.5, (4000, 3))
    nearest = nearest_images(torch.tensor(fractions @ cell)[None], cell, pbc)[0].norm(dim=1).numpy()
    longer = np.linalg.norm(fractions @ cell, axis=1) > nearest + 1e-9
    assert longer.mean() == pytest.approx(wrong, abs=0.03)


@systems
def test_soft_distance_misses_no_image(cell, pbc, rng):
    descriptor = SmoothInverseDistances(2, cell, pbc, power=2.0, softness=0.25)
    lattice = descriptor.lattice
    positions = geometry(cell, pbc, rng, n_frames=20, n_atoms=2)
    nearest = lattice.nearest(positions[:, 1] - positions[:, 0]).numpy()
    reach = np.linalg.norm(lattice.basis, axis=1).sum() + 8.0 * descriptor.sigma
    squares = (brute_force(nearest, lattice.basis, [True] * len(lattice.basis), reach) ** 2).sum(2)
    expected = -2 * descriptor.sigma**2 * np.log(np.exp(-squares / (2 * descriptor.sigma**2)).sum(1))
    np.testing.assert_allclose(1 / descriptor.evaluate(positions).x[:, 0].numpy(), expected, rtol=1e-12)


def test_soft_distance_becomes_the_nearest(rng):
    positions = geometry(FCC, (True,) * 3, rng)
    nearest = PeriodicInverseDistances(N, FCC).evaluate(positions).x
    errors = [
        (SmoothInverseDistances(N, FCC, softness=s).evaluate(positions).x - nearest).abs().max() for s in (0.2, 0.02)
    ]
    assert errors[1] < 0.05 * errors[0]


def test_close_atoms_are_at_their_distance():
    positions = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.8, 0.0]]], dtype=torch.float64)
    x = SmoothInverseDistances(2, 10.0 * np.eye(3), power=2.0).evaluate(positions).x
    assert float(x) == pytest.approx(1 / 1.64, rel=1e-6)


def test_pieces_fit_together(monkeypatch, rng):
    positions = geometry(FCC, (True,) * 3, rng)
    descriptor = SmoothInverseDistances(N, FCC)
    whole = descriptor.evaluate(positions, strain=True)
    monkeypatch.setattr(gdml.geometry, "NUMBERS_AT_A_TIME", 50)
    monkeypatch.setattr(gdml.descriptors.periodic, "NUMBERS_AT_A_TIME", 500)
    pieces = descriptor.evaluate(positions, strain=True)
    for name in ("x", "slopes", "strain_slopes"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


# Derivatives


@kinds
@systems
def test_jacobian_against_autograd(kind, cell, pbc, rng):
    descriptor, positions = kind(N, cell, pbc), geometry(cell, pbc, rng)
    expected = torch.autograd.functional.jacobian(lambda r: descriptor.evaluate(r).x, positions)
    features = descriptor.evaluate(positions)
    jacobian = features.jacobian()
    for frame in range(2):
        torch.testing.assert_close(jacobian[frame], expected[frame, :, frame].flatten(1), rtol=1e-11, atol=1e-12)
    v, g = torch.randn_like(positions), torch.randn_like(features.x)
    torch.testing.assert_close(features.jvp(v), torch.einsum("mdi,mi->md", jacobian, v.flatten(1)))
    torch.testing.assert_close(features.vjp(g).flatten(1), torch.einsum("mdi,md->mi", jacobian, g))


@kinds
@systems
def test_strain_against_finite_differences(kind, cell, pbc, rng):
    descriptor, positions = kind(N, cell, pbc), geometry(cell, pbc, rng)
    slopes = descriptor.evaluate(positions, strain=True).strain_slopes
    for entry, (i, j) in enumerate(zip(*gdml.descriptors.periodic.VOIGT)):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = 1e-5
        ahead, back = (descriptor.evaluate(*strained(sign * strain, positions, cell)).x for sign in (1, -1))
        expected = (ahead - back) / (2e-5 if i == j else 4e-5)
        torch.testing.assert_close(slopes[..., entry], expected, rtol=1e-6, atol=1e-9)


class EnergyOfDescriptor(Calculator):
    """E = g · x, for a descriptor."""

    implemented_properties = ("energy", "free_energy")

    def __init__(self, descriptor, g):
        super().__init__()
        self.descriptor, self.g = descriptor, g

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        x = self.descriptor.evaluate(torch.tensor(atoms.positions)[None], atoms.cell.array).x[0]
        self.results["energy"] = self.results["free_energy"] = float(x @ self.g)


@kinds
@pytest.mark.parametrize("name", ["fcc", "triclinic", "slab", "slab in a leaning cell"])
def test_stress_is_that_of_ase(kind, name, rng):
    cell, pbc = SYSTEMS[name]
    descriptor, positions = kind(N, cell, pbc), geometry(cell, pbc, rng, n_frames=1)
    g = torch.tensor(rng.normal(size=descriptor.size))
    atoms = Atoms(positions=positions[0].numpy(), cell=cell, pbc=pbc, calculator=EnergyOfDescriptor(descriptor, g))
    stress = descriptor.evaluate(positions, strain=True).strain_vjp(g[None])[0].numpy() / atoms.get_volume()
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), rtol=1e-6, atol=1e-9)


# Invariances


@kinds
@systems
def test_lattice_vectors_and_translations(kind, cell, pbc, rng):
    descriptor, positions = kind(N, cell, pbc), geometry(cell, pbc, rng)
    x = descriptor.evaluate(positions).x
    wrapped = positions + torch.tensor(rng.integers(-3, 4, (2, N, 3)) * np.array(pbc) @ cell)
    torch.testing.assert_close(descriptor.evaluate(wrapped).x, x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(descriptor.evaluate(positions + torch.randn(3).double()).x, x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(descriptor.evaluate(-positions).x, x, rtol=1e-10, atol=1e-12)


@kinds
@systems
def test_rotations(kind, cell, pbc, rng):
    descriptor, positions = kind(N, cell, pbc), geometry(cell, pbc, rng)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    features = descriptor.evaluate(positions)
    turned = descriptor.evaluate(positions @ torch.tensor(rotation), cell @ rotation)
    torch.testing.assert_close(turned.x, features.x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(turned.slopes, features.slopes @ torch.tensor(rotation), rtol=1e-9, atol=1e-11)
    itself = kind(N, cell @ rotation, pbc).evaluate(positions @ torch.tensor(rotation))
    torch.testing.assert_close(itself.x, features.x, rtol=1e-10, atol=1e-12)


@kinds
@systems
def test_any_cell_of_a_lattice_will_do(kind, cell, pbc, rng):
    positions = geometry(cell, pbc, rng)
    features = kind(N, cell, pbc).evaluate(positions, strain=True)
    for _ in range(3):
        other = cell.copy()
        axes = np.flatnonzero(pbc)
        for _ in range(4):  # shears by whole vectors; a sign at last
            if len(axes) > 1:
                i, j = rng.choice(axes, 2, replace=False)
                other[i] += rng.integers(-2, 3) * other[j]
        other[axes[0]] *= -1
        again = kind(N, other, pbc).evaluate(positions, strain=True)
        for name in ("x", "slopes", "strain_slopes"):
            torch.testing.assert_close(getattr(again, name), getattr(features, name), rtol=1e-9, atol=1e-10)


def crystals() -> dict[str, Atoms]:
    doubled = make_supercell(bulk("NaCl", "rocksalt", a=5.6), 2 * np.eye(3, dtype=int))
    leaning = make_supercell(bulk("NaCl", "rocksalt", a=5.6), [[2, 0, 0], [2, 2, 0], [-2, 4, 2]])
    return {
        "rocksalt, primitive cells": doubled,
        "the same in another cell": leaning,
        "wurtzite": make_supercell(bulk("ZnO", "wurtzite", a=3.25, c=5.2), np.diag([2, 2, 1])),
    }


@kinds
@pytest.mark.parametrize("atoms", crystals().values(), ids=crystals())
def test_space_group(kind, atoms, rng):
    """Each operation of a crystal's space group permutes the entries."""
    cell = atoms.cell.array
    found = spglib.get_symmetry((cell, atoms.get_scaled_positions(), atoms.numbers))
    positions = atoms.positions + rng.normal(scale=0.15, size=(len(atoms), 3))
    descriptor = kind(len(atoms), cell)
    x = descriptor.evaluate(torch.tensor(positions)[None]).x
    chosen = rng.choice(len(found["rotations"]), 24)
    for rotation, shift in zip(found["rotations"][chosen], found["translations"][chosen]):
        moved, ideal = (
            (np.linalg.solve(cell.T, r.T).T @ rotation.T + shift) @ cell for r in (positions, atoms.positions)
        )
        separation = nearest_images(torch.tensor(atoms.positions[:, None] - ideal), cell, (True,) * 3).norm(dim=-1)
        assert float(separation.min(1).values.max()) < 1e-4
        origin = separation.argmin(1).numpy()  # atom origin[a] takes the place of atom a
        group = PermutationGroup.generate([origin])
        row = next(k for k, p in enumerate(group.permutations) if (p == origin).all())
        after = descriptor.evaluate(torch.tensor(moved[origin])[None]).x
        torch.testing.assert_close(descriptor.evaluate(torch.tensor(moved)[None]).x, x, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(after, x[:, descriptor.action(group).rows()[row]], rtol=1e-9, atol=1e-11)


# Smoothness


def across_a_face(descriptor, lattice, step=2e-3):
    """Slopes (2n + 1, 3) on a line that crosses the face between two images."""
    face = 0.5 * lattice.basis[0] + 0.05 * lattice.basis.sum(0) * (len(lattice.basis) > 1)
    face += (0.5 * lattice.shortest**2 - face @ lattice.basis[0]) / lattice.shortest**2 * lattice.basis[0]
    t = step * np.arange(-4, 5)[:, None]
    positions = np.zeros((9, 2, 3))
    positions[:, 1] = face + t * lattice.basis[0] / lattice.shortest + 0.3 * t * [0.2, -0.5, 0.8]
    return descriptor.evaluate(torch.tensor(positions)).slopes[:, 0].numpy()


def one_sided(values, step=2e-3):
    """Value and first two derivatives at the middle, from one side and from the other."""
    middle = len(values) // 2
    inverse = np.linalg.inv(np.vander(step * np.arange(1, 5), increasing=True))[:3]
    ahead = inverse @ values[middle + 1 :]
    back = inverse @ values[middle - 1 :: -1] * np.array([[1.0], [-1.0], [1.0]])
    return back, ahead


@systems
def test_smooth_across_faces(cell, pbc):
    descriptor = SmoothInverseDistances(2, cell, pbc)
    back, ahead = one_sided(across_a_face(descriptor, descriptor.lattice))
    # Slopes and their first two derivatives: three derivatives of the descriptor.
    for order, tolerance in enumerate((1e-6, 1e-4, 1e-2)):
        scale = np.abs(ahead).max()
        np.testing.assert_allclose(back[order], ahead[order], rtol=0, atol=tolerance * scale)


@systems
def test_the_nearest_image_has_a_kink(cell, pbc):
    descriptor = PeriodicInverseDistances(2, cell, pbc)
    back, ahead = one_sided(across_a_face(descriptor, descriptor.lattice))
    assert np.linalg.norm(ahead[0] - back[0]) > np.linalg.norm(ahead[0])


# Interface


@kinds
@systems
def test_frames_with_cells_of_their_own(kind, cell, pbc, rng):
    descriptor, positions = kind(N, cell, pbc), geometry(cell, pbc, rng)
    strains = [0.0 * np.eye(3), np.array([[0.05, 0.02, 0.0], [0.02, -0.03, 0.01], [0.0, 0.01, 0.02]])]
    frames = [strained(s, r[None], cell) for s, r in zip(strains, positions)]
    together = descriptor.evaluate(torch.cat([f[0] for f in frames]), np.array([f[1] for f in frames]), strain=True)
    for frame, (r, c) in enumerate(frames):
        alone = descriptor.evaluate(r, torch.tensor(c), strain=True)
        for name in ("x", "slopes", "strain_slopes"):
            torch.testing.assert_close(getattr(together, name)[frame], getattr(alone, name)[0])
    default = descriptor.evaluate(positions[:1])
    torch.testing.assert_close(together.x[:1], default.x)
    assert default.strain_slopes is None


@kinds
def test_recipe_and_equality(kind, rng):
    descriptor = kind(N, TRICLINIC, (True, True, False), power=2.0)
    recipe = descriptor.recipe()
    assert recipe.pop("name") == kind.name
    assert kind(N, **recipe) == descriptor
    assert hash(kind(N, **recipe)) == hash(descriptor)
    assert kind(N, TRICLINIC) != descriptor
    positions = geometry(TRICLINIC, (True, True, False), rng)
    i, j, distance = descriptor.explain(3, float(descriptor.evaluate(positions).x[0, 3]))
    nearest = descriptor.lattice.nearest(positions[0, j] - positions[0, i]).norm()
    assert (i, j) == (0, 3) and 0.5 * nearest < distance < nearest + 1e-12


@kinds
@pytest.mark.parametrize(
    "cell, pbc, message",
    [
        (np.eye(3), (False,) * 3, "InverseDistances is for molecules"),
        (np.diag([5.0, 5.0, 0.0]), (True,) * 3, "span no lattice"),
        (np.array([[5.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 0.0, 5.0]]), (True,) * 3, "periodic directions abc"),
        (np.diag([5.0, np.nan, 5.0]), (True,) * 3, "must be finite"),
        (np.eye(2), (True,) * 3, r"shape \(3, 3\)"),
    ],
    ids=["molecule", "flat", "parallel", "nan", "shape"],
)
def test_bad_cells(kind, cell, pbc, message):
    with pytest.raises(DataError, match=message):
        kind(N, cell, pbc)


def test_cells_that_are_not_periodic_may_be_anything():
    cell = np.array([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [np.nan, 0.0, 0.0]])
    assert len(Lattice.of_cell(cell, (True, True, False)).basis) == 2


@kinds
@pytest.mark.parametrize("n_atoms, power", [(1, 1.0), (3, 0.0), (3, -1.0), (3, np.nan), (3, np.inf)])
def test_bad_parameters(kind, n_atoms, power):
    with pytest.raises(FitError):
        kind(n_atoms, FCC, power=power)


@pytest.mark.parametrize("softness", [0.0, -0.1, 0.3, np.nan])
def test_bad_softness(softness):
    with pytest.raises(FitError, match="softness"):
        SmoothInverseDistances(N, FCC, softness=softness)


@kinds
def test_bad_geometries(kind, rng):
    descriptor, positions = kind(N, FCC), geometry(FCC, (True,) * 3, rng, n_frames=3)
    with pytest.raises(DataError, match=r"positions \(frames, 4, 3\), not \(3, 3, 3\)"):
        descriptor.evaluate(positions[:, :3])
    with pytest.raises(DataError, match="3 geometries need one cell"):
        descriptor.evaluate(positions, np.zeros((2, 3, 3)))
    cells = np.array([FCC] * 3)
    cells[2, 0] = cells[2, 1]
    with pytest.raises(DataError, match="frame 2: the vectors"):
        descriptor.evaluate(positions, cells)
    overlapping = positions.clone()
    overlapping[1, 3] = overlapping[1, 0] + torch.tensor(FCC[0] - 2 * FCC[1])
    with pytest.raises(DataError, match="frame 1: atoms 0 and 3 are at the same place"):
        descriptor.evaluate(overlapping)
    positions[2, 1, 0] = np.nan
    with pytest.raises(DataError, match="frame 2: the position of atom 1 is not finite"):
        descriptor.evaluate(positions)
