"""Ways to evaluate the one contraction."""

from .gemm import GemmContraction

__all__ = ["GemmContraction"]
