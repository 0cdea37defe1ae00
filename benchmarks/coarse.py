"""Coarse-grained alanine dipeptide, five beads: free energies over its two dihedral angles, and what they cost.

Blocks of 250 frames in turns train, and judge. All hyper-parameters are those that training
chooses by itself, but without a prior.

    python benchmarks/coarse.py [reference] [free_energy] [training]
"""

import argparse
import json
import resource
import time

import numpy as np
import torch
from ase import units
from common import DATA, RESULTS, run_parts

import gdml
from gdml import coarse
from gdml.baselines import Bonded
from gdml.errors import DynamicsError
from gdml.geometry import dihedrals

KCAL = units.kcal / units.mol
ANGLES = [(0, 1, 2, 3), (1, 2, 3, 4)]  # φ and ψ
TEMPERATURE, BLOCK = 300.0, 250
# Replicas leave the wells in some 10 ps with this friction; the first part of their time is not looked at.
REPLICAS, STEPS, INTERVAL, FIRST = 192, 8000, 25, 0.25
TIMESTEP, FRICTION = 4.0, 5e-3
SIZES = (1000, 3000, 5000)
WITHOUT_PRIOR = {"length_scale": 0.84, "energy": 56 * KCAL}  # the stiff bonds' energies are learned, too


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
        "bonds, angles": coarse.fit_prior(training, TEMPERATURE, dihedrals=()),
        "bonds, angles, dihedrals": coarse.fit_prior(training, TEMPERATURE),
        "none": None,
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
            timestep_fs=TIMESTEP,
            friction_per_fs=FRICTION,
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
    for width in (coarse.WIDTH, 0.0):
        prior = coarse.fit_prior(training, TEMPERATURE)
        scales = coarse.choose_scales(training, TEMPERATURE, prior=prior, width=width, length_scale=1.0)
        result["noise"][str(width)] = [size / KCAL for size in scales.details["noise"]]
    for n in SIZES:
        few = drawn(n)
        for name, prior in priors(few).items():
            if prior is not None:
                result["prior_alone"].setdefault(str(n), {})[name] = sampled(prior, few)
    print(result["halves"], result["noise"], flush=True)
    return result


def free_energy() -> dict:
    """Both ways, and forces alone, with and without priors."""
    result = {}
    for name in priors(drawn(SIZES[0])):
        for n in SIZES:
            training = drawn(n)
            result.setdefault(str(n), {})[name] = ways(training, name, priors(training)[name])
            keep("free_energy", result)
    return result


def ways(training: gdml.Dataset, name: str, prior: Bonded | None) -> dict:
    """One fit and an ensemble with the same scales; with the first prior one fit of forces alone, too."""
    case, start = {}, (time.perf_counter(), time.process_time())
    given = WITHOUT_PRIOR if prior is None else {}
    scales = coarse.choose_scales(training, TEMPERATURE, prior=prior, **given)
    case["choice"] = {
        "length_scale": scales.length_scale,
        "energy": scales.energy / KCAL,
        "tried": scales.details.get("tried", []),
        **since(start),
    }
    options = {"prior": prior, "scales": scales}
    trainings = {
        "one fit": lambda: coarse.fit(training, TEMPERATURE, **options),
        "ensemble": lambda: coarse.fit_ensemble(training, TEMPERATURE, angles_of, **options),
    }
    if name == "bonds, angles":
        trainings["forces alone"] = lambda: coarse.fit(training, TEMPERATURE, prior=prior, width=0.0)
    for way, train in trainings.items():
        start = time.perf_counter(), time.process_time()
        field = train()
        trained = since(start) | {"frames": len(field.y)}
        case[way] = trained | sampled(field.to(dtype="float32"), training)
        print(len(training), name, way, {k: v for k, v in case[way].items() if k != "counts"}, flush=True)
    return case


def angles_of(positions: np.ndarray) -> np.ndarray:
    return dihedrals(torch.tensor(positions), ANGLES).numpy()


def since(start: tuple[float, float]) -> dict[str, float]:
    return {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}


def training() -> dict:
    """What one fit takes, by the number of frames, with scales as they are chosen; and memory of the process so far."""
    result, everything = {}, frames()
    for n in (1000, 3000, 5000, 10_000):
        some = everything[np.sort(np.random.default_rng(0).permutation(len(everything))[:n])]
        prior = coarse.fit_prior(some, TEMPERATURE, dihedrals=())
        start = time.perf_counter(), time.process_time()
        scales = coarse.choose_scales(some, TEMPERATURE, prior=prior)
        choice, start = since(start), (time.perf_counter(), time.process_time())
        field = coarse.fit(some, TEMPERATURE, prior=prior, scales=scales)
        result[str(n)] = {
            "choice": choice,
            "fit": since(start),
            "frames": len(field.y),
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            "solver": field.details["solver"],
        }
        print(n, result[str(n)], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parts = {"reference": reference, "free_energy": free_energy, "training": training}
    run_parts("coarse", parts, parser.parse_args().parts)


if __name__ == "__main__":
    main()
