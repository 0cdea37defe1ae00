"""Relaxation of many geometries in one batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike
from torch import Tensor

from ..dynamics.forces import BatchedForces, batched
from ..errors import DataError, DeviceError, MemoryBudgetError, MissingExtraError, ModelMismatchError
from ..progress import progress_bar
from .optimisers import OPTIMISERS

NOT_OF_A_GEOMETRY = (DeviceError, MemoryBudgetError, MissingExtraError, ModelMismatchError, torch.OutOfMemoryError)


class Relaxed(NamedTuple):
    """Where M geometries came to.

    Attributes
    ----------
    positions : (M, N, 3) array, Å
    energy : (M,) array, eV
        NaN where forces failed.
    largest : (M,) array, eV/Å
        The largest force on an atom.
    converged : (M,) bool array
    steps : (M,) int array
    """

    positions: np.ndarray
    energy: np.ndarray
    largest: np.ndarray
    converged: np.ndarray
    steps: np.ndarray


def relax_many(
    source: object,
    atoms: Atoms,
    positions: ArrayLike | Tensor,
    *,
    fmax: float = 0.01,
    max_steps: int = 500,
    optimiser: str = "lbfgs",
    device: str = "cpu",
    progress: bool = False,
) -> Relaxed:
    """Relax many geometries of the same atoms at once, at a fixed cell.

    All that have not converged take a step with one call for the forces. One whose forces fail is left
    where it was, and the others go on.

    Parameters
    ----------
    source : ForceField, callable or ASE calculator
        Of forces; as `gdml.dynamics.forces.batched` takes it.
    atoms : Atoms
        Which atoms, their cell and what is periodic; their positions are not used.
    positions : (M, N, 3) array or tensor, Å
    fmax : float
        Of the largest force on an atom at the end, eV/Å.
    max_steps : int
    optimiser : {"lbfgs", "fire"}
    device : str
        Of the positions.
    progress : bool

    Returns
    -------
    Relaxed
        Those that have not converged are marked; it is no error.

    Raises
    ------
    DataError
        For positions of other atoms, constraints, or settings that make no sense.
    ModelMismatchError
        For a force field of other atoms.
    Exception
        What the source raises, if it has no forces for any of them, or where that is not of a geometry.
    """
    start = checked_starts(atoms, positions, device)
    check_optimisation(fmax, max_steps, optimiser)
    forces_at = forces_of(source, atoms)
    batch = Batch(start, OPTIMISERS[optimiser](start))
    with progress_bar("relaxing", progress) as bar:
        for step in range(max_steps + 1):
            energy, forces = forces_at(batch.current)
            done = batch.note(energy, forces, fmax, step)
            if bar:
                bar(int(len(start) - (~done).sum()), len(start), f"step {step}")
            if bool(done.all()) or step == max_steps:
                break
            batch.move(forces)
    return batch.result()


class Batch:
    """Geometries on their way, of which those that are done leave."""

    def __init__(self, start: Tensor, optimiser: object):
        self.positions, self.optimiser = start.clone(), optimiser
        self.here = torch.arange(len(start), device=start.device)  # those on their way
        self.energy = start.new_full(start.shape[:1], torch.nan)
        self.largest = torch.full_like(self.energy, torch.inf)
        self.steps = torch.zeros_like(self.here)

    @property
    def current(self) -> Tensor:
        """Positions of those on their way."""
        return self.positions[self.here]

    def note(self, energy: Tensor, forces: Tensor, fmax: float, step: int, may_end: Tensor | bool = True) -> Tensor:
        """Take in what the forces are; of those on their way, which are done, or have failed."""
        largest = torch.linalg.vector_norm(forces, dim=2).amax(1)
        self.energy[self.here], self.largest[self.here], self.steps[self.here] = energy, largest, step
        self.done = ((largest <= fmax) & may_end) | ~largest.isfinite()
        return self.done

    def move(self, forces: Tensor, more: Tensor | float = 0.0) -> None:
        """A step along forces (M, N, 3) of all that are not done, and another displacement (M, N, 3)."""
        stay = ~self.done
        if not bool(stay.all()):
            self.here = self.here[stay]
            self.optimiser.keep(stay)
        more = more[stay] if isinstance(more, Tensor) else more
        self.positions[self.here] += self.optimiser.step(forces[stay]) + more

    def result(self) -> Relaxed:
        converged = torch.ones_like(self.steps, dtype=torch.bool)
        converged[self.here] = self.done
        converged &= self.largest.isfinite()
        return Relaxed(*(t.cpu().numpy() for t in (self.positions, self.energy, self.largest, converged, self.steps)))


def forces_of(source: object, atoms: Atoms) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A callable from positions (M, N, 3) to energies (M,) and forces (M, N, 3), NaN where these fail.

    Where they fail for all geometries from the beginning, it raises what was the matter.
    """
    evaluate = batched(source, atoms)
    cell = torch.tensor(atoms.cell.array) if atoms.pbc.any() else None
    has_worked = False

    def forces(positions: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal has_worked
        cells = None if cell is None else cell.to(positions.device).expand(len(positions), 3, 3)
        found = _as_far_as_possible(evaluate, positions, cells)
        has_worked = has_worked or bool(found[0].isfinite().any())
        if not has_worked:
            evaluate(positions[:1], None if cells is None else cells[:1], False)
        return found

    return forces


def _as_far_as_possible(evaluate: BatchedForces, positions: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
    """Energies and forces; those that cannot be had are found by halving the batch, and are NaN."""
    try:
        energy, forces, _ = evaluate(positions, cells, False)
        return energy.to(positions), forces.to(positions)
    except NOT_OF_A_GEOMETRY:
        raise
    except Exception:  # calculators raise whatever they like
        if len(positions) == 1:
            return positions.new_full((1,), torch.nan), torch.full_like(positions, torch.nan)
    half = len(positions) // 2
    found = [
        _as_far_as_possible(evaluate, positions[some], None if cells is None else cells[some])
        for some in (slice(None, half), slice(half, None))
    ]
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def checked_starts(atoms: Atoms, positions: ArrayLike | Tensor, device: str) -> Tensor:
    """Positions (M, N, 3) of these atoms as a tensor.

    Raises
    ------
    DataError
    """
    if atoms.constraints:
        raise DataError(
            f"the atoms have constraints ({', '.join(type(c).__name__ for c in atoms.constraints)}); remove them, or "
            "relax one by one with ASE's optimisers"
        )
    given = positions if isinstance(positions, Tensor) else torch.tensor(np.asarray(positions, dtype=float))
    start = given.to(device, torch.float64)
    if start.ndim != 3 or start.shape[1:] != (len(atoms), 3) or not len(start):
        raise DataError(f"positions are (M, {len(atoms)}, 3) of these atoms, not {tuple(start.shape)}")
    if not bool(start.isfinite().all()):
        raise DataError("positions contain NaN or infinite values")
    return start


def check_optimisation(fmax: float, max_steps: int, optimiser: str) -> None:
    """Raise unless these make sense.

    Raises
    ------
    DataError
    """
    if not 0 < fmax < np.inf:
        raise DataError(f"fmax must be positive and finite, but it is {fmax}")
    if max_steps < 1:
        raise DataError(f"max_steps must be at least 1, but it is {max_steps}")
    if optimiser not in OPTIMISERS:
        raise DataError(f"the optimiser is one of {', '.join(OPTIMISERS)}, not {optimiser!r}")
