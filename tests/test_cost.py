"""Which solver is chosen, and that training by CG is training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import gdml
from gdml import cost, memory
from gdml.errors import FitError, MemoryBudgetError
from gdml.processes import Shares, Team
from gdml.solution import ForceMonitor


@pytest.mark.parametrize("preconditioner", ["rpcholesky", "cholesky", "leverage", "uniform", "svd"])
@pytest.mark.parametrize("use_energy", [False, True])
def test_cg_trains_as_the_closed_form(frames, preconditioner, use_energy):
    settings = {"length_scale": 20.0, "use_energy": use_energy}
    closed = gdml.fit(frames[:40], **settings, solver="cholesky")
    iterative = gdml.fit(frames[:40], **settings, solver="cg", preconditioner=preconditioner, rank=250, rtol=1e-6)
    left, right = (f.predict(frames.positions[100:120]) for f in (closed, iterative))
    np.testing.assert_allclose(left.forces, right.forces, atol=1e-4)
    np.testing.assert_allclose(left.energy, right.energy, atol=1e-4)
    account = iterative.details["solver"]
    assert account["name"] == "cg" and account["rank"] == 250 and account["residual"] <= 1e-6
    assert closed.details["solver"]["name"] == "cholesky"


def test_default_tolerance_is_good_enough(frames):
    training, rest = frames[:120], frames[120:]
    closed, iterative = (gdml.fit(training, length_scale=20.0, solver=s) for s in ("cholesky", "cg"))
    exact, found = (gdml.evaluate(f, rest).forces_mae for f in (closed, iterative))
    assert found == pytest.approx(exact, rel=0.01)


def test_ends_where_more_iterations_would_not_help_the_held_out_error(frames):
    training, validation, rest = frames[:100], frames[100:140], frames[140:]
    settings = {"length_scale": 20.0, "solver": "cg", "rank": 400, "validation": validation}
    patient = gdml.fit(training, **settings, rtol=1e-7)
    settled = gdml.fit(training, **settings)
    assert settled.details["solver"]["iterations"] < patient.details["solver"]["iterations"]
    found, exact = (gdml.evaluate(f, rest).forces_mae for f in (settled, patient))
    assert found == pytest.approx(exact, rel=0.01)


def test_ends_by_the_error_that_the_choice_of_the_length_scale_found(frames):
    chosen = gdml.fit(frames[:100], solver="cg", rank=200)
    settings = {"descriptor": chosen.descriptor, "length_scale": chosen.length_scale, "noise": chosen.details["noise"]}
    exact = gdml.fit(frames[:100], solver="cholesky", **settings)
    assert 1e-6 < chosen.details["solver"]["residual"] < 0.05
    found, best = (gdml.evaluate(f, frames[100:]).forces_mae for f in (chosen, exact))
    assert found == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize(
    ("expected", "errors", "goal"), [(0.02, [], 0.001), (0.02, [9.0, 0.04], 0.002), (None, [], 3e-4), (1e9, [], 0.1)]
)
def test_goal_of_the_residual(expected, errors, goal):
    labels = SimpleNamespace(basis=torch.ones(5, 6, 3), values=torch.ones(5, 3) * 2**0.5)  # |y|² = 30
    operator = SimpleNamespace(labels=labels, shares=Shares(Team(), 5), norm=torch.linalg.norm)
    monitor = ForceMonitor(expected=expected)
    monitor.errors = errors
    assert monitor.goal(operator) == pytest.approx(goal)


def test_too_little_memory_for_processes(monkeypatch):
    problem = cost.Problem(2000, 21, 36, 6, n_processes=4)
    monkeypatch.setattr(memory, "available_memory", lambda *_: 10**8)
    with pytest.raises(MemoryBudgetError, match="rank 5000 takes .* of each process.* lower rank, or more"):
        cost.choose(problem, (100, 1e-3, 1e-4), 1e-10, "cg", 5000)


def test_small_problems_are_solved_in_closed_form(frames):
    force_field = gdml.fit(frames[:60], length_scale=20.0)
    assert force_field.details["solver"]["name"] == "cholesky"
    assert "small" in force_field.details["solver"]["why"]


# Rank, and means of the diagonal that half of it and all of it miss, as measured; then what is faster there.
CASES = {
    "ethanol 300": ((300, 21, 36, 6), (131, 4.8e-7, 7.5e-8), "cg"),
    "ethanol 1000": ((1000, 21, 36, 6), (437, 3.1e-8, 1.0e-8), "cg"),
    "acetylacetone 200": ((200, 39, 105, 72), (162, 3.5e-6, 7.5e-7), "cholesky"),
    "aspirin 120": ((120, 57, 210, 6), (142, 4.9e-5, 1.3e-5), "cholesky"),
    "aspirin 500": ((500, 57, 210, 6), (593, 5.3e-6, 2.0e-6), "cg"),
}


@pytest.mark.parametrize("name", CASES)
def test_choice_by_time(name, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda *_: 20 * 10**9)
    sizes, decay, expected = CASES[name]
    choice = cost.choose(cost.Problem(*sizes), decay, 1e-10, "auto", None)
    assert choice.name == expected and "predicted" in choice.why


def test_rank_follows_the_decay(monkeypatch):
    """The slower the decay, the more columns pay; never more than the memory holds."""
    monkeypatch.setattr(memory, "available_memory", lambda *_: 20 * 10**9)
    problem = cost.Problem(500, 57, 210, 6)
    fast, slow = (cost.choose_rank(problem, (593, 8e-6, after), 1e-10) for after in (1e-8, 4e-6))
    assert fast[0] < slow[0] <= problem.n_unknowns // cost.MOST and fast[1] < slow[1]
    monkeypatch.setattr(memory, "available_memory", lambda *_: 10**8)
    assert cost.choose_rank(problem, (593, 8e-6, 4e-6), 1e-10)[0] <= 10**8 / 16 / problem.n_unknowns


def test_rank_grows_where_cg_is_slow(frames, monkeypatch):
    """With too few iterations for the first rank, the next goes on from where it ended."""
    settings = {"length_scale": 20.0, "solver": "cg", "rtol": 1e-6}
    expected = gdml.fit(frames[:40], **settings)
    monkeypatch.setattr(cost.Problem, "patience", lambda problem, rank: 4)
    grown = gdml.fit(frames[:40], **settings)
    first, second = (f.details["solver"] for f in (expected, grown))
    assert second["rank"] >= 2 * first["rank"] and second["residual"] <= 1e-6
    left, right = (f.predict(frames.positions[100:120]) for f in (expected, grown))
    np.testing.assert_allclose(left.forces, right.forces, atol=1e-4)
    # A rank that was asked for is kept.
    fixed = gdml.fit(frames[:40], **settings, rank=first["rank"])
    assert fixed.details["solver"]["rank"] == first["rank"]


def test_choice_by_memory(frames, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda *_: 30 * 10**6)
    force_field = gdml.fit(frames[:110], length_scale=20.0, rank=150)
    account = force_field.details["solver"]
    assert account["name"] == "cg" and "the closed form needs 0.1 GB" in account["why"]
    with pytest.raises(MemoryBudgetError, match="geometries would fit"):
        gdml.fit(frames[:110], length_scale=20.0, solver="cholesky")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"solver": "magic"}, "the solver is 'auto', 'cholesky' or 'cg'"),
        ({"preconditioner": "magic"}, "unknown preconditioner 'magic'"),
        ({"rank": 0}, "rank must be a positive integer"),
        ({"rank": "many"}, "rank must be a positive integer"),
        ({"neighbours": -1}, "number of neighbours must be 'auto' or an integer"),
        ({"rtol": 0.0}, "rtol must lie between 0 and 1"),
        ({"rtol": 1e-15, "solver": "cg", "rank": 60}, "did not converge"),
    ],
)
def test_bad_settings(frames, settings, message, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["gdml.solvers.cg"], "PATIENCE", 30)
    with pytest.raises(FitError, match=message):
        gdml.fit(frames[:10], length_scale=20.0, **settings)


@pytest.mark.filterwarnings("ignore::gdml.errors.EnergyWarning")
def test_without_noise(frames):
    """The closed form may fail, CG regularises by stopping early; neither gives NaN silently."""
    force_field = gdml.fit(frames[:10], length_scale=20.0, noise=0.0, solver="cg", rtol=1e-3)
    assert np.isfinite(force_field.predict(frames.positions[:3]).forces).all()
