"""The blocked factorisation against LAPACK, and its advice where it fails."""

import pytest
import torch

from gdml.errors import NotPositiveDefiniteError
from gdml.solvers import cholesky_factor, cholesky_solve


def spd(n):
    a = torch.randn(n, n + 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return a @ a.mT + 0.1 * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 50])
@pytest.mark.parametrize("block", [1, 16, 100])
def test_factor_and_solution(n, block):
    matrix, right = spd(n), torch.arange(n, dtype=torch.float64)
    factor = cholesky_factor(matrix.clone(), block=block)
    torch.testing.assert_close(factor.tril(), torch.linalg.cholesky(matrix))
    solution = cholesky_solve(factor, right, block=block)
    torch.testing.assert_close(matrix @ solution, right, rtol=1e-9, atol=1e-9)


def test_reads_only_the_lower_triangle_and_works_in_place():
    matrix = spd(20)
    broken = matrix.tril() + torch.full_like(matrix, torch.nan).triu(1).nan_to_num(nan=7.0).triu(1)
    factor = cholesky_factor(broken, block=6)
    assert factor.data_ptr() == broken.data_ptr()
    torch.testing.assert_close(factor.tril(), torch.linalg.cholesky(matrix))


def test_progress_ends_at_the_end():
    seen = []
    cholesky_factor(spd(20), block=6, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 20), (12, 20), (18, 20), (20, 20)]


@pytest.mark.parametrize("row", [0, 9, 19])
def test_not_positive_definite(row):
    matrix = torch.eye(20, dtype=torch.float64)
    matrix[row, row] = -1.0
    with pytest.raises(NotPositiveDefiniteError, match=rf"row {row} of 20.*raise the noise"):
        cholesky_factor(matrix, block=6)


def test_not_finite():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[2, 2] = torch.nan
    with pytest.raises(NotPositiveDefiniteError, match="not finite"):
        cholesky_factor(matrix)
