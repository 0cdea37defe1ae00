"""Crystals: accuracy beside the descriptor of BIGDML, time, memory, and molecular dynamics.

python benchmarks/crystals.py [time] [translations] [memory] [accuracy] [cells] [conservation] [dynamics]
"""

import multiprocessing
import sys
import time
from dataclasses import asdict
from functools import cache, partial

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.geometry.rdf import get_rdf
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from common import DATA, RESULTS, dataset, gemm_gflops, median_seconds, peak_bytes, run_parts

import gdml
from gdml.contractions import GemmContraction, LatticeContraction
from gdml.geometry import nearest_images
from gdml.kernels import Matern52

# File, the largest displacement of an atom in frames that are taken, and the sizes of training sets.
SETS = {
    "KCl": ("kcl64", np.inf, (6, 12, 20)),
    "KCl, displaced by less than 0.40 Å": ("kcl64", 0.40, (12,)),
    "Si": ("si64", np.inf, (6, 12, 24, 48)),
    "MgO": ("mgo64", np.inf, (8, 24, 60)),
    "NaCl": ("nacl64", np.inf, (8, 24, 60)),
    "Al": ("al125_500K", np.inf, (10, 30)),
}
KINDS = ("default", "bigdml")
A_SILICON = 5.432  # Å
IMAGES = 240  # of an atom's surroundings: geometries times operations over atoms
# J. Tersoff, Phys. Rev. B 38, 9902 (1988): silicon, "Si(C)".
SILICON = TersoffParameters(
    A=1830.8, B=471.18, lambda1=2.4799, lambda2=1.7322, lambda3=0.0, beta=1.1e-6, gamma=1.0, m=3.0, n=0.78734,
    c=1.0039e5, d=16.217, h=-0.59825, R=2.85, D=0.15,
)  # fmt: skip


def load(name: str) -> tuple[gdml.Dataset, Atoms]:
    """Frames and the ideal structure."""
    file, most, _ = SETS[name]
    frames, reference = dataset(f"crystals/{file}.extxyz"), ase.io.read(DATA / f"crystals/{file}_reference.extxyz")
    steps = nearest_images(torch.tensor(frames.positions - reference.positions), reference.cell.array, (True,) * 3)
    return frames[np.flatnonzero(steps.norm(dim=2).amax(1).numpy() < most)], reference


@cache
def trained(name: str, n_train: int, kind: str) -> gdml.ForceField:
    """From the first draw of frames, with the default descriptor or that of BIGDML."""
    frames, reference = load(name)
    descriptor = _descriptor(kind, reference)
    return gdml.fit(frames[frames.sample(n_train)], reference=reference, descriptor=descriptor)


def _descriptor(kind: str, reference: Atoms) -> gdml.PeriodicInverseDistances | None:
    """None for the default one."""
    if kind == "default":
        return None
    return gdml.PeriodicInverseDistances(len(reference), reference.cell.array, power=1.0)


def measure_time() -> dict:
    """KCl, all 26 frames: training, and one force call beside the same sums written out."""
    frames, reference = load("KCl")
    start = time.perf_counter()
    force_field = gdml.fit(frames, reference=reference)
    seconds = time.perf_counter() - start
    batch = np.concatenate([frames.positions] * 2)[:32]
    group = force_field.group
    written_out = gdml.ForceField(**(_fields(force_field) | {"group": gdml.PermutationGroup(group.permutations)}))
    calculator = gdml.GDMLCalculator(force_field, warn_outside=False)
    atoms = frames.to_atoms()[0]
    atoms.calc = calculator

    def call() -> None:
        atoms.positions += 1e-6
        atoms.get_forces()

    return {
        "n_train": len(frames),
        "symmetry_order": group.order,
        "translations": len(group.translations),
        "train_s": seconds,
        "length_scale": force_field.length_scale,
        "solver": force_field.details["solver"],
        "gemm_GFLOPs_after": gemm_gflops(),
        "single_ms": 1e3 * median_seconds(lambda: force_field.predict(frames.positions[0]), 20),
        "batch_ms": 1e3 * median_seconds(lambda: force_field.predict(batch), 5) / len(batch),
        "ase_call_ms": 1e3 * median_seconds(call, 20),
        "written_out_single_ms": 1e3 * median_seconds(lambda: written_out.predict(frames.positions[0]), 5),
        "written_out_batch_ms": 1e3 * median_seconds(lambda: written_out.predict(batch), 1) / len(batch),
    }


def _fields(force_field: gdml.ForceField) -> dict:
    return {name: getattr(force_field, name) for name in force_field.__dataclass_fields__}


def measure_translations() -> list[dict]:
    """Time of a sum over the group against the number of translations: fcc supercells, ten references."""
    found = []
    for shape in ((1, 2, 2), (2, 2, 2), (2, 2, 3), (3, 3, 3), (3, 4, 4), (4, 4, 4), (5, 5, 5)):
        reference = bulk("Al") * shape
        group = gdml.crystal_group(reference)
        descriptor = gdml.SmoothInverseDistances(len(reference), reference.cell.array)
        rng = np.random.default_rng(0)
        positions = reference.positions + rng.normal(scale=0.1, size=(10, len(reference), 3))
        x = descriptor.evaluate(torch.tensor(positions)).x
        row = {"translations": len(group.translations), "order": group.order, "entries": descriptor.size}
        for kind in (LatticeContraction, GemmContraction):
            if kind is GemmContraction and group.order * descriptor.size > 10**7:
                continue
            evaluate = kind(Matern52(5.0), x, descriptor.action(group)).bind(None, torch.randn_like(x))
            name = "fourier_ms" if kind is LatticeContraction else "written_out_ms"
            row[name] = 1e3 * median_seconds(partial(evaluate, x[:1]), 9)
        found.append(row)
        print(row, flush=True)
    return found


def measure_memory() -> dict:
    """Al, 125 atoms, 100 frames: the whole training in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_aluminium)


def _train_aluminium() -> dict:
    frames, reference = load("Al")
    before, start = peak_bytes(), time.perf_counter()
    force_field = gdml.fit(frames, reference=reference, progress=True)
    seconds = time.perf_counter() - start
    return {
        "n_train": len(frames),
        "symmetry_order": force_field.group.order,
        "unknowns": len(frames) * (3 * frames.n_atoms - 3),
        "train_s": seconds,
        "peak_GB": (peak_bytes() - before) / 1e9,
        "length_scale": force_field.length_scale,
        "solver": force_field.details["solver"],
        "single_ms": 1e3 * median_seconds(lambda: force_field.predict(frames.positions[0]), 9),
    }


def measure_accuracy() -> dict:
    """Learning curves with the default descriptor, and with nearest images and r^-1 as in BIGDML."""
    found = {}
    for name, (_, _, sizes) in SETS.items():
        order = gdml.crystal_group(load(name)[1]).order
        found[name] = {"symmetry_order": order, "runs": [accuracy(name, n_train) for n_train in sizes]}
    return found


def accuracy(name: str, n_train: int) -> dict:
    """Errors on the frames that are left of a set."""
    frames, _ = load(name)
    rest = frames[np.setdiff1d(np.arange(len(frames)), frames.sample(n_train))]
    run = {"n_train": n_train, "n_test": len(rest)}
    for kind in KINDS:
        force_field = trained(name, n_train, kind)
        errors = gdml.evaluate(force_field, rest)
        run[kind] = {
            "force_mae_meV_per_A": 1e3 * errors.forces_mae,
            "energy_mae_meV_per_atom": 1e3 * errors.energy_mae / frames.n_atoms,
            "length_scale": force_field.length_scale,
        }
    print(name, run, flush=True)
    return run


def measure_cells() -> dict:
    """One potential in cells of three shapes, with as many images of each atom's surroundings in training."""
    hexagonal = bulk("SiSi", "wurtzite", a=A_SILICON / 2**0.5, c=A_SILICON * (4 / 3) ** 0.5)
    ideal = {
        "diamond, cubic cell": bulk("Si", a=A_SILICON, cubic=True) * 2,
        "diamond, primitive cell": bulk("Si", a=A_SILICON) * 3,
        "lonsdaleite, hexagonal cell": hexagonal * (3, 3, 2),
    }
    found = {}
    for name, reference in ideal.items():
        order = gdml.crystal_group(reference).order
        n_train = round(IMAGES * len(reference) / order)
        frames = gdml.read([_shaken(reference, seed) for seed in range(n_train + 20)])
        found[name] = {"n_atoms": len(reference), "symmetry_order": order, "n_train": n_train, "n_test": 20}
        for kind in KINDS:
            force_field = gdml.fit(frames[:n_train], reference=reference, descriptor=_descriptor(kind, reference))
            errors = gdml.evaluate(force_field, frames[n_train:])
            found[name][kind] = {"force_mae_meV_per_A": 1e3 * errors.forces_mae}
        print(name, found[name], flush=True)
    return found


def _shaken(reference: Atoms, seed: int) -> Atoms:
    """Random displacements as thermal ones, labelled by the potential."""
    atoms = reference.copy()
    atoms.rattle(0.06, seed=seed)
    atoms.calc = Tersoff({("Si", "Si", "Si"): SILICON})
    atoms.get_forces()
    return atoms


def measure_conservation() -> dict:
    """Energy of KCl in NVE from 600 K, with smooth distances and with those to nearest images, whose slopes jump."""
    _, reference = load("KCl")
    settings = {"ensemble": "nve", "temperature_K": 600, "timestep_fs": 2.0, "steps": 2000}
    runs = {kind: gdml.dynamics.run_md(trained("KCl", 20, kind), reference.copy(), **settings) for kind in KINDS}
    return {"n_train": 20, **settings, "runs": {kind: asdict(run) for kind, run in runs.items()}}


def measure_dynamics() -> dict:
    """NVE, and a thermostat whose structure is compared with the reference frames; KCl at constant pressure too."""
    found = {}
    for name, n_train, temperature, timestep, steps in (("KCl", 20, 300, 2.0, 3000), ("Al", 10, 500, 2.0, 1500)):
        frames, reference = load(name)
        force_field = trained(name, n_train, "default")
        settings = {"temperature_K": temperature, "timestep_fs": timestep, "steps": steps}
        nve = gdml.dynamics.run_md(force_field, reference.copy(), ensemble="nve", **settings)
        trajectory = RESULTS / f"{name}.traj"
        thermostat = gdml.dynamics.run_md(force_field, reference.copy(), trajectory=trajectory, **settings)
        run = ase.io.read(trajectory, index=f"{steps // 20}:")
        trajectory.unlink()
        found[name] = {
            "n_train": n_train,
            "timestep_fs": timestep,
            "nve": asdict(nve),
            "langevin": asdict(thermostat),
            "structure": _structure(run, reference),
            "structure_of_reference_frames": _structure(frames.to_atoms(), reference),
        }
        if name == "KCl":
            found[name]["npt"] = _constant_pressure(force_field, reference.copy(), temperature, timestep, steps)
        print(name, found[name], flush=True)
    return found


def _structure(run: list[Atoms], reference: Atoms) -> dict:
    """Mean square displacement from the ideal sites, and the first peak of the radial distribution."""
    steps = np.array([atoms.positions - reference.positions for atoms in run])
    fractions = steps @ np.linalg.inv(reference.cell.array)
    steps = (fractions - np.round(fractions)) @ reference.cell.array
    steps -= steps.mean(1, keepdims=True)
    nearest = np.sort(reference.get_all_distances(mic=True)[0])[1]
    heights = 1 / np.linalg.norm(np.linalg.inv(reference.cell.array), axis=0)
    reach, bins = 0.48 * heights.min(), 120
    rdf = np.mean([get_rdf(atoms, reach, bins)[0] for atoms in run[:: max(1, len(run) // 40)]], 0)
    r = (np.arange(bins) + 0.5) * reach / bins
    peak = np.argmax(rdf * (np.abs(r - nearest) < 0.2 * nearest))
    return {
        "mean_square_displacement_A2": float((steps**2).sum(2).mean()),
        "first_peak_at_A": float(r[peak]),
        "first_peak_height": float(rdf[peak]),
        "r_A": r.round(4).tolist(),
        "rdf": rdf.round(4).tolist(),
    }


def _constant_pressure(force_field, atoms, temperature, timestep, steps) -> dict:
    atoms.calc = gdml.GDMLCalculator(force_field, warn_outside=False)
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    damping = {"tdamp": 50 * timestep * units.fs, "pdamp": 500 * timestep * units.fs}
    dynamics = IsotropicMTKNPT(atoms, timestep * units.fs, temperature_K=temperature, pressure_au=0.0, **damping)
    pressures, volumes = [], []

    def sample() -> None:
        pressures.append(-atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.GPa)
        volumes.append(atoms.get_volume())

    start = atoms.get_volume()
    dynamics.attach(sample, interval=5)
    dynamics.run(steps)
    half = len(pressures) // 2
    return {
        "target_GPa": 0.0,
        "pressure_GPa": float(np.mean(pressures[half:])),
        "pressure_std_GPa": float(np.std(pressures[half:])),
        "volume_over_start": float(np.mean(volumes[half:]) / start),
        "temperature_K": float(atoms.get_temperature()),
    }


def main() -> None:
    parts = {
        "time": measure_time,
        "translations": measure_translations,
        "memory": measure_memory,
        "accuracy": measure_accuracy,
        "cells": measure_cells,
        "conservation": measure_conservation,
        "dynamics": measure_dynamics,
    }
    run_parts("crystals", parts, sys.argv[1:])


if __name__ == "__main__":
    main()
