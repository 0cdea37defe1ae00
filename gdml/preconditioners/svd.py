"""The best factor of a rank: from the eigenvectors of the whole matrix."""

import torch
from torch import Tensor

from ..linear import LinearOperator


def svd(operator: LinearOperator, rank: int, generator: torch.Generator) -> Tensor:
    """Factor (n, rank) of the largest eigenvalues. Builds the whole matrix: a yardstick, for small systems.

    Source: C. Eckart and G. Young, Psychometrika 1, 211 (1936).
    """
    values, vectors = torch.linalg.eigh(operator.to_dense())
    values = (values - operator.noise).clamp(min=0.0)
    return vectors[:, -rank:] * values[-rank:].sqrt()
