"""Coarse-grained force fields: beads from atoms, priors, fits to noisy forces, dynamics, and free energies."""

from .fitting import WIDTH, Scales, choose_scales, default_descriptor, fit, fit_ensemble, stratified
from .free_energy import FreeEnergy, free_energy
from .mapping import Mapping
from .motions import Motions
from .noise import estimate_noise
from .prior import angles_of, dihedrals_of, fit_prior
from .sampling import sample
from .turning import turned

__all__ = [
    "WIDTH",
    "FreeEnergy",
    "Mapping",
    "Motions",
    "Scales",
    "angles_of",
    "choose_scales",
    "default_descriptor",
    "dihedrals_of",
    "estimate_noise",
    "fit",
    "fit_ensemble",
    "fit_prior",
    "free_energy",
    "sample",
    "stratified",
    "turned",
]
