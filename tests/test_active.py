"""Active learning: what is labelled, kept, tried again and refused. The reference is a force field itself."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator

import gdml
from gdml import learn_actively as learn
from gdml.cli import main
from gdml.errors import ConvergenceError, DataError

pytestmark = pytest.mark.filterwarnings("ignore::gdml.errors.GDMLWarning")
FIXED = {"descriptor": "inverse-distances", "length_scale": 20.0}


class Reference(gdml.GDMLCalculator):
    """Counts what it is asked for, and fails where it is told to."""

    def __init__(self, force_field, fails=(), stops=None, factor=1.0):
        super().__init__(force_field, warn_outside=False)
        self.n, self.fails, self.stops, self.factor = 0, fails, stops, factor

    def calculate(self, *arguments, **options):
        self.n += 1
        if self.n == self.stops:
            raise KeyboardInterrupt
        if self.n in self.fails:
            raise RuntimeError("SCF not converged")
        super().calculate(*arguments, **options)
        self.results["energy"] = self.factor * self.results["energy"]


@pytest.fixture(scope="module")
def structure(frames, force_field):
    return gdml.relax(force_field, Atoms(frames.numbers, frames.positions[frames.energy.argmin()]), fmax=1e-2)


def test_learns_the_reference(structure, force_field, frames, tmp_path):
    """Errors of new labels fall, all are on disk, and what was learned is better than its beginning."""
    reference = Reference(force_field)
    found = learn(
        structure, reference, tmp_path / "labels.extxyz", budget=24, temperatures=(300, 500), max_steps=200, **FIXED
    )
    assert reference.n == 24 == len(found.dataset) == len(gdml.read(tmp_path / "labels.extxyz"))
    assert found.reason == "the budget is spent" and found.failed == 0
    assert np.mean(found.errors[-5:]) < 0.8 * np.mean(found.errors[:5])
    assert found.force_field.error_model.is_exact
    test = gdml.Dataset(frames.positions[:50], frames.numbers, *force_field.predict(frames.positions[:50])[:2])
    start = gdml.fit(found.dataset[:5], **FIXED)
    assert gdml.evaluate(found.force_field, test).forces_rmse < 0.5 * gdml.evaluate(start, test).forces_rmse


def test_goes_on_where_it_was_killed(structure, force_field, tmp_path):
    path = tmp_path / "labels.extxyz"
    first = Reference(force_field, stops=9)
    with pytest.raises(KeyboardInterrupt):
        learn(structure, first, path, budget=12, temperatures=(500,), max_steps=100, **FIXED)
    assert len(ase.io.read(path, ":")) == 8
    second = Reference(force_field)
    learn(structure, second, path, budget=12, temperatures=(500,), max_steps=100, **FIXED)
    assert second.n == 4 and len(ase.io.read(path, ":")) == 12


def test_failures_are_listed_and_tried_again(structure, force_field, tmp_path):
    path, beside = tmp_path / "labels.extxyz", tmp_path / "labels.failed.extxyz"
    options = {"temperatures": (500,), "max_steps": 60, **FIXED}
    found = learn(structure, Reference(force_field, fails=[3, 8]), path, budget=9, **options)
    assert found.failed == 2 and len(ase.io.read(beside, ":")) == 2
    again = Reference(force_field)
    found = learn(structure, again, path, budget=11, **options)
    assert again.n == 2 and found.failed == 0 and not beside.exists()


def test_a_reference_that_always_fails_is_given_up(structure, force_field, tmp_path):
    with pytest.raises(ConvergenceError, match="failed on 5 geometries in a row .*SCF not converged.*labels.failed"):
        learn(structure, Reference(force_field, fails=range(3, 100)), tmp_path / "labels.extxyz", budget=9, **FIXED)
    assert len(ase.io.read(tmp_path / "labels.extxyz", ":")) == 2


@pytest.mark.parametrize(
    "temperature, goal, reason",
    [
        (800, 10.0, "the error of the last 10 labels is below 10000 meV/Å"),
        (1, None, "dynamics at 1 K find nothing uncertain any more"),
    ],
)
def test_ends_at_the_goal_or_where_all_is_known(structure, force_field, tmp_path, temperature, goal, reason):
    options = {"budget": 40, "temperatures": (temperature,), "max_steps": 60, "goal": goal, **FIXED}
    found = learn(structure, Reference(force_field), tmp_path / "labels.extxyz", **options)
    assert found.reason == reason and len(found.dataset) < 40


def test_what_fails_with_the_baseline_is_not_paid_for(structure, force_field, tmp_path):
    class Fails(Reference):
        pass

    reference, baseline = Reference(force_field), Fails(force_field, fails=[2])
    found = learn(structure, reference, tmp_path / "l.extxyz", budget=6, max_steps=40, baseline=baseline, **FIXED)
    assert reference.n == len(found.dataset) and found.failed == 1


def test_a_structure_file_is_no_file_of_labels(structure, tmp_path, capsys):
    data = tmp_path / "m.labels.extxyz"
    ase.io.write(data, Atoms(structure.numbers, structure.positions))
    assert main(["learn", str(data), "--calculator", "zbl", "-o", str(tmp_path / "m.npz")]) == 3
    assert "is the structure to start from" in capsys.readouterr().err and len(ase.io.read(data, ":")) == 1


def test_path_integrals_and_baselines(structure, force_field, tmp_path):
    found = learn(
        structure,
        Reference(force_field),
        tmp_path / "labels.extxyz",
        budget=6,
        first=2,
        n_beads=4,
        max_steps=40,
        baseline="zbl",
        **FIXED,
    )
    assert len(found.dataset) == 6 and str(found.force_field.baseline) == "zbl"


class EnergyOnly(Calculator):
    implemented_properties = ["energy"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"budget": 3}, "5 geometries to begin with.* budget|there are 5 geometries to begin with"),
        ({"calculator": EnergyOnly()}, "EnergyOnly has no forces"),
        ({"structure": Atoms("H2", [[0, 0, 0], [0, 0, 0.75]])}, "not of the structure given"),
    ],
)
def test_what_is_refused(structure, force_field, frames, tmp_path, change, message):
    path = tmp_path / "labels.extxyz"
    frames[:6].write(path)
    options = {"structure": structure, "calculator": Reference(force_field), "labels": path, "budget": 9} | change
    with pytest.raises(DataError, match=message):
        learn(**options, **FIXED)


def test_other_units_are_noticed(structure, force_field, tmp_path):
    with pytest.raises(DataError, match="kcal/mol"):
        learn(
            structure,
            Reference(force_field, factor=23.06),
            tmp_path / "l.extxyz",
            budget=20,
            temperatures=(500,),
            **FIXED,
        )
