"""Which solver is chosen, and that training by CG is training."""

import numpy as np
import pytest

import gdml
from gdml import cost, memory
from gdml.errors import FitError, MemoryBudgetError


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


def test_ends_where_the_held_out_error_has_settled(frames):
    training, validation, rest = frames[:100], frames[100:140], frames[140:]
    settings = {"length_scale": 20.0, "solver": "cg", "rtol": 1e-7, "rank": 400}
    patient = gdml.fit(training, **settings)
    settled = gdml.fit(training, **settings, validation=validation)
    assert settled.details["solver"]["iterations"] < patient.details["solver"]["iterations"]
    assert settled.details["solver"]["iterations"] % 10 == 0
    found, exact = (gdml.evaluate(f, rest).forces_mae for f in (settled, patient))
    assert found == pytest.approx(exact, rel=0.01)


def test_small_problems_are_solved_in_closed_form(frames):
    force_field = gdml.fit(frames[:60], length_scale=20.0)
    assert force_field.details["solver"]["name"] == "cholesky"
    assert "predicted" in force_field.details["solver"]["why"]


class Slow:
    """Stands for an operator where only the time of a product matters."""

    def matmul(self, v):
        return v


@pytest.mark.parametrize(
    "n_frames, n_atoms, order, expected",
    [(1000, 9, 6, "cg"), (200, 15, 72, "cholesky"), (500, 21, 6, "cg"), (100, 9, 6, "cholesky")],
)
def test_choice_by_time(n_frames, n_atoms, order, expected, monkeypatch):
    """The benchmark's cases, with the rates and products measured there."""
    monkeypatch.setattr(memory, "available_memory", lambda: 20 * 10**9)
    monkeypatch.setattr(cost, "_gemm_rate", lambda: 140e9)
    products = {(1000, 9): 0.086, (200, 15): 0.034, (500, 21): 0.034, (100, 9): 0.001}
    monkeypatch.setattr(cost, "_seconds_of", lambda function: products[n_frames, n_atoms])
    problem = cost.Problem(n_frames, 3 * n_atoms - 6, n_atoms * (n_atoms - 1) // 2, order)
    assert cost.choose_solver(problem, Slow(), "auto", problem.default_rank())[0] == expected


def test_choice_by_memory(frames, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 30 * 10**6)
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
