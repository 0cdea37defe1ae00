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

from .contractions import GemmContraction
from .dataset import Dataset
from .descriptors import PairFeatures
from .geometry import internal_basis
from .linear import LinearOperator

# Numbers in the labels' dual jets up to which they are kept, and products with them are
# dense; beyond, as in crystals of a hundred atoms, they are made where they are needed.
DENSE = 64 * 1024 * 1024


class Labels:
    """What a dataset says about the energy, in terms of dual jets.

    The slopes are taken along the 3N - 6 displacements of each geometry that
    change interatomic distances; 3N - 3 in a lattice. The forces along rigid motions say nothing
    about a function of distances, and to leave them out makes the training
    matrix smaller by (1 - 2/N)² without changing the solution.

    Parameters
    ----------
    features : PairFeatures
        Of the dataset's M geometries.
    dataset : Dataset
        With forces.
    use_energy : bool
        Whether energies are labels too, relative to their mean.
    use_stress : bool
        Whether the slopes along strain, stress times volume, are labels too; then
        the features have to have them.

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

    def __init__(self, features: PairFeatures, dataset: Dataset, use_energy: bool = False, use_stress: bool = False):
        self.features = features
        positions, forces = (torch.tensor(a) for a in (dataset.positions, dataset.require_forces()))
        self.basis = internal_basis(positions, rotations=not any(dataset.pbc))
        slopes = -torch.einsum("mi,miq->mq", forces.flatten(1), self.basis)
        if use_stress:
            volumes = np.abs(np.linalg.det(dataset.cell)).reshape(-1, 1)
            slopes = torch.cat([slopes, torch.tensor(dataset.stress * volumes)], 1)
        self.use_energy, self.use_stress = use_energy, use_stress
        self.offset = 0.0
        self.c = slopes.new_zeros(slopes.shape[1] + use_energy)
        self.values = slopes
        if use_energy:
            self.offset = float(dataset.energy.mean())
            self.c[0] = 1.0
            energies = torch.tensor(dataset.energy - self.offset)
            self.values = torch.cat([energies[:, None], slopes], 1)

    def spread(self, v: Tensor) -> tuple[Tensor | None, Tensor]:
        """B v: dual jets c (M,) and w (M, D) from one coefficient for each label, (M, L)."""
        energies, slopes = (v[:, 0], v[:, 1:]) if self.use_energy else (None, v)
        slopes, strains = slopes.split([self.basis.shape[2], 6 * self.use_stress], 1)
        displacements = torch.einsum("miq,mq->mi", self.basis, slopes)
        w = self.features.jvp(displacements.view(len(v), -1, 3))
        if self.use_stress:
            w += torch.einsum("mdv,mv->md", self.features.strain_slopes, strains)
        return energies, w

    def collect(self, e: Tensor, g: Tensor) -> Tensor:
        """Bᵀ (e, g): what the labels say, (M, L), of a function with these jets."""
        slopes = torch.einsum("miq,mi->mq", self.basis, self.features.vjp(g).flatten(1))
        if self.use_stress:
            slopes = torch.cat([slopes, self.features.strain_vjp(g)], 1)
        return torch.cat([e[:, None], slopes], 1) if self.use_energy else slopes

    def duals(self, frames: Tensor | None = None) -> Tensor:
        """The gradients w of all labels' dual jets, (M, D, L); of some geometries, where these are given."""
        if self._are_few:
            return self._duals if frames is None else self._duals[frames]
        return self._make_duals(slice(None) if frames is None else frames)

    @property
    def _are_few(self) -> bool:
        return self.values.numel() * self.features.x.shape[1] <= DENSE

    @cached_property
    def _duals(self) -> Tensor:
        return self._make_duals(slice(None))

    def _make_duals(self, frames: Tensor | slice) -> Tensor:
        slopes = self.features[frames].jacobian() @ self.basis[frames]
        if self.use_stress:
            slopes = torch.cat([slopes, self.features.strain_slopes[frames]], 2)
        if not self.use_energy:
            return slopes
        return torch.cat([slopes.new_zeros(*slopes.shape[:2], 1), slopes], 2)

    def single(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Geometries (b,) and dual jets c (b,), w (b, D) of some labels, counted through all geometries."""
        n_labels = len(self.c)
        geometry, label = indices // n_labels, indices % n_labels
        if self._are_few:
            return geometry, self.c[label], self._duals[geometry, :, label]
        one = torch.nn.functional.one_hot(label, n_labels).to(self.values.dtype)
        slopes, strains = one[:, int(self.use_energy) :].split([self.basis.shape[2], 6 * self.use_stress], 1)
        displacements = torch.einsum("miq,mq->mi", self.basis[geometry], slopes)
        w = self.features[geometry].jvp(displacements.unflatten(1, (-1, 3)))
        if self.use_stress:
            w += torch.einsum("mdv,mv->md", self.features.strain_slopes[geometry], strains)
        return geometry, self.c[label], w

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
    contraction : GemmContraction
        Its reference points are the descriptors of the labels' geometries.
    labels : Labels
    noise : float
        Added to the diagonal.
    """

    def __init__(self, contraction: GemmContraction, labels: Labels, noise: float):
        self.contraction = contraction
        self.labels = labels
        self.noise = noise

    @property
    def shape(self) -> tuple[int, int]:
        return self.labels.values.numel(), self.labels.values.numel()

    def matmul(self, v: Tensor) -> Tensor:
        """The product with v, (ML,) or (ML, m), without the matrix: one contraction for each vector."""
        if v.ndim == 2:
            return torch.stack([self.matmul(column) for column in v.mT], 1)
        labels = self.labels
        duals = labels.spread(v.view_as(labels.values))
        jets = self.contraction.apply(labels.features.x, *duals)
        return labels.collect(*jets).flatten() + self.noise * v

    def diagonal(self) -> Tensor:
        """The diagonal (ML,), noise included."""
        return self._diagonal + self.noise

    @property
    def _diagonal(self) -> Tensor:
        return self._diagonal_blocks.diagonal(dim1=1, dim2=2).flatten()

    @cached_property
    def _diagonal_blocks(self) -> Tensor:
        all_frames = torch.arange(len(self.labels.features.x))
        return self._blocks(all_frames, all_frames)

    def columns(self, indices: Tensor) -> Tensor:
        """Columns (ML, len(indices)) of the matrix, without the noise."""
        labels, jets = self.labels, self.contraction
        x = jets.centred(labels.features.x)
        result = x.new_empty(len(x), self.block_size, len(indices))
        step = jets.columns_at_once(len(x))
        for some, into in zip(indices.split(step), result.split(step, 2)):
            into.copy_(labels.collect_many(*jets.separate(x, *labels.single(some)), x))
        return result.flatten(0, 1)

    @property
    def block_size(self) -> int:
        """The labels of a geometry belong together."""
        return len(self.labels.c)

    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Blocks (p, L, L) of the matrix for p pairs of geometries, without the noise."""
        return self._diagonal_blocks[rows] if torch.equal(rows, columns) else self._blocks(rows, columns)

    def _blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        labels, x = self.labels, self.labels.features.x
        result = x.new_empty(len(rows), self.block_size, self.block_size)
        step = self.contraction.pairs_at_once(self.block_size)
        for some in torch.argsort(columns, stable=True).split(step):
            i, j = rows[some], columns[some]
            result[some] = self.contraction.pairs(x[i], labels.c, labels.duals(i), j, labels.c, labels.duals(j))
        return result

    def distances(self) -> Tensor:
        """The smallest distance of descriptors under the group, (n, n)."""
        return self.contraction.smallest_distances(self.labels.features.x)

    def to_dense(self, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """The matrix; only its lower triangle is filled."""
        n_frames, n_labels = self.labels.values.shape
        matrix = self.labels.values.new_zeros(self.shape)
        blocks = matrix.view(n_frames, n_labels, n_frames, n_labels)
        for j in range(n_frames):
            rows = torch.arange(j, n_frames)
            blocks[j:, :, j] = self._blocks(rows, torch.full_like(rows, j))
            if progress:
                progress(j + 1, n_frames)
        matrix.diagonal().add_(self.noise)
        return matrix
