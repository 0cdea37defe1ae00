"""What training on a periodic system needs beforehand: the ideal structure that its frames fluctuate about."""

import warnings

import numpy as np
import torch
from ase import Atoms
from ase.geometry import complete_cell

from .dataset import Dataset
from .errors import DataError, DataWarning, SymmetryError, name_frames
from .geometry import Lattice, nearest_images
from .symmetry import symmetrised_reference

MAX_STRAIN = 0.1  # of the reference against the mean of the frames
TWICE = 2.1  # shortest distances, that a lattice vector should have at least
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


def reference_of(dataset: Dataset, reference: Atoms | None) -> Atoms:
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
        If the cell is too small for the descriptors of pairs.
    """
    cell = mean_cell(dataset)
    if reference is None and dataset.cell.ndim == 3:
        raise SymmetryError("the frames differ in their cells, so that these have no symmetry; give a reference")
    if reference is None:
        reference = symmetrised_reference(dataset.positions, cell, dataset.numbers, dataset.pbc)
    if not np.array_equal(np.sort(reference.numbers), np.sort(dataset.numbers)):
        raise SymmetryError(f"the reference is {reference.symbols}, the frames are {dataset.formula}")
    if not np.array_equal(reference.pbc, dataset.pbc):
        raise SymmetryError(f"the reference has pbc={reference.pbc.tolist()}, the frames have {list(dataset.pbc)}")
    periodic = np.array(dataset.pbc)
    farthest = 1e-3 if dataset.cell.ndim == 2 else MAX_STRAIN * np.abs(cell).max()
    if np.abs(reference.cell[:] - cell)[periodic].max() > farthest:
        raise SymmetryError(
            f"the cell of the reference is {reference.cell[:].tolist()}, the frames have {cell.tolist()}"
        )
    if not np.array_equal(reference.numbers, dataset.numbers) or _far(dataset, reference, cell)[0].any():
        reference = _in_their_order(dataset, reference, cell)
    _check_near(dataset, reference, cell)
    _check_size(reference)
    return reference


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


def _in_their_order(dataset: Dataset, reference: Atoms, cell: np.ndarray) -> Atoms:
    """The reference with its atoms sorted to those of the first frame, each of which takes the nearest place."""
    steps = unstrained(dataset[:1], cell)[0][:, None] - reference.positions
    lengths = nearest_images(torch.tensor(steps), cell, dataset.pbc).norm(dim=2).numpy()
    lengths[dataset.numbers[:, None] != reference.numbers] = np.inf
    places = lengths.argmin(1)
    taken, counts = np.unique(places, return_counts=True)
    if len(taken) < len(places):
        place = taken[counts.argmax()]
        atoms = " and ".join(dataset.label(atom) for atom in np.flatnonzero(places == place)[:2])
        raise DataError(
            f"the atoms of the reference are in another order than those of the frames, and cannot be sorted: {atoms} "
            f"of frame {dataset.frame_numbers[0]} are both nearest to atom {place} of the reference"
        )
    return reference[places]


def _far(dataset: Dataset, reference: Atoms, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which atoms (M, N) are nearer to another place than to their own, and how far they are from it."""
    steps = unstrained(dataset, cell) - reference.positions
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
