"""The force field as an ASE calculator."""

import warnings
from pathlib import Path

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from .errors import ExtrapolationWarning, ModelMismatchError
from .force_field import ForceField
from .models import at_state, load
from .region import Excess
from .states.force_field import State, StatesForceField


class GDMLCalculator(Calculator):
    """ASE calculator for a force field.

    Parameters
    ----------
    force_field : ForceField, StatesForceField or path
    state : optional
        Of a force field of several states: which.
    device, dtype, backend : optional
        Where and how it is evaluated; see `ForceField.to`.
    uncertainty : bool
        Whether `results` also get ``energy_uncertainty`` (eV) and ``forces_uncertainty`` (eV/Å, (N, 3)):
        standard deviations, see `ForceField.uncertainty`.
    warn_outside : bool
        Whether to warn, once, when a geometry leaves the region of the training
        data (see `ForceField.outside`).

    Attributes
    ----------
    n_outside : int
        How many of the geometries so far were outside of that region.

    Raises
    ------
    DeviceError
        For a device, precision or backend that is not there.
    FitError
        If there is no uncertainty.
    ModelMismatchError
        For a state that was not in the training data; on calculation, for atoms of another composition or order.

    Warns
    -----
    ExtrapolationWarning
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self,
        force_field: ForceField | StatesForceField | str | Path,
        *,
        state: State | None = None,
        device: str | None = None,
        dtype: str | None = None,
        backend: str | None = None,
        uncertainty: bool = False,
        warn_outside: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        force_field = load(force_field) if isinstance(force_field, (str, Path)) else force_field
        force_field = at_state(force_field, state)
        self.force_field = force_field.to(device, dtype, backend)
        self.force_field.check_uncertainty(uncertainty)
        self.uncertainty, self.warn_outside = uncertainty, warn_outside
        self.n_outside = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill `results` with energy and free_energy (eV), forces (eV/Å) and, of crystals, stress (eV/Å³)."""
        super().calculate(atoms, properties, system_changes)
        self.force_field.check_atoms(self.atoms.numbers)
        positions = self.atoms.positions
        cell = self._cell()
        wanted = "stress" in properties
        if wanted and self.force_field.pbc != (True, True, True):
            raise PropertyNotImplementedError("there is no stress where not all three directions are periodic")
        if wanted and self.warn_outside and self.force_field.details.get("use_stress") is False:
            warnings.warn(
                "stress is asked of a force field that was trained without (use_stress): it is extrapolated, and may "
                "be wrong by GPa",
                ExtrapolationWarning,
                stacklevel=2,
            )
        (energy, forces, stress), excess = self.force_field.judged(positions, cell, stress=wanted)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if wanted:
            self.results["stress"] = stress
        if self.uncertainty:
            deviations = self.force_field.uncertainty(positions, cell)
            self.results |= {"energy_uncertainty": deviations.energy, "forces_uncertainty": deviations.forces}
        if excess:
            self.n_outside += 1
            if self.warn_outside and self.n_outside == 1:
                warnings.warn(_describe(excess, self.atoms), ExtrapolationWarning, stacklevel=2)

    def _cell(self):
        """The cell of the atoms, if the force field is periodic and they are in the same way."""
        pbc = self.force_field.pbc
        if pbc is None:
            return None
        check_pbc(self.force_field, self.atoms)
        return self.atoms.cell.array


def check_pbc(force_field: ForceField, atoms: Atoms) -> None:
    """Raise unless the atoms are periodic in the way of the force field; that of a molecule ignores it.

    Raises
    ------
    ModelMismatchError
    """
    pbc = force_field.pbc
    if pbc is not None and tuple(atoms.pbc) != pbc:
        raise ModelMismatchError(f"the force field is for pbc={list(pbc)}, the atoms have {atoms.pbc.tolist()}")


def _describe(excess: list[Excess], atoms) -> str:
    worst = excess[0]
    i, j = worst.atoms
    more = f" and {len(excess) - 1} more pairs" if len(excess) > 1 else ""
    return (
        f"the geometry is outside the region of the training data: {atoms.symbols[i]}{i} and {atoms.symbols[j]}{j} "
        f"are {worst.distance:.3f} Å apart, in training {worst.shortest:.3f} to {worst.longest:.3f} Å{more}; "
        "forces there are extrapolated (further such geometries are counted in n_outside)"
    )
