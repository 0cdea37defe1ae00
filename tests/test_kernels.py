"""Every kernel: its profile against autograd, its limits, and positive definiteness."""

import pytest
import torch

from gdml.errors import FitError
from gdml.kernels import KERNELS, kernel_by_name

kernels = pytest.mark.parametrize("kernel", [cls(scale) for cls in KERNELS.values() for scale in (0.7, 3.0)], ids=str)


@kernels
def test_profile_is_the_repeated_derivative(kernel):
    r = torch.linspace(0.05, 9.0, 60, dtype=torch.float64, requires_grad=True)
    values = kernel.profile(r)
    for lower, higher in zip(values, values[1:]):
        (slope,) = torch.autograd.grad(lower.sum(), r, create_graph=True)
        torch.testing.assert_close(higher, -slope / r, rtol=1e-10, atol=1e-13)


@kernels
def test_profile_is_positive_decreasing_and_finite_at_zero(kernel):
    r = torch.linspace(0.0, 9.0, 60, dtype=torch.float64)
    for values in kernel.profile(r):
        assert values.isfinite().all()
        assert (values > 0).all()
        assert (values.diff() < 0).all()


@kernels
def test_is_one_at_zero(kernel):
    k, _, _ = kernel.profile(torch.zeros(1, dtype=torch.float64))
    assert k.item() == pytest.approx(1.0, abs=1e-15)


@kernels
def test_is_positive_definite(kernel):
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k, _, _ = kernel.profile(torch.cdist(x, x))
    assert torch.linalg.eigvalsh(k).min() > 0


@kernels
def test_value_can_be_left_out(kernel):
    s = torch.rand(5, dtype=torch.float64)
    full, short = kernel.unit_profile(s), kernel.unit_profile(s, value=False)
    torch.testing.assert_close(full[1:], short[1:])


def test_matern_value():
    # (1 + s + s²/3) exp(-s) at s = √5: 1 + 2.2360680 + 1.6666667 times 0.1068780
    k, _, _ = kernel_by_name("matern52")(2.0).profile(torch.tensor([2.0], dtype=torch.float64))
    assert k.item() == pytest.approx(0.5239941088318203, rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_length_scale(scale):
    with pytest.raises(FitError, match="length scale must be positive"):
        kernel_by_name("matern52")(scale)


def test_unknown_kernel():
    with pytest.raises(FitError, match="known kernels are gaussian, matern52"):
        kernel_by_name("cubic")
