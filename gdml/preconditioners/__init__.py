"""Approximate inverses for conjugate gradients, by name.

Each is a low-rank factor F of the matrix, made by a function
``(operator, rank, generator) -> (n, k) tensor``, together with an approximation
of the rest; see `NystromPreconditioner`.
"""

import torch

from ..errors import FitError
from ..linear import LinearOperator
from .leverage import leverage
from .nystrom import NystromPreconditioner, Preconditioner
from .pivoted import Begun, begin, cholesky, rpcholesky
from .svd import svd
from .uniform import uniform

FACTORS = {f.__name__: f for f in (rpcholesky, cholesky, leverage, uniform, svd)}

__all__ = ["FACTORS", "Begun", "NystromPreconditioner", "Preconditioner", "begin", "build"]


def build(
    name: str,
    operator: LinearOperator,
    rank: int,
    neighbours: int | None = None,
    seed: int = 0,
    begun: Begun | None = None,
) -> NystromPreconditioner | None:
    """A preconditioner by its name; None for "none".

    Parameters
    ----------
    name : str
    operator : LinearOperator
    rank : int
        Between 1 and n.
    neighbours : int, optional
        How many near blocks the rest is inverted with; μ I without.
    seed : int
    begun : Begun, optional
        The first columns of "rpcholesky".

    Raises
    ------
    FitError
        For an unknown name, or a rank out of range.
    """
    if name == "none":
        return None
    if name not in FACTORS:
        raise FitError(f"unknown preconditioner {name!r}; known ones are {', '.join(FACTORS)} and none")
    if not 1 <= rank <= operator.shape[0]:
        raise FitError(f"the rank must be between 1 and {operator.shape[0]}, not {rank}")
    generator = torch.Generator().manual_seed(seed)
    factor = FACTORS[name](operator, rank, generator, **({"begun": begun} if name == "rpcholesky" else {}))
    return NystromPreconditioner(operator, factor, neighbours, generator)
