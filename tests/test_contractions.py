"""The contraction of 1-jets against sums written with autograd, one term at a time."""

import itertools

import numpy as np
import pytest
import torch

from gdml.contractions import GemmContraction, LatticeContraction, gemm, lattice
from gdml.descriptors import InverseDistances
from gdml.kernels import KERNELS
from gdml.symmetry import CrystalGroup, PermutationGroup, characters

GROUPS = {
    "none": PermutationGroup.trivial(4),
    "swap": PermutationGroup.generate([[1, 0, 2, 3]]),
    "cyclic": PermutationGroup.generate([[1, 2, 0, 3]]),
    "all": PermutationGroup.generate([[1, 0, 2, 3], [1, 2, 3, 0]]),
}
# With the commuting normal subgroups that stand for translations; of pairs, some orbits have fewer entries.
SPLIT = {
    "nothing": ([[0, 1, 2, 3]], [[0, 1, 2, 3], [1, 0, 2, 3]]),
    "swap": ([[0, 1, 2, 3], [1, 0, 2, 3]], [[0, 1, 2, 3]]),
    "two swaps": ([[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 3, 2], [1, 0, 3, 2]], [[0, 1, 2, 3], [2, 3, 0, 1]]),
    "cycle": ([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]], [[0, 1, 2, 3], [0, 3, 2, 1]]),
    "all": (
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]],
        [[0, *p] for p in itertools.permutations([1, 2, 3])],
    ),
}
GROUPS |= {f"split, {name}": CrystalGroup(*parts, spacegroup="", symprec=0.0) for name, parts in SPLIT.items()}
cases = pytest.mark.parametrize(
    "kernel, group", list(itertools.product([cls(1.3) for cls in KERNELS.values()], GROUPS.values())), ids=str
)


def contraction(kernel, y, action):
    """Fourier sums for all split groups, also where they are not faster."""
    return (GemmContraction if len(action.translations) == 1 else LatticeContraction)(kernel, y, action)


def energy(kernel, action, y, c, w, x):
    """e(x) of one query, every kernel value differentiated by autograd."""
    total = x.new_zeros(())
    for j in range(len(y)):
        point = y[j].clone().requires_grad_()
        for row in action.rows():
            k, _, _ = kernel.profile((x - point[row]).norm()[None])
            (slope,) = torch.autograd.grad(k.sum(), point, create_graph=True)
            total = total + c[j] * k.sum() + w[j] @ slope
    return total


@pytest.fixture
def problem(rng):
    y, x = (torch.tensor(rng.normal(size=(n, 6)) + 0.5) for n in (5, 3))
    return y, torch.tensor(rng.normal(size=5)), torch.tensor(rng.normal(size=(5, 6))), x


@cases
def test_against_autograd(kernel, group, problem):
    y, c, w, x = problem
    action = InverseDistances(4).action(group)
    e, g = contraction(kernel, y, action).apply(x, c, w)
    for m in range(len(x)):
        query = x[m].clone().requires_grad_()
        expected = energy(kernel, action, y, c, w, query)
        (slope,) = torch.autograd.grad(expected, query)
        assert e[m].item() == pytest.approx(expected.item(), rel=1e-11, abs=1e-12)
        torch.testing.assert_close(g[m], slope, rtol=1e-10, atol=1e-12)


@cases
def test_invariance_and_equivariance(kernel, group, problem):
    y, c, w, x = problem
    action = InverseDistances(4).action(group)
    jets = contraction(kernel, y, action)
    e, g = jets.apply(x, c, w)
    for row in action.rows():
        moved_e, moved_g = jets.apply(x[:, row], c, w)
        torch.testing.assert_close(moved_e, e)
        torch.testing.assert_close(moved_g, g[:, row])


@cases
def test_zero_values_may_be_left_out(kernel, group, problem):
    y, c, w, x = problem
    jets = contraction(kernel, y, InverseDistances(4).action(group))
    for left, right in zip(jets.apply(x, None, w), jets.apply(x, torch.zeros_like(c), w)):
        torch.testing.assert_close(left, right)


@cases
@pytest.mark.parametrize("references", [[3, 0, 3], [2, 2, 2]], ids=["several", "one"])
def test_pairs_are_the_contraction_written_out(kernel, group, problem, rng, references):
    y, _, _, x = problem
    jets = contraction(kernel, y, InverseDistances(4).action(group))
    c_left, c_right = torch.tensor([1.0, 0.0, 2.0]).double(), torch.tensor([0.5, 0.0]).double()
    references = torch.tensor(references)
    w_left, w_right = torch.tensor(rng.normal(size=(3, 6, 3))), torch.tensor(rng.normal(size=(5, 6, 2)))[references]
    blocks = jets.pairs(x, c_left, w_left, references, c_right, w_right)
    for pair, reference in enumerate(references):
        for r in range(2):
            c, w = torch.zeros(5).double(), torch.zeros(5, 6).double()
            c[reference], w[reference] = c_right[r], w_right[pair, :, r]
            e, g = jets.apply(x[pair : pair + 1], c, w)
            torch.testing.assert_close(blocks[pair, :, r], c_left * e + w_left[pair].mT @ g[0])
    assert jets.pairs(x[:0], c_left, w_left[:0], references[:0], c_right, w_right[:0]).shape == (0, 3, 2)


@cases
def test_smallest_distances(kernel, group, problem):
    y, _, _, x = problem
    action = InverseDistances(4).action(group)
    found = contraction(kernel, y, action).smallest_distances(x)
    expected = torch.stack([torch.cdist(x, y[:, row]) for row in action.rows()]).amin(0) / kernel.natural_length
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("tile, references", [(7, 2), (1, 1), (10**6, 3)])
def test_tiles_do_not_matter(problem, monkeypatch, tile, references):
    y, c, w, x = problem
    action = InverseDistances(4).action(GROUPS["swap"])
    kernel = KERNELS["matern52"](1.3)
    whole = contraction(kernel, y, action)
    expected = {given: whole.apply(x, c if given else None, w) for given in (True, False)}
    monkeypatch.setattr(gemm, "TILE", tile)
    monkeypatch.setattr(gemm, "MAX_REFERENCES", references)
    for given, jets in expected.items():
        for left, right in zip(whole.apply(x, c if given else None, w), jets):
            torch.testing.assert_close(left, right)


def test_precision_far_from_the_origin(problem):
    y, c, w, x = problem
    action = InverseDistances(4).action(GROUPS["none"])
    kernel = KERNELS["matern52"](1.3)
    near = contraction(kernel, y, action).apply(x, c, w)
    far = contraction(kernel, y + 1e4, action).apply(x + 1e4, c, w)
    for left, right in zip(near, far):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factors", [(1,), (4,), (2, 2), (3, 4), (2, 2, 4), (6, 3), (5, 5)])
def test_characters(factors):
    elements = np.array(list(np.ndindex(*factors)))
    rows = np.array([np.ravel_multi_index(((elements + e) % factors).T, factors) for e in elements])
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    order = len(rows)
    waves = np.exp(2j * np.pi / order * characters(rows))
    np.testing.assert_allclose(waves @ waves.conj().T, order * np.eye(order), atol=1e-10)
    place = {row.tobytes(): k for k, row in enumerate(rows)}
    for a, b in itertools.product(range(order), repeat=2):
        np.testing.assert_allclose(waves[:, place[rows[a][rows[b]].tobytes()]], waves[:, a] * waves[:, b], atol=1e-10)


@pytest.mark.parametrize("tile", [1, 7, 10**6])
def test_tiles_of_fourier_sums_do_not_matter(problem, monkeypatch, tile):
    y, c, w, x = problem
    jets = LatticeContraction(KERNELS["matern52"](1.3), y, InverseDistances(4).action(GROUPS["split, all"]))
    expected = *jets.apply(x, c, w), jets.smallest_distances(x)
    monkeypatch.setattr(lattice, "TILE", tile)
    for left, right in zip((*jets.apply(x, c, w), jets.smallest_distances(x)), expected):
        torch.testing.assert_close(left, right)
