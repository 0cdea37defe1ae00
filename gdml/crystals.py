"""What training on a periodic system needs beforehand: the ideal structure that its frames fluctuate about."""

import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.geometry import complete_cell
from scipy.optimize import linear_sum_assignment

from .dataset import Dataset, read_structure
from .errors import DataError, DataWarning, SymmetryError, name_frames
from .geometry import Lattice, nearest_images
from .symmetry import CrystalGroup, crystal_group, symmetrised_reference

MAX_STRAIN = 0.1  # of the reference against the mean of the frames
TWICE = 2.1  # shortest distances, that a lattice vector should have at least
MAX_SHIFTS = 200  # of the origin, that are tried
NEARLY = 0.03  # Å, that a reference may be off an ideal structure by rounding or relaxation
FORBIDDEN = 1e3  # Å, for atoms of other elements
FARTHEST = 0.5  # from an atom's place in the reference, as a fraction of the way to its nearest neighbour


def mean_cell(dataset: Dataset) -> np.ndarray:
    """The cell (3, 3) in Å of a periodic dataset, or the mean of its frames' cells.

    Raises
    ------
    DataError
        If there is none.
    """
    if dataset.cell is None:
        raise DataError("the geometries are periodic (pbc) and have no cell; give one, or set pbc to False")
    return dataset.cell if dataset.cell.ndim == 2 else dataset.cell.mean(0)


def unstrained(dataset: Dataset, cell: np.ndarray) -> np.ndarray:
    """Positions (M, N, 3) with the same fractions of another cell, where frames have cells of their own."""
    if dataset.cell.ndim == 2:
        return dataset.positions
    fractions = dataset.positions @ np.linalg.inv([complete_cell(own) for own in dataset.cell])
    return fractions @ complete_cell(cell)


def reference_of(dataset: Dataset, reference: Atoms | str | Path | None) -> Atoms:
    """The ideal structure: the given one, with its atoms in the order of the frames, or their symmetrised mean.

    Raises
    ------
    SymmetryError
        If the given one has other atoms, another cell or pbc, or none is given and
        the frames have no symmetric mean.
    DataError
        If frames are not near to it, in any order; the message names them.

    Warns
    -----
    DataWarning
        If the cell is too small for the descriptors of pairs, or the reference had
        to be sorted.
    """
    cell = mean_cell(dataset)
    if isinstance(reference, (str, Path)):
        reference = read_structure(reference)
    if reference is not None and not isinstance(reference, Atoms):
        raise DataError(f"the reference must be ase.Atoms, or the path of a file, not {type(reference).__name__}")
    if reference is None and dataset.cell.ndim == 3:
        raise SymmetryError("the frames differ in their cells, so that these have no symmetry; give a reference")
    if reference is None:
        reference = symmetrised_reference(dataset.positions, cell, dataset.numbers, dataset.pbc)
    if not np.array_equal(np.sort(reference.numbers), np.sort(dataset.numbers)):
        raise SymmetryError(
            f"the reference is {reference.symbols}, the frames are {dataset.formula}; repeat it to their supercell"
        )
    if not np.array_equal(reference.pbc, dataset.pbc):
        raise SymmetryError(
            f"the reference has pbc={reference.pbc.tolist()}, the frames have {list(dataset.pbc)}; set that of the "
            "reference (some formats of files, as POSCAR, cannot say it: take .extxyz)"
        )
    _check_cells(dataset, reference)
    order = _order(dataset, reference, cell)
    if not np.array_equal(order, np.arange(len(order))):
        warnings.warn(
            "the atoms of the reference were sorted to those of the frames, whose order the force field wants",
            DataWarning,
            stacklevel=5,
        )
    reference = reference[order]
    _check_near(dataset, reference, cell)
    _check_size(reference)
    return reference


def _check_cells(dataset: Dataset, reference: Atoms) -> None:
    """Raise if the frames' cells, or some of them, are not that of the reference, up to strain where they differ."""
    own, periodic = reference.cell[:], np.array(dataset.pbc)
    several = dataset.cell.ndim == 3
    cells = dataset.cell if several else dataset.cell[None]
    farthest = MAX_STRAIN * np.abs(own).max() if several else 1e-3
    wrong = ~(np.abs(cells - own)[:, periodic].max((1, 2)) <= farthest)
    if wrong.any():
        which = f"{name_frames(dataset.frame_numbers[wrong])}: " if several else ""
        raise SymmetryError(
            f"{which}the cell of the reference is {own.tolist()}, here it is {cells[wrong][0].tolist()}; take the same "
            "lattice vectors in the same orientation"
        )


def ideal_group(reference: Atoms) -> CrystalGroup:
    """The group of an ideal structure; raise if it is nearly more symmetric, and so is not quite ideal.

    Raises
    ------
    SymmetryError

    Warns
    -----
    DataWarning
        If there is no symmetry at all.
    """
    group = crystal_group(reference)
    try:
        looser = crystal_group(reference, symprec=NEARLY)
    except SymmetryError:  # which cannot tell atoms apart, or finds no group
        looser = group
    if looser.order > group.order:
        raise SymmetryError(
            f"the reference has {group.order} operations, but within {NEARLY} Å {looser.order} ({looser.spacegroup}); "
            f"give symprec={NEARLY} to take these, a smaller one if the difference is real, or an ideal structure"
        )
    if group.order == 1:
        warnings.warn(
            "the reference has no symmetry; if it should, give the ideal structure, else symmetry='none'",
            DataWarning,
            stacklevel=5,
        )
    return group


def _check_size(reference: Atoms) -> None:
    """Warn if an atom can be a neighbour twice, of which the descriptor sees one."""
    shortest = Lattice.of_cell(reference.cell.array, reference.pbc).shortest
    bond = (reference.get_all_distances(mic=True) + np.diag(np.full(len(reference), np.inf))).min()
    if shortest < TWICE * bond:
        warnings.warn(
            f"the shortest lattice vector, {shortest:.2f} Å, is hardly twice the shortest distance, {bond:.2f} Å: "
            "atoms are neighbours twice, which the descriptor does not see; take a larger supercell",
            DataWarning,
            stacklevel=6,
        )


def _order(dataset: Dataset, reference: Atoms, cell: np.ndarray) -> np.ndarray:
    """Which atom (N,) of the reference is which of the frames, by the places in the first frame."""
    as_given = np.arange(len(reference))
    if np.array_equal(reference.numbers, dataset.numbers) and not _far(dataset[:1], reference, cell)[0].any():
        return as_given
    places = _places(reference, cell)
    frame = unstrained(dataset[:1], cell)[0]
    same = np.flatnonzero(reference.numbers == dataset.numbers[0])
    # First without a shift between the origins, then with the first atom on each place that it may have.
    shifts = [np.zeros(3), *(frame[0] - places[same[:MAX_SHIFTS]])]
    found = [_assigned(dataset, reference, places + shift, cell) for shift in shifts]
    far, order = min(found, key=lambda one: one[0])
    nearest = (reference.get_all_distances(mic=True) + np.diag(np.full(len(reference), np.inf))).min()
    if far > FARTHEST * nearest:
        raise DataError(
            "the atoms of the reference cannot be told to be those of the frames: in whatever order and wherever the "
            f"origin, an atom of frame {dataset.frame_numbers[0]} is {far:.2f} Å from its place"
        )
    return order


def _assigned(dataset: Dataset, reference: Atoms, places: np.ndarray, cell: np.ndarray) -> tuple[float, np.ndarray]:
    """The assignment of the first frame's atoms to places of their element, and the farthest from its own, Å."""
    steps = unstrained(dataset[:1], cell)[0][:, None] - places
    lengths = nearest_images(torch.tensor(steps), cell, dataset.pbc).norm(dim=2).numpy()
    lengths[dataset.numbers[:, None] != reference.numbers] = FORBIDDEN
    _, order = linear_sum_assignment(lengths**2)
    return float(lengths[np.arange(len(order)), order].max()), order


def _places(reference: Atoms, cell: np.ndarray) -> np.ndarray:
    """Positions (N, 3) of the reference, strained to another cell."""
    return reference.positions @ np.linalg.inv(complete_cell(reference.cell[:])) @ complete_cell(cell)


def _far(dataset: Dataset, reference: Atoms, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which atoms (M, N) are nearer to another place than to their own, and how far they are from it."""
    steps = unstrained(dataset, cell) - _places(reference, cell)
    # A common shift is no displacement; that of the first atom is near enough to it to unwrap the others by.
    steps = nearest_images(torch.tensor(steps - steps[:, :1]), cell, dataset.pbc).numpy()
    steps -= steps.mean(1, keepdims=True)
    lengths = np.linalg.norm(steps, axis=2)
    distances = reference.get_all_distances(mic=True) + np.diag(np.full(len(reference), np.inf))
    return lengths > FARTHEST * distances.min(1), lengths


def _check_near(dataset: Dataset, reference: Atoms, cell: np.ndarray) -> None:
    """Raise if an atom is nearer to another place than to its own: frames in another order, or melted."""
    far, lengths = _far(dataset, reference, cell)
    if far.any():
        frame, atom = np.unravel_index(np.argmax(lengths * far), far.shape)
        raise DataError(
            f"{name_frames(dataset.frame_numbers[far.any(1)])}: atoms are far from their places in the reference "
            f"({dataset.label(atom)} by {lengths[frame, atom]:.2f} Å in frame {dataset.frame_numbers[frame]}); "
            "is their order the same? Atoms that wander need symmetry='none', or a group given by hand"
        )
