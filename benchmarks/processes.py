"""Training by several processes: the same coefficients, time, memory and bytes moved beside what the model says.

    python benchmarks/processes.py

All processes have one thread each, so that the gain is that of the processes; runs with
one and with more of them take turns.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import HERE, dataset, run_parts

import gdml
from gdml import processes
from gdml.cost import Problem, gemm_rate

ETHANOL, ACETYLACETONE = "molecules/rmd17_ethanol.extxyz", "molecules/acac_300K_train.extxyz"
# File, geometries, entries D, order |S|, rank, and settings.
CASES = {
    "ethanol": (ETHANOL, 1000, 36, 6, 1500, {"rtol": 3e-4}),
    "ethanol, no neighbours": (ETHANOL, 1000, 36, 6, 1500, {"rtol": 3e-4, "neighbours": 0}),
    "ethanol, to the end": (ETHANOL, 1000, 36, 6, 1500, {"rtol": 1e-9, "noise": 1e-6}),
    "acetylacetone": (ACETYLACETONE, 300, 105, 72, 800, {"rtol": 3e-4}),
}
ROUNDS = 3
# MD22's largest, and a million geometries of a small molecule: labels, entries, order, rank, neighbours.
LARGE = {
    "double-walled nanotube, 370 atoms, 800 geometries": (800, 1104, 68265, 28, 20_000, 0),
    "ethanol, a million geometries": (1_000_000, 21, 36, 6, 2000, 4),
}
ITERATIONS, RATE = 200, 1e13  # operations in a second of each process, as of a GPU


def work(case: str, folder: Path) -> None:
    """One training, in one of the processes."""
    teams, original = [], processes.Team.current

    def current() -> processes.Team:
        teams.append(original())
        return teams[-1]

    processes.Team.current = current
    with processes.started_together():
        file, n_train, _, _, rank, settings = CASES[case]
        frames = dataset(file)
        training = frames[frames.sample(n_train)]
        settings = {"length_scale": 20.0, "solver": "cg", "rank": rank} | settings
        gdml.fit(training[:20], **settings | {"rank": 20, "rtol": 1e-2})  # loads libraries
        before, start = _peak(), time.perf_counter()
        force_field = gdml.fit(training, **settings)
        seconds = time.perf_counter() - start
        result = {"seconds": seconds, "peak_GB": 1e-9 * (_peak() - before), "bytes": teams[-1].bytes_received}
        result["gemm_rate"] = gemm_rate()
        result |= {"iterations": force_field.details["solver"]["iterations"], "processes": teams[-1].size}
        if teams[-1].is_first:
            np.save(folder / f"{teams[-1].size}.npy", force_field.w)
            (folder / f"{teams[-1].size}.json").write_text(json.dumps(result))


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _run(case: str, size: int, folder: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += [str(HERE / "processes.py"), "work", case, str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    return json.loads((folder / f"{size}.json").read_text())


def measure_training() -> list[dict]:
    rows = []
    for case, (_, n_train, size, order, rank, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            runs = [[_run(case, count, Path(name)) for count in (1, 2)] for _ in range(ROUNDS)]
            one, two = (np.load(Path(name) / f"{count}.npy") for count in (1, 2))
        alone, both = ([run[k] for run in runs] for k in (0, 1))
        seconds = [statistics.median(run["seconds"] for run in some) for some in (alone, both)]
        n_labels = round((1 + 8 * size) ** 0.5) // 2 * 3 + 3 - 6  # N (N - 1) / 2 = D
        single, problem = (
            Problem(n_train, n_labels, size, order, settings.get("neighbours", 4), n_processes=count)
            for count in (1, 2)
        )
        row = {"case": case, "n_train": n_train, "rank": rank, "one_s": seconds[0], "two_s": seconds[1]}
        row["efficiency"] = statistics.median(a["seconds"] / b["seconds"] / 2 for a, b in zip(alone, both, strict=True))
        row |= {"iterations": [alone[0]["iterations"], both[0]["iterations"]]}
        row["largest_difference"] = float(np.abs(one - two).max() / np.abs(one).max())
        row["peak_GB"] = [statistics.median(run["peak_GB"] for run in some) for some in (alone, both)]
        row["predicted_GB"] = [1e-9 * p.cg_bytes(rank) for p in (single, problem)]
        row["predicted_s"] = [_seconds(single, rank, alone[0]), _seconds(problem, rank, both[0])]
        row["received_MB"] = 1e-6 * both[0]["bytes"]
        row["predicted_MB"] = 1e-6 * problem.bytes_received(rank, both[0]["iterations"])
        print(row, flush=True)
        rows.append(row)
    return rows


def _seconds(problem: Problem, rank: int, run: dict) -> float:
    """What the model of operations says, at the rate of a large matrix product in one process."""
    work = problem.build_operations(rank) + run["iterations"] * problem.iteration_operations(rank)
    return work / problem.n_processes / run["gemm_rate"]


def predict_large() -> list[dict]:
    """What the model says of trainings that are too large for the machine."""
    rows = []
    for name, (n, labels, size, order, rank, neighbours) in LARGE.items():
        for count in (1, 8, 64):
            problem = Problem(n, labels, size, order, neighbours, n_processes=count)
            work = problem.build_operations(rank) + ITERATIONS * problem.iteration_operations(rank)
            rows.append(
                {
                    "case": name,
                    "processes": count,
                    "unknowns": problem.n_unknowns,
                    "rank": rank,
                    "neighbours": neighbours,
                    "GB_each": 1e-9 * problem.cg_bytes(rank),
                    "received_GB_each": 1e-9 * problem.bytes_received(rank, ITERATIONS),
                    "Pflop_each": 1e-15 * work / count,
                    "hours": work / count / RATE / 3600,
                }
            )
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        run_parts("processes", {"training": measure_training, "large": predict_large}, sys.argv[1:])
