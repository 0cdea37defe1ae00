"""Preconditioned conjugate gradients, with honest residuals.

Source: Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed. (2003),
algorithm 9.1; replacement of the recursive residual by the true one after
H. A. van der Vorst and Q. Ye, SIAM J. Sci. Comput. 22, 835 (2000).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import FitError, NotPositiveDefiniteError
from ..linear import LinearOperator
from ..preconditioners import Preconditioner

# The residual is computed anew so often, and before convergence is believed.
REPLACE_EVERY = 50
# Iterations in which the residual has to halve at least once.
PATIENCE = 300


@dataclass(frozen=True)
class Solution:
    """The outcome of an iterative solution.

    Attributes
    ----------
    x : (n,) or (n, m) tensor
    converged : bool
    n_iter : int
    residuals : list of float
        Norm of the residual over that of the right-hand side before each
        iteration and after the last; of several right-hand sides, the largest.
    reason : str
        Why it ended.
    """

    x: Tensor
    converged: bool
    n_iter: int
    residuals: list[float] = field(repr=False)
    reason: str = ""

    def require_convergence(self) -> "Solution":
        """This solution, if it converged.

        Raises
        ------
        FitError
            With the reason and what to try.
        """
        if not self.converged:
            raise FitError(f"conjugate gradients did not converge: {self.reason}")
        return self


def cg(
    operator: LinearOperator,
    b: Tensor,
    *,
    preconditioner: Preconditioner | None = None,
    x0: Tensor | None = None,
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_iter: int | None = None,
    callback: Callable[[int, Tensor, float], bool | None] | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A.

    Parameters
    ----------
    operator : LinearOperator
    b : (n,) or (n, m) tensor
        One right-hand side, or m that are solved side by side.
    preconditioner : Preconditioner, optional
    x0 : tensor, optional
        Start; zero by default.
    rtol, atol : float
        Converged when the norm of each residual is below
        ``max(rtol * |b|, atol)``, checked with the true residual.
    max_iter : int, optional
        10 n by default: rounding makes more than n necessary.
    callback : callable(n_iter, x, residual), optional
        Called after each iteration; ends the solution where it returns True.

    Returns
    -------
    Solution
        Also where it did not converge; see `Solution.require_convergence`.

    Raises
    ------
    NotPositiveDefiniteError
        If a direction of negative curvature is met.
    """
    size = b.norm(dim=0)
    target = torch.clamp(rtol * size, min=atol)
    size = torch.where(size > 0, size, torch.ones_like(size))
    apply = preconditioner.solve if preconditioner is not None else lambda r: r
    max_iter = 10 * b.shape[0] if max_iter is None else max_iter
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - operator.matmul(x)
    residuals, fresh = [float((r.norm(dim=0) / size).max())], True
    z = apply(r)
    p, rz = z.clone(), _dot(r, z)
    for n_iter in range(max_iter + 1):
        if bool((r.norm(dim=0) <= target).all()):
            if fresh:
                return Solution(x, True, n_iter, residuals, "converged")
            r, fresh = b - operator.matmul(x), True
            if bool((r.norm(dim=0) <= target).all()):
                return Solution(x, True, n_iter, residuals, "converged")
            z = apply(r)
            p, rz = z.clone(), _dot(r, z)
        if n_iter == max_iter:
            break
        if stalled(residuals):
            return Solution(x, False, n_iter, residuals, _explain_stall(residuals))
        step = operator.matmul(p)
        curvature = _dot(p, step)
        _check_curvature(curvature, rz, n_iter)
        alpha = rz / torch.where(curvature > 0, curvature, torch.ones_like(curvature))
        x += alpha * p
        fresh = (n_iter + 1) % REPLACE_EVERY == 0
        r = b - operator.matmul(x) if fresh else r - alpha * step
        residuals.append(float((r.norm(dim=0) / size).max()))
        if callback and callback(n_iter + 1, x, residuals[-1]):
            return Solution(x, True, n_iter + 1, residuals, "ended by the callback")
        z = apply(r)
        new = _dot(r, z)
        p = z + (new / torch.where(rz > 0, rz, torch.ones_like(rz))) * p
        rz = new
    return Solution(x, False, max_iter, residuals, f"{max_iter} iterations left the residual at {residuals[-1]:.2g}")


def stalled(residuals: list[float]) -> bool:
    """Whether the best residual has not halved in the last PATIENCE iterations."""
    if len(residuals) <= PATIENCE:
        return False
    return min(residuals[-PATIENCE:]) > 0.5 * min(residuals[:-PATIENCE])


def _explain_stall(residuals: list[float]) -> str:
    best = min(residuals)
    if best < 1e-8:
        return (
            f"the residual stays at {best:.1e}, which is what double precision gives for this matrix; "
            "ask for a larger tolerance, or raise the noise"
        )
    return (
        f"the residual has not halved in {PATIENCE} iterations and stays at {best:.2g}; "
        "use a preconditioner of higher rank, raise the noise, or shorten the length scale"
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _check_curvature(curvature: Tensor, rz: Tensor, n_iter: int) -> None:
    if bool(((curvature <= 0) & (rz != 0)).any()) or not bool(curvature.isfinite().all()):
        raise NotPositiveDefiniteError(
            f"the matrix is not positive definite (curvature {float(curvature.min()):.3g} in iteration {n_iter + 1}); "
            "raise the noise (say tenfold), shorten the length scale, or remove geometries that are nearly equal"
        )
