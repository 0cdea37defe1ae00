"""The most from few geometries: baselines, uncertainty, distillation, on held-out frames of the reference data.

All hyper-parameters are those that training chooses by itself.

    python benchmarks/few_geometries.py [PART ...]

The parts: table, flexible, distilled, coverage, cost, crystals, nanosecond, active; without any, all.
"""

import argparse
import dataclasses
import functools
import json
import tempfile
import warnings

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS
from common import DATA, RESULTS, dataset, median_seconds, run_parts

import gdml
from gdml.baselines import Baseline, as_baseline
from gdml.baselines.catalogue import parse
from gdml.dataset import read_structure
from gdml.dynamics import RingPolymerMD
from gdml.dynamics.classical import set_thermal_momenta
from gdml.errors import BaselineWarning, DynamicsError, EnergyWarning
from gdml.uncertainty import coverage

MOLECULES = {
    "ethanol": "molecules/rmd17_ethanol.extxyz",
    "aspirin": "molecules/rmd17_aspirin.extxyz",
    "acetylacetone": "molecules/acac_300K_train.extxyz",
    "3bpa": "molecules/3bpa_300K_train.extxyz",
}
CRYSTALS = {"KCl": "kcl64", "Si": "si64"}
N_TEST, SEEDS = 300, 3
XTB = "gfn2-xtb"


def errors(force_field: gdml.ForceField, test: gdml.Dataset) -> dict[str, float]:
    found = gdml.evaluate(force_field, test)
    return {"forces_mae": 1e3 * found.forces_mae, "forces_rmse": 1e3 * found.forces_rmse}


def split(name: str, n: int, seed: int, n_test: int = N_TEST) -> tuple[gdml.Dataset, gdml.Dataset]:
    frames = dataset(MOLECULES[name])
    order = np.random.default_rng(seed).permutation(len(frames))
    return frames[order[:n]], frames[order[n : n + n_test]]


def keep(part: str, result: dict) -> None:
    """Write what is there of a long part."""
    path = RESULTS / "few_geometries.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: result}, indent=2) + "\n")


def table() -> dict:
    """Force errors (meV/Å) of direct force fields and of differences to GFN2-xTB, for several draws."""
    result = {}
    for name, n in (("ethanol", 50), ("aspirin", 50), ("ethanol", 200), ("aspirin", 200)):
        cases = result.setdefault(name, {}).setdefault(str(n), {"direct": [], XTB: []})
        for seed in range(SEEDS):
            training, test = split(name, n, seed)
            cases["direct"].append(errors(gdml.fit(training), test))
            cases[XTB].append(errors(gdml.fit(training, baseline=XTB), test))
            print(name, n, seed, cases["direct"][-1], cases[XTB][-1], flush=True)
            keep("table", result)
    return result


def flexible() -> dict:
    """3BPA at 300 K: 450 geometries, and the other 50 to judge by."""
    result = {}
    for n in (50, 150, 450):
        training, test = split("3bpa", n, 0, 50)
        for baseline in (None, XTB):
            result[f"{n} {baseline or 'direct'}"] = errors(gdml.fit(training, baseline=baseline), test)
            print(n, baseline, result[f"{n} {baseline or 'direct'}"], flush=True)
            keep("flexible", result)
    return result


def distilled() -> dict:
    """Ethanol, 50 reference labels: the teacher, and a student of its dynamics."""
    training, test = split("ethanol", 50, 0)
    teacher = gdml.fit(training, baseline=XTB)
    result = {"teacher": errors(teacher, test)}
    for n in (500, 2000):
        found = gdml.distill(teacher, training, n)
        result[str(n)] = {
            "student": errors(found.force_field, test),
            "against_teacher_mae": 1e3 * found.against_teacher.forces_mae,
            "ms_teacher": found.ms_teacher,
            "ms_student": found.ms_student,
        }
        print(n, result["teacher"], result[str(n)], flush=True)
    return result


def of_coverage() -> dict:
    """Fractions of errors inside of calibrated 90 % intervals: frames like those of training, and of higher energy.

    Trained on 50 frames (crystals: 10) of the lower half of energies, calibrated on 25 (5) others of
    it, and judged on 60 (10) of it and of the upper quarter.
    """
    cases = {name: (MOLECULES[name], 50, 25, 60, None) for name in ("ethanol", "aspirin", "acetylacetone")}
    cases["Si"] = ("crystals/si64.extxyz", 10, 5, 10, "crystals/si64_reference.extxyz")
    result = {}
    for name, (path, n, n_calibration, n_test, reference) in cases.items():
        frames = dataset(path)
        by_energy = frames.energy.argsort()
        low = np.random.default_rng(0).permutation(by_energy[: len(frames) // 2])
        training, calibration = frames[low[:n]], frames[low[n : n + n_calibration]]
        tests = {
            "in": frames[low[n + n_calibration : n + n_calibration + n_test]],
            "out": frames[np.random.default_rng(0).permutation(by_energy[-len(frames) // 4 :])[:n_test]],
        }
        options = {} if reference is None else {"reference": read_structure(DATA / reference)}
        field = gdml.fit(training, **options)
        result[name] = {}
        ways = {"held out": (calibration, "posterior"), "leave-one-out": (None, "posterior")}
        for way, (held, kind) in (ways | {"committee": (calibration, "committee")}).items():
            sure = gdml.with_uncertainty(field, training, held, kind=kind)
            result[name][way] = {where: float(coverage(sure, test)[0]) for where, test in tests.items()}
        result[name]["forces_mae"] = {where: errors(field, test)["forces_mae"] for where, test in tests.items()}
        print(name, result[name], flush=True)
        keep("coverage", result)
    return result


def cost() -> dict:
    """Milliseconds for one geometry: a prediction, its uncertainty, and a prediction with GFN2-xTB."""
    result = {name: cost_of(*split(name, 50, 0)) for name in ("ethanol", "aspirin")}
    silicon, path = dataset("crystals/si64.extxyz"), DATA / "crystals/si64_reference.extxyz"
    return result | {"Si": cost_of(silicon[:10], silicon[10:], reference=read_structure(path))}


def cost_of(training: gdml.Dataset, test: gdml.Dataset, **options) -> dict[str, float]:
    baseline = None if options else XTB
    field, one = gdml.fit(training, baseline=baseline, **options), test.positions[0]
    kinds = {kind: gdml.with_uncertainty(field, training, kind=kind) for kind in ("posterior", "committee")}
    direct, model = dataclasses.replace(field, baseline=None), kinds["posterior"].error_model
    few = 3 if options else 30
    result = {
        "unknowns": len(model.y) * len(model.c),
        "predict_ms": 1e3 * median_seconds(lambda: direct.predict(one), 2 * few, 5),
    }
    for kind, sure in kinds.items():
        result[f"{kind}_ms"] = 1e3 * median_seconds(functools.partial(sure.uncertainty, one), few, 1)
    if baseline:
        unknown = iter(test.positions)  # to the baseline's memory
        result["with_baseline_ms"] = 1e3 * median_seconds(lambda: field.predict(next(unknown)), 50, 5)
    print(result, flush=True)
    return result


def crystals() -> dict:
    """Force errors (meV/Å) with and without a baseline, and what the check of training says."""
    result = {}
    uff = "lj(epsilon=0.0174, sigma=3.826)"  # between bonded atoms too, which UFF leaves out
    cases = {"KCl": [None, "coulomb(K=1, Cl=-1)", "gfn1-xtb"], "Si": [None, uff, "gfn1-xtb"]}
    for name, texts in cases.items():
        baselines = {text or "direct": as_baseline(text) for text in texts}  # each remembers its labels
        path = f"crystals/{CRYSTALS[name]}"
        frames, ideal = dataset(f"{path}.extxyz"), read_structure(DATA / f"{path}_reference.extxyz")
        order = np.random.default_rng(0).permutation(len(frames))
        for n in (5, 10, 20):
            test = frames[order[n : n + 20]]
            for text, baseline in baselines.items():
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", BaselineWarning)
                    field = gdml.fit(frames[order[:n]], reference=ideal, baseline=baseline)
                case = errors(field, test) | {"warned": any(w.category is BaselineWarning for w in said)}
                case["check"] = field.details.get("baseline_errors")
                result.setdefault(name, {}).setdefault(str(n), {})[text] = case
                print(name, n, text, case, flush=True)
                keep("crystals", result)
    return result


# Of active learning: molecules, the number of beads, labels of it and of random sets, and steps of the references.
LEARNED = {"methanol": "CH3OH", "ethanol": "CH3CH2OH", "formaldehyde": "H2CO", "formic acid": "HCOOH"}
BEADS, BUDGETS, DRAWN = 16, (30, 60), (30, 50, 60, 100)
SETTLING, SPACING, N_SNAPSHOTS, KELVIN = 1000, 40, 80, 300.0


def active() -> dict:
    """Errors on beads of path integrals at 300 K, of labels by active learning and of random frames of dynamics.

    The reference is GFN2-xTB. Random frames are of classical dynamics, which one usually has, and of the beads
    of path integrals, which take as many reference calculations for each step as there are beads.
    """
    result = {}
    for name, formula in LEARNED.items():
        reference = as_baseline(XTB)
        atoms = molecule(formula)
        atoms.calc = reference_calculator()
        BFGS(atoms, logfile=None).run(fmax=1e-3)
        atoms.calc = None
        quantum, classical = snapshots(atoms, reference, 2, BEADS), snapshots(atoms, reference, 8, 1)
        half = len(quantum) // 2
        test = quantum[half:]
        for kind, pool in {"classical": classical, "path integral": quantum[:half]}.items():
            for n in DRAWN:
                draws = [np.random.default_rng([n, seed]).permutation(len(pool))[:n] for seed in range(2 * SEEDS)]
                result.setdefault(name, {}).setdefault(kind, {})[n] = [
                    errors(gdml.fit(pool[np.sort(draw)]), test) for draw in draws
                ]
                print(name, kind, n, result[name][kind][n], flush=True)
        for seed in range(SEEDS):
            with tempfile.TemporaryDirectory() as folder:
                for n in BUDGETS:
                    found = gdml.learn_actively(
                        atoms,
                        reference_calculator(),
                        f"{folder}/labels.extxyz",
                        budget=n,
                        temperatures=(KELVIN,),
                        n_beads=BEADS,
                        seed=seed,
                    )
                    one = errors(found.force_field, test) | {"labels": len(found.dataset), "reason": found.reason}
                    result[name].setdefault("active", {}).setdefault(n, []).append(one)
                    print(name, "active", n, one, flush=True)
            keep("active", result)
    return result


def reference_calculator() -> Calculator:
    return parse(XTB)[0].make()


def snapshots(atoms: Atoms, reference: Baseline, n_replicas: int, n_beads: int) -> gdml.Dataset:
    """Labelled frames of dynamics with the reference, two beads of a ring at a time, replica by replica."""
    rng, replicas = np.random.default_rng(0), [atoms.copy() for _ in range(n_replicas)]
    for replica in replicas:
        set_thermal_momenta(replica, KELVIN, rng)

    def forces(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = reference.evaluate(atoms.numbers, positions.numpy())
        return torch.tensor(found.energy), torch.tensor(found.forces)

    dynamics = RingPolymerMD(
        replicas, TIMESTEP * units.fs, temperature_K=KELVIN, n_beads=n_beads, forces=forces, rng=rng
    )
    dynamics.run(SETTLING)
    taken = []
    for _ in range(N_SNAPSHOTS):
        dynamics.run(SPACING)
        taken.append(dynamics.positions[:, rng.permutation(n_beads)[:2]].numpy().copy())
    positions = np.array(taken).swapaxes(0, 1).reshape(-1, len(atoms), 3)
    labels = reference.evaluate(atoms.numbers, positions)
    return gdml.Dataset(positions, atoms.numbers, labels.energy, labels.forces)


# Picoseconds at 500 K with each kind of force field, one nanosecond in all, and samples that students learn from.
SPANS = {
    "ethanol": ({"direct": 260, XTB: 100, "distilled": 200}, 2000),
    "acetylacetone": ({"direct": 300, XTB: 100, "distilled": 40}, 500),
}
REPLICAS, TEMPERATURE, TIMESTEP, LOOK = 20, 500.0, 0.5, 1000  # of dynamics: K, fs, steps between records
MOST_STOPS = 20


def nanosecond() -> dict:
    """Dynamics at 500 K with force fields of 100 geometries: how long, and what ended them."""
    result = {}
    for name, (spans, n_samples) in SPANS.items():
        training, test = split(name, 100, 0)
        fields = {"direct": gdml.fit(training), XTB: gdml.fit(training, baseline=XTB)}
        for kind, picoseconds in spans.items():
            if kind == "distilled":
                fields[kind] = gdml.distill(fields[XTB], training, n_samples).force_field
            found = endured(fields[kind], training, picoseconds)
            result.setdefault(name, {})[kind] = {"forces_mae": errors(fields[kind], test)["forces_mae"]} | found
            print(name, kind, result[name][kind], flush=True)
            keep("nanosecond", result)
    return result


def endured(field: gdml.ForceField, training: gdml.Dataset, picoseconds: float) -> dict:
    """What happened in so many picoseconds of all replicas together, started anew where they were stopped."""
    rng, stops, kelvin, outside, looks = np.random.default_rng(0), [], [], 0, 0
    steps, limit = 0, int(1e3 * picoseconds / TIMESTEP / REPLICAS)
    while steps < limit and len(stops) < MOST_STOPS:
        dynamics, before = started(field, training, rng), steps
        try:
            while steps < limit:
                dynamics.run(min(LOOK, limit - steps))
                steps = before + dynamics.nsteps
                kelvin.append(2 * float(dynamics.mode_kinetic().mean()) / (3 * training.n_atoms * units.kB))
        except DynamicsError as error:
            steps = before + dynamics.nsteps
            stops.append(str(error))
        outside, looks = outside + dynamics.n_outside, looks + max(1, dynamics.nsteps // 10)
    return {
        "picoseconds": 1e-3 * TIMESTEP * REPLICAS * steps,
        "stops": stops,
        "kelvin": float(np.mean(kelvin)) if kelvin else None,
        "looks_outside": outside / looks,
    }


def started(field: gdml.ForceField, training: gdml.Dataset, rng: np.random.Generator) -> RingPolymerMD:
    replicas = []
    for frame in rng.choice(len(training), REPLICAS, replace=False):
        (atoms,) = training[[frame]].to_atoms()
        atoms.calc = None
        set_thermal_momenta(atoms, TEMPERATURE, rng)
        replicas.append(atoms)
    return RingPolymerMD(replicas, TIMESTEP * units.fs, temperature_K=TEMPERATURE, n_beads=1, forces=field, rng=rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    warnings.simplefilter("ignore", EnergyWarning)
    parts = {
        "table": table,
        "flexible": flexible,
        "distilled": distilled,
        "coverage": of_coverage,
        "cost": cost,
        "crystals": crystals,
        "nanosecond": nanosecond,
        "active": active,
    }
    run_parts("few_geometries", parts, parser.parse_args().parts)


if __name__ == "__main__":
    main()
