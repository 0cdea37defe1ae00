"""Partial Cholesky factorisations with pivots, random or greedy, in rounds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..linear import LinearOperator
from .nystrom import squared_rows

ROUND = 64  # candidates of one round: more of them reject each other, fewer make small matrix products
GREEDY = 0.5  # a candidate is taken while this much of it is left by the others of its round


@dataclass(frozen=True)
class Begun:
    """A factor (n, k) by random pivots that can be continued, and what it misses of the diagonal, without the noise.

    The factor is shared out, as all columns are; the diagonal is whole.
    """

    factor: Tensor
    missing: Tensor
    late: Tensor  # of the diagonal, what the second half of the columns describes

    def decay(self) -> tuple[int, float, float]:
        """The rank k, and the mean of the diagonal that the first k/2 columns miss, and that all miss."""
        rank = self.factor.shape[1]
        return rank, float((self.missing + self.late).mean()), float(self.missing.mean())


def begin(operator: LinearOperator, rank: int, seed: int = 0) -> Begun:
    """The first columns of `rpcholesky`, to see how fast the matrix is described."""
    factor = rpcholesky(operator, rank, torch.Generator().manual_seed(seed))
    missing = operator.diagonal() - operator.noise - squared_rows(factor)
    late = squared_rows(factor[:, factor.shape[1] // 2 :])
    gather = operator.unknowns.gather
    return Begun(factor, gather(missing.clamp_(min=0.0)), gather(late))


def rpcholesky(operator: LinearOperator, rank: int, generator: torch.Generator, begun: Begun | None = None) -> Tensor:
    """Factor (n, rank) with pivots drawn in proportion to what is missing on the diagonal.

    Candidates are drawn in rounds from the diagonal as it was before the round,
    and each is accepted with the probability that corrects for that.

    Source: Y. Chen, E. Epperly, J. Tropp, R. Webber, Commun. Pure Appl. Math. 78,
    995 (2025); rounds with rejection: E. Epperly, J. Tropp, R. Webber, arXiv 2410.03969.
    """

    def draw(missing: Tensor, count: int) -> Tensor:
        # Random numbers are the CPU's on all devices; torch.multinomial stops at 2^24 entries.
        total = missing.cumsum(0)
        drawn = torch.rand(count, dtype=missing.dtype, generator=generator).to(missing.device) * total[-1]
        return torch.searchsorted(total, drawn, right=True).clamp_(max=len(missing) - 1).unique()

    def accept(left: float) -> bool:
        return bool(torch.rand(1, generator=generator) < left)

    return _pivoted(operator, rank, draw, accept, begun)


def cholesky(operator: LinearOperator, rank: int, generator: torch.Generator) -> Tensor:
    """Factor (n, rank) with the pivots that miss most: the incomplete Cholesky of the literature.

    Candidates come in rounds, those of a round that the others describe already
    are left for later.

    Source: H. Harbrecht, M. Peters, R. Schneider, Appl. Numer. Math. 62, 428 (2012).
    """

    def largest(missing: Tensor, count: int) -> Tensor:
        return torch.topk(missing, count).indices

    return _pivoted(operator, rank, largest, lambda left: left > GREEDY)


def _pivoted(
    operator: LinearOperator,
    rank: int,
    candidates: Callable[[Tensor, int], Tensor],
    accept: Callable[[float], bool],
    begun: Begun | None = None,
) -> Tensor:
    n, shares, team = operator.shape[0], operator.unknowns, operator.shares.team
    own = operator.diagonal() - operator.noise
    factor, done = own.new_empty(len(own), rank), 0
    missing = shares.gather(own)
    floor = n * torch.finfo(missing.dtype).eps * float(missing.max())
    if begun:
        missing, done = begun.missing.clone(), min(rank, begun.factor.shape[1])
        factor[:, :done] = begun.factor[:, :done]
    while done < rank:
        missing[missing < floor] = 0.0
        available = int((missing > 0).sum())
        if not available:
            break  # the factor is the matrix, to rounding
        # Processes on different machines could round differently, and so decide differently.
        pivots = team.agree(partial(_drawn, candidates, missing, min(ROUND, available))).to(missing.device)
        columns = operator.columns(pivots)
        columns.addmm_(factor[:, :done], shares.rows(factor[:, :done], pivots).mT, alpha=-1)
        # Many small steps, for which a GPU would be waited for each time.
        corner = shares.rows(columns, pivots).cpu()
        found = team.agree(partial(_round, corner, accept, rank - done, floor))
        accepted, triangle = (part.to(columns.device) for part in found)
        fresh = torch.linalg.solve_triangular(triangle.mT, columns[:, accepted], upper=True, left=False)
        factor[:, done : done + len(accepted)] = fresh
        done += len(accepted)
        missing -= shares.gather(squared_rows(fresh))
        missing[pivots[accepted]] = 0.0
    return factor[:, :done]


def _drawn(candidates: Callable[[Tensor, int], Tensor], missing: Tensor, count: int) -> Tensor:
    return candidates(missing, count).cpu()


def _round(corner: Tensor, accept: Callable[[float], bool], most: int, floor: float) -> tuple[Tensor, Tensor]:
    """Which candidates of a round become pivots, and the Cholesky factor of their corner."""
    left = corner.clone()
    before = corner.diagonal().clone()
    accepted: list[int] = []
    for i in range(len(corner)):
        if len(accepted) == most:
            break
        value = float(left[i, i])
        if value > floor and (not accepted or accept(value / float(before[i]))):
            accepted.append(i)
            row = left[i, i:] / value**0.5
            left[i:, i:] -= row[:, None] * row
    if not accepted:  # all below the floor: take one, which clears it from what is missing
        accepted = [0]
    chosen = corner[accepted][:, accepted]
    chosen.diagonal().add_(1e-15 * float(chosen.diagonal().max()))
    return torch.tensor(accepted), torch.linalg.cholesky(chosen)
