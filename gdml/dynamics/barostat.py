"""An isotropic barostat for ring polymers, which scales the centroid and the cell."""

import math

import torch
from torch import Tensor


class Barostat:
    r"""A piston with a momentum of its own, and a thermostat.

    With V = V_0 e^{3 ε} and the conjugate momentum p_ε of mass W, the motion is that of

    .. math:: H + P (p_{ext} V - f k_B T \ln V) + p_\epsilon^2 / 2 W

    with centroid positions that scale as e^ε and momenta as e^{-ε}. The factor f is one
    for the change from ε to V, and two where the centre of mass is held, which could be
    anywhere in V.

    Source: M. Ceriotti, J. More, D. E. Manolopoulos, Comput. Phys. Commun. 185, 1019
    (2014); G. Bussi, T. Zykova-Timan, M. Parrinello, J. Chem. Phys. 130, 074101 (2009).

    Parameters
    ----------
    pressure : float
        External, eV/Å³.
    tau : float
        In ASE's units of time.
    temperature : float
        P k_B T, eV.
    shape : (R, P, N, 3)
    thermalized : bool
        Whether the piston has a Langevin thermostat, with the same τ.
    timestep : float
    holds_com : bool
        Whether the centre of mass is held.
    device : torch.device

    Attributes
    ----------
    momentum : (R,) tensor
        p_ε.
    """

    def __init__(
        self,
        pressure: float,
        tau: float,
        temperature: float,
        shape: tuple[int, int, int, int],
        thermalized: bool,
        timestep: float,
        holds_com: bool,
        device: torch.device,
    ):
        self.pressure, self.temperature, self.n_beads = pressure, temperature, shape[1]
        self.tau = tau
        self.mass = 3 * shape[2] * temperature * tau**2
        self.momentum = torch.zeros(shape[0], dtype=torch.float64, device=device)
        self.factor = 2 if holds_com else 1
        self.keep = math.exp(-timestep / tau) if thermalized else 1.0

    def __str__(self) -> str:
        return f"pressure {self.pressure:g}, tau {self.tau:g}"

    def kick(self, time: float, p: Tensor, f: Tensor, masses: Tensor, virial: Tensor, volume: Tensor) -> None:
        """Change of p_ε while constant forces f act on the centroid's momenta p, both (R, N, 3)."""
        twice_kinetic = ((p**2 * time + p * f * time**2 + f**2 * time**3 / 3) / masses).sum((1, 2))
        steady = -virial - 3 * self.n_beads * self.pressure * volume + 3 * self.factor * self.temperature
        self.momentum = self.momentum + twice_kinetic + time * steady

    def drift(self, time: float, q: Tensor, p: Tensor, masses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The centroid's positions and momenta (R, N, 3), and the factor of lengths (R,), after a time."""
        rate = self.momentum / self.mass
        growth = rate * time
        scale = growth.exp().view(-1, 1, 1)
        # sinh(x) / x, also at zero.
        flight = time * (torch.sinh(growth) / growth).masked_fill(growth.abs() < 1e-6, 1.0).view(-1, 1, 1)
        return scale * q + flight * p / masses, p / scale, scale.flatten()

    def thermalize(self, generator: torch.Generator) -> Tensor:
        """A step of the piston's thermostat; returns the heat (R,) that it took."""
        before = self.momentum**2 / (2 * self.mass)
        noise = torch.randn(self.momentum.shape, dtype=torch.float64, device=self.momentum.device, generator=generator)
        kick = math.sqrt(self.mass * self.temperature * (1 - self.keep**2))
        self.momentum = self.keep * self.momentum + kick * noise
        return before - self.momentum**2 / (2 * self.mass)

    def energy(self, volume: Tensor) -> Tensor:
        """Of the piston (R,), summed over beads, eV."""
        work = self.n_beads * self.pressure * volume - self.factor * self.temperature * volume.log()
        return self.momentum**2 / (2 * self.mass) + work
