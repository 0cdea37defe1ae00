"""Descriptors given as functions: equal to those made by hand, and found out where they are no descriptors."""

import numpy as np
import pytest
import torch

import gdml
from gdml.descriptors import (
    AutogradDescriptor,
    Concatenated,
    ExponentialDistances,
    InternalCoordinates,
    InverseDistances,
    ManyBody,
    PeriodicInverseDistances,
    PowerSpectrum,
    SideBySide,
)
from gdml.errors import DataError, FitError, FormatError, SymmetryError
from gdml.geometry import pair_indices
from gdml.kernels import FunctionKernel, Matern52


def inverse_distances(positions):
    first, second = map(torch.tensor, pair_indices(len(positions)))
    return 1.0 / (positions[first] - positions[second]).norm(dim=1)


def mixed(positions):
    """In another order, with entries that are the same, and one that does not change."""
    x = inverse_distances(positions).flip(0)
    return torch.cat([x, torch.stack([x.sum(), x.sum(), torch.ones_like(x[0])])])


def nearest(positions, cell):
    first, second = map(torch.tensor, pair_indices(len(positions)))
    fractions = (positions[first] - positions[second]) @ torch.linalg.inv(cell)
    return 1.0 / ((fractions - fractions.round().detach()) @ cell).norm(dim=1)


def smeared(positions):
    """A row for each atom: how many others of any kind are about so far away."""
    distances = (positions[:, None] - positions + 1e-9).norm(dim=2)
    radii = torch.linspace(0.8, 4.0, 12, dtype=positions.dtype)
    return torch.exp(-2.0 * (distances[..., None] - radii).square()).sum(1)


@pytest.fixture
def bound(frames):
    return AutogradDescriptor(inverse_distances).bound(frames.numbers, frames.positions, frames.pbc)


@pytest.fixture
def batch(frames):
    return torch.tensor(frames.positions[:7])


def test_equals_the_descriptor_made_by_hand(bound, batch, rng):
    found, expected = bound.evaluate(batch), InverseDistances(9).evaluate(batch)
    v, g = torch.tensor(rng.normal(size=batch.shape)), torch.tensor(rng.normal(size=expected.x.shape))
    many = torch.tensor(rng.normal(size=(*expected.x.shape, 3)))
    torch.testing.assert_close(found.x, expected.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.jvp(v), expected.jvp(v), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.vjp(g), expected.vjp(g), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.vjp_many(many), expected.vjp_many(many), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.jacobian(), expected.jacobian(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2:4].vjp(g[2:4]), expected.vjp(g)[2:4], rtol=1e-12, atol=1e-12)


def test_a_few_geometries_at_a_time(bound, batch, monkeypatch):
    whole = bound.evaluate(batch)
    monkeypatch.setattr(AutogradDescriptor, "at_once", lambda self, device: 2)
    parts = bound.evaluate(batch)
    assert whole.graph is not None and parts.graph is None
    torch.testing.assert_close(parts.x, whole.x)
    torch.testing.assert_close(parts.vjp(whole.x), whole.vjp(whole.x))
    torch.testing.assert_close(parts.jacobian(), whole.jacobian())


def test_the_action_of_the_group_is_found(frames, batch):
    group = gdml.molecular_group(frames)
    descriptor = AutogradDescriptor(mixed).bound(frames.numbers, frames.positions, frames.pbc)
    rows, x = descriptor.action(group).rows(), descriptor.evaluate(batch).x
    images = [descriptor.evaluate(batch[:, p.tolist()]).x for p in group.permutations]
    assert len(rows) == group.order > 1
    for image in images:
        assert min(float((image - x[:, row]).abs().max()) for row in rows) < 1e-12


def test_elements_that_do_nothing_are_not_summed_over(frames):
    def moments(positions):
        x = inverse_distances(positions)
        return torch.stack([x.sum(), x.square().sum(), x.pow(3).sum()])

    descriptor = AutogradDescriptor(moments).bound(frames.numbers, frames.positions, frames.pbc)
    group = gdml.molecular_group(frames)
    assert descriptor.action(group).order == group.order > descriptor.summed_over(group).order == 1


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_trains_to_the_same_force_field(frames, force_field, solver, tmp_path):
    """And comes back from its file, with the function given again."""
    options = {"length_scale": 20.0, "solver": solver, "rtol": 1e-6, "symmetry": force_field.group}
    found = gdml.fit(frames[:30], descriptor=AutogradDescriptor(inverse_distances), **options)
    expected = gdml.fit(frames[:30], **options)
    geometries = frames.positions[60:63]
    for ours, theirs in zip(found.predict(geometries)[:2], expected.predict(geometries)[:2]):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 if solver == "cg" else 1e-7)
    assert found.outside(geometries[0]) == expected.outside(geometries[0])
    assert len(found.outside(1.5 * geometries[0])) == len(expected.outside(1.5 * geometries[0])) > 0
    found.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz", descriptor=AutogradDescriptor(inverse_distances))
    np.testing.assert_array_equal(again.predict(geometries).forces, found.predict(geometries).forces)
    with pytest.raises(FormatError, match="function inverse_distances, which a file cannot hold; give it"):
        gdml.load(tmp_path / "model.npz")
    with pytest.raises(FormatError, match="other values than in training"):
        gdml.load(tmp_path / "model.npz", descriptor=AutogradDescriptor(mixed))
    with pytest.raises(FormatError, match="does not fit its atoms"):
        gdml.load(tmp_path / "model.npz", descriptor=AutogradDescriptor(lambda r: r.flatten()))


def test_a_kernel_given_as_a_function(frames, tmp_path):
    def matern(s):
        s = 5.0**0.5 * s
        return (1 + s + s**2 / 3) * torch.exp(-s)

    found = gdml.fit(frames[:10], kernel=FunctionKernel(function=matern), length_scale=20.0)
    expected = gdml.fit(frames[:10], kernel=Matern52(), length_scale=20.0)
    geometries = frames.positions[60:63]
    np.testing.assert_allclose(found.predict(geometries).forces, expected.predict(geometries).forces, atol=1e-4)
    found.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz", kernel=FunctionKernel(function=matern))
    np.testing.assert_allclose(again.predict(geometries).forces, found.predict(geometries).forces)
    with pytest.raises(FormatError, match=r"matern, which a file cannot hold; give it"):
        gdml.load(tmp_path / "model.npz")
    with pytest.raises(FormatError, match="other values than in training"):
        gdml.load(tmp_path / "model.npz", kernel=FunctionKernel(function=lambda s: torch.exp(-s.square())))


def test_periodic_geometries_with_strain(rng):
    cell = np.array([[7.0, 0.0, 0.0], [1.0, 6.5, 0.0], [0.3, -0.4, 7.5]])
    positions = torch.tensor(rng.uniform(0.0, 0.4, (3, 4, 3)) @ cell)
    cells = np.stack([cell, cell * 1.01, cell @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3)))])
    found = AutogradDescriptor(nearest).bound([1, 1, 8, 8], positions.numpy(), (True,) * 3, cell)
    expected = PeriodicInverseDistances(4, cell, True, 1.0)
    ours, theirs = (d.evaluate(positions, cells=cells, strain=True) for d in (found, expected))
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.strain_slopes, theirs.strain_slopes, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.jacobian(), theirs.jacobian(), rtol=1e-10, atol=1e-12)
    g = torch.tensor(rng.normal(size=ours.x.shape))
    torch.testing.assert_close(ours.strain_vjp(g), theirs.strain_vjp(g), rtol=1e-10, atol=1e-12)


def test_rows_for_atoms(frames):
    """A local descriptor of one's own: forces are the slopes of the energy, and equal atoms are equal."""
    descriptor = AutogradDescriptor(smeared, local=True)
    force_field = gdml.fit(
        without_energies(frames[:20]), descriptor=descriptor, kernel="gaussian", length_scale=5.0, noise=1e-6
    )
    geometry, exchanged = frames.positions[60], frames.positions[60].copy()
    hydrogen = np.flatnonzero(frames.numbers == 1)
    exchanged[hydrogen] = exchanged[hydrogen[::-1]]
    one, other = force_field.predict(geometry), force_field.predict(exchanged)
    assert one.energy == pytest.approx(other.energy, abs=1e-8)
    np.testing.assert_allclose(one.forces[hydrogen], other.forces[hydrogen[::-1]], atol=1e-7)


def test_descriptors_in_a_row(frames, batch, rng, tmp_path):
    """Whatever they are, with the group and from a file; as the same of pairs alone."""
    parts = [InverseDistances(9), AutogradDescriptor(mixed), InternalCoordinates()]
    row = Concatenated(parts, [1.0, 0.5, 2.0]).bound(frames.numbers, frames.positions, frames.pbc)
    features, own = row.evaluate(batch), [part.evaluate(batch) for part in row.parts]
    jacobian = torch.cat([w * f.jacobian() for w, f in zip(row.weights, own)], 1)
    v, g = torch.tensor(rng.normal(size=batch.shape)), torch.tensor(rng.normal(size=features.x.shape))
    many = torch.tensor(rng.normal(size=(*features.x.shape, 2)))
    torch.testing.assert_close(features.x, torch.cat([w * f.x for w, f in zip(row.weights, own)], 1))
    torch.testing.assert_close(features.jacobian(), jacobian)
    torch.testing.assert_close(features.jvp(v), torch.einsum("mdi,mi->md", jacobian, v.flatten(1)))
    torch.testing.assert_close(features.vjp(g).flatten(1), torch.einsum("mdi,md->mi", jacobian, g))
    torch.testing.assert_close(features.vjp_many(many), jacobian.mT @ many)
    torch.testing.assert_close(features[1:3].vjp(g[1:3]), features.vjp(g)[1:3])
    group = gdml.molecular_group(frames)
    for image, entries in zip(group.permutations, row.action(group).rows(), strict=True):
        torch.testing.assert_close(row.evaluate(batch[:, image.tolist()]).x, features.x[:, entries])
    force_field = gdml.fit(without_energies(frames[:10]), descriptor=row, length_scale=20.0)
    force_field.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz", descriptor=Concatenated(parts, [1.0, 0.5, 2.0]))
    np.testing.assert_array_equal(
        again.predict(frames.positions[5]).forces, force_field.predict(frames.positions[5]).forces
    )
    of_pairs = [InverseDistances(9), InverseDistances(9, 3.0)]
    one, other = (kind(of_pairs, [1.0, 2.0]).evaluate(batch) for kind in (Concatenated, SideBySide))
    torch.testing.assert_close(one.vjp(one.x), other.vjp(other.x))
    with pytest.raises(FitError, match="many-body has a row for each atom"):
        gdml.fit(frames[:5], descriptor=Concatenated([InverseDistances(9), ManyBody()], [1.0, 1.0]), length_scale=1.0)
    with pytest.raises(FitError, match="2 descriptors need as many positive weights"):
        Concatenated(of_pairs, [1.0])


def without_energies(frames):
    return gdml.Dataset(frames.positions, frames.numbers, forces=frames.forces)


SHIPPED = {
    "internal": InternalCoordinates(),
    "exponentials": ExponentialDistances(9, 1.5),
    "many-body, whole": ManyBody(n_two=6, n_three=4, local=False),
    "many-body, scaled": ManyBody(n_two=6, n_three=4, scales=(1.0, 2.0, 3.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    "power spectrum": PowerSpectrum(n_radial=3, max_order=2),
}


@pytest.mark.parametrize("descriptor", SHIPPED.values(), ids=list(SHIPPED))
def test_shipped_descriptors(frames, batch, descriptor, tmp_path):
    """Jacobian against autograd, rotations, the group, forces as slopes of the energy, the file."""
    one = descriptor.bound(frames.numbers, frames.positions, frames.pbc)
    jacobian = one.evaluate(batch[:2]).jacobian()
    expected = torch.autograd.functional.jacobian(lambda r: one.evaluate(r).x, batch[:2])
    for frame in range(2):
        torch.testing.assert_close(jacobian[frame], expected[frame, :, frame].flatten(1), rtol=1e-8, atol=1e-10)
    rotation = torch.linalg.qr(torch.tensor(np.random.default_rng(3).normal(size=(3, 3))))[0]
    rotation = rotation * torch.linalg.det(rotation)
    torch.testing.assert_close(one.evaluate(batch @ rotation + 1.0).x, one.evaluate(batch).x, rtol=1e-8, atol=1e-10)
    force_field = gdml.fit(without_energies(frames[:12]), descriptor=descriptor, length_scale=5.0, noise=1e-6)
    group, geometry = gdml.molecular_group(frames), frames.positions[60]
    energies = force_field.predict(np.stack([geometry[p] for p in group.permutations])).energy
    np.testing.assert_allclose(energies, energies[0], atol=1e-7)
    step = 1e-4 * rng_like(geometry)
    ends = [force_field.predict(geometry + sign * step).energy for sign in (1, -1)]
    assert ends[0] - ends[1] == pytest.approx(-2 * (force_field.predict(geometry).forces * step).sum(), abs=1e-7)
    force_field.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz").predict(geometry)
    np.testing.assert_array_equal(again.forces, force_field.predict(geometry).forces)


def rng_like(array):
    return np.random.default_rng(5).normal(size=array.shape)


def test_internal_coordinates_of_what_has_none(frames):
    with pytest.raises(FitError, match="is for|are for molecules"):
        InternalCoordinates().bound([1, 1], np.zeros((1, 2, 3)), (True, False, False))
    two = np.concatenate([frames.positions[:2], frames.positions[2:4] + 6.0], 1)
    with pytest.raises(FitError, match="the molecule is in 2 parts"):
        InternalCoordinates().bound(np.tile(frames.numbers, 2), two, (False,) * 3)
    with pytest.raises(FitError, match="need bonds that make angles"):
        InternalCoordinates().bound([1, 1], np.array([[[0, 0, 0], [0, 0, 0.74]]]), (False,) * 3)
    linear = np.array([[[0, 0, 1.16], [0, 0, 0.0], [0, 0, -1.16]]])
    with pytest.raises(FitError, match="must be positive"):
        InternalCoordinates(angle_weight=0.0)
    assert InternalCoordinates().bound([8, 6, 8], linear + 1e-3, (False,) * 3).dihedrals == ()
    with pytest.raises(FitError, match="must be positive"):
        PowerSpectrum(cutoff=-1.0)
    with pytest.raises(FitError, match="unknown descriptor 'nonsense'"):
        gdml.fit(frames[:5], descriptor="nonsense")


def rounded(positions):
    return torch.round(100 * inverse_distances(positions)) / 100 + 0.0 * positions.sum()


def partly_detached(positions):
    x = inverse_distances(positions)
    return x * x.detach()


BAD = [
    (lambda r: inverse_distances(r).float(), FitError, "not double precision"),
    (lambda r: (inverse_distances(r), r), FitError, "cannot be evaluated"),
    (lambda r: torch.cdist(r, r).flatten(), FitError, "cannot be differentiated|are not finite"),
    (lambda r: (r - r.mean(0)).norm() / (r - r.mean(0)).norm() * torch.ones(3).double(), FitError, "is constant"),
    (lambda r: r.flatten(), FitError, "changes when the geometry is moved"),
    (lambda r: (r - r.mean(0)).flatten(), FitError, "changes when the geometry is turned"),
    (lambda r: torch.ones(3, dtype=r.dtype) + 0.0 * r.sum(), FitError, "is constant"),
    (lambda r: inverse_distances(r).detach(), FitError, "cannot be differentiated: it detaches"),
    (rounded, FitError, "is constant|changes otherwise than its derivative says"),
    (partly_detached, FitError, "changes otherwise than its derivative says"),
    (lambda r: (r[:, None] - r).square().sum(2).sqrt().flatten(), FitError, "distance of an atom to itself"),
    (lambda r: torch.log(-inverse_distances(r)), FitError, "is not finite"),
    (lambda r: torch.tensor(r.numpy()), FitError, "cannot be evaluated"),
    (lambda r: inverse_distances(r)[: int(r.sum())], FitError, "cannot be evaluated"),
    (
        lambda r: inverse_distances(r) * torch.arange(36),
        SymmetryError,
        "not invariant under the group: the permutation",
    ),
]


@pytest.mark.parametrize("function, error, message", BAD)
def test_functions_that_are_no_descriptors(frames, function, error, message):
    with pytest.raises(error, match=message):
        gdml.fit(frames[:10], descriptor=AutogradDescriptor(function), length_scale=20.0)


def test_a_permutation_that_is_given(frames):
    group = gdml.molecular_group(frames)
    rows = {p.tobytes(): row for p, row in zip(group.permutations, InverseDistances(9).action(group).rows())}
    made = AutogradDescriptor(inverse_distances, permute=lambda p: rows[p.tobytes()])
    bound = made.bound(frames.numbers, frames.positions, frames.pbc)
    np.testing.assert_array_equal(bound.action(group).rows(), InverseDistances(9).action(group).rows())
    wrong = AutogradDescriptor(inverse_distances, permute=lambda p: np.arange(36))
    with pytest.raises(SymmetryError, match="not invariant under the group"):
        wrong.bound(frames.numbers, frames.positions, frames.pbc).action(group)


def test_what_is_no_descriptor(frames):
    with pytest.raises(FitError, match="wrap a function in AutogradDescriptor"):
        gdml.fit(frames[:5], descriptor=inverse_distances)
    with pytest.raises(FitError, match="has 35 entries, which are no rows for 9 atoms"):
        gdml.fit(
            frames[:5], descriptor=AutogradDescriptor(lambda r: inverse_distances(r)[:35], local=True), length_scale=1.0
        )


def test_resuming_with_another_function_is_refused(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("gdml.checkpoints.INTERVAL", 0.0)
    options = {"solver": "cg", "length_scale": 20.0, "checkpoint": tmp_path / "c.npz"}

    def f(positions):
        return inverse_distances(positions)

    gdml.fit(frames[:10], descriptor=AutogradDescriptor(f), **options)

    def f(positions):
        return 10.0 * inverse_distances(positions)

    with pytest.raises(DataError, match="is of another training; it differs in descriptor"):
        gdml.fit(frames[:10], descriptor=AutogradDescriptor(f), resume=True, **options)


def test_functions_in_sums_and_rows_come_back(frames, tmp_path):
    kernel = FunctionKernel(function=lambda s: torch.exp(-s.square())) + 0.5 * Matern52()
    row = Concatenated(
        [Concatenated([AutogradDescriptor(inverse_distances)], [1.0]), InternalCoordinates()], [1.0, 1.0]
    )
    force_field = gdml.fit(frames[:8], descriptor=row, kernel=kernel, length_scale=20.0, noise=1e-8)
    force_field.save(tmp_path / "m.npz")
    again = gdml.load(tmp_path / "m.npz", descriptor=row, kernel=kernel)
    np.testing.assert_allclose(
        again.predict(frames.positions[9]).forces, force_field.predict(frames.positions[9]).forces
    )
    with pytest.raises(FormatError, match="give it: gdml.load"):
        gdml.load(tmp_path / "m.npz", descriptor=row)
    with pytest.raises(FormatError, match="give it: gdml.load"):
        gdml.load(tmp_path / "m.npz", kernel=kernel)


def test_rows_that_depend_on_the_order_of_atoms(frames):
    def ordered(positions):
        return smeared(positions) * (1.0 + torch.arange(len(positions))[:, None])

    with pytest.raises(SymmetryError, match="to exchange the equal atoms . and . does more"):
        gdml.fit(frames[:10], descriptor=AutogradDescriptor(ordered, local=True), length_scale=20.0)


def test_coincident_atoms(bound, batch, frames):
    batch[3, 1] = batch[3, 0]
    with pytest.raises(DataError, match="geometry 3: the descriptor is not finite; atoms . and . are 0 Å apart"):
        bound.evaluate(batch)
    with pytest.raises(DataError, match="is for 9 atoms, the geometries have 8"):
        bound.evaluate(batch[:, 1:])
