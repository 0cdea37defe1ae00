"""Permutations of equal atoms under which the energy does not change."""

from .group import PermutationGroup
from .molecules import molecular_group

__all__ = ["PermutationGroup", "molecular_group"]
