"""The free ring polymer: its normal modes, and their exact motion or one that is stable at any frequency."""

import math

import numpy as np
import torch
from ase import units
from torch import Tensor

HBAR = units._hbar * units.J * units.second  # in ASE's units of energy and time

PROPAGATORS = ("cayley", "exact")


class NormalModes:
    r"""Normal modes of a ring of beads that are tied to their neighbours by springs.

    In the modes, q_k = Σ_j C_kj q_j, the ring's energy is a sum of independent
    oscillators,

    .. math:: \omega_k = 2 \omega_P \sin(k \pi / P), \qquad \omega_P = P k_B T / \hbar.

    Source: M. Ceriotti, M. Parrinello, T. E. Markland, D. E. Manolopoulos,
    J. Chem. Phys. 133, 124104 (2010).

    Parameters
    ----------
    n_beads : int
        P.
    temperature_K : float

    Attributes
    ----------
    frequencies : (P,) tensor
        ω_k in ASE's units of inverse time.
    """

    def __init__(self, n_beads: int, temperature_K: float, device: torch.device | str = "cpu"):
        k = np.arange(n_beads)
        spring = n_beads * units.kB * temperature_K / HBAR
        self.spring_frequency = spring
        self.frequencies = torch.tensor(2 * spring * np.sin(k * math.pi / n_beads), device=device)
        self.matrix = torch.tensor(_orthogonal(n_beads), device=device)

    def from_beads(self, x: Tensor) -> Tensor:
        """Modes (R, P, N, 3) of what beads (R, P, N, 3) have."""
        return (self.matrix @ x.flatten(2)).view_as(x)

    def to_beads(self, x: Tensor) -> Tensor:
        """The inverse."""
        return (self.matrix.T @ x.flatten(2)).view_as(x)

    def spring_energy(self, q: Tensor, masses: Tensor) -> Tensor:
        """Energy (R,) of the springs, from the modes q (R, P, N, 3)."""
        return 0.5 * (masses * self.frequencies.view(-1, 1, 1) ** 2 * q**2).sum((1, 2, 3))

    def propagator(self, time: float, kind: str) -> "FreeMotion":
        """Motion of the free ring for a time, which is half a step of the integrator."""
        # Of the modes, both propagators are rotations in phase space. The exact angle grows
        # without bound, that of Cayley's form for half a step stays below a right angle.
        angle = self.frequencies * time
        return FreeMotion(self.frequencies, time, torch.arctan(angle) if kind == "cayley" else angle)


class FreeMotion:
    r"""Rotation of each mode in its phase space; the centroid flies freely.

    With the angle ω t this is exact. With arctan(ω t) it is the square root of
    Cayley's map of a whole step 2 t: of second order, and stable together with
    other forces where the exact one has resonances.

    Source: R. Korol, J. L. Rosa-Raíces, N. Bou-Rabee, T. F. Miller III,
    J. Chem. Phys. 152, 104102 (2020).
    """

    def __init__(self, frequencies: Tensor, time: float, angle: Tensor):
        is_free = frequencies == 0
        omega = frequencies.masked_fill(is_free, 1.0)
        self.cos = torch.cos(angle).view(-1, 1, 1)
        self.sin_by_omega = (torch.sin(angle) / omega).masked_fill(is_free, time).view(-1, 1, 1)
        self.omega_sin = (frequencies * torch.sin(angle)).view(-1, 1, 1)

    def __call__(self, q: Tensor, p: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and momenta (R, P, N, 3) of the modes after the time; masses (N, 1)."""
        return self.cos * q + self.sin_by_omega * p / masses, self.cos * p - self.omega_sin * masses * q


def _orthogonal(n_beads: int) -> np.ndarray:
    """Real Fourier matrix (P, P): constant, cosines, (alternating,) sines."""
    k, j = np.meshgrid(np.arange(n_beads), np.arange(n_beads), indexing="ij")
    phase = 2 * math.pi * j * k / n_beads
    matrix = np.sqrt(2 / n_beads) * np.where(2 * k < n_beads, np.cos(phase), np.sin(phase))
    matrix[0] = 1 / math.sqrt(n_beads)
    if n_beads % 2 == 0:
        matrix[n_beads // 2] = (-1.0) ** np.arange(n_beads) / math.sqrt(n_beads)
    return matrix
