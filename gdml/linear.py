"""Symmetric positive definite operators, as solvers and preconditioners see them."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor


class LinearOperator(ABC):
    """A symmetric positive definite matrix that need not be stored.

    Attributes
    ----------
    noise : float
        The part of the diagonal that no low-rank approximation can describe.
    """

    noise: float = 0.0

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
    """

    def __init__(self, matrix: Tensor, noise: float = 0.0):
        self.matrix = matrix
        self.noise = noise

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.matrix.shape)

    def matmul(self, v: Tensor) -> Tensor:
        return self.matrix @ v + self.noise * v

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal() + self.noise

    def columns(self, indices: Tensor) -> Tensor:
        return self.matrix[:, indices]
