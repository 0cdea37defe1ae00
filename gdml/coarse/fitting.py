"""Two ways to a force field from noisy forces: one fit of all frames, and an ensemble in two layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import units
from numpy.typing import ArrayLike

from ..baselines import Baseline, Bonded
from ..baselines.catalogue import Term
from ..checks import check_duplicates, check_labels
from ..contractions import check_backend
from ..dataset import Dataset
from ..descriptors import Concatenated, Descriptor, Dihedrals, InverseDistances
from ..dynamics.classical import check_settings
from ..errors import DataError
from ..force_field import ForceField
from ..geometry import dihedrals
from ..hardware import check_device, check_precision
from ..hyperparameters import Chosen
from ..plan import Plan, descriptors_of, make_plan, number_of, solve_plan
from ..processes import Team, own_device
from ..progress import progress_bar
from ..solution import Method
from ..symmetry import PermutationGroup
from ..training import size_of
from .hyperparameters import Candidate, choose
from .motions import Motions
from .noise import estimate_noise
from .prior import chain, dihedrals_of, without_prior
from .turning import turned

LEAST = 1e-6  # of the first layer's noise, that is left in the second: below, the matrix is singular
WIDTH = 0.15  # of turns about bonds, radians
COPIES = 8  # of each frame, of which as many are drawn as there are frames,
DRAWN = 3000  # or this many, if there are fewer
BINS = 20  # of dihedral angles, over which they are drawn evenly


def default_descriptor(n_beads: int, bonds: Sequence[Sequence[int]] | None = None) -> Descriptor:
    """Inverse distances of all pairs (in 1/Å), and dihedrals along bonds, which know left from right.

    Parameters
    ----------
    n_beads : int
    bonds : sequence of pairs, optional
        By default each bead with the next.
    """
    distances, fours = InverseDistances(n_beads), dihedrals_of(chain(n_beads) if bonds is None else bonds)
    return Concatenated([distances, Dihedrals(fours)], [1.0, 1.0]) if fours else distances


@dataclass(frozen=True, eq=False)
class Scales:
    """What a fit to noisy forces is determined by.

    Attributes
    ----------
    length_scale : float
    energy : float, eV
        Standard deviation that energies have a priori.
    noise : (q, q) array
        The covariance of generalised forces about their mean; see `estimate_noise`.
    candidates : tuple of Candidate
        What was tried, where something was chosen.
    """

    length_scale: float
    energy: float
    noise: np.ndarray
    candidates: tuple[Candidate, ...] = ()

    @property
    def regularisation(self) -> float:
        """λ, of forces in units of their noise."""
        return self.energy**-2

    @property
    def details(self) -> dict[str, object]:
        """For a force field's account of itself."""
        found = {"energy": self.energy, "noise": np.sqrt(np.diagonal(self.noise)).tolist()}
        if self.candidates:
            best = min(self.candidates, key=lambda one: one.error)
            others = [(one, one.minus(best)) for one in self.candidates if one is not best]
            found["held_out_mse"] = best.error
            found["tried"] = [
                {"length_scale": one.length_scale, "energy": one.energy, "more": more.mean, "error": more.error}
                for one, more in others
            ]
        return found


@dataclass(frozen=True)
class _Task:
    """What is to be learned, from which forces, and along which motions these are labels.

    Attributes
    ----------
    frames : Dataset
        Less the prior, each turned once about its bonds.
    pool : Dataset
        All copies of them, with other turns.
    """

    frames: Dataset
    pool: Dataset
    motions: Motions
    descriptor: Descriptor
    kernel: str
    prior: Bonded | None
    temperature_K: float

    @classmethod
    def of(cls, beads, temperature_K, prior, bonds, descriptor, kernel, width, seed) -> "_Task":
        beads.require_forces()
        check_settings(temperature_K=temperature_K)
        if bonds is None:
            bonds = [] if prior is None else prior.bonds[0].tolist()
            bonds = bonds or chain(beads.n_atoms)
        motions, copies = Motions(beads.n_atoms, bonds), [beads]
        if width != 0 and motions.turns:
            rng = np.random.default_rng(seed)
            copies = [turned(beads, motions, temperature_K, width, prior, rng) for _ in range(COPIES)]
        copies = [without_prior(copy, prior) for copy in copies]
        pool = copies[0][np.tile(np.arange(len(beads)), len(copies))]
        arrays = {name: np.concatenate([getattr(c, name) for c in copies]) for name in ("positions", "forces")}
        pool = replace(pool, **arrays)
        descriptor = descriptor or default_descriptor(beads.n_atoms, bonds)
        return cls(copies[0], pool, motions, descriptor, kernel, prior, temperature_K)

    @property
    def energy(self) -> float:
        """A standard deviation of 2 kT for each dihedral angle, eV."""
        return 2 * units.kB * self.temperature_K * max(1, len(self.motions.turns)) ** 0.5

    def drawn(self, seed: int) -> Dataset:
        """Copies that are trained on, evenly over dihedral angles, so that barriers have some."""
        if len(self.pool) == len(self.frames):
            return self.frames
        values = dihedrals(torch.tensor(self.pool.positions), self.motions.dihedrals).numpy()
        n = min(max(len(self.frames), DRAWN), len(self.pool))
        return self.pool[stratified(values, n, BINS, np.random.default_rng(seed))]

    def plan(self, noise: np.ndarray, backend: str = "auto", device: torch.device | str = "cpu") -> Plan:
        """That of a fit in which generalised forces are in units of their noise."""
        group = PermutationGroup.trivial(self.frames.n_atoms)
        plan = make_plan(
            self.frames, group, self.descriptor, self.kernel, 1.0, False, False, backend, torch.device(device)
        )
        return replace(plan, along=self.motions.whitened(torch.tensor(noise)))

    def scales(self, length_scale, energy, noise, progress: bool) -> Scales:
        if isinstance(noise, str):
            noise = estimate_noise(self.frames, self.descriptor, self.motions)
        noise = _covariance(noise, len(self.motions.all))
        if energy == "auto" and self.prior is not None:
            energy = self.energy
        given = {name: value for name, value in (("length_scale", length_scale), ("energy", energy)) if value != "auto"}
        given = {name: number_of(name, value) for name, value in given.items()}
        if not all(0 < value < np.inf for value in given.values()):
            raise DataError(f"length scale and energy must be positive, not {given}")
        if len(given) == 2:
            return Scales(**given, noise=noise)
        if length_scale != "auto":
            raise DataError("without a prior, length_scale and energy are chosen together: give both, or none")
        best, tried = choose(self.plan(noise), self.frames, given.get("energy"), progress)
        return Scales(best.length_scale, best.energy, noise, tuple(tried))

    def solve(
        self, training: Dataset, scales: Scales, progress=False, *, backend="auto", device=None, dtype=None, **method
    ) -> ForceField:
        device = check_device(own_device(device))
        plan, method = self.plan(scales.noise, check_backend(backend), device), Method(**{"solver": "auto"} | method)
        team = Team.current()
        check_labels(training, False)
        method.check(size_of(plan, training, team))
        x = descriptors_of(plan, training)
        check_duplicates(training, x.cpu().numpy(), plan.action)
        chosen = Chosen(scales.length_scale, None, scales.regularisation)
        field = solve_plan(plan, training, chosen, progress, method, team=team, x=x, judged_by_forces=True)
        return field.to(dtype=check_precision(dtype))

    def finished(self, field: ForceField, details: dict) -> ForceField:
        """With the prior."""
        baseline = None
        if self.prior is not None:
            baseline = Baseline((Term("bonded", self.prior.options),)).with_example(self.frames)
        return replace(field, baseline=baseline, details=field.details | details)


def _covariance(noise: ArrayLike, size: int) -> np.ndarray:
    noise = np.asarray(noise, dtype=float)
    if noise.shape != (size, size) or not np.isfinite(noise).all() or not np.linalg.eigvalsh(noise).min() > 0:
        raise DataError(
            f"the noise is a positive definite matrix of the {size} generalised forces, finite, and not of the "
            f"shape {noise.shape}"
        )
    return noise


def choose_scales(
    beads: Dataset,
    temperature_K: float,
    *,
    prior: Bonded | None = None,
    bonds: Sequence[Sequence[int]] | None = None,
    descriptor: Descriptor | None = None,
    kernel: str = "matern52",
    width: float = WIDTH,
    length_scale: float | str = "auto",
    energy: float | str = "auto",
    noise: ArrayLike | str = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Scales:
    """Length scale, a-priori spread of energies, and noise; what is "auto" from the data.

    The noise is estimated (`estimate_noise`), the length scale chosen by `gdml.coarse.hyperparameters`. The energy is
    2 kT √k with k turns about bonds, as what a prior leaves; without a prior, it is chosen with the length scale.

    Parameters
    ----------
    beads, temperature_K, prior, bonds, descriptor, kernel, width, seed
        As of `fit`.
    length_scale : float or "auto"
    energy : float, eV, or "auto"
    noise : (q, q) array or "auto"
    progress : bool

    Raises
    ------
    DataError
        For frames without forces, and for numbers and matrices that make no sense.
    """
    task = _Task.of(beads, temperature_K, prior, bonds, descriptor, kernel, width, seed)
    return task.scales(length_scale, energy, noise, progress)


def fit(
    beads: Dataset,
    temperature_K: float,
    *,
    prior: Bonded | None = None,
    bonds: Sequence[Sequence[int]] | None = None,
    descriptor: Descriptor | None = None,
    kernel: str = "matern52",
    width: float = WIDTH,
    scales: Scales | None = None,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> ForceField:
    """One fit of all frames, to their instantaneous forces with the noise that these have, and to where frames are.

    Solves, with P the motions along bonds, angles and dihedrals (`gdml.coarse.motions`) in units of the noise C,

    .. math:: (P K P^T + \\lambda) \\alpha = P F, \\qquad P = L^T (\\partial R / \\partial q)^T, \\qquad L L^T = C^{-1}

    Of copies of each frame that are turned about bonds at random, as many are trained on as there are frames, or 3000
    if there are fewer, evenly over dihedral angles. Beads are never exchanged with each other: give them any atomic
    numbers.

    Parameters
    ----------
    beads : Dataset
        With forces, and from the ensemble at the temperature.
    temperature_K : float
    prior : Bonded, optional
        See `fit_prior`. Subtracted from the forces, and part of the force field.
    bonds : sequence of pairs, optional
        That hold all beads together; by default those of the prior, or each bead with the next.
    descriptor : Descriptor, optional
        By default `default_descriptor`, with the bonds.
    kernel : str
    width : float
        Of random turns about bonds (`gdml.coarse.turning`), radians, by which the free energy is smoothed. They
        move all that hangs on a bond: for chains that are long, or folded, take less. With zero, forces alone are
        learned from, and the ensemble may be any.
    scales : Scales, optional
        By default those of `choose_scales`.
    seed : int
        Of the turns.
    progress : bool
    **options
        Of `gdml.fit`: solver, preconditioner, rank, rtol, backend, device, dtype.

    Returns
    -------
    ForceField
        Energies are free energies of the beads, up to a constant.

    Raises
    ------
    DataError, FitError, BaselineError
        As `gdml.fit`, `choose_scales` and `fit_prior`.
    """
    task = _Task.of(beads, temperature_K, prior, bonds, descriptor, kernel, width, seed)
    scales = scales or task.scales("auto", "auto", "auto", progress)
    return task.finished(task.solve(task.drawn(seed), scales, progress, **options), {"coarse": scales.details})


def fit_ensemble(
    beads: Dataset,
    temperature_K: float,
    variables: Callable[[np.ndarray], ArrayLike],
    *,
    n_models: int = 10,
    n_first: int = 1500,
    n_second: int = 1500,
    bins: int = 20,
    prior: Bonded | None = None,
    bonds: Sequence[Sequence[int]] | None = None,
    descriptor: Descriptor | None = None,
    kernel: str = "matern52",
    width: float = WIDTH,
    scales: Scales | None = None,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> ForceField:
    """Two layers: models of samples, whose mean forces on other samples one model is trained on.

    All samples are `stratified`, of copies that were turned about bonds: forces have the same mean wherever more are
    drawn. The noise of the second layer is what the models differ by on its frames, over their number.

    Source: J. Wang, S. Chmiela, K.-R. Müller, F. Noé, C. Clementi, J. Chem. Phys. 152, 194106 (2020).

    Parameters
    ----------
    beads, temperature_K, prior, bonds, descriptor, kernel, width, scales, progress, **options
        As of `fit`.
    variables : callable
        From positions (M, N, 3) to collective variables (M, k).
    n_models, n_first : int
        Models of the first layer, and frames that each of them is trained on.
    n_second : int
        Frames of the second layer: what dynamics with the force field cost is in proportion.
    bins : int
        Of each variable.
    seed : int

    Returns
    -------
    ForceField

    Raises
    ------
    DataError, FitError, BaselineError
        As `fit`; if there are fewer frames than a sample needs.
    """
    if n_models < 2:
        raise DataError(f"an ensemble needs at least two models, not {n_models}")
    task = _Task.of(beads, temperature_K, prior, bonds, descriptor, kernel, width, seed)
    scales = scales or task.scales("auto", "auto", "auto", progress)
    rng, pool = np.random.default_rng(seed), task.pool
    values = variables(pool.positions)
    second, forces = pool[stratified(values, n_second, bins, rng)], []
    with progress_bar("first layer", progress) as bar:
        for k in range(n_models):
            model = task.solve(pool[stratified(values, n_first, bins, rng)], scales, **options)
            forces.append(model.predict(second.positions).forces)
            if bar:
                bar(k + 1, n_models)
    averaged, noise = mean_forces(second, np.array(forces), task.motions)
    finer = replace(scales, noise=noise + LEAST * scales.noise, candidates=())
    field = task.solve(averaged, finer, progress, **options)
    layers = {"n_models": n_models, "n_first": n_first, "n_second": n_second, "noise": finer.details["noise"]}
    return task.finished(field, {"ensemble": layers, "coarse": scales.details})


def mean_forces(beads: Dataset, forces: np.ndarray, motions: Motions) -> tuple[Dataset, np.ndarray]:
    """Frames with the means of several models' forces (K, M, N, 3), and the noise (q, q) that these have left."""
    positions, mean = torch.tensor(beads.positions), forces.mean(0)
    deviations = [motions.generalised(positions, torch.tensor(one - mean)) for one in forces]
    products = sum(d.mT @ d for d in deviations).numpy()
    return replace(beads, forces=mean), products / (len(forces) * (len(forces) - 1) * len(beads))


def stratified(variables: ArrayLike, n: int, bins: int, rng: np.random.Generator) -> np.ndarray:
    """Frames that are drawn evenly over collective variables, without replacement.

    The range of each variable is cut into bins. As many frames are drawn of each cell that has
    some, as far as they reach.

    Parameters
    ----------
    variables : (M, k) array
    n : int
    bins : int
        Of each variable.
    rng : numpy.random.Generator

    Returns
    -------
    (n,) int array
        Indices, ascending.

    Raises
    ------
    DataError
        For fewer frames than are to be drawn.
    """
    variables = np.asarray(variables, dtype=float)
    if variables.ndim != 2 or not np.isfinite(variables).all():
        raise DataError(f"collective variables are finite, of the shape (frames, variables), not {variables.shape}")
    if not 0 < n <= len(variables):
        raise DataError(f"{n} frames are to be drawn of {len(variables)}; take smaller samples")
    low, high = variables.min(0), variables.max(0)
    place = ((variables - low) / np.where(high > low, high - low, 1.0) * bins).astype(int).clip(max=bins - 1)
    cells = np.unique(place, axis=0, return_inverse=True)[1].ravel()
    order = rng.permutation(len(variables))
    # The how-manieth of its cell each frame is: first all first ones, then all second ones, ...
    by_cell = order[np.argsort(cells[order], kind="stable")]
    counts = np.bincount(cells)
    turn = np.concatenate([np.arange(count) for count in counts])
    return np.sort(by_cell[np.lexsort((rng.random(len(turn)), turn))][:n])
