r"""Linear maps from atoms to beads, for positions and for forces.

Positions of beads are R = M r. Any forces F = B f have the mean force of the beads as their mean where

.. math:: B M^T = 1

(and atoms that enter a bead are not held by constraints with atoms that enter with another weight). Many B do, and
differ in noise alone: with C the mean of f fᵀ, the least variance has

.. math:: B = (M C^{-1} M^T)^{-1} M C^{-1} .

Sources: W. G. Noid et al., J. Chem. Phys. 128, 244114 (2008); A. Krämer et al., J. Phys. Chem. Lett. 14, 3970 (2023).
"""

from collections.abc import Mapping as Names
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, chemical_symbols
from numpy.typing import ArrayLike

from ..dataset import Dataset
from ..errors import DataError, MissingExtraError

SAME = 1e-6  # to which weights of a bead add up to one, and B Mᵀ is the identity


@dataclass(frozen=True, eq=False)
class Mapping:
    """A linear map from n atoms to N beads; see `of_groups`, `of_slice`, `of_names` and `of_selections`, too.

    Parameters
    ----------
    matrix : (N, n) array
        M: a row of weights for each bead, which add up to one.
    force_matrix : (N, n) array, optional
        B. By default the sum of forces on a bead's atoms, where no atom is in two beads; else the one of least
        norm, (M Mᵀ)⁻¹ M.
    numbers : (N,) int array, optional
        Atomic numbers that the beads are given, since data need some; by default those of carbon.
    names : sequence of str, optional
        Of the beads, for messages; by default their indices.
    leaves_out : bool
        Whether atoms may be in no bead.

    Raises
    ------
    DataError
        If beads are empty, atoms are in none (unless that is allowed), weights do not add up to one, or forces
        that are mapped so are not those of the beads.
    """

    matrix: np.ndarray
    force_matrix: np.ndarray | None = None
    numbers: np.ndarray | None = None
    names: Sequence[str] | None = None
    leaves_out: bool = False

    def __post_init__(self):
        matrix = np.array(self.matrix, dtype=float)
        if matrix.ndim != 2 or not matrix.size:
            raise DataError(f"a mapping is a matrix (beads, atoms), not of the shape {matrix.shape}")
        names = [str(i) for i in range(len(matrix))] if self.names is None else [str(name) for name in self.names]
        numbers = np.full(len(matrix), 6) if self.numbers is None else np.asarray(self.numbers)
        if len(names) != len(matrix) or numbers.shape != (len(matrix),):
            raise DataError(f"{len(matrix)} beads need as many names and numbers, not {len(names)} and {numbers.size}")
        _check_weights(matrix, names, self.leaves_out)
        forces = _default_forces(matrix) if self.force_matrix is None else np.array(self.force_matrix, dtype=float)
        _check_forces(matrix, forces, names)
        for name, value in zip(("matrix", "force_matrix", "numbers", "names"), (matrix, forces, numbers, names)):
            object.__setattr__(self, name, value)

    @classmethod
    def of_groups(
        cls,
        groups: Sequence[Sequence[int]],
        numbers: ArrayLike,
        masses: ArrayLike | None = None,
        *,
        names: Sequence[str] | None = None,
        leaves_out: bool = False,
    ) -> "Mapping":
        """Centres of mass of groups of atoms; the beads have the numbers of their heaviest atoms.

        Parameters
        ----------
        groups : sequence of sequences of int
            The atoms of each bead, counted from zero.
        numbers : (n,) int array
            Atomic numbers of the atoms.
        masses : (n,) array, optional
            By default the standard ones.
        names, leaves_out
            As of the class.
        """
        numbers = np.asarray(numbers, dtype=int)
        masses = atomic_masses[numbers] if masses is None else np.asarray(masses, dtype=float)
        if masses.shape != numbers.shape or not (np.isfinite(masses).all() and (masses > 0).all()):
            raise DataError(f"{numbers.size} atoms need as many positive masses")
        matrix = np.zeros((len(groups), len(numbers)))
        heaviest = []
        for bead, group in enumerate(groups):
            atoms = _atoms_of(group, len(numbers), names[bead] if names else bead)
            matrix[bead, atoms] = masses[atoms] / masses[atoms].sum()
            heaviest.append(numbers[atoms[masses[atoms].argmax()]])
        return cls(matrix, None, np.array(heaviest), names, leaves_out)

    @classmethod
    def of_slice(cls, atoms: Sequence[int], numbers: ArrayLike) -> "Mapping":
        """Some of the atoms as they are; all others are left out."""
        numbers = np.asarray(numbers, dtype=int)
        names = [f"{chemical_symbols[numbers[i]]}{i}" for i in _atoms_of(atoms, len(numbers), "of the slice")]
        return cls.of_groups([[i] for i in atoms], numbers, names=names, leaves_out=True)

    @classmethod
    def of_names(
        cls,
        atoms: Sequence[str],
        beads: Names[str, Sequence[str]],
        numbers: ArrayLike,
        masses: ArrayLike | None = None,
        *,
        leaves_out: bool = False,
    ) -> "Mapping":
        """Centres of mass of atoms that are given by their names, such as ``{"backbone": ["N", "CA", "C"]}``.

        Raises
        ------
        DataError
            As of the class; for a name that no atom or more than one has.
        """
        places = {}
        for place, name in enumerate(atoms):
            places.setdefault(name, []).append(place)
        for bead, names in beads.items():
            for name in names:
                found = places.get(name, [])
                if len(found) != 1:
                    what = f"atoms {found} are all" if found else "there is no atom"
                    raise DataError(f"bead {bead}: {what} called {name!r}; names must tell atoms apart")
        groups = [[places[name][0] for name in names] for names in beads.values()]
        return cls.of_groups(groups, numbers, masses, names=list(beads), leaves_out=leaves_out)

    @classmethod
    def of_selections(cls, universe: object, beads: Names[str, str], *, leaves_out: bool = False) -> "Mapping":
        """Centres of mass of atoms that are given in MDAnalysis' language, such as ``{"CA": "name CA"}``.

        Parameters
        ----------
        universe : MDAnalysis.Universe, or path
            With masses; a file is read by MDAnalysis.
        beads : dict of str
            A selection for each bead.

        Raises
        ------
        MissingExtraError
            For a file, without MDAnalysis.
        DataError
            As of the class.
        """
        if isinstance(universe, (str, Path)):
            universe = _read_universe(universe)
        masses = np.asarray(universe.atoms.masses, dtype=float)
        groups = [universe.select_atoms(text).indices.tolist() for text in beads.values()]
        # The element that the mass is nearest to: topologies often do not say.
        numbers = 1 + np.abs(atomic_masses[1:93] - masses[:, None]).argmin(1)
        return cls.of_groups(groups, numbers, masses, names=list(beads), leaves_out=leaves_out)

    @property
    def n_beads(self) -> int:
        return len(self.matrix)

    @property
    def n_atoms(self) -> int:
        return self.matrix.shape[1]

    def positions(self, positions: ArrayLike) -> np.ndarray:
        """Positions (..., N, 3) of beads from those (..., n, 3) of atoms, which must be whole, not wrapped."""
        return self.matrix @ self._of_atoms(positions)

    def forces(self, forces: ArrayLike) -> np.ndarray:
        """Forces (..., N, 3) on beads from those (..., n, 3) on atoms."""
        return self.force_matrix @ self._of_atoms(forces)

    def __call__(self, dataset: Dataset) -> Dataset:
        """Positions and forces of the beads; energies, which are not free energies, are left out.

        Raises
        ------
        DataError
            If there are no forces, or another number of atoms.
        """
        if any(dataset.pbc):
            raise DataError("beads are mapped from whole molecules: unwrap the geometries, and set pbc to False")
        return Dataset(
            positions=self.positions(dataset.positions),
            numbers=self.numbers,
            forces=self.forces(dataset.require_forces()),
            name=dataset.name,
            frame_numbers=dataset.frame_numbers,
        )

    def with_least_noise(self, dataset: Dataset) -> "Mapping":
        """The same with the forces of least variance on a dataset of the atoms; not for rigid bonds.

        Of forces that cancel, such as those of all atoms of a molecule, the covariance is singular, and a
        millionth of its mean diagonal is added.
        """
        forces = self._of_atoms(dataset.require_forces())
        covariance = np.einsum("mix,mjx->ij", forces, forces) / len(forces)
        covariance += 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        weighted = np.linalg.solve(covariance, self.matrix.T).T  # M C⁻¹
        return replace(self, force_matrix=np.linalg.solve(weighted @ self.matrix.T, weighted))

    def _of_atoms(self, values: ArrayLike) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        if values.ndim < 2 or values.shape[-2:] != (self.n_atoms, 3):
            raise DataError(f"the mapping is of {self.n_atoms} atoms (..., {self.n_atoms}, 3), not {values.shape}")
        return values


def _atoms_of(group: Sequence[int], n_atoms: int, bead: object) -> list[int]:
    atoms = [int(i) for i in group]
    if not atoms:
        raise DataError(f"bead {bead} is empty; give it atoms, or leave it out")
    wrong = [i for i in atoms if not 0 <= i < n_atoms]
    if wrong or len(set(atoms)) < len(atoms):
        what = f"there is no atom {wrong[0]} among {n_atoms}" if wrong else "an atom is given twice"
        raise DataError(f"bead {bead}: {what}")
    return atoms


def _check_weights(matrix: np.ndarray, names: list[str], leaves_out: bool) -> None:
    if not np.isfinite(matrix).all():
        raise DataError("the weights of a mapping must be finite")
    empty = [name for name, row in zip(names, matrix) if not row.any()]
    if empty:
        raise DataError(f"bead {', '.join(empty)} is empty: no atom has a weight in it")
    for name, total in zip(names, matrix.sum(1)):
        if abs(total - 1) > SAME:
            raise DataError(f"bead {name}: weights add up to {total:.6g}, not to one, so that it does not move along")
    missing = np.flatnonzero(~matrix.any(0))
    if len(missing) and not leaves_out:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} atoms are in no bead ({shown}); assign them, or say leaves_out=True if that is meant"
        )


def _default_forces(matrix: np.ndarray) -> np.ndarray:
    """The sum over atoms where these are in one bead each, else the matrix of least norm."""
    if ((matrix != 0).sum(0) <= 1).all():
        return (matrix != 0).astype(float)
    if np.linalg.matrix_rank(matrix) < len(matrix):
        raise DataError("beads of the mapping depend on each other; leave out those that others tell")
    return np.linalg.solve(matrix @ matrix.T, matrix)


def _check_forces(matrix: np.ndarray, forces: np.ndarray, names: list[str]) -> None:
    if forces.shape != matrix.shape or not np.isfinite(forces).all():
        raise DataError(f"force_matrix must be finite, of the shape {matrix.shape}, not {forces.shape}")
    wrong = np.abs(forces @ matrix.T - np.eye(len(matrix)))
    if wrong.max() > SAME:
        first, second = np.unravel_index(wrong.argmax(), wrong.shape)
        raise DataError(
            f"forces that are mapped so are not the beads': B Mᵀ of beads {names[first]} and {names[second]} is off "
            f"by {wrong.max():.3g} from the identity"
        )


def _read_universe(path: str | Path) -> object:
    try:
        import MDAnalysis
    except ImportError as error:
        raise MissingExtraError("MDAnalysis", "selecting atoms of a file", "coarse") from error
    return MDAnalysis.Universe(str(path))
