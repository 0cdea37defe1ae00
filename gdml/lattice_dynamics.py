"""Phonons of a crystal by the second derivatives of the energy, through phonopy."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell

from .calculator import check_pbc
from .errors import DataError, MissingExtraError
from .force_field import ForceField

SYMPREC = 1e-3  # Å: what is left of displacements after a relaxation
VACUUM = 20.0  # Å, along vectors that are not given

if TYPE_CHECKING:
    from phonopy import Phonopy


def phonons(force_field: ForceField, reference: Atoms) -> "Phonopy":
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

    Returns
    -------
    phonopy.Phonopy
        With force constants in eV/Å².

    Raises
    ------
    DataError
        If the force field is for a molecule, the cell is left-handed, or the reference
        is far from the training geometries, as with its atoms in another order.
    ModelMismatchError
        If these are not its atoms, or periodic in another way.
    MissingExtraError
        Without phonopy; its message has the command that installs it.

    Notes
    -----
    For each displacement u of an atom that symmetry leaves over, phonopy is given the
    forces -Φ u with the exact second derivatives Φ, without what finite displacements add.
    The forces of a function of differences add up to zero, so the acoustic sum rule holds.

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
    check_pbc(force_field, reference)
    excess = force_field.outside(reference.positions, reference.cell.array)
    if excess:
        (i, j), distance, shortest, longest = excess[0]
        raise DataError(
            f"the reference is far from the training geometries: atoms {i} and {j} are {distance:.3f} Å apart, in "
            f"training {shortest:.3f} to {longest:.3f} Å; are the atoms in the order of the training geometries?"
        )
    cell = _with_vacuum(reference)
    if np.linalg.det(cell) < 0:
        raise DataError("the cell is left-handed, which phonopy does not take; exchange two of its vectors")
    ideal = PhonopyAtoms(numbers=reference.numbers, cell=cell, positions=reference.positions)
    with warnings.catch_warnings():  # phonopy tells everyone who asks for "auto" that it found a primitive cell
        warnings.simplefilter("ignore", UserWarning)
        phonon = Phonopy(ideal, supercell_matrix=np.eye(3, dtype=int), primitive_matrix="auto", symprec=SYMPREC)
    phonon.generate_displacements(is_plusminus=False)
    moves = phonon.dataset["first_atoms"]
    vectors = np.zeros((len(moves), *reference.positions.shape))
    for vector, move in zip(vectors, moves, strict=True):
        vector[move["number"]] = move["displacement"]
    # At the reference's own positions; phonopy may wrap its across what is not periodic.
    phonon.forces = -force_field.hessian_products(reference.positions, vectors, reference.cell.array)
    phonon.produce_force_constants()
    return phonon


def _with_vacuum(atoms: Atoms) -> np.ndarray:
    """The cell (3, 3), with long vectors where there are none."""
    cell = atoms.cell.array
    missing = ~cell.any(1)
    if missing.any():
        cell = complete_cell(cell)
        extent = np.ptp(atoms.positions @ cell[missing].T, axis=0)
        cell[missing] *= (extent + VACUUM)[:, None]
    return cell
