"""Observations beyond forces: what they are of a force field, and what is learned from them."""

import numpy as np
import pytest
import torch
from scipy import sparse

import gdml
from gdml.errors import DataError, FitError
from gdml.observations import Observations, _System
from gdml.plan import make_plan


@pytest.fixture(scope="module")
def teacher(frames):
    """Whose energies, forces and Hessians are all known."""
    return gdml.fit(frames[:40], length_scale=20.0)


def test_observations_are_what_they_say(teacher, frames):
    """Of a force field that is known: its energies, slopes, and products with its Hessian."""
    r, z = frames.positions[60:63], frames.numbers
    energy, forces, _ = teacher.predict(r)
    vectors = np.random.default_rng(0).normal(size=r.shape)
    products = np.concatenate([teacher.hessian_products(x, v[None]) for x, v in zip(r, vectors)])
    for made in (
        Observations.of_energies(z, r, energy),
        Observations.of_forces(z, r, forces),
        Observations.of_energies(z, r, energy) + Observations.of_forces(z, r, forces),
    ):
        np.testing.assert_allclose(made.predicted(teacher), made.values, atol=1e-9)
    of_products = Observations.of_hessian_products(z, r, vectors, products, step=1e-3)
    np.testing.assert_allclose(of_products.predicted(teacher), of_products.values, atol=1e-3 * np.abs(products).max())
    of_hessian = Observations.of_hessians(z, r[:1], teacher.hessian(r[0])[None], step=1e-3)
    assert len(of_hessian) == 27**2
    np.testing.assert_allclose(of_hessian.predicted(teacher), of_hessian.values, atol=0.1)


def test_the_system_is_that_of_linear_functionals(frames):
    """A K Aᵀ against the matrix of training, with energies and forces."""
    few = frames[:4]
    r, z = few.positions, few.numbers
    made = Observations.of_energies(z, r, few.energy) + Observations.of_forces(z, r, few.forces)
    made = Observations(
        z, r, sparse.csr_array(made.matrix[:, : len(r) * 28] + made.matrix[:, len(r) * 28 :]), made.values
    )
    plan = make_plan(
        few,
        gdml.molecular_group(frames),
        "inverse-distances",
        "matern52",
        1e-8,
        True,
        False,
        "auto",
        torch.device("cpu"),
    )
    system = _System(plan, few, made, torch.tensor(made.values))
    matrix = system.matrix(system.operator(15.0))
    x = system.labels.features
    jets = system.operator(15.0).contraction
    for label in (1, 2, 30, 77):
        alpha = torch.zeros(len(made)).double()
        alpha[label] = 1.0
        full = torch.tensor(made.matrix.T @ alpha.numpy()).view(4, 28)
        e, g = jets.apply(x.x, full[:, 0].contiguous(), x.jvp(full[:, 1:].reshape(4, 9, 3)))
        found = torch.cat([e[:, None], x.vjp(g).flatten(1)], 1).flatten()
        expected = torch.tensor(made.matrix @ found.numpy()) + 1e-8 * alpha
        torch.testing.assert_close(matrix[:, label], expected, rtol=1e-9, atol=1e-9)


def test_all_forces_are_the_usual_training(frames):
    options = {"length_scale": 20.0, "noise": 1e-8}
    usual = gdml.fit(frames[:15], **options)
    found = gdml.fit_observations(
        Observations.of_forces(frames.numbers, frames.positions[:15], frames.forces[:15]), **options
    )
    geometries = frames.positions[60:65]
    np.testing.assert_allclose(found.predict(geometries).forces, usual.predict(geometries).forces, atol=2e-3)
    assert found.energies_are_relative


def test_some_forces_are_missing(frames):
    """Without those of the hydrogens, the others are still learned, and the more of them the better."""
    forces = frames.forces[:40].copy()
    forces[:, frames.numbers == 1] = np.nan
    observations = Observations.of_forces(frames.numbers, frames.positions[:40], forces)
    assert len(observations) == 40 * 3 * 3
    force_field = gdml.fit_observations(observations, length_scale=20.0, noise=1e-8)
    heavy = frames.numbers > 1
    geometries = frames[100:140]
    error = np.abs(force_field.predict(geometries.positions).forces - geometries.forces)[:, heavy].mean()
    assert error < 0.25 * np.abs(geometries.forces[:, heavy]).mean()


def test_energies_alone(frames):
    observations = Observations.of_energies(frames.numbers, frames.positions[:150], frames.energy[:150])
    force_field = gdml.fit_observations(observations)
    rest = frames[150:]
    error = np.abs(force_field.predict(rest.positions).energy - rest.energy).mean()
    assert not force_field.energies_are_relative
    assert error < 0.5 * np.abs(rest.energy - frames.energy[:150].mean()).mean()


def test_a_hessian_beside_forces(teacher, frames):
    """At a minimum of the teacher its Hessian is learned, where forces alone know little of it."""
    relaxed = gdml.relax(teacher, frames.to_atoms()[3])
    hessian = teacher.hessian(relaxed.positions)
    forces = teacher.predict(frames.positions[60:68]).forces
    plain = Observations.of_forces(frames.numbers, frames.positions[60:68], forces)
    both = plain + Observations.of_hessians(frames.numbers, relaxed.positions[None], hessian[None])
    options = {"length_scale": 20.0, "noise": 1e-8}
    without, found = (gdml.fit_observations(o, **options).hessian(relaxed.positions) for o in (plain, both))
    errors = [np.abs(one - hessian).max() for one in (found, without)]
    assert errors[0] < 0.01 * np.abs(hessian).max() and errors[0] < 0.1 * errors[1]


def test_other_descriptors(frames, tmp_path):
    observations = Observations.of_forces(frames.numbers, frames.positions[:12], frames.forces[:12])
    force_field = gdml.fit_observations(
        observations, descriptor="many-body", kernel="gaussian", length_scale=6.0, noise=1e-6
    )
    usual = gdml.fit(frames[:12], descriptor="many-body", kernel="gaussian", length_scale=6.0, noise=1e-6)
    ours, theirs = (one.predict(frames.positions[60:64]).forces for one in (force_field, usual))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    force_field.save(tmp_path / "m.npz")
    np.testing.assert_array_equal(gdml.load(tmp_path / "m.npz").predict(frames.positions[60:64]).forces, ours)


def test_bad_input(frames):
    r, z = frames.positions[:3], frames.numbers
    for make, message in [
        (lambda: Observations.of_energies(z, r, [1.0]), "energies must have the shape"),
        (lambda: Observations.of_forces(z, r[:, 1:], r), "positions must have the shape"),
        (lambda: Observations.of_forces(z, r * np.nan, r), "positions contain NaN"),
        (lambda: Observations.of_forces(z, r, r * np.nan), "there are no observations"),
        (lambda: Observations.of_hessian_products(z, r, 0 * r, r), "vectors are zero"),
        (lambda: Observations.of_hessian_products(z, r, r, r * np.inf), "are not finite"),
        (lambda: Observations.of_hessians(z, r, np.eye(27)), "have Hessians of the shape"),
        (lambda: Observations(z, r, sparse.csr_array((2, 5)), np.ones(2)), "the matrix of 2 observations"),
        (lambda: Observations.of_forces(z, r, r) + Observations.of_forces(z[::-1], r, r), "of other atoms"),
    ]:
        with pytest.raises(DataError, match=message):
            make()
    same = Observations.of_hessian_products(z, r[:1], 1e-30 + 0 * r[:1], r[:1], step=1e-30)
    with pytest.raises((DataError, FitError)):
        gdml.fit_observations(same)
