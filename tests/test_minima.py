"""Second derivatives, and what is made of them: minima, vibrations."""

import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms

import gdml
from gdml.contractions import BACKENDS, GemmContraction, LatticeContraction
from gdml.descriptors import AutogradDescriptor, InverseDistances
from gdml.errors import ConvergenceError, DataError, ExtrapolationWarning, ModelMismatchError
from gdml.geometry import pair_indices
from gdml.kernels import Gaussian, Matern52, Matern72

from .test_contractions import GROUPS, energy


def exponentials(positions):
    first, second = map(torch.tensor, pair_indices(len(positions)))
    return torch.exp(-0.5 * (positions[first] - positions[second]).norm(dim=1))


FORCE_FIELDS = {
    "inverse distances": {"length_scale": 20.0},
    "with energies": {"length_scale": 10.0, "use_energy": True, "noise": 1e-8, "kernel": "matern72"},
    "function": {"descriptor": AutogradDescriptor(exponentials), "length_scale": 10.0, "noise": 1e-8},
    "atoms": {"descriptor": gdml.ManyBody(), "kernel": "gaussian", "length_scale": 6.0, "noise": 1e-6},
    "sum": {"kernel": Matern72() + 0.1 * Gaussian(0.3), "length_scale": 20.0, "noise": 1e-8},
}


@pytest.fixture(scope="module", params=FORCE_FIELDS.values(), ids=FORCE_FIELDS)
def any_force_field(request, frames):
    return gdml.fit(frames[:20], **request.param)


def differences(force_field, positions, step=2e-3, **options):
    """Fourth-order central differences of the forces."""
    n = positions.size
    moves = np.eye(n).reshape(n, -1, 3) * step
    f = [force_field.predict(positions + k * moves, **options).forces.reshape(n, n) for k in (-2, -1, 1, 2)]
    return -(f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)


def test_hessian_against_differences(any_force_field, frames):
    hessian = any_force_field.hessian(frames.positions[60])
    expected = differences(any_force_field, frames.positions[60])
    np.testing.assert_allclose(hessian, expected, atol=1e-6 * np.abs(expected).max())
    vectors = np.random.default_rng(0).normal(size=(2, 9, 3))
    products = any_force_field.hessian_products(frames.positions[60], vectors)
    np.testing.assert_allclose(
        products.reshape(2, -1), vectors.reshape(2, -1) @ hessian, atol=1e-7 * np.abs(hessian).max()
    )


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("kernel", [Matern52(1.3), Gaussian(0.9)], ids=repr)
def test_curvature_against_autograd(kernel, group, rng):
    y, w, v = (torch.tensor(rng.normal(size=(n, 6)) + 0.5) for n in (5, 5, 2))
    c, x = torch.tensor(rng.normal(size=5)), torch.tensor(rng.normal(size=6))
    action = InverseDistances(4).action(group)
    backend = GemmContraction if len(action.translations) == 1 else LatticeContraction
    assert backend in BACKENDS.values()
    found = backend(kernel, y, action).bind_curvature(c, w)(x, v)
    expected = torch.autograd.functional.hessian(lambda r: energy(kernel, action, y, c, w, r), x)
    torch.testing.assert_close(found, v @ expected, rtol=1e-9, atol=1e-9)


def test_bad_vectors(force_field, frames):
    with pytest.raises(DataError, match="vectors"):
        force_field.hessian_products(frames.positions[0], np.zeros((9, 3)))
    with pytest.raises(DataError, match="NaN or infinite"):
        force_field.hessian(frames.positions[0] * np.nan)


def test_relaxation_and_frequencies(any_force_field, frames):
    relaxed = gdml.relax(any_force_field, frames.to_atoms()[3])
    assert np.abs(relaxed.get_forces()).max() < 1e-4
    frequencies = gdml.vibrations(any_force_field, relaxed).get_frequencies()
    assert np.abs(frequencies[:6]).max() < 5.0
    assert (frequencies[6:].real > 20.0).all() and frequencies[-1].real == pytest.approx(3700, rel=0.1)


def test_what_is_no_minimum(force_field, frames):
    with pytest.warns(ExtrapolationWarning, match="this is no minimum"):
        gdml.vibrations(force_field, frames.to_atoms()[3])
    with pytest.raises(ConvergenceError, match="after 2 steps the largest force"):
        gdml.relax(force_field, frames.to_atoms()[3], max_steps=2)
    with pytest.raises(ModelMismatchError):
        gdml.relax(force_field, frames.to_atoms()[3][::-1])
    held = frames.to_atoms()[3]
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(DataError, match=r"the atoms have constraints \(FixAtoms\)"):
        gdml.relax(force_field, held)
    with pytest.raises(DataError, match="fmax must be positive"):
        gdml.relax(force_field, frames.to_atoms()[3], fmax=0.0)
