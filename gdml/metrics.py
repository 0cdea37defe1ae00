"""How well a force field predicts held-out geometries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from ase import units

from .dataset import Dataset
from .errors import DataError, ModelMismatchError
from .force_field import ForceField, Prediction


@dataclass(frozen=True)
class Metrics:
    """Errors over a dataset; mean absolute (MAE) and root mean square (RMSE).

    Attributes
    ----------
    n_frames : int
    forces_mae, forces_rmse : float or None, eV/Å
        Over components.
    energy_mae, energy_rmse : float or None, eV
        Of the whole molecule.
    energies_are_relative : bool
        Whether the mean difference of the energies was removed first.
    stress_mae : float or None, eV/Å³
    """

    n_frames: int
    forces_mae: float | None
    forces_rmse: float | None
    energy_mae: float | None
    energy_rmse: float | None
    energies_are_relative: bool = False
    stress_mae: float | None = None

    def to_dict(self) -> dict[str, float | int | bool | None]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.n_frames} geometries"]
        if self.forces_mae is not None:
            parts.append(f"forces MAE {1e3 * self.forces_mae:.2f} RMSE {1e3 * self.forces_rmse:.2f} meV/Å")
        if self.energy_mae is not None:
            relative = ", relative" if self.energies_are_relative else ""
            parts.append(f"energy MAE {1e3 * self.energy_mae:.2f} RMSE {1e3 * self.energy_rmse:.2f} meV{relative}")
        if self.stress_mae is not None:
            parts.append(f"stress MAE {self.stress_mae / units.GPa:.3g} GPa")
        return "; ".join(parts)


def evaluate(force_field: ForceField, dataset: Dataset | Mapping) -> Metrics | dict:
    """Errors of a force field over a dataset, or of one of several states over a dataset of each.

    Parameters
    ----------
    force_field : ForceField, or StatesForceField
    dataset : Dataset, or dict of Dataset by state
        As `gdml.read_states` gives; not all states need to be in it.

    Returns
    -------
    Metrics, or dict of Metrics by state

    Raises
    ------
    ModelMismatchError
        If the dataset has other atoms, or repeats in other directions; for a state that was not in the
        training data, a force field of several states without datasets of them, or one that knows none with.
    DataError
        If it has no labels.
    """
    if isinstance(dataset, Mapping):
        if isinstance(force_field, ForceField):
            raise ModelMismatchError("this force field knows no states, and datasets of several were given; give one")
        return {state: evaluate(force_field.at(state), one) for state, one in dataset.items()}
    return compare(predict(force_field, dataset), dataset, force_field.energies_are_relative)


def predict(
    force_field: ForceField, dataset: Dataset, *, cache: str | Path | None = None, progress: bool = False
) -> Prediction:
    """The prediction for all geometries of a dataset, with stress if that has some.

    Parameters
    ----------
    force_field : ForceField
    dataset : Dataset
    cache : path, optional
        A file of labels of the baseline, as of `gdml.fit`.
    progress : bool
        Whether to show how far the baseline is.

    Raises
    ------
    ModelMismatchError
        If the dataset has other atoms, or repeats in other directions.
    """
    force_field.check_atoms(dataset.numbers)
    if (force_field.pbc or (False,) * 3) != dataset.pbc:
        raise ModelMismatchError(f"the force field is for pbc={force_field.pbc}, the geometries have {dataset.pbc}")
    baseline = force_field.baseline
    stress = dataset.has_stress and (baseline is None or baseline.has_stress)
    alone = replace(force_field, baseline=None).predict(dataset.positions, dataset.periodic_cell, stress=stress)
    if baseline is None:
        return alone
    more = baseline.labels(dataset, stress=stress, cache=cache, progress=progress)
    return Prediction(*(part if part is None else part + extra for part, extra in zip(alone, more)))


def compare(prediction: Prediction, dataset: Dataset, relative: bool = False) -> Metrics:
    """Errors of a prediction for the geometries of a dataset."""
    if dataset.forces is None and dataset.energy is None:
        raise DataError(f"{dataset.name or 'the dataset'} has no labels to compare with")
    forces_mae = forces_rmse = energy_mae = energy_rmse = None
    if dataset.forces is not None:
        forces_mae, forces_rmse = _errors(prediction.forces - dataset.forces)
    if dataset.energy is not None:
        difference = prediction.energy - dataset.energy
        energy_mae, energy_rmse = _errors(difference - difference.mean() if relative else difference)
    stress_mae = None if prediction.stress is None else _errors(prediction.stress - dataset.stress)[0]
    return Metrics(len(dataset), forces_mae, forces_rmse, energy_mae, energy_rmse, relative, stress_mae)


def _errors(difference: np.ndarray) -> tuple[float, float]:
    return float(np.abs(difference).mean()), float(np.sqrt((difference**2).mean()))
