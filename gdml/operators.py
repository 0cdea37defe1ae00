"""The training system: labels as functionals of the energy, and the kernel between them.

Each reference geometry carries L labels. A label is a dual jet (c, w) in
descriptor space: an energy is (1, 0), and the slope of the energy along a
displacement v of the atoms is (0, J v). With B the collection of these duals,
the training matrix is Bᵀ · contraction · B + noise.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from .contractions import GemmContraction
from .dataset import Dataset
from .descriptors import PairFeatures
from .geometry import internal_basis
from .linear import LinearOperator

# Numbers in the intermediates of a few pairs of geometries.
PAIR_TILE = 2 * 1024 * 1024


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

    def __init__(self, features: PairFeatures, dataset: Dataset, use_energy: bool = False):
        self.features = features
        positions, forces = (torch.tensor(a) for a in (dataset.positions, dataset.require_forces()))
        self.basis = internal_basis(positions, rotations=not any(dataset.pbc))
        slopes = -torch.einsum("mi,miq->mq", forces.flatten(1), self.basis)
        self.use_energy = use_energy
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
        displacements = torch.einsum("miq,mq->mi", self.basis, slopes)
        return energies, self.features.jvp(displacements.view(len(v), -1, 3))

    def collect(self, e: Tensor, g: Tensor) -> Tensor:
        """Bᵀ (e, g): what the labels say, (M, L), of a function with these jets."""
        slopes = torch.einsum("miq,mi->mq", self.basis, self.features.vjp(g).flatten(1))
        return torch.cat([e[:, None], slopes], 1) if self.use_energy else slopes

    def duals(self) -> Tensor:
        """The gradients w of all labels' dual jets, (M, D, L)."""
        slopes = self.features.jacobian() @ self.basis
        if not self.use_energy:
            return slopes
        return torch.cat([slopes.new_zeros(*slopes.shape[:2], 1), slopes], 2)


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

    @cached_property
    def _duals(self) -> Tensor:
        return self.labels.duals()

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

    @cached_property
    def _diagonal(self) -> Tensor:
        all_frames = torch.arange(len(self.labels.features.x))
        return self.blocks(all_frames, all_frames).diagonal(dim1=1, dim2=2).flatten()

    def columns(self, indices: Tensor) -> Tensor:
        """Columns (ML, len(indices)) of the matrix, without the noise."""
        labels, w = self.labels, self._duals
        geometry, label = indices // self.block_size, indices % self.block_size
        right = labels.c[label], w[geometry, :, label]
        return self.contraction.columns(labels.features.x, labels.c, w, geometry, *right).flatten(0, 1)

    @property
    def block_size(self) -> int:
        """The labels of a geometry belong together."""
        return len(self.labels.c)

    def blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Blocks (p, L, L) of the matrix for p pairs of geometries, without the noise."""
        labels, x, w = self.labels, self.labels.features.x, self._duals
        result = x.new_empty(len(rows), self.block_size, self.block_size)
        order, size = self.contraction.action.shape
        step = max(1, PAIR_TILE // (size * size + 2 * order * (size + self.block_size)))
        for i, j, into in zip(rows.split(step), columns.split(step), result.split(step), strict=True):
            into.copy_(self.contraction.pairs(x[i], labels.c, w[i], j, labels.c, w[j]))
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
            blocks[j:, :, j] = self.blocks(rows, torch.full_like(rows, j))
            if progress:
                progress(j + 1, n_frames)
        matrix.diagonal().add_(self.noise)
        return matrix
