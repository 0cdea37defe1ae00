"""Maps from a geometry to a vector, with their Jacobians."""

from .inverse_distances import InverseDistances, PairDescriptor, PairFeatures
from .periodic import PeriodicFeatures, PeriodicInverseDistances, SmoothInverseDistances
from .side_by_side import SideBySide

__all__ = [
    "InverseDistances",
    "PairDescriptor",
    "PairFeatures",
    "PeriodicFeatures",
    "PeriodicInverseDistances",
    "SideBySide",
    "SmoothInverseDistances",
]
