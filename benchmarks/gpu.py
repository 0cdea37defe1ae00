"""What devices, precisions and backends cost and gain: batches, dynamics, training, a crystal, KeOps against GEMM.

    python benchmarks/gpu.py [--device cuda] [--small] [backends] [precision] [batches] [dynamics] [training] [crystal]

Each kind of device has its own place in results/gpu.json; where there is none of the
kind, it says so. With --small all is done once with few geometries, to see that it
runs, and nothing is written.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import ase.io
import numpy as np
import torch
from against_sgdml import PYTHON
from ase import units
from ase.constraints import FixCom
from common import DATA, HERE, RESULTS, dataset, machine, median_seconds, write_result

import gdml
from gdml.contractions import contraction
from gdml.dynamics import RingPolymerMD, run_md
from gdml.errors import DeviceError
from gdml.hardware import check_device
from gdml.kernels import Matern52
from gdml.symmetry import Action

MOLECULES = {"ethanol": "molecules/md17_ethanol.npz", "aspirin": "molecules/rmd17_aspirin.extxyz"}
SIZES = (3, 6, 10, 15, 36, 78, 210, 496, 2016)
BATCHES = (1, 10, 1000)
PUBLISHED = "8.7 ms for ten aspirin geometries on a Titan RTX (algorithmic differentiation)"


@dataclass(frozen=True)
class Bench:
    """A device, and how much to do on it."""

    device: torch.device
    small: bool

    @property
    def n_train(self) -> int:
        return 20 if self.small else 1000

    def seconds(self, function: Callable[[], object], repeats: int = 5) -> float:
        """Median time of a call, of all that it starts."""

        def whole() -> None:
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return median_seconds(whole, 1 if self.small else repeats)

    @cache  # noqa: B019, the program ends with it
    def gemm_rate(self, dtype: torch.dtype = torch.float64) -> float:
        """Operations in a second of a large matrix product."""
        n = 500 if self.small else 2000 if self.device.type == "cpu" else 8000
        a = torch.randn(n, n, dtype=dtype, device=self.device)
        return 2 * n**3 / self.seconds(lambda: a @ a)

    @cache  # noqa: B019
    def bandwidth(self) -> float:
        """Bytes in a second of a copy, read and written."""
        a = torch.zeros(10**6 if self.small else 10**8, dtype=torch.float64, device=self.device)
        b = torch.empty_like(a)
        return 2 * a.nbytes / self.seconds(lambda: b.copy_(a))

    @cache  # noqa: B019
    def trained(self, name: str) -> tuple[gdml.ForceField, float]:
        """A force field of a molecule, and the time it took."""
        frames = dataset(MOLECULES[name])
        training = frames[frames.sample(self.n_train)]
        found = []
        settings = {"length_scale": 20.0, "device": self.device}
        gdml.fit(training[:10], **settings)  # loads libraries
        seconds = median_seconds(lambda: found.append(gdml.fit(training, **settings)), 1, warm_up=0)
        return found[0], seconds


def measure_backends(bench: Bench) -> list[dict]:
    """KeOps against matrix products, for descriptors of D entries, without symmetry."""
    rows, generator = [], np.random.default_rng(0)
    for size in SIZES[: 2 if bench.small else None]:
        n = 500 if bench.small else 1000 if size > 500 else 4000
        x, w = (torch.tensor(generator.normal(size=(n, size)) / size**0.5, device=bench.device) for _ in range(2))
        action, kernel = Action(np.arange(size)[None], np.arange(size)[None]), Matern52(1.0)
        row = {"size": size, "n": n}
        for dtype in (torch.float64, torch.float32):
            for backend in ("gemm", "keops"):
                bound = contraction(kernel, x, action, backend, dtype).bind(None, w)
                name = f"{backend}_{str(dtype).removeprefix('torch.')}"
                row[f"{name}_ms"] = 1e3 * bench.seconds(partial(bound, x), 3)
                rate = 8 * n * n * size / (1e-3 * row[f"{name}_ms"])
                row[f"{name}_of_gemm_rate"] = rate / bench.gemm_rate(dtype)
        print(row, flush=True)
        rows.append(row)
    return rows


def measure_precision(bench: Bench) -> list[dict]:
    """Errors of forces in single precision, beside those of the force field, for several noises."""
    rows = []
    for name in MOLECULES:
        frames = dataset(MOLECULES[name])
        drawn = frames.sample(20 if bench.small else 200)
        test = frames[frames.sample(10 if bench.small else 200, exclude=drawn)]
        for noise in (1e-10, 1e-8, 1e-6, 1e-4):
            force_field = gdml.fit(frames[drawn], length_scale=20.0, noise=noise, device=bench.device)
            single = force_field.to(dtype="float32")
            rms = gdml.evaluate(force_field, test).forces_rmse
            error = single.precision_error(test.positions)
            rows.append({"molecule": name, "noise": noise, "rmse_meV_A": 1e3 * rms, "float32_meV_A": 1e3 * error})
            times = [bench.seconds(partial(ff.predict, test.positions)) for ff in (force_field, single)]
            rows[-1]["times_faster"] = times[0] / times[1]
            print(rows[-1], flush=True)
    return rows


def measure_batches(bench: Bench) -> list[dict]:
    """Energies and forces of many geometries in one call, beside sGDML's torch mode on the same device."""
    rows = []
    for name in MOLECULES:
        force_field, _ = bench.trained(name)
        positions = dataset(MOLECULES[name]).positions[: max(BATCHES)]
        order, (n, size) = force_field.symmetry.order, force_field.y.shape
        for count in BATCHES[: 2 if bench.small else None]:
            batch = torch.tensor(positions[:count], device=bench.device)
            row = {"molecule": name, "n_train": n, "order": order, "geometries": count}
            for dtype in ("float64", "float32"):
                one = force_field.to(dtype=dtype)
                seconds = bench.seconds(partial(one.predict, batch), 20)
                rate = 8 * n * order * size * count / seconds
                row |= {f"{dtype}_ms": 1e3 * seconds}
                row |= {f"{dtype}_of_gemm_rate": rate / bench.gemm_rate(getattr(torch, dtype))}
            row["sgdml_torch_ms"] = _sgdml_ms(bench, force_field, positions[:count])
            print(row, flush=True)
            rows.append(row)
    return rows


def _sgdml_ms(bench: Bench, force_field: gdml.ForceField, positions: np.ndarray) -> float | str:
    """Time of one call of sGDML's module for torch, with the same force field."""
    if not PYTHON.exists():
        return "missing: no environment with sGDML; benchmarks/against_sgdml.py makes one"
    with tempfile.TemporaryDirectory() as folder:
        model, geometries = Path(folder) / "model.npz", Path(folder) / "positions.npy"
        force_field.save(model, format="sgdml")
        np.save(geometries, positions)
        command = [PYTHON, HERE / "sgdml_on_torch.py", model, geometries, str(bench.device)]
        done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else f"missing: {done.stderr.splitlines()[-1]}"


def measure_dynamics(bench: Bench) -> list[dict]:
    """Steps in a second: classical through ASE, and path integrals of 32 beads."""
    rows, steps = [], 20 if bench.small else 500
    for name in MOLECULES:
        force_field, _ = bench.trained(name)
        atoms = dataset(MOLECULES[name])[0].to_atoms()[0]
        atoms.set_constraint(FixCom())
        settings = {"temperature_K": 300, "n_beads": 32, "forces": force_field, "max_outside": None}
        ring = RingPolymerMD(atoms.copy(), 0.5 * units.fs, **settings, rng=np.random.default_rng(0))
        row = {"molecule": name, "n_train": len(force_field.y)}
        row["pimd_steps_s"] = steps / bench.seconds(partial(ring.run, steps), 3)
        classical = partial(run_md, force_field, steps=steps, temperature_K=300)
        row["md_steps_s"] = steps / bench.seconds(lambda: classical(atoms.copy()), 3)  # noqa: B023, called at once
        print(row, flush=True)
        rows.append(row)
    return rows


def measure_training(bench: Bench) -> list[dict]:
    """Time of trainings, and their errors."""
    rows = []
    for name in MOLECULES:
        force_field, seconds = bench.trained(name)
        frames = dataset(MOLECULES[name])
        test = frames[np.setdiff1d(np.arange(len(frames)), frames.sample(bench.n_train))[:200]]
        row = {"molecule": name, "n_train": bench.n_train, "seconds": seconds}
        row |= {"forces_mae_meV_A": 1e3 * gdml.evaluate(force_field, test).forces_mae}
        account = force_field.details["solver"]
        row |= {"solver": account["name"], "iterations": account.get("iterations"), "rank": account.get("rank")}
        if account["name"] == "cg":
            n, size = force_field.y.shape
            products = 8 * n**2 * force_field.symmetry.order * size * account["iterations"]
            row["products_of_gemm_rate"] = products / seconds / bench.gemm_rate()
        print(row, flush=True)
        rows.append(row)
    return rows


def measure_crystal(bench: Bench) -> dict:
    """Potassium chloride, 64 atoms and 1536 operations: training and prediction by Fourier sums and by products."""
    frames = dataset("crystals/kcl64.extxyz")
    reference = ase.io.read(DATA / "crystals/kcl64_reference.extxyz")
    training = frames[:4] if bench.small else frames[:20]
    row, found = {"n_train": len(training)}, []
    fit = partial(gdml.fit, training, reference=reference, length_scale=10.0, device=bench.device)
    row["training_s"] = median_seconds(lambda: found.append(fit()), 1, warm_up=0)
    batch = torch.tensor(frames.positions, device=bench.device)
    for backend in ("lattice", "gemm"):
        force_field = found[0].to(backend=backend)
        row[f"{backend}_one_ms"] = 1e3 * bench.seconds(partial(force_field.predict, batch[0]), 10)
        row[f"{backend}_batch_ms"] = 1e3 * bench.seconds(partial(force_field.predict, batch)) / len(batch)
    print(row, flush=True)
    return row


PARTS = {
    "backends": measure_backends,
    "precision": measure_precision,
    "batches": measure_batches,
    "dynamics": measure_dynamics,
    "training": measure_training,
    "crystal": measure_crystal,
}


def describe(bench: Bench) -> dict:
    """The device, and what its rates are."""
    rates = {f"{name}_gflops": 1e-9 * bench.gemm_rate(getattr(torch, name)) for name in ("float64", "float32")}
    if bench.device.type == "cuda":
        rates["name"] = torch.cuda.get_device_name(bench.device)
        rates["published"] = PUBLISHED
    return rates | {"copy_GB_s": 1e-9 * bench.bandwidth()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    options = parser.parse_args()
    path = RESULTS / "gpu.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    kinds = {kind: known.get(kind, {"missing": "not measured"}) for kind in ("cpu", "cuda")}
    try:
        bench = Bench(check_device(options.device), options.small)
    except DeviceError as error:
        print(f"missing: {error}")
        if "missing" in kinds["cuda"]:
            write_result("gpu", kinds | {"cuda": {"missing": str(error)}})
        return
    kind = bench.device.type
    for part in options.parts or PARTS:
        measured = {part: PARTS[part](bench)}
        if not bench.small:
            known = {key: value for key, value in kinds[kind].items() if key != "missing"}
            kinds[kind] = known | measured | describe(bench) | {"machine": machine()}
            write_result("gpu", kinds)


if __name__ == "__main__":
    main()
