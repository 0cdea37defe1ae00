"""Ways to evaluate the one contraction."""

import numpy as np
from torch import Tensor

from ..kernels import RadialKernel
from ..symmetry import Action
from .base import Contraction
from .gemm import GemmContraction
from .lattice import LatticeContraction

# Translations, and entries in all images of a descriptor, from which on Fourier sums are
# faster; benchmarks/crystals.py has the figures.
MANY_TRANSLATIONS, MANY_ENTRIES = 4, 50_000


def contraction(kernel: RadialKernel, y: Tensor, action: Action) -> Contraction:
    """The fastest way for a group: Fourier sums where it has many translations, or else written out."""
    # In the smallest cells different translations may permute the entries equally.
    many = len(np.unique(action.translations, axis=0)) >= max(MANY_TRANSLATIONS, len(action.translations))
    many = many and action.order * action.size >= MANY_ENTRIES
    return (LatticeContraction if many else GemmContraction)(kernel, y, action)


__all__ = ["Contraction", "GemmContraction", "LatticeContraction", "contraction"]
