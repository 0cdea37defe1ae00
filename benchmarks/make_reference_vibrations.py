"""Compute the frequencies of trans-ethanol with the demo's own method, PBE/def2-SVP.

Relaxation, then central differences of the forces. Needs ``pip install pyscf ase`` and
about a quarter of an hour:

    python benchmarks/make_reference_vibrations.py benchmarks/results/reference_vibrations.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from make_demo_data import label
from tqdm import tqdm

STEP = 0.005  # Å


class Labelled(Calculator):
    """The demo's labels as a calculator."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        labelled = label(Atoms(self.atoms.numbers, self.atoms.positions))
        forces = labelled.arrays["forces"]
        self.results = {"energy": labelled.info["energy"], "forces": forces - forces.mean(0)}


def main() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.calc = Labelled()
    BFGS(atoms).run(fmax=1e-3, steps=60)
    moves = STEP * np.eye(atoms.positions.size).reshape(-1, *atoms.positions.shape)
    hessian = []
    for move in tqdm(moves):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * move
            moved.calc = Labelled()
            forces.append(moved.get_forces().ravel())
        hessian.append(-(forces[0] - forces[1]) / (2 * STEP))
    hessian = 0.5 * (np.array(hessian) + np.array(hessian).T)
    frequencies = VibrationsData.from_2d(atoms, hessian).get_frequencies()
    result = {
        "method": "PBE/def2-SVP",
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "frequencies_per_cm": np.real(frequencies[6:]).tolist(),
    }
    Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
