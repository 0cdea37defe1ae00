"""Ways to evaluate the one contraction."""

import numpy as np
import torch
from torch import Tensor

from ..errors import DeviceError
from ..kernels import RadialKernel
from ..symmetry import Action
from .base import Contraction
from .gemm import GemmContraction
from .keops import KeopsContraction, find_compiler
from .lattice import LatticeContraction

BACKENDS = {"gemm": GemmContraction, "keops": KeopsContraction, "lattice": LatticeContraction}
# Translations, and entries in all images of a descriptor, from which on Fourier sums are
# faster; benchmarks/crystals.py has the figures.
MANY_TRANSLATIONS, MANY_ENTRIES = 4, 50_000
# Entries up to which, and images of references from which on KeOps' sums are faster than
# matrix products by more than its compilation costs; benchmarks/gpu.py has the figures.
FEW_ENTRIES, MANY_IMAGES = {"cpu": 3, "cuda": 0}, 20_000


def contraction(
    kernel: RadialKernel, y: Tensor, action: Action, backend: str = "auto", dtype: torch.dtype = torch.float64
) -> Contraction:
    """The contraction for references y (n, D) on their device, in the way asked for or by `choose_backend`.

    Raises
    ------
    DeviceError
        For an unknown name, Fourier sums where there are no translations, and KeOps
        without a compiler.
    """
    if backend == "auto":
        backend = choose_backend(action, len(y), y.device.type)
    check_backend(backend)
    if backend == "lattice" and len(action.translations) == 1:
        raise DeviceError("backend='lattice' sums over the translations of a crystal, and there are none; use 'gemm'")
    return BACKENDS[backend](kernel, y, action, dtype)


def check_backend(backend: str) -> str:
    """The name of a way to compute, if there is one of this name.

    Raises
    ------
    DeviceError
    """
    if backend not in ("auto", *BACKENDS):
        raise DeviceError(f"the backend is 'auto', {', '.join(map(repr, BACKENDS))}, not {backend!r}")
    return backend


def choose_backend(action: Action, n_references: int, device: str = "cpu") -> str:
    """The fastest way for a group of order |S|, D entries and n references on a kind of device.

    Fourier sums where there are many translations; KeOps for very short descriptors
    of very many references, where it can compile; else matrix products.
    """
    # In the smallest cells different translations may permute the entries equally.
    many = len(np.unique(action.translations, axis=0)) >= max(MANY_TRANSLATIONS, len(action.translations))
    if many and action.order * action.size >= MANY_ENTRIES:
        return "lattice"
    is_short = action.size <= FEW_ENTRIES.get(device, 0) and n_references * action.order >= MANY_IMAGES
    return "keops" if is_short and find_compiler() else "gemm"


__all__ = [
    "BACKENDS",
    "Contraction",
    "GemmContraction",
    "KeopsContraction",
    "LatticeContraction",
    "check_backend",
    "choose_backend",
    "contraction",
]
