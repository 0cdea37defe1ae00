"""Reference geometries of several states: from one file that labels them, or one dataset for each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms

from .. import io
from ..checks import check_labels
from ..dataset import Dataset, read
from ..errors import DataError, name_frames
from .force_field import State, plain


def read_states(
    source: str | Path | Sequence[Atoms], state: str | Sequence[str], *, index: str | slice = ":", **options
) -> dict[State, Dataset]:
    """Read reference geometries of several states.

    Parameters
    ----------
    source : path or sequence of Atoms
    state : str or sequence of str
        Under which keys of ``atoms.info`` the states are, such as "spin_multiplicity", or
        ("total_charge", "spin_multiplicity"): the states are then pairs of both.
    index : str or slice
        Which frames of a file.
    **options
        Keys and units, as of `gdml.read`.

    Returns
    -------
    dict of Dataset, by state
        In the order in which they come first.

    Raises
    ------
    FileNotFoundError, FormatError
        As `gdml.read`.
    DataError
        As there, and if some frames have no state.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix == ".npz":
        raise DataError(f"{source}: such a file has no states; give datasets as {{state: gdml.read(...), ...}}")
    frames, name = io.read_frames(source, index)
    labels = _labels(frames, state)
    dataset = replace(read(frames, **options), name=name)
    return {one: dataset[[label == one for label in labels]] for one in dict.fromkeys(labels)}


def _labels(frames: list[Atoms], state: str | Sequence[str]) -> list[State]:
    """The states of all frames."""
    for key in (state,) if isinstance(state, str) else state:
        missing = [i for i, atoms in enumerate(frames) if atoms.info.get(key) is None]
        if len(missing) == len(frames):
            known = sorted({k for atoms in frames for k in atoms.info})
            raise DataError(f"no frame has the state {key!r}; the frames have {', '.join(known) or 'no info'}")
        if missing:
            raise DataError(f"the state {key!r} is missing in {name_frames(missing)}; label these, or leave them out")
    if isinstance(state, str):
        return [plain(atoms.info[state]) for atoms in frames]
    return [tuple(plain(atoms.info[key]) for key in state) for atoms in frames]


def states_of(
    data: Mapping[State, Dataset] | str | Path | Sequence[Atoms], state: str | Sequence[str] | None
) -> dict[State, Dataset]:
    """Datasets by state, from what `gdml.fit_states` takes."""
    if isinstance(data, Mapping):
        if state is not None:
            raise DataError("the datasets are given by state already; leave the key of the state out")
        found = {plain(s): d if isinstance(d, Dataset) else read(d) for s, d in data.items()}
    elif isinstance(data, Dataset) or state is None:
        raise DataError(
            "which geometry is of which state? Give datasets as {state: dataset, ...}, or a file and the key of "
            "atoms.info that has the state, as in state='spin_multiplicity'"
        )
    else:
        found = read_states(data, state)
    check_states(found)
    return found


def check_states(datasets: dict[State, Dataset]) -> None:
    """Raise unless these are states of the same atoms, with enough geometries and labels of each.

    Raises
    ------
    DataError
    """
    if len(datasets) < 2:
        only = "".join(f" ({state!r})" for state in datasets)
        raise DataError(f"{len(datasets)} state{only} was found; of one state, gdml.fit makes a force field")
    (first, reference), *others = datasets.items()
    for state, dataset in datasets.items():
        try:
            check_labels(dataset, use_energy=False)
        except DataError as error:
            raise DataError(f"state {state!r}: {error}") from error
    for state, dataset in others:
        if not np.array_equal(dataset.numbers, reference.numbers):
            raise DataError(
                f"state {state!r} is of {dataset.formula} and {first!r} of {reference.formula}, or its atoms are in "
                "another order; states are of the same atoms in one order"
            )
        if dataset.pbc != reference.pbc:
            raise DataError(f"state {state!r} has pbc={list(dataset.pbc)} and {first!r} {list(reference.pbc)}")
