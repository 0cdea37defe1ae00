"""Force fields that say how sure they are: variances, and their scale from errors on other geometries."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from .committee import Committee, halves, spread
from .contractions import contraction
from .dataset import Dataset
from .descriptors import Features
from .errors import DataError, FitError
from .force_field import ForceField
from .hyperparameters import Chosen
from .metrics import predict
from .operators import Labels
from .plan import Plan, solve_plan
from .pool import farthest
from .posterior import MOST_UNKNOWNS, NORMAL_90, Posterior, scale_of, usual_of
from .progress import progress_bar
from .solution import ForceMonitor, Method

FEWEST = 2  # geometries that variances can be taken from
FEWEST_ENERGIES = 5  # that tell a scale of energies
MEMBERS = 8  # of a committee
FEWEST_OF_COMMITTEE = 6  # geometries
KINDS = ("posterior", "committee")


def with_uncertainty(
    force_field: ForceField,
    dataset: Dataset,
    held_out: Dataset | None = None,
    *,
    kind: str = "posterior",
    most_unknowns: int = MOST_UNKNOWNS,
    n_members: int = MEMBERS,
    progress: bool = False,
) -> ForceField:
    """The force field with standard deviations of what it predicts, by `ForceField.uncertainty`.

    Parameters
    ----------
    force_field : ForceField
    dataset : Dataset
        That it was trained on.
    held_out : Dataset, optional
        Other geometries, on whose errors the scale is found; twenty are enough. By default
        the training geometries are predicted each from all others, in closed form, or by the members of the
        committee that were not trained on them.
    kind : {"posterior", "committee"}
        The posterior variance, see `gdml.posterior`, or what force fields disagree about that were
        each trained on half of the geometries, see `gdml.committee`: cheaper to evaluate where there
        are many labels, as of crystals; takes as many trainings as there are members.
    most_unknowns : int
        Of the posterior: labels (about three for each atom of each geometry) that variances are taken from.
        One geometry costs 6 N times the square of it operations. Where the training geometries have more,
        some of them are used, far apart from each other, and variances are upper bounds before scaling.
    n_members : int
        Of the committee; an even number, four or more.
    progress : bool
        Whether to show the members' training.

    Returns
    -------
    ForceField

    Raises
    ------
    DataError
        If this is not what it was trained on, or the held-out geometries have no forces.
    FitError
        For an unknown kind or number of members; if there are too few geometries for a committee, or one alone
        has more labels than ``most_unknowns``.
    """
    fingerprint = force_field.details.get("fingerprint")
    if fingerprint is not None and fingerprint != dataset.fingerprint:
        raise DataError("these are not the geometries and labels that the force field was trained on")
    if kind not in KINDS:
        raise FitError(f"the kind of uncertainty is one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "committee":
        found = _committee(force_field, dataset, n_members, progress)
    else:
        found = _posterior(force_field, dataset, most_unknowns)
    force_field = replace(force_field, error_model=found)
    return force_field if held_out is None else _scaled_by(force_field, held_out)


def _posterior(force_field: ForceField, dataset: Dataset, most_unknowns: int) -> Posterior:
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
    return scaled_by_left_out(posterior, labels)


def _committee(force_field: ForceField, dataset: Dataset, n_members: int, progress: bool) -> Committee:
    if n_members < 4 or n_members % 2:
        raise FitError(f"a committee has an even number of members, four or more, not {n_members}")
    if len(dataset) < FEWEST_OF_COMMITTEE:
        raise FitError(f"a committee needs {FEWEST_OF_COMMITTEE} geometries or more, these are {len(dataset)}")
    if force_field.baseline is not None:
        dataset = force_field.baseline.difference(dataset)
    own, members = halves(len(dataset), n_members), []
    with progress_bar("committee", progress) as bar:
        for k, rows in enumerate(own):
            members.append(_member(force_field, dataset[np.flatnonzero(rows)]))
            if bar:
                bar(k + 1, n_members)
    w = torch.zeros(n_members, *force_field.y.shape, dtype=torch.float64)
    c = None if force_field.c is None else torch.zeros(w.shape[:2], dtype=torch.float64)
    for k, member in enumerate(members):
        w[k, own[k]] = torch.tensor(member.w)
        if c is not None:
            c[k, own[k]] = torch.tensor(member.c)
    committee = Committee(force_field.kernel, force_field.reference_action, torch.tensor(force_field.y), w, c)
    return _scaled_by_others(committee, force_field, dataset, own)


def _member(force_field: ForceField, dataset: Dataset) -> ForceField:
    """A force field of the same hyper-parameters."""
    noise = force_field.details.get("noise", 1e-10)
    plan = Plan(
        group=force_field.group,
        descriptor=force_field.descriptor,
        action=force_field.reference_action,
        kernel=force_field.kernel,
        noises=(noise,),
        use_energy=force_field.c is not None,
        use_stress=bool(force_field.details.get("use_stress")),
        backend=force_field.backend,
        device=force_field.device,
    )
    chosen = Chosen(force_field.length_scale, None, noise)
    return solve_plan(plan, dataset, chosen, method=Method("auto"), monitor=ForceMonitor(), judged_by_forces=True)


def _scaled_by_others(committee: Committee, force_field: ForceField, dataset: Dataset, own: np.ndarray) -> Committee:
    """The committee with the scale of the errors of the members that were not trained on a geometry."""
    features = _features(force_field, dataset)
    predictions = [committee.predictions(features, k) for k in range(len(own))]
    errors, deviations = [], []
    for j, forces in enumerate(dataset.forces):
        others = [tuple(part[j] for part in predictions[k]) for k in np.flatnonzero(~own[:, j])]
        slopes = torch.stack([one[1] for one in others])
        errors.append(-slopes.mean(0).numpy() - forces.ravel())
        deviations.append(spread(others)[1].numpy())
    scale = scale_of(np.array(errors), np.array(deviations))
    return replace(
        committee,
        scale=scale,
        energy_scale=scale,
        calibration=f"other halves of {len(dataset)} geometries",
        usual=usual_of(scale * np.array(deviations)),
    )


def _features(force_field: ForceField, dataset: Dataset) -> Features:
    cells = dataset.periodic_cell
    return force_field.descriptor.evaluate(
        torch.tensor(dataset.positions), **({} if cells is None else {"cells": cells})
    )


def labels_of_field(force_field: ForceField, dataset: Dataset) -> Labels:
    """What geometries say that a force field's kernel has to explain, in its descriptor."""
    if force_field.baseline is not None:
        dataset = force_field.baseline.difference(dataset)
    return Labels(_features(force_field, dataset), dataset, use_energy=force_field.c is not None)


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
    deviations = variances.clamp(min=0.0).sqrt().numpy()
    scale = scale_of(errors.numpy(), deviations)
    calibration, usual = f"leave-one-out of {len(residuals)} geometries", usual_of(scale * deviations)
    return replace(posterior, scale=scale, energy_scale=scale, calibration=calibration, usual=usual)


def _scaled_by(force_field: ForceField, held_out: Dataset) -> ForceField:
    reference, prediction = held_out.require_forces(), predict(force_field, held_out)
    before = force_field.error_model
    found = force_field.uncertainty(held_out.positions, held_out.periodic_cell)
    change = scale_of(prediction.forces - reference, found.forces)
    scale = change * before.scale
    energy_scale = scale
    if held_out.energy is not None and len(held_out) >= FEWEST_ENERGIES:
        errors = prediction.energy - held_out.energy
        energy_scale = before.energy_scale * scale_of(errors - errors.mean(), found.energy)
    calibration = f"{len(held_out)} held-out geometries"
    scales = {"scale": scale, "energy_scale": energy_scale, "usual": change * before.usual}
    calibrated = replace(before, calibration=calibration, **scales)
    return replace(force_field, error_model=calibrated)


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
