"""Approximate inverses for conjugate gradients, by name.

Each is a low-rank factor F of the matrix, made by a function
``(operator, rank, generator) -> (n, k) tensor``, with the same inverse of
F Fᵀ + μ I; see `NystromPreconditioner`.
"""

import torch

from ..errors import FitError
from ..linear import LinearOperator
from .leverage import leverage
from .nystrom import NystromPreconditioner, Preconditioner
from .pivoted import cholesky, rpcholesky
from .svd import svd
from .uniform import uniform

FACTORS = {f.__name__: f for f in (rpcholesky, cholesky, leverage, uniform, svd)}

__all__ = ["FACTORS", "NystromPreconditioner", "Preconditioner", "build"]


def build(name: str, operator: LinearOperator, rank: int, seed: int = 0) -> NystromPreconditioner | None:
    """A preconditioner by its name; None for "none".

    Raises
    ------
    FitError
        For an unknown name, or a rank that is not between 1 and n.
    """
    if name == "none":
        return None
    if name not in FACTORS:
        raise FitError(f"unknown preconditioner {name!r}; known ones are {', '.join(FACTORS)} and none")
    if not 1 <= rank <= operator.shape[0]:
        raise FitError(f"the rank must be between 1 and {operator.shape[0]}, not {rank}")
    factor = FACTORS[name](operator, rank, torch.Generator().manual_seed(seed))
    return NystromPreconditioner(factor, operator.diagonal())
