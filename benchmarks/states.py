"""Several states in one model, on held-out frames of the reference data: spins of carbene, levels of theory of ethanol.

All hyper-parameters are those that training chooses by itself.

    python benchmarks/states.py [carbene] [levels] [uncertainty]
"""

import argparse
import json
import warnings
from dataclasses import replace

import numpy as np
from common import DATA, RESULTS, dataset, run_parts

import gdml
from gdml.errors import BaselineWarning, DataWarning, EnergyWarning
from gdml.uncertainty import coverage

SINGLET, TRIPLET = 0, 2  # as the file labels them
SIZES, SEEDS, N_TEST = (50, 200, 1000), 3, 300
N_HELD = 20  # in each state, that scales of uncertainty are found on
CHEAP, EXPENSIVE = 500, 50
XTB = "gfn2-xtb"


def keep(part: str, result: dict) -> None:
    """Write what is there of a long part."""
    path = RESULTS / "states.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: result}, indent=2) + "\n")


def errors(energy: np.ndarray, forces: np.ndarray, reference: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Mean absolute errors, meV and meV/Å."""
    of_energy, of_forces = np.abs(energy - reference[0]).mean(), np.abs(forces - reference[1]).mean()
    return {"energy": 1e3 * float(of_energy), "forces": 1e3 * float(of_forces)}


def in_both_states(data: dict) -> np.ndarray:
    """Frames (n, 2) of the same geometry in the two states."""
    places = {s: {p.tobytes(): i for i, p in enumerate(d.positions.round(5) + 0.0)} for s, d in data.items()}
    return np.array([(i, places[TRIPLET][key]) for key, i in places[SINGLET].items() if key in places[TRIPLET]])


def judged(found: dict, gap: tuple[np.ndarray, np.ndarray], test: dict) -> dict[str, dict[str, float]]:
    """Errors in both states and of their gap."""
    references = {s: (d.energy, d.forces) for s, d in test.items()}
    difference = [b - a for a, b in zip(references[SINGLET], references[TRIPLET])]
    return {
        "singlet": errors(*found[SINGLET][:2], references[SINGLET]),
        "triplet": errors(*found[TRIPLET][:2], references[TRIPLET]),
        "gap": errors(*gap, difference),
    }


def one_and_two(training: dict, test: dict) -> dict[str, dict]:
    """Errors of one model of both states, and of two models."""
    positions = test[SINGLET].positions
    one = gdml.fit_states(training)
    gap = one.gap(SINGLET, TRIPLET).predict(positions)
    result = {"one": judged(one.predict(positions), gap[:2], test)}
    result["one"]["correlation"] = float(one.correlation[0, 1])
    two = {s: gdml.fit(d).predict(positions) for s, d in training.items()}
    gap = [b - a for a, b in zip(two[SINGLET][:2], two[TRIPLET][:2])]
    return result | {"two": judged(two, gap, test)}


def carbene() -> dict:
    """n labelled geometries of carbene, half of them in each state: other geometries in each, or the same n / 2."""
    data = gdml.read_states(DATA / "states" / "carbene.extxyz", "spin_multiplicity")
    pairs, result = in_both_states(data), {}
    for n in SIZES:
        for seed in range(SEEDS):
            drawn = np.random.default_rng(seed).permutation(pairs)
            half, test = n // 2, drawn[n : n + N_TEST]
            test = {s: data[s][test[:, k]] for k, s in enumerate((SINGLET, TRIPLET))}
            for way, start in (("apart", half), ("same", 0)):
                frames = drawn[:half, 0], drawn[start : start + half, 1]
                case = one_and_two({s: data[s][f] for s, f in zip((SINGLET, TRIPLET), frames)}, test)
                result.setdefault(way, {}).setdefault(str(n), []).append(case)
                print(n, seed, way, case, flush=True)
                keep("carbene", result)
    return result


def levels() -> dict:
    """Ethanol at CCSD(T) from 50 of its labels, alone or with 500 of PBE+vdW-TS, and with GFN2-xTB as baseline."""
    exact, cheap = dataset("molecules/ethanol_ccsd_t-train.npz"), dataset("molecules/md17_ethanol.npz")
    result = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        order, drawn = rng.permutation(len(exact)), np.sort(rng.permutation(len(cheap))[:CHEAP])
        few, test, many = exact[order[:EXPENSIVE]], exact[order[EXPENSIVE : EXPENSIVE + N_TEST]], cheap[drawn]
        for name, field in ways(few, many):
            found = field.predict(test.positions)
            case = errors(found.energy, found.forces, (test.energy, test.forces)) | {"details": told(field)}
            result.setdefault(name, []).append(case)
            print(seed, name, case, flush=True)
            keep("levels", result)
    return result


def ways(few: gdml.Dataset, many: gdml.Dataset):
    """Force fields at CCSD(T), one after the other."""
    yield "direct", gdml.fit(few)
    yield "difference to GFN2-xTB", gdml.fit(few, baseline=XTB)
    one = gdml.fit_states({"pbe": many, "ccsd(t)": few})
    yield "one model with DFT", one.at("ccsd(t)")
    alone = gdml.fit(many)
    yield "difference to a force field of DFT", gdml.fit(few, baseline=gdml.GDMLCalculator(alone, warn_outside=False))
    yield (
        "one model with DFT, difference to GFN2-xTB",
        gdml.fit_states({"pbe": many, "ccsd(t)": few}, baseline=XTB).at("ccsd(t)"),
    )


def uncertainty() -> dict:
    """Of carbene, with other geometries in each state: what part of errors is within intervals for nine tenths."""
    data = gdml.read_states(DATA / "states" / "carbene.extxyz", "spin_multiplicity")
    pairs, result = in_both_states(data), {}
    for n in SIZES[:2]:
        for seed in range(SEEDS):
            drawn = np.random.default_rng(seed).permutation(pairs)
            half, rest = n // 2, drawn[n:]
            training = {SINGLET: data[SINGLET][drawn[:half, 0]], TRIPLET: data[TRIPLET][drawn[half:n, 1]]}
            field = gdml.fit_states(training)
            test = {s: data[s][rest[2 * N_HELD :][:N_TEST, k]] for k, s in enumerate((SINGLET, TRIPLET))}
            others = {SINGLET: data[SINGLET][rest[:N_HELD, 0]], TRIPLET: data[TRIPLET][rest[N_HELD : 2 * N_HELD, 1]]}
            for way, held in (("left out", None), ("held out", others)):
                case = within(gdml.with_uncertainty(field, training, held), test)
                result.setdefault(way, {}).setdefault(str(n), []).append(case)
                print(n, seed, way, case, flush=True)
                keep("uncertainty", result)
    return result


def within(field: gdml.StatesForceField, test: dict) -> dict[str, float]:
    """Fractions of components of forces within 1.645 standard deviations, of states and of their gap."""
    low, up = test[SINGLET], test[TRIPLET]
    gap = replace(low, energy=up.energy - low.energy, forces=up.forces - low.forces)
    return {
        "singlet": float(coverage(field.at(SINGLET), low)[0]),
        "triplet": float(coverage(field.at(TRIPLET), up)[0]),
        "gap": float(coverage(field.gap(SINGLET, TRIPLET), gap)[0]),
    }


def told(field: gdml.ForceField) -> dict:
    return {"length_scale": field.length_scale, "solver": field.details["solver"]["name"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    for category in (BaselineWarning, DataWarning, EnergyWarning):
        warnings.simplefilter("ignore", category)
    parts = {"carbene": carbene, "levels": levels, "uncertainty": uncertainty}
    run_parts("states", parts, parser.parse_args().parts)


if __name__ == "__main__":
    main()
