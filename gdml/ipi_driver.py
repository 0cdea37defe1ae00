"""A potential for i-PI that evaluates all beads in one call.

i-PI loads this file by its path, which ``gdml ipi --path`` prints:

.. code-block:: xml

   <ffdirect name='gdml'>
     <pes>custom</pes>
     <pes_path>PATH</pes_path>
     <parameters>{model: model.npz, template: start.extxyz}</parameters>
     <batch_size>32</batch_size>
   </ffdirect>

with the number of beads as the batch size. Virials are those of crystals; of what is not
periodic in three directions they are zero, so that no pressure can be kept.
"""

import numpy as np
from ase import Atoms
from ipi.pes._ase import ASEDriver

import gdml  # by its full name: the file is loaded from outside of the package

__DRIVER_NAME__ = "gdml"
__DRIVER_CLASS__ = "GDMLDriver"


class GDMLDriver(ASEDriver):
    """Energies, forces and, of crystals, virials from a force field.

    Parameters
    ----------
    template : path
        File of a geometry, in the order of atoms in training, that ASE reads.
    model : path
        The force field.
    device, dtype, backend : str, optional
        Where and how it is evaluated; see `gdml.ForceField.to`.
    """

    def __init__(self, template: str, model: str, *args, device=None, dtype=None, backend=None, **kwargs):
        self.force_field = gdml.load(model, device=device, dtype=dtype, backend=backend)
        self.has_virial = self.force_field.pbc == (True, True, True)
        super().__init__(template, *args, **kwargs)

    def check_parameters(self) -> None:
        """Read the template, and see whether the force field is for its atoms."""
        super().check_parameters()
        self.force_field.check_atoms(self.template_ase.numbers)

    def compute(self, cell: np.ndarray | list, pos: np.ndarray | list) -> tuple | list[tuple]:
        """Energy, forces, virial and a text, in atomic units, of one geometry or of a list of them."""
        if not isinstance(cell, list):
            return self.compute([cell], [pos])[0]
        converted = [self.convert_units(*one) for one in zip(cell, pos, strict=True)]
        cells, positions = (np.array(values) for values in zip(*converted, strict=True))
        cells_of_crystals = cells if self.force_field.is_periodic else None
        found = self.force_field.predict(positions, cells_of_crystals, self.has_virial)
        return [self._converted(k, found, cells[k], positions[k]) for k in range(len(cells))]

    def _converted(self, k: int, found: gdml.Prediction, cell: np.ndarray, positions: np.ndarray) -> tuple:
        stress = found.stress[k] if self.has_virial else np.zeros(6)  # without, i-PI 3.3 would stop
        properties = {"energy": found.energy[k], "forces": found.forces[k], "stress": stress}
        return self.post_process(properties, Atoms(self.template_ase.numbers, positions, cell=cell))
