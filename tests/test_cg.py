"""Conjugate gradients: right, honest, and helped by every preconditioner."""

import pytest
import torch

from gdml.errors import FitError, NotPositiveDefiniteError
from gdml.linear import DenseOperator
from gdml.preconditioners import FACTORS, NystromPreconditioner, begin, build, neighbours, nystrom
from gdml.processes import Shares, Team
from gdml.solvers import State, cg
from gdml.solvers import cg as cg_function
from tests.test_operators import build as build_training
from tests.test_operators import dense

module = __import__("sys").modules[cg_function.__module__]


def spd(n=60, decay=0.8, noise=1e-6, seed=0, block_size=1):
    """A matrix whose eigenvalues decay geometrically, as those of kernels."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    values = decay ** torch.arange(n, dtype=torch.float64)
    return DenseOperator((q * values) @ q.mT, noise, block_size)


@pytest.mark.parametrize("name", [*FACTORS, "none"])
@pytest.mark.parametrize("shape", [(60,), (60, 3)])
def test_solves(name, shape):
    operator = spd()
    b = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    solution = cg(operator, b, preconditioner=build(name, operator, 20), rtol=1e-9, max_iter=1000)
    assert solution.converged and solution.reason == "converged"
    torch.testing.assert_close(operator.matmul(solution.x), b, rtol=0, atol=2e-9 * float(b.norm(dim=0).max()))
    assert len(solution.residuals) == solution.n_iter + 1


@pytest.mark.parametrize("name", FACTORS)
def test_factors_approximate_from_below(name):
    operator = spd()
    matrix = operator.matrix
    errors = []
    for rank in (5, 15, 30):
        factor = FACTORS[name](operator, rank, torch.Generator().manual_seed(0))
        rest = matrix - factor @ factor.mT
        assert factor.shape[1] <= rank
        assert torch.linalg.eigvalsh(rest).min() > -1e-7
        errors.append(float(rest.trace()))
    assert errors[0] > errors[1] > errors[2]


def test_svd_is_the_best_and_random_pivots_are_near():
    operator = spd()
    best = (operator.matrix - torch.linalg.multi_dot([f := FACTORS["svd"](operator, 15, None), f.mT])).trace()
    random = []
    for seed in range(10):
        factor = FACTORS["rpcholesky"](operator, 15, torch.Generator().manual_seed(seed))
        random.append(float((operator.matrix - factor @ factor.mT).trace()))
    assert best < min(random)
    assert sum(random) / 10 < 6 * best


@pytest.mark.parametrize("name", ["rpcholesky", "cholesky"])
def test_pivots_stop_where_the_matrix_is_described(name):
    low = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    factor = FACTORS[name](DenseOperator(low @ low.mT), 20, torch.Generator().manual_seed(0))
    assert 6 <= factor.shape[1] < 20
    torch.testing.assert_close(factor @ factor.mT, low @ low.mT, atol=1e-10, rtol=0)


@pytest.mark.parametrize("neighbours", [None, 0, 3])
@pytest.mark.parametrize("block_size", [1, 3])
def test_the_inverse_is_that_of_the_approximation(neighbours, block_size):
    operator = spd(30, block_size=block_size)
    factor = FACTORS["rpcholesky"](operator, 8, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    preconditioner = NystromPreconditioner(operator, factor.clone(), neighbours, generator)
    identity = torch.eye(30, dtype=torch.float64)
    rest = preconditioner.rest.whiten(identity)
    approximation = factor @ factor.mT + torch.linalg.inv(rest.mT @ rest)
    r = torch.randn(30, 2, dtype=torch.float64)
    torch.testing.assert_close(approximation @ preconditioner.solve(r), r, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(preconditioner.solve(r)[:, 0], preconditioner.solve(r[:, 0]))
    torch.testing.assert_close(preconditioner.rest.unwhiten(rest), rest.mT @ rest)
    missed = operator.to_dense() - factor @ factor.mT
    assert preconditioner.mu == pytest.approx(float(missed.trace()) / 30)


@pytest.mark.parametrize("block_size", [1, 2, 5])
@pytest.mark.parametrize("tile", [1, neighbours.TILE])
def test_all_neighbours_make_it_exact(block_size, tile, monkeypatch):
    """Up to the ridge, which is made small here."""
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(nystrom, "RIDGE", 1e-9)
    operator = spd(30, decay=0.9, noise=1e-3, block_size=block_size)
    factor = FACTORS["rpcholesky"](operator, 8, torch.Generator().manual_seed(0))
    exact = NystromPreconditioner(operator, factor, 30, torch.Generator().manual_seed(0))
    r = torch.randn(30, dtype=torch.float64)
    torch.testing.assert_close(exact.solve(operator.matmul(r)), r, rtol=1e-5, atol=1e-5)


def test_neighbours_see_the_nearest_before():
    distances = (torch.arange(6.0)[:, None] - torch.arange(6.0)).abs()
    order = torch.tensor([5, 0, 3, 4, 1, 2])
    sets, valid = neighbours._nearest_before(distances.__getitem__, Shares(Team(), len(order)), order, 2)
    found = {int(s[-1]): sorted(s[:-1][v[:-1]].tolist()) for s, v in zip(sets, valid)}
    assert found == {5: [], 0: [5], 3: [0, 5], 4: [3, 5], 1: [0, 3], 2: [1, 3]}


@pytest.mark.parametrize("use_energy", [False, True])
def test_neighbours_help(frames, use_energy):
    """Each neighbour makes iterations fewer; rows of energies are no obstacle."""
    operator, _ = build_training(frames[:30], noise=1e-10, scale=20.0, use_energy=use_energy)
    y = operator.labels.values.flatten()
    counts = []
    for number in (None, 0, 2, 8):
        solution = cg(operator, y, preconditioner=build("rpcholesky", operator, 60, number), rtol=1e-6)
        assert solution.converged
        counts.append(solution.n_iter)
    assert counts == sorted(counts, reverse=True) and counts[-1] < 0.5 * counts[0]


def test_a_factor_can_be_continued():
    operator = spd(60)
    begun = begin(operator, 10)
    rank, before, after = begun.decay()
    factor = FACTORS["rpcholesky"](operator, 25, torch.Generator().manual_seed(3), begun)
    torch.testing.assert_close(factor[:, :10], begun.factor)
    rest = operator.matrix - factor @ factor.mT
    assert rank == 10 and torch.linalg.eigvalsh(rest).min() > -1e-9
    assert float(rest.trace()) / 60 < after < before
    assert after == pytest.approx(float((operator.matrix - begun.factor @ begun.factor.mT).trace()) / 60)


def test_on_the_training_system(frames):
    operator, _ = build_training(frames[:15], noise=1e-10, scale=20.0)
    y = operator.labels.values.flatten()
    expected = torch.linalg.solve(dense(operator), y)
    plain = cg(operator, y, rtol=1e-3, max_iter=3000)
    helped = cg(operator, y, preconditioner=build("rpcholesky", operator, 150), rtol=1e-8, max_iter=3000)
    assert helped.converged and helped.residuals[50] < 0.1 * plain.residuals[50]
    torch.testing.assert_close(helped.x, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_start_vector_and_callback():
    operator, b = spd(), torch.ones(60, dtype=torch.float64)
    seen = []
    first = cg(
        operator, b, rtol=1e-10, max_iter=1000, callback=lambda state: seen.append((state.n_iter, state.residuals[-1]))
    )
    assert [i for i, _ in seen] == list(range(1, first.n_iter + 1))
    assert [r for _, r in seen] == first.residuals[1:]
    again = cg(operator, b, start=State.at(operator, b, first.x), rtol=1e-9)
    assert again.n_iter == 0 and again.converged
    ended = cg(operator, b, callback=lambda state: state.n_iter == 3)
    assert ended.n_iter == 3 and ended.reason == "ended by the callback"


@pytest.mark.parametrize("stop", [1, 6, 7, 20])
def test_goes_on_from_a_state_as_if_uninterrupted(stop, monkeypatch):
    """Bit by bit, also where the residual has just been replaced."""
    monkeypatch.setattr(module, "REPLACE_EVERY", 7)
    operator, b = spd(), torch.ones(60, dtype=torch.float64)
    preconditioner = build("rpcholesky", operator, 8)
    whole = cg(operator, b, preconditioner=preconditioner, rtol=1e-10, max_iter=1000)
    kept = []
    cg(
        operator,
        b,
        preconditioner=preconditioner,
        callback=lambda state: state.n_iter == stop and not kept.append(state),
    )
    assert kept[0].n_iter == stop < whole.n_iter
    rest = cg(operator, b, preconditioner=preconditioner, start=kept[0], rtol=1e-10, max_iter=1000)
    assert rest.residuals == whole.residuals and torch.equal(rest.x, whole.x)


def test_reports_the_true_residual(monkeypatch):
    """Also where rounding in the recursion has long left it."""
    monkeypatch.setattr(module, "REPLACE_EVERY", 7)
    operator, b = spd(noise=1e-9), torch.ones(60, dtype=torch.float64)
    solution = cg(operator, b, rtol=1e-7, max_iter=2000)
    true = float((b - operator.matmul(solution.x)).norm() / b.norm())
    assert solution.converged and true <= 1e-7


def test_absolute_tolerance_and_zero_right_hand_side():
    operator, b = spd(), torch.ones(60, dtype=torch.float64)
    solution = cg(operator, b, rtol=0.0, atol=1e-3, max_iter=1000)
    assert solution.converged and (b - operator.matmul(solution.x)).norm() <= 1e-3
    zero = cg(operator, 0 * b)
    assert zero.converged and zero.n_iter == 0 and not zero.x.any()


def test_too_few_iterations():
    solution = cg(spd(), torch.ones(60, dtype=torch.float64), rtol=1e-10, max_iter=4)
    assert not solution.converged and solution.n_iter == 4
    with pytest.raises(FitError, match="did not converge: 4 iterations left the residual at"):
        solution.require_convergence()


def test_a_tolerance_below_the_arithmetic(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 40)
    operator = spd()
    solution = cg(operator, torch.ones(60, dtype=torch.float64), preconditioner=build("svd", operator, 40), rtol=1e-17)
    assert not solution.converged
    assert "what double precision gives" in solution.reason


def test_stagnation_is_explained(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 3)
    operator = spd(200, decay=0.9, noise=1e-14)
    solution = cg(operator, torch.ones(200, dtype=torch.float64), rtol=1e-6, max_iter=5000)
    assert not solution.converged and "use a preconditioner of higher rank" in solution.reason


def test_not_positive_definite():
    indefinite = DenseOperator(torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)))
    with pytest.raises(NotPositiveDefiniteError, match="raise the noise"):
        cg(indefinite, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "name, rank, message", [("magic", 5, "unknown preconditioner"), ("uniform", 0, "between 1 and"), ("svd", 61, "60")]
)
def test_bad_preconditioners(name, rank, message):
    with pytest.raises(FitError, match=message):
        build(name, spd(), rank)
