"""One force field for several states of the same atoms: charges, spins, levels of theory."""

from .data import read_states
from .force_field import StatesForceField
from .training import fit_states

__all__ = ["StatesForceField", "fit_states", "read_states"]
