"""Force fields that say how sure they are: variances, and their scale from errors on other geometries."""

from collections.abc import Mapping
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
from .posterior import MOST_UNKNOWNS, NORMAL_90, Posterior, not_exact, scale_of, usual_of
from .progress import progress_bar
from .solution import ForceMonitor, Method
from .states.data import states_of
from .states.force_field import State, StatesForceField
from .states.posterior import StatesPosterior
from .states.together import Together, differences, fingerprint

FEWEST = 2  # geometries that variances can be taken from
FEWEST_ENERGIES = 5  # that tell a scale of energies
MEMBERS = 8  # of a committee
FEWEST_OF_COMMITTEE = 6  # geometries
KINDS = ("posterior", "committee")


def with_uncertainty(
    force_field: ForceField | StatesForceField,
    dataset: Dataset | Mapping[State, Dataset],
    held_out: Dataset | Mapping[State, Dataset] | None = None,
    *,
    kind: str = "posterior",
    most_unknowns: int = MOST_UNKNOWNS,
    n_members: int = MEMBERS,
    progress: bool = False,
) -> ForceField | StatesForceField:
    """The force field with standard deviations of what it predicts, by `ForceField.uncertainty`.

    Parameters
    ----------
    force_field : ForceField, or StatesForceField
        Of several states, each and each gap gets them, with one scale; by the posterior variance alone.
    dataset : Dataset, or dict of Dataset by state
        That it was trained on.
    held_out : Dataset, or dict of Dataset by state, optional
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
    ForceField, or StatesForceField

    Raises
    ------
    DataError
        If this is not what it was trained on, or the held-out geometries have no forces.
    ModelMismatchError
        For held-out geometries of a state that was not in the training data.
    FitError
        For an unknown kind or number of members; if there are too few geometries for a committee, or a few of
        them have more labels than ``most_unknowns``.
    """
    if kind not in KINDS:
        raise FitError(f"the kind of uncertainty is one of {', '.join(KINDS)}, not {kind!r}")
    if isinstance(force_field, StatesForceField):
        return _of_states(force_field, dataset, held_out, kind, most_unknowns)
    if not isinstance(dataset, Dataset) or not isinstance(held_out, Dataset | None):
        raise DataError("a force field of one state takes a Dataset; datasets by state are for gdml.fit_states")
    _check_known(force_field, dataset.fingerprint)
    if kind == "committee":
        found = _committee(force_field, dataset, n_members, progress)
    else:
        found = _posterior(force_field, dataset, most_unknowns)
    force_field = replace(force_field, error_model=found)
    if held_out is None:
        return force_field
    return replace(force_field, error_model=_scaled_by(found, [(force_field, held_out)]))


def _check_known(force_field: ForceField | StatesForceField, found: str) -> None:
    if (force_field.details.get("fingerprint") or found) != found:
        raise DataError("these are not the geometries and labels that the force field was trained on")


def _of_states(
    field: StatesForceField,
    data: Mapping[State, Dataset],
    held_out: Mapping[State, Dataset] | None,
    kind: str,
    most_unknowns: int,
) -> StatesForceField:
    if kind != "posterior":
        raise FitError(f"the uncertainty of several states is their posterior variance, not of the kind {kind!r}")
    data = states_of(data, None)
    if set(data) == set(field.states):
        data = {state: data[state] for state in field.states}
    _check_known(field, fingerprint(data))
    if held_out is not None and not isinstance(held_out, Mapping):
        raise DataError("held-out geometries of several states are given as {state: dataset, ...}")
    used = data if field.baseline is None else differences(data, field.baseline, None, False)
    together = Together.of(used, field.shared.c is not None)
    chosen = _chosen_of_states(field, together, most_unknowns)
    labels = labels_of_field(replace(field.shared, baseline=None), together.dataset[chosen])
    own = {"state_of": together.states[chosen], "couplings": torch.tensor(field.couplings)}
    posterior = _posterior_of(field.shared, labels, len(chosen) == len(together.states), StatesPosterior, **own)

    def with_errors(model: Posterior) -> StatesForceField:
        return replace(field, shared=replace(field.shared, error_model=model))

    sure = with_errors(posterior)
    if held_out is None:
        return sure
    return with_errors(_scaled_by(posterior, [(sure.at(state), dataset) for state, dataset in held_out.items()]))


def _chosen_of_states(field: StatesForceField, together: Together, most_unknowns: int) -> np.ndarray:
    """Geometries of all states, those of each far apart from each other."""
    most = _most(field.shared, together.dataset, most_unknowns, FEWEST * len(field.states))
    y = torch.tensor(field.shared.y)

    def choose(rows: np.ndarray, share: int) -> np.ndarray:
        if share == len(rows):
            return rows
        return rows[farthest(contraction(field.shared.kernel, y[rows], field.shared.reference_action), share)]

    return together.rows(most, choose)


def _posterior(force_field: ForceField, dataset: Dataset, most_unknowns: int) -> Posterior:
    chosen = _chosen(force_field, dataset, most_unknowns)
    return _posterior_of(force_field, labels_of_field(force_field, dataset[chosen]), len(chosen) == len(dataset))


def _posterior_of(
    force_field: ForceField, labels: Labels, is_exact: bool, kind: type[Posterior] = Posterior, **own
) -> Posterior:
    """Variances from labels, scaled."""
    posterior = kind(
        force_field.kernel,
        force_field.reference_action,
        labels.features.x,
        labels.c,
        labels.duals(torch.arange(len(labels.values))),
        force_field.details.get("noise", 1e-10),
        is_exact,
        **own,
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
    most = _most(force_field, dataset, most_unknowns, FEWEST)
    if most >= len(dataset):
        return np.arange(len(dataset))
    y = torch.tensor(force_field.y)
    return np.sort(farthest(contraction(force_field.kernel, y, force_field.reference_action), most))


def _most(force_field: ForceField, dataset: Dataset, most_unknowns: int, fewest: int) -> int:
    """How many geometries have so many labels."""
    n_labels = 3 * dataset.n_atoms - (3 if any(dataset.pbc) else 5) + (force_field.c is not None)
    if most_unknowns < fewest * n_labels:
        raise FitError(f"a geometry has some {n_labels} labels; give at least {fewest * n_labels} as most_unknowns")
    return most_unknowns // n_labels


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


def _scaled_by(before: Posterior | Committee, pairs: list[tuple[ForceField, Dataset]]) -> Posterior | Committee:
    """The same variances with the scales of errors of force fields on held-out geometries."""
    of_forces, of_energies = [], []
    for force_field, held_out in pairs:
        reference, prediction = held_out.require_forces(), predict(force_field, held_out)
        found = force_field.uncertainty(held_out.positions, held_out.periodic_cell)
        of_forces.append(((prediction.forces - reference).ravel(), found.forces.ravel()))
        if held_out.energy is not None and len(held_out) >= FEWEST_ENERGIES:
            errors = prediction.energy - held_out.energy
            of_energies.append((errors - errors.mean(), found.energy))
    change = scale_of(*map(np.concatenate, zip(*of_forces)))
    scale = change * before.scale
    energy_scale = scale
    if of_energies:
        energy_scale = before.energy_scale * scale_of(*map(np.concatenate, zip(*of_energies)))
    calibration = f"{sum(len(held_out) for _, held_out in pairs)} held-out geometries"
    scales = {"scale": scale, "energy_scale": energy_scale, "usual": change * before.usual}
    return replace(before, calibration=calibration, **scales)


def coverage(force_field: ForceField, dataset: Dataset, levels: ArrayLike = 0.9) -> np.ndarray:
    """Fractions of the components of forces that are within intervals that should hold given fractions.

    Components that symmetry says, as out of the plane of a planar molecule, do not count.

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
    deviations = force_field.uncertainty(dataset.positions, dataset.periodic_cell).forces
    ratio = (errors / np.maximum(deviations, 1e-300))[not_exact(deviations)]
    return np.array([float((ratio <= quantile_of(level)).mean()) for level in np.atleast_1d(levels)])


def quantile_of(level: float) -> float:
    """How many standard deviations to both sides hold a fraction of a normal distribution."""
    return NORMAL_90 if level == 0.9 else float(np.sqrt(2) * torch.erfinv(torch.tensor(float(level))))
