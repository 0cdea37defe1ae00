"""What the choice of the permutation group costs and gains.

For each molecule: no symmetry, the reachable permutations (the default), those
with handedness="global", and all automorphisms of the bonded graph; force error on held-out frames, time of
training, order of the group.

    python benchmarks/symmetry_choice.py
"""

import statistics
import time

import numpy as np
from common import dataset, median_seconds, write_result

import gdml
from gdml.geometry import median_distances
from gdml.symmetry.molecules import automorphisms, bond_graph

CASES = {
    "ethanol": ("molecules/rmd17_ethanol.extxyz", 100),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", 100),
    "acetylacetone": ("molecules/acac_300K_train.extxyz", 50),
    "3bpa": ("molecules/3bpa_300K_train.extxyz", 50),
}
SEEDS = (0, 1, 2)
LENGTH_SCALE = 20.0


def groups(frames: gdml.Dataset) -> dict[str, gdml.PermutationGroup]:
    graph = bond_graph(frames.numbers, median_distances(frames.positions))
    return {
        "none": gdml.PermutationGroup.trivial(frames.n_atoms),
        "reachable": gdml.molecular_group(frames),
        "global handedness": gdml.molecular_group(frames, handedness="global"),
        "graph": gdml.PermutationGroup(list(automorphisms(graph))),
    }


def run(frames: gdml.Dataset, group: gdml.PermutationGroup, n_train: int) -> dict:
    errors, seconds = [], []
    for seed in SEEDS:
        drawn = frames.sample(n_train, seed=seed)
        rest = np.setdiff1d(np.arange(len(frames)), drawn)
        start = time.perf_counter()
        force_field = gdml.fit(frames[drawn], length_scale=LENGTH_SCALE, symmetry=group)
        seconds.append(time.perf_counter() - start)
        errors.append(1e3 * gdml.evaluate(force_field, frames[rest]).forces_mae)
    batch = frames.positions[:200]
    return {
        "order": group.order,
        "force_mae_meV_per_A": statistics.median(errors),
        "of_seeds": errors,
        "train_s": statistics.median(seconds),
        "batch_ms": 1e3 * median_seconds(lambda: force_field.predict(batch), 5) / len(batch),
    }


def main() -> None:
    cases = {}
    for name, (file, n_train) in CASES.items():
        frames = dataset(file)
        cases[name] = {
            "n_train": n_train,
            "groups": {kind: run(frames, group, n_train) for kind, group in groups(frames).items()},
        }
    write_result("symmetry_choice", {"length_scale": LENGTH_SCALE, "seeds": len(SEEDS), "cases": cases})


if __name__ == "__main__":
    main()
