"""Force fields that say how sure they are: variances, and their scale from errors on other geometries."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from .contractions import contraction
from .dataset import Dataset
from .errors import DataError, FitError
from .force_field import ForceField
from .metrics import predict
from .operators import Labels
from .pool import farthest
from .posterior import MOST_UNKNOWNS, NORMAL_90, Posterior, scale_of

FEWEST = 2  # geometries that variances can be taken from
FEWEST_ENERGIES = 5  # that tell a scale of energies


def with_uncertainty(
    force_field: ForceField,
    dataset: Dataset,
    held_out: Dataset | None = None,
    *,
    most_unknowns: int = MOST_UNKNOWNS,
) -> ForceField:
    """The force field with the posterior variance of what it predicts; see `gdml.posterior`.

    `ForceField.uncertainty` then gives standard deviations.

    Parameters
    ----------
    force_field : ForceField
    dataset : Dataset
        That it was trained on.
    held_out : Dataset, optional
        Other geometries, on whose errors the scale is found; twenty are enough. By default
        the training geometries are predicted each from all others, in closed form.
    most_unknowns : int
        Labels (about three for each atom of each geometry) that variances are taken from.
        One geometry costs 6 N times the square of it operations. Where the training geometries have more,
        some of them are used, far apart from each other, and variances are upper bounds before scaling.

    Returns
    -------
    ForceField

    Raises
    ------
    DataError
        If this is not what it was trained on, or the held-out geometries have no forces.
    FitError
        If a geometry alone has more labels.
    """
    fingerprint = force_field.details.get("fingerprint")
    if fingerprint is not None and fingerprint != dataset.fingerprint:
        raise DataError("these are not the geometries and labels that the force field was trained on")
    chosen = _chosen(force_field, dataset, most_unknowns)
    labels = labels_of_field(force_field, dataset[chosen])
    posterior = Posterior(
        force_field.kernel,
        force_field.reference_action,
        labels.features.x,
        labels.c,
        labels.duals(torch.arange(len(chosen))),
        force_field.details.get("noise", 1e-10),
        is_exact=len(chosen) == len(dataset),
    )
    force_field = replace(force_field, posterior=scaled_by_left_out(posterior, labels))
    return force_field if held_out is None else _scaled_by(force_field, held_out)


def labels_of_field(force_field: ForceField, dataset: Dataset) -> Labels:
    """What geometries say that a force field's kernel has to explain, in its descriptor."""
    if force_field.baseline is not None:
        dataset = force_field.baseline.difference(dataset)
    cells = dataset.periodic_cell
    features = force_field.descriptor.evaluate(
        torch.tensor(dataset.positions), **({} if cells is None else {"cells": cells})
    )
    return Labels(features, dataset, use_energy=force_field.c is not None)


def _chosen(force_field: ForceField, dataset: Dataset, most_unknowns: int) -> np.ndarray:
    n_labels = 3 * dataset.n_atoms - (3 if any(dataset.pbc) else 5) + (force_field.c is not None)
    most = most_unknowns // n_labels
    if most < FEWEST:
        raise FitError(f"a geometry has some {n_labels} labels; give at least {FEWEST * n_labels} as most_unknowns")
    if most >= len(dataset):
        return np.arange(len(dataset))
    y = torch.tensor(force_field.y)
    return np.sort(farthest(contraction(force_field.kernel, y, force_field.reference_action), most))


def scaled_by_left_out(posterior: Posterior, labels: Labels) -> Posterior:
    """The posterior with the scale that the labels themselves give, each geometry predicted from all others."""
    residuals, covariances = posterior.left_out(labels.values)
    first = int(labels.use_energy)
    errors = torch.einsum("kir,kr->ki", labels.basis, residuals[:, first:])
    inner = covariances[:, first:, first:]
    variances = torch.einsum("kir,krs,kis->ki", labels.basis, inner, labels.basis)
    scale = scale_of(errors.numpy(), variances.clamp(min=0.0).sqrt().numpy())
    typical = float(errors.square().mean(1).sqrt().median())
    calibration = f"leave-one-out of {len(residuals)} geometries"
    return replace(posterior, scale=scale, energy_scale=scale, calibration=calibration, typical=typical)


def _scaled_by(force_field: ForceField, held_out: Dataset) -> ForceField:
    reference, prediction = held_out.require_forces(), predict(force_field, held_out)
    before = force_field.posterior
    found = force_field.uncertainty(held_out.positions, held_out.periodic_cell)
    scale = before.scale * scale_of(prediction.forces - reference, found.forces)
    energy_scale = scale
    if held_out.energy is not None and len(held_out) >= FEWEST_ENERGIES:
        errors = prediction.energy - held_out.energy
        energy_scale = before.energy_scale * scale_of(errors - errors.mean(), found.energy)
    calibration = f"{len(held_out)} held-out geometries"
    posterior = replace(before, scale=scale, energy_scale=energy_scale, calibration=calibration)
    return replace(force_field, posterior=posterior)


def coverage(force_field: ForceField, dataset: Dataset, levels: ArrayLike = 0.9) -> np.ndarray:
    """Fractions of the components of forces that are within intervals that should hold given fractions.

    Parameters
    ----------
    force_field : ForceField
        With uncertainty.
    dataset : Dataset
        With forces.
    levels : float or array
        Between 0 and 1.

    Returns
    -------
    (levels,) array
    """
    errors = np.abs(predict(force_field, dataset).forces - dataset.require_forces())
    ratio = errors / np.maximum(force_field.uncertainty(dataset.positions, dataset.periodic_cell).forces, 1e-300)
    return np.array([float((ratio <= quantile_of(level)).mean()) for level in np.atleast_1d(levels)])


def quantile_of(level: float) -> float:
    """How many standard deviations to both sides hold a fraction of a normal distribution."""
    return NORMAL_90 if level == 0.9 else float(np.sqrt(2) * torch.erfinv(torch.tensor(float(level))))
