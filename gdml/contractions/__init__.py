"""Ways to evaluate the one contraction."""

import numpy as np
import torch
from torch import Tensor

from ..errors import DeviceError
from ..kernels import RadialKernel
from ..symmetry import Action, Environments
from .base import Contraction
from .gemm import GemmContraction
from .keops import KeopsContraction
from .lattice import LatticeContraction
from .local import LocalContraction

BACKENDS = {"gemm": GemmContraction, "keops": KeopsContraction, "lattice": LatticeContraction}
# Translations, and entries in all images of a descriptor, from which on Fourier sums are
# faster; benchmarks/crystals.py has the figures.
MANY_TRANSLATIONS, MANY_ENTRIES = 4, 50_000


def contraction(
    kernel: RadialKernel,
    y: Tensor,
    action: Action | Environments,
    backend: str = "auto",
    dtype: torch.dtype = torch.float64,
    queries: Environments | None = None,
) -> Contraction:
    """The contraction for references y (n, D) on their device, in the way asked for or by `choose_backend`.

    Raises
    ------
    DeviceError
        For an unknown name, Fourier sums where there are no translations, and KeOps
        without a compiler.
    """
    if isinstance(action, Environments):
        if check_backend(backend) not in ("auto", "gemm"):
            raise DeviceError(f"kernels that compare atoms are sums of matrix products; use 'gemm', not {backend!r}")
        return LocalContraction(kernel, y, action, dtype, queries)
    if backend == "auto":
        backend = choose_backend(action)
    check_backend(backend)
    if backend == "lattice" and not 1 < _different(action) == len(action.translations):
        raise DeviceError(
            "backend='lattice' sums over the translations of a crystal, and there are none, or they permute the pairs "
            "of atoms equally; use 'gemm'"
        )
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


def choose_backend(action: Action) -> str:
    """The fastest way: Fourier sums where there are many translations, else matrix products.

    KeOps is not chosen: on a CPU it was slower for descriptors of 3 to 2016 entries, and on a
    GPU it has not been measured; benchmarks/gpu.py has the figures.
    """
    many = _different(action) >= max(MANY_TRANSLATIONS, len(action.translations))
    return "lattice" if many and action.order * action.size >= MANY_ENTRIES else "gemm"


def _different(action: Action) -> int:
    """Translations that differ in how they permute the entries, as in the smallest cells not all do."""
    return len(np.unique(action.translations, axis=0))


__all__ = [
    "BACKENDS",
    "Contraction",
    "GemmContraction",
    "KeopsContraction",
    "LatticeContraction",
    "LocalContraction",
    "check_backend",
    "choose_backend",
    "contraction",
]
