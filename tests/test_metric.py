"""Learned metrics: gradients against differences, objectives against what they mean, and what comes of them."""

import json

import numpy as np
import pytest
import torch

import gdml
from gdml import metric
from gdml.descriptors import InverseDistances, ManyBody, PeriodicInverseDistances, WeightedDistances
from gdml.errors import DataError, FitError
from gdml.hyperparameters import Chosen
from gdml.plan import make_plan

DESCRIPTORS = {
    "distances": (None, (1.0,)),
    "two powers": (None, (1.0, 3.0)),
    "many-body": (ManyBody(n_two=8, n_three=5), ()),
}
objectives = pytest.mark.parametrize("objective", metric.OBJECTIVES.values(), ids=list(metric.OBJECTIVES))


def make_problem(frames, descriptor=None, powers=(1.0,), n=6, noise=1e-6, kernel="matern52"):
    group = gdml.molecular_group(frames)
    plan = make_plan(frames[:n], group, descriptor, kernel, "auto", False, False, "auto", torch.device("cpu"))
    kinds = metric._kinds(plan, frames, len(powers))
    return metric._Problem.of(plan, frames[:n], kinds, Chosen(15.0, None, noise), powers)


@objectives
@pytest.mark.parametrize("descriptor", DESCRIPTORS.values(), ids=list(DESCRIPTORS))
def test_gradients_against_differences(frames, descriptor, objective):
    problem = make_problem(frames, *descriptor)
    theta = problem.start + 0.1 * np.random.default_rng(0).normal(size=len(problem.start))
    value, gradient = problem.objective(theta, objective)
    steps = 1e-4 * np.eye(len(theta))
    ends = [[problem.objective(theta + sign * step, objective)[0] for sign in (1, -1)] for step in steps]
    expected = np.diff(ends, axis=1)[:, 0] / -2e-4
    np.testing.assert_allclose(gradient, expected, atol=2e-5 * np.abs(expected).max())
    assert np.isfinite(value) and np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("descriptor", DESCRIPTORS.values(), ids=list(DESCRIPTORS))
def test_the_matrix_is_that_of_training(frames, descriptor):
    problem = make_problem(frames, *descriptor, n=4)
    theta = problem.start + 0.1 * np.random.default_rng(1).normal(size=len(problem.start))
    matrix = problem.matrix(*problem.features_at(torch.tensor(theta)))
    noise = float(np.exp(theta[-1]))
    force_field = gdml.fit(
        frames[:4],
        descriptor=problem.descriptor_at(theta),
        symmetry=problem.plan.group,
        length_scale=1.0,
        noise=noise,
    )
    matrix.diagonal().add_(noise)
    w = problem.features_at(torch.tensor(theta))[1]
    alpha = torch.linalg.solve(matrix, problem.y.flatten()).view_as(problem.y)
    expected = torch.einsum("ndl,nl->nd", w, alpha).numpy()
    np.testing.assert_allclose(force_field.w, expected, atol=1e-5 * np.abs(expected).max())


def test_leave_one_out_is_training_without_one(frames):
    problem = make_problem(frames, n=5)
    matrix = problem.matrix(*problem.features_at(torch.tensor(problem.start)))
    matrix.diagonal().add_(1e-6)
    n, n_labels = problem.y.shape
    squares = []
    for i in range(n):
        left = torch.ones(n, n_labels, dtype=bool)
        left[i] = False
        left = left.flatten()
        alpha = torch.linalg.solve(matrix[left][:, left], problem.y.flatten()[left])
        squares.append((matrix[~left][:, left] @ alpha - problem.y[i]).square().mean())
    value, _ = problem.objective(problem.start, metric.leave_one_out)
    assert value == pytest.approx(float(torch.stack(squares).mean().log()), rel=1e-6)


def test_likelihood_is_that_of_a_normal_distribution(frames):
    """With the best amplitude, to a constant."""
    problem = make_problem(frames, n=5)

    def expected(theta):
        matrix = problem.matrix(*problem.features_at(torch.tensor(theta)))
        matrix.diagonal().add_(float(np.exp(theta[-1])))
        y = problem.y.flatten()
        amplitude = y @ torch.linalg.solve(matrix, y) / len(y)
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(y), amplitude * matrix)
        return -float(normal.log_prob(y)) / len(y)

    other = problem.start + 0.2
    values = [problem.objective(theta, metric.likelihood)[0] - expected(theta) for theta in (problem.start, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-8)


def test_singular_matrices_are_survived(frames):
    problem = make_problem(frames, kernel="gaussian")
    theta = problem.start.copy()
    theta[: len(problem.names)] -= 12.0
    theta[-1] = np.log(1e-30)
    value, gradient = problem.objective(theta, metric.leave_one_out)
    assert value == metric.FAILED and not gradient.any()


@pytest.fixture(scope="module")
def learned(frames):
    return gdml.learn_metric(frames[:60], max_steps=12)


def test_learned_metrics_are_better(learned, frames):
    """On frames that neither learned nor judged."""
    usual = gdml.fit(frames[:60], descriptor=InverseDistances(9))
    better = gdml.fit(frames[:60], **learned.options)
    ours, theirs = (gdml.evaluate(one, frames[100:180]).forces_mae for one in (better, usual))
    assert learned.is_learned and learned.errors["learned"] < learned.errors["grid"]
    assert ours < 0.9 * theirs
    assert learned.history[-1] < learned.history[0]
    assert "H-O, 1 bond" in " ".join(learned.weights)


def test_picture(learned, tmp_path):
    pytest.importorskip("matplotlib")
    from gdml.plots import plot_metric

    plot_metric(learned, tmp_path / "metric.png")
    assert (tmp_path / "metric.png").stat().st_size > 10_000


def test_what_is_worse_is_dropped(frames, monkeypatch):
    monkeypatch.setattr(metric, "error_of", lambda *args: np.inf)
    found = gdml.learn_metric(frames[:25], max_steps=1)
    assert not found.is_learned and not found.weights
    assert found.options["length_scale"] == found.chosen.length_scale != 1.0


def test_training_learns_by_itself(frames, learned, tmp_path):
    """Where nothing is said of descriptors or length scales; and the checkpoint knows what was found."""
    options = {"checkpoint": tmp_path / "c.npz", "solver": "cg"}
    force_field = gdml.fit(frames[:40], **options)
    assert force_field.length_scale == 1.0
    usual = gdml.fit(frames[:40], descriptor=InverseDistances(9))
    errors = [gdml.evaluate(one, frames[100:180]).forces_mae for one in (force_field, usual)]
    assert errors[0] < 0.9 * errors[1]
    force_field.save(tmp_path / "model.npz")
    again = gdml.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(
        again.predict(frames.positions[60]).forces, force_field.predict(frames.positions[60]).forces
    )


def test_a_noise_that_is_given_stays(frames):
    found = gdml.learn_metric(frames[:25], noise=1e-7, max_steps=3)
    assert found.chosen.noise == pytest.approx(1e-7)


def test_bad_input(frames):
    with pytest.raises(DataError, match="10 geometries are too few to learn a metric from; give at least 20"):
        gdml.learn_metric(frames[:10])
    with pytest.raises(FitError, match="the objective is one of leave-one-out, held-out, likelihood, not 'luck'"):
        gdml.learn_metric(frames[:30], objective="luck")
    with pytest.raises(FitError, match="for inverse distances and ManyBody, not for Periodic"):
        gdml.learn_metric(frames[:30], descriptor=PeriodicInverseDistances(9, 20 * np.eye(3)))
    box = gdml.Dataset(
        frames.positions[:30], frames.numbers, forces=frames.forces[:30], cell=20 * np.eye(3), pbc=(True,) * 3
    )
    with pytest.raises(DataError, match="are periodic"):
        gdml.learn_metric(box)


def test_weights_of_pairs(frames, rng):
    weights = rng.uniform(0.5, 2.0, 36)
    descriptor = WeightedDistances(9, weights, 2.0)
    positions = torch.tensor(frames.positions[:3])
    features, plain = descriptor.evaluate(positions), InverseDistances(9, 2.0).evaluate(positions)
    torch.testing.assert_close(features.x, plain.x * torch.tensor(weights))
    torch.testing.assert_close(features.jacobian(), plain.jacobian() * torch.tensor(weights)[:, None])
    np.testing.assert_allclose(descriptor.distances(features.x.numpy()), plain.x.numpy() ** -0.5)
    with pytest.raises(DataError, match="the group exchanges the pair of atoms"):
        descriptor.action(gdml.molecular_group(frames))
    assert json.loads(json.dumps(descriptor.recipe()))["powers"] == [2.0] * 36
    for bad in (weights[:5], -weights, weights * np.nan):
        with pytest.raises(FitError, match="need as many positive weights"):
            WeightedDistances(9, bad)


def test_diatomic_and_large_molecules(rng):
    """Of two atoms there is one distance; of very many nothing is learned, since gradients take too long."""
    bonds = rng.uniform(1.0, 1.3, 30)
    positions = np.zeros((30, 2, 3))
    positions[:, 1, 2] = bonds
    forces = np.zeros_like(positions)
    forces[:, 0, 2] = 30.0 * (bonds - 1.12)
    forces[:, 1] = -forces[:, 0]
    nitrogen = gdml.Dataset(positions, [7, 7], forces=forces)
    found = gdml.fit(nitrogen)
    assert np.abs(found.predict(positions).forces - forces).max() < 0.05
    grid = 2.0 * np.stack(np.unravel_index(np.arange(90), (5, 6, 3)), 1)
    many = gdml.Dataset(grid + 0.1 * rng.normal(size=(30, 90, 3)), [6] * 90, forces=rng.normal(size=(30, 90, 3)))
    plan = make_plan(
        many, gdml.PermutationGroup.trivial(90), "auto", "matern52", "auto", False, False, "auto", torch.device("cpu")
    )
    assert not metric.can_learn(plan, many)
