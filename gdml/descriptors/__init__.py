"""Maps from a geometry to a vector, with their Jacobians."""

from collections.abc import Callable

from ..errors import FitError, FormatError
from .autograd import AutogradDescriptor, AutogradFeatures
from .base import Descriptor, Features
from .concatenated import Concatenated, ConcatenatedFeatures
from .dihedrals import Dihedrals
from .distances import ExponentialDistances, WeightedDistances
from .internal import InternalCoordinates
from .inverse_distances import InverseDistances, PairDescriptor, PairFeatures
from .many_body import ManyBody, ManyBodyFeatures
from .periodic import PeriodicFeatures, PeriodicInverseDistances, SmoothInverseDistances
from .power_spectrum import PowerSpectrum
from .side_by_side import SideBySide

DESCRIPTORS = {
    cls.name: cls
    for cls in (
        InverseDistances,
        ExponentialDistances,
        WeightedDistances,
        PeriodicInverseDistances,
        SmoothInverseDistances,
    )
}


BY_NAME: dict[str, Callable[[int], Descriptor]] = {
    InverseDistances.name: InverseDistances,
    InternalCoordinates.name: lambda n_atoms: InternalCoordinates(),
    ManyBody.name: lambda n_atoms: ManyBody(),
    PowerSpectrum.name: lambda n_atoms: PowerSpectrum(),
}


def by_name(name: str, n_atoms: int) -> Descriptor:
    """The descriptor called `name`, as it is by default.

    Raises
    ------
    FitError
        If there is none.
    """
    if not isinstance(name, str):
        raise FitError(f"a descriptor is an object or a name, not {name!r}; wrap a function in AutogradDescriptor")
    if name not in BY_NAME:
        raise FitError(f"unknown descriptor {name!r}; known by name are auto, {', '.join(sorted(BY_NAME))}")
    return BY_NAME[name](n_atoms)


def from_recipe(recipe: dict, n_atoms: int) -> Descriptor:
    """The descriptor that a model file describes.

    Raises
    ------
    FormatError
        If this version does not know it.
    """
    settings = dict(recipe)
    name = settings.pop("name")
    if name == PowerSpectrum.name:
        numbers = settings.pop("numbers")
        return PowerSpectrum(**{key: _tuples(value) for key, value in settings.items()}).for_atoms(numbers)
    if name == Concatenated.name:
        return Concatenated([from_recipe(part, n_atoms) for part in settings["parts"]], settings["weights"])
    if name == SideBySide.name:
        return SideBySide([from_recipe(part, n_atoms) for part in settings["parts"]], settings["weights"])
    if name == ManyBody.name:
        numbers = settings.pop("numbers")
        settings |= {key: tuple(settings[key]) for key in ("elements", "scales")}
        return ManyBody(**settings).for_atoms(numbers)
    if name in (InternalCoordinates.name, Dihedrals.name):
        kind = InternalCoordinates if name == InternalCoordinates.name else Dihedrals
        return kind(**{key: _tuples(value) for key, value in settings.items()})
    if name not in DESCRIPTORS:
        raise FormatError(f"unknown descriptor {name!r}; update gdml")
    return DESCRIPTORS[name](n_atoms, **settings)


def _tuples(value: object) -> object:
    """Lists, and lists in them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


__all__ = [
    "BY_NAME",
    "AutogradDescriptor",
    "AutogradFeatures",
    "Concatenated",
    "ConcatenatedFeatures",
    "Descriptor",
    "Dihedrals",
    "ExponentialDistances",
    "Features",
    "InternalCoordinates",
    "InverseDistances",
    "ManyBody",
    "ManyBodyFeatures",
    "PairDescriptor",
    "PairFeatures",
    "PeriodicFeatures",
    "PeriodicInverseDistances",
    "PowerSpectrum",
    "SideBySide",
    "SmoothInverseDistances",
    "WeightedDistances",
    "by_name",
    "from_recipe",
]
