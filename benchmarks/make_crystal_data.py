"""Compute the documentation's crystals: graphene, and graphene with a nitrogen atom, by GFN1-xTB.

Langevin dynamics at 300 K, one frame in 50 fs from two independent runs, all
frames labelled by the same method at the Γ point. Needs ``pip install tblite ase``
and about half an hour:

    python benchmarks/make_crystal_data.py docs/data
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import graphene
from ase.constraints import FixCom
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS
from tblite.ase import TBLite
from tqdm import tqdm

TEMPERATURE_K = 300.0
N_RUNS, FRAMES_PER_RUN = 2, 24
VACUUM = 20.0  # Å, between the images of the sheet


def sheet(with_nitrogen: bool) -> Atoms:
    """The ideal structure, 4 x 4 cells of graphene, relaxed at a fixed cell."""
    atoms = graphene(size=(4, 4, 1), vacuum=VACUUM / 2)
    if with_nitrogen:
        atoms.numbers[0] = 7
    atoms.pbc = True  # as the method wants it; across the sheet there is vacuum
    atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.002, steps=200)
    return atoms


def sample(ideal: Atoms) -> list[Atoms]:
    """Frames of the runs, with energies and forces."""
    frames = []
    for run in range(N_RUNS):
        atoms = ideal.copy()
        atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
        atoms.set_constraint(FixCom())
        rng = np.random.default_rng(run)
        thermalize_momenta(atoms, temperature_K=2 * TEMPERATURE_K, rng=rng)
        dynamics = Langevin(
            atoms,
            timestep=1.0 * units.fs,
            temperature_K=TEMPERATURE_K,
            friction=0.02 / units.fs,
            rng=rng,
        )
        dynamics.run(100)
        for _ in tqdm(range(FRAMES_PER_RUN)):
            dynamics.run(50)
            frames.append(labelled(atoms))
    return frames


def labelled(atoms: Atoms) -> Atoms:
    """A copy, periodic along the sheet, that keeps energy (eV) and forces (eV/Å)."""
    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
    frame.info["energy"] = atoms.get_potential_energy()
    frame.arrays["forces"] = atoms.get_forces(apply_constraint=False)
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    for name, with_nitrogen in (("graphene", False), ("nitrogen_in_graphene", True)):
        ideal = sheet(with_nitrogen)
        write(folder / f"{name}.extxyz.xz", sample(ideal))
        write(folder / f"{name}_ideal.extxyz", labelled(ideal))


if __name__ == "__main__":
    main()
