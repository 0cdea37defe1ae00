"""What a low-rank factor leaves out, by geometries and their nearest neighbours."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import FitError
from ..hardware import tile
from ..linear import LinearOperator
from ..processes import Shares

# Added to the diagonal of the rest, in units of its mean: the rows of the factor's
# pivots are zero. Measured: 0.01 to 0.1 take about as many iterations.
RIDGE = 0.03
# Numbers in the conditioning sets that are treated at a time.
TILE = 4 * 1024 * 1024
ARRAYS = 4  # of this size at a time
COLUMNS = 128  # of the factor that are treated together


class Uniform:
    """μ I, for a rest of which only the mean of the diagonal is known.

    Parameters
    ----------
    mu : float
    """

    def __init__(self, mu: float):
        self.root = mu**0.5

    def whiten(self, r: Tensor) -> Tensor:
        """Wᵀ r for r (n, m), with W Wᵀ the inverse."""
        return r / self.root

    def unwhiten(self, z: Tensor) -> Tensor:
        """W z for z (n, m)."""
        return z / self.root

    def whiten_(self, factor: Tensor) -> None:
        """Wᵀ F for F (n, k), in its memory."""
        factor.div_(self.root)


class Neighbours:
    r"""An approximate inverse of the rest R = A - F Fᵀ, from blocks and their nearest neighbours.

    The inverse is W Wᵀ with W triangular in a random order of the blocks, and
    non-zero only between a block and the `count` nearest to it of those
    before. Column block i of W solves the system of these alone,

    .. math:: R_{cc} = C C^T, \qquad W_{ci} = C^{-T} e_i ,

    which is the best that a matrix of this shape can do in the sense of
    Kullback and Leibler, and positive definite whatever R is.

    Source: V. Vecchia, J. R. Stat. Soc. B 50, 297 (1988); on top of a Nyström
    factor: S. Zhao, T. Xu, H. Huang, E. Chow, Y. Xi, arXiv 2304.05460.

    Parameters
    ----------
    operator : LinearOperator
        A.
    factor : (n, k) tensor
        F.
    ridge : (L,) tensor
        Added to the diagonal of R, for each unknown of a block.
    count : int
    generator : torch.Generator
        Of the order.
    """

    def __init__(self, operator: LinearOperator, factor: Tensor, ridge: Tensor, count: int, generator: torch.Generator):
        self.size, self.blocks, self.unknowns = operator.block_size, operator.shares, operator.unknowns
        n_blocks = self.blocks.n
        order = self.blocks.team.agree(lambda: torch.randperm(n_blocks, generator=generator)).to(factor.device)
        self.sets, self.valid = _nearest_before(operator.distances, self.blocks, order, min(count, n_blocks - 1))
        members, width = self.sets.shape[1], self.sets.shape[1] * self.size
        self.weights = factor.new_empty(len(self.sets), width, self.size)
        step = max(1, tile(factor.device, TILE, ARRAYS) // (width * (width + factor.shape[1])))
        if self.blocks.team.size > 1 and members > 1:
            # Rows of the factor that belong to others take as much memory as its own: the fewer
            # steps, the fewer rows have to come twice.
            step = max(step, -(-self.blocks.n // self.blocks.team.size) // members)
        self.order, self.step = order, step
        own, self._is_sound = torch.arange(len(self.sets), device=factor.device), True
        for some in self.blocks.in_step(own, self.blocks.team.least(step)):
            self.weights[some] = self._solve(operator, factor, ridge, some)
        if self.blocks.team.most(not self._is_sound):
            raise FitError("what the preconditioner leaves out is not positive definite; raise the noise, or its rank")

    def _solve(self, operator: LinearOperator, factor: Tensor, ridge: Tensor, some: Tensor) -> Tensor:
        """W's column blocks for some of the blocks, (b, width, L)."""
        sets, size = self.sets[some], self.size
        b, members = sets.shape
        valid = self.valid[some].repeat_interleave(size, 1)
        rest = _symmetric_blocks(operator, sets)
        rest.diagonal(dim1=1, dim2=2).add_(operator.noise)
        rows = self.blocks.fetch(factor.view(-1, size, factor.shape[1]), sets.flatten())
        rows = rows.reshape(b, members * size, factor.shape[1])
        rest.baddbmm_(rows, rows.mT, alpha=-1)
        # Those that do not exist are left out: no coupling, and no right-hand side.
        rest *= valid[:, :, None] & valid[:, None, :]
        rest.diagonal(dim1=1, dim2=2).add_(~valid)
        last = rest.new_zeros(members * size, size)
        last[-size:].diagonal(dim1=0, dim2=1).fill_(1.0)
        triangles = _cholesky(rest, ridge.repeat(members))
        self._is_sound &= triangles is not None
        return 0.0 if triangles is None else torch.linalg.solve_triangular(triangles.mT, last, upper=True)

    def whiten(self, r: Tensor) -> Tensor:
        """Wᵀ r for r (n, m)."""
        if self.sets.shape[1] == 1:
            rows = r.view(-1, self.size, r.shape[1])
        else:
            rows = self.unknowns.gather(r).view(-1, self.size, r.shape[1])[self.sets].flatten(1, 2)
        return (self.weights.mT @ rows).flatten(0, 1)

    def whiten_(self, factor: Tensor) -> None:
        """Wᵀ F for F (n, k), in its memory."""
        if self.blocks.team.size > 1:
            self._whiten_shared(factor)
            return
        blocks = factor.view(-1, self.size, factor.shape[1])
        # Last first, so that what comes before is found untouched.
        for some in self.order.flip(0).split(self.step):
            blocks[some] = self.weights[some].mT @ blocks[self.sets[some]].flatten(1, 2)

    def _whiten_shared(self, factor: Tensor) -> None:
        """The same by columns, whose rows come from other processes: in turn, blocks would be waited for."""
        blocks, (fetch, place) = factor.view(-1, self.size, factor.shape[1]), self.blocks.halo(self.sets.flatten())
        step = max(1, tile(factor.device, TILE, ARRAYS) // (4 * self.weights.shape[1] * COLUMNS))
        parts = list(zip(place.view_as(self.sets).split(step), self.weights.split(step)))
        for columns in blocks.split(COLUMNS, 2):
            near, found = fetch(columns).contiguous(), columns.new_empty(columns.shape)
            for (rows, weights), into in zip(parts, found.split(step)):
                torch.bmm(weights.mT, near[rows].flatten(1, 2), out=into)
            columns.copy_(found)

    def unwhiten(self, z: Tensor) -> Tensor:
        """W z for z (n, m)."""
        spread = self.weights @ z.view(-1, self.size, z.shape[1])
        if self.sets.shape[1] == 1:
            return spread.view_as(z)
        result = z.new_zeros(self.blocks.n, self.size, z.shape[1])
        result.index_add_(0, self.sets.flatten(), spread.view(-1, self.size, z.shape[1]))
        return self.blocks.sum(result)[self.blocks.own].view_as(z)


def _nearest_before(
    distances: Callable[[Tensor], Tensor], blocks: Shares, order: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """For each own block the nearest before it in the order and itself, (m, count + 1), and which of them exist."""
    position = torch.argsort(order)
    own = torch.arange(blocks.own.start, blocks.own.stop, device=order.device)
    nearest, exist = [own[:, None]], [torch.ones_like(own[:, None], dtype=torch.bool)]
    if count:
        parts = own.split(max(1, tile(order.device, TILE, ARRAYS) // blocks.n))
        near = [
            distances(some).masked_fill(position >= position[some, None], float("inf")).topk(count, largest=False)
            for some in parts
        ]
        nearest.insert(0, torch.cat([found.indices for found in near]))
        exist.insert(0, torch.cat([found.values.isfinite() for found in near]))
    return torch.cat(nearest, 1), torch.cat(exist, 1)


def _symmetric_blocks(operator: LinearOperator, sets: Tensor) -> Tensor:
    """The matrix between the members of each set, (b, members L, members L), without the noise."""
    (b, members), size = sets.shape, operator.block_size
    if members == 1:
        return operator.diagonal_blocks()[sets[:, 0] - operator.shares.own.start].clone()
    left, right = torch.tril_indices(members, members, device=sets.device)
    found = operator.blocks(sets[:, left].flatten(), sets[:, right].flatten()).view(b, len(left), size, size)
    result = found.new_empty(b, members, members, size, size)
    result[:, right, left] = found.mT
    result[:, left, right] = found
    return result.transpose(2, 3).reshape(b, members * size, members * size)


def _cholesky(rest: Tensor, ridge: Tensor) -> Tensor | None:
    """Cholesky factors of a batch, with as many ridges on the diagonal as it takes; None where none will do."""
    for multiple in (1.0, 9.0, 90.0, 900.0):
        rest.diagonal(dim1=1, dim2=2).add_(multiple * ridge)
        factors, info = torch.linalg.cholesky_ex(rest)
        if not info.any():
            return factors
    return None
