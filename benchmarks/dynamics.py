"""Molecular dynamics of ethanol: speed, temperature, and drift of the energy in NVE.

python benchmarks/dynamics.py
"""

import time
from dataclasses import asdict

from common import write_result

import gdml
from gdml.data import ethanol
from gdml.dynamics import run_md

N_TRAIN = 200


def main() -> None:
    frames = ethanol()
    drawn = frames.sample(N_TRAIN)
    force_field = gdml.fit(frames[drawn], length_scale=20.0)
    start_frame = int(frames.energy.argmin())
    runs = {}
    for name, settings in {
        "langevin_500K": {"ensemble": "langevin", "temperature_K": 500, "steps": 10_000, "timestep_fs": 0.5},
        "nve_500K_0.5fs": {"ensemble": "nve", "temperature_K": 500, "steps": 20_000, "timestep_fs": 0.5},
        "nve_500K_0.25fs": {"ensemble": "nve", "temperature_K": 500, "steps": 20_000, "timestep_fs": 0.25},
    }.items():
        begin = time.perf_counter()
        report = run_md(force_field, frames[start_frame].to_atoms()[0], **settings)
        runs[name] = asdict(report) | {"steps_per_s": settings["steps"] / (time.perf_counter() - begin)}
    write_result("dynamics", {"molecule": "ethanol", "n_train": N_TRAIN, "runs": runs})


if __name__ == "__main__":
    main()
