"""Kernels that compare atoms instead of geometries: which rows of a descriptor are compared with which."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Environments:
    r"""Descriptors of P points each, such as atoms, of which those of equal kind are compared.

    A descriptor (P, W), flattened to D = P W entries, stands for all its points. The
    kernel between two geometries is a sum over pairs of points of one kind,

    .. math:: K(X, Y) = \sum_p \sum_q \delta_{z_p z_q} \, k(|x_p - y_q|) ,

    so that it does not change when points of a kind are exchanged, and that energies
    are sums over points.

    Source: A. P. Bartók, M. C. Payne, R. Kondor, G. Csányi, Phys. Rev. Lett. 104, 136403 (2010).

    Parameters
    ----------
    kinds : (P,) int array
        Such as atomic numbers.
    width : int
        W, entries of each point.
    """

    kinds: np.ndarray
    width: int

    @property
    def size(self) -> int:
        """The number of entries, D = P W."""
        return len(self.kinds) * self.width

    @property
    def order(self) -> int:
        """What the order of a group would be at the same cost: pairs of points that are compared, for each point."""
        return max(1, round(sum(len(points) ** 2 for points in self.points.values()) / len(self.kinds)))

    @cached_property
    def points(self) -> dict[int, np.ndarray]:
        """The points of each kind."""
        return {int(kind): np.flatnonzero(self.kinds == kind) for kind in np.unique(self.kinds)}

    @property
    def translations(self) -> np.ndarray:
        """None but the identity, as of an `Action` that is not split."""
        return np.arange(self.size)[None]

    def reduce(self, values: np.ndarray, reduction: Callable) -> np.ndarray:
        """A mean, minimum or maximum of values (D,) over the points of each kind, (D,)."""
        rows = values.reshape(-1, self.width).copy()
        for points in self.points.values():
            rows[points] = reduction(rows[points], axis=0)
        return rows.ravel()

    def sorted(self, x: np.ndarray) -> np.ndarray:
        """Descriptors (M, D) with the points of each kind in an order that does not depend on how they were given."""
        rows = x.reshape(len(x), -1, self.width)
        keys = rows @ np.random.default_rng(0).normal(size=self.width)
        result = rows.copy()
        for points in self.points.values():
            order = points[np.argsort(keys[:, points], axis=1)]
            result[:, points] = np.take_along_axis(rows, order[..., None], axis=1)
        return result.reshape(x.shape)
