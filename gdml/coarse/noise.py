r"""The noise of instantaneous forces, from the data alone.

The force on beads depends on atoms that beads do not show: over frames with the same beads it has a mean, which is
to be learned, and a variance, which is the noise of the training system. No two frames have the same beads. But
half the mean squared difference γ of forces of frames that are δ apart (squared, in the descriptor) goes to the
noise σ² as δ goes to zero; over near neighbours,

.. math:: \gamma = \sigma^2 + A \delta .

Forces are compared after one frame has been turned onto the other, and without their parts along rigid motions.

Source: A. Stefánsson, N. Končar, A. J. Jones, Neural Comput. Appl. 5, 131 (1997), the Gamma test.
"""

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..dataset import Dataset
from ..descriptors import Descriptor
from ..dynamics.averages import Average
from ..errors import DataError
from ..geometry import internal_basis

NEIGHBOURS = 10
FEWEST = 50  # frames
BLOCKS = 20  # of frames, each left out once for the error


def estimate_noise(beads: Dataset, descriptor: Descriptor) -> Average:
    """The variance of each internal component of the instantaneous forces about their mean, (eV/Å)².

    Parameters
    ----------
    beads : Dataset
        With forces, less the prior's if there is one, since what is stiff has no near neighbours.
    descriptor : Descriptor
        By which neighbours are found, such as `default_descriptor`.

    Returns
    -------
    Average
        With a standard error by leaving out blocks of the frames.

    Raises
    ------
    DataError
        For fewer than fifty frames, and frames without forces.
    """
    if len(beads) < FEWEST:
        raise DataError(f"{len(beads)} frames are too few to estimate their noise; at least {FEWEST} are needed")
    forces, positions = torch.tensor(beads.require_forces()), torch.tensor(beads.positions)
    bound = descriptor.bound(beads.numbers, beads.positions, beads.pbc)
    x = bound.evaluate(positions).x.numpy()
    distances, neighbours = cKDTree(x).query(x, NEIGHBOURS + 1)
    basis = internal_basis(positions)
    forces = torch.einsum("mik,mjk,mj->mi", basis, basis, forces.flatten(1)).view_as(forces)
    squares = np.empty((len(beads), NEIGHBOURS))
    for k in range(NEIGHBOURS):
        other = torch.tensor(neighbours[:, k + 1])
        turned = forces[other] @ _turns(positions[other], positions)
        squares[:, k] = (forces - turned).square().sum((1, 2)).numpy() / (2 * basis.shape[2])
    separations = distances[:, 1:] ** 2
    everything = _intercept(separations, squares)
    parts = np.array_split(np.arange(len(beads)), BLOCKS)
    without = [_intercept(np.delete(separations, some, 0), np.delete(squares, some, 0)) for some in parts]
    return Average(everything, float(np.sqrt((BLOCKS - 1) * np.var(without))))


def _turns(moved: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
    """Rotations (M, 3, 3), to be applied from the right, that bring frames (M, N, 3) onto others best (Kabsch)."""
    a, b = (r - r.mean(1, keepdim=True) for r in (moved, still))
    left, _, right = torch.linalg.svd(a.mT @ b)
    sign = torch.linalg.det(left @ right)
    left = torch.cat([left[..., :2], left[..., 2:] * sign[:, None, None]], 2)
    return left @ right


def _intercept(separations: np.ndarray, squares: np.ndarray) -> float:
    """γ at δ = 0 by a line through the means over frames of each order of neighbours."""
    return float(np.polynomial.Polynomial.fit(separations.mean(0), squares.mean(0), 1)(0.0))
