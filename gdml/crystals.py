"""What training on a periodic system needs beforehand: the ideal structure that its frames fluctuate about."""

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from .dataset import Dataset
from .errors import DataError, SymmetryError, name_frames
from .symmetry import symmetrised_reference

FARTHEST = 0.5  # from an atom's place in the reference, as a fraction of the way to its nearest neighbour


def one_cell(dataset: Dataset) -> np.ndarray:
    """The cell (3, 3) in Å that all frames of a periodic dataset share.

    Raises
    ------
    DataError
        If there is none, or frames differ in it.
    """
    if dataset.cell is None:
        raise DataError("the geometries are periodic (pbc) and have no cell; give one, or set pbc to False")
    if dataset.cell.ndim == 3:
        other = np.abs(dataset.cell - dataset.cell[0]).max((1, 2)) > 1e-6
        if other.any():
            frames = name_frames(dataset.frame_numbers[other])
            raise DataError(
                f"{frames}: another cell than frame {dataset.frame_numbers[0]}; training needs one cell for all frames"
            )
        return dataset.cell[0]
    return dataset.cell


def reference_of(dataset: Dataset, reference: Atoms | None) -> Atoms:
    """The ideal structure: the given one, checked against the frames, or their symmetrised mean.

    Raises
    ------
    SymmetryError
        If the given one has other atoms, another order, cell or pbc, or none is
        given and the frames have no symmetric mean.
    DataError
        If frames are not near to it; the message names them.
    """
    cell = one_cell(dataset)
    if reference is None:
        reference = symmetrised_reference(dataset.positions, cell, dataset.numbers, dataset.pbc)
    if not np.array_equal(reference.numbers, dataset.numbers):
        raise SymmetryError(
            f"the reference is {reference.symbols}, the frames are {dataset.formula}, or its atoms are in another "
            "order; sort them as in the frames"
        )
    if not np.array_equal(reference.pbc, dataset.pbc):
        raise SymmetryError(f"the reference has pbc={reference.pbc.tolist()}, the frames have {list(dataset.pbc)}")
    periodic = np.array(dataset.pbc)
    if np.abs(reference.cell[:] - cell)[periodic].max() > 1e-3:
        raise SymmetryError(
            f"the cell of the reference is {reference.cell[:].tolist()}, the frames have {cell.tolist()}"
        )
    _check_near(dataset, reference, cell)
    return reference


def _check_near(dataset: Dataset, reference: Atoms, cell: np.ndarray) -> None:
    """Raise if an atom is nearer to another place than to its own: frames in another order, or melted."""
    steps = dataset.positions - reference.positions
    # A common shift is no displacement; that of the first atom is near enough to it to unwrap the others by.
    steps = find_mic((steps - steps[:, :1]).reshape(-1, 3), cell, dataset.pbc)[0].reshape(steps.shape)
    steps -= steps.mean(1, keepdims=True)
    lengths = np.linalg.norm(steps, axis=2)
    distances = reference.get_all_distances(mic=True) + np.diag(np.full(len(reference), np.inf))
    far = lengths > FARTHEST * distances.min(1)
    if far.any():
        frame, atom = np.unravel_index(np.argmax(lengths * far), far.shape)
        raise DataError(
            f"{name_frames(dataset.frame_numbers[far.any(1)])}: atoms are far from their places in the reference "
            f"({dataset.label(atom)} by {lengths[frame, atom]:.2f} Å in frame {dataset.frame_numbers[frame]}); "
            "is their order the same? Atoms that wander need symmetry='none', or a group given by hand"
        )
