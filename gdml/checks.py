"""Is this a set of geometries that can be trained on?"""

import numpy as np

from .dataset import Dataset
from .errors import DataError, SymmetryError, name_frames
from .symmetry import Action, Environments, PermutationGroup


def check_labels(dataset: Dataset, use_energy: bool) -> None:
    """Raise unless there are enough geometries, with the labels that are needed."""
    dataset.require_forces()
    if len(dataset) < 2:
        raise DataError(f"{len(dataset)} geometry is not enough to train on; at least two are needed")
    if use_energy and dataset.energy is None:
        raise DataError("use_energy needs energies, and the dataset has none")
    if not np.abs(dataset.forces).max() > 0:
        raise DataError("all forces are zero; there is nothing to learn")


def check_validation(dataset: Dataset, validation: Dataset) -> None:
    """Raise unless the validation set is of the same molecule, has forces, and is not trained on."""
    validation.require_forces()
    if not np.array_equal(dataset.numbers, validation.numbers):
        raise DataError(f"the validation geometries are {validation.formula}, or in another order than in training")
    known = {p.tobytes() for p in dataset.positions}
    shared = [i for i, p in enumerate(validation.positions) if p.tobytes() in known]
    if shared:
        raise DataError(f"{name_frames(validation.frame_numbers[shared])} of the validation set: trained on, too")


def check_group(dataset: Dataset, group: PermutationGroup) -> None:
    """Raise unless the group permutes equal atoms of the geometries."""
    if group.n_atoms != dataset.n_atoms:
        raise SymmetryError(f"the group permutes {group.n_atoms} atoms, the geometries have {dataset.n_atoms}")
    exchanged = dataset.numbers[group.permutations] != dataset.numbers
    if exchanged.any():
        row, atom = np.argwhere(exchanged)[0]
        other = group.permutations[row, atom]
        raise SymmetryError(
            f"permutation {row} puts {dataset.label(other)} in the place of {dataset.label(atom)}; "
            "only equal atoms may be exchanged"
        )


def check_duplicates(dataset: Dataset, x: np.ndarray, action: Action | Environments) -> None:
    """Raise if two geometries are the same up to the group, by their descriptors x (M, D)."""
    if isinstance(action, Environments):
        identity = np.arange(action.size)[None]
        x, action = action.sorted(x), Action(identity, identity)
    pairs = _duplicates(x, action)
    if pairs:
        listed = ", ".join(" and ".join(str(dataset.frame_numbers[i]) for i in pair) for pair in pairs[:5])
        raise DataError(
            f"{len(pairs)} geometries occur twice (frames {listed}{', ...' if len(pairs) > 5 else ''}), up to "
            "symmetry, which makes the training matrix singular; remove them"
        )


def _duplicates(x: np.ndarray, action: Action, tolerance: float = 1e-6) -> list[tuple[int, int]]:
    """Pairs of rows that are equal up to the group.

    They have equal values of an invariant function, and are neighbours when
    sorted by it.
    """
    direction = np.random.default_rng(0).normal(size=x.shape[1])
    # Rather than x, its coefficients are permuted by the cosets: a product for each translation.
    directions = direction[np.argsort(action.cosets, axis=1)].T
    images = np.concatenate([x[:, row] @ directions for row in action.translations], 1)
    invariant = (images**2).sum(1)
    slope = 2 * np.abs(images).max() * np.abs(direction).sum() * action.order
    order = np.argsort(invariant)
    near = np.flatnonzero(np.diff(invariant[order]) < tolerance * slope)
    pairs = [sorted((int(order[k]), int(order[k + 1]))) for k in near]
    return [
        (i, j) for i, j in pairs if min(np.abs(x[j][rows] - x[i]).max(1).min() for rows in action.parts()) < tolerance
    ]
