r"""Overdamped Langevin (Brownian) dynamics of many replicas in one batch.

.. math:: dx = \frac{D}{k_B T} F \, dt + \sqrt{2 D} \, dW

A step takes the mean of two successive random numbers, by which the distribution is of second order in the step, and
exact in a harmonic potential:

.. math:: x_{n+1} = x_n + \frac{h D}{k_B T} F(x_n) + \sqrt{2 D h} \, \tfrac12 (\xi_n + \xi_{n+1})

Source: B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import DynamicsError

CHECK_INTERVAL = 10


class OverdampedLangevin:
    """Positions of replicas, and steps of them.

    Parameters
    ----------
    forces : callable
        From positions (R, N, 3) in Å to forces (R, N, 3) in eV/Å.
    positions : (R, N, 3) tensor, Å
        The start.
    kt : float, eV
    step : float, Å²
        D h, the diffusion constant times the time step: half of the mean square motion of a free coordinate.
        Stable below 2 kT over the largest eigenvalue of the Hessian.
    generator : torch.Generator

    Attributes
    ----------
    positions : (R, N, 3) tensor, Å
    n_steps : int
    """

    def __init__(
        self,
        forces: Callable[[Tensor], Tensor],
        positions: Tensor,
        kt: float,
        step: float,
        generator: torch.Generator,
    ):
        self.forces, self.positions, self.kt, self.step_length = forces, positions, kt, step
        self.generator, self.n_steps = generator, 0
        self._noise = self._draw()

    def _draw(self) -> Tensor:
        shape, on = self.positions.shape, self.positions.device
        return torch.randn(shape, dtype=self.positions.dtype, device=on, generator=self.generator)

    def run(self, steps: int) -> None:
        """Several steps; see `step`."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """One step of all replicas.

        Raises
        ------
        DynamicsError
            If positions are no longer finite; those before the step are kept.
        """
        noise = self._draw()
        drift = self.step_length / self.kt * self.forces(self.positions)
        moved = self.positions + drift + (0.5 * self.step_length) ** 0.5 * (self._noise + noise)
        if self.n_steps % CHECK_INTERVAL == 0 and not bool(moved.isfinite().all()):
            replica = int((~moved.isfinite()).flatten(1).any(1).nonzero()[0])
            raise DynamicsError(f"at step {self.n_steps + 1}: replica {replica} flew apart; take a shorter step")
        self.positions, self._noise, self.n_steps = moved, noise, self.n_steps + 1
