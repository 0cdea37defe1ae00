"""Kernels between atoms: the contraction against its sums, and force fields that are sums over atoms."""

import numpy as np
import pytest
import torch

import gdml
from gdml.contractions import LocalContraction, contraction
from gdml.descriptors import ManyBody, ManyBodyFeatures
from gdml.errors import DataError, DeviceError, FitError, ModelMismatchError
from gdml.kernels import Gaussian, Matern52, RationalQuadratic
from gdml.symmetry import Environments

KINDS, WIDTH = np.array([1, 8, 1, 6, 6, 1]), 4
POINTS = Environments(KINDS, WIDTH)
kernels = pytest.mark.parametrize("kernel", [Matern52(1.3), Gaussian(2.0), RationalQuadratic(1.0)], ids=repr)


@pytest.fixture
def problem(rng):
    x, y, w = (torch.tensor(rng.normal(size=(n, POINTS.size))) for n in (3, 5, 5))
    return x, y, torch.tensor(rng.normal(size=5)), w


def energies(kernel, x, y, c, w, kinds=KINDS):
    """The sum over pairs of points, one by one."""
    rows, references, duals = (a.view(len(a), -1, WIDTH) for a in (x, y, w))
    total = x.new_zeros(len(x))
    for j in range(len(y)):
        point = references[j].clone().requires_grad_()
        for p, q in np.argwhere(kinds[:, None] == KINDS):
            k, _, _ = kernel.profile((rows[:, p] - point[q]).norm(dim=1))
            for m in range(len(x)):
                (slope,) = torch.autograd.grad(k[m], point, create_graph=True)
                total = total + torch.nn.functional.one_hot(torch.tensor(m), len(x)) * (
                    c[j] * k[m] + duals[j, q] @ slope[q]
                )
    return total


@kernels
def test_contraction_against_autograd(kernel, problem):
    x, y, c, w = problem
    jets = LocalContraction(kernel, y, POINTS)
    e, g = jets.apply(x, c, w)
    x = x.clone().requires_grad_()
    expected = energies(kernel, x, y, c, w)
    (slopes,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(e, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(g, slopes, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(jets.apply(x.detach(), None, w)[1], jets.apply(x.detach(), 0 * c, w)[1])


@kernels
def test_pairs_and_single_columns_are_the_contraction_written_out(kernel, problem, rng):
    x, y, _, _ = problem
    jets = LocalContraction(kernel, y, POINTS)
    c, w = torch.tensor([1.0, 0.0]).double(), torch.tensor(rng.normal(size=(5, POINTS.size, 2)))
    left = torch.tensor(rng.normal(size=(3, POINTS.size, 2)))
    references = torch.tensor([4, 1, 4])
    w_right = w[references]
    blocks = jets.pairs(x, c, left, references, c, w_right)
    e, g, q = jets.separate(
        jets.centred(x), references, c[[0, 1, 0]], torch.stack([w[4, :, 0], w[1, :, 1], w[4, :, 0]])
    )
    for p, label in enumerate([0, 1, 0]):
        single_c, single_w = torch.zeros(5).double(), torch.zeros(5, POINTS.size).double()
        single_c[references[p]], single_w[references[p]] = c[label], w[references[p], :, label]
        value, slope = jets.apply(x, single_c, single_w)
        torch.testing.assert_close(e[:, p], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(g[p] - q[:, p, None] * jets.centred(x), slope, rtol=1e-10, atol=1e-10)
        expected = c * value[p] + left[p].mT @ slope[p]
        torch.testing.assert_close(blocks[p, :, label], expected, rtol=1e-10, atol=1e-10)


@kernels
def test_curvature_against_autograd(kernel, problem, rng):
    x, y, c, w = problem
    v = torch.tensor(rng.normal(size=(2, POINTS.size)))
    found = LocalContraction(kernel, y, POINTS).bind_curvature(c, w)(x[0], v)
    expected = torch.autograd.functional.hessian(lambda r: energies(kernel, r[None], y, c, w).sum(), x[0])
    torch.testing.assert_close(found, v @ expected, rtol=1e-9, atol=1e-9)


def test_other_points_as_queries(problem, rng):
    _, y, c, w = problem
    kinds = np.array([8, 8, 1])
    x = torch.tensor(rng.normal(size=(2, 3 * WIDTH)))
    jets = LocalContraction(Matern52(1.3), y, POINTS, queries=Environments(kinds, WIDTH))
    e, _ = jets.apply(x, c, w)
    torch.testing.assert_close(e, energies(Matern52(1.3), x, y, c, w, kinds).detach(), rtol=1e-10, atol=1e-10)
    with pytest.raises(DeviceError, match=r"no references for points of the kinds \[7\]"):
        LocalContraction(Matern52(1.3), y, POINTS, queries=Environments(np.array([7]), WIDTH))
    with pytest.raises(DeviceError, match="use 'gemm', not 'keops'"):
        contraction(Matern52(1.3), y, POINTS, "keops")


def test_exchanging_points_changes_nothing(problem):
    x, y, c, w = problem
    exchanged = x.view(3, -1, WIDTH)[:, [5, 1, 0, 4, 3, 2]].flatten(1)
    jets = LocalContraction(Matern52(1.3), y, POINTS)
    torch.testing.assert_close(jets.apply(exchanged, c, w)[0], jets.apply(x, c, w)[0])
    torch.testing.assert_close(jets.smallest_distances(exchanged), jets.smallest_distances(x))
    np.testing.assert_array_equal(POINTS.sorted(exchanged.numpy()), POINTS.sorted(x.numpy()))


@pytest.fixture(scope="module")
def descriptor(frames):
    return ManyBody(n_two=10, n_three=6).bound(frames.numbers, frames.positions, frames.pbc)


def test_jacobian_against_autograd(descriptor, frames):
    positions = torch.tensor(frames.positions[:3])
    features = descriptor.evaluate(positions)
    expected = torch.autograd.functional.jacobian(descriptor.values, positions)
    for frame, jacobian in enumerate(features.jacobian()):
        torch.testing.assert_close(jacobian, expected[frame, :, frame].flatten(1), rtol=1e-9, atol=1e-11)
    assert isinstance(features[:2], ManyBodyFeatures)
    v = torch.randn_like(positions)
    torch.testing.assert_close(features.jvp(v), torch.einsum("mdi,mi->md", features.jacobian(), v.flatten(1)))


def test_rotation_permutation_and_cutoff(descriptor, frames, rng):
    positions = torch.tensor(frames.positions[:2])
    rotation, _ = torch.linalg.qr(torch.tensor(rng.normal(size=(3, 3))))
    x = descriptor.evaluate(positions).x
    torch.testing.assert_close(descriptor.evaluate(positions @ rotation + 3.0).x, x)
    hydrogen = np.flatnonzero(frames.numbers == 1)
    exchange = np.arange(9)
    exchange[hydrogen[:2]] = hydrogen[1::-1]
    rows = x.unflatten(1, (9, -1))
    torch.testing.assert_close(
        descriptor.evaluate(positions[:, exchange.tolist()]).x, rows[:, exchange.tolist()].flatten(1)
    )
    apart = torch.cat([positions, positions + torch.tensor([50.0, 0.0, 0.0])], 1)
    two = descriptor.for_atoms(np.tile(frames.numbers, 2)).evaluate(apart).x
    torch.testing.assert_close(two, torch.cat([x, x], 1), rtol=1e-12, atol=1e-12)


def test_linear_molecules_have_smooth_forces():
    """Across 180°, where the sine of an angle has a kink."""
    bent = np.linspace(-0.02, 0.02, 5)
    positions = torch.tensor([[[0.0, 0.0, 1.16], [b, 0.0, 0.0], [0.0, 0.0, -1.16]] for b in bent])
    jacobians = ManyBody().bound([8, 6, 8], positions, (False,) * 3).evaluate(positions).jacobian()
    steps = jacobians.diff(dim=0)
    assert float((steps - steps.mean(0)).abs().max()) < 0.1 * float(steps.abs().max())


@pytest.fixture(scope="module")
def local(frames):
    return gdml.fit(frames[:25], descriptor=ManyBody(), kernel="gaussian", length_scale=6.0, noise=1e-6)


def test_learns_from_few_geometries(local, frames):
    """What the inverse distances need several times as many for."""
    usual = gdml.fit(frames[:25], length_scale=20.0)
    ours, theirs = (gdml.evaluate(one, frames[100:140]).forces_mae for one in (local, usual))
    assert ours < 0.7 * theirs


def test_iterations_find_the_same(local, frames):
    options = {"kernel": "gaussian", "length_scale": 6.0, "noise": 1e-6}
    by_cg = gdml.fit(frames[:25], descriptor=ManyBody(), solver="cg", rtol=1e-6, **options)
    found, expected = (one.predict(frames.positions[60:64]).forces for one in (by_cg, local))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_energies_beside_forces(frames):
    options = {"kernel": "gaussian", "length_scale": 6.0, "noise": 1e-6, "use_energy": True}
    one, other = (gdml.fit(frames[:12], descriptor=ManyBody(), solver=s, **options) for s in ("cholesky", "cg"))
    np.testing.assert_allclose(one.predict(frames.positions[:5]).energy, frames.energy[:5], atol=6e-3)
    np.testing.assert_allclose(other.predict(frames.positions[:5]).energy, frames.energy[:5], atol=6e-3)


def test_files_and_dynamics(local, frames, tmp_path):
    local.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(
        again.predict(frames.positions[60]).forces, local.predict(frames.positions[60]).forces
    )
    assert again.descriptor == local.descriptor
    atoms = frames.to_atoms()[60]
    atoms.calc = gdml.GDMLCalculator(again)
    assert atoms.get_forces().shape == (9, 3)


def test_molecules_of_another_size(local, frames, tmp_path):
    """Two molecules far apart are twice one, and forces are the slopes of the energy."""
    two = local.for_atoms(np.tile(frames.numbers, 2))
    one, apart = frames.positions[60], frames.positions[61] + [40.0, 0.0, 0.0]
    energy, forces, _ = two.predict(np.concatenate([one, apart]))
    single = [local.predict(r) for r in (one, apart)]
    assert energy == pytest.approx(sum(p.energy for p in single), abs=1e-8)
    np.testing.assert_allclose(forces, np.concatenate([p.forces for p in single]), atol=1e-9)
    assert two.outside(np.concatenate([one, apart])) == []
    squeezed = two.outside(np.concatenate([one, frames.positions[61] + [0.3, 0.0, 0.0]]))
    assert squeezed and squeezed[0].distance < squeezed[0].shortest
    two.save(tmp_path / "two.npz")
    assert gdml.load(tmp_path / "two.npz").predict(np.concatenate([one, apart])).energy == energy
    ethane = local.for_atoms([6, 6, 1, 1, 1, 1, 1, 1])
    assert ethane.energies_are_relative and not local.energies_are_relative
    with pytest.raises(ModelMismatchError, match=r"does not know the elements \[7\]"):
        local.for_atoms([7, 7])
    with pytest.raises(ModelMismatchError, match=r"a sequence \(N,\)"):
        local.for_atoms([])
    spectra = gdml.fit(
        gdml.Dataset(frames.positions[:8], frames.numbers, forces=frames.forces[:8]),
        descriptor="power-spectrum",
        kernel="gaussian",
        length_scale=20.0,
        noise=1e-4,
    )
    twice = spectra.for_atoms(np.tile(frames.numbers, 2)).predict(np.concatenate([one, apart]))
    np.testing.assert_allclose(twice.forces[:9], spectra.predict(one).forces, atol=1e-9)
    with pytest.raises(ModelMismatchError, match="descriptor=gdml.ManyBody"):
        gdml.fit(frames[:5], length_scale=20.0).for_atoms([6, 1])


def test_geometries_that_are_the_same_up_to_exchanges(frames):
    hydrogen = np.flatnonzero(frames.numbers == 1)
    positions = frames.positions[:6].copy()
    positions[4] = positions[2]
    positions[4][hydrogen[:2]] = positions[2][hydrogen[1::-1]]
    twice = gdml.Dataset(positions, frames.numbers, forces=frames.forces[:6])
    with pytest.raises(DataError, match="frames 2 and 4"):
        gdml.fit(twice, descriptor=ManyBody(), symmetry="none", length_scale=6.0)


@pytest.mark.parametrize("options", [{"cutoff": 0.0}, {"n_two": 0}, {"n_three": -1}, {"weight": float("nan")}])
def test_bad_parameters(options):
    with pytest.raises(FitError, match="must be positive"):
        ManyBody(**options)


def test_periodic_systems():
    with pytest.raises(FitError, match="is for molecules"):
        ManyBody().bound([1, 1], np.zeros((1, 2, 3)), (True, True, False))
