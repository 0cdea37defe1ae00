"""Maps from a geometry to a vector, with their Jacobians."""

from .inverse_distances import InverseDistances, PairFeatures

__all__ = ["InverseDistances", "PairFeatures"]
