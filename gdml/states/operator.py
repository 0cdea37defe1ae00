"""The training system of several states: the kernel between labels, times how much their states have in common."""

import torch
from torch import Tensor

from ..contractions import Contraction
from ..operators import Labels, TrainingOperator


class StatesOperator(TrainingOperator):
    r"""Bᵀ · contraction · B, each block times a coupling, + noise · I.

    The block of geometries i and j, of the states s(i) and s(j), is

    .. math:: K_{ij} \, C_{s(i) s(j)} .

    A product takes one contraction for each state, of its own geometries with all: in all as
    many operations as without states.

    Parameters
    ----------
    contraction : Contraction
    labels : Labels
    noise : float
        As of `TrainingOperator`.
    states : (n,) int tensor
        The place of each geometry's state.
    couplings : (S, S) tensor
        C, symmetric and positive semidefinite.
    """

    def __init__(self, contraction: Contraction, labels: Labels, noise: float, states: Tensor, couplings: Tensor):
        super().__init__(contraction, labels, noise)
        self.states, self.couplings = states, couplings

    def matmul(self, v: Tensor) -> Tensor:
        if v.ndim == 2:
            return torch.stack([self.matmul(column) for column in v.mT], 1)
        x, (c, w) = self.labels.features.x, self.dual_jets(v)
        e, g = x.new_empty(len(x)), torch.empty_like(x)
        for s, row in enumerate(self.couplings):
            here, factors = self.states == s, row[self.states]
            scaled = None if c is None else c * factors, w * factors[:, None]
            e[here], g[here] = self.contraction.apply(x[here], *scaled)
        return self.labels.collect(e, g).flatten() + self.noise * v

    def columns(self, indices: Tensor) -> Tensor:
        result = super().columns(indices)
        factors = self.couplings[self.states][:, self.states[indices // self.block_size]]
        result.view(len(factors), self.block_size, -1).mul_(factors[:, None])
        return result

    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        factors = self.couplings[self.states[rows], self.states[columns]]
        return super().blocks(rows, columns).mul_(factors[:, None, None])
