"""Columns drawn by approximate ridge leverage scores."""

import torch
from torch import Tensor

from ..linear import LinearOperator
from .nystrom import factor_of_columns, squared_rows


def leverage(operator: LinearOperator, rank: int, generator: torch.Generator) -> Tensor:
    r"""Nyström factor (n, rank) of columns drawn with probability by their leverage.

    The scores :math:`\tau_i = [K (K + \mu I)^{-1}]_{ii}` are approximated in the
    span of rank/2 columns drawn uniformly, F: with μ the mean of what F misses,
    :math:`\tau_i \approx F_i (F^T F + \mu I)^{-1} F_i^T`.

    Source: S. Blücher, K.-R. Müller, S. Chmiela, J. Chem. Theory Comput. 19,
    4619 (2023); A. Alaoui and M. Mahoney, NIPS 28 (2015).
    """
    n = operator.shape[0]
    first = torch.randperm(n, generator=generator)[: max(1, rank // 2)].to(operator.device)
    columns = operator.columns(first)
    shares = operator.unknowns
    factor = factor_of_columns(columns, shares.rows(columns, first))
    missed = operator.diagonal() - squared_rows(factor)
    inner = shares.sum(factor.mT @ factor)
    inner.diagonal().add_((shares.sum(missed.sum()) / n).clamp(min=1e-300))
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), factor.mT, upper=False)
    scores = shares.gather((half * half).sum(0)).clamp(min=1e-12)
    # A draw without replacement: the largest of scores over exponential random numbers, which are the CPU's on all
    # devices; torch.multinomial stops at 2^24 entries.
    luck = -torch.rand(n, dtype=scores.dtype, generator=generator).log().to(scores.device)
    chosen = shares.team.agree(lambda: (scores / luck).topk(rank).indices.sort().values.cpu()).to(scores.device)
    columns = operator.columns(chosen)
    return factor_of_columns(columns, shares.rows(columns, chosen))
