r"""Several states in one model: how each of them, and each gap, is an ordinary force field.

With α the coefficients of all training labels, and j the geometries, of states s(j),

.. math::

   E_s(R) = E_{0,s} + \sum_j C_{s\,s(j)} \sum_{p \in S} \left[ c_j \, k(|x - p y_j|)
            + w_j \cdot \partial_y k(|x - p y_j|) \right] ,

so a state is a force field whose coefficients are multiplied by a row of the couplings C, and the
gap of two states is one by the difference of two rows.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..baselines import Baseline
from ..errors import DataError, FormatError, ModelMismatchError
from ..force_field import ForceField, Prediction
from ..npz import Archive, write_archive
from .couplings import check_couplings, correlation, name_states

State = bool | int | float | str | tuple
FORMAT = "gdml-states"


@dataclass(frozen=True, eq=False)
class StatesForceField:
    """A force field for several states of the same atoms; made by `gdml.fit_states`.

    Parameters
    ----------
    shared : ForceField
        The training geometries of all states, with their coefficients before couplings.
    states : tuple
        Labels of the states.
    state_of : (n,) int array
        Of each training geometry, the place of its state in `states`.
    couplings : (S, S) array
        How much states have in common: the covariance of their energies, over the kernel.
    offsets : (S,) array, eV
        Constants of the energies; NaN where a state had no energy labels.
    """

    shared: ForceField
    states: tuple[State, ...]
    state_of: np.ndarray
    couplings: np.ndarray
    offsets: np.ndarray

    def at(self, state: State) -> ForceField:
        """The force field of one state, for all that takes a force field.

        Raises
        ------
        ModelMismatchError
            If the state was not in the training data.
        """
        return self._fields[self._place(state)]

    def gap(self, lower: State, upper: State) -> ForceField:
        """The gap between two states as a force field.

        Its energy is E_upper - E_lower, and its forces are minus the gradient of that. It costs as much as one
        state. A baseline, which is the same in all states, is not in it.

        Raises
        ------
        ModelMismatchError
            If a state was not in the training data.
        """
        low, up = self._place(lower), self._place(upper)
        alone = replace(self, shared=replace(self.shared, baseline=None))
        details = {"gap": [str(self.states[low]), str(self.states[up])]}
        weights = np.eye(len(self.states))[up] - np.eye(len(self.states))[low]
        return alone._combined(weights, self.offsets[up] - self.offsets[low], details)

    def predict(
        self, positions: ArrayLike, cell: ArrayLike | None = None, stress: bool = False
    ) -> dict[State, Prediction]:
        """Energies and forces of one geometry or of a batch, in all states; as `ForceField.predict`.

        Raises
        ------
        DataError, BaselineError, MissingExtraError
            As there.
        """
        return {state: field.predict(positions, cell, stress) for state, field in zip(self.states, self._fields)}

    @cached_property
    def _fields(self) -> list[ForceField]:
        labels = [{"state": str(state)} for state in self.states]
        return [self._combined(*parts) for parts in zip(np.eye(len(self.states)), self.offsets, labels)]

    def _combined(self, weights: np.ndarray, offset: float, details: dict[str, Any]) -> ForceField:
        """The sum of the states' energies times weights (S,); geometries that have no part in it are left out."""
        shared, factors = self.shared, (self.couplings @ weights)[self.state_of]
        used = factors != 0 if factors.any() else np.arange(len(factors)) == 0
        factors = factors[used]
        details = shared.details | {"energies": "absolute" if np.isfinite(offset) else "relative"} | details
        return replace(
            shared,
            y=shared.y[used],
            c=None if shared.c is None else shared.c[used] * factors,
            w=shared.w[used] * factors[:, None],
            offset=float(offset) if np.isfinite(offset) else 0.0,
            details=details,
            error_model=shared.error_model and shared.error_model.of(torch.tensor(weights)),
        )

    def _place(self, state: State | None) -> int:
        if state is None:
            raise ModelMismatchError(
                f"this force field knows the states {name_states(self.states)}; say which, by .at(state), state= or "
                "--state"
            )
        state = plain(state)
        if state not in self.states:
            raise ModelMismatchError(
                f"the state {state!r} was not in the training data; the states are {name_states(self.states)}"
            )
        return self.states.index(state)

    def named(self, text: str) -> State:
        """The state that reads as a text, as on a command line.

        Raises
        ------
        ModelMismatchError
            If there is none.
        """
        found = [state for state in self.states if str(state) == text]
        return found[0] if found else self.states[self._place(text)]

    def __getattr__(self, name: str) -> Any:
        """Raise `ModelMismatchError` for what one state has and all do not, as functions of a force field ask for."""
        if hasattr(ForceField, name) or name in ForceField.__dataclass_fields__:
            raise ModelMismatchError(
                f"this force field knows the states {name_states(self.states)}; {name!r} is for one of them: take "
                ".at(state), or .gap(lower, upper)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to(self, *args, **kwargs) -> "StatesForceField":
        """The same, evaluated elsewhere or in another precision; as `ForceField.to`."""
        return replace(self, shared=self.shared.to(*args, **kwargs))

    @property
    def baseline(self) -> Baseline | None:
        return self.shared.baseline

    @property
    def numbers(self) -> np.ndarray:
        """Atomic numbers (N,)."""
        return self.shared.numbers

    @property
    def formula(self) -> str:
        return self.shared.formula

    @property
    def details(self) -> dict[str, Any]:
        """Where it comes from; see `ForceField`."""
        return self.shared.details

    @property
    def correlation(self) -> np.ndarray:
        """Correlations (S, S) of the states: one where a state says all of another, zero where it says nothing."""
        return correlation(self.couplings)

    def check_atoms(self, numbers: ArrayLike) -> None:
        """Raise `ModelMismatchError` unless these are the atoms it was trained for."""
        self.shared.check_atoms(numbers)

    def save(self, path: str | Path) -> None:
        """Write to a ``.npz`` file without pickled objects; `gdml.load` reads it.

        Raises
        ------
        OutputError
            If the place cannot be written to.
        """
        states = [list(state) if isinstance(state, tuple) else state for state in self.states]
        own = {
            "format": FORMAT,
            "states": json.dumps(states),
            "state_of": self.state_of,
            "couplings": self.couplings,
            "offsets": self.offsets,
        }
        write_archive(path, self.shared._fields() | {name: np.asarray(value) for name, value in own.items()})

    @classmethod
    def from_archive(cls, shared: ForceField, archive: Archive) -> "StatesForceField":
        """What is in a file, with the force field that was read from it already.

        Raises
        ------
        FormatError
            If the parts do not fit together.
        """
        states = tuple(plain(state) for state in json.loads(archive.text("states")))
        state_of, offsets = archive["state_of"], archive["offsets"]
        couplings = check_couplings(archive["couplings"], states)
        fits = state_of.shape == (len(shared.y),) and offsets.shape == (len(states),)
        if not fits or not np.isin(state_of, np.arange(len(states))).all():
            raise FormatError(f"{archive.path}: the states of training geometries, or energies, do not fit {states}")
        return cls(shared, states, state_of, couplings, offsets)

    def __repr__(self) -> str:
        counts = np.bincount(self.state_of, minlength=len(self.states))
        parts = ", ".join(f"{state!r} ({n} geometries)" for state, n in zip(self.states, counts))
        return f"StatesForceField({self.formula}, states {parts})"


def plain(state: object) -> State:
    """A label of a state as what Python and JSON know, also from NumPy.

    Raises
    ------
    DataError
        For what can be no label.
    """
    if isinstance(state, (np.generic, np.ndarray)) and np.size(state) == 1:
        state = state.item()
    if isinstance(state, (str, bool, int)) or (isinstance(state, float) and np.isfinite(state)):
        return state
    if isinstance(state, Iterable):
        return tuple(plain(part) for part in state)
    raise DataError(f"a state is labelled by a number, a text, or several of these; {state!r} is none of them")
