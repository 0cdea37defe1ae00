"""Several states in one model: against dense matrices, separate models, finite differences, and what cannot be."""

import copy
import json
import pickle
import zipfile
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from scipy.spatial.transform import Rotation

import gdml
from gdml.cli import main
from gdml.errors import DataError, FitError, FormatError, ModelMismatchError
from gdml.geometry import pair_distances, pair_indices
from gdml.operators import TrainingOperator
from gdml.plan import labels_of, make_plan
from gdml.preconditioners import build
from gdml.processes import Shares, Team
from gdml.states.couplings import START, Evidence, check_couplings, couplings_at
from gdml.states.operator import StatesOperator
from gdml.states.together import shares_of
from gdml.uncertainty import coverage

from .dense import conditioned, dense_blocks

OPTIONS = {"length_scale": 8.0, "noise": 1e-10, "descriptor": "inverse-distances"}
COUPLINGS = np.array([[1.0, 0.6], [0.6, 0.7]])
WATER = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
# Depth (eV), inverse width and minimum (Å) of Morse potentials for O-H and H-H, and a constant.
WELLS = {"ground": ((4.0, 2.0, 0.96), (0.6, 1.2, 1.52), 0.0), "excited": ((3.2, 1.9, 1.02), (0.3, 1.5, 1.40), 5.0)}


def water(n: int, state: str, seed: int = 0) -> gdml.Dataset:
    """Geometries of water in a state whose energy is a sum of Morse potentials."""
    positions = WATER + np.random.default_rng(seed).normal(scale=0.07, size=(n, 3, 3))
    bond, across, constant = WELLS[state]
    depth, width, minimum = np.array([bond, bond, across]).T  # of the pairs (1, 0), (2, 0), (2, 1)
    r = pair_distances(positions)
    decay = np.exp(-width * (r - minimum))
    slopes = 2 * depth * width * decay * (1 - decay)
    first, second = pair_indices(3)
    pull = -(slopes / r)[..., None] * (positions[:, first] - positions[:, second])
    forces = np.zeros_like(positions)
    np.add.at(forces, (slice(None), first), pull)
    np.add.at(forces, (slice(None), second), -pull)
    return gdml.Dataset(positions, [8, 1, 1], constant + (depth * (1 - decay) ** 2).sum(1), forces)


@pytest.fixture(scope="module")
def data() -> dict[str, gdml.Dataset]:
    """Two states that share no geometry."""
    return {"ground": water(12, "ground", 1), "excited": water(10, "excited", 2)}


@pytest.fixture(scope="module")
def others() -> np.ndarray:
    """Positions that are not trained on."""
    return water(10, "ground", 3).positions


@pytest.fixture(scope="module")
def field(data):
    return gdml.fit_states(data, couplings=COUPLINGS, **OPTIONS)


def system(data, use_energy, couplings=COUPLINGS, noise=1e-3):
    """The operator of several states, and that of their geometries without states."""
    first, second = data.values()
    joined = first.joined(second)
    group = gdml.molecular_group(joined)
    cpu = torch.device("cpu")
    plan = make_plan(joined, group, "inverse-distances", "matern52", noise, use_energy, False, "auto", cpu)
    labels = labels_of(plan, joined, Shares(Team(), len(joined)))
    jets = gdml.contractions.contraction(plan.kernel.with_length_scale(2.0), labels.features.x, plan.action)
    states = torch.tensor([0] * len(first) + [1] * len(second))
    operator = StatesOperator(jets, labels, noise, states, torch.tensor(couplings))
    return operator, TrainingOperator(jets, labels, noise)


def dense(operator):
    lower = operator.to_dense().tril()
    return lower + lower.tril(-1).mT


@pytest.mark.parametrize("use_energy", [False, True])
def test_operator_is_the_kernel_times_couplings(data, use_energy):
    operator, plain = system({s: d[:4] for s, d in data.items()}, use_energy)
    factors = torch.tensor(COUPLINGS)[operator.states][:, operator.states]
    factors = torch.kron(factors, torch.ones(operator.block_size, operator.block_size))
    noise = operator.noise * torch.eye(len(factors))
    expected = (dense(plain) - noise) * factors + noise
    n = len(expected)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(dense(operator), expected, **close)
    torch.testing.assert_close(operator.matmul(torch.eye(n, dtype=torch.float64)), expected, **close)
    torch.testing.assert_close(operator.columns(torch.arange(n)), expected - noise, **close)
    torch.testing.assert_close(operator.diagonal(), expected.diagonal(), **close)
    rows, columns = torch.tensor([0, 5, 7]), torch.tensor([6, 1, 7])
    blocks = (expected - noise).view(8, -1, 8, operator.block_size)[rows, :, columns]
    torch.testing.assert_close(operator.blocks(rows, columns), blocks, **close)


@pytest.mark.parametrize("name", ["rpcholesky", "cholesky", "leverage", "uniform", "svd"])
def test_preconditioners_take_the_operator(data, name):
    operator, _ = system({s: d[:4] for s, d in data.items()}, False, noise=1e-2)
    preconditioner = build(name, operator, operator.shape[0], 2)
    b = torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64)
    torch.testing.assert_close(operator.matmul(preconditioner.solve(b)), b, rtol=0, atol=0.05)


def test_identity_is_separate_models(data, others):
    """To rounding times the condition number, which the noise keeps small here."""
    options = OPTIONS | {"noise": 1e-8}
    found = gdml.fit_states(data, couplings=np.eye(2), **options)
    for state, dataset in data.items():
        alone = gdml.fit(dataset, symmetry=found.shared.group, **options)
        ours, theirs = (f.predict(others) for f in (found.at(state), alone))
        np.testing.assert_allclose(ours.forces, theirs.forces, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours.energy, theirs.energy, rtol=0, atol=1e-9)
        assert len(found.at(state).y) == len(dataset)


def test_ones_are_one_model_of_all(others):
    whole = water(18, "ground")
    data = {1: whole[:10], 2: whole[10:]}
    found = gdml.fit_states(data, couplings=np.ones((2, 2)), **OPTIONS)
    alone = gdml.fit(whole, symmetry=found.shared.group, **OPTIONS)
    for state, dataset in data.items():
        ours, theirs = (f.predict(others) for f in (found.at(state), alone))
        np.testing.assert_allclose(ours.forces, theirs.forces, rtol=0, atol=1e-8)
        # Constants are those of the energies of each state.
        constant = np.mean(dataset.energy - alone.predict(dataset.positions).energy)
        np.testing.assert_allclose(ours.energy, theirs.energy + constant, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.gap(1, 2).predict(others).forces, 0.0, atol=1e-12)


def test_the_same_geometries_teach_nothing_of_each_other(others):
    """Kronecker's product (C ⊗ K)⁻¹ cancels C where all states have all geometries and there is no noise."""
    data = {state: water(8, state) for state in WELLS}
    options = OPTIONS | {"noise": 1e-12, "length_scale": 2.0}
    found = gdml.fit_states(data, couplings=COUPLINGS, **options)
    for state, dataset in data.items():
        alone = gdml.fit(dataset, symmetry=found.shared.group, **options).predict(others).forces
        np.testing.assert_allclose(found.at(state).predict(others).forces, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("use_energy", [False, True])
def test_solution_meets_its_labels(data, use_energy):
    """(K ∘ C + λ) α = y: predictions of training geometries are their labels but for λ α, which of energies is λ c."""
    found = gdml.fit_states(data, couplings=COUPLINGS, use_energy=use_energy, **OPTIONS)
    for state, dataset in data.items():
        energy, forces, _ = found.at(state).predict(dataset.positions)
        np.testing.assert_allclose(forces, dataset.forces, rtol=0, atol=2e-4)
        if use_energy:
            misfit = OPTIONS["noise"] * found.shared.c[found.state_of == found.states.index(state)]
            np.testing.assert_allclose(energy, dataset.energy - misfit, rtol=0, atol=1e-7)
        assert np.abs(energy - dataset.energy).max() < (2e-4 if use_energy else 0.01)
        other = next(d for s, d in data.items() if s != state)
        assert np.abs(found.at(state).predict(other.positions).forces - other.forces).max() > 0.1


def test_cg_is_closed_form(data, others):
    found = [
        gdml.fit_states(data, couplings=COUPLINGS, **(OPTIONS | {"noise": 1e-8}), **more)
        for more in ({"solver": "cholesky"}, {"solver": "cg", "rtol": 1e-10, "rank": 30})
    ]
    assert found[1].details["solver"]["name"] == "cg"
    for state in data:
        exact, iterated = (f.at(state).predict(others) for f in found)
        np.testing.assert_allclose(iterated.forces, exact.forces, rtol=0, atol=1e-5)
        np.testing.assert_allclose(iterated.energy, exact.energy, rtol=0, atol=1e-5)


def test_forces_are_slopes_of_the_energy_and_of_the_gap(field, others, rng):
    r = others[0]
    v = rng.normal(size=r.shape)
    h = 1e-4
    for one in (field.at("ground"), field.at("excited"), field.gap("ground", "excited")):
        slope = (one.predict(r + h * v).energy - one.predict(r - h * v).energy) / (2 * h)
        assert slope == pytest.approx(-float((one.predict(r).forces * v).sum()), rel=1e-6, abs=1e-6)


def test_gap_is_the_difference(field, others):
    r, truth = others, [water(10, state, 3) for state in WELLS]
    all_states, gap = field.predict(r), field.gap("ground", "excited").predict(r)
    assert list(all_states) == ["ground", "excited"]
    for part in ("energy", "forces"):
        difference = getattr(all_states["excited"], part) - getattr(all_states["ground"], part)
        np.testing.assert_allclose(getattr(gap, part), difference, rtol=0, atol=1e-9)
    reference = truth[1].energy - truth[0].energy
    np.testing.assert_allclose(gap.energy, reference, rtol=0, atol=0.05)
    assert np.ptp(reference) > 0.5
    backwards = field.gap("excited", "ground").predict(r)
    np.testing.assert_allclose(backwards.energy, -gap.energy, rtol=0, atol=1e-9)


def test_invariances(field, others):
    r, turn = others[0], Rotation.from_rotvec([0.4, -1.0, 0.3]).as_matrix()
    permutation = field.shared.group.permutations[-1]
    for state in field.states:
        energy, forces, _ = field.at(state).predict(r)
        turned = field.at(state).predict(r @ turn.T + [1.0, 2.0, 3.0])
        assert turned.energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(turned.forces, forces @ turn.T, rtol=0, atol=1e-9)
        permuted = field.at(state).predict(r[permutation])
        assert permuted.energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(permuted.forces, forces[permutation], rtol=0, atol=1e-9)


def test_order_of_states_is_of_no_consequence(data, field, others):
    turned = gdml.fit_states(dict(reversed(data.items())), couplings=COUPLINGS[::-1, ::-1], **OPTIONS)
    for state in data:
        ours, theirs = (f.at(state).predict(others) for f in (field, turned))
        np.testing.assert_allclose(ours.forces, theirs.forces, rtol=0, atol=1e-8)
        np.testing.assert_allclose(ours.energy, theirs.energy, rtol=0, atol=1e-8)


def evidence_of(data, use_energy=False) -> Evidence:
    operator, plain = system(data, use_energy, noise=1e-4)
    matrix = dense(plain) - plain.noise * torch.eye(plain.shape[0])
    return Evidence(matrix, operator.labels.values, operator.states, 2, 1e-4)


def test_likelihood_is_that_of_a_normal_distribution(data):
    """With the best amplitude a², the density of y under the covariance a² M."""
    evidence = evidence_of({s: d[:3] for s, d in data.items()})
    value, _ = evidence.at(torch.tensor(COUPLINGS))
    factors = torch.kron(torch.tensor(COUPLINGS)[evidence.states][:, evidence.states], torch.ones(3, 3))
    m = evidence.matrix * factors + 1e-4 * torch.eye(len(evidence.matrix))
    y, n = evidence.y.flatten(), evidence.y.numel()
    amplitude = y @ torch.linalg.solve(m, y) / n
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance_matrix=amplitude * m)
    constant = 0.5 * np.log(n) - 0.5 - 0.5 * np.log(2 * np.pi)
    assert value == pytest.approx(constant - float(normal.log_prob(y)) / n, abs=1e-8)


def test_gradient_of_the_likelihood(data):
    evidence = evidence_of({s: d[:4] for s, d in data.items()})
    theta = np.array([0.3, 0.5, -0.4])
    _, gradient = evidence._objective(theta)
    for k, step in enumerate(1e-5 * np.eye(3)):
        ends = [evidence._objective(theta + sign * step)[0] for sign in (1, -1)]
        assert gradient[k] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


def test_couplings_are_found_again(data):
    """Labels that are drawn from the model itself, of states with known couplings."""
    operator, _ = system(data, False, np.array([[1.6, 0.72], [0.72, 0.4]]), noise=1e-6)
    root = torch.linalg.cholesky(dense(operator))
    draw = root @ torch.randn(len(root), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    evidence = evidence_of(data)
    evidence = Evidence(evidence.matrix, draw.view_as(evidence.y), evidence.states, 2, 1e-6)
    couplings, value = evidence.best()
    assert value < evidence.at(evidence.guess())[0]
    found = couplings.numpy()
    assert np.trace(found) == pytest.approx(2.0)
    assert found[1, 1] / found[0, 0] == pytest.approx(0.25, rel=0.2)
    assert found[0, 1] / np.sqrt(found[0, 0] * found[1, 1]) == pytest.approx(0.9, abs=0.05)


def test_parameters_of_couplings():
    theta = torch.tensor([0.1, -0.7, 0.4, 0.2, 0.3, -0.5], dtype=torch.float64)
    couplings = couplings_at(theta, 3).numpy()
    assert np.linalg.eigvalsh(couplings).min() > 0
    assert np.trace(couplings) == pytest.approx(3.0)
    assert START < 1


def test_few_of_one_state_and_many_of_another():
    """What is learned of one state helps another, where they are alike; and couplings say so."""
    data = {"ground": water(60, "ground"), "excited": water(5, "excited", 2)}
    test = water(60, "excited", 3)
    found = gdml.fit_states(data, descriptor="inverse-distances")
    alone = gdml.fit(data["excited"], descriptor="inverse-distances")
    ours, theirs = (gdml.evaluate(f, test) for f in (found.at("excited"), alone))
    assert ours.forces_mae < 0.4 * theirs.forces_mae
    assert ours.energy_mae < 0.6 * theirs.energy_mae
    assert found.correlation[0, 1] > 0.7


def test_all_is_chosen():
    """A metric, a length scale and couplings, without any option."""
    data = {"ground": water(24, "ground", 1), "excited": water(24, "excited", 2)}
    found = gdml.fit_states(data)
    assert found.shared.descriptor.name != "inverse-distances"
    for state in data:
        alone, test = gdml.fit(data[state], descriptor="inverse-distances"), water(60, state, 3)
        assert gdml.evaluate(found.at(state), test).forces_mae < gdml.evaluate(alone, test).forces_mae


def test_couplings_can_be_given_and_the_length_scale_chosen(data):
    found = gdml.fit_states(data, couplings=COUPLINGS, descriptor="inverse-distances")
    assert 0.5 < found.shared.length_scale < 100.0
    np.testing.assert_array_equal(found.couplings, COUPLINGS)


def test_three_states_without_energies_of_one():
    data = {"a": water(6, "ground"), "b": water(7, "excited", 1), "c": replace(water(5, "ground", 2), energy=None)}
    found = gdml.fit_states(data, **OPTIONS)
    assert found.couplings.shape == (3, 3)
    assert found.at("c").energies_are_relative and not found.at("a").energies_are_relative
    assert found.gap("a", "c").energies_are_relative and not found.gap("a", "b").energies_are_relative
    assert found.at("c").offset == 0.0
    assert (gdml.with_uncertainty(found, data).gap("a", "c").uncertainty(data["b"].positions).energy > 0).all()
    with pytest.raises(DataError, match="use_energy needs energies of all states, and 'c' has none"):
        gdml.fit_states(data, use_energy=True, **OPTIONS)


def test_baseline_is_in_states_and_not_in_gaps(data, others):
    found = gdml.fit_states(data, couplings=COUPLINGS, baseline="lj(epsilon=0.001, sigma=1.0)", **OPTIONS)
    r = others
    direct = replace(found.at("ground"), baseline=None).predict(r)
    assert np.abs(found.at("ground").predict(r).forces - direct.forces).max() > 1e-3
    both, gap = found.predict(r), found.gap("ground", "excited")
    assert gap.baseline is None
    np.testing.assert_allclose(gap.predict(r).forces, both["excited"].forces - both["ground"].forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        found.at("excited").predict(data["excited"].positions).forces, data["excited"].forces, rtol=0, atol=2e-4
    )
    sure = gdml.with_uncertainty(found, data, {state: water(20, state, 5) for state in data})
    for state in data:
        assert 0.8 < coverage(sure.at(state), water(40, state, 7))[0] < 0.98


def test_kernels_between_atoms(data, others):
    options = OPTIONS | {"descriptor": "many-body", "kernel": "gaussian", "length_scale": 6.0, "noise": 1e-7}
    few = {s: d[:4] for s, d in data.items()}
    found = gdml.fit_states(few, couplings=COUPLINGS, **options)
    again = gdml.fit_states(few, couplings=np.eye(2), **options)
    alone = gdml.fit(few["ground"], **options)
    r = others
    np.testing.assert_allclose(again.at("ground").predict(r).forces, alone.predict(r).forces, rtol=0, atol=1e-7)
    assert np.abs(found.at("ground").predict(r).forces - alone.predict(r).forces).max() > 1e-3


@pytest.mark.filterwarnings("ignore:the shortest lattice vector")
def test_crystals():
    """A state of 0.7 times the energy of another, with the couplings of that, is learned as from its own labels."""
    ideal, frames = bulk("Cu") * (2, 2, 2), []
    for seed in range(6):
        frames.append(ideal.copy())
        frames[-1].rattle(0.06, seed=seed)
        frames[-1].calc = EMT()
        frames[-1].get_forces()
    copper = gdml.read(frames)
    soft = replace(copper, energy=0.7 * copper.energy, forces=0.7 * copper.forces)
    options = {"length_scale": 5.0, "reference": ideal, "noise": 1e-8}
    couplings = np.outer([1.0, 0.7], [1.0, 0.7]) / 0.7**2
    found = gdml.fit_states({"hard": copper[:3], "soft": soft[3:5]}, couplings=couplings, **options)
    alone = gdml.fit(soft[:5], **options)
    assert found.shared.symmetry.order > 100
    ours, theirs = (f.predict(soft.positions[5:]).forces for f in (found.at("soft"), alone))
    # The noise is less beside the labels of the first state: a difference in proportion to it.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    sure = gdml.with_uncertainty(found, {"hard": copper[:3], "soft": soft[3:5]}), gdml.with_uncertainty(alone, soft[:5])
    models = [replace(one.error_model, scale=1.0) for one in (sure[0].at("soft"), sure[1])]
    features = alone.descriptor.evaluate(torch.tensor(soft.positions[5:]), cells=soft.periodic_cell)
    (_, ours), (_, theirs) = (model.deviations(features) for model in models)
    # Of the geometries of either state the mean energy is known, and not of all together only: a little more.
    assert (ours <= theirs * (1 + 1e-4)).all()
    np.testing.assert_allclose(ours, theirs, rtol=0.01)


def test_save_and_load(field, others, tmp_path):
    path, r = tmp_path / "states.npz", others
    field.save(path)
    loaded = gdml.load(path)
    assert loaded.states == field.states and repr(loaded) == repr(field)
    assert repr(loaded) == "StatesForceField(H2O, states 'ground' (12 geometries), 'excited' (10 geometries))"
    for state in field.states:
        for one in (loaded.at(state), gdml.load(path, state=state)):
            np.testing.assert_array_equal(one.predict(r).forces, field.at(state).predict(r).forces)
            np.testing.assert_array_equal(one.predict(r).energy, field.at(state).predict(r).energy)
    assert loaded.to(dtype="float32").at("ground").dtype == "float32"


@pytest.fixture(scope="module")
def sure(data):
    held_out = {state: water(20, state, 5) for state in data}
    field = gdml.fit_states(data, couplings=COUPLINGS, **OPTIONS | {"length_scale": 3.0})
    return gdml.with_uncertainty(field, data, held_out)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)])
def test_variances_against_the_dense_process(weights):
    """Of states and of their gap, from the joint covariance of both: kernel times coupling, blocks by autograd."""
    data = {"ground": water(3, "ground", 1), "excited": water(2, "excited", 2)}
    options = OPTIONS | {"length_scale": 1.0, "noise": 1e-6}
    field = gdml.with_uncertainty(gdml.fit_states(data, couplings=COUPLINGS, **options), data)
    r, n = water(1, "ground", 3).positions[0], 10
    where = torch.tensor([0, 0, 1, 2, 3, 4, 5])  # the asked for geometry in both states, then the others in their own
    states = torch.tensor([0, 1, 0, 0, 0, 1, 1])
    whole = dense_blocks(field.shared, [r, *data["ground"].positions, *data["excited"].positions])
    whole = whole.view(6, n, 6, n)[where][:, :, where] * torch.tensor(COUPLINGS)[states][:, None, states, None]
    whole = whole.reshape(7 * n, 7 * n)
    a = torch.tensor(weights, dtype=torch.float64)
    one = torch.eye(7 * n, dtype=torch.float64).view(7, n, 7 * n)
    means = torch.stack([one[2:5, 0].mean(0), one[5:, 0].mean(0)])
    ask = torch.einsum("s,sni->ni", a, one[:2])
    ask[0] -= a @ means
    expected = conditioned(whole, torch.cat([one[2:, 1:].flatten(0, 1), means]), ask, 1e-6)
    asked = field.gap("ground", "excited") if a[0] < 0 else field.at(field.states[int(a[1])])
    found = asked.error_model.covariance(asked.descriptor.evaluate(torch.tensor(r)[None]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.diagonal().max()))


def test_uncertainty_without_couplings_is_of_one_state(data, others):
    options = OPTIONS | {"length_scale": 3.0, "noise": 1e-8}
    found = gdml.with_uncertainty(gdml.fit_states(data, couplings=np.eye(2), **options), data)
    for state, dataset in data.items():
        alone = gdml.with_uncertainty(gdml.fit(dataset, symmetry=found.shared.group, **options), dataset)
        ours, theirs = (field.uncertainty(others) for field in (found.at(state), alone))
        ratio = found.shared.error_model.scale / alone.error_model.scale  # of the errors of both states, or of one
        np.testing.assert_allclose(ours.forces, ratio * theirs.forces, rtol=1e-4)
        np.testing.assert_allclose(ours.energy, ratio * theirs.energy, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")  # of states that are said to be the same
def test_uncertainty_of_gaps_knows_what_states_have_in_common(data, others):
    """Where states are the same, the gap is known; where they have nothing in common, variances add up."""
    deviations = {}
    for correlation in (0.0, 0.9, 1.0):
        couplings = [[1.0, correlation], [correlation, 1.0]]
        field = gdml.fit_states(data, couplings=couplings, **OPTIONS | {"length_scale": 3.0, "noise": 1e-6})
        field = gdml.with_uncertainty(field, data)
        asked = field.at("ground"), field.at("excited"), field.gap("ground", "excited")
        features = field.shared.descriptor.evaluate(torch.tensor(others[:3]))
        deviations[correlation] = [replace(f.error_model, scale=1.0).deviations(features)[1].square() for f in asked]
    ground, excited, gap = deviations[0.0]
    torch.testing.assert_close(gap, ground + excited)
    assert (deviations[0.9][2] < gap).all() and deviations[0.9][2].sum() < 0.5 * gap.sum()
    assert deviations[1.0][2].max() < 1e-8 * deviations[1.0][0].max()


def test_coverage_of_states_and_gaps(sure):
    assert sure.shared.error_model.calibration == "40 held-out geometries"
    for state in sure.states:
        test = water(40, state, 7)
        assert 0.8 < coverage(sure.at(state), test)[0] < 0.98
    lower, upper = (water(40, state, 7) for state in sure.states)
    gap = sure.gap(*sure.states)
    errors = np.abs(gap.predict(lower.positions).forces - (upper.forces - lower.forces))
    deviations = gap.uncertainty(lower.positions).forces
    assert 0.75 < (errors < 1.6449 * deviations).mean() < 0.99


@pytest.mark.parametrize("use_energy", [False, True])
def test_uncertainty_in_files_and_calculators(data, others, tmp_path, use_energy):
    field = gdml.fit_states(data, couplings=COUPLINGS, use_energy=use_energy, **OPTIONS)
    field = gdml.with_uncertainty(field, dict(reversed(data.items())))  # in whichever order
    field.save(tmp_path / "states.npz")
    loaded = gdml.load(tmp_path / "states.npz")
    field.gap("ground", "excited").save(tmp_path / "gap.npz")
    pairs = [(field.at(state), loaded.at(state)) for state in data]
    pairs.append((field.gap("ground", "excited"), gdml.load(tmp_path / "gap.npz")))
    for one, other in pairs:
        expected, found = one.uncertainty(others), other.uncertainty(others)
        np.testing.assert_allclose(found.forces, expected.forces, rtol=1e-6)
        np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-6)
    atoms = water(1, "ground", 3).to_atoms()[0]
    atoms.calc = gdml.GDMLCalculator(loaded, state="excited", uncertainty=True, warn_outside=False)
    atoms.get_forces()
    np.testing.assert_allclose(
        atoms.calc.results["forces_uncertainty"], loaded.at("excited").uncertainty(others).forces[0]
    )


def test_some_geometries_of_each_state(data):
    field = gdml.fit_states(data, couplings=COUPLINGS, **OPTIONS)
    some, everything = (gdml.with_uncertainty(field, data, most_unknowns=n).shared.error_model for n in (24, 1500))
    assert everything.is_exact and not some.is_exact
    assert torch.bincount(some.state_of).tolist() == [3, 3]
    features = field.shared.descriptor.evaluate(torch.tensor(water(1, "ground", 3).positions))
    a = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    more, less = (model.of(a).covariance(features)[1:, 1:] for model in (some, everything))
    assert torch.linalg.eigvalsh(more - less).min() > -1e-6 * float(more.diagonal().max())


def test_uncertainty_that_cannot_be(data, field):
    with pytest.raises(DataError, match="which geometry is of which state"):
        gdml.with_uncertainty(field, data["ground"])
    with pytest.raises(DataError, match="not the geometries and labels"):
        gdml.with_uncertainty(field, data | {"ground": data["ground"][1:]})
    with pytest.raises(DataError, match="are given as {state: dataset"):
        gdml.with_uncertainty(field, data, data["ground"])
    with pytest.raises(ModelMismatchError, match="'triplet' was not in the training data"):
        gdml.with_uncertainty(field, data, {"triplet": data["ground"]})
    with pytest.raises(FitError, match="posterior variance, not of the kind 'committee'"):
        gdml.with_uncertainty(field, data, kind="committee")
    with pytest.raises(FitError, match="at least 16 as most_unknowns"):
        gdml.with_uncertainty(field, data, most_unknowns=15)


def test_labels_of_states_survive(tmp_path):
    data = {(0, 1): water(3, "ground", 1), (np.int64(1), 2): water(3, "excited", 2)}
    found = gdml.fit_states(data, couplings=COUPLINGS, **OPTIONS)
    found.save(tmp_path / "states.npz")
    loaded = gdml.load(tmp_path / "states.npz")
    assert loaded.states == ((0, 1), (1, 2))
    assert len(loaded.at((1, np.int64(2))).y) == 6
    assert loaded.named("(1, 2)") == (1, 2)


def test_calculator(field, others, tmp_path):
    field.save(tmp_path / "states.npz")
    atoms = water(1, "ground", 3).to_atoms()[0]
    for given in (field, tmp_path / "states.npz", str(tmp_path / "states.npz")):
        atoms.calc = gdml.GDMLCalculator(given, state="excited")
        energy, forces, _ = field.at("excited").predict(atoms.positions)
        assert atoms.get_potential_energy() == energy
        np.testing.assert_array_equal(atoms.get_forces(), forces)
    with pytest.raises(ModelMismatchError, match="knows the states 'ground', 'excited'; say which"):
        gdml.GDMLCalculator(field)
    with pytest.raises(ModelMismatchError, match="knows no states, and the state 'excited' was asked for"):
        gdml.GDMLCalculator(field.at("ground"), state="excited")


def test_errors_of_all_states(field, data):
    others = {state: water(10, state, 3) for state in data}
    found = gdml.evaluate(field, others)
    assert found == {state: gdml.evaluate(field.at(state), dataset) for state, dataset in others.items()}
    assert list(gdml.evaluate(field, {"excited": others["excited"]})) == ["excited"]
    with pytest.raises(ModelMismatchError, match="'triplet' was not in the training data"):
        gdml.evaluate(field, {"triplet": others["ground"]})
    with pytest.raises(ModelMismatchError, match="knows no states"):
        gdml.evaluate(field.at("ground"), others)


@pytest.mark.parametrize(
    "use",
    [
        lambda field, dataset, atoms: gdml.evaluate(field, dataset),
        lambda field, dataset, atoms: coverage(field, dataset),
        lambda field, dataset, atoms: gdml.contributions(field, dataset.positions),
        lambda field, dataset, atoms: gdml.relax(field, atoms),
        lambda field, dataset, atoms: gdml.vibrations(field, atoms),
        lambda field, dataset, atoms: gdml.distill(field, dataset, 20),
        lambda field, dataset, atoms: gdml.dynamics.run_md(field, atoms, steps=1, temperature_K=300),
        lambda field, dataset, atoms: gdml.dynamics.run_pimd(field, atoms, n_beads=2, steps=1, temperature_K=300),
        lambda field, dataset, atoms: field.hessian(atoms.positions),
        lambda field, dataset, atoms: field.outside(atoms.positions),
    ],
)
def test_what_is_for_one_state_says_so(field, data, use):
    with pytest.raises(ModelMismatchError, match=r"knows the states 'ground', 'excited'; .*\.at\(state\)"):
        use(field, data["ground"], data["ground"].to_atoms()[0])


def test_it_stays_an_ordinary_object(field):
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = field.nonsense
    fresh = replace(field, shared=replace(field.shared))  # without functions that it keeps once it has predicted
    for again in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        np.testing.assert_array_equal(again.couplings, field.couplings)


def test_unknown_state_is_refused(field):
    for ask in (lambda: field.at("triplet"), lambda: field.gap("ground", "triplet"), lambda: field.named("triplet")):
        with pytest.raises(ModelMismatchError, match="'triplet' was not in the training data; the states are 'ground'"):
            ask()


def test_one_geometry_or_one_state_is_not_enough(data):
    with pytest.raises(DataError, match="state 'excited': 1 geometry is not enough"):
        gdml.fit_states({**data, "excited": data["excited"][:1]}, **OPTIONS)
    with pytest.raises(DataError, match=r"1 state \('ground'\) was found; of one state, gdml.fit makes"):
        gdml.fit_states({"ground": data["ground"]}, **OPTIONS)
    with pytest.raises(DataError, match="0 state was found"):
        gdml.fit_states({}, **OPTIONS)


@pytest.mark.parametrize(
    "couplings, message",
    [
        ([[1.0, 1.2], [1.2, 1.0]], "positive semidefinite, and they have the eigenvalue -0.2"),
        ([[1.0, 0.5], [0.4, 1.0]], "must be symmetric"),
        (np.eye(3), r"have the shape \(2, 2\), not \(3, 3\)"),
        ([[1.0, np.nan], [np.nan, 1.0]], "NaN or infinite"),
        ([[1.0, 0.0], [0.0, 0.0]], "with themselves must be positive"),
        ("none", "couplings are 'auto' or a matrix"),
    ],
)
def test_impossible_couplings(data, couplings, message):
    with pytest.raises(FitError, match=message):
        gdml.fit_states(data, couplings=couplings, **OPTIONS)


def test_couplings_may_be_singular():
    np.testing.assert_array_equal(check_couplings(np.ones((3, 3)), (0, 1, 2)), np.ones((3, 3)))


def test_data_that_do_not_fit(data, frames):
    with pytest.raises(DataError, match="state 'other' is of C2H6O and 'ground' of H2O"):
        gdml.fit_states({"ground": data["ground"], "other": frames[:3]}, **OPTIONS)
    twice = data["ground"].joined(data["ground"][:1])
    with pytest.raises(DataError, match="state 'ground': 1 geometries occur twice"):
        gdml.fit_states(data | {"ground": twice}, **OPTIONS)
    with pytest.raises(DataError, match="state 'excited': .* has no forces"):
        gdml.fit_states(data | {"excited": replace(data["excited"], forces=None, name="labels")}, **OPTIONS)
    units = water(40, "excited", 2)
    units = replace(units, energy=23.06 * units.energy)
    with pytest.raises(DataError, match=r"state 'excited': .*kcal/mol against eV"):
        gdml.fit_states(data | {"excited": units}, **OPTIONS)
    with pytest.raises(DataError, match="which geometry is of which state"):
        gdml.fit_states(frames)
    with pytest.raises(DataError, match="given by state already"):
        gdml.fit_states(data, state="spin_multiplicity")


def test_what_can_be_no_label(data):
    for label in (None, object(), float("nan")):
        with pytest.raises(DataError, match="a state is labelled by a number, a text"):
            gdml.fit_states({"ground": data["ground"], label: data["excited"]}, **OPTIONS)


@pytest.fixture(scope="module")
def file(data, tmp_path_factory):
    """One file of both states, in turns."""
    path, frames = tmp_path_factory.mktemp("states") / "both.extxyz", []
    for label, (name, dataset) in zip((1, 3), data.items()):
        for atoms in dataset.to_atoms():
            atoms.info |= {"spin_multiplicity": label, "total_charge": 0, "level": name}
            frames.append(atoms)
    ase.io.write(path, frames[::2] + frames[1::2])
    return path


def test_read_states(file, data):
    found = gdml.read_states(file, "spin_multiplicity")
    assert list(found) == [1, 3] and [len(d) for d in found.values()] == [12, 10]
    assert found[1].name == "both" and found[3].frame_numbers.tolist()[:3] == [6, 7, 8]
    np.testing.assert_allclose(np.sort(found[3].energy), np.sort(data["excited"].energy), atol=1e-6)
    pairs = gdml.read_states(file, ("total_charge", "level"), index="::2")
    assert set(pairs) == {(0, "ground"), (0, "excited")}
    assert gdml.fit_states(file, state="level", couplings=COUPLINGS, **OPTIONS).states == ("ground", "excited")


def test_frames_without_a_state(file):
    frames = ase.io.read(file, ":")
    with pytest.raises(DataError, match="no frame has the state 'spin'; the frames have level, spin_mult"):
        gdml.read_states(frames, "spin")
    del frames[4].info["level"]
    with pytest.raises(DataError, match="the state 'level' is missing in frame 4"):
        gdml.read_states(frames, "level")
    with pytest.raises(DataError, match="such a file has no states"):
        gdml.read_states("data.npz", "level")
    with pytest.raises(FileNotFoundError):
        gdml.read_states("nowhere.extxyz", "level")


def rewritten(source, target, **fields):
    with np.load(source) as archive:
        np.savez(target, **(dict(archive) | fields))
    return target


def test_damaged_files(field, tmp_path):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    field.save(good)
    for fields, message in (
        ({"couplings": np.array([[1.0, 2.0], [2.0, 1.0]])}, "damaged .*positive semidefinite"),
        ({"state_of": field.state_of + 1}, "do not fit"),
        ({"offsets": np.zeros(3)}, "do not fit"),
        ({"states": np.asarray("{")}, "damaged"),
    ):
        with pytest.raises(FormatError, match=message):
            gdml.load(rewritten(good, bad, **fields))
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(bad, "w") as other:
        for name in archive.namelist():
            if name != "couplings.npy":
                other.writestr(name, archive.read(name))
    with pytest.raises(FormatError, match="no field 'couplings'"):
        gdml.load(bad)


def test_shares_of_states():
    assert shares_of([3, 100, 40], 60) == [(0, 3), (1, 29), (2, 28)]
    assert shares_of([3, 4], 60) == [(0, 3), (1, 4)]
    assert shares_of([50, 50], 1) == [(0, 1), (1, 1)]


def test_command_line(file, data, tmp_path, capsys):
    model = tmp_path / "model.npz"
    common = ["--length-scale", "20", "--descriptor", "inverse-distances", "-q"]
    assert main(["train", str(file), "--state", "spin_multiplicity", "--n-train", "8", "-o", str(model), *common]) == 0
    out = capsys.readouterr().out
    assert "states 1 (8 geometries), 3 (8 geometries)" in out and "state 3: 2 geometries; forces MAE" in out
    assert main(["test", str(model), str(file), "--state", "spin_multiplicity", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"1", "3"}
    atoms = tmp_path / "start.xyz"
    ase.io.write(atoms, data["ground"].to_atoms()[0])
    assert main(["md", str(model), str(atoms), "--state", "3", "--temperature", "300", "--steps", "5", "-q"]) == 0
    assert main(["md", str(model), str(atoms), "--temperature", "300", "--steps", "5", "-q"]) == 3
    assert "knows the states 1, 3; say which" in capsys.readouterr().err
    assert main(["convert", str(model), str(tmp_path / "one.npz"), "--state", "3"]) == 0
    assert gdml.load(tmp_path / "one.npz").offset == pytest.approx(gdml.load(model, state=3).offset)
    capsys.readouterr()
    assert main(["show", str(model)]) == 0
    assert "states 1 (8 geometries)" in capsys.readouterr().out
    command = ["train", str(file), "--state", "level", "-o", str(model), *common]
    assert main([*command, "--use-stress"]) == 3
    assert "--use-stress does not go with --state" in capsys.readouterr().err
    assert main([*command, "--committee"]) == 3
    assert "--committee does not go with --state" in capsys.readouterr().err
    assert main([*command, "--n-train", "8", "--uncertainty"]) == 0
    assert "state excited: 2 geometries; forces MAE" in (out := capsys.readouterr().out)
    assert out.count("coverage of 90 % intervals of forces") == 2
    assert gdml.load(model, state="ground").uncertainty(data["ground"].positions).forces.shape == (12, 3, 3)
