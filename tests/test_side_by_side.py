"""Several descriptors as one: the same as their parts, one after the other."""

import numpy as np
import pytest
import torch

from gdml.descriptors import InverseDistances, PeriodicInverseDistances, SideBySide, SmoothInverseDistances
from gdml.errors import DataError, FitError
from gdml.symmetry import PermutationGroup

N = 5
CELL = np.array([[7.0, 0.0, 0.0], [2.0, 6.5, 0.0], [0.0, -1.0, 8.0]])
PARTS = {
    "molecule": [InverseDistances(N, 1.0), InverseDistances(N, 3.0)],
    "crystal": [SmoothInverseDistances(N, CELL, power=1.0), PeriodicInverseDistances(N, CELL, power=3.0)],
}
both = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


@pytest.fixture
def positions(rng):
    return torch.tensor(rng.normal(size=(3, N, 3)) * 1.5)


@both
def test_parts_in_a_row(parts, positions):
    features = SideBySide(parts, [2.0, 0.5]).evaluate(positions)
    first, second = (p.evaluate(positions) for p in parts)
    torch.testing.assert_close(features.x, torch.cat([2.0 * first.x, 0.5 * second.x], 1))
    expected = torch.cat([2.0 * first.jacobian(), 0.5 * second.jacobian()], 1)
    torch.testing.assert_close(features.jacobian(), expected)
    v, g = torch.randn_like(positions), torch.randn_like(features.x)
    torch.testing.assert_close(features.jvp(v), torch.einsum("mdi,mi->md", expected, v.flatten(1)))
    torch.testing.assert_close(features.vjp(g).flatten(1), torch.einsum("mdi,md->mi", expected, g))


def test_cells_and_strain_reach_the_parts(positions):
    parts = PARTS["crystal"]
    features = SideBySide(parts, [2.0, 0.5]).evaluate(positions, cells=1.1 * CELL, strain=True)
    expected = [p.evaluate(positions, 1.1 * CELL, strain=True).strain_slopes for p in parts]
    torch.testing.assert_close(features.strain_slopes, torch.cat([2.0 * expected[0], 0.5 * expected[1]], 1))


@both
def test_action_of_permutations(parts, positions):
    descriptor = SideBySide(parts, [1.0, 3.0])
    group = PermutationGroup.generate([[1, 2, 0, 3, 4], [0, 1, 2, 4, 3]])
    x = descriptor.evaluate(positions).x
    for permutation, row in zip(group.permutations, descriptor.action(group).rows(), strict=True):
        torch.testing.assert_close(descriptor.evaluate(positions[:, permutation.copy()]).x, x[:, row])


@both
def test_balance(parts, positions):
    x = SideBySide.balanced(parts, positions).evaluate(positions).x
    variances = x.var(0, correction=0).view(2, -1).sum(1)
    torch.testing.assert_close(variances, torch.ones(2, dtype=torch.float64))
    with pytest.raises(DataError, match="all the same"):
        SideBySide.balanced(parts, positions[:1].expand(3, -1, -1))
    with pytest.raises(DataError, match="at least two"):
        SideBySide.balanced(parts, positions[:1])


def test_entries_can_be_explained(positions):
    descriptor = SideBySide(PARTS["molecule"], [2.0, 0.5])
    x = descriptor.evaluate(positions).x[0]
    for entry in range(descriptor.size):
        i, j, distance = descriptor.explain(entry, float(x[entry]))
        assert distance == pytest.approx(float((positions[0, i] - positions[0, j]).norm()), rel=1e-12)
    with pytest.raises(IndexError, match="20 entries"):
        descriptor.explain(20, 1.0)


def test_recipe():
    recipe = SideBySide(PARTS["crystal"], [1.0, 2.0]).recipe()
    assert [part["power"] for part in recipe["parts"]] == [1.0, 3.0] and recipe["weights"] == [1.0, 2.0]


@pytest.mark.parametrize(
    "parts, weights, message",
    [
        ([], [], "at least one"),
        (PARTS["molecule"], [1.0], "as many positive weights"),
        (PARTS["molecule"], [1.0, 0.0], "as many positive weights"),
        (PARTS["molecule"], [1.0, np.nan], "as many positive weights"),
        ([InverseDistances(3), InverseDistances(4)], [1.0, 1.0], r"for \[3, 4\] atoms"),
    ],
    ids=["none", "few", "zero", "nan", "atoms"],
)
def test_bad_parameters(parts, weights, message):
    with pytest.raises(FitError, match=message):
        SideBySide(parts, weights)
