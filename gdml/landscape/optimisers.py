"""Steps of optimisers, for many geometries at once: each has its own memory, and leaves the batch when it is done.

An optimiser turns forces (M, N, 3) into displacements (M, N, 3). Where the forces are a gradient it finds
minima; it does not ask for energies, so that effective forces of a search for saddles are as good.
"""

import torch
from torch import Tensor

LONGEST = 0.2  # Å, that an atom moves in a step


def shortened(steps: Tensor, longest: float = LONGEST) -> Tensor:
    """Displacements (M, N, 3), scaled down where an atom would move farther than `longest`, Å."""
    most = torch.linalg.vector_norm(steps, dim=2).amax(1).clamp_min(longest)
    return steps * (longest / most)[:, None, None]


class _Memory:
    """What is known of each of M geometries."""

    def keep(self, which: Tensor) -> None:
        """Forget all but some (M,) bool of the geometries."""
        for name, value in vars(self).items():
            setattr(self, name, value[which])


class Fire(_Memory):
    """The fast inertial relaxation engine: dynamics whose velocities turn towards the forces, and stop uphill.

    Source: E. Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006); its parameters, with masses of one.

    Parameters
    ----------
    like : (M, N, 3) tensor
        Positions, for their size and device.
    """

    def __init__(self, like: Tensor):
        ones = like.new_ones(len(like))
        self.velocities = torch.zeros_like(like)
        self.timestep, self.mixing, self.downhill = 0.1 * ones, 0.1 * ones, 0 * ones

    def step(self, forces: Tensor) -> Tensor:
        """Displacements (M, N, 3), Å, for forces in eV/Å."""
        is_down = (forces * self.velocities).sum((1, 2)) > 0
        is_up = ~is_down & (_norms(self.velocities) > 0)
        self.downhill = torch.where(is_down, self.downhill + 1, 0.0)
        is_fast = self.downhill > 5
        speed = _norms(self.velocities) / _norms(forces).clamp_min(1e-300)
        mixed = (1 - self.mixing)[:, None, None] * self.velocities + (self.mixing * speed)[:, None, None] * forces
        self.velocities = torch.where(is_down[:, None, None], mixed, 0.0)
        self.timestep = torch.where(is_fast, (1.1 * self.timestep).clamp_max(1.0), self.timestep)
        self.mixing = torch.where(is_fast, 0.99 * self.mixing, self.mixing)
        self.timestep = torch.where(is_up, 0.5 * self.timestep, self.timestep)
        self.mixing = torch.where(is_down, self.mixing, 0.1)
        self.velocities = self.velocities + self.timestep[:, None, None] * forces
        return shortened(self.timestep[:, None, None] * self.velocities)


class Lbfgs(_Memory):
    """Quasi-Newton steps with the memory of the last ones.

    Source: J. Nocedal, Math. Comp. 35, 773 (1980), the two loops; without a line search, as usual for
    atoms. What was learned of directions without positive curvature is left out, and a
    geometry whose step would lead uphill forgets all that it knew.

    Parameters
    ----------
    like : (M, N, 3) tensor
        Positions, for their size and device.
    memory : int
        Steps remembered.
    """

    STIFFNESS = 70.0  # eV/Å², taken for the curvature while nothing is known

    def __init__(self, like: Tensor, memory: int = 15):
        n_atoms = like.shape[1]
        self.steps = like.new_zeros(len(like), memory, 3 * n_atoms)  # the last one first
        self.changes = torch.zeros_like(self.steps)  # of the gradient
        self.inverse = like.new_zeros(len(like), memory)  # of both one's product, zero where nothing is known
        self.forces = like.new_zeros(len(like), 3 * n_atoms)
        self.moved = torch.zeros_like(self.forces)

    def step(self, forces: Tensor) -> Tensor:
        """Displacements (M, N, 3), Å, for forces in eV/Å."""
        now = forces.flatten(1)
        self._learn(now)
        step = self._product(now)
        uphill = (step * now).sum(1) <= 0
        self.inverse = torch.where(uphill[:, None], 0.0, self.inverse)
        step = torch.where(uphill[:, None], now / self.STIFFNESS, step)
        step = shortened(step.view_as(forces))
        self.forces, self.moved = now, step.flatten(1)
        return step

    def _learn(self, forces: Tensor) -> None:
        """Take in what the last step has changed."""
        change = self.forces - forces
        product = (change * self.moved).sum(1)
        is_convex = product > 1e-10 * self.moved.square().sum(1)
        inverse = torch.where(is_convex, 1 / torch.where(is_convex, product, 1.0), 0.0)
        self.steps = torch.cat([self.moved[:, None], self.steps[:, :-1]], 1)
        self.changes = torch.cat([change[:, None], self.changes[:, :-1]], 1)
        self.inverse = torch.cat([inverse[:, None], self.inverse[:, :-1]], 1)

    def _product(self, forces: Tensor) -> Tensor:
        """The approximate inverse Hessian times the forces."""
        n_known = self.inverse.shape[1]
        direction, weights = forces, []
        for k in range(n_known):
            weight = self.inverse[:, k] * (self.steps[:, k] * direction).sum(1)
            direction = direction - weight[:, None] * self.changes[:, k]
            weights.append(weight)
        direction = direction / self._stiffness()[:, None]
        for k in reversed(range(n_known)):
            back = self.inverse[:, k] * (self.changes[:, k] * direction).sum(1)
            direction = direction + (weights[k] - back)[:, None] * self.steps[:, k]
        return direction

    def _stiffness(self) -> Tensor:
        """Curvature along the last change that is known, eV/Å²."""
        known = self.inverse > 0
        last = known.to(torch.int64).argmax(1)
        rows = torch.arange(len(last), device=last.device)
        found = self.changes[rows, last].square().sum(1) * self.inverse[rows, last]
        return torch.where(known.any(1), found, self.STIFFNESS)


OPTIMISERS = {"lbfgs": Lbfgs, "fire": Fire}


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1)
