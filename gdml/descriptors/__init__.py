"""Maps from a geometry to a vector, with their Jacobians."""

from ..errors import FormatError
from .inverse_distances import InverseDistances, PairDescriptor, PairFeatures
from .periodic import PeriodicFeatures, PeriodicInverseDistances, SmoothInverseDistances
from .side_by_side import SideBySide

DESCRIPTORS = {cls.name: cls for cls in (InverseDistances, PeriodicInverseDistances, SmoothInverseDistances)}


def from_recipe(recipe: dict, n_atoms: int) -> PairDescriptor | SideBySide:
    """The descriptor that a model file describes.

    Raises
    ------
    FormatError
        If this version does not know it.
    """
    settings = dict(recipe)
    name = settings.pop("name")
    if name == SideBySide.name:
        return SideBySide([from_recipe(part, n_atoms) for part in settings["parts"]], settings["weights"])
    if name not in DESCRIPTORS:
        raise FormatError(f"unknown descriptor {name!r}; update gdml")
    return DESCRIPTORS[name](n_atoms, **settings)


__all__ = [
    "InverseDistances",
    "PairDescriptor",
    "PairFeatures",
    "PeriodicFeatures",
    "PeriodicInverseDistances",
    "SideBySide",
    "SmoothInverseDistances",
    "from_recipe",
]
