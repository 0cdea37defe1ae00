r"""The contraction of 1-jets as a symbolic reduction of KeOps, compiled for each size.

Of each pair (x, y) the products x·y and x·w are formed, all else is scalar
until the sum: no tile of (queries, references) is ever stored. As everywhere,
distances come from ``|x|² + |y|² - 2 x·y``, so that two kinds of products remain.
Both are needed where the sum's vectors y and w are, so that KeOps' scheme for
long vectors, which wants a single product that the sum does not use, cannot
apply: this way is for descriptors of up to some dozens of entries.

Cost for one query and reference, with the group acting on the queries: 8 D flops
and an exponential; numbers move only along rows and columns.

Source: B. Charlier, J. Feydy, J. Glaunès, F.-D. Collin, G. Durif, J. Mach.
Learn. Res. 22, 74 (2021).
"""

import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from ..errors import DeviceError
from ..hardware import tile
from .base import Jet
from .gemm import ARRAYS, GemmContraction

TILE = 2**25  # numbers in the images of a few queries
SHOWN_AFTER = 1.0  # seconds of compilation


class KeopsContraction(GemmContraction):
    """Sums of a kernel and its derivatives over reference points and a group, never stored; matrices as by GEMM.

    Parameters as of `Contraction`.

    Raises
    ------
    DeviceError
        If there is no compiler.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._lazy = _lazy_tensor(self.y.device)

    def bind(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor], Jet]:
        w = (w / self.kernel.natural_length).to(self.dtype)
        c = None if c is None else c.to(self.dtype)
        step = tile(w.device, TILE, ARRAYS) // (self.order * (self.size + 2))
        self._compile(c, w)
        return self._in_tiles([lambda x: self._reduced(c, w, x)], step)

    def _compile(self, c: Tensor | None, w: Tensor) -> None:
        """Evaluate once, so that what KeOps cannot do fails here, and not in the middle of something."""
        formula = self.kernel.with_length_scale(1.0), self.size, self.dtype, c is None, w.device.type
        with _lock:
            if formula in _compiled:
                return
            try:
                name = str(self.dtype).removeprefix("torch.")
                with _shown(f"gdml: KeOps compiles for D = {self.size} and {name}, once on this machine"):
                    self._reduced(c, w, self.y[:1])
            except Exception as error:
                raise DeviceError(
                    f"KeOps could not compile its sums ({error}); mend the compiler, or use backend='gemm', which "
                    "computes the same"
                ) from error
            _compiled.add(formula)

    def _reduced(self, c: Tensor | None, w: Tensor, x: Tensor) -> Jet:
        """Values (m,) and gradients (m, D) at queries (m, D), both centred."""
        rows, columns, y = self._rows, self._columns, self.y
        dot = rows(x) | columns(y)
        squared = (rows((x * x).sum(1)) + columns((y * y).sum(1)) - 2.0 * dot).relu()
        k, d1, d2 = self.kernel.unit_formula(squared.sqrt())
        u = (rows(x) | columns(w)) - columns((w * y).sum(1))
        e, q = d1 * u, d2 * u
        if c is not None:
            e, q = e + k * columns(c), q + d1 * columns(c)
        terms = (d1 * columns(w) + q * columns(y)).concat(q).concat(e)
        options = {"backend": "CPU" if x.device.type == "cpu" else "GPU_1D"}
        if self.dtype == torch.float32:
            options["dtype_acc"] = "float64"
        found = terms.auto_factorize().sum(1, **options)
        pull, slope, values = found.split([self.size, 1, 1], 1)
        return values[:, 0], torch.addcmul(pull, slope, x, value=-1)

    def _rows(self, x: Tensor):
        return self._lazy(x.reshape(len(x), 1, -1).contiguous())

    def _columns(self, y: Tensor):
        return self._lazy(y.reshape(1, len(y), -1).contiguous())


def find_compiler() -> str | None:
    """The C++ compiler that KeOps takes: that named by CXX, else g++ (on macOS also clang++)."""
    names = [os.environ.get("CXX"), "clang++" if sys.platform == "darwin" else None, "g++"]
    return next((name for name in names if name and shutil.which(name)), None)


def _lazy_tensor(device: torch.device) -> type:
    if find_compiler() is None:
        raise DeviceError(
            "KeOps needs a C++ compiler, and neither CXX nor g++ names one; install g++ (apt install g++, "
            "conda install gxx), or use backend='gemm', which computes the same"
        )
    lazy_tensor, has_gpu = _imported()
    if device.type == "cuda" and not has_gpu:
        raise DeviceError("KeOps found no CUDA toolkit, which it needs for sums on a GPU; use backend='gemm'")
    return lazy_tensor


@cache
def _imported() -> tuple[type, bool]:
    """KeOps' symbolic tensors, and whether it can use a GPU."""
    # On import KeOps says on the terminal, or as warnings, what it misses: of GPUs torch has said so already.
    with _silent_keops(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _shown("gdml: KeOps prepares itself, once on this machine"):
            import pykeops
            from pykeops.torch import LazyTensor
    return LazyTensor, pykeops.pykeopsconfig.pykeops_cuda.get_use_cuda()


@contextmanager
def _silent_keops() -> Iterator[None]:
    names = ("PYKEOPS_VERBOSE", "KEOPS_VERBOSE")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, "0"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _shown(message: str) -> Iterator[None]:
    """Say what takes so long, if it does."""
    timer = threading.Timer(
        SHOWN_AFTER, print, [f"{message}; this takes some seconds"], {"file": sys.stderr, "flush": True}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_compiled: set[tuple] = set()
_lock = threading.Lock()
