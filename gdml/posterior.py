r"""How sure a force field is: the posterior variance of its forces and energies.

A kernel force field is the mean of a Gaussian process. With f some forces and energies of
a geometry, p the labels of the training geometries, and K the kernel between them,

.. math:: \operatorname{cov}(f) = s^2 \left[ K_{ff} - K_{fp} (K_{pp} + \lambda I)^{-1} K_{pf} \right] .

The bracket knows the geometries alone; what the labels say enters by the scale s, which is
such that nine tenths of the errors on held-out geometries are within 1.645 standard
deviations; there is one for energies and one for forces. Energies are taken relative to their mean
over the training geometries, since forces leave a constant open.

Where there are many geometries, p are the labels of some, far apart from each other. Then it is the
variance *given these alone*: before scaling, an upper bound of the posterior variance.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), sections 2.2 and 5.4.2.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .contractions import Contraction, contraction
from .descriptors import Features
from .errors import FitError, NotPositiveDefiniteError
from .kernels import RadialKernel
from .solvers import cholesky_factor
from .symmetry import Action, Environments

NORMAL_90 = 1.6449  # nine tenths of normal errors are within so many standard deviations
EXACT = 1e-6  # of the largest standard deviation; smaller ones are of what symmetry says
MOST_UNKNOWNS = 1500  # labels that variances are taken from: their square is what one geometry costs


class Uncertainty(NamedTuple):
    """Standard deviations for one geometry or for M.

    Attributes
    ----------
    energy : float or (M,) array, eV
        Of the energy relative to the mean of the training geometries.
    forces : (N, 3) or (M, N, 3) array, eV/Å
        Of each component.
    """

    energy: float | np.ndarray
    forces: np.ndarray


@dataclass(frozen=True, eq=False)
class Posterior:
    """Variances from the labels of some geometries.

    Parameters
    ----------
    kernel : RadialKernel
    action : Action or Environments
    y : (k, D) tensor
        Descriptors of the geometries.
    c : (L,) tensor
        1 for an energy, 0 for a slope, of the labels of each.
    duals : (k, D, L) tensor
        The labels' dual jets.
    noise : float
    is_exact : bool
        Whether these are all geometries that the force field was trained on.
    scale, energy_scale : float
        s of forces, and of energies.
    calibration : str
        How that was found.
    usual : float, eV/Å
        Deviation of forces, root mean square, that nine in ten of these geometries do not have, each left out.
    inverse_factor : (kL, kL) tensor, optional
        Of the labels' covariance with the noise, where it is known.
    """

    kernel: RadialKernel
    action: Action | Environments
    y: Tensor
    c: Tensor
    duals: Tensor
    noise: float
    is_exact: bool
    scale: float = 1.0
    energy_scale: float = 1.0
    calibration: str = "none"
    usual: float = math.inf
    inverse_factor: Tensor | None = None

    def recipe(self) -> dict[str, object]:
        """What a file needs besides arrays."""
        names = "noise", "is_exact", "scale", "energy_scale", "calibration", "usual"
        return {"kind": "posterior"} | {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, Tensor]:
        """What a file needs besides the recipe."""
        return {"y": self.y, "c": self.c, "duals": self.duals}

    @cached_property
    def _jets(self) -> Contraction:
        return contraction(self.kernel, self.y, self.action)

    @property
    def _shares(self) -> Tensor:
        """What the geometries' energies have in each of the m means that are known, (m, k); one here."""
        return self.y.new_full((1, len(self.y)), 1 / len(self.y))

    @property
    def _reference(self) -> Tensor:
        """What the means have in the energy that energies are relative to, (m,)."""
        return self.y.new_ones(1)

    def _of_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances of the mean energies with energies (m, M) and gradients (m, M, D) at x (M, D)."""
        found = [self._jets.apply(x, c, torch.zeros_like(self.y)) for c in self._shares]
        return torch.stack([e for e, _ in found]), torch.stack([g for _, g in found])

    def _means_with_points(self) -> tuple[Tensor, Tensor]:
        """Covariances of the mean energies with energies (m, k) and gradients (m, k, D) of the labelled geometries."""
        return self._of_means(self.y)

    @cached_property
    def matrix(self) -> Tensor:
        """Covariance (kL, kL) of the labels, without the noise."""
        return self._between_labels()

    def _between_labels(self) -> Tensor:
        k, n_labels = len(self.y), len(self.c)
        matrix = self.y.new_zeros(k, n_labels, k, n_labels)
        for j in range(k):
            rows = torch.arange(j, k, device=self.y.device)
            pairs = self.y[j:], self.c, self.duals[j:], torch.full_like(rows, j)
            right = self.duals[j].expand(len(rows), -1, -1)
            matrix[j:, :, j] = self._jets.pairs(*pairs, self.c, right)
            matrix[j, :, j + 1 :] = matrix[j + 1 :, :, j].permute(2, 0, 1)
        return matrix.view(k * n_labels, -1)

    @cached_property
    def _inverse_factor(self) -> Tensor:
        """W (kL, kL), lower triangular, with Wᵀ W the inverse of the matrix with the noise."""
        if self.inverse_factor is not None:
            return self.inverse_factor
        matrix = self.matrix.clone()
        matrix.diagonal().add_(self.noise)
        try:
            factor = cholesky_factor(matrix)
        except NotPositiveDefiniteError as error:
            raise FitError(f"no variances: {error}") from error
        one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, one, upper=False)

    @cached_property
    def _mean_rows(self) -> tuple[Tensor, Tensor]:
        """Covariances of the mean energies with the labels (kL, m), and with each other (m, m)."""
        e, g = self._means_with_points()
        rows = (g[:, :, None] @ self.duals)[:, :, 0].add(e[..., None] * self.c)
        return rows.flatten(1).mT, e @ self._shares.mT

    @cached_property
    def _whitening(self) -> Tensor:
        """The inverse factor with the mean energies as more labels."""
        rows, corner = self._mean_rows
        return bordered(self._inverse_factor, rows, corner + self.noise * torch.eye(len(corner)).to(corner))

    def solve(self, values: Tensor) -> Tensor:
        """Coefficients (k, L) of labels (k, L)."""
        inverse = self._inverse_factor
        return (inverse.mT @ (inverse @ values.flatten())).view_as(values)

    def grown(self, y: Tensor, duals: Tensor) -> "Posterior":
        """The same with one more geometry, y (1, D) and duals (1, D, L), for some products with the inverse factor.

        Raises
        ------
        FitError
            If it is nearly equal to one that is there.
        """
        corner, cross = self._blocks(y, self.c, duals)
        corner.diagonal().add_(self.noise)
        return replace(
            self,
            y=torch.cat([self.y, y]),
            duals=torch.cat([self.duals, duals]),
            inverse_factor=bordered(self._inverse_factor, cross, corner),
        )

    def _blocks(self, x: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances of dual jets c (m,), w (1, D, m) at x (1, D): with each other (m, m), with the labels (kL, m)."""
        jets = contraction(self.kernel, x, self.action)
        zero = torch.zeros(len(self.y), dtype=torch.int64, device=x.device)
        own = jets.pairs(x, c, w, zero[:1], c, w)[0]
        return own, jets.pairs(self.y, self.c, self.duals, zero, c, w.expand(len(zero), -1, -1)).flatten(0, 1)

    def covariance(self, features: Features) -> Tensor:
        """Covariance (1 + 3N, 1 + 3N) of one geometry's energy and slopes along its atoms' positions, unscaled."""
        x, jacobian = features.x, features.jacobian()
        left = torch.cat([jacobian.new_zeros(1, jacobian.shape[1], 1), jacobian], 2)
        c = left.new_zeros(left.shape[2])
        c[0] = 1.0
        prior, cross = self._blocks(x, c, left)
        e, g = self._of_means(x)
        means, a = torch.cat([e, (g @ jacobian[0])[:, 0]], 1), self._reference
        # The energy relative to the mean: that row is the difference of two.
        prior[0] -= a @ means
        prior[:, 0] = prior[0]
        rows, variances = self._mean_rows
        prior[0, 0] += a @ (variances @ a - means[:, 0])
        cross = torch.cat([cross, means])
        cross[:, 0] -= torch.cat([rows, variances]) @ a
        half = self._whitening @ cross
        return prior - half.mT @ half

    def deviations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Standard deviations of energies (M,) and forces (M, 3N)."""
        found = [self.covariance(features[k : k + 1]).diagonal() for k in range(len(features.x))]
        deviations = torch.stack(found).clamp(min=0.0).sqrt()
        return self.energy_scale * deviations[:, 0], self.scale * deviations[:, 1:]

    def left_out(self, values: Tensor) -> tuple[Tensor, Tensor]:
        r"""Of each geometry, from all others: residuals of its labels (k, L) and their covariances (k, L, L).

        With P the inverse of the matrix (without the mean energy, which is of all geometries) and
        α = P y they are :math:`P_{ii}^{-1} \alpha_i` and :math:`P_{ii}^{-1}`.
        """
        k, n_labels = len(self.y), len(self.c)
        inverse = self._inverse_factor.mT @ self._inverse_factor
        alpha = (inverse @ values.flatten()).view(k, n_labels, 1)
        own = inverse.unflatten(0, (k, n_labels)).unflatten(2, (k, n_labels))
        blocks = torch.linalg.inv(own.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        return (blocks @ alpha)[..., 0], blocks


def bordered(inverse: Tensor, cross: Tensor, corner: Tensor) -> Tensor:
    """The inverse Cholesky factor of a matrix with m more rows and columns.

    Parameters
    ----------
    inverse : (n, n) tensor
        Of the matrix without them.
    cross : (n, m) tensor
    corner : (m, m) tensor

    Raises
    ------
    FitError
        If the larger matrix is not positive definite to working precision.
    """
    n, m = cross.shape
    below = (inverse @ cross).mT
    factor, info = torch.linalg.cholesky_ex(corner - below @ below.mT)
    if info:
        raise FitError("a geometry is nearly equal to one that is known already; leave it out, or raise the noise")
    own = torch.linalg.solve_triangular(factor, torch.eye(m, dtype=factor.dtype, device=factor.device), upper=False)
    result = inverse.new_zeros(n + m, n + m)
    result[:n, :n] = inverse
    result[n:, n:] = own
    result[n:, :n] = -own @ (below @ inverse)
    return result


def usual_of(deviations: np.ndarray) -> float:
    """The root mean square that nine in ten geometries' deviations (M, 3N) do not exceed."""
    return float(np.quantile(np.sqrt((deviations**2).mean(1)), 0.9))


def scale_of(errors: np.ndarray, deviations: np.ndarray) -> float:
    """The factor with which nine tenths of the errors, of what is not known exactly, are within 1.645 deviations."""
    open_ones = not_exact(deviations)
    return float(np.quantile(np.abs(errors[open_ones]) / np.maximum(deviations[open_ones], 1e-300), 0.9)) / NORMAL_90


def not_exact(deviations: np.ndarray) -> np.ndarray:
    """Which are of something that symmetry leaves open, unlike forces out of the plane of a planar molecule."""
    return deviations >= EXACT * deviations.max()
