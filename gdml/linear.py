"""Symmetric positive definite operators, as solvers and preconditioners see them."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor


class LinearOperator(ABC):
    """A symmetric positive definite matrix that need not be stored.

    Its unknowns come in blocks of `block_size` that belong together, such as the
    labels of a geometry.

    Attributes
    ----------
    noise : float
        The part of the diagonal that no low-rank approximation can describe.
    block_size : int
    """

    noise: float = 0.0
    block_size: int = 1

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
        """Columns (n, len(indices)), without the noise."""

    @abstractmethod
    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The blocks (p, L, L) at p pairs of block numbers, without the noise; L is the block size."""

    @abstractmethod
    def distances(self) -> Tensor:
        """How far blocks are from each other (n/L, n/L): the smaller, the more alike they are."""

    def to_dense(self) -> Tensor:
        """The matrix (n, n), for tests and small systems."""
        matrix = self.columns(torch.arange(self.shape[0]))
        matrix.diagonal().add_(self.noise)
        return matrix

    def to_scipy(self) -> ScipyOperator:
        """The operator as `scipy.sparse.linalg` knows it."""

        def product(v: np.ndarray) -> np.ndarray:
            return self.matmul(torch.tensor(np.asarray(v, dtype=float))).numpy()

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

    def distances(self) -> Tensor:
        size = self.matrix.diagonal().sqrt()
        correlation = (self.matrix / size / size[:, None]).view_as(self._in_blocks)
        return 1.0 - correlation.square().mean((1, 3)).sqrt()
