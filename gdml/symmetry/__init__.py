"""Permutations of equal atoms under which the energy does not change."""

from .action import Action, characters
from .crystals import CrystalGroup, crystal_group, symmetrised_reference
from .environments import Environments
from .group import PermutationGroup, direct_product
from .molecules import molecular_group

__all__ = [
    "Action",
    "CrystalGroup",
    "Environments",
    "PermutationGroup",
    "characters",
    "crystal_group",
    "direct_product",
    "molecular_group",
    "symmetrised_reference",
]
