"""Solution in closed form, in the memory of the matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import NotPositiveDefiniteError

BLOCK = 768


def cholesky_factor(
    matrix: Tensor, *, block: int = BLOCK, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Lower Cholesky factor of a symmetric matrix, in the matrix's own memory.

    LAPACK through torch needs a second matrix for the result; block by block
    (factorise the diagonal block, solve for the column below it, update what is
    right of it) one is enough, and the work can be watched and interrupted.

    Parameters
    ----------
    matrix : (n, n) tensor
        Only its lower triangle is read; overwritten.
    block : int
    progress : callable(done, total), optional

    Returns
    -------
    (n, n) tensor
        The matrix, its lower triangle now the factor; above is what was there.

    Raises
    ------
    NotPositiveDefiniteError
    """
    n = len(matrix)
    for start in range(0, n, block):
        stop = min(start + block, n)
        corner = matrix[start:stop, start:stop]
        factor, info = torch.linalg.cholesky_ex(corner)
        if info:
            raise NotPositiveDefiniteError(_explain(start + int(info) - 1, n, matrix))
        corner.copy_(factor)
        if stop < n:
            below = matrix[stop:, start:stop]
            below.copy_(torch.linalg.solve_triangular(factor, below.mT, upper=False).mT)
            for column in range(stop, n, block):
                end = min(column + block, n)
                left = matrix[column:, start:stop]
                matrix[column:, column:end].addmm_(left, left[: end - column].mT, alpha=-1)
        if progress:
            progress(stop, n)
    return matrix


def cholesky_solve(factor: Tensor, right: Tensor, *, block: int = BLOCK) -> Tensor:
    """Solve L Lᵀ x = b for x (n,) from the lower factor L (n, n), without a copy of it."""
    n, x = len(factor), right.clone()
    starts = range(0, n, block)
    for start in starts:
        here, rest = slice(start, start + block), slice(start + block, n)
        x[here] = _solve_corner(factor[here, here], x[here])
        x[rest] -= factor[rest, here] @ x[here]
    for start in reversed(starts):
        here, rest = slice(start, start + block), slice(start + block, n)
        x[here] -= factor[rest, here].mT @ x[rest]
        x[here] = _solve_corner(factor[here, here].mT, x[here], upper=True)
    return x


def _solve_corner(corner: Tensor, right: Tensor, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(corner, right[:, None], upper=upper)[:, 0]


def _explain(row: int, n: int, matrix: Tensor) -> str:
    if not matrix.diagonal().isfinite().all():
        return "the kernel matrix has entries that are not finite; is the length scale absurdly small?"
    return (
        f"the kernel matrix is not positive definite (found at row {row} of {n}); "
        "raise the noise (say tenfold), shorten the length scale, or remove geometries that are "
        "nearly equal to others"
    )
