"""Minima and saddle points: ethanol against its reference method, and a thousand relaxations in one batch.

The reference points of ethanol (its data's own PBE/def2-SVP) need ``pip install pyscf``:

    python benchmarks/landscape.py [ethanol] [relaxations]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
from ase import Atoms
from ase.optimize import LBFGS
from common import dataset, run_parts

import gdml
from gdml.data import ethanol
from gdml.errors import GDMLWarning
from gdml.landscape import Landscape, Likeness, Point, explore, relax_many

NEWTON, FMAX = 12, 0.005  # steps at the reference, and eV/Å of its largest force
SYSTEMS = {
    "ethanol": ("molecules/rmd17_ethanol.extxyz", 200),
    "acetylacetone": ("molecules/acac_300K_train.extxyz", 200),
    "3BPA": ("molecules/3bpa_300K_train.extxyz", 200),
}
N, ALONE = 1000, 15  # relaxations, and those by ASE


def reference_forces(positions: np.ndarray, numbers: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of the method that the package's ethanol was computed with."""
    from make_demo_data import label

    atoms = label(Atoms(numbers, positions))
    return atoms.info["energy"], atoms.arrays["forces"]


def refined(force_field: gdml.ForceField, point: Point, evaluate: Callable) -> dict[str, float]:
    """The reference's stationary point near to the model's: Newton steps with the model's Hessian."""
    r = point.atoms.positions
    stiffness = np.linalg.pinv(force_field.hessian(r), rcond=1e-6, hermitian=True)
    for _ in range(NEWTON):
        energy, forces = evaluate(r, point.atoms.numbers)
        largest = float(np.linalg.norm(forces, axis=1).max())
        if largest < FMAX:
            break
        r = r + (stiffness @ forces.ravel()).reshape(-1, 3)
    alike = Likeness(force_field.group)
    before, after = alike.distances(np.stack([point.atoms.positions, r]))
    return {"energy": energy, "largest_force": largest, "moved": alike.between(before, after)}


def torsion_of_oxygen(atoms: Atoms) -> float:
    """The angle C-C-O-H from 0 (syn) to 180 (trans), degrees."""
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    carbons = sorted(np.flatnonzero(atoms.numbers == 6), key=lambda k: atoms.get_distance(oxygen, k))
    hydrogen = min(np.flatnonzero(atoms.numbers == 1), key=lambda k: atoms.get_distance(oxygen, k))
    angle = atoms.get_dihedral(carbons[1], carbons[0], oxygen, hydrogen)
    return min(angle, 360 - angle)


def of_ethanol() -> dict:
    """All points that `explore` finds from the package's data, and those of the reference."""
    training = ethanol()
    start = time.perf_counter()
    force_field = gdml.with_uncertainty(gdml.fit(training), training)
    seconds = {"training": time.perf_counter() - start}
    start = time.perf_counter()
    found = explore(force_field, training[0].to_atoms()[0], n=N, saddles=200)
    seconds["exploring"] = time.perf_counter() - start
    points = {p.name: p for p in found.minima + found.saddles}
    references = {name: refined(force_field, p, reference_forces) for name, p in points.items()}
    lowest = found.minima[0].energy, references["M1"]["energy"]
    rows = {}
    for name, point in points.items():
        rows[name] = {
            "torsion": torsion_of_oxygen(point.atoms),
            "count": point.count,
            "energy": 1e3 * (point.energy - lowest[0]),
            "reference": 1e3 * (references[name]["energy"] - lowest[1]),
            "deviation": 1e3 * float(point.uncertainty.energy),
            "softest": float(point.modes.frequencies[0]),
            "moved": references[name]["moved"],
            "largest_force": references[name]["largest_force"],
            "ends": point.ends,
            "barriers": [1e3 * b for b in found.barriers(point)],
            "reference_barriers": [
                1e3 * (references[name]["energy"] - references[end]["energy"]) for end in point.ends or ()
            ],
        }
    return {"n_train": len(training), "seconds": seconds, "points": rows, "unconverged": len(found.unconverged.largest)}


def relaxations() -> dict:
    """Distinct minima of a thousand relaxations, and how fast they are."""
    result = {}
    for name, (path, n_train) in SYSTEMS.items():
        data = dataset(path)
        training = data[data.sample(n_train)]
        force_field = gdml.with_uncertainty(gdml.fit(training), training)
        atoms = data[0].to_atoms()[0]
        atoms.calc = None
        start = time.perf_counter()
        found = explore(force_field, atoms, n=N)
        result[name] = {"n_train": n_train, "exploring_s": time.perf_counter() - start} | told(found)
        result[name] |= rates(force_field, atoms, found.starts.positions)
        print(name, result[name], flush=True)
    return result


def told(found: Landscape) -> dict:
    """What a landscape has."""
    heights = [1e3 * (p.energy - found.minima[0].energy) for p in found.minima]
    return {
        "minima": len(found.minima),
        "marked": found.n_marked,
        "unconverged": len(found.unconverged.largest),
        "energies": heights,
        "counts": [p.count for p in found.minima],
        "marks": [p.mark for p in found.minima],
    }


def rates(force_field: gdml.ForceField, atoms: Atoms, starts: np.ndarray) -> dict:
    """Seconds and steps of a relaxation to 0.01 eV/Å, in a batch and by ASE's optimiser one after another."""
    alone = starts[:: len(starts) // ALONE][:ALONE]
    of_ase = [by_ase(force_field, atoms, r) for r in alone[: ALONE // 2]]
    start = time.perf_counter()
    batch = relax_many(force_field, atoms, starts)
    seconds = time.perf_counter() - start
    of_ase += [by_ase(force_field, atoms, r) for r in alone[ALONE // 2 :]]
    each = seconds / len(starts), median(t for t, _ in of_ase)
    return {
        "batch_per_s": 1 / each[0],
        "ase_per_s": 1 / each[1],
        "faster": each[1] / each[0],
        "batch_steps": float(np.median(batch.steps)),
        "ase_steps": median(s for _, s in of_ase),
        "batch_converged": int(batch.converged.sum()),
    }


def by_ase(force_field: gdml.ForceField, atoms: Atoms, positions: np.ndarray) -> tuple[float, int]:
    """Seconds and steps of ASE's L-BFGS with the calculator."""
    one = atoms.copy()
    one.positions = positions
    one.calc = gdml.GDMLCalculator(force_field)
    optimiser = LBFGS(one, logfile=None)
    start = time.perf_counter()
    optimiser.run(fmax=0.01, steps=500)
    return time.perf_counter() - start, optimiser.nsteps


if __name__ == "__main__":
    parts = {"ethanol": of_ethanol, "relaxations": relaxations}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    chosen = parser.parse_args().parts
    warnings.simplefilter("ignore", GDMLWarning)
    run_parts("landscape", parts, chosen)
