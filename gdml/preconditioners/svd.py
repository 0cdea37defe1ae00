"""The best factor of a rank: from the eigenvectors of the whole matrix."""

import torch
from torch import Tensor

from ..errors import ProcessError
from ..linear import LinearOperator

EXTRA = 200  # vectors beyond the rank, and steps of iteration: what is missed is below a percent
STEPS = 6


def svd(operator: LinearOperator, rank: int, generator: torch.Generator) -> Tensor:
    """Factor (n, rank) of the largest eigenvalues, by iteration of a random subspace.

    Builds the whole matrix: a yardstick, for small systems.

    Source: C. Eckart and G. Young, Psychometrika 1, 211 (1936); N. Halko, P. G. Martinsson,
    J. Tropp, SIAM Rev. 53, 217 (2011).
    """
    if operator.shares.team.size > 1:
        raise ProcessError("'svd' builds the whole matrix, in one process; several can use 'rpcholesky'")
    matrix = operator.to_dense().tril_()
    matrix += matrix.tril(-1).mT
    matrix.diagonal().sub_(operator.noise)
    n = len(matrix)
    basis = torch.randn(n, min(n, rank + EXTRA), dtype=matrix.dtype, generator=generator).to(matrix.device)
    for _ in range(STEPS):
        basis, _ = torch.linalg.qr(matrix @ basis)
    values, vectors = torch.linalg.eigh(basis.mT @ (matrix @ basis))
    return (basis @ vectors[:, -rank:]) * values[-rank:].clamp(min=0.0).sqrt()
