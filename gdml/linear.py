"""Symmetric positive definite operators, as solvers and preconditioners see them."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from .processes import Shares, Team


class LinearOperator(ABC):
    """A symmetric positive definite matrix that need not be stored.

    Its unknowns come in blocks of `block_size` that belong together, such as the
    labels of a geometry. Blocks may be shared out to several processes: vectors, and
    columns of the matrix, then have the rows of their own blocks on each of them.

    Attributes
    ----------
    noise : float
        The part of the diagonal that no low-rank approximation can describe.
    block_size : int
    device : torch.device
    shares : Shares
        Of the blocks.
    """

    noise: float = 0.0
    block_size: int = 1
    device: torch.device = torch.device("cpu")

    @cached_property
    def shares(self) -> Shares:
        return Shares(Team(), self.shape[0] // self.block_size)

    @cached_property
    def unknowns(self) -> Shares:
        """How the unknowns are shared out, with their blocks."""
        return self.shares.times(self.block_size)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products of vectors, or of the columns of (n, m)."""
        return self.unknowns.sum((a * b).sum(0))

    def norm(self, a: Tensor) -> Tensor:
        """The norm of a vector, or of each column."""
        return self.dot(a, a).sqrt()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...

    @abstractmethod
    def matmul(self, v: Tensor) -> Tensor:
        """The product with v, (n,) or (n, m)."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal (n,), noise included."""

    @abstractmethod
    def columns(self, indices: Tensor) -> Tensor:
        """Columns (n, len(indices)), without the noise; the same ones on all processes."""

    @abstractmethod
    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The blocks (p, L, L) at p pairs of block numbers, without the noise; L is the block size.

        Any pairs on each process, but all of them have to ask.
        """

    @abstractmethod
    def diagonal_blocks(self) -> Tensor:
        """The blocks (n/L, L, L) on the diagonal, without the noise."""

    @abstractmethod
    def distances(self, blocks: Tensor) -> Tensor:
        """How far own blocks (b,), by their numbers, are from all (b, n/L): the smaller, the more alike they are."""

    def to_dense(self) -> Tensor:
        """The matrix (n, n), for tests and small systems."""
        matrix = self.columns(torch.arange(self.shape[0], device=self.device))
        matrix.diagonal().add_(self.noise)
        return matrix

    def to_scipy(self) -> ScipyOperator:
        """The operator as `scipy.sparse.linalg` knows it."""

        def product(v: np.ndarray) -> np.ndarray:
            return self.matmul(torch.tensor(np.asarray(v, dtype=float), device=self.device)).cpu().numpy()

        return ScipyOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=float)


class DenseOperator(LinearOperator):
    """A matrix that is stored.

    Parameters
    ----------
    matrix : (n, n) tensor
        Symmetric; without the noise.
    noise : float
    block_size : int
        A divisor of n.
    """

    def __init__(self, matrix: Tensor, noise: float = 0.0, block_size: int = 1):
        self.matrix = matrix
        self.noise = noise
        self.block_size = block_size
        self.device = matrix.device

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.matrix.shape)

    def matmul(self, v: Tensor) -> Tensor:
        return self.matrix @ v + self.noise * v

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal() + self.noise

    def columns(self, indices: Tensor) -> Tensor:
        return self.matrix[:, indices]

    @property
    def _in_blocks(self) -> Tensor:
        n_blocks = len(self.matrix) // self.block_size
        return self.matrix.view(n_blocks, self.block_size, n_blocks, self.block_size)

    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self._in_blocks[rows, :, columns]

    def diagonal_blocks(self) -> Tensor:
        return self._in_blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def distances(self, blocks: Tensor) -> Tensor:
        size = self.matrix.diagonal().sqrt()
        correlation = (self.matrix / size / size[:, None]).view_as(self._in_blocks)
        return 1.0 - correlation[blocks].square().mean((1, 3)).sqrt()
