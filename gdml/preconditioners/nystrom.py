"""Preconditioners from a low-rank factor of the matrix."""

from typing import Protocol

import torch
from torch import Tensor

from ..errors import FitError
from ..linear import LinearOperator
from .neighbours import RIDGE, Neighbours, Uniform


class Preconditioner(Protocol):
    """An approximate inverse: symmetric and positive definite."""

    def solve(self, r: Tensor) -> Tensor:
        """Apply it to r, (n,) or (n, m)."""


class NystromPreconditioner:
    r"""(F Fᵀ + R)⁻¹ for a factor F of rank k and an approximation R of the rest, by the identity of Woodbury.

    With W Wᵀ = R⁻¹ and G = Wᵀ F,

    .. math:: (F F^T + R)^{-1} r = W \left[ I - G (I + G^T G)^{-1} G^T \right] W^T r .

    R is μ I, or better, comes from blocks and their neighbours. μ is the mean of
    the diagonal of A - F Fᵀ, where A is the whole matrix: far larger than the
    noise that A was regularised with, and the better choice, since the
    eigenvalues that F misses lie about there.

    Parameters
    ----------
    operator : LinearOperator
        A.
    factor : (n, k) tensor
        F; overwritten.
    neighbours : int or None
        How many near blocks are seen together with each block by R; None
        stands for μ I.
    generator : torch.Generator, optional
        Of the order of the blocks.

    Attributes
    ----------
    mu : float
    """

    def __init__(
        self,
        operator: LinearOperator,
        factor: Tensor,
        neighbours: int | None = None,
        generator: torch.Generator | None = None,
    ):
        diagonal, self.shares = operator.diagonal(), operator.unknowns
        mean, missed = self._mean(diagonal), diagonal - squared_rows(factor)
        # If F describes all of A to rounding, rounding is what is left.
        floor = float(mean.mean()) * torch.finfo(diagonal.dtype).eps
        missed = self._mean(missed)
        self.mu = max(float(missed.mean()), floor)
        if neighbours is None:
            self.rest = Uniform(self.mu)
        else:
            ridge = RIDGE * missed.clamp(min=floor)
            self.rest = Neighbours(operator, factor, ridge, neighbours, generator)
        self.rest.whiten_(factor)
        self.factor = factor
        inner = self.shares.sum(_gram(factor))
        inner.diagonal().add_(1.0)
        triangle, info = torch.linalg.cholesky_ex(inner)
        if info:
            raise FitError("the preconditioner's factor has linearly dependent columns; use a lower rank")
        # The inverse, since for a single vector a product is ten times faster than a triangular solution.
        one = torch.zeros_like(inner).fill_diagonal_(1.0)
        self.inverse = torch.linalg.solve_triangular(triangle, one, upper=False)

    def _mean(self, values: Tensor) -> Tensor:
        """Of values (n,) for all unknowns, the mean over blocks (L,)."""
        return self.shares.sum(values.view(-1, self.shares.unit).sum(0)) / self.shares.n

    @property
    def rank(self) -> int:
        return self.factor.shape[1]

    def solve(self, r: Tensor) -> Tensor:
        """Apply the approximate inverse to r, (n,) or (n, m)."""
        white = self.rest.whiten(r if r.ndim == 2 else r[:, None])
        inner = self.inverse.mT @ (self.inverse @ self.shares.sum(self.factor.mT @ white))
        return self.rest.unwhiten(white.addmm_(self.factor, inner, alpha=-1)).view_as(r)


def squared_rows(factor: Tensor) -> Tensor:
    """The sum of squares of each row, without another array of this size."""
    return torch.linalg.vector_norm(factor, dim=1).square_()


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
