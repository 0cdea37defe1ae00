"""KeOps' sums against matrix products; each formula compiles for seconds, so there are few."""

import shutil

import numpy as np
import pytest
import torch

import gdml
from gdml.contractions import GemmContraction, KeopsContraction, contraction, keops
from gdml.descriptors import InverseDistances
from gdml.errors import DeviceError
from gdml.kernels import KERNELS
from gdml.symmetry import PermutationGroup

ACTION = InverseDistances(4).action(PermutationGroup.generate([[1, 2, 0, 3]]))
needs_compiler = pytest.mark.skipif(keops.find_compiler() is None, reason="KeOps needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("name, with_values", [("matern52", False), ("matern52", True), ("gaussian", False)])
def test_as_matrix_products(rng, name, with_values):
    y, w, x = (torch.tensor(rng.normal(size=(n, 6))) for n in (40, 40, 30))
    c = torch.tensor(rng.normal(size=40)) if with_values else None
    kernel = KERNELS[name](1.3)
    expected = GemmContraction(kernel, y, ACTION).apply(x, c, w)
    for found, value in zip(KeopsContraction(kernel, y, ACTION).apply(x, c, w), expected):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10)


@needs_compiler
def test_single_precision_is_summed_in_double(rng):
    y, w, x = (torch.tensor(rng.normal(size=(n, 6))) for n in (400, 400, 3))
    kernel = KERNELS["matern52"](1.3)
    expected = GemmContraction(kernel, y, ACTION).apply(x, None, w)
    for found, value in zip(KeopsContraction(kernel, y, ACTION, torch.float32).apply(x, None, w), expected):
        assert found.dtype == torch.float64
        assert float((found - value).abs().max()) < 1e-5 * float(value.abs().max()) + 1e-5


@needs_compiler
def test_training_and_prediction(frames, monkeypatch):
    """A force field of a molecule of three atoms: D = 3, so one formula more."""
    water = gdml.Dataset(frames.positions[:20, [2, 0, 1]], [8, 6, 6], forces=frames.forces[:20, [2, 0, 1]])
    settings = {"length_scale": 1.0, "noise": 1e-3, "solver": "cg", "rank": 10, "rtol": 1e-9}
    one, other = (gdml.fit(water, backend=backend, **settings) for backend in ("keops", "gemm"))
    assert one.backend == "keops"
    np.testing.assert_allclose(one.w, other.w, atol=1e-7 * np.abs(other.w).max())
    found, expected = (ff.predict(water.positions).forces for ff in (one, one.to(backend="gemm")))
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("cls", KERNELS.values())
def test_formulas_are_the_profiles(cls):
    kernel = cls()
    s = torch.linspace(0, 9, 50, dtype=torch.float64)
    for found, expected in zip(kernel.unit_formula(s), kernel.unit_profile(s)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_without_a_compiler(monkeypatch, rng):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    y = torch.tensor(rng.normal(size=(4, 6)))
    with pytest.raises(DeviceError, match=r"apt install g\+\+.*backend='gemm'"):
        contraction(KERNELS["matern52"](1.0), y, ACTION, "keops")


@needs_compiler
def test_a_compiler_that_fails(rng, monkeypatch):
    monkeypatch.setattr(keops, "_compiled", set())
    monkeypatch.setattr(KeopsContraction, "_reduced", lambda *_: 1 / 0)
    y, w = (torch.tensor(rng.normal(size=(4, 6))) for _ in range(2))
    with pytest.raises(DeviceError, match="could not compile its sums .* use backend='gemm'"):
        KeopsContraction(KERNELS["matern52"](1.0), y, ACTION).bind(None, w)


@needs_compiler
def test_compilation_is_announced(rng, capfd, monkeypatch):
    """Once, where it takes longer than a moment."""
    monkeypatch.setattr(keops, "SHOWN_AFTER", 0.0)
    monkeypatch.setattr(keops, "_compiled", set())
    y, w = (torch.tensor(rng.normal(size=(4, 6))) for _ in range(2))
    for _ in range(3):
        KeopsContraction(KERNELS["matern52"](1.0), y, ACTION).apply(y, None, w)
    out, err = capfd.readouterr()
    assert err.count("gdml: KeOps compiles for D = 6 and float64") == 1
    assert not out
