"""Every descriptor: Jacobian against autograd, invariances, action of the group."""

import numpy as np
import pytest
import torch

from gdml.descriptors import InverseDistances
from gdml.errors import FitError
from gdml.geometry import internal_basis
from gdml.symmetry import PermutationGroup

N = 5
descriptors = pytest.mark.parametrize("descriptor", [InverseDistances(N, p) for p in (0.5, 1.0, 2.0, 3.0)], ids=str)


@pytest.fixture
def positions(rng):
    return torch.tensor(rng.normal(size=(3, N, 3)) * 1.5)


@descriptors
def test_jacobian_against_autograd(descriptor, positions):
    expected = torch.autograd.functional.jacobian(lambda r: descriptor.evaluate(r).x, positions)
    jacobian = descriptor.evaluate(positions).jacobian()
    for frame in range(3):
        torch.testing.assert_close(jacobian[frame], expected[frame, :, frame].flatten(1), rtol=1e-12, atol=1e-12)


@descriptors
def test_products_with_the_jacobian(descriptor, positions):
    features = descriptor.evaluate(positions)
    jacobian = features.jacobian()
    v, g = torch.randn_like(positions), torch.randn_like(features.x)
    torch.testing.assert_close(features.jvp(v), torch.einsum("mdi,mi->md", jacobian, v.flatten(1)))
    torch.testing.assert_close(features.vjp(g).flatten(1), torch.einsum("mdi,md->mi", jacobian, g))


@descriptors
def test_rotation_translation_inversion(descriptor, positions, rng):
    rotation, _ = torch.linalg.qr(torch.tensor(rng.normal(size=(3, 3))))
    x = descriptor.evaluate(positions).x
    torch.testing.assert_close(descriptor.evaluate(positions @ rotation + 3.0).x, x)
    torch.testing.assert_close(descriptor.evaluate(-positions).x, x)


@descriptors
def test_action_of_permutations(descriptor, positions):
    group = PermutationGroup.generate([[1, 2, 0, 3, 4], [0, 1, 2, 4, 3]])
    action = descriptor.action(group).rows()
    x = descriptor.evaluate(positions).x
    for permutation, row in zip(group.permutations, action, strict=True):
        torch.testing.assert_close(descriptor.evaluate(positions[:, permutation.copy()]).x, x[:, row])


@descriptors
def test_entries_can_be_explained(descriptor, positions):
    x = descriptor.evaluate(positions).x[0]
    for entry in range(descriptor.size):
        i, j, distance = descriptor.explain(entry, float(x[entry]))
        assert distance == pytest.approx(float((positions[0, i] - positions[0, j]).norm()), rel=1e-12)


@descriptors
def test_nothing_is_lost_in_the_internal_basis(descriptor, positions):
    basis = internal_basis(positions)
    jacobian = descriptor.evaluate(positions).jacobian()
    assert basis.shape == (3, 3 * N, 3 * N - 6)
    torch.testing.assert_close(jacobian @ basis @ basis.mT, jacobian)


def test_internal_basis_of_linear_and_planar_geometries():
    linear = torch.zeros(1, 3, 3, dtype=torch.float64)
    linear[0, :, 2] = torch.tensor([-1.2, 0.0, 1.1])
    bent = linear + torch.tensor([[[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    descriptor = InverseDistances(3)
    for positions, size in ((linear, 4), (bent, 3), (torch.cat([linear, bent]), 4)):
        basis = internal_basis(positions)
        jacobian = descriptor.evaluate(positions).jacobian()
        assert basis.shape[2] == size
        torch.testing.assert_close(jacobian @ basis @ basis.mT, jacobian, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n_atoms, power", [(1, 1.0), (3, 0.0), (3, -1.0), (3, np.nan)])
def test_bad_parameters(n_atoms, power):
    with pytest.raises(FitError):
        InverseDistances(n_atoms, power)
