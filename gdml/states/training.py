"""Training of one force field for several states."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike
from torch import Tensor

from ..baselines import as_baseline
from ..checkpoints import Journal
from ..checks import check_duplicates
from ..contractions import check_backend, contraction
from ..dataset import Dataset
from ..descriptors import Descriptor
from ..energies import constant_of_energy
from ..errors import DataError, FitError, ProcessError
from ..hardware import check_device, check_precision
from ..hyperparameters import Chosen
from ..kernels import RadialKernel
from ..metric import can_learn
from ..operators import Labels, TrainingOperator
from ..plan import Plan, assembled, descriptors_of, labels_of, make_plan, number_of, symmetry_of
from ..processes import Shares, Team
from ..progress import progress_bar
from ..solution import ForceMonitor, Method, solve
from ..symmetry import PermutationGroup
from ..training import check_energies, find_hyperparameters, size_of
from .couplings import Evidence, check_couplings
from .data import states_of
from .force_field import State, StatesForceField
from .operator import StatesOperator
from .together import Together, differences, fingerprint

MAX_UNKNOWNS = 1500  # of the matrices that couplings are learned with
MAX_CANDIDATES = 3  # states whose metrics are compared
STEP, MAX_STEPS = 2.0**0.5, 4  # of the length scale, where the likelihood of all labels judges it


def fit_states(
    data: Mapping[State, Dataset | str | Path] | str | Path | Sequence[Atoms],
    *,
    state: str | Sequence[str] | None = None,
    couplings: str | ArrayLike = "auto",
    reference: Atoms | str | Path | None = None,
    symmetry: str | PermutationGroup | ArrayLike = "auto",
    symprec: float | str = "auto",
    descriptor: Descriptor | str = "auto",
    kernel: str | RadialKernel = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    use_energy: bool = False,
    solver: str = "auto",
    preconditioner: str = "rpcholesky",
    rank: int | str = "auto",
    neighbours: int | str = "auto",
    rtol: float | str = "auto",
    baseline: object = None,
    baseline_cache: str | Path | None = None,
    backend: str = "auto",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool = False,
) -> StatesForceField:
    r"""Train one force field for several states: charges, spins, levels of theory, anything that labels geometries.

    The covariance of labels of geometries R and R', of the states s and t, is the kernel's times
    a coupling :math:`C_{st}`. So each state is learned from the geometries of all, as far as they
    have something in common; a state may have its own geometries, and few of them.

    Parameters
    ----------
    data : dict of Dataset by state, or what `gdml.read` takes
        At least two geometries of each state, all of the same atoms in the same order, with forces.
    state : str or sequence of str, optional
        Of a file: under which keys of ``atoms.info`` the states are; see `gdml.read_states`.
    couplings : "auto" or (S, S) array
        C, in the order of the states. By default learned: the largest marginal likelihood of up to 1500 labels,
        of all states as equally as can be.
    length_scale : float or "auto"
        By default chosen, as by `gdml.fit` (and with the metric), for single states with many geometries; of these the
        one with the largest likelihood for all is taken, and made to fit where that is of all labels.
    baseline : str, ASE calculator or sequence of these, optional
        As in `gdml.fit`; the same in all states.
    reference, symmetry, symprec, descriptor, kernel, noise, use_energy, solver, preconditioner, rank, neighbours, rtol
        As in `gdml.fit`. Energies of a state fix its own constant.
    baseline_cache, backend, device, dtype, progress
        As in `gdml.fit`.

    Returns
    -------
    StatesForceField

    Raises
    ------
    DataError
        For one state alone, a state with one geometry, or data that `gdml.fit` would not train on.
    FitError
        For couplings that are not positive semidefinite, or not those of so many states.
    ProcessError
        If torch's default process group has more than one process.
    SymmetryError, BaselineError, MissingExtraError, DeviceError, MemoryBudgetError, NotPositiveDefiniteError
        As `gdml.fit`.

    Warns
    -----
    EnergyWarning
        If energies disagree with the integrated forces.
    """
    device, dtype, backend = check_device(device), check_precision(dtype), check_backend(backend)
    if Team.current().size > 1:
        raise ProcessError("several states are trained on in one process; start one")
    given = states_of(data, state)
    if use_energy:
        _require_energies(given)
    states = tuple(given)
    couplings = None if isinstance(couplings, str) and couplings == "auto" else check_couplings(couplings, states)
    baseline = as_baseline(baseline)
    used = given if baseline is None else differences(given, baseline, baseline_cache, progress)
    together = Together.of(used, use_energy)
    group = symmetry_of(together.dataset, symmetry, reference, symprec)
    plan = make_plan(together.dataset, group, descriptor, kernel, noise, use_energy, False, backend, device)
    method = Method(solver, preconditioner, rank, neighbours, rtol)
    method.check(size_of(plan, together.dataset, Team()))
    x = descriptors_of(plan, together.dataset)
    for s, (name, dataset) in enumerate(given.items()):
        _check(name, dataset, plan, x[together.states == s])
    found = _search(plan, used, together, descriptor, length_scale, couplings, progress)
    field = _solve(found, together, states, method, progress)
    if not use_energy:
        field = replace(field, offsets=_constants(field, used))
    baseline = baseline and baseline.with_example(given[states[0]])
    details = field.details | {"fingerprint": fingerprint(given)}
    return replace(field, shared=replace(field.shared, baseline=baseline, details=details).to(dtype=dtype))


def _require_energies(datasets: dict[State, Dataset]) -> None:
    without = [state for state, dataset in datasets.items() if dataset.energy is None]
    if without:
        raise DataError(f"use_energy needs energies of all states, and {without[0]!r} has none")


def _check(state: State, dataset: Dataset, plan: Plan, x: Tensor) -> None:
    """Raise if a state has geometries twice, or energies in another unit than its forces."""
    try:
        check_duplicates(dataset, x.cpu().numpy(), plan.action)
        check_energies(dataset, plan)
    except DataError as error:
        raise DataError(f"state {state!r}: {error}") from error


def _search(
    plan: Plan,
    datasets: dict[State, Dataset],
    together: Together,
    descriptor: Descriptor | str,
    length_scale: float | str,
    couplings: np.ndarray | None,
    progress: bool,
) -> "_Judged":
    """What has the largest likelihood: metrics and length scales of single states, couplings, then length scales."""
    if length_scale != "auto":
        given = Chosen(number_of("length_scale", length_scale), None, plan.noises[0])
        if couplings is not None:
            return _Judged(plan, given, couplings)
        candidates = [(plan, given)]
    else:
        candidates = [_chosen(plan, dataset, descriptor, progress) for dataset in _largest(datasets)]
    most = max(MAX_UNKNOWNS // (3 * together.dataset.n_atoms), 2 * len(datasets))
    some = together.some(most)
    with progress_bar("couplings", progress):
        best = min((_judged(*one, some, couplings) for one in candidates), key=lambda judged: judged.value)
        if length_scale == "auto" and len(some.states) == len(together.states):
            best = _with_length(best, some, couplings)
    return best


class _Judged(NamedTuple):
    """Hyper-parameters, with the negative logarithm of their likelihood for each label."""

    plan: Plan
    chosen: Chosen
    couplings: np.ndarray
    value: float = 0.0


def _largest(datasets: dict[State, Dataset]) -> list[Dataset]:
    """Those of a few states, of which none has much fewer geometries than another."""
    ordered = sorted(datasets.values(), key=len, reverse=True)[:MAX_CANDIDATES]
    return [dataset for dataset in ordered if 2 * len(dataset) >= len(ordered[0])]


def _chosen(plan: Plan, dataset: Dataset, descriptor: Descriptor | str, progress: bool) -> tuple[Plan, Chosen]:
    """The descriptor, length scale and noise for one state, as `gdml.fit` has them."""
    learns = (descriptor is None or descriptor == "auto") and can_learn(plan, dataset)
    chosen = find_hyperparameters(plan, dataset, None, learns, progress)
    return plan if chosen.descriptor is None else plan.with_descriptor(chosen.descriptor), chosen


def _judged(
    plan: Plan, chosen: Chosen, together: Together, couplings: np.ndarray | None, start: np.ndarray | None = None
) -> _Judged:
    """The couplings of the largest likelihood, or those that are given, and the likelihood."""
    labels, n_states = _labels(plan, together), len(together.means)
    jets = contraction(plan.kernel.with_length_scale(chosen.length_scale), labels.features.x, plan.action, plan.backend)
    matrix = TrainingOperator(jets, labels, 0.0).to_dense()
    matrix = matrix.tril() + matrix.tril(-1).mT
    evidence = Evidence(matrix.cpu(), labels.values.cpu(), together.states, n_states, chosen.noise)
    if couplings is not None:
        return _Judged(plan, chosen, couplings, evidence.at(torch.tensor(couplings))[0])
    found, value = evidence.best(None if start is None else torch.tensor(start))
    return _Judged(plan, chosen, found.numpy(), value)


def _with_length(best: _Judged, together: Together, couplings: np.ndarray | None) -> _Judged:
    """The length scale of the largest likelihood: in steps to one side, then the other, as long as it gets better."""
    start = best
    for factor in (STEP, 1 / STEP):
        for _ in range(MAX_STEPS):
            chosen = best.chosen._replace(length_scale=factor * best.chosen.length_scale)
            try:
                found = _judged(best.plan, chosen, together, couplings, best.couplings)
            except FitError:  # too long: the matrix is singular to working precision
                break
            if found.value >= best.value:
                break
            best = found
        if best is not start:  # then the other side is worse
            break
    return best


def _labels(plan: Plan, together: Together) -> Labels:
    return labels_of(plan, together.dataset, Shares(Team(), len(together.dataset)))


def _solve(
    found: _Judged, together: Together, states: tuple[State, ...], method: Method, progress: bool
) -> StatesForceField:
    """The solution; constants of the energies are the means of their labels."""
    plan, chosen, couplings, _ = found
    dataset, labels = together.dataset, _labels(plan, together)
    kernel, x = plan.kernel.with_length_scale(chosen.length_scale), labels.features.x
    jets = contraction(kernel, x, plan.action, plan.backend)
    operator = StatesOperator(jets, labels, chosen.noise, together.states.to(x.device), x.new_tensor(couplings))
    solution, account = solve(operator, method, ForceMonitor(expected=chosen.error), progress, Journal())
    shared = assembled(plan, dataset, kernel, x, operator.dual_jets(solution), chosen.noise, account)
    return StatesForceField(shared, states, together.states.numpy(), couplings, together.means + labels.offset)


def _constants(field: StatesForceField, datasets: dict[State, Dataset]) -> np.ndarray:
    """The constant of each state's energies, that its labels tell; NaN where it has none."""
    found = np.full(len(datasets), np.nan)
    for s, (state, dataset) in enumerate(datasets.items()):
        if dataset.energy is not None:
            # What is added at present is the mean of the labels, for which there is no need.
            alone = replace(field.at(state), offset=0.0)
            integrated = alone.predict(dataset.positions, dataset.periodic_cell).energy
            found[s] = constant_of_energy(integrated, dataset)
    return found
