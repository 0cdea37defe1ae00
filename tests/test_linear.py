"""The operator as solvers see it: columns, diagonal and products are those of the dense matrix."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg as scipy_cg

import gdml.operators
from gdml.linear import DenseOperator
from tests.test_operators import build, dense


@pytest.fixture(params=["training", "training with energies", "dense"])
def operator(request, frames):
    if request.param == "dense":
        a = torch.randn(30, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        return DenseOperator(a @ a.mT, noise=0.3)
    return build(frames[:6], use_energy="energies" in request.param)[0]


def matrix_of(operator):
    return operator.to_dense() if isinstance(operator, DenseOperator) else dense(operator)


def test_columns_and_diagonal(operator, monkeypatch):
    monkeypatch.setattr(gdml.contractions.gemm, "COLUMN_TILE", 1000)  # several tiles
    expected = matrix_of(operator)
    torch.testing.assert_close(operator.diagonal(), expected.diagonal())
    indices = torch.tensor([5, 0, 17, 5, 29])
    without_noise = expected - operator.noise * torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(operator.columns(indices), without_noise[:, indices], rtol=1e-9, atol=1e-12)


def test_products_with_one_and_several_vectors(operator):
    expected = matrix_of(operator)
    v = torch.randn(len(expected), 3, dtype=torch.float64)
    torch.testing.assert_close(operator.matmul(v), expected @ v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(operator.matmul(v[:, 0]), expected @ v[:, 0], rtol=1e-9, atol=1e-11)


def test_scipy_knows_it(operator):
    expected = matrix_of(operator).numpy()
    view = operator.to_scipy()
    v = np.arange(len(expected), dtype=float)
    np.testing.assert_allclose(view @ v, expected @ v, rtol=1e-9)
    x, info = scipy_cg(view, v, rtol=1e-10, maxiter=5000)
    assert info == 0
    np.testing.assert_allclose(expected @ x, v, atol=1e-6 * np.linalg.norm(v))
