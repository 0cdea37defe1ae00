r"""The noise of instantaneous forces, from the data alone.

The force on beads depends on atoms that beads do not show: over frames with the same beads it has a mean, which is
to be learned, and a covariance, which is the noise of the training system. It is far from the same in all
directions: bonds to atoms that are in no bead pull hard, and little of that turns a dihedral angle. So it is
estimated as a matrix C of the generalised forces g along bonds, angles and dihedrals (`gdml.coarse.motions`). No two
frames have the same beads. But half the mean product Γ of the differences of g between frames that are δ apart
(squared, in the descriptor) goes to the noise as δ goes to zero; over near neighbours,

.. math:: \Gamma = \frac{1}{2} \langle \Delta g \, \Delta g^{\mathsf T} \rangle = C + A \delta .

Source: A. Stefánsson, N. Končar, A. J. Jones, Neural Comput. Appl. 5, 131 (1997), the Gamma test, of one variable.
"""

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..dataset import Dataset
from ..descriptors import Descriptor
from ..errors import DataError
from .motions import Motions

NEIGHBOURS = 10
FEWEST = 50  # frames
LEAST = 1e-2  # of the variance along each eigenvector of Γ, that is noise


def estimate_noise(beads: Dataset, descriptor: Descriptor, motions: Motions) -> np.ndarray:
    """The covariance of instantaneous generalised forces about their mean.

    Parameters
    ----------
    beads : Dataset
        With forces, less the prior's if there is one, since what is stiff has no near neighbours.
    descriptor : Descriptor
        By which neighbours are found, such as `default_descriptor`.
    motions : Motions

    Returns
    -------
    (q, q) array
        In (eV/Å)² of bonds and eV² of angles and dihedrals, in radians; positive definite.

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
    g = motions.generalised(positions, forces).numpy()
    products = []
    for k in range(1, NEIGHBOURS + 1):
        difference = g - g[neighbours[:, k]]
        products.append(difference.T @ difference / (2 * len(g)))
    products, separations = np.array(products), (distances[:, 1:] ** 2).mean(0)
    intercepts = np.polynomial.polynomial.polyfit(separations, products.reshape(NEIGHBOURS, -1), 1)[0]
    return _positive(intercepts.reshape(g.shape[1], -1), products.mean(0))


def _positive(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A symmetric matrix with eigenvalues of at least a part of those of another one, that is positive definite."""
    lower = np.linalg.cholesky(scale)
    inverse = np.linalg.inv(lower)
    values, vectors = np.linalg.eigh(inverse @ (0.5 * (matrix + matrix.T)) @ inverse.T)
    half = lower @ vectors
    return half * np.maximum(values, LEAST) @ half.T
