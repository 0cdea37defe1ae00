"""Train and time sGDML 1.0.3; run by against_sgdml.py in an environment of its own.

Usage: python sgdml_worker.py JOB.npz OUT.npz
"""

import json
import resource
import statistics
import sys
import time

import numpy as np
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain


def median_ms(function, repeats, calls):
    """Median wall time of a function in milliseconds, over `calls`."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times) / calls


def peak_gb():
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main():
    job = np.load(sys.argv[1])
    dataset = {
        "name": np.array("job"),
        "theory": np.array("reference"),
        "z": job["z"].astype(np.uint8),
        "R": job["R"],
        "F": job["F"],
        "E": job["E"],
    }
    # The sampling is done already: all frames train, and the one it wants for
    # validation is never used.
    task = {
        "type": "t",
        "code_version": "1.0.3",
        "dataset_name": "job",
        "dataset_theory": "reference",
        "z": dataset["z"],
        "R_train": job["R"],
        "F_train": job["F"],
        "E_train": job["E"],
        "idxs_train": np.arange(len(job["R"])),
        "md5_train": b"",
        "idxs_valid": np.arange(1),
        "md5_valid": b"",
        "sig": int(job["sig"]),
        "lam": float(job["lam"]),
        "use_E": True,
        "use_E_cstr": False,
        "use_sym": True,
        "perms": job["perms"],
    }
    before, start = peak_gb(), time.perf_counter()
    model = GDMLTrain().train(task)
    train_s = time.perf_counter() - start
    train_peak = peak_gb() - before

    test = job["R_test"].reshape(len(job["R_test"]), -1)
    bulk = GDMLPredict(model)
    bulk.prepare_parallel(n_bulk=len(test))
    batch_numpy_ms = median_ms(lambda: bulk.predict(test), 3, len(test))
    energy, forces = bulk.predict(test)
    on_torch = GDMLPredict(model, use_torch=True)
    batch_torch_ms = median_ms(lambda: on_torch.predict(test), 3, len(test))
    single = GDMLPredict(model)
    single.prepare_parallel(n_bulk=1)

    def one_by_one():
        for geometry in test[:200]:
            single.predict(geometry[None])

    single_ms = median_ms(one_by_one, 3, 200)
    timings = {
        "train_s": train_s,
        "train_peak_GB": train_peak,
        "batch_numpy_ms": batch_numpy_ms,
        "batch_torch_ms": batch_torch_ms,
        "single_ms": single_ms,
    }
    np.savez(sys.argv[2], timings=json.dumps(timings), energy=energy, forces=forces.reshape(len(test), -1, 3))


if __name__ == "__main__":
    main()
