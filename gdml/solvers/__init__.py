"""Solution of symmetric positive definite systems."""

from .cg import Solution, State, cg
from .cholesky import cholesky_factor, cholesky_solve

__all__ = ["Solution", "State", "cg", "cholesky_factor", "cholesky_solve"]
