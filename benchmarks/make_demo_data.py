"""Compute the demo's geometries: ethanol at 500 K, PBE/def2-SVP energies and forces.

Sampling by Langevin dynamics with GFN2-xTB (tblite), one frame in 100 fs from
four independent runs; labels by PySCF's density-fitted PBE/def2-SVP. Needs
``pip install tblite pyscf ase`` and about half an hour:

    python benchmarks/make_demo_data.py gdml/data/ethanol.extxyz.xz
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixCom
from ase.io import read, write
from ase.md.langevin import Langevin
from pyscf import dft, gto
from tblite.ase import TBLite
from tqdm import tqdm

TEMPERATURE_K = 500.0
SEED = 20
N_RUNS, FRAMES_PER_RUN = 4, 60


def sample() -> list[Atoms]:
    """Snapshots of N_RUNS trajectories of 6 ps each after 1 ps of equilibration."""
    frames = []
    for run in range(N_RUNS):
        atoms = molecule("CH3CH2OH")
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        atoms.set_constraint(FixCom())
        dynamics = Langevin(
            atoms,
            timestep=0.5 * units.fs,
            temperature_K=TEMPERATURE_K,
            friction=0.01 / units.fs,
            rng=np.random.default_rng(SEED + run),
        )
        dynamics.run(2000)
        for _ in range(FRAMES_PER_RUN):
            dynamics.run(200)
            frames.append(Atoms(atoms.numbers, atoms.positions))
    return frames


def label(atoms: Atoms) -> Atoms:
    """The frame with PBE/def2-SVP energy (eV) and forces (eV/Å)."""
    molecule = gto.M(atom=list(zip(atoms.symbols, atoms.positions)), basis="def2-svp", verbose=0)
    solver = dft.RKS(molecule, xc="pbe").density_fit()
    solver.grids.level = 3
    solver.conv_tol = 1e-10
    energy = solver.kernel()
    if not solver.converged:
        raise RuntimeError("the self-consistent field did not converge")
    gradient = solver.nuc_grad_method()
    gradient.grid_response = True
    atoms.info["energy"] = energy * units.Hartree
    atoms.arrays["forces"] = -gradient.kernel() * units.Hartree / units.Bohr
    return atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    # Every label is on disk before the next is computed: a killed run resumes.
    partial = output.with_name("partial.extxyz")
    done = read(partial, ":") if partial.exists() else []
    frames = sample()
    for atoms in tqdm(frames[len(done) :], initial=len(done), total=len(frames)):
        write(partial, label(atoms), append=True)
    rng = np.random.default_rng(SEED)
    finished = read(partial, ":")
    write(output, [finished[i] for i in rng.permutation(len(finished))], format="extxyz")
    partial.unlink()


if __name__ == "__main__":
    main()
