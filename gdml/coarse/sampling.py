"""Dynamics of many replicas in one batch, for averages over the beads' distribution."""

from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import ArrayLike
from torch import Tensor

from ..baselines import Bonded
from ..dynamics.classical import check_settings
from ..dynamics.forces import batched, source_of
from ..dynamics.overdamped import OverdampedLangevin
from ..dynamics.ring_polymer import RingPolymerMD
from ..errors import DataError, DynamicsError
from ..force_field import ForceField
from ..progress import progress_bar

OUTSIDE = 2.0  # widths of the range of a distance in training: farther out forces are invented


def sample(
    forces: ForceField | Bonded | Callable,
    starts: ArrayLike,
    *,
    temperature_K: float,
    steps: int,
    interval: int = 50,
    dynamics: str = "langevin",
    timestep_fs: float = 2.0,
    friction_per_fs: float = 1e-3,
    diffusion: float = 5e-5,
    masses: ArrayLike | None = None,
    numbers: ArrayLike | None = None,
    max_outside: float | None = OUTSIDE,
    seed: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Positions of replicas along Langevin dynamics, ordinary or overdamped.

    What they are distributed by is the same for both, and does not depend on masses, friction or diffusion; low
    friction reaches it soonest.

    Parameters
    ----------
    forces : ForceField, Bonded or callable
        A callable takes positions (R, N, 3), as a tensor, and gives energies (R,) and forces (R, N, 3).
    starts : (R, N, 3) array, Å
    temperature_K : float
    steps, interval : int
        Steps, and between what is kept; the start is not.
    dynamics : {"langevin", "overdamped"}
        The first is `RingPolymerMD` with one bead for each particle, the second `OverdampedLangevin`.
    timestep_fs, friction_per_fs : float
        Of ordinary dynamics, ...
    diffusion : float, Å²/fs
        ... and of overdamped ones, with the same time step; see `OverdampedLangevin` for what is stable.
    masses : (N,) array, amu, optional
        By default 12 for each.
    numbers : (N,) int array, optional
        By default those of the force field, or of carbon.
    max_outside : float or None
        As of `RingPolymerMD`; for both.
    seed : int, optional
    progress : bool

    Returns
    -------
    (steps // interval, R, N, 3) array, Å

    Raises
    ------
    DataError
        For settings that make no sense.
    DynamicsError
        If replicas leave the region of the training data.
    """
    starts = np.asarray(starts, dtype=float)
    if starts.ndim != 3 or starts.shape[2] != 3 or not len(starts):
        raise DataError(f"starts are (replicas, beads, 3), not {starts.shape}")
    check_settings(temperature_K=temperature_K, timestep_fs=timestep_fs, friction_per_fs=friction_per_fs)
    check_settings(diffusion=diffusion, steps=steps, interval=interval)
    if steps < interval:
        raise DataError(f"nothing is kept of {steps} steps, when each {interval}th is; take more steps")
    numbers = getattr(forces, "numbers", np.full(starts.shape[1], 6)) if numbers is None else np.asarray(numbers)
    masses = np.full(len(numbers), 12.0) if masses is None else np.asarray(masses, dtype=float)
    replicas = [Atoms(numbers, r, masses=masses) for r in starts]
    rng = np.random.default_rng(seed)
    if dynamics == "langevin":
        options = {"temperature_K": temperature_K, "n_beads": 1, "tau": units.fs / friction_per_fs}
        options |= {"forces": forces, "max_outside": max_outside, "rng": rng}
        run = RingPolymerMD(replicas, timestep_fs * units.fs, **options)
    elif dynamics == "overdamped":
        run = _overdamped(forces, replicas, temperature_K, diffusion * timestep_fs, max_outside, rng)
    else:
        raise DataError(f"dynamics are 'langevin' or 'overdamped', not {dynamics!r}")
    return _kept(run, steps, interval, starts.shape, progress)


def _overdamped(forces, replicas, temperature_K, step, max_outside, rng) -> OverdampedLangevin:
    source = source_of(forces, replicas[0])
    evaluate, judge = batched(source, replicas[0]), getattr(source, "farthest_outside", None)
    calls = 0

    def of(positions: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if judge is not None and max_outside is not None and calls % 10 == 0:
            widths, worst = judge(positions)
            if widths > max_outside:
                raise DynamicsError(
                    f"at step {calls}: beads {worst.atoms[0]} and {worst.atoms[1]} are {worst.distance:.3f} Å apart, "
                    f"in training {worst.shortest:.3f} to {worst.longest:.3f} Å; take a shorter step, or a prior"
                )
        return evaluate(positions, None, False).forces

    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    positions = torch.tensor(np.array([atoms.positions for atoms in replicas]))
    return OverdampedLangevin(of, positions, units.kB * temperature_K, step, generator)


def _kept(run, steps: int, interval: int, shape: tuple[int, ...], progress: bool) -> np.ndarray:
    kept = np.empty((steps // interval, *shape))
    with progress_bar("dynamics", progress) as bar:
        for k in range(len(kept)):
            run.run(interval)
            kept[k] = run.positions.reshape(shape).cpu().numpy()
            if bar:
                bar(k + 1, len(kept))
    return kept
