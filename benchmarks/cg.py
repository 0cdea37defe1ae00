"""Conjugate gradients: iterations beside the published ones, and time, memory and error beside the closed form.

python benchmarks/cg.py [training] [tolerance] [iterations] [decay] [energies] [scaling]
"""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from against_sgdml import prepare_environment, run_sgdml, sgdml_job
from common import dataset, peak_bytes, run_parts

import gdml
from gdml.contractions import GemmContraction
from gdml.cost import gemm_rate
from gdml.errors import MemoryBudgetError
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
# Factor and neighbours; None is the multiple of the identity, as published.
VARIANTS = [(name, None) for name in ("svd", "rpcholesky", "cholesky", "leverage", "uniform")]
VARIANTS += [("rpcholesky", 0), ("rpcholesky", 4), ("rpcholesky", 16)]
TIME_CASES = {
    "ethanol": ("molecules/md17_ethanol.npz", 1000),
    "acetylacetone": ("molecules/acac_300K_train.extxyz", 200),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", 500),
}
TOLERANCE_CASES = {
    "ethanol": ("molecules/rmd17_ethanol.extxyz", 500),
    "malonaldehyde": ("molecules/md17_malonaldehyde_forces.extxyz", 500),
    "uracil": ("molecules/md17_uracil_forces.extxyz", 500),
    "acetylacetone": ("molecules/acac_300K_train.extxyz", 200),
    "3BPA": ("molecules/3bpa_300K_train.extxyz", 200),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", 250),
}
ENERGY_CASES = {
    "ethanol": ("molecules/rmd17_ethanol.extxyz", 500),
    "acetylacetone": ("molecules/acac_300K_train.extxyz", 150),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", 200),
}
TOLERANCES = ("auto", 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-6)
SCALING_CASES = {
    "ethanol": ("molecules/md17_ethanol.npz", (200, 400, 700, 1000, 1500), 1000),
    "aspirin": ("molecules/rmd17_aspirin.extxyz", (100, 200, 350, 600, 1190), 200),
}


def system(file: str, n_train: int, length_scale: float, noise: float) -> TrainingOperator:
    """The training system of the first draw of geometries."""
    frames = dataset(file)
    training = frames[frames.sample(n_train)]
    descriptor = gdml.InverseDistances(frames.n_atoms)
    features = descriptor.evaluate(torch.tensor(training.positions))
    action = descriptor.action(gdml.molecular_group(frames))
    return TrainingOperator(
        GemmContraction(Matern52(length_scale), features.x, action), Labels(features, training), noise
    )


def count(operator: TrainingOperator, name: str, rank: int, neighbours: int | None, rtol: float = 1e-4) -> int | None:
    """Iterations to the tolerance; None for more than 4000."""
    target = operator.labels.values.flatten()
    solution = cg(operator, target, preconditioner=build(name, operator, rank, neighbours), rtol=rtol, max_iter=4000)
    return solution.n_iter if solution.converged else None


def measure_iterations() -> dict:
    found = {}
    for name, (file, n_train, rank) in ITERATION_CASES.items():
        operator = system(file, n_train, 10.0, 1e-15)
        counts = [{"factor": f, "neighbours": m, "iterations": count(operator, f, rank, m)} for f, m in VARIANTS]
        found[name] = {"n_train": n_train, "unknowns": operator.shape[0], "rank": rank, "published": PUBLISHED[name]}
        found[name]["counts"] = counts
        print(name, counts, flush=True)
    return found


def measure_decay() -> dict:
    """Iterations against the rank: faster than in proportion to its inverse."""
    found = {}
    for name, (file, n_train, _) in ITERATION_CASES.items():
        operator = system(file, n_train, 10.0, 1e-15)
        ranks = [int(fraction * operator.shape[0]) for fraction in (0.03, 0.05, 0.08, 0.13, 0.2, 0.3)]
        lines = {str(m): [count(operator, "rpcholesky", rank, m) for rank in ranks] for m in (None, 4)}
        found[name] = {"n_train": n_train, "unknowns": operator.shape[0], "ranks": ranks, "iterations": lines}
        print(name, found[name], flush=True)
    return found


def apart(function, *arguments):
    """Call in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _train(file: str, n_train: int, solver: str, validate: bool = True) -> dict:
    frames = dataset(file)
    drawn = frames.sample(n_train)
    rest = np.setdiff1d(np.arange(len(frames)), drawn)
    validation, test = frames[rest[::2][:100]], frames[rest[1::2]]
    gdml.fit(frames[drawn[:10]], length_scale=20.0, symmetry="none")  # wakes threads, loads libraries
    before, start = peak_bytes(), time.perf_counter()
    try:
        force_field = gdml.fit(
            frames[drawn], validation=validation if validate else None, length_scale=20.0, solver=solver
        )
    except MemoryBudgetError as error:
        return {"refused": str(error)}
    seconds, memory = time.perf_counter() - start, peak_bytes() - before
    return {
        "seconds": seconds,
        "peak_GB": memory / 1e9,
        "force_mae_meV_per_A": 1e3 * gdml.evaluate(force_field, test).forces_mae if len(test) else None,
        "n_test": len(test),
        "solver": force_field.details["solver"],
        "gemm_GFLOPs_after": gemm_rate(2000) / 1e9,
    }


def measure_training() -> dict:
    timed = {}
    for name, (file, n_train) in TIME_CASES.items():
        timed[name] = {"n_train": n_train}
        timed[name] |= {solver: apart(_train, file, n_train, solver) for solver in ("auto", "cg", "cholesky")}
        print(name, timed[name], flush=True)
    return timed


def measure_tolerance() -> dict:
    """What the tolerance costs in force error, against a residual of 1e-6."""
    found = {}
    for name, (file, n_train) in TOLERANCE_CASES.items():
        frames = dataset(file)
        # Some sets have geometries twice.
        _, distinct = np.unique(frames.positions.reshape(len(frames), -1).round(6), axis=0, return_index=True)
        frames = frames[np.sort(distinct)]
        drawn = frames.sample(n_train)
        rest = np.setdiff1d(np.arange(len(frames)), drawn)
        validation, test = frames[rest[::2][:100]], frames[rest[1::2][:300]]
        runs = []
        for rtol in TOLERANCES:
            force_field = gdml.fit(frames[drawn], validation=validation, length_scale=20.0, solver="cg", rtol=rtol)
            mae = 1e3 * gdml.evaluate(force_field, test).forces_mae
            solver = force_field.details["solver"]
            run = {"rtol": rtol, "iterations": solver["iterations"], "residual": solver["residual"]}
            runs.append(run | {"force_mae_meV_per_A": mae})
        found[name] = {"n_train": n_train, "n_test": len(test), "runs": runs}
        print(name, runs, flush=True)
    return found


def measure_energies() -> dict:
    """Iterations to a residual of 1e-6 with forces alone, and with energies too, beside the closed form."""
    found = {}
    for name, (file, n_train) in ENERGY_CASES.items():
        frames = dataset(file)
        drawn = frames.sample(n_train)
        test = frames[np.setdiff1d(np.arange(len(frames)), drawn)[:300]]
        rows = {}
        for use_energy in (False, True):
            settings = {"length_scale": 20.0, "use_energy": use_energy}
            by_cg = gdml.fit(frames[drawn], solver="cg", rtol=1e-6, **settings)
            closed = gdml.fit(frames[drawn], solver="cholesky", **settings)
            rows["energies and forces" if use_energy else "forces"] = {
                "iterations": by_cg.details["solver"]["iterations"],
                "rank": by_cg.details["solver"]["rank"],
                "energy_mae_meV": [1e3 * gdml.evaluate(f, test).energy_mae for f in (by_cg, closed)],
                "force_mae_meV_per_A": [1e3 * gdml.evaluate(f, test).forces_mae for f in (by_cg, closed)],
            }
        found[name] = {"n_train": n_train, "n_test": len(test), "labels": rows}
        print(name, found[name], flush=True)
    return found


def measure_scaling() -> dict:
    """Time and memory against the number of geometries, of both solvers and of sGDML where it can run."""
    prepare_environment()
    found = {}
    for name, (file, sizes, most_sgdml) in SCALING_CASES.items():
        runs = []
        for n_train in sizes:
            run = {"n_train": n_train}
            run |= {solver: apart(_train, file, n_train, solver, False) for solver in ("cg", "cholesky")}
            if n_train <= most_sgdml:
                run["sgdml"] = _train_sgdml(file, n_train)
                most_sgdml = 0 if "failed" in run["sgdml"] else most_sgdml
            runs.append(run)
            print(name, run, flush=True)
        found[name] = runs
    return found


def _train_sgdml(file: str, n_train: int) -> dict:
    frames = dataset(file)
    training = frames[frames.sample(n_train)]
    test = frames[np.setdiff1d(np.arange(len(frames)), frames.sample(n_train))[:10]]
    with tempfile.TemporaryDirectory() as folder:
        try:
            timings, _ = run_sgdml(sgdml_job(training, test, gdml.molecular_group(frames)), Path(folder))
        except subprocess.CalledProcessError as error:
            return {"failed": f"exit status {error.returncode}"}
    return {"seconds": timings["train_s"], "peak_GB": timings["train_peak_GB"]}


def main() -> None:
    parts = {
        "training": measure_training,
        "tolerance": measure_tolerance,
        "iterations": measure_iterations,
        "decay": measure_decay,
        "energies": measure_energies,
        "scaling": measure_scaling,
    }
    run_parts("cg", parts, sys.argv[1:])


if __name__ == "__main__":
    main()
