"""Training: from a dataset to a force field."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from .checkpoints import Journal
from .checks import check_duplicates, check_group, check_labels, check_validation
from .contractions import check_backend, contraction
from .cost import Problem
from .crystals import ideal_group, mean_cell, reference_of
from .dataset import Dataset, read
from .descriptors import Descriptor, Features, InverseDistances, SideBySide, SmoothInverseDistances
from .energies import compare_units, constant_of_energy
from .errors import DataError, FitError, SymmetryError
from .force_field import MAX_FRAMES, ForceField
from .hardware import check_device, check_precision
from .kernels import RadialKernel, kernel_by_name
from .operators import Labels, TrainingOperator
from .processes import Shares, Team, own_device
from .progress import progress_bar
from .region import is_of_pairs, ranges_of
from .selection import GRID, Chosen, choose_length_scale, hold_out
from .solution import CLOSED_FORM, ForceMonitor, Method, solve
from .symmetry import Action, Environments, PermutationGroup, crystal_group, molecular_group

DEFAULT_NOISE = 1e-10
# Trainings that only judge a length scale use at most this many unknowns.
MAX_SEARCH_UNKNOWNS = 6000
# and operations, of which a core does some 10^11 in a second; but no fewer geometries than this.
MAX_SEARCH_OPERATIONS, MIN_SEARCHED = 1.5e11, 4
# Of periodic systems' inverse distances, side by side: the best of those tried on four crystals.
PERIODIC_POWERS = (1.0, 3.0)
# Energies are checked against forces on frames with this many atoms in all, and
# not where there are fewer frames than can tell.
MAX_CHECKED = 600
MIN_CHECKED = 10


def fit(
    dataset: Dataset | str | Path | list[Atoms],
    *,
    validation: Dataset | None = None,
    reference: Atoms | str | Path | None = None,
    symmetry: str | PermutationGroup | ArrayLike = "auto",
    symprec: float | str = "auto",
    descriptor: Descriptor | None = None,
    kernel: str | RadialKernel = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    use_energy: bool = False,
    use_stress: bool = False,
    solver: str = "auto",
    preconditioner: str = "rpcholesky",
    rank: int | str = "auto",
    neighbours: int | str = "auto",
    rtol: float | str = "auto",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    backend: str = "auto",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool = False,
) -> ForceField:
    r"""Train a force field.

    Solves (K + λ I) α = y, with K the symmetrised kernel between the forces of
    all geometries. Where torch's default process group is initialised, as by
    ``torchrun``, its processes share out the geometries, and all get the same
    force field; see `gdml.processes`.

    Parameters
    ----------
    dataset : Dataset, or what `gdml.read` takes
        At least two geometries of one molecule, with forces. All are used.
    validation : Dataset, optional
        Other geometries on which the length scale is chosen; by default a
        fifth of the dataset is held out for that, and then trained on too.
    reference : ase.Atoms or path, optional
        Of a crystal, surface or wire: the ideal structure, from which the symmetry
        is found. By default the symmetrised mean of the frames.
    symmetry : {"auto", "none"}, PermutationGroup or (|S|, N) int array
        Permutations of equal atoms. "auto" finds those that the molecule's
        dynamics can reach (`gdml.symmetry.molecules`), or those of the crystal's
        space group (`gdml.symmetry.crystals`).
    symprec : float or "auto"
        How far atoms of the reference may be, in Å, from where operations put them; by
        default almost nowhere, and a reference that is nearly more symmetric is refused.
    descriptor : Descriptor, optional
        By default r^-1 of all pairs; for periodic systems see `gdml.descriptors`.
    kernel : str or RadialKernel
        "matern32", "matern52", "matern72", "gaussian" (also called RBF), "rational-quadratic", or an
        object of `gdml.kernels`; its own length scale is replaced.
    length_scale : float or "auto"
        In units of the descriptor (1/Å for the default). As ``sig`` in sGDML.
    noise : float or "auto"
        λ, in units of the kernel's second derivative; 1e-10 by default. As
        ``lam`` in sGDML.
    use_energy : bool
        Whether energies are trained on too. Otherwise they only fix the
        constant, and serve as a check of the forces.
    use_stress : bool
        Whether stress is trained on too, of geometries that are periodic in three
        directions. Worth it where cells differ between frames.
    solver : {"auto", "cholesky", "cg"}
        Closed form, or preconditioned conjugate gradients that never store K.
        "auto" predicts the time and memory of both; what it chose and why is in
        ``force_field.details["solver"]``.
    preconditioner : {"rpcholesky", "cholesky", "leverage", "uniform", "svd", "none"}
        For "cg".
    rank : int or "auto"
        Columns of the preconditioner. By default what promises the shortest time
        from the decay that a small factor shows, and twice as many where CG turns
        out to be slow.
    neighbours : int or "auto"
        How many of the nearest geometries the preconditioner sees together with
        each one, for what its columns leave out; by default 4, and 0 for crystals.
    rtol : float or "auto"
        For "cg": the norm of the residual over that of the labels at which it
        ends. By default a twentieth of the force error on other geometries: on the
        `validation` set, looked at now and then, or as the choice of the length
        scale found it; 3e-4 where neither is there.
    checkpoint : path, optional
        A file (.npz) that keeps, every half a minute, what is needed to go on; to
        be deleted when the force field is saved.
    resume : bool
        Whether to go on from the checkpoint, where there is one.
    backend : {"auto", "gemm", "keops", "lattice"}
        How sums over geometries and symmetry are computed; see `ForceField.to`.
    device : str or torch.device, optional
        Where to train, and to evaluate the force field: "cpu" by default, "cuda", "cuda:1", ...
    dtype : {"float64", "float32"}, optional
        In which the force field is evaluated; see `ForceField.to`. Training is in double
        precision: the matrix is no longer positive definite in single.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    ForceField

    Raises
    ------
    DataError
        For data that cannot be trained on; the message names the frames.
    SymmetryError
        For a group that does not fit the atoms.
    DeviceError
        For a device, precision or backend that is not there.
    ProcessError
        If there are more processes than geometries, or another one has stopped.
    MemoryBudgetError
        Before anything is computed, if the matrix would not fit.
    NotPositiveDefiniteError
        If the matrix is singular to working precision.
    OutputError, FormatError, DataError
        For a checkpoint that is in the way, is damaged, or of another training.

    Warns
    -----
    CheckpointWarning
        If a checkpoint cannot be written, as on a full disk.
    EnergyWarning
        If energies disagree with the integrated forces.
    """
    device, dtype, backend = check_device(own_device(device)), check_precision(dtype), check_backend(backend)
    dataset = dataset if isinstance(dataset, Dataset) else read(dataset)
    check_labels(dataset, use_energy)
    if validation is not None:
        check_validation(dataset, validation)
    if use_stress and not dataset.has_stress:
        raise DataError("use_stress needs stress labels, a cell, and geometries that are periodic in three directions")
    group = _group(dataset, symmetry, reference, symprec)
    team = Team.current()
    plan = _plan(dataset, group, descriptor, kernel, noise, use_energy, use_stress, backend, device)
    method = Method(solver, preconditioner, rank, neighbours, rtol)
    problem = _problem(plan, method, dataset, validation, length_scale)
    team.check_same(problem | {"backend": backend, "dtype": str(dtype), "device": device.type})
    method.check(_size_of(plan, dataset, team))
    x = _descriptors(plan, dataset)
    team.agree(lambda: check_duplicates(dataset, x.cpu().numpy(), plan.action))
    journal = Journal.open(checkpoint, problem, resume, team)
    team.agree(lambda: check_energies(dataset, plan))
    if length_scale != "auto":
        chosen = Chosen(_number("length_scale", length_scale), None)
    elif journal.length_scale:
        chosen = Chosen(journal.length_scale, journal.expected_error)
    else:
        chosen = team.agree(lambda: _search(plan, dataset, validation, progress))
    journal.note_length_scale(*chosen)
    monitor = ForceMonitor(expected=chosen.error)
    if validation is not None:
        part = Shares(team, len(validation)).own
        forces = torch.tensor(validation.forces[part], device=plan.device)
        monitor = ForceMonitor(_features(plan, validation)[part], forces)
    force_field = _train(plan, dataset, chosen.length_scale, progress, method, monitor, journal, team, x)
    return force_field.to(dtype=dtype)


def _size_of(plan: "_Plan", dataset: Dataset, team: Team) -> Problem:
    """The problem, as far as it is known before the matrix is."""
    # Of a linear molecule; others have one less.
    n_labels = 3 * dataset.n_atoms - (3 if any(dataset.pbc) else 5) + plan.use_energy + 6 * plan.use_stress
    order, n_translations = plan.action.order, len(plan.action.translations)
    return Problem(
        len(dataset),
        n_labels,
        plan.descriptor.size,
        order,
        n_translations=n_translations,
        device=plan.device,
        n_processes=team.size,
    )


def _problem(plan, method, dataset, validation, length_scale) -> dict[str, str]:
    """All that the outcome of a training depends on, for its checkpoint."""
    group = hashlib.sha256(plan.group.permutations.tobytes()).hexdigest()[:16]
    return {
        "geometries": dataset.fingerprint,
        "validation": validation.fingerprint if validation is not None else "none",
        "symmetry": f"order {plan.group.order}, {group}",
        "descriptor": str(plan.descriptor),
        "kernel": str(plan.kernel.with_length_scale(1.0)),
        "noise": str(plan.noise),
        "use_energy": str(plan.use_energy),
        "use_stress": str(plan.use_stress),
        "length_scale": str(length_scale),
        **{key: str(value) for key, value in asdict(method).items()},
    }


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the length scale."""

    group: PermutationGroup
    descriptor: Descriptor
    action: Action | Environments
    kernel: RadialKernel
    noise: float
    use_energy: bool
    use_stress: bool
    backend: str
    device: torch.device


def _plan(dataset, group, descriptor, kernel, noise, use_energy, use_stress, backend, device) -> _Plan:
    noise = DEFAULT_NOISE if noise == "auto" else _number("noise", noise)
    if not 0 <= noise < np.inf:
        raise FitError(f"the noise must not be negative or infinite, but it is {noise}")
    cell = mean_cell(dataset) if any(dataset.pbc) else None
    descriptor = (descriptor or _descriptor(dataset)).bound(dataset.numbers, dataset.positions, dataset.pbc, cell)
    return _Plan(
        group=group,
        descriptor=descriptor,
        action=descriptor.action(group),
        kernel=kernel if isinstance(kernel, RadialKernel) else kernel_by_name(kernel)(),
        noise=noise,
        use_energy=use_energy,
        use_stress=use_stress,
        backend=backend,
        device=device,
    )


def _number(name: str, value: float | str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise FitError(f"{name} must be a number or 'auto', not {value!r}") from error


def _descriptor(dataset: Dataset) -> Descriptor:
    if not any(dataset.pbc):
        return InverseDistances(dataset.n_atoms)
    cell = mean_cell(dataset)
    parts = [SmoothInverseDistances(dataset.n_atoms, cell, dataset.pbc, power) for power in PERIODIC_POWERS]
    return SideBySide.balanced(parts, torch.tensor(dataset.positions), cells=dataset.cell)


def _group(
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
                ideal_group(ideal) if symprec == "auto" else crystal_group(ideal, symprec=_number("symprec", symprec))
            )
        if symmetry == "auto":
            return molecular_group(dataset)
        if symmetry == "none":
            return PermutationGroup.trivial(dataset.n_atoms)
        raise SymmetryError(f"symmetry is 'auto', 'none' or a group, not {symmetry!r}")
    group = symmetry if isinstance(symmetry, PermutationGroup) else PermutationGroup(symmetry)
    check_group(dataset, group)
    return group


def _features(plan: _Plan, dataset: Dataset, strain: bool = False) -> Features:
    positions, cells = torch.tensor(dataset.positions, device=plan.device), dataset.periodic_cell
    return plan.descriptor.evaluate(positions, **({} if cells is None else {"cells": cells, "strain": strain}))


def _geometries(dataset: Dataset) -> tuple[np.ndarray, ...]:
    return (dataset.positions,) if dataset.periodic_cell is None else (dataset.positions, dataset.periodic_cell)


def _descriptors(plan: _Plan, dataset: Dataset) -> torch.Tensor:
    """Descriptors (n, D) of all geometries, a few at a time, since Jacobians take several times as much memory."""
    frames = np.arange(len(dataset))
    return torch.cat([_features(plan, dataset[frames[k : k + MAX_FRAMES]]).x for k in frames[::MAX_FRAMES]])


def _search(plan: _Plan, dataset: Dataset, validation: Dataset | None, progress: bool) -> Chosen:
    """The length scale, and the error to expect with all of the dataset: errors fall like 1/n at best."""
    training = dataset
    if validation is None:
        training, validation = hold_out(dataset)
    most = _most_searched(plan)
    if len(training) > most:
        training = training[training.sample(most)]
    spread = float(_features(plan, training).x.std(0).norm())
    with progress_bar("length scale", progress) as bar:
        best = choose_length_scale(
            lambda scale: _train(plan, training, scale, judged_by_forces=True), validation, spread, progress=bar
        )
    return best._replace(error=best.error * len(training) / len(dataset))


def _most_searched(plan: _Plan) -> int:
    """Geometries that a length scale is judged with: so many that one training takes a second or a few."""
    n_labels = 3 * plan.group.n_atoms
    sizes = range(MIN_SEARCHED, MAX_SEARCH_UNKNOWNS // n_labels + 1)
    order, translations = plan.action.order, len(plan.action.translations)
    problems = (Problem(n, n_labels, plan.descriptor.size, order, n_translations=translations) for n in sizes)
    fast = [p.n_frames for p in problems if p.closed_form_operations <= MAX_SEARCH_OPERATIONS]
    return max([MIN_SEARCHED, *fast])


def _train(
    plan: _Plan,
    dataset: Dataset,
    length_scale: float,
    progress: bool = False,
    method: Method = CLOSED_FORM,
    monitor: ForceMonitor | None = None,
    journal: Journal | None = None,
    team: Team | None = None,
    x: torch.Tensor | None = None,
    *,
    judged_by_forces: bool = False,
) -> ForceField:
    """Solve for the coefficients; the constant of the energy is left out where forces alone matter."""
    shares = Shares(team or Team(), len(dataset))
    own = dataset[np.arange(len(dataset))[shares.own]]
    features = _features(plan, own, plan.use_stress)
    labels = Labels(features, own, plan.use_energy, plan.use_stress, shares)
    kernel = plan.kernel.with_length_scale(length_scale)
    x = features.x if x is None else x
    jets = contraction(kernel, x, plan.action, plan.backend)
    operator = TrainingOperator(jets, labels, plan.noise)
    solution, account = solve(operator, method, monitor or ForceMonitor(), progress, journal or Journal())
    c, w = operator.dual_jets(solution)
    offset = labels.offset
    if dataset.energy is not None and not plan.use_energy and not judged_by_forces:
        e, _ = jets.apply(features.x, c, w)
        offset = constant_of_energy(shares.gather(e).cpu().numpy(), dataset)
    return ForceField(
        numbers=dataset.numbers,
        descriptor=plan.descriptor,
        group=plan.group,
        kernel=kernel,
        y=x.cpu().numpy(),
        c=None if c is None else c.cpu().numpy(),
        w=w.cpu().numpy(),
        offset=offset,
        details={
            "name": dataset.name,
            "n_train": len(dataset),
            "noise": plan.noise,
            "solver": account,
            "fingerprint": dataset.fingerprint,
            "use_stress": plan.use_stress,
            "energies": "relative" if dataset.energy is None else "absolute",
        },
        ranges=None if is_of_pairs(plan.descriptor) else ranges_of(plan.descriptor, plan.group, *_geometries(dataset)),
        devices=(str(plan.device),),
        backend=plan.backend,
    )


def check_energies(dataset: Dataset, plan: _Plan) -> None:
    """Raise if energies are of another unit or sign than the forces.

    A small force field is trained on the forces of a few frames, and its
    energies are compared.
    """
    if dataset.energy is None or len(dataset) < MIN_CHECKED:
        return
    if not np.ptp(dataset.energy) > 0:
        raise DataError("all energies are equal, but the forces are not zero; leave the energies out, or mend them")
    most = min(MAX_CHECKED // dataset.n_atoms, _most_searched(plan))
    few = dataset[dataset.sample(min(len(dataset), max(MIN_SEARCHED + 1, most)))]
    spread = float(_features(plan, few).x.std(0).norm())
    try:
        force_field = _train(replace(plan, use_energy=False), few, GRID[3] * spread, judged_by_forces=True)
    except FitError:  # then the training itself will say so
        return
    compare_units(force_field.predict(few.positions, few.periodic_cell).energy, few.energy)
