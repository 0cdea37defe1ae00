"""Minima of a force field, and vibrations about them, by its exact second derivatives."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from scipy.optimize import minimize

from .calculator import GDMLCalculator, check_pbc
from .errors import ConvergenceError, DataError, ExtrapolationWarning
from .force_field import ForceField

if TYPE_CHECKING:
    from ase.vibrations import VibrationsData

MAX_STEP = 0.3  # Å, of all atoms together
NOT_A_MINIMUM = 0.02  # eV/Å
RIGID = 1e-6  # curvature along rigid motions, over the largest


def relax(force_field: ForceField, atoms: Atoms, *, fmax: float = 1e-4, max_steps: int = 200) -> Atoms:
    """The minimum of the energy near to a geometry, at a fixed cell.

    Newton steps with the exact Hessian in a region of trust, which shrinks where they
    do not lead down; a dozen are usual for a molecule.

    Parameters
    ----------
    force_field : ForceField
    atoms : ase.Atoms
        Where to start; unchanged.
    fmax : float
        The largest force on an atom at the end, eV/Å.
    max_steps : int

    Returns
    -------
    ase.Atoms
        With a `GDMLCalculator`.

    Raises
    ------
    ModelMismatchError
        If these are not the force field's atoms.
    DataError
        If atoms have constraints.
    ConvergenceError
        If forces are larger than `fmax` after `max_steps`.

    Warns
    -----
    ExtrapolationWarning
        If the minimum is outside of the training data.
    """
    _check(force_field, atoms)
    if not fmax > 0:
        raise DataError(f"fmax must be positive, but it is {fmax}")
    cell = atoms.cell.array if force_field.is_periodic else None
    start = force_field.predict(atoms.positions, cell).energy  # so that no digits are lost to a large constant

    def energy_and_gradient(r: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces, _ = force_field.predict(r.reshape(-1, 3), cell)
        return energy - start, -forces.ravel()

    found = minimize(
        energy_and_gradient,
        atoms.positions.ravel(),
        jac=True,
        hess=lambda r: force_field.hessian(r.reshape(-1, 3), cell),
        method="trust-exact",
        options={"gtol": fmax, "maxiter": max_steps, "initial_trust_radius": MAX_STEP, "max_trust_radius": 1.0},
    )
    positions, largest = _polished(force_field, found.x.reshape(-1, 3), cell, fmax)
    if largest > fmax:
        raise ConvergenceError(
            f"after {found.nit} steps the largest force is {largest:.2g} eV/Å, and fmax={fmax:g}; start nearer to a "
            "minimum, or see whether this one is within the training data"
        )
    relaxed = atoms.copy()
    relaxed.positions = positions
    relaxed.calc = GDMLCalculator(force_field)
    relaxed.get_forces()
    return relaxed


def _check(force_field: ForceField, atoms: Atoms) -> None:
    """Raise unless these are the force field's atoms, and all of them are free."""
    force_field.check_atoms(atoms.numbers)
    check_pbc(force_field, atoms)
    check_free(atoms)


def check_free(atoms: Atoms) -> None:
    """Raise unless atoms have no constraints.

    Raises
    ------
    DataError
    """
    if atoms.constraints:
        raise DataError(
            f"the atoms have constraints ({', '.join(type(c).__name__ for c in atoms.constraints)}), which these "
            "relaxations and frequencies do not know; remove them, or relax with ASE's optimisers"
        )


def _polished(force_field: ForceField, r: np.ndarray, cell: np.ndarray | None, fmax: float) -> tuple[np.ndarray, float]:
    """Positions after Newton steps that make forces smaller, and the largest force.

    Where energies differ by less than their rounding errors, forces still tell the way.
    """
    forces = force_field.predict(r, cell).forces
    while (largest := float(np.linalg.norm(forces, axis=1).max())) > fmax:
        step = np.linalg.lstsq(force_field.hessian(r, cell), forces.ravel(), rcond=RIGID)[0].reshape(-1, 3)
        if np.abs(step).max() > MAX_STEP:
            break
        after = force_field.predict(r + step, cell).forces
        if not np.abs(after).max() < 0.5 * np.abs(forces).max():
            break
        r, forces = r + step, after
    return r, largest


def vibrations(force_field: ForceField, atoms: Atoms) -> "VibrationsData":
    """Vibrations of a molecule, or of a supercell at Γ, by the exact Hessian.

    Parameters
    ----------
    force_field : ForceField
    atoms : ase.Atoms
        At a minimum; see `relax`.

    Returns
    -------
    ase.vibrations.VibrationsData
        ``.get_frequencies()`` in cm⁻¹, ``.get_zero_point_energy()`` in eV, modes, tables.

    Raises
    ------
    ModelMismatchError
        If these are not the force field's atoms.

    Warns
    -----
    ExtrapolationWarning
        If forces are not small: this is no minimum.
    """
    from ase.vibrations import VibrationsData  # which imports matplotlib

    _check(force_field, atoms)
    cell = atoms.cell.array if force_field.is_periodic else None
    largest = float(np.linalg.norm(force_field.predict(atoms.positions, cell).forces, axis=1).max())
    if largest > NOT_A_MINIMUM:
        warnings.warn(
            f"the largest force is {largest:.2g} eV/Å: this is no minimum, and frequencies mean nothing; relax first",
            ExtrapolationWarning,
            stacklevel=2,
        )
    return VibrationsData.from_2d(atoms, force_field.hessian(atoms.positions, cell))
