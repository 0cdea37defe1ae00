"""Which descriptor and which kernel: errors on held-out frames of four molecules, and what descriptors cost.

All hyper-parameters are those that training chooses by itself.

    python benchmarks/descriptors.py [table] [cost] [vibrations] [extrapolation] [--n 50 200]
"""

import argparse
import functools
import json
import statistics

import numpy as np
import torch
from common import RESULTS, dataset, run_parts

import gdml
from gdml.descriptors import (
    ExponentialDistances,
    InternalCoordinates,
    InverseDistances,
    ManyBody,
    SideBySide,
)

MOLECULES = {
    "ethanol": "molecules/rmd17_ethanol.extxyz",
    "aspirin": "molecules/rmd17_aspirin.extxyz",
    "acetylacetone": "molecules/acac_300K_train.extxyz",
    "3bpa": "molecules/3bpa_300K_train.extxyz",
}
N_TEST = 300


def two_powers(n: int, frames: gdml.Dataset) -> SideBySide:
    return SideBySide.balanced([InverseDistances(n), InverseDistances(n, 3.0)], torch.tensor(frames.positions))


DESCRIPTORS = {
    "1/r": lambda frames: InverseDistances(frames.n_atoms),
    "1/√r": lambda frames: InverseDistances(frames.n_atoms, 0.5),
    "1/r²": lambda frames: InverseDistances(frames.n_atoms, 2.0),
    "exp(-r/2Å)": lambda frames: ExponentialDistances(frames.n_atoms),
    "1/r, 1/r³": lambda frames: two_powers(frames.n_atoms, frames),
    "internal coordinates": lambda frames: InternalCoordinates(),
    "many-body, atoms": lambda frames: ManyBody(),
}
# The first line of each is the incumbent's choice.
KERNELS = ["matern52", "matern32", "matern72", "gaussian", "rational-quadratic"]
# What is tried at how many training geometries, and with how many draws of them.
TRIED = {
    50: (
        [("1/r", k) for k in KERNELS]
        + [(d, "matern52") for d in list(DESCRIPTORS)[1:]]
        + [("many-body, atoms", k) for k in KERNELS[2:]],
        2,
    ),
    200: ([("1/r", "matern52"), ("1/r", "gaussian"), ("1/r, 1/r³", "matern52"), ("many-body, atoms", "gaussian")], 1),
    500: ([("1/r", "matern52"), ("many-body, atoms", "gaussian")], 1),
}


def error(frames: gdml.Dataset, n: int, name: str, kernel: str, seed: int) -> dict:
    order = np.random.default_rng(seed).permutation(len(frames))
    training, held_out = frames[order[:n]], frames[order[n : n + N_TEST]]
    force_field = gdml.fit(training, descriptor=DESCRIPTORS[name](training), kernel=kernel)
    found = gdml.evaluate(force_field, held_out)
    return {
        "forces_mae": 1e3 * found.forces_mae,
        "forces_rmse": 1e3 * found.forces_rmse,
        "length_scale": force_field.length_scale,
        "noise": force_field.details["noise"],
        "solver": force_field.details["solver"]["name"],
    }


def table(sizes: list[int], molecules: list[str]) -> dict:
    path = RESULTS / "descriptors.json"
    known = json.loads(path.read_text()).get("table", {}) if path.exists() else {}
    for n in sizes:
        tried, n_seeds = TRIED[n]
        for molecule in molecules:
            frames = dataset(MOLECULES[molecule])
            if n + 50 > len(frames):
                continue
            cases = known.setdefault(molecule, {}).setdefault(str(n), {})
            for name, kernel in tried:
                runs = [error(frames, n, name, kernel, seed) for seed in range(n_seeds)]
                means = {k: statistics.mean(r[k] for r in runs) for k in ("forces_mae", "forces_rmse")}
                cases[f"{name}; {kernel}"] = means | {"runs": runs}
                print(molecule, n, name, kernel, means, [(r["length_scale"], r["noise"]) for r in runs], flush=True)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--n", type=int, nargs="*", default=list(TRIED))
    parser.add_argument("--molecules", nargs="*", default=list(MOLECULES))
    options = parser.parse_args()
    parts = {"table": functools.partial(table, options.n, options.molecules)}
    run_parts("descriptors", parts, options.parts)


if __name__ == "__main__":
    main()
