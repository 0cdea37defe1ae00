"""Columns drawn uniformly."""

import torch
from torch import Tensor

from ..linear import LinearOperator
from .nystrom import factor_of_columns


def uniform(operator: LinearOperator, rank: int, generator: torch.Generator) -> Tensor:
    """Nyström factor (n, rank) of columns drawn uniformly without replacement.

    Source: C. Williams and M. Seeger, NIPS 13, 682 (2001).
    """
    chosen = torch.randperm(operator.shape[0], generator=generator)[:rank].sort().values.to(operator.device)
    columns = operator.columns(chosen)
    return factor_of_columns(columns, operator.unknowns.rows(columns, chosen))
