"""Saddle points, found from many geometries in one batch by following their softest modes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import DataError
from ..geometry import rigid_motions
from .optimisers import OPTIMISERS
from .relaxation import Batch, Look, Relaxed, check_optimisation, checked_starts, forces_of

LENGTH = 0.01  # Å, between two geometries whose forces' difference is a product with the Hessian
FIRST, LATER = 12, 3  # improvements of a mode, at the beginning and at each step
SHORTEST, LONGEST = 0.05, 0.15  # Å, along a mode, of all atoms together; the first where it curves upwards
TINY = 1e-8  # of a direction that is nothing new


@dataclass(frozen=True, eq=False)
class Climbed(Relaxed):
    """Where M geometries came to, as in `Relaxed`; those that have converged have negative curvature, too.

    Attributes
    ----------
    modes : (M, N, 3) array
        The direction of least curvature, normalised.
    curvature : (M,) array, eV/Å²
        Along it.
    """

    modes: np.ndarray
    curvature: np.ndarray


def climb_many(
    source: object,
    atoms: Atoms,
    positions: ArrayLike | Tensor,
    modes: ArrayLike | Tensor,
    *,
    fmax: float = 0.01,
    max_steps: int = 300,
    optimiser: str = "lbfgs",
    device: str = "cpu",
    progress: bool = False,
) -> Climbed:
    r"""Climb to saddle points from many geometries at once, at a fixed cell.

    Each climbs along its mode τ of least curvature C, by the step -(F · τ) / \|C\| of Newton's method for a
    maximum, and relaxes in all other directions. The mode is improved at each step by differences of forces (dimers).

    Source: L. J. Munro, D. J. Wales, Phys. Rev. B 59, 3969 (1999), hybrid eigenvector-following;
    G. Henkelman, H. Jónsson, J. Chem. Phys. 111, 7010 (1999), dimers. The mode is found as in
    A. V. Knyazev, SIAM J. Sci. Comput. 23, 517 (2001).

    Parameters
    ----------
    source : ForceField, callable or ASE calculator
        Of forces; as `gdml.dynamics.forces.batched` takes it.
    atoms : Atoms
        Which atoms, their cell and what is periodic; their positions are not used.
    positions : (M, N, 3) array or tensor, Å
    modes : (M, N, 3) array or tensor
        Guesses of modes, of any length; where there is no slope, a climb begins along them.
    fmax, max_steps, optimiser, device, progress
        As of `relax_many`.

    Returns
    -------
    Climbed
        Those that have not converged are marked; it is no error.

    Raises
    ------
    DataError, ModelMismatchError
        As `relax_many`, and for modes of another shape, or zero.
    """
    start = checked_starts(atoms, positions, device)
    check_optimisation(fmax, max_steps, optimiser)
    given = torch.as_tensor(modes, dtype=torch.float64, device=device).clone()
    if given.shape != start.shape or not bool((_norms(given.flatten(1)) > 0).all()):
        raise DataError(f"modes must be {tuple(start.shape)} as positions, and not zero")
    batch = Batch(start, OPTIMISERS[optimiser](start))
    climber = _Climber(forces_of(source, atoms), not atoms.pbc.any(), given.flatten(1))
    batch.travel(lambda step: climber.look(batch, LATER if step else FIRST), fmax, max_steps, "climbing", progress)
    curvature, found = climber.curvature.cpu().numpy(), climber.modes.view_as(start).cpu().numpy()
    return Climbed(**batch.arrays(), modes=found, curvature=curvature)


class _Climber:
    """The modes (M, 3N) of least curvature of geometries, and steps along them."""

    def __init__(self, forces, rotations: bool, modes: Tensor):
        self.forces, self.rotations, self.modes = forces, rotations, modes
        self.curvature = torch.full_like(modes[:, 0], torch.nan)

    def look(self, batch: Batch, repeats: int) -> Look:
        """Where those on their way stand, once their modes are improved."""
        here, positions = batch.here, batch.current
        energy, forces = self.forces(positions)
        self._improve(here, positions, forces, repeats)
        curvature = self.curvature[here]
        forces = torch.where(curvature.isnan()[:, None, None], torch.nan, forces)
        return Look(energy, forces, curvature < 0, *self._split(here, forces))

    def _improve(self, here: Tensor, positions: Tensor, forces: Tensor, repeats: int) -> None:
        """Improve modes of some geometries, at the positions where they are now; curvature is NaN where forces fail."""
        inside = without_rigid_motions(positions, self.rotations)

        def product(v: Tensor) -> Tensor:
            moved = self.forces(positions + LENGTH * v.view_as(positions))[1]
            found = inside((forces - moved).flatten(1) / LENGTH)
            failed.logical_or_(~found.isfinite().all(1))  # forces fail here, or nearby
            return torch.where(failed[:, None], 0.0, found)

        failed = torch.zeros(len(here), dtype=torch.bool, device=positions.device)
        mode = inside(self.modes[here])
        mode, curvature = softest_mode(product, mode / _norms(mode), repeats)
        turned = (mode * self.modes[here]).sum(1, keepdim=True) < 0
        self.modes[here] = torch.where(turned, -mode, mode)
        self.curvature[here] = torch.where(failed, torch.nan, curvature)

    def _split(self, here: Tensor, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Forces across the modes, and displacements along them."""
        modes, curvature = self.modes[here], self.curvature[here]
        along = (forces.flatten(1) * modes).sum(1)
        size = (along / curvature).abs()
        climbing = curvature > 0
        size = torch.where(climbing, size.clamp_min(SHORTEST), size).clamp_max(LONGEST)
        # Uphill, or where there is no slope, on in the direction of the mode.
        sign = torch.where(along.abs() > TINY, -along.sign(), 1.0)
        step = ((sign * size)[:, None] * modes).view_as(forces)
        return forces - (along[:, None] * modes).view_as(forces), step


def without_rigid_motions(positions: Tensor, rotations: bool) -> Callable[[Tensor], Tensor]:
    """A callable that takes translations, and rotations, out of displacements (M, 3N) of geometries (M, N, 3)."""
    left, sizes, _ = torch.linalg.svd(rigid_motions(positions, rotations), full_matrices=False)
    left = left * (sizes > 1e-4 * sizes[:, :1])[:, None]  # a linear molecule has a rotation less
    return lambda v: v - (left @ (left.mT @ v[..., None]))[..., 0]


def softest_mode(product, mode: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Directions (M, n) of least curvature, and the curvatures (M,), improved from guesses of length one.

    Each time the best of the plane, or space, of the guess, its residual and the last change.

    Parameters
    ----------
    product : callable((M, n)) -> (M, n)
        Products with the Hessians.
    """
    image = product(mode)
    change, change_image = torch.zeros_like(mode), torch.zeros_like(mode)
    for _ in range(repeats):
        residual = image - (mode * image).sum(1, keepdim=True) * mode
        basis, images = [mode], [image]
        for vector, its_image in ((residual, None), (change, change_image)):
            vector, its_image = _orthogonal(vector, its_image, basis, images)
            basis.append(vector)
            images.append(product(vector) if its_image is None else its_image)
        weights = _lowest(torch.stack(basis, 2), torch.stack(images, 2))
        change, change_image = (sum(w[:, None] * v for w, v in zip(weights.T[1:], of[1:])) for of in (basis, images))
        mode, image = weights[:, :1] * mode + change, weights[:, :1] * image + change_image
    return mode, (mode * image).sum(1)


def _orthogonal(vector: Tensor, image: Tensor | None, basis: list[Tensor], images: list[Tensor]):
    """What of a vector (M, n) is new, of length one, or zero where nothing is; and of its image."""
    before = _norms(vector)
    for own, its_image in zip(basis, images):
        part = (own * vector).sum(1, keepdim=True)
        vector = vector - part * own
        image = None if image is None else image - part * its_image
    size = _norms(vector)
    factor = torch.where(size > TINY * before.clamp_min(TINY), 1 / size, 0.0)
    return factor * vector, None if image is None else factor * image


def _lowest(basis: Tensor, images: Tensor) -> Tensor:
    """Weights (M, k) of orthonormal directions (M, n, k), some zero, in the eigenvector of least curvature."""
    matrix = basis.mT @ images
    matrix = 0.5 * (matrix + matrix.mT)
    missing = basis.square().sum(1) < 0.5
    largest = matrix.diagonal(dim1=1, dim2=2).abs().amax(1) + 1.0
    matrix = matrix + torch.diag_embed(torch.where(missing, 10 * largest[:, None], 0.0))
    weights = torch.linalg.eigh(matrix)[1][:, :, 0]
    return torch.where(weights[:, :1] < 0, -weights, weights)


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
