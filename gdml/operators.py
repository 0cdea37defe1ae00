"""The training system: labels as functionals of the energy, and the kernel between them.

Each reference geometry carries L labels. A label is a dual jet (c, w) in
descriptor space: an energy is (1, 0), and the slope of the energy along a
displacement v of the atoms is (0, J v). With B the collection of these duals,
the training matrix is Bᵀ · contraction · B + noise.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .contractions import Contraction
from .dataset import Dataset
from .descriptors import Features
from .geometry import internal_basis
from .hardware import available_memory
from .linear import LinearOperator
from .processes import Shares, Team

# Numbers in the labels' dual jets up to which they are kept, and products with them are
# dense; beyond, as in crystals of a hundred atoms, they are made where they are needed.
DENSE = 64 * 1024 * 1024
# Where Jacobians take long, this part of the memory may hold them; and numbers in those made at a time.
COSTLY = 4
IN_MAKING = 32 * 1024 * 1024
COLUMNS = 256  # of the matrix, for which labels are looked up together


class Labels:
    """What a dataset says about the energy, in terms of dual jets.

    The slopes are taken along the 3N - 6 displacements of each geometry that
    change interatomic distances; 3N - 3 in a lattice. The forces along rigid motions say nothing
    about a function of distances, and to leave them out makes the training
    matrix smaller by (1 - 2/N)² without changing the solution.

    Parameters
    ----------
    features : Features
        Of the dataset's M geometries; all else is on their device.
    dataset : Dataset
        With forces.
    use_energy : bool
        Whether energies are labels too, relative to their mean.
    use_stress : bool
        Whether the slopes along strain, stress times volume, are labels too; then
        the features have to have them.
    shares : Shares, optional
        How a larger dataset is shared out to processes, of which these are the own
        geometries; all of them by default.
    along : callable, optional
        From positions (M, N, 3) to the displacements (M, 3N, q) that slopes are taken along; by default those of
        `internal_basis`. Of others the labels have another noise.

    Attributes
    ----------
    values : (M, L) tensor
        The labels, eV and eV/Å.
    c : (L,) tensor
        1 for an energy, 0 for a slope.
    basis : (M, 3N, q) tensor
        The displacements of the slopes.
    offset : float
        The energy that was subtracted, eV.
    """

    def __init__(
        self,
        features: Features,
        dataset: Dataset,
        use_energy: bool = False,
        use_stress: bool = False,
        shares: Shares | None = None,
        along: Callable[[Tensor], Tensor] | None = None,
    ):
        self.features = features
        self.shares = shares = shares or Shares(Team(), len(dataset))
        as_tensor = features.x.new_tensor
        positions, forces = (as_tensor(a) for a in (dataset.positions, dataset.require_forces()))
        if along is None:
            self.basis = internal_basis(positions, rotations=not any(dataset.pbc), agree=shares.team.least)
        else:
            self.basis = along(positions)
        slopes = -torch.einsum("mi,miq->mq", forces.flatten(1), self.basis)
        if use_stress:
            volumes = np.abs(np.linalg.det(dataset.cell)).reshape(-1, 1)
            slopes = torch.cat([slopes, as_tensor(dataset.stress * volumes)], 1)
        self.use_energy, self.use_stress = use_energy, use_stress
        self.offset = 0.0
        self.c = slopes.new_zeros(slopes.shape[1] + use_energy)
        self.values = slopes
        if use_energy:
            self.offset = float(shares.sum(as_tensor(dataset.energy.sum()))) / shares.n
            self.c[0] = 1.0
            energies = as_tensor(dataset.energy - self.offset)
            self.values = torch.cat([energies[:, None], slopes], 1)

    def spread(self, v: Tensor) -> tuple[Tensor | None, Tensor]:
        """B v: dual jets c (M,) and w (M, D) from one coefficient for each label, (M, L)."""
        energies, slopes = (v[:, 0], v[:, 1:]) if self.use_energy else (None, v)
        if self._keeps_products:
            return energies, (self._duals @ v[..., None])[..., 0]
        slopes, strains = slopes.split([self.basis.shape[2], 6 * self.use_stress], 1)
        displacements = torch.einsum("miq,mq->mi", self.basis, slopes)
        w = self.features.jvp(displacements.view(len(v), -1, 3))
        if self.use_stress:
            w += torch.einsum("mdv,mv->md", self.features.strain_slopes, strains)
        return energies, w

    def collect(self, e: Tensor, g: Tensor) -> Tensor:
        """Bᵀ (e, g): what the labels say, (M, L), of a function with these jets."""
        if self._keeps_products:
            return (g[:, None] @ self._duals)[:, 0] + (e[:, None] * self.c if self.use_energy else 0.0)
        slopes = torch.einsum("miq,mi->mq", self.basis, self.features.vjp(g).flatten(1))
        if self.use_stress:
            slopes = torch.cat([slopes, self.features.strain_vjp(g)], 1)
        return torch.cat([e[:, None], slopes], 1) if self.use_energy else slopes

    def duals(self, frames: Tensor) -> Tensor:
        """The gradients w of all labels' dual jets on some geometries, counted through all processes', (p, D, L)."""

        def take(values: Tensor) -> Tensor:
            return self.shares.fetch(values, frames)

        return take(self._duals) if self._are_few else self._make_duals(self.features.map(take), take(self.basis))

    @property
    def _are_few(self) -> bool:
        most = -(-self.shares.n // self.shares.team.size)  # of all processes, which have to agree
        return most * len(self.c) * self.features.x.shape[1] <= self._limit

    @cached_property
    def _limit(self) -> int:
        """Numbers in the labels' dual jets up to which they are kept."""
        if not self.features.is_costly:
            return DENSE
        return max(DENSE, int(self.shares.team.least(available_memory(self.values.device) // (8 * COSTLY))))

    @property
    def _keeps_products(self) -> bool:
        """Whether products with the Jacobian are faster by the labels' dual jets."""
        return self.features.is_costly and self._are_few

    @cached_property
    def _duals(self) -> Tensor:
        return self._make_duals(self.features, self.basis)

    def _make_duals(self, features: Features, basis: Tensor) -> Tensor:
        step = max(1, IN_MAKING // (basis.shape[1] * features.x.shape[1]))
        parts = [slice(k, k + step) for k in range(0, len(basis), step)]
        slopes = torch.cat([features[some].jacobian() @ basis[some] for some in parts])
        if self.use_stress:
            slopes = torch.cat([slopes, features.strain_slopes], 2)
        if not self.use_energy:
            return slopes
        return torch.cat([slopes.new_zeros(*slopes.shape[:2], 1), slopes], 2)

    def single(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Geometries (b,) and dual jets c (b,), w (b, D) of some labels, counted through all geometries.

        The same labels on all processes.
        """
        n_labels = len(self.c)
        geometry, label = indices // n_labels, indices % n_labels
        w, owned = self.features.x.new_zeros(len(indices), self.features.x.shape[1]), self.shares.owned(geometry)
        w[owned] = self._single(geometry[owned] - self.shares.own.start, label[owned])
        return geometry, self.c[label], self.shares.sum(w)

    def _single(self, geometry: Tensor, label: Tensor) -> Tensor:
        """The gradients (b, D) of some labels' dual jets on own geometries."""
        if self._are_few:
            return self._duals[geometry, :, label]
        one = torch.nn.functional.one_hot(label, len(self.c)).to(self.values.dtype)
        slopes, strains = one[:, int(self.use_energy) :].split([self.basis.shape[2], 6 * self.use_stress], 1)
        displacements = torch.einsum("miq,mq->mi", self.basis[geometry], slopes)
        w = self.features[geometry].jvp(displacements.unflatten(1, (-1, 3)))
        if self.use_stress:
            w += torch.einsum("mdv,mv->md", self.features.strain_slopes[geometry], strains)
        return w

    def collect_many(self, e: Tensor, g: Tensor, q: Tensor, x: Tensor) -> Tensor:
        """What the labels say, (M, L, b), of b functions with values e (M, b) and gradients g - q x.

        Parameters
        ----------
        g, q : (b, M, D) and (M, b) tensors
        x : (M, D) tensor
        """
        g = g.permute(1, 2, 0)
        if self._are_few:
            result = torch.bmm(self._duals.mT, g)
            result -= (self._duals.mT @ x[..., None]) * q[:, None, :]
        else:
            g = torch.addcmul(g, x[..., None], q[:, None, :], value=-1)
            result = torch.bmm(self.basis.mT, self.features.vjp_many(g))
            if self.use_stress:
                result = torch.cat([result, torch.bmm(self.features.strain_slopes.mT, g)], 1)
            if self.use_energy:
                result = torch.cat([torch.zeros_like(result[:, :1]), result], 1)
        if self.use_energy:
            result[:, 0] += e
        return result


class TrainingOperator(LinearOperator):
    """Bᵀ · contraction · B + noise · I, as an operator on M·L coefficients.

    Parameters
    ----------
    contraction : Contraction
        Its reference points are the descriptors of the labels' geometries, on all processes.
    labels : Labels
    noise : float
        Added to the diagonal.
    """

    def __init__(self, contraction: Contraction, labels: Labels, noise: float):
        self.contraction = contraction
        self.labels = labels
        self.noise = noise
        self.shares, self.device = labels.shares, labels.values.device

    @property
    def shape(self) -> tuple[int, int]:
        n = self.labels.shares.n * self.block_size
        return n, n

    def matmul(self, v: Tensor) -> Tensor:
        """The product with v, (ML,) or (ML, m), without the matrix: one contraction for each vector."""
        if v.ndim == 2:
            return torch.stack([self.matmul(column) for column in v.mT], 1)
        labels = self.labels
        jets = self.contraction.apply(labels.features.x, *self.dual_jets(v))
        return labels.collect(*jets).flatten() + self.noise * v

    def dual_jets(self, v: Tensor) -> tuple[Tensor | None, Tensor]:
        """B v: dual jets c (n,) and w (n, D) on the geometries of all processes."""
        c, w = self.labels.spread(v.view_as(self.labels.values))
        return None if c is None else self.shares.gather(c), self.shares.gather(w)

    def diagonal(self) -> Tensor:
        """The diagonal (ML,), noise included."""
        return self._diagonal + self.noise

    @property
    def _diagonal(self) -> Tensor:
        return self.diagonal_blocks().diagonal(dim1=1, dim2=2).flatten()

    def diagonal_blocks(self) -> Tensor:
        """The blocks (m, L, L) of own geometries with themselves, without the noise."""
        return self._diagonal_blocks

    @cached_property
    def _diagonal_blocks(self) -> Tensor:
        own = torch.arange(self.shares.own.start, self.shares.own.stop, device=self.device)
        return self.blocks(own, own)

    def columns(self, indices: Tensor) -> Tensor:
        """Columns (ML, len(indices)) of the matrix, without the noise."""
        labels, jets = self.labels, self.contraction
        x = jets.centred(labels.features.x)
        result = x.new_empty(len(x), self.block_size, len(indices))
        step = jets.columns_at_once(len(x))
        for first in range(0, len(indices), COLUMNS):
            duals = labels.single(indices[first : first + COLUMNS])
            parts = zip(*(dual.split(step) for dual in duals), result[..., first : first + COLUMNS].split(step, 2))
            for geometry, c, w, into in parts:
                into.copy_(labels.collect_many(*jets.separate(x, geometry, c, w), x))
        return result.flatten(0, 1)

    @property
    def block_size(self) -> int:
        """The labels of a geometry belong together."""
        return len(self.labels.c)

    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Blocks (p, L, L) of the matrix for p pairs of geometries, without the noise."""
        labels, jets = self.labels, self.contraction
        result = labels.values.new_empty(len(rows), self.block_size, self.block_size)
        step = self.shares.team.least(jets.pairs_at_once(self.block_size))
        for some in self.shares.in_step(torch.argsort(columns, stable=True), step):
            i, j = rows[some], columns[some]
            result[some] = jets.pairs(jets.x[i], labels.c, labels.duals(i), j, labels.c, labels.duals(j))
        return result

    def distances(self, blocks: Tensor) -> Tensor:
        """The smallest distance of descriptors under the group, (b, n)."""
        return self.contraction.smallest_distances(self.contraction.x[blocks])

    def to_dense(self, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """The matrix; only its lower triangle is filled."""
        n_frames, n_labels = self.labels.values.shape
        matrix = self.labels.values.new_zeros(self.shape)
        blocks = matrix.view(n_frames, n_labels, n_frames, n_labels)
        for j in range(n_frames):
            rows = torch.arange(j, n_frames, device=matrix.device)
            blocks[j:, :, j] = self.blocks(rows, torch.full_like(rows, j))
            if progress:
                progress(j + 1, n_frames)
        matrix.diagonal().add_(self.noise)
        return matrix
