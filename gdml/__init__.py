"""Kernel force fields for molecules and crystals from ten to a few thousand reference geometries.

>>> import gdml
>>> dataset = gdml.read("ethanol.extxyz")          # doctest: +SKIP
>>> force_field = gdml.fit(dataset)                # doctest: +SKIP
>>> energy, forces, _ = force_field.predict(dataset.positions[0])   # doctest: +SKIP

Energies are in eV, lengths in Å, everywhere.
"""

from importlib import import_module

from ._version import __version__

# Where each public name lives. They are imported on first use: torch takes two
# seconds to load, and the command line has to say how its threads wait before
# that.
_HOME = {
    "AutogradDescriptor": "descriptors",
    "Concatenated": "descriptors",
    "Baseline": "baselines",
    "CrystalGroup": "symmetry",
    "Dataset": "dataset",
    "Dihedrals": "descriptors",
    "ExponentialDistances": "descriptors",
    "ForceField": "force_field",
    "GDMLCalculator": "calculator",
    "GDMLError": "errors",
    "GDMLWarning": "errors",
    "InternalCoordinates": "descriptors",
    "InverseDistances": "descriptors",
    "ManyBody": "descriptors",
    "Metrics": "metrics",
    "Observations": "observations",
    "PeriodicInverseDistances": "descriptors",
    "PermutationGroup": "symmetry",
    "PowerSpectrum": "descriptors",
    "Prediction": "force_field",
    "SideBySide": "descriptors",
    "SmoothInverseDistances": "descriptors",
    "StatesForceField": "states",
    "WeightedDistances": "descriptors",
    "contributions": "attribution",
    "crystal_group": "symmetry",
    "direct_product": "symmetry",
    "distill": "distillation",
    "evaluate": "metrics",
    "explore": "landscape",
    "fit": "training",
    "fit_observations": "observations",
    "fit_states": "states",
    "learn_actively": "active",
    "learn_metric": "metric",
    "learning_curve": "curves",
    "load": "models",
    "molecular_group": "symmetry",
    "phonons": "lattice_dynamics",
    "read": "dataset",
    "read_states": "states",
    "relax": "minima",
    "select": "pool",
    "symmetrised_reference": "symmetry",
    "vibrations": "minima",
    "with_uncertainty": "uncertainty",
}

__all__ = ["__version__", *_HOME]


_MODULES = {"coarse", "data", "dynamics", "errors", "kernels", "plots"} | set(_HOME.values())


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'gdml' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
