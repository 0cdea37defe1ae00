"""Compute the molecules on which the tests count symmetries: GFN2-xTB minima.

Needs ``pip install rdkit tblite ase`` and a few seconds:

    python benchmarks/make_test_molecules.py tests/molecules.extxyz
"""

import sys

from ase import Atoms
from ase.io import write
from ase.optimize import BFGS
from rdkit import Chem
from rdkit.Chem import AllChem
from tblite.ase import TBLite

MOLECULES = {
    "ethanol": "CCO",
    "benzene": "c1ccccc1",
    "naphthalene": "c1ccc2ccccc2c1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "uracil": "O=C1C=CNC(=O)N1",
    "malonaldehyde": "O=CCC=O",
    "toluene": "Cc1ccccc1",
    "acetylacetone": "CC(=O)/C=C(/C)O",
    "ethylene": "C=C",
    "isobutene": "C=C(C)C",
    "formamide": "NC=O",
    "water": "O",
    "ammonia": "N",
    "methane": "C",
    "propane": "CCC",
    "methylamine": "CN",
    "carbon dioxide": "O=C=O",
    "lactic acid": "C[C@H](O)C(=O)O",
}


def minimum(smiles: str, n_sketches: int = 6) -> Atoms:
    """The lowest of a few minima of GFN2-xTB, from geometries that RDKit proposes."""
    sketch = Chem.AddHs(Chem.MolFromSmiles(smiles))
    symbols = [a.GetSymbol() for a in sketch.GetAtoms()]
    found = []
    for conformer in AllChem.EmbedMultipleConfs(sketch, n_sketches, randomSeed=7):
        atoms = Atoms(symbols, sketch.GetConformer(conformer).GetPositions())
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)
        found.append((atoms.get_potential_energy(), atoms.positions))
    return Atoms(symbols, min(found, key=lambda pair: pair[0])[1])


def main() -> None:
    frames = []
    for name, smiles in MOLECULES.items():
        atoms = minimum(smiles)
        atoms.info["name"] = name
        frames.append(atoms)
    write(sys.argv[1], frames, format="extxyz")


if __name__ == "__main__":
    main()
