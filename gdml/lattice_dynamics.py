"""Phonons of a crystal by finite differences of the predicted forces, through phonopy."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from .errors import DataError, MissingExtraError
from .force_field import ForceField

if TYPE_CHECKING:
    from phonopy import Phonopy


def phonons(force_field: ForceField, reference: Atoms, *, displacement: float = 0.01) -> "Phonopy":
    r"""Force constants of a supercell, ready for band structures and densities of states.

    The supercell is the one that the force field was trained on; phonopy finds
    the primitive cell and the displacements that symmetry leaves over.

    Parameters
    ----------
    force_field : ForceField
        Of a periodic system. Of sheets and wires phonopy sees the cell with its
        vacuum.
    reference : ase.Atoms
        The ideal structure, with the atoms in the order of the training
        geometries. Relax it first: phonons are those of a minimum.
    displacement : float
        Å.

    Returns
    -------
    phonopy.Phonopy
        With force constants in eV/Å².

    Raises
    ------
    DataError
        If the force field is for a molecule.
    ModelMismatchError
        If these are not its atoms.
    MissingExtraError
        Without phonopy; its message has the command that installs it.

    Notes
    -----
    Central differences, :math:`\Phi_{ia,jb} = -\partial F_{jb} / \partial r_{ia}`.
    The forces of a function of differences add up to zero, so the acoustic sum
    rule holds for each displacement.

    References
    ----------
    A. Togo, L. Chaput, T. Tadano, I. Tanaka, J. Phys.: Condens. Matter 35, 353001 (2023).
    """
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise MissingExtraError("phonopy", "a calculation of phonons", "phonons") from error
    if not force_field.is_periodic:
        raise DataError(f"phonons need a periodic force field, and this one is for the molecule {force_field.formula}")
    force_field.check_atoms(reference.numbers)
    cell = reference.cell.array
    ideal = PhonopyAtoms(numbers=reference.numbers, cell=cell, scaled_positions=reference.get_scaled_positions())
    with warnings.catch_warnings():  # phonopy tells everyone who asks for "auto" that it found a primitive cell
        warnings.simplefilter("ignore", UserWarning)
        phonon = Phonopy(ideal, supercell_matrix=np.eye(3, dtype=int), primitive_matrix="auto")
    phonon.generate_displacements(distance=displacement, is_plusminus=True)
    displaced = np.array([s.positions for s in phonon.supercells_with_displacements])
    phonon.forces = force_field.predict(displaced, cell).forces
    phonon.produce_force_constants()
    return phonon
