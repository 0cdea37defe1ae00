"""What training decides before the matrix, and the solution for hyper-parameters that are chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from .checkpoints import Journal
from .checks import check_group
from .contractions import contraction
from .cost import Problem
from .crystals import ideal_group, mean_cell, reference_of
from .dataset import Dataset
from .descriptors import Descriptor, Features, InverseDistances, SideBySide, SmoothInverseDistances, by_name
from .energies import constant_of_energy
from .errors import DataError, FitError, SymmetryError
from .force_field import MAX_FRAMES, ForceField
from .hyperparameters import Chosen
from .kernels import RadialKernel, kernel_by_name
from .metrics import evaluate
from .operators import Labels, TrainingOperator
from .posterior import Posterior
from .processes import Shares, Team
from .progress import progress_bar
from .region import own_ranges
from .selection import MIN_FRAMES, choose
from .solution import CLOSED_FORM, ForceMonitor, Method, solve
from .symmetry import Action, Environments, PermutationGroup, crystal_group, molecular_group

# Trainings that only judge hyper-parameters use at most this many unknowns.
MAX_SEARCH_UNKNOWNS = 6000
# Those that leave out geometry by geometry, which inverts the matrix of all of them, this many,
MAX_LEFT_OUT = 1500
# and operations, of which a core does some 10^11 in a second; but no fewer geometries than this.
MAX_SEARCH_OPERATIONS, MIN_SEARCHED = 1.5e11, 4
# Trainings that settle what was found with few geometries may take this many, half a minute in all.
MAX_JUDGED, MAX_JUDGING = 12_000, 6e11
MANY = 1.5  # times as many geometries make a difference
STEEPEST = -0.75  # power of the number of geometries that the best length scale falls with, at most
# Of periodic systems' inverse distances, side by side: the best of those tried on four crystals.
PERIODIC_POWERS = (1.0, 3.0)


@dataclass(frozen=True)
class Plan:
    """All that is decided before the length scale."""

    group: PermutationGroup
    descriptor: Descriptor
    action: Action | Environments
    kernel: RadialKernel
    noises: tuple[float, ...]
    use_energy: bool
    use_stress: bool
    backend: str
    device: torch.device
    along: Callable[[torch.Tensor], torch.Tensor] | None = None  # displacements of the labels; see `Labels`

    def with_descriptor(self, descriptor: Descriptor) -> "Plan":
        """The same for another descriptor."""
        return replace(self, descriptor=descriptor, action=descriptor.summed_over(self.group))


def make_plan(dataset, group, descriptor, kernel, noise, use_energy, use_stress, backend, device) -> Plan:
    if noise != "auto" and not 0 <= number_of("noise", noise) < np.inf:
        raise FitError(f"the noise must not be negative or infinite, but it is {noise}")
    cell = mean_cell(dataset) if any(dataset.pbc) else None
    descriptor = _descriptor(dataset, descriptor).bound(dataset.numbers, dataset.positions, dataset.pbc, cell)
    return Plan(
        group=group,
        descriptor=descriptor,
        action=descriptor.summed_over(group),
        kernel=kernel if isinstance(kernel, RadialKernel) else kernel_by_name(kernel)(),
        noises=descriptor.noises if noise == "auto" else (float(noise),),
        use_energy=use_energy,
        use_stress=use_stress,
        backend=backend,
        device=device,
    )


def number_of(name: str, value: float | str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise FitError(f"{name} must be a number or 'auto', not {value!r}") from error


def _descriptor(dataset: Dataset, given: Descriptor | str | None) -> Descriptor:
    if isinstance(given, Descriptor):
        return given
    if given is not None and given != "auto":
        return by_name(given, dataset.n_atoms)
    if not any(dataset.pbc):
        return InverseDistances(dataset.n_atoms)
    cell = mean_cell(dataset)
    parts = [SmoothInverseDistances(dataset.n_atoms, cell, dataset.pbc, power) for power in PERIODIC_POWERS]
    return SideBySide.balanced(parts, torch.tensor(dataset.positions), cells=dataset.cell)


def symmetry_of(
    dataset: Dataset,
    symmetry: str | PermutationGroup | ArrayLike,
    reference: Atoms | str | Path | None,
    symprec: float | str,
) -> PermutationGroup:
    if reference is not None and not any(dataset.pbc):
        raise DataError("a reference is for periodic geometries, and these have pbc False; leave it out, or set pbc")
    if isinstance(symmetry, str):
        if symmetry == "auto" and any(dataset.pbc):
            ideal = reference_of(dataset, reference)
            return (
                ideal_group(ideal) if symprec == "auto" else crystal_group(ideal, symprec=number_of("symprec", symprec))
            )
        if symmetry == "auto":
            return molecular_group(dataset)
        if symmetry == "none":
            return PermutationGroup.trivial(dataset.n_atoms)
        raise SymmetryError(f"symmetry is 'auto', 'none' or a group, not {symmetry!r}")
    group = symmetry if isinstance(symmetry, PermutationGroup) else PermutationGroup(symmetry)
    check_group(dataset, group)
    return group


def features_of(plan: Plan, dataset: Dataset, strain: bool = False) -> Features:
    positions, cells = torch.tensor(dataset.positions, device=plan.device), dataset.periodic_cell
    return plan.descriptor.evaluate(positions, **({} if cells is None else {"cells": cells, "strain": strain}))


def descriptors_of(plan: Plan, dataset: Dataset) -> torch.Tensor:
    """Descriptors (n, D) of all geometries, a few at a time, since Jacobians take several times as much memory."""
    frames = np.arange(len(dataset))
    return torch.cat([features_of(plan, dataset[frames[k : k + MAX_FRAMES]]).x for k in frames[::MAX_FRAMES]])


def searched(plan: Plan, training: Dataset) -> Dataset:
    """So many of the geometries that a training with them takes a second or a few."""
    most = most_searched(plan)
    return training[training.sample(most)] if len(training) > most else training


def choose_by_grid(plan: Plan, training: Dataset, validation: Dataset, progress: bool) -> Chosen:
    """The hyper-parameters that are best for some of the geometries."""
    training = searched(plan, training)
    labels = labels_of(plan, training, Shares(Team(), len(training)))

    def judge(length_scale: float, noise: float) -> float:
        chosen = Chosen(length_scale, None, noise)
        force_field = solve_plan(plan, training, chosen, labels=labels, judged_by_forces=True)
        return evaluate(force_field, validation).forces_rmse

    return _chosen(plan, judge, labels, progress)


def choose_by_leaving_out(plan: Plan, dataset: Dataset, progress: bool) -> Chosen:
    """The hyper-parameters with which geometries are predicted best, each from all others, in closed form."""
    labels = labels_of(plan, dataset, Shares(Team(), len(dataset)))
    duals = labels.duals(torch.arange(len(dataset), device=plan.device))
    slopes = slice(int(labels.use_energy), int(labels.use_energy) + labels.basis.shape[2])

    def judge(length_scale: float, noise: float) -> float:
        kernel = plan.kernel.with_length_scale(length_scale)
        posterior = Posterior(kernel, plan.action, labels.features.x, labels.c, duals, noise, is_exact=True)
        residuals, _ = posterior.left_out(labels.values)
        return math.sqrt(float(residuals[:, slopes].square().sum()) / dataset.forces.size)

    return _chosen(plan, judge, labels, progress)


def can_leave_out(plan: Plan, dataset: Dataset) -> bool:
    """Whether the matrix of all geometries, of a molecule, is small enough to be inverted for each length scale."""
    is_small = 3 * dataset.n_atoms * len(dataset) <= MAX_LEFT_OUT
    return is_small and len(dataset) >= MIN_FRAMES and not any(dataset.pbc)


def _chosen(plan: Plan, judge: Callable[[float, float], float], labels: Labels, progress: bool) -> Chosen:
    with progress_bar("length scale", progress) as bar:
        return choose(judge, spread_of(plan, labels.features.x), plan.noises, progress=bar)


def judges(plan: Plan, training: Dataset) -> Dataset:
    """So many of the geometries that a few trainings with them take half a minute."""
    most = max(most_searched(plan), most_searched(plan, MAX_JUDGING, MAX_JUDGED))
    return training[training.sample(most)] if len(training) > most else training


def error_of(plan: Plan, training: Dataset, validation: Dataset, chosen: Chosen) -> float:
    """The error (RMSE) of forces of held-out geometries, eV/Å; infinite where the matrix is singular."""
    try:
        return evaluate(solve_plan(plan, training, chosen, judged_by_forces=True), validation).forces_rmse
    except FitError:
        return math.inf


def for_more(
    plan: Plan, training: Dataset, validation: Dataset, chosen: Chosen, n_before: int, n_all: int
) -> tuple[Chosen, int]:
    """The length scale for more geometries than it was chosen with, and with how many its error was found.

    The more geometries, the shorter the best length scale. It is sought with as many as can be
    afforded, by halves and then a step of √2; and where all are many more, continued by the
    power of the number of geometries that it fell with so far.

    Parameters
    ----------
    plan : Plan
    training, validation : Dataset
    chosen : Chosen
    n_before : int
        Geometries that it was chosen with.
    n_all : int
        Geometries that it is for.
    """
    judging = judges(plan, training)
    if len(judging) < MANY * n_before:
        return chosen, n_before
    errors = {1.0: math.inf}

    def judge(factor: float) -> float:
        errors[factor] = error_of(plan, judging, validation, chosen._replace(length_scale=factor * chosen.length_scale))
        return errors[factor]

    best = 1.0
    judge(best)
    while judge(0.5 * best) < errors[best]:
        best *= 0.5
    judge(best / math.sqrt(2.0))
    best = min(errors, key=errors.get)
    if not math.isfinite(errors[best]):
        return chosen, n_before
    power = max(STEEPEST, math.log(best) / math.log(len(judging) / n_before))
    further = (n_all / len(judging)) ** power if n_all > MANY * len(judging) else 1.0
    found = chosen._replace(length_scale=further * best * chosen.length_scale, error=errors[best])
    return found, len(judging)


def spread_of(plan: Plan, x: torch.Tensor) -> float:
    """Root mean square distance of descriptors, or of their points, from their mean."""
    n_points = len(plan.action.kinds) if isinstance(plan.action, Environments) else 1
    return float(x.std(0).norm()) / math.sqrt(n_points)


def most_searched(plan: Plan, operations: float | None = None, unknowns: int | None = None) -> int:
    """Geometries that a length scale is judged with: so many that one training takes a second or a few."""
    n_labels = 3 * plan.group.n_atoms
    sizes = range(MIN_SEARCHED, (unknowns or MAX_SEARCH_UNKNOWNS) // n_labels + 1)
    order, translations = plan.action.order, len(plan.action.translations)
    is_local = isinstance(plan.action, Environments)
    problems = (
        Problem(n, n_labels, plan.descriptor.size, order, n_translations=translations, is_local=is_local) for n in sizes
    )
    fast = [p.n_frames for p in problems if p.closed_form_operations <= (operations or MAX_SEARCH_OPERATIONS)]
    return max([MIN_SEARCHED, *fast])


def solve_plan(
    plan: Plan,
    dataset: Dataset,
    chosen: Chosen,
    progress: bool = False,
    method: Method = CLOSED_FORM,
    monitor: ForceMonitor | None = None,
    journal: Journal | None = None,
    team: Team | None = None,
    x: torch.Tensor | None = None,
    labels: Labels | None = None,
    *,
    judged_by_forces: bool = False,
) -> ForceField:
    """Solve for the coefficients; the constant of the energy is left out where forces alone matter."""
    shares = Shares(team or Team(), len(dataset))
    labels = labels or labels_of(plan, dataset, shares)
    kernel = plan.kernel.with_length_scale(chosen.length_scale)
    x = labels.features.x if x is None else x
    jets = contraction(kernel, x, plan.action, plan.backend)
    operator = TrainingOperator(jets, labels, chosen.noise)
    solution, account = solve(operator, method, monitor or ForceMonitor(), progress, journal or Journal())
    c, w = operator.dual_jets(solution)
    offset = labels.offset
    if dataset.energy is not None and not plan.use_energy and not judged_by_forces:
        e, _ = jets.apply(labels.features.x, c, w)
        offset = constant_of_energy(shares.gather(e).cpu().numpy(), dataset)
    more = {
        "fingerprint": dataset.fingerprint,
        "energies": "relative" if dataset.energy is None else "absolute",
    }
    return assembled(plan, dataset, kernel, x, (c, w), chosen.noise, account, offset, more)


def assembled(
    plan: Plan,
    dataset: Dataset,
    kernel: RadialKernel,
    x: torch.Tensor,
    coefficients: tuple[torch.Tensor | None, torch.Tensor],
    noise: float,
    account: dict,
    offset: float = 0.0,
    details: dict | None = None,
) -> ForceField:
    """The force field of coefficients (c, w) at descriptors (n, D), with an account of the training."""
    c, w = coefficients
    own = {"name": dataset.name, "n_train": len(dataset), "noise": noise, "solver": account}
    return ForceField(
        numbers=dataset.numbers,
        descriptor=plan.descriptor,
        group=plan.group,
        kernel=kernel,
        y=x.cpu().numpy(),
        c=None if c is None else c.cpu().numpy(),
        w=w.cpu().numpy(),
        offset=offset,
        details=own | {"use_stress": plan.use_stress} | (details or {}),
        ranges=own_ranges(plan.descriptor, plan.group, dataset),
        devices=(str(plan.device),),
        backend=plan.backend,
    )


def labels_of(plan: Plan, dataset: Dataset, shares: Shares) -> Labels:
    """The labels of the own geometries."""
    own = dataset[np.arange(len(dataset))[shares.own]]
    return Labels(features_of(plan, own, plan.use_stress), own, plan.use_energy, plan.use_stress, shares, plan.along)
