"""Stationary points of the energy: minima and saddle points."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from ..dataset import Dataset
from ..force_field import ForceField
from ..geometry import internal_basis
from ..minima import vibrations
from ..posterior import Uncertainty
from ..region import Excess

IMAGINARY = 10.0  # cm⁻¹, from which on a mode leads down
UNKNOWN = "?"  # the name of a minimum that relaxations did not come to


class Modes(NamedTuple):
    """Vibrations at a stationary point, the softest first; rigid motions are left out.

    Attributes
    ----------
    frequencies : (q,) array, cm⁻¹
        Imaginary ones are negative.
    vectors : (q, N, 3) array
        Displacements of length one.
    """

    frequencies: np.ndarray
    vectors: np.ndarray

    @property
    def n_imaginary(self) -> int:
        """Directions that lead down."""
        return int((self.frequencies < -IMAGINARY).sum())

    @property
    def zero_point(self) -> float:
        """Zero-point energy of the modes that do not lead down, eV."""
        return 0.5 * float(self.frequencies[self.frequencies > 0].sum()) * units.invcm


def modes_of(force_field: ForceField, atoms: Atoms) -> Modes:
    """Vibrations of a force field at a stationary point."""
    energies, vectors = vibrations(force_field, atoms).get_energies_and_modes()
    frequencies = (energies.real - np.abs(energies.imag)) / units.invcm
    basis = internal_basis(torch.tensor(atoms.positions)[None], rotations=not force_field.is_periodic)
    kept = np.argsort(np.abs(frequencies))[len(frequencies) - basis.shape[2] :]
    kept = kept[np.argsort(frequencies[kept])]
    vectors = vectors[kept]
    return Modes(frequencies[kept], vectors / np.linalg.norm(vectors, axis=(1, 2), keepdims=True))


@dataclass(frozen=True, eq=False)
class Point:
    """A minimum or a saddle point.

    Attributes
    ----------
    name : str
        M1 is the lowest minimum without a mark, S1 the lowest saddle point.
    atoms : Atoms
        With energy and forces.
    energy : float, eV
    largest : float, eV/Å
        The largest force on an atom.
    count : int
        Relaxations, or searches, that ended there. None, of minima that only saddle points lead down to.
    modes : Modes
    outside : Excess or None
        The pair of atoms that is farthest outside of the range of its distances in training.
    uncertainty : Uncertainty or None
        Where the force field knows it.
    usual : float, eV/Å
        Up to which forces (root mean square) are as certain as those of training geometries; see `mark`.
    ends : tuple of str or None
        Of a saddle point, the minima that it leads down to: twice the same for copies of
        one that a permutation or a mirror exchanges; "?" where relaxations did not converge.
    """

    name: str
    atoms: Atoms
    energy: float
    largest: float
    count: int
    modes: Modes
    outside: Excess | None
    uncertainty: Uncertainty | None
    usual: float = math.inf
    ends: tuple[str, str] | None = None

    @property
    def mark(self) -> str:
        """What speaks against it: "outside" of the training region, "uncertain", or nothing.

        Uncertain are forces more so than those of nine in ten of the training geometries, when left out.
        """
        if self.outside is not None:
            return "outside"
        return "uncertain" if self.deviation > self.usual else ""

    @property
    def deviation(self) -> float:
        """Root mean square of the standard deviations of the forces, eV/Å; NaN where they are not known."""
        return math.nan if self.uncertainty is None else float(np.sqrt((self.uncertainty.forces**2).mean()))


def point_at(force_field: ForceField, atoms: Atoms, positions: np.ndarray, largest: float, count: int) -> Point:
    """What a force field says of a stationary point, as yet without a name."""
    atoms, cell = atoms.copy(), atoms.cell.array if force_field.is_periodic else None
    atoms.positions = positions
    energy, forces, _ = force_field.predict(positions, cell)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    known = force_field.error_model
    return Point(
        name="",
        atoms=atoms,
        energy=energy,
        largest=largest,
        count=count,
        modes=modes_of(force_field, atoms),
        outside=next(iter(force_field.outside(positions, cell)), None),
        uncertainty=None if known is None else force_field.uncertainty(positions, cell),
        usual=math.inf if known is None else known.usual,
    )


class Astray(NamedTuple):
    """Starts that came to no minimum: still on their way, or on a saddle point again and again.

    Attributes
    ----------
    positions : (k, N, 3) array, Å
        Where they were in the end.
    largest : (k,) array, eV/Å
        The largest force on an atom there; not finite where forces failed.
    """

    positions: np.ndarray
    largest: np.ndarray


@dataclass(frozen=True, eq=False)
class Landscape:
    """What `explore` found.

    Attributes
    ----------
    minima, saddles : list of Point
        The lowest first, marked ones at the end.
    starts : Dataset
        Where relaxations began.
    unconverged : Astray
    n_searches, n_lost : int
        Searches for saddle points, and how many of them came to none.
    """

    minima: list[Point]
    saddles: list[Point]
    starts: Dataset
    unconverged: Astray
    n_searches: int = 0
    n_lost: int = 0

    def barriers(self, saddle: Point) -> tuple[float, float]:
        """Heights of a saddle point over the minima that it leads down to, eV; NaN where these are not known."""
        below = {point.name: point.energy for point in self.minima}
        return tuple(saddle.energy - below.get(name, math.nan) for name in saddle.ends or ())

    @property
    def n_marked(self) -> int:
        """Minima outside of the training region, or uncertain."""
        return sum(bool(point.mark) for point in self.minima)
