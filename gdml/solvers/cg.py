"""Preconditioned conjugate gradients, with honest residuals.

Source: Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed. (2003),
algorithm 9.1; replacement of the recursive residual by the true one after
H. A. van der Vorst and Q. Ye, SIAM J. Sci. Comput. 22, 835 (2000).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import FitError, NotPositiveDefiniteError
from ..linear import LinearOperator
from ..preconditioners import Preconditioner

# The residual is computed anew so often, and before convergence is believed.
REPLACE_EVERY = 50
# Iterations in which the residual has to halve at least once.
PATIENCE = 300
# A stall below this residual is the arithmetic's.
EXHAUSTED = 1e-8


@dataclass
class State:
    """Where an iteration stands; with it, `cg` goes on as if it had not been interrupted.

    Attributes
    ----------
    x, r : (n,) or (n, m) tensors
        The iterate and its residual.
    p : tensor or None
        The last direction; None before the first.
    rz : () or (m,) tensor or None
        Product of the last residual but one with its preconditioned self.
    residuals : list of float
        As in `Solution`.
    fresh : bool
        Whether r is the true residual, not that of the recursion.
    """

    x: Tensor
    r: Tensor
    p: Tensor | None = None
    rz: Tensor | None = None
    residuals: list[float] = field(default_factory=list)
    fresh: bool = True

    @classmethod
    def at(cls, operator: LinearOperator, b: Tensor, x: Tensor | None = None) -> "State":
        """The start from x (zero without), as if nothing had been done before."""
        return cls(torch.zeros_like(b), b.clone()) if x is None else cls(x.clone(), b - operator.matmul(x))

    def share(self, operator: LinearOperator) -> "State":
        """Of a whole state, the part of this process, on the operator's device."""
        x, r, p = (v[operator.unknowns.own].to(operator.device) for v in (self.x, self.r, self.p))
        return replace(self, x=x, r=r, p=p, rz=self.rz.to(operator.device))

    @property
    def n_iter(self) -> int:
        return len(self.residuals) - 1


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

    @property
    def is_exhausted(self) -> bool:
        """Whether it is the arithmetic that allows no better residual."""
        return not self.converged and min(self.residuals) < EXHAUSTED

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
    start: State | None = None,
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_iter: int | None = None,
    callback: Callable[[State], bool | None] | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A.

    Parameters
    ----------
    operator : LinearOperator
    b : (n,) or (n, m) tensor
        One right-hand side, or m that are solved side by side.
    preconditioner : Preconditioner, optional
    start : State, optional
        Where to start or to go on; see `State.at`. Zero by default. It moves with
        the iteration.
    rtol, atol : float
        Converged when the norm of each residual is below
        ``max(rtol * |b|, atol)``, checked with the true residual.
    max_iter : int, optional
        10 n by default: rounding makes more than n necessary.
    callback : callable(state), optional
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
    size = operator.norm(b)
    target = torch.clamp(rtol * size, min=atol)
    size = torch.where(size > 0, size, torch.ones_like(size))
    max_iter = 10 * operator.shape[0] if max_iter is None else max_iter
    state = State.at(operator, b) if start is None else start
    norm = operator.norm(state.r)
    if not state.residuals:
        state.residuals.append(float((norm / size).max()))

    def ended(converged: bool, reason: str) -> Solution:
        return Solution(state.x, converged, state.n_iter, state.residuals, reason)

    while True:
        if bool((norm <= target).all()):
            if not state.fresh:
                state.r, state.fresh, state.p = b - operator.matmul(state.x), True, None
                norm = operator.norm(state.r)
            if bool((norm <= target).all()):
                return ended(True, "converged")
        if state.n_iter >= max_iter:
            return ended(False, f"{max_iter} iterations left the residual at {state.residuals[-1]:.2g}")
        if stalled(state.residuals):
            return ended(False, _explain_stall(state.residuals))
        _step(operator, b, preconditioner, state)
        norm = operator.norm(state.r)
        state.residuals.append(float((norm / size).max()))
        if callback and callback(state):
            return ended(True, "ended by the callback")


def _step(operator: LinearOperator, b: Tensor, preconditioner: Preconditioner | None, state: State) -> None:
    """One iteration: a direction, and the point with the smallest error along it."""
    z = preconditioner.solve(state.r) if preconditioner is not None else state.r
    rz = operator.dot(state.r, z)
    state.p = z.clone() if state.p is None else z + _ratio(rz, state.rz) * state.p
    state.rz = rz
    product = operator.matmul(state.p)
    curvature = operator.dot(state.p, product)
    _check_curvature(curvature, rz, len(state.residuals))
    step = _ratio(rz, curvature)
    state.x = state.x + step * state.p
    state.fresh = len(state.residuals) % REPLACE_EVERY == 0
    state.r = b - operator.matmul(state.x) if state.fresh else state.r - step * product


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and a where b is zero: that of a right-hand side that is solved already."""
    return a / torch.where(b > 0, b, torch.ones_like(b))


def stalled(residuals: list[float]) -> bool:
    """Whether the best residual has not halved in the last PATIENCE iterations."""
    if len(residuals) <= PATIENCE:
        return False
    return min(residuals[-PATIENCE:]) > 0.5 * min(residuals[:-PATIENCE])


def _explain_stall(residuals: list[float]) -> str:
    best = min(residuals)
    if best < EXHAUSTED:
        return (
            f"the residual stays at {best:.1e}, which is what double precision gives for this matrix; "
            "ask for a larger tolerance, or raise the noise"
        )
    return (
        f"the residual has not halved in {PATIENCE} iterations and stays at {best:.2g}; "
        "use a preconditioner of higher rank, raise the noise, or shorten the length scale"
    )


def _check_curvature(curvature: Tensor, rz: Tensor, iteration: int) -> None:
    if bool(((curvature <= 0) & (rz != 0)).any()) or not bool(curvature.isfinite().all()):
        raise NotPositiveDefiniteError(
            f"the matrix is not positive definite (curvature {float(curvature.min()):.3g} in iteration {iteration}); "
            "raise the noise (say tenfold), shorten the length scale, or remove geometries that are nearly equal"
        )
