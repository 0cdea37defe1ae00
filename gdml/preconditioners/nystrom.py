"""Preconditioners from a low-rank factor of the matrix."""

from typing import Protocol

import torch
from torch import Tensor

from ..errors import FitError


class Preconditioner(Protocol):
    """An approximate inverse: symmetric and positive definite."""

    def solve(self, r: Tensor) -> Tensor:
        """Apply it to r, (n,) or (n, m)."""


class NystromPreconditioner:
    r"""(F Fᵀ + μ I)⁻¹ for a factor F of rank k, by the identity of Woodbury.

    .. math:: (F F^T + \mu I)^{-1} r = \left[ r - F (\mu I + F^T F)^{-1} F^T r \right] / \mu

    μ stands for all that F does not describe. It is the mean of the diagonal of
    A - F Fᵀ, where A is the whole matrix: far larger than the noise that A was
    regularised with, and the better choice, since the eigenvalues that F misses
    lie about there.

    Parameters
    ----------
    factor : (n, k) tensor
        F.
    diagonal : (n,) tensor
        Of A, noise included.
    """

    def __init__(self, factor: Tensor, diagonal: Tensor):
        self.factor = factor
        missed = diagonal - (factor * factor).sum(1)
        self.mu = float(missed.mean())
        if not self.mu > 0:
            # F describes all of A to rounding.
            self.mu = float(diagonal.mean()) * torch.finfo(diagonal.dtype).eps
        inner = _gram(factor)
        inner.diagonal().add_(self.mu)
        self.inner, info = torch.linalg.cholesky_ex(inner)
        if info:
            raise FitError("the preconditioner's factor has linearly dependent columns; use a lower rank")

    @property
    def rank(self) -> int:
        return self.factor.shape[1]

    def solve(self, r: Tensor) -> Tensor:
        """Apply the approximate inverse to r, (n,) or (n, m)."""
        columns = r if r.ndim == 2 else r[:, None]
        inner = torch.cholesky_solve(self.factor.mT @ columns, self.inner)
        return ((columns - self.factor @ inner) / self.mu).view_as(r)


def _gram(factor: Tensor, block: int = 512) -> Tensor:
    """The lower triangle of Fᵀ F; half of the work of the product."""
    rank = factor.shape[1]
    result = factor.new_zeros(rank, rank)
    for start in range(0, rank, block):
        result[start:, start : start + block] = factor[:, start:].mT @ factor[:, start : start + block]
    return result


def factor_of_columns(columns: Tensor, corner: Tensor) -> Tensor:
    """F with F Fᵀ = C W⁺ Cᵀ from columns C (n, k) and their rows W (k, k).

    W is singular to rounding where columns are nearly dependent; as much is
    added to its diagonal as makes it factorise.
    """
    scale = float(corner.diagonal().mean())
    for jitter in (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10):
        shifted = corner.clone()
        shifted.diagonal().add_(jitter * scale)
        triangle, info = torch.linalg.cholesky_ex(shifted)
        if not info:
            return torch.linalg.solve_triangular(triangle.mT, columns, upper=True, left=False)
    raise FitError("the chosen columns of the matrix are linearly dependent; are there duplicated geometries?")
