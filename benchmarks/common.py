"""What all benchmarks share: the data, the machine's description, medians, result files."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
import torch

import gdml

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = Path(os.environ.get("GDML_DATA", HERE.parent.parent / "shared" / "data"))


def dataset(name: str, **kwargs) -> gdml.Dataset:
    """A set of reference geometries, by its path in the data folder."""
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{path} is missing; set GDML_DATA to the folder with the reference data")
    return gdml.read(path, **kwargs)


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "ase": ase.__version__,
        "gdml": gdml.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def gemm_gflops(n: int = 2000) -> float:
    """Rate of one large matrix product in double precision, to set times against."""
    a = torch.randn(n, n, dtype=torch.float64)
    return 2e-9 * n**3 / median_seconds(lambda: a @ a, 5)


def median_seconds(function: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Median wall time of a call."""
    times = []
    for k in range(repeats + warm_up):
        start = time.perf_counter()
        function()
        if k >= warm_up:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes() -> int:
    """Peak memory of this process so far."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def run_parts(name: str, parts: dict[str, Callable[[], object]], chosen: list[str]) -> None:
    """Run parts of a benchmark, all where none is chosen; each goes into results/NAME.json, beside the others' last."""
    for part in chosen or list(parts):
        result = parts[part]()
        path = RESULTS / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        write_result(name, {key: known[key] for key in parts if key in known} | {part: result})


def write_result(name: str, content: dict) -> None:
    """Write results/NAME.json, with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    document = {"benchmark": name, "machine": machine(), "gemm_gflops": round(gemm_gflops(), 1), **content}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"wrote {path}")
