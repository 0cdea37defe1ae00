"""Forces on many geometries at once, from whatever can give them."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from ase import Atoms
from numpy.typing import ArrayLike
from torch import Tensor

from ..calculator import GDMLCalculator, check_pbc
from ..errors import DataError, DynamicsWarning
from ..force_field import ForceField
from ..models import at_state


class Forces(NamedTuple):
    """Of M geometries: energy (M,) eV, forces (M, N, 3) eV/Å, stress (M, 6) eV/Å³ or None."""

    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None


MOST_ERROR = 1e-3  # of forces by single precision, as a fraction of their size
# Of positions (M, N, 3), cells (M, 3, 3) or None, and whether stress is wanted.
BatchedForces = Callable[[Tensor, Tensor | None, bool], Forces]


def source_of(given: object, atoms: Atoms) -> object:
    """What gives the forces: what is given, else the calculator of the atoms; of a `GDMLCalculator` its force field."""
    source = atoms.calc if given is None else given
    return source.force_field if isinstance(source, GDMLCalculator) else source


def check_precision_error(source: object, positions: ArrayLike, cell: ArrayLike | None = None) -> None:
    """Warn where single precision changes forces (M, N, 3) so much that energy will not be conserved.

    Warns
    -----
    DynamicsWarning
    """
    if not isinstance(source, ForceField) or source.dtype == "float64":
        return
    cell = cell if source.is_periodic else None
    error = source.precision_error(positions, cell)
    size = float(torch.as_tensor(source.predict(positions, cell).forces).square().mean().sqrt())
    if error > MOST_ERROR * size:
        warnings.warn(
            f"{source.dtype} changes forces by {1e3 * error:.2g} meV/Å, where they are {1e3 * size:.2g}: energy will "
            "not be conserved; compute in float64, or train with more noise",
            DynamicsWarning,
            stacklevel=4,
        )


def batched(source: object, atoms: Atoms) -> BatchedForces:
    """All geometries in one call where the source can, else one by one.

    Parameters
    ----------
    source : ForceField, callable, or ASE calculator
        A callable takes positions (M, N, 3), as a tensor, and gives energies (M,)
        and forces (M, N, 3); where stress is wanted, it takes cells (M, 3, 3) too, and
        gives stress (M, 6) as well. A calculator that takes batches, as `gdml.baselines.Bonded`, is a callable, too.
    atoms : Atoms

    Raises
    ------
    DataError
        If there is nothing that gives forces.
    ModelMismatchError
        For a force field of other atoms, or periodic in another way; for one of several states.
    """
    source = at_state(source, None)
    if source is None:
        raise DataError("there are no forces: give a force field, a callable, or atoms with a calculator")
    if isinstance(source, ForceField):
        source.check_atoms(atoms.numbers)
        check_pbc(source, atoms)
        return _of_force_field(source)
    if hasattr(source, "batch") and not atoms.pbc.any():
        return _of_callable(source.batch)
    if hasattr(source, "get_property"):
        return _one_by_one(source, atoms)
    if callable(source):
        return _of_callable(source)
    raise DataError(f"forces must be a force field, a callable or an ASE calculator, not {source!r}")


def _of_force_field(force_field: ForceField) -> BatchedForces:
    def forces(positions: Tensor, cells: Tensor | None, stress: bool) -> Forces:
        cells = cells.cpu().numpy() if cells is not None and force_field.is_periodic else None
        return Forces(*force_field.predict(positions, cells, stress))

    return forces


def _of_callable(source: Callable) -> BatchedForces:
    def forces(positions: Tensor, cells: Tensor | None, stress: bool) -> Forces:
        found = source(positions, cells) if stress else source(positions)
        energy, force, *more = (torch.as_tensor(value).detach() for value in found)
        if stress and not more:
            raise DataError("a pressure needs stress (M, 6), as a third value of the callable")
        if energy.shape != positions.shape[:1] or force.shape != positions.shape:
            raise DataError(
                f"the callable gave energies {tuple(energy.shape)} and forces {tuple(force.shape)} for positions "
                f"{tuple(positions.shape)}; they must have the shapes (M,) and (M, N, 3)"
            )
        return Forces(energy, force, *more)

    return forces


def _one_by_one(calculator: object, atoms: Atoms) -> BatchedForces:
    def single(positions: Tensor, cell: Tensor | None, stress: bool) -> list[Tensor]:
        geometry = atoms.copy()
        geometry.set_constraint()
        geometry.positions = positions.cpu().numpy()
        if cell is not None:
            geometry.cell = cell.cpu().numpy()
        geometry.calc = calculator
        found = [geometry.get_potential_energy(), geometry.get_forces(), geometry.get_stress() if stress else []]
        return [torch.tensor(value, dtype=torch.float64) for value in found]

    def forces(positions: Tensor, cells: Tensor | None, stress: bool) -> Forces:
        each = [None] * len(positions) if cells is None else cells
        found = [single(*one, stress) for one in zip(positions, each, strict=True)]
        energy, force, pressure = (torch.stack(values).to(positions.device) for values in zip(*found, strict=True))
        return Forces(energy, force, pressure if stress else None)

    return forces
