"""Training: exact on its own frames, as accurate as the reference implementation, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gdml
from gdml import memory, plan
from gdml.errors import DataWarning, EnergyWarning, MemoryBudgetError
from gdml.geometry import internal_basis
from gdml.hyperparameters import Chosen
from gdml.plan import MAX_SEARCH_UNKNOWNS
from gdml.selection import choose, hold_out

HERE = Path(__file__).parent


def test_reproduces_the_reference_implementation(frames):
    """sGDML 1.0.3 trained on the same 25 geometries with sig=20, lam=1e-10 and the same permutations."""
    force_field = gdml.fit(frames[:25], length_scale=20.0, noise=1e-10)
    assert force_field.symmetry.order == 6
    prediction = force_field.predict(frames[100:104].positions)
    with np.load(HERE / "reference_sgdml.npz") as reference:
        np.testing.assert_allclose(prediction.forces, reference["forces"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(prediction.energy, reference["energy"], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
@pytest.mark.parametrize("kernel, length_scale", [("matern52", 20.0), ("gaussian", 5.0)])
@pytest.mark.parametrize("use_energy", [False, True])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_interpolates_its_training_data(frames, kernel, length_scale, use_energy, power):
    few = frames[:12]
    descriptor = gdml.InverseDistances(few.n_atoms, power)
    settings = {"kernel": kernel, "length_scale": length_scale, "use_energy": use_energy, "descriptor": descriptor}
    force_field = gdml.fit(few, **settings, noise=1e-13)  # what is missed is the noise times the coefficients
    prediction = force_field.predict(few.positions)
    # A net force or torque, here of the reference's own rounding, is out of reach.
    basis = internal_basis(torch.tensor(few.positions)).numpy()
    reachable = np.einsum("miq,mjq,mj->mi", basis, basis, few.forces.reshape(12, -1)).reshape(12, 9, 3)
    np.testing.assert_allclose(prediction.forces, reachable, atol=1e-4)
    if use_energy:
        np.testing.assert_allclose(prediction.energy, few.energy, atol=1e-4)


def test_forces_are_the_negative_gradient(frames, force_field):
    positions, h = frames.positions[200], 1e-4
    steps = h * np.eye(27).reshape(27, 9, 3)
    slopes = (force_field.predict(positions + steps).energy - force_field.predict(positions - steps).energy) / (2 * h)
    np.testing.assert_allclose(force_field.predict(positions).forces.ravel(), -slopes, atol=2e-6)


def test_held_out_accuracy(frames):
    drawn = frames.sample(160)
    rest = np.setdiff1d(np.arange(240), drawn)
    metrics = gdml.evaluate(gdml.fit(frames[drawn], length_scale=20.0), frames[rest])
    assert metrics.forces_mae < 0.050
    assert metrics.energy_mae < 0.010
    assert metrics.n_frames == 80
    none = gdml.evaluate(gdml.fit(frames[drawn], length_scale=20.0, symmetry="none"), frames[rest])
    assert metrics.forces_mae < 0.7 * none.forces_mae


def test_invariance_of_the_force_field(frames, force_field, rng):
    positions = frames.positions[150]
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    energy, forces, _ = force_field.predict(positions)
    moved = force_field.predict(positions @ rotation + 5.0)
    assert moved.energy == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(moved.forces, forces @ rotation, atol=1e-9)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cross(positions, forces).sum(0), 0, atol=1e-10)
    for permutation in force_field.symmetry.permutations:
        permuted = force_field.predict(positions[permutation])
        assert permuted.energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(permuted.forces, forces[permutation], atol=1e-9)


def test_energies_help_where_there_are_few_geometries(frames):
    drawn, rest = frames.sample(15), np.arange(120, 240)
    with_energy = gdml.evaluate(gdml.fit(frames[drawn], length_scale=20.0, use_energy=True), frames[rest])
    without = gdml.evaluate(gdml.fit(frames[drawn], length_scale=20.0), frames[rest])
    assert with_energy.energy_rmse < without.energy_rmse


def test_forces_alone_are_enough(frames):
    forces_only = gdml.Dataset(frames.positions, frames.numbers, forces=frames.forces)
    relative = gdml.fit(forces_only[:40], length_scale=20.0)
    absolute = gdml.fit(frames[:40], length_scale=20.0)
    assert relative.energies_are_relative
    assert not absolute.energies_are_relative
    left, right = (f.predict(frames.positions[100:110]) for f in (relative, absolute))
    np.testing.assert_allclose(left.forces, right.forces, atol=1e-10)
    assert np.ptp(left.energy - right.energy) < 1e-9
    metrics = gdml.evaluate(relative, frames[100:])
    assert metrics.energies_are_relative
    assert metrics.energy_rmse == pytest.approx(gdml.evaluate(absolute, frames[100:]).energy_rmse, rel=0.2)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
@pytest.mark.parametrize("group", ["auto", "none", [list(range(9)), [0, 1, 2, 3, 4, 5, 6, 8, 7]]])
def test_groups(frames, group):
    force_field = gdml.fit(frames[:10], length_scale=20.0, symmetry=group)
    assert force_field.symmetry.order == {"auto": 6, "none": 1}.get(group if isinstance(group, str) else "", 2)


def test_two_atoms(rng):
    """A Morse curve: one distance, a linear molecule, a group of order 2."""
    distances = np.linspace(0.6, 0.9, 7)
    decay = np.exp(-2.0 * (distances - 0.75))
    positions = np.zeros((7, 2, 3))
    positions[:, 1, 2] = distances
    forces = np.zeros((7, 2, 3))
    forces[:, 1, 2] = -2 * 4.5 * 2.0 * (1 - decay) * decay
    forces[:, 0] = -forces[:, 1]
    dataset = gdml.Dataset(positions, [1, 1], energy=4.5 * (1 - decay) ** 2, forces=forces)
    force_field = gdml.fit(dataset, length_scale=5.0)
    assert force_field.symmetry.order == 2
    middle = np.array([[0.0, 0, 0], [0, 0, 0.78]])
    expected = 4.5 * (1 - np.exp(-2 * 0.03)) ** 2
    assert force_field.predict(middle).energy == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
def test_length_scale_can_be_chosen_without_validation(frames):
    assert gdml.fit(frames[:20]).length_scale > 0


def test_length_scale_is_chosen_on_held_out_frames(frames):
    training, validation = frames[:50], frames[200:]
    chosen = gdml.fit(training, validation=validation)
    best = gdml.evaluate(chosen, validation).forces_rmse
    for factor in (0.5, 0.8, 1.25, 2.0):
        other = gdml.fit(training, length_scale=factor * chosen.length_scale)
        assert gdml.evaluate(other, validation).forces_rmse > 0.98 * best


def test_search_uses_a_sample_of_large_sets(frames, monkeypatch):
    seen = []
    monkeypatch.setattr("gdml.plan.MAX_SEARCH_UNKNOWNS", 27 * 20)

    def error(force_field, dataset):
        seen.append(len(force_field.y))
        return evaluate(force_field, dataset)

    evaluate = plan.evaluate
    monkeypatch.setattr("gdml.plan.evaluate", error)
    monkeypatch.setattr("gdml.plan.MAX_LEFT_OUT", 1)
    monkeypatch.setattr("gdml.plan.MAX_JUDGED", 27 * 20)
    force_field = gdml.fit(frames[:60], descriptor="inverse-distances")
    assert (set(seen), len(force_field.y)) == ({20}, 60)
    assert MAX_SEARCH_UNKNOWNS > 2000


@pytest.mark.parametrize("best", [10.0, 300.0, 1024.0, 2048.0])
def test_search_goes_on_where_the_end_of_the_grid_is_best(best):
    chosen = choose(lambda scale, noise: abs(np.log(scale / best)), 1.0, [1e-10])
    assert abs(np.log2(chosen.length_scale / best)) <= 0.26
    assert chosen.error == pytest.approx(abs(np.log(chosen.length_scale / best)))


def test_search_of_the_noise():
    """Goes to smaller and larger ones, and follows with the length scale."""

    def judge(scale, noise):
        return abs(np.log(scale / 50.0)) + abs(np.log(noise / best))

    for best in (1e-9, 1e-8, 1e-6, 1e-4):
        chosen = choose(judge, 1.0, [1e-6, 1e-9, 1e-7, 1e-8, 1e-5, 1e-4])
        assert chosen.noise == best and abs(np.log2(chosen.length_scale / 50.0)) <= 0.5


def test_search_survives_singular_systems(frames):
    def judge(length_scale, noise):
        if length_scale > 100:
            raise gdml.errors.NotPositiveDefiniteError("singular")
        return gdml.evaluate(gdml.fit(frames[:8], length_scale=length_scale), frames[100:110]).forces_rmse

    assert choose(judge, 1.0, [1e-10]).length_scale < 100
    with pytest.raises(gdml.errors.FitError, match="no length scale between"):
        choose(judge, 1e3, [1e-10])


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
def test_few_geometries_choose_by_leaving_out(frames):
    """The error in closed form is that of trainings without each geometry; the choice is its minimum."""
    few = frames[:8]
    group = gdml.molecular_group(few)
    field = gdml.fit(few, descriptor="inverse-distances", symmetry=group)
    errors = []
    for factor in (0.6, 1.0, 1.6):
        own = {"descriptor": "inverse-distances", "symmetry": group, "length_scale": factor * field.length_scale}
        squares = []
        for k in range(8):
            without = gdml.fit(few[[i for i in range(8) if i != k]], **own)
            squares.append(((without.predict(few.positions[k]).forces - few.forces[k]) ** 2).mean())
        errors.append(np.sqrt(np.mean(squares)))
    assert errors[1] == min(errors)


def test_hold_out_is_apart(frames):
    training, validation = hold_out(frames[:50])
    assert (len(training), len(validation)) == (40, 10)
    together = np.concatenate([training.positions, validation.positions])
    assert len(np.unique(together.reshape(50, -1), axis=0)) == 50


@pytest.mark.parametrize("use_energy", [False, True])
@pytest.mark.parametrize(
    "factor, message",
    [
        (23.06, r"2[234]\..* times .*kcal/mol against eV"),
        (1 / 27.2, "0.03.* times .*Hartree against eV"),
        (1.89, "1.* times .*Bohr"),
        (-1.0, "gradients"),
        (0.0, "all energies are equal"),
    ],
)
def test_energies_of_other_units_are_found(frames, factor, message, use_energy):
    few = frames[:120]
    wrong = gdml.Dataset(few.positions, few.numbers, factor * few.energy, few.forces)
    with pytest.raises(gdml.errors.DataError, match=message):
        gdml.fit(wrong, length_scale=20.0, use_energy=use_energy)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
@pytest.mark.parametrize("n", [10, 15, 30])
@pytest.mark.parametrize("seed", range(5))
def test_few_good_energies_are_not_refused(frames, n, seed):
    few = frames[frames.sample(n, seed=seed, strata=None)]
    gdml.fit(few, length_scale=20.0, symmetry="none" if seed % 2 else "auto")


def test_an_outlier_does_not_shift_the_constant(frames):
    drawn = frames[:160]
    energy = drawn.energy.copy()
    energy[13] += 30.0
    odd = gdml.Dataset(drawn.positions, drawn.numbers, energy, drawn.forces)
    with pytest.warns(DataWarning, match="frame 13 "):
        offset = gdml.fit(odd, length_scale=20.0).offset
    assert offset == pytest.approx(gdml.fit(drawn, length_scale=20.0).offset, abs=1e-3)


def test_energies_that_do_not_belong_to_the_forces(frames, rng):
    shuffled = gdml.Dataset(
        frames.positions[:60], frames.numbers, rng.permutation(frames.energy[:60]), frames.forces[:60]
    )
    with pytest.warns(EnergyWarning, match="worst in frames .* With few geometries this is normal"):
        gdml.fit(shuffled, length_scale=20.0)


def test_a_single_wrong_energy_is_named(frames):
    energy = frames.energy[:160].copy()
    energy[13] += 1.0
    odd = gdml.Dataset(frames.positions[:160], frames.numbers, energy, frames.forces[:160])
    with pytest.warns(DataWarning, match="frame 13 "):
        gdml.fit(odd, length_scale=20.0)


def test_memory_is_predicted(frames, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda *_: 10_000_000)
    gdml.fit(frames[:20], length_scale=20.0)
    with pytest.raises(MemoryBudgetError, match=r"200 geometries .* GB are available; (\d+) geometries would fit") as e:
        gdml.fit(frames[:200], length_scale=20.0)
    fits = int(str(e.value).split(";")[1].split()[0])
    size = {"n_labels": 21, "size": 36, "order": 6}
    assert memory.closed_form_bytes(fits, **size) <= 10_000_000 < memory.closed_form_bytes(fits + 1, **size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
def test_prediction_of_memory_is_right():
    """Peak memory of a training, beyond what a small one in the same process has taken before."""
    code = (
        "import gdml; from gdml.data import ethanol; from gdml.memory import closed_form_bytes\n"
        "def peak():\n"
        "    return 1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "frames = ethanol()\n"
        "gdml.fit(frames[:60], length_scale=20.0); before = peak()\n"
        "gdml.fit(frames, length_scale=20.0)\n"
        "print((peak() - before) / closed_form_bytes(240, 21, 36, 6))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The upper triangle is allocated, but may never be touched.
    assert 0.4 < float(result.stdout) < 1.15


def test_available_memory_is_plausible():
    assert 10**8 < memory.available_memory() < 10**14


@pytest.mark.parametrize("n_all, expected", [(40, 5.0), (160, 5.0 * 4**-0.75)])
def test_with_more_geometries_the_length_scale_is_shorter(frames, monkeypatch, n_all, expected):
    """Halves while that is better, and beyond what can be judged by the power found, at most -3/4."""
    monkeypatch.setattr(plan, "judges", lambda made, training: training[:40])
    monkeypatch.setattr(plan, "error_of", lambda *arguments: 1 + abs(np.log(arguments[-1].length_scale / 5)))
    chosen, n_judged = plan.for_more(None, frames[:80], frames[100:], Chosen(20.0, 1.0, 1e-10), 10, n_all)
    assert chosen.length_scale == pytest.approx(expected)
    assert (chosen.error, n_judged) == (1.0, 40)


def test_as_many_geometries_as_before_leave_the_length_scale_alone(frames, monkeypatch):
    monkeypatch.setattr(plan, "judges", lambda made, training: training[:40])
    chosen = Chosen(20.0, 1.0, 1e-10)
    assert plan.for_more(None, frames[:80], frames[100:], chosen, 30, 400) == (chosen, 30)
