r"""Turns about bonds at random, by which positions say what forces along dihedral angles are.

Instantaneous forces say little about dihedral angles: their noise there is many times what is to be learned. But
frames at equilibrium say more than their forces. Let every dihedral angle φ of a frame be turned by τ, from a normal
distribution of width w. The free energy A of the frames that come out is that of the data but for a smoothing by w,
and for each of them both

.. math:: -kT \, \frac{\tau}{w^2} \qquad \text{and} \qquad -\frac{\partial U}{\partial \phi}

have the mean -∂A/∂φ: the first is denoising score matching, the second the matching of forces. The noise of the first
is kT / w, for 300 K and 0.15 rad 0.17 eV, whatever the atoms do. Their mean with the inverse variances as weights is
taken; all other generalised forces stay as they are. Both means hold wherever a frame has come to. So of many copies
of a frame with other turns those may be trained on that are where few are, as on barriers.

Source: P. Vincent, Neural Comput. 23, 1661 (2011); with forces, and turns of no kind but displacements of all beads,
A. Durumeric, Y. Chen, F. Noé, C. Clementi, arXiv:2407.01286 (2024).
"""

from dataclasses import replace

import numpy as np
import torch
from ase import units

from ..baselines import Bonded
from ..dataset import Dataset
from ..dynamics.classical import check_settings
from .motions import Motions
from .prior import without_prior


def turned(
    beads: Dataset,
    motions: Motions,
    temperature_K: float,
    width: float,
    prior: Bonded | None,
    rng: np.random.Generator,
) -> Dataset:
    """Frames turned about their bonds, with forces that know the density of the data along these turns.

    Parameters
    ----------
    beads : Dataset
        With forces, and from the ensemble at the temperature.
    motions : Motions
    temperature_K : float
    width : float
        Of the turns, radians.
    prior : Bonded or None
        Without which variances are found that weigh forces.
    rng : numpy.random.Generator

    Returns
    -------
    Dataset
        Forces have no net force and torque.

    Raises
    ------
    DataError
        For settings that make no sense, and frames without forces.
    """
    check_settings(temperature_K=temperature_K, width=width)
    positions, forces = torch.tensor(beads.positions), torch.tensor(beads.require_forces())
    above = torch.tensor(without_prior(beads, prior).forces)
    variances = motions.generalised(positions, above)[:, motions.turns].square().mean(0)
    of_density = (units.kB * temperature_K / width) ** 2
    weights = variances / (variances + of_density)
    angles = width * torch.tensor(rng.normal(size=(len(beads), len(motions.turns))))
    g = motions.generalised(positions, forces)
    g[:, motions.turns] *= 1 - weights
    g[:, motions.turns] -= weights * units.kB * temperature_K / width**2 * angles
    positions = motions.turned(positions, angles)
    return replace(beads, positions=positions.numpy(), forces=motions.cartesian(positions, g).numpy())
