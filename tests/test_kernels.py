"""Every kernel: its profile against autograd, its limits, and positive definiteness."""

import math

import pytest
import torch

from gdml.errors import FitError
from gdml.kernels import (
    KERNELS,
    FunctionKernel,
    Gaussian,
    KernelSum,
    Matern32,
    Matern52,
    Matern72,
    RationalQuadratic,
    kernel_by_name,
    kernel_from_recipe,
)


def bell(s):
    return 1.0 / (1.0 + 0.5 * s.square()).square()


NAMED = [cls(scale) for cls in KERNELS.values() for scale in (0.7, 3.0)]
MADE = [
    RationalQuadratic(0.7, alpha=0.5),
    Matern52(2.0) + 0.3 * Gaussian(0.8),
    2.0 * (Matern32() + Matern72(3.0)) + RationalQuadratic(),
    (Gaussian(0.8) + Matern52(2.0)).with_length_scale(1.7),
    FunctionKernel(1.3, function=bell),
]
kernels = pytest.mark.parametrize("kernel", NAMED + MADE, ids=repr)


def by_autograd(kernel, r):
    """k, 𝒟k, 𝒟²k and 𝒟³k, each from the one before."""
    values = [kernel.profile(r)[0]]
    for _ in range(3):
        (slope,) = torch.autograd.grad(values[-1].sum(), r, create_graph=True)
        values.append(-slope / r)
    return values


@kernels
def test_profile_is_the_repeated_derivative(kernel):
    r = torch.linspace(0.05, 9.0, 60, dtype=torch.float64, requires_grad=True)
    *expected, third = by_autograd(kernel, r)
    for value, other in zip(kernel.profile(r), expected):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11)
    t = kernel.natural_length
    torch.testing.assert_close(
        kernel.unit_third(r / t) / t**6, third, rtol=1e-6, atol=1e-6 * float(third.detach().abs().max())
    )


@kernels
def test_formula_is_the_profile(kernel):
    s = torch.linspace(0.05, 9.0, 60, dtype=torch.float64)
    if isinstance(kernel, FunctionKernel):
        with pytest.raises(FitError, match="no symbolic form"):
            kernel.unit_formula(s)
    else:
        torch.testing.assert_close(kernel.unit_formula(s), kernel.unit_profile(s), rtol=1e-12, atol=1e-15)


@kernels
def test_profile_is_positive_decreasing_and_finite_at_zero(kernel):
    r = torch.linspace(0.0, 9.0, 60, dtype=torch.float64)
    k, d1, d2 = kernel.profile(r)
    for values in (k, d1, d2):
        assert values.isfinite().all()
        assert (values > 0).all()
        assert (values.diff() < 0).all()
    near = torch.tensor([0.0, 1e-6], dtype=torch.float64)
    assert (near.square() * kernel.profile(near)[2] < 1e-5 * d1[0]).all()


@kernels
def test_is_one_at_zero(kernel):
    k, _, _ = kernel.profile(torch.zeros(1, dtype=torch.float64))
    assert k.item() == pytest.approx(sum(kernel.weights) if isinstance(kernel, KernelSum) else 1.0, abs=1e-15)


@kernels
def test_comes_back_from_its_recipe(kernel):
    if isinstance(kernel, FunctionKernel):
        with pytest.raises(FitError, match="is the function bell"):
            kernel_from_recipe(kernel.recipe())
    else:
        assert kernel_from_recipe(kernel.recipe()) == kernel


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
    with pytest.raises(FitError, match="known kernels are gaussian, matern32, matern52, matern72, rational"):
        kernel_by_name("cubic")


def test_matern_values():
    """Rasmussen and Williams, eqs. 4.16 and 4.17: the polynomials at s = 1."""
    s = torch.ones(1, dtype=torch.float64)
    for kernel, polynomial in ((Matern32(), 2.0), (Matern52(), 7 / 3), (Matern72(), 1 + 1 + 2 / 5 + 1 / 15)):
        k, _, _ = kernel.unit_profile(s)
        assert k.item() == pytest.approx(polynomial * math.exp(-1.0), rel=1e-14)


def test_sums_are_sums():
    r = torch.rand(5, dtype=torch.float64)
    both = 0.5 * Matern52(2.0) + Gaussian(0.8)
    for value, one, other in zip(both.profile(r), Matern52(2.0).profile(r), Gaussian(0.8).profile(r)):
        torch.testing.assert_close(value, 0.5 * one + other)
    longer = both.with_length_scale(3.0)
    for value, one, other in zip(longer.profile(r), Matern52(6.0).profile(r), Gaussian(2.4).profile(r)):
        torch.testing.assert_close(value, 0.5 * one + other)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda s: torch.exp(-s), "second derivative of the kernel diverges at zero"),
        (lambda s: torch.exp(-s.square() * (1.2 - torch.log(s) * torch.exp(-s.square()))), "diverges at zero"),
        (lambda s: math.exp(-s), "cannot be evaluated"),
        (lambda s: 1.0 / s, "second derivative of the kernel diverges"),
        (lambda s: torch.log(s - 1.0), "finite value for each distance"),
        (lambda s: torch.ones(3), "finite value for each distance"),
        (lambda s: 1.0 + s.square(), "does not fall from a maximum at zero"),
        (lambda s: torch.tensor(s.numpy() * 0.0 + 1.0), "cannot be differentiated|does not fall"),
        (None, "needs a function"),
    ],
)
def test_functions_that_are_no_kernels(function, message):
    with pytest.raises(FitError, match=message):
        FunctionKernel(function=function)


@pytest.mark.parametrize("make", [lambda: 0.0 * Gaussian(), lambda: KernelSum(), lambda: RationalQuadratic(alpha=-1.0)])
def test_bad_parameters(make):
    with pytest.raises(FitError):
        make()
