"""Kernel force fields for molecules from ten to a few thousand reference geometries.

>>> import gdml
>>> dataset = gdml.read("ethanol.extxyz")          # doctest: +SKIP
>>> force_field = gdml.fit(dataset)                # doctest: +SKIP
>>> energy, forces, _ = force_field.predict(dataset.positions[0])   # doctest: +SKIP

Energies are in eV, lengths in Å, everywhere.
"""

from ._version import __version__
from .calculator import GDMLCalculator
from .dataset import Dataset, read
from .descriptors import InverseDistances
from .errors import GDMLError, GDMLWarning
from .force_field import ForceField, Prediction, load
from .metrics import Metrics, evaluate
from .symmetry import PermutationGroup, molecular_group
from .training import fit

__all__ = [
    "Dataset",
    "ForceField",
    "GDMLCalculator",
    "GDMLError",
    "GDMLWarning",
    "InverseDistances",
    "Metrics",
    "PermutationGroup",
    "Prediction",
    "__version__",
    "evaluate",
    "fit",
    "load",
    "molecular_group",
    "read",
]
