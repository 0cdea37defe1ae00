"""Coarse-grained alanine dipeptide, five beads: free energies over its two dihedral angles, and what they cost.

Blocks of 250 frames in turns train, and judge. All hyper-parameters are those that training chooses by itself.

    python benchmarks/coarse.py [reference] [free_energy] [large] [speed]
"""

import argparse
import json
import time

import numpy as np
import torch
from ase import units
from common import DATA, RESULTS, median_seconds, run_parts

import gdml
from gdml import coarse
from gdml.baselines import Bonded
from gdml.coarse.prior import without_prior
from gdml.errors import DynamicsError
from gdml.geometry import dihedrals

KCAL = units.kcal / units.mol
ANGLES = [(0, 1, 2, 3), (1, 2, 3, 4)]  # φ and ψ
TEMPERATURE, BLOCK = 300.0, 250
REPLICAS, STEPS, INTERVAL, FIRST = 64, 6000, 50, 0.2  # of which this part is not looked at
MODELS, IN_FIRST, IN_SECOND = 10, 500, 1000
SIZES = (1000, 3000, 5000)


def frames() -> gdml.Dataset:
    path = DATA / "coarse" / "ala2_5beads.npz"
    if not path.exists():
        raise SystemExit(f"{path} is missing; set GDML_DATA to the folder with the reference data")
    data = np.load(path, allow_pickle=False)
    positions = data["R"].astype(float)
    return gdml.Dataset(
        positions=positions - positions.mean(1, keepdims=True),
        numbers=[6, 7, 6, 6, 7],
        forces=data["F"].astype(float) * KCAL,
        name="alanine dipeptide, five beads",
    )


def halves() -> tuple[gdml.Dataset, gdml.Dataset]:
    """Frames to train on, and others to judge by."""
    everything = frames()
    in_turns = np.arange(len(everything)) // BLOCK % 2
    return everything[in_turns == 0], everything[in_turns == 1]


def drawn(n: int) -> gdml.Dataset:
    training, _ = halves()
    return training[np.sort(np.random.default_rng(0).permutation(len(training))[:n])]


def priors(training: gdml.Dataset) -> dict[str, Bonded | None]:
    return {
        "none": None,
        "bonds, angles": coarse.fit_prior(training, TEMPERATURE, dihedrals=()),
        "bonds, angles, dihedrals": coarse.fit_prior(training, TEMPERATURE),
    }


def keep(part: str, result: dict) -> None:
    """Write what is there of a long part."""
    path = RESULTS / "coarse.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: result}, indent=2) + "\n")


def sampled(forces: object, training: gdml.Dataset, seed: int = 0) -> dict:
    """How far the free energy of dynamics is from those of the judging half, and of all frames."""
    _, judging = halves()
    starts = training.positions[np.random.default_rng(seed).integers(len(training), size=REPLICAS)]
    start = time.perf_counter()
    try:
        positions = coarse.sample(
            forces,
            starts,
            temperature_K=TEMPERATURE,
            steps=STEPS,
            interval=INTERVAL,
            seed=seed,
            numbers=[6, 7, 6, 6, 7],
        )
    except DynamicsError as error:
        return {"failed": str(error), "seconds_dynamics": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    first = int(FIRST * len(positions))
    found = coarse.free_energy(positions[first:], ANGLES)
    middle = (first + len(positions)) // 2
    early, late = (coarse.free_energy(part, ANGLES) for part in (positions[first:middle], positions[middle:]))
    return {
        "deviation": list(found.deviation(coarse.free_energy(judging.positions, ANGLES))),
        "deviation_from_all": list(found.deviation(coarse.free_energy(frames().positions, ANGLES))),
        "late_from_early": list(late.deviation(early)),
        "seconds_dynamics": seconds,
        "counts": found.counts.sum(0).astype(int).tolist(),
    }


def reference() -> dict:
    """What the frames themselves say: noise, how far their halves are apart, and dynamics with priors alone."""
    training, judging = halves()
    one, other = (coarse.free_energy(part.positions, ANGLES) for part in (training, judging))
    result = {
        "halves": list(one.deviation(other)),
        "counts": coarse.free_energy(frames().positions, ANGLES).counts.sum(0).astype(int).tolist(),
        "noise": {},
        "prior_alone": {},
    }
    for name, prior in priors(training).items():
        found = coarse.estimate_noise(without_prior(training, prior), coarse.default_descriptor(5))
        result["noise"][name] = [value / KCAL**2 for value in found]
    for n in SIZES:
        few = drawn(n)
        for name, prior in priors(few).items():
            if prior is not None:
                result["prior_alone"].setdefault(str(n), {})[name] = sampled(prior, few)
    print(result["halves"], result["noise"], flush=True)
    return result


def free_energy() -> dict:
    """Both ways, with and without priors."""
    result = {}
    for n in SIZES:
        training = drawn(n)
        for name, prior in priors(training).items():
            result.setdefault(str(n), {})[name] = both_ways(training, prior)
            keep("free_energy", result)
    return result


def both_ways(training: gdml.Dataset, prior: Bonded | None) -> dict:
    """One fit and an ensemble, with the same length scale, noise and signal."""
    n, start = len(training), time.perf_counter()
    scales = coarse.choose_scales(training, prior=prior)
    case = {
        "length_scale": scales.length_scale,
        "noise": scales.noise / KCAL,
        "signal": scales.signal / KCAL,
        "energy": scales.noise / KCAL / scales.regularisation**0.5,
        "tried": scales.details["tried"],
        "seconds_choice": time.perf_counter() - start,
    }
    variables = dihedrals(torch.tensor(training.positions), ANGLES).numpy()
    sizes = {"n_models": MODELS, "n_first": min(IN_FIRST, n // 2), "n_second": min(IN_SECOND, n // 2)}
    ways = {
        "one fit": lambda: coarse.fit(training, prior=prior, scales=scales),
        "ensemble": lambda: coarse.fit_ensemble(training, variables, prior=prior, scales=scales, **sizes),
    }
    for way, train in ways.items():
        start = time.perf_counter()
        field = train()
        seconds = time.perf_counter() - start
        case[way] = {"seconds": seconds, **sampled(field.to(dtype="float32"), training)}
        print(n, way, {key: value for key, value in case[way].items() if key != "counts"}, flush=True)
    return case


def large() -> dict:
    """Training times of one fit, by the number of frames, with the noise chosen for 5000."""
    result, everything = {}, frames()
    prior = coarse.fit_prior(everything, TEMPERATURE)
    scales = coarse.choose_scales(everything[::2], prior=prior)
    for n in (1000, 3000, 5000, 10_000):
        some = everything[np.sort(np.random.default_rng(0).permutation(len(everything))[:n])]
        start = time.perf_counter()
        field = coarse.fit(some, prior=prior, scales=scales)
        result[str(n)] = {"seconds": time.perf_counter() - start, "solver": field.details["solver"]}
        print(n, result[str(n)], flush=True)
    return result


def speed() -> dict:
    """Steps of all replicas in a second, by their number and that of training frames, in single precision."""
    result = {}
    for n in (1000, 5000):
        training = drawn(n)
        prior, noise = coarse.fit_prior(training, TEMPERATURE), 20 * KCAL
        scales = coarse.choose_scales(training, prior=prior, length_scale=0.8, noise=noise, signal=0.1 * noise)
        field = coarse.fit(training, prior=prior, scales=scales).to(dtype="float32")
        result[str(n)] = {
            str(k): {kind: rate(field, training.positions[:k], kind) for kind in ("langevin", "overdamped")}
            for k in (1, 16, 64, 256)
        }
        print(n, result[str(n)], flush=True)
    return result


def rate(field: gdml.ForceField, starts: np.ndarray, kind: str) -> float:
    options = {"temperature_K": TEMPERATURE, "steps": 60, "interval": 20, "dynamics": kind, "seed": 0}
    return len(starts) * 60 / median_seconds(lambda: coarse.sample(field, starts, **options), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parts = {"reference": reference, "free_energy": free_energy, "large": large, "speed": speed}
    run_parts("coarse", parts, parser.parse_args().parts)


if __name__ == "__main__":
    main()
