"""sGDML 1.0.3 as a potential of i-PI, one bead after another; loaded by i-PI in sGDML's environment."""

import numpy as np
from ase import Atoms
from ipi.pes._ase import ASEDriver
from sgdml.intf.ase_calc import SGDMLCalculator

__DRIVER_NAME__ = "sgdml"
__DRIVER_CLASS__ = "SGDMLDriver"


class SGDMLDriver(ASEDriver):
    def __init__(self, template, model, *args, **kwargs):
        self.model = model
        super().__init__(template, *args, **kwargs)

    def check_parameters(self):
        super().check_parameters()
        # The model file is in eV and Å.
        self.ase_calculator = SGDMLCalculator(self.model, E_to_eV=1.0, F_to_eV_Ang=1.0)

    def compute_structure(self, cell, pos):
        cell, pos = self.convert_units(cell, pos)
        atoms = Atoms(self.template_ase.numbers, pos, cell=cell, calculator=self.ase_calculator)
        found = {
            "energy": float(np.squeeze(atoms.get_potential_energy())),
            "forces": atoms.get_forces(),
            "stress": np.zeros(6),
        }
        return self.post_process(found, atoms)
