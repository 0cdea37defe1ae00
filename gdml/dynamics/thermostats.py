"""Thermostats of ring polymers, by mode."""

import math

import torch
from torch import Tensor

THERMOSTATS = ("pile-l", "pile-g", "t-rpmd", "none")


class Thermostat:
    r"""Path-integral Langevin thermostat (PILE), and what it leaves alone.

    Each internal mode k gets the friction γ_k = 2 λ ω_k, in proportion to its frequency in
    the free ring. The centroid gets:

    * ``pile-l`` (λ = 1): friction 1/τ of its own for each atom;
    * ``pile-g`` (λ = 1): a stochastic factor for its kinetic energy as a whole, which
      disturbs motion less;
    * ``t-rpmd`` (λ = 1/2): nothing, so that its time correlations can be looked at.

    With ``none`` nothing is thermostatted (RPMD).

    Source: M. Ceriotti et al., J. Chem. Phys. 133, 124104 (2010), PILE; G. Bussi,
    D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007), the factor;
    M. Rossi, M. Ceriotti, D. E. Manolopoulos, J. Chem. Phys. 140, 234116 (2014), T-RPMD.

    Parameters
    ----------
    kind : {"pile-l", "pile-g", "t-rpmd", "none"}
    frequencies : (P,) tensor
        Of the free ring.
    temperature : float
        Of the momenta, P k_B T, in eV.
    tau : float
        Of the centroid, in ASE's units of time.
    timestep : float
    """

    def __init__(self, kind: str, frequencies: Tensor, temperature: float, tau: float, timestep: float):
        self.kind, self.tau = kind, tau
        self.temperature = temperature
        friction = frequencies * (1.0 if kind == "t-rpmd" else 2.0)
        friction[0] = 1 / tau if kind == "pile-l" else 0.0
        self.keep = torch.exp(-friction * timestep).view(-1, 1, 1)
        self.kick = torch.sqrt(temperature * (1 - self.keep**2))
        self.global_keep = math.exp(-timestep / tau)

    def __str__(self) -> str:
        return f"{self.kind}, tau {self.tau:g}"

    def __call__(self, p: Tensor, masses: Tensor, n_free: int, generator: torch.Generator) -> Tensor:
        """Momenta (R, P, N, 3) of the modes after a step.

        Parameters
        ----------
        p : (R, P, N, 3) tensor
        masses : (N, 1) tensor
        n_free : int
            Degrees of freedom of the centroid.
        generator : torch.Generator
        """
        if self.kind == "none":
            return p
        noise = torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=generator)
        p = self.keep * p + self.kick * masses.sqrt() * noise
        if self.kind == "pile-g" and n_free:
            centroid = p[:, :1]
            p = torch.cat([centroid * self._factor(centroid, masses, n_free, generator), p[:, 1:]], 1)
        return p

    def _factor(self, p: Tensor, masses: Tensor, n_free: int, generator: torch.Generator) -> Tensor:
        """By which the centroid's momenta are multiplied (Bussi et al., eqs. A7 and A8)."""
        kinetic = 0.5 * (p**2 / masses).sum((1, 2, 3)).clamp(min=1e-12)
        noise = torch.randn(len(p), n_free, dtype=p.dtype, device=p.device, generator=generator)
        ratio = (1 - self.global_keep) * 0.5 * self.temperature / kinetic
        first, squares = noise[:, 0], (noise**2).sum(1)
        square = self.global_keep + ratio * squares + 2 * first * torch.sqrt(self.global_keep * ratio)
        sign = torch.sign(first + torch.sqrt(self.global_keep / ratio))
        return (sign * square.clamp(min=0.0).sqrt()).view(-1, 1, 1, 1)
