"""Solution of symmetric positive definite systems."""

from .cg import Solution, cg
from .cholesky import cholesky_factor, cholesky_solve

__all__ = ["Solution", "cg", "cholesky_factor", "cholesky_solve"]
