"""Relaxation of many geometries in one batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike
from torch import Tensor

from ..dynamics.forces import BatchedForces, batched
from ..errors import DataError, DeviceError, MemoryBudgetError, MissingExtraError, ModelMismatchError
from ..minima import check_free
from ..progress import progress_bar
from .optimisers import OPTIMISERS

NOT_OF_A_GEOMETRY = (DeviceError, MemoryBudgetError, MissingExtraError, ModelMismatchError, torch.OutOfMemoryError)


@dataclass(frozen=True, eq=False)
class Relaxed:
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
    forces_at, batch = forces_of(source, atoms), Batch(start, OPTIMISERS[optimiser](start))
    batch.travel(lambda step: Look(*forces_at(batch.current)), fmax, max_steps, "relaxing", progress)
    return Relaxed(**batch.arrays())


class Look(NamedTuple):
    """What is seen from where m geometries are on their way.

    Attributes
    ----------
    energy : (m,) tensor, eV
    forces : (m, N, 3) tensor, eV/Å
        By which it is judged whether they have arrived; NaN where these fail.
    may_end : (m,) bool tensor, or True
    along : (m, N, 3) tensor, optional
        The part of the forces that the optimiser follows; by default all.
    more : (m, N, 3) tensor, Å, optional
        Displacements besides those of the optimiser.
    """

    energy: Tensor
    forces: Tensor
    may_end: Tensor | bool = True
    along: Tensor | None = None
    more: Tensor | None = None


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

    def travel(
        self, look: Callable[[int], Look], fmax: float, max_steps: int, description: str, progress: bool
    ) -> None:
        """Look, and take a step, until all are done."""
        with progress_bar(description, progress) as bar:
            for step in range(max_steps + 1):
                seen = look(step)
                self._note(seen, fmax, step)
                if bar:
                    bar(int(len(self.positions) - (~self.done).sum()), len(self.positions), f"step {step}")
                if bool(self.done.all()) or step == max_steps:
                    return
                self._move(seen)

    def _note(self, seen: Look, fmax: float, step: int) -> None:
        """Which of those on their way are done, or have failed."""
        largest = torch.linalg.vector_norm(seen.forces, dim=2).amax(1)
        self.energy[self.here], self.largest[self.here], self.steps[self.here] = seen.energy, largest, step
        self.done = ((largest <= fmax) & seen.may_end) | ~largest.isfinite()

    def _move(self, seen: Look) -> None:
        """A step of all that are not done."""
        stay = ~self.done
        if not bool(stay.all()):
            self.here = self.here[stay]
            self.optimiser.keep(stay)
        along = seen.forces if seen.along is None else seen.along
        step = self.optimiser.step(along[stay])
        self.positions[self.here] += step if seen.more is None else step + seen.more[stay]

    def arrays(self) -> dict[str, np.ndarray]:
        """What `Relaxed` has."""
        converged = torch.ones_like(self.steps, dtype=torch.bool)
        converged[self.here] = self.done
        converged &= self.largest.isfinite()
        found = {name: getattr(self, name) for name in ("positions", "energy", "largest", "steps")}
        return {name: value.cpu().numpy() for name, value in (found | {"converged": converged}).items()}


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
    check_free(atoms)
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
