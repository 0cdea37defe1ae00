"""Conjugate gradients: iterations beside the published ones, and time, memory and error beside the closed form.

python benchmarks/cg.py [training | iterations]
"""

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, dataset, write_result

import gdml
from gdml.contractions import GemmContraction
from gdml.kernels import Matern52
from gdml.operators import Labels, TrainingOperator
from gdml.preconditioners import build
from gdml.solvers import cg

# Blücher, Müller, Chmiela, J. Chem. Theory Comput. 19, 4619 (2023): iterations to a
# relative residual of 1e-4 with sigma = 10 and lambda = 1e-15.
PUBLISHED = {
    "ethanol": {"svd": 121, "cholesky": 237, "leverage": 196, "uniform": 198},
    "uracil": {"svd": 197, "cholesky": 304, "leverage": 302, "uniform": 308},
    "aspirin": {"svd": 1030, "cholesky": 1941, "leverage": 1731, "uniform": 1845},
}
ITERATION_CASES = {
    "ethanol": ("molecules/md17_ethanol.npz", 583, 1574),
    "uracil": ("molecules/md17_uracil_forces.extxyz", 436, 1573),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", 250, 1575),
}
TIME_CASES = {
    "ethanol": ("molecules/md17_ethanol.npz", 1000),
    "acetylacetone": ("molecules/acac_300K_train.extxyz", 200),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", 500),
}


def iterations(file: str, n_train: int, rank: int) -> dict:
    frames = dataset(file)
    training = frames[frames.sample(n_train)]
    group = gdml.molecular_group(frames)
    descriptor = gdml.InverseDistances(frames.n_atoms)
    features = descriptor.evaluate(torch.tensor(training.positions))
    contraction = GemmContraction(Matern52(10.0), features.x, descriptor.permutations(group))
    operator = TrainingOperator(contraction, Labels(features, training), 1e-15)
    target = operator.labels.values.flatten()
    counts = {}
    for name in ("rpcholesky", "cholesky", "leverage", "uniform"):
        solution = cg(operator, target, preconditioner=build(name, operator, rank), rtol=1e-4, max_iter=4000)
        counts[name] = solution.n_iter if solution.converged else None
    return {
        "n_train": n_train,
        "unknowns_published": 3 * frames.n_atoms * n_train,
        "unknowns": operator.shape[0],
        "rank": rank,
        "iterations": counts,
    }


def train(file: str, n_train: int, solver: str) -> dict:
    """Train in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train, (file, n_train, solver))


def _train(file: str, n_train: int, solver: str) -> dict:
    frames = dataset(file)
    drawn = frames.sample(n_train)
    rest = np.setdiff1d(np.arange(len(frames)), drawn)
    validation, test = frames[rest[::2][:100]], frames[rest[1::2]]
    gdml.fit(frames[drawn[:10]], length_scale=20.0, symmetry="none")  # wakes threads, loads libraries
    before, start = _peak(), time.perf_counter()
    force_field = gdml.fit(frames[drawn], validation=validation, length_scale=20.0, solver=solver)
    seconds, memory = time.perf_counter() - start, _peak() - before
    metrics = gdml.evaluate(force_field, test)
    return {
        "seconds": seconds,
        "peak_GB": memory / 1e9,
        "force_mae_meV_per_A": 1e3 * metrics.forces_mae,
        "n_test": len(test),
        "solver": force_field.details["solver"],
    }


def _peak() -> int:
    """Peak memory of this process so far."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def measure_training() -> dict:
    timed = {}
    for name, (file, n_train) in TIME_CASES.items():
        timed[name] = {"n_train": n_train}
        timed[name] |= {solver: train(file, n_train, solver) for solver in ("auto", "cg", "cholesky")}
    return timed


def measure_iterations() -> dict:
    return {name: iterations(*case) | {"published": PUBLISHED[name]} for name, case in ITERATION_CASES.items()}


def main() -> None:
    parts = {"training": measure_training, "iterations": measure_iterations}
    chosen = sys.argv[1:] or list(parts)
    path = RESULTS / "cg.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {part: known[part] for part in parts if part in known}
    found |= {part: parts[part]() for part in chosen}
    write_result("cg", found)


if __name__ == "__main__":
    main()
