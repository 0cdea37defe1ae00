"""Variances against the dense Gaussian process, their scale, selection from pools, and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gdml
from gdml.committee import halves
from gdml.errors import DataError, FitError
from gdml.pool import METHODS
from gdml.posterior import scale_of
from gdml.uncertainty import coverage

from .dense import conditioned, dense_blocks


@pytest.fixture(scope="module")
def trained(frames):
    field = gdml.fit(frames[:30], length_scale=20.0)
    return gdml.with_uncertainty(field, frames[:30], frames[100:130])


def dense_covariance(field, training, positions):
    """Of energy (relative to the mean) and forces of a geometry, from energies of the kernel alone by autograd."""
    whole = dense_blocks(field, [positions, *training.positions])
    n = 3 * training.n_atoms + 1
    # What is observed: all slopes of the training geometries, and the mean of their energies.
    observe = torch.zeros(len(training) * (n - 1) + 1, len(whole), dtype=torch.float64)
    for k in range(len(training)):
        at = (k + 1) * n
        observe[k * (n - 1) : (k + 1) * (n - 1), at + 1 : at + n] = torch.eye(n - 1)
        observe[-1, at] = 1 / len(training)
    ask = torch.zeros(n, len(whole), dtype=torch.float64)
    ask[:, :n] = torch.eye(n)
    ask[0] -= observe[-1]
    return conditioned(whole, observe, ask, field.details["noise"])


def test_variances_against_the_dense_process(frames):
    field = gdml.fit(frames[:4], length_scale=3.0, noise=1e-6)
    posterior = gdml.with_uncertainty(field, frames[:4]).error_model
    assert posterior.is_exact
    found = posterior.covariance(field.descriptor.evaluate(torch.tensor(frames.positions[50:51])))
    expected = dense_covariance(field, frames[:4], frames.positions[50])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.diagonal().max()))


def test_energies_that_were_trained_on_are_known(frames):
    field = gdml.fit(frames[:10], length_scale=20.0, use_energy=True)
    field = gdml.with_uncertainty(field, frames[:10])
    known, other = (field.uncertainty(frames.positions[k : k + 10]) for k in (0, 100))
    assert known.energy.max() < 0.5 * other.energy.min()
    assert known.forces.max() < 0.1 * other.forces.mean()


def test_what_was_left_out_is_predicted_as_by_a_training_without(frames):
    """Residuals and variances in closed form against a training on all other geometries."""
    field = gdml.with_uncertainty(gdml.fit(frames[:8], length_scale=20.0), frames[:8])
    labels = gdml.uncertainty.labels_of_field(field, frames[:8])
    residuals, covariances = field.error_model.left_out(labels.values)
    rest = [k for k in range(8) if k != 3]
    without = gdml.fit(frames[rest], length_scale=20.0)
    error = (frames.forces[3] - without.predict(frames.positions[3]).forces).ravel()
    np.testing.assert_allclose(-(labels.basis[3] @ residuals[3]).numpy(), error, atol=2e-3 * np.abs(error).max())
    variances = gdml.with_uncertainty(without, frames[rest]).error_model
    basis, one = labels.basis[3], without.descriptor.evaluate(torch.tensor(frames.positions[3:4]))
    slopes = variances.covariance(one)[1:, 1:]
    expected = basis.T @ slopes @ basis
    torch.testing.assert_close(covariances[3], expected, rtol=1e-2, atol=1e-2 * float(expected.diagonal().max()))


def test_coverage_of_other_geometries(trained, frames):
    """Near and, of the highest energies, far."""
    assert 0.83 < float(coverage(trained, frames[130:])[0]) < 0.96
    levels = np.array([0.3, 0.6, 0.9])
    found = coverage(trained, frames[130:], levels)
    assert (np.diff(found) > 0).all() and np.abs(found - levels).max() < 0.2
    assert "30 held-out" in trained.error_model.calibration


def test_large_where_errors_are(trained, frames):
    rest = frames[130:]
    errors = np.abs(trained.predict(rest.positions).forces - rest.forces).mean((1, 2))
    deviations = trained.uncertainty(rest.positions).forces.mean((1, 2))
    assert np.corrcoef(np.log(errors), np.log(deviations))[0, 1] > 0.4
    stretched = rest.positions[0] * 1.3
    assert trained.uncertainty(stretched).forces.mean() > 3 * deviations.max()


def test_some_geometries_give_an_upper_bound(frames):
    field = gdml.fit(frames[:30], length_scale=20.0)
    all_of_them = gdml.with_uncertainty(field, frames[:30]).error_model
    some = gdml.with_uncertainty(field, frames[:30], most_unknowns=220).error_model
    assert all_of_them.is_exact and not some.is_exact and len(some.y) == 10
    x = field.descriptor.evaluate(torch.tensor(frames.positions[100:105]))
    for k in range(5):
        more = some.covariance(x[k : k + 1]) - all_of_them.covariance(x[k : k + 1])
        assert torch.linalg.eigvalsh(more[1:, 1:]).min() > -1e-6 * float(more.diagonal().max())


def test_one_more_geometry_is_as_all_from_the_start(frames):
    field = gdml.with_uncertainty(gdml.fit(frames[:9], length_scale=20.0, noise=1e-8), frames[:9])
    whole, values = field.error_model, gdml.uncertainty.labels_of_field(field, frames[:9]).values
    grown = replace(whole, y=whole.y[:6], duals=whole.duals[:6])
    for k in range(6, 9):
        grown = grown.grown(whole.y[k : k + 1], whole.duals[k : k + 1])
    torch.testing.assert_close(grown._inverse_factor, whole._inverse_factor, rtol=1e-5, atol=1e-3)
    w = (whole.duals @ grown.solve(values)[..., None])[..., 0].numpy()
    np.testing.assert_allclose(w, field.w, rtol=1e-4, atol=1e-6 * np.abs(field.w).max())
    with pytest.raises(FitError, match="nearly equal"):
        replace(whole, noise=0.0).grown(whole.y[:1], whole.duals[:1])


def test_symmetric_copies_are_equally_uncertain(trained, frames):
    positions = frames.positions[50]
    images = np.stack([positions[row] for row in trained.group.permutations])
    found = trained.uncertainty(images)
    np.testing.assert_allclose(found.energy, found.energy[0], rtol=1e-4)
    for image, row in zip(found.forces, trained.group.permutations):
        np.testing.assert_allclose(image, found.forces[0][row], rtol=1e-4)


@pytest.mark.parametrize("baseline", [None, "zbl"])
@pytest.mark.filterwarnings("ignore:the baseline .* does not help")
def test_files_and_calculators_keep_it(frames, tmp_path, baseline):
    field = gdml.with_uncertainty(gdml.fit(frames[:10], length_scale=20.0, baseline=baseline), frames[:10])
    field.save(tmp_path / "m.npz")
    again = gdml.load(tmp_path / "m.npz")
    expected = field.uncertainty(frames.positions[20:23])
    np.testing.assert_allclose(again.uncertainty(frames.positions[20:23]).forces, expected.forces, rtol=1e-6)
    (atoms, *_) = frames[20].to_atoms()
    atoms.calc = gdml.GDMLCalculator(again, uncertainty=True, warn_outside=False)
    atoms.get_forces()
    np.testing.assert_allclose(atoms.calc.results["forces_uncertainty"], expected.forces[0], rtol=1e-6)
    assert atoms.calc.results["energy_uncertainty"] == pytest.approx(expected.energy[0], rel=1e-6)


def test_kernels_between_atoms(frames):
    field = gdml.fit(frames[:8], descriptor="many-body", kernel="gaussian", length_scale=6.0, noise=1e-6)
    field = gdml.with_uncertainty(field, frames[:8], frames[20:40])
    assert 0.8 < float(coverage(field, frames[40:60])[0]) < 0.98


def test_scale():
    errors = np.random.default_rng(0).normal(scale=3.0, size=20_000)
    assert scale_of(errors, np.ones(20_000)) == pytest.approx(3.0, rel=0.02)


def test_what_symmetry_says_is_not_judged():
    """Forces out of the plane of a planar molecule are known to be zero, and say nothing of the scale."""
    rng = np.random.default_rng(0)
    errors, deviations = rng.normal(size=(200, 3, 3)), np.ones((200, 3, 3))
    expected = scale_of(errors[..., :2], deviations[..., :2])
    errors[..., 2] = deviations[..., 2] = 0.0
    assert scale_of(errors, deviations) == expected
    deviations[..., 2] = 1e-9
    assert scale_of(errors, deviations) == expected
    assert scale_of(errors[..., 2], deviations[..., 2]) == 0.0


def test_what_cannot_be_done_is_said(frames, force_field):
    with pytest.raises(FitError, match="knows no uncertainty"):
        force_field.uncertainty(frames.positions[0])
    with pytest.raises(FitError, match="knows no uncertainty"):
        gdml.GDMLCalculator(force_field, uncertainty=True)
    with pytest.raises(DataError, match="not the geometries and labels"):
        gdml.with_uncertainty(force_field, frames[:50])
    with pytest.raises(FitError, match="as most_unknowns"):
        gdml.with_uncertainty(force_field, frames[:60], most_unknowns=30)


@pytest.mark.parametrize("method", METHODS)
def test_selection(frames, method):
    chosen = gdml.select(frames[:60], 10, method=method)
    assert len(set(chosen.tolist())) == 10 and chosen.min() >= 0 and chosen.max() < 60
    np.testing.assert_array_equal(chosen, gdml.select(frames[:60], 10, method=method))


@pytest.mark.parametrize("method", ["farthest", "pivoted"])
def test_selection_sees_copies(frames, method):
    """Symmetric copies of a geometry, moved and turned, are not chosen twice; and a choice can be continued."""
    rows = gdml.molecular_group(frames).permutations
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    copies = np.concatenate([frames.positions[:6][:, row] @ turn for row in rows])
    pool = gdml.Dataset(copies, frames.numbers)
    chosen = gdml.select(pool, 6, method=method)
    assert sorted(c % 6 for c in chosen) == list(range(6))
    np.testing.assert_array_equal(gdml.select(pool, 3, method=method, start=chosen[:3]), chosen[3:])


def test_farthest_is_farthest(frames):
    """Against distances over all images of descriptors, written out."""
    pool = frames[:25]
    rows = gdml.molecular_group(pool)
    x = gdml.InverseDistances(9).evaluate(torch.tensor(pool.positions)).x
    images = x[:, torch.tensor(gdml.InverseDistances(9).action(rows).rows())]
    distances = (x[:, None, None] - images[None]).norm(dim=3).amin(2)
    chosen = gdml.select(pool, 8).tolist()
    for k in range(1, 8):
        nearest = distances[chosen[:k]].amin(0)
        nearest[chosen[:k]] = -1
        assert chosen[k] == int(nearest.argmax())


@pytest.mark.parametrize(
    "n, options, error, message",
    [
        (61, {}, DataError, "61 geometries were asked for, but the pool has 60"),
        (58, {"start": [1, 2, 3]}, DataError, "has 57 besides the 3 chosen before"),
        (3, {"method": "best"}, FitError, "one of farthest, pivoted, energy, random"),
    ],
)
def test_selections_that_cannot_be_made(frames, n, options, error, message):
    with pytest.raises(error, match=message):
        gdml.select(frames[:60], n, **options)


@pytest.fixture(scope="module")
def by_committee(frames):
    field = gdml.fit(frames[:30], length_scale=20.0)
    return gdml.with_uncertainty(field, frames[:30], frames[100:130], kind="committee", n_members=4)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")  # of members, trained on five geometries
@pytest.mark.parametrize("use_energy", [False, True])
def test_members_are_force_fields_of_their_halves(frames, use_energy):
    options = {"length_scale": 20.0, "noise": 1e-8, "use_energy": use_energy}
    field = gdml.fit(frames[:10], **options)
    sure = gdml.with_uncertainty(field, frames[:10], kind="committee", n_members=4)
    positions, own = frames.positions[50:53], halves(10, 4)
    assert (own.sum(1) == 5).all() and (own.sum(0) == 2).all()
    members = [gdml.fit(frames[:10][rows], symmetry=field.group, **options) for rows in own]
    forces = np.array([member.predict(positions).forces for member in members])
    energies = np.array(
        [member.predict(positions).energy - member.predict(frames.positions[:10]).energy.mean() for member in members]
    )
    found, model = sure.uncertainty(positions), sure.error_model
    np.testing.assert_allclose(found.forces, model.scale * forces.std(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.energy, model.energy_scale * energies.std(0, ddof=1), rtol=1e-5)
    # The scale: of the errors of those that do not know a geometry.
    others = [[members[k].predict(frames.positions[j]).forces for k in np.flatnonzero(~own[:, j])] for j in range(10)]
    ratio = np.abs(np.mean(others, 1) - frames.forces[:10]) / np.std(others, 1, ddof=1)
    assert model.scale == pytest.approx(np.quantile(ratio, 0.9) / 1.6449, rel=1e-5)


def test_coverage_by_a_committee(by_committee, frames):
    assert 0.8 < coverage(by_committee, frames[130:200])[0] < 0.97
    assert "30 held-out" in by_committee.error_model.calibration


def test_a_committee_in_a_file(by_committee, frames, tmp_path):
    by_committee.save(tmp_path / "m.npz")
    loaded = gdml.load(tmp_path / "m.npz")
    expected, found = (field.uncertainty(frames.positions[60:63]) for field in (by_committee, loaded))
    np.testing.assert_allclose(found.forces, expected.forces, rtol=1e-9)
    np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-9)
    atoms = frames[60].to_atoms()[0]
    atoms.calc = gdml.GDMLCalculator(loaded, uncertainty=True)
    atoms.get_forces()
    np.testing.assert_allclose(atoms.calc.results["forces_uncertainty"], expected.forces[0], rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "ensemble"}, "one of posterior, committee"),
        ({"kind": "committee", "n_members": 5}, "even number"),
        ({"kind": "committee", "n_members": 2}, "four or more"),
    ],
)
def test_committees_that_cannot_be(frames, force_field, options, message):
    with pytest.raises(FitError, match=message):
        gdml.with_uncertainty(replace(force_field, details={}), frames[:30], **options)


def test_a_committee_of_too_few_geometries(frames):
    with pytest.raises(FitError, match="6 geometries"):
        gdml.with_uncertainty(gdml.fit(frames[:4], length_scale=20.0), frames[:4], kind="committee")


@pytest.mark.filterwarnings("ignore:energies disagree")
@pytest.mark.parametrize("kind", ["posterior", "committee"])
def test_what_is_usual(frames, kind):
    """Nine in ten training geometries, judged by what does not know them, are no less certain."""
    training, options = frames[:12], {"length_scale": 20.0, "noise": 1e-8, "descriptor": "inverse-distances"}
    found = gdml.with_uncertainty(gdml.fit(training, **options), training, kind=kind).error_model
    if kind == "committee":
        assert 0 < found.usual < np.inf
        return
    spreads = []
    for k in range(12):
        others = training[np.delete(np.arange(12), k)]
        alone = gdml.with_uncertainty(gdml.fit(others, symmetry=gdml.molecular_group(training), **options), others)
        forces = alone.uncertainty(training.positions[k]).forces * (found.scale / alone.error_model.scale)
        spreads.append(np.sqrt((forces**2).mean()))
    # Predictions also know the mean energy of training, which takes away a few percent.
    assert np.quantile(spreads, 0.9) < found.usual < 1.05 * np.quantile(spreads, 0.9)


def test_one_state_takes_one_dataset(force_field, frames):
    with pytest.raises(DataError, match="fit_states"):
        gdml.with_uncertainty(force_field, {"singlet": frames[:60]})
