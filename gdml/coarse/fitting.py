"""Two ways to a force field from noisy forces: one fit of all frames, and an ensemble in two layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..baselines import Baseline, Bonded
from ..baselines.catalogue import Term
from ..dataset import Dataset
from ..descriptors import Concatenated, Descriptor, Dihedrals, InverseDistances
from ..errors import DataError
from ..force_field import ForceField
from ..plan import Plan, make_plan, number_of
from ..progress import progress_bar
from ..symmetry import PermutationGroup
from ..training import fit as fit_forces
from .hyperparameters import Candidate, choose, regularisation
from .noise import estimate_noise
from .prior import chain, dihedrals_of, without_prior

LEAST_RATIO = 1e-3  # of what is left of the noise in mean forces to the signal, below which the matrix is singular


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


@dataclass(frozen=True)
class Scales:
    """What a fit to noisy forces is determined by.

    Attributes
    ----------
    length_scale : float
    noise, signal : float, eV/Å
        Standard deviations of the instantaneous forces about their mean, and of what is to be learned.
    regularisation : float
        λ.
    candidates : tuple of Candidate
        What was tried, where something was chosen.
    """

    length_scale: float
    noise: float
    signal: float
    regularisation: float
    candidates: tuple[Candidate, ...] = ()

    @property
    def details(self) -> dict[str, object]:
        """For a force field's account of itself."""
        found = {"noise": self.noise, "signal": self.signal}
        if self.candidates:
            best = min(self.candidates, key=lambda one: one.error)
            others = [(one, one.minus(best)) for one in self.candidates if one is not best]
            found["held_out_mse"] = best.error
            found["tried"] = [
                {"length_scale": one.length_scale, "ratio": one.ratio, "more": more.mean, "error": more.error}
                for one, more in others
            ]
        return found


def choose_scales(
    beads: Dataset,
    *,
    prior: Bonded | None = None,
    descriptor: Descriptor | None = None,
    kernel: str = "matern52",
    length_scale: float | str = "auto",
    noise: float | str = "auto",
    signal: float | str = "auto",
    progress: bool = False,
) -> Scales:
    """Length scale, noise and signal; what is "auto" from the data.

    The noise is estimated (`estimate_noise`). Length scale and signal are chosen together, by
    `gdml.coarse.hyperparameters`, unless both are given.

    Parameters
    ----------
    beads, prior, descriptor, kernel
        As of `fit`.
    length_scale : float or "auto"
    noise, signal : float, eV/Å, or "auto"
    progress : bool

    Raises
    ------
    DataError
        For frames without forces, and where one of length scale and signal is given alone.
    """
    beads.require_forces()
    if (length_scale == "auto") != (signal == "auto"):
        raise DataError("length_scale and signal are chosen together: give both, or none")
    difference = without_prior(beads, prior)
    plan = _plan(difference, _descriptor(beads, prior, descriptor), kernel)
    sigma = number_of("noise", noise) if noise != "auto" else estimate_noise(difference, plan.descriptor).mean ** 0.5
    if signal == "auto":
        best, tried = choose(plan, difference, progress)
        return Scales(best.length_scale, sigma, best.ratio * sigma, best.noise, tuple(tried))
    length, size = number_of("length_scale", length_scale), number_of("signal", signal)
    if not (0 < length < np.inf and 0 < size < np.inf and 0 < sigma < np.inf):
        raise DataError(f"length scale, noise and signal must be positive, not {length}, {sigma} and {size}")
    return Scales(length, sigma, size, regularisation(plan, difference, length, size / sigma))


def fit(
    beads: Dataset,
    *,
    prior: Bonded | None = None,
    descriptor: Descriptor | None = None,
    kernel: str = "matern52",
    scales: Scales | None = None,
    progress: bool = False,
    **options,
) -> ForceField:
    """One fit of all frames to their instantaneous forces, with the noise that these have.

    Beads are never exchanged with each other: give them any atomic numbers.

    Parameters
    ----------
    beads : Dataset
        With forces.
    prior : Bonded, optional
        See `fit_prior`. Subtracted from the forces, and part of the force field.
    descriptor : Descriptor, optional
        By default `default_descriptor`, with the bonds of the prior.
    kernel : str
    scales : Scales, optional
        By default those of `choose_scales`.
    progress : bool
    **options
        Of `gdml.fit`: solver, rank, rtol, backend, device, dtype, ...

    Returns
    -------
    ForceField
        Energies are free energies of the beads, up to a constant.

    Raises
    ------
    DataError, FitError, BaselineError
        As `gdml.fit`, `choose_scales` and `fit_prior`.
    """
    descriptor = _descriptor(beads, prior, descriptor)
    scales = scales or choose_scales(beads, prior=prior, descriptor=descriptor, kernel=kernel, progress=progress)
    return _fit(without_prior(beads, prior), prior, descriptor, kernel, scales, progress, options)


def fit_ensemble(
    beads: Dataset,
    variables: ArrayLike,
    *,
    n_models: int = 10,
    n_first: int = 500,
    n_second: int = 1000,
    bins: int = 20,
    prior: Bonded | None = None,
    descriptor: Descriptor | None = None,
    kernel: str = "matern52",
    scales: Scales | None = None,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> ForceField:
    """Two layers: models of samples, whose mean forces on other samples one model is trained on.

    All samples are `stratified`. The noise of the second layer is what the models differ by on its
    frames, over the root of their number.

    Source: J. Wang, S. Chmiela, K.-R. Müller, F. Noé, C. Clementi, J. Chem. Phys. 152, 194106 (2020).

    Parameters
    ----------
    beads, prior, descriptor, kernel, scales, progress, **options
        As of `fit`.
    variables : (M, k) array
        Collective variables of the frames.
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
    descriptor = _descriptor(beads, prior, descriptor)
    scales = scales or choose_scales(beads, prior=prior, descriptor=descriptor, kernel=kernel, progress=progress)
    difference, rng = without_prior(beads, prior), np.random.default_rng(seed)
    second = difference[stratified(variables, n_second, bins, rng)]
    forces = []
    with progress_bar("first layer", progress) as bar:
        for k in range(n_models):
            first = difference[stratified(variables, n_first, bins, rng)]
            model = _fit(first, None, descriptor, kernel, scales, False, options)
            forces.append(model.predict(second.positions).forces)
            if bar:
                bar(k + 1, n_models)
    averaged, spread = mean_forces(second, np.array(forces))
    left = max(spread, LEAST_RATIO * scales.signal)
    plan = _plan(second, descriptor, kernel)
    noise = regularisation(plan, second, scales.length_scale, scales.signal / left)
    finer = replace(scales, noise=left, regularisation=noise, candidates=())
    field = _fit(averaged, prior, descriptor, kernel, finer, progress, options)
    layers = {"n_models": n_models, "n_first": n_first, "n_second": n_second, "mean_force_noise": left}
    return replace(field, details=field.details | {"ensemble": layers} | {"coarse": scales.details})


def mean_forces(beads: Dataset, forces: np.ndarray) -> tuple[Dataset, float]:
    """Frames with the means of several models' forces (K, M, N, 3), and the standard error of these, eV/Å.

    The error is root mean square over the 3N - 6 internal components.
    """
    n_models, n_frames, n_beads, _ = forces.shape
    variance = forces.var(0, ddof=1).sum() / (n_frames * (3 * n_beads - 6))
    return replace(beads, forces=forces.mean(0)), float(np.sqrt(variance / n_models))


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


def _descriptor(beads: Dataset, prior: Bonded | None, given: Descriptor | None) -> Descriptor:
    if given is not None:
        return given
    bonds = [] if prior is None else prior.bonds[0].tolist()
    return default_descriptor(beads.n_atoms, bonds or None)


def _plan(beads: Dataset, descriptor: Descriptor, kernel: str) -> Plan:
    group = PermutationGroup.trivial(beads.n_atoms)
    return make_plan(beads, group, descriptor, kernel, 1.0, False, False, "auto", torch.device("cpu"))


def _fit(difference, prior, descriptor, kernel, scales: Scales, progress: bool, options: dict) -> ForceField:
    field = fit_forces(
        difference,
        symmetry="none",
        descriptor=descriptor,
        kernel=kernel,
        length_scale=scales.length_scale,
        noise=scales.regularisation,
        progress=progress,
        **options,
    )
    baseline = None if prior is None else Baseline((Term("bonded", prior.options),)).with_example(difference)
    return replace(field, baseline=baseline, details=field.details | {"coarse": scales.details})
