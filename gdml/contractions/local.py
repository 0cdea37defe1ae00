r"""The contraction of 1-jets for kernels that compare atoms, as matrix products.

The kernel between geometries is the sum over pairs of points of equal kind
(`Environments`), so that each kind is a contraction of its own, whose references
are the points of all reference geometries, without a group:

.. math::

   e(X) = \sum_p e_{z_p}(x_p), \qquad
   e_z(x) = \sum_j \sum_{q: z_q = z} \left[ c_j \, k(|x - y_{jq}|)
            + w_{jq} \cdot \partial_{y} k(|x - y_{jq}|) \right] .

Cost for one query: 8 n W Σ_z P_z² flops, for P_z points of kind z with W entries each.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import DeviceError
from ..hardware import tile
from ..kernels import RadialKernel
from ..symmetry import Action, Environments
from .base import Contraction, Jet
from .gemm import ARRAYS, COLUMN_TILE, GemmContraction, distances

# Numbers in the intermediates of a few pairs of geometries.
PAIR_TILE = 16 * 1024 * 1024


class LocalContraction(Contraction):
    """Sums of a kernel between points, and of its derivatives, over reference geometries.

    Parameters as of `Contraction`, with `Environments` for the action.

    Parameters
    ----------
    queries : Environments, optional
        The points of the queries of `bind`, where these are not those of the references.

    Raises
    ------
    DeviceError
        If the queries have points of a kind that the references do not have.
    """

    def __init__(
        self,
        kernel: RadialKernel,
        y: Tensor,
        action: Environments,
        dtype: torch.dtype = torch.float64,
        queries: Environments | None = None,
    ):
        super().__init__(kernel, y, action, dtype)
        self.width, self.n_points = action.width, len(action.kinds)
        self.queries = queries or action
        if missing := set(self.queries.points) - set(action.points):
            raise DeviceError(f"there are no references for points of the kinds {sorted(missing)}")
        self.points = {kind: torch.tensor(p, device=y.device) for kind, p in action.points.items()}
        self.parts = {kind: self._part(y, kind) for kind in self.points}

    def _part(self, y: Tensor, kind: int) -> GemmContraction:
        identity = np.arange(self.width)[None]
        rows = self._rows(y)[:, self.points[kind]].reshape(-1, self.width)
        return GemmContraction(self.kernel, rows, Action(identity, identity), self.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        """Descriptors (..., D) as points (..., P, W)."""
        return x.unflatten(-1, (-1, self.width))

    def bind(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor], Jet]:
        bound = {}
        for kind, points in self.points.items():
            rows = self._rows(w)[:, points].reshape(-1, self.width)
            bound[kind] = self.parts[kind].bind(None if c is None else c.repeat_interleave(len(points)), rows)
        queries = {kind: torch.tensor(p, device=w.device) for kind, p in self.queries.points.items()}

        def evaluate(x: Tensor) -> Jet:
            rows = self._rows(x)
            e, g = x.new_zeros(len(x)), torch.empty_like(rows)
            for kind, points in queries.items():
                values, slopes = bound[kind](rows[:, points].reshape(-1, self.width))
                e += values.view(len(x), -1).sum(1)
                g[:, points] = slopes.view(len(x), -1, self.width)
            return e, g.flatten(1)

        return evaluate

    def bind_curvature(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        bound = {}
        for kind, points in self.points.items():
            rows = self._rows(w)[:, points].reshape(-1, self.width)
            c_rows = None if c is None else c.repeat_interleave(len(points))
            bound[kind] = self.parts[kind].bind_curvature(c_rows, rows)

        def evaluate(x: Tensor, v: Tensor) -> Tensor:
            rows, directions = self._rows(x), self._rows(v)
            result = torch.empty_like(directions)
            for p, kind in enumerate(self.queries.kinds.tolist()):
                result[:, p] = bound[kind](rows[p], directions[:, p].contiguous())
            return result.flatten(1)

        return evaluate

    def smallest_distances(self, x: Tensor) -> Tensor:
        """Distances of the sums over points of each kind, which do not change when these are exchanged."""
        return distances(self._sums(self.centred(x)), self._sums(self.y))

    def _sums(self, x: Tensor) -> Tensor:
        return torch.cat([self._rows(x)[:, points].sum(1) for points in self.points.values()], 1)

    def columns_at_once(self, m: int) -> int:
        return max(1, tile(self.y.device, COLUMN_TILE, ARRAYS) // (m * (self.order * self.n_points + self.size)))

    def separate(self, x: Tensor, references: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length, m, b = self.kernel.natural_length, len(x), len(c)
        used, which = references.unique(return_inverse=True)
        e = x.new_zeros(m, b)
        g = x.new_empty(b, m, self.n_points, self.width)
        for points in self.points.values():
            rows = self._rows(x)[:, points].reshape(-1, self.width)  # (m P, W)
            y = self._rows(self.y[used])[:, points].reshape(-1, self.width)
            s = distances(rows, y).view(len(rows), len(used), -1)
            profile = self.kernel.unit_profile(s, value=bool(c.any()))
            k, d1, d2 = (None if p is None else p[:, which] for p in profile)  # (m P, b, P)
            duals = self._rows(w / length)[:, points]  # (b, P, W)
            own = self._rows(self.y[references])[:, points]
            u = (rows @ duals.reshape(-1, self.width).mT).view_as(d1) - torch.linalg.vecdot(own, duals)
            values, q = (u * d1).sum(2), u * d2
            if k is not None:
                values += k.sum(2) * c
                q += d1 * c[:, None]
            e += values.view(m, -1, b).sum(1)
            both = torch.cat([d1, q], 2).transpose(0, 1)  # (b, m P, 2 P)
            slopes = torch.bmm(both, torch.cat([duals, own], 1))
            slopes -= q.sum(2).mT[..., None] * rows
            g[:, :, points] = slopes.div_(length).view(b, m, -1, self.width)
        return e, g.flatten(2), torch.zeros_like(e)

    def pairs_at_once(self, n_labels: int) -> int:
        numbers = tile(self.y.device, PAIR_TILE, ARRAYS)
        return max(1, numbers // (n_labels * (2 * self.size + 3 * self.order * self.n_points)))

    def pairs(
        self, x: Tensor, c_left: Tensor, w_left: Tensor, references: Tensor, c_right: Tensor, w_right: Tensor
    ) -> Tensor:
        result = x.new_zeros(len(x), len(c_left), len(c_right))
        x, y = self._rows(self.centred(x)), self._rows(self.y)
        w_left, w_right = (w.unflatten(1, (-1, self.width)) for w in (w_left, w_right))
        used = references.unique().tolist()
        for reference in used:
            some = (references == reference).nonzero()[:, 0]
            right = w_right[some[0]] / self.kernel.natural_length  # the same on all
            some = some if len(used) > 1 else slice(None)  # which copies nothing
            for points in self.points.values():
                part = x[some][:, points], c_left, w_left[some][:, points]
                result[some] += self._block(*part, y[reference, points], c_right, right[points])
        return result

    def _block(self, x: Tensor, c_left: Tensor, w_left: Tensor, y: Tensor, c_right: Tensor, w_right: Tensor) -> Tensor:
        """Blocks (m, L, R) between points (m, P, W) of one kind and those (P, W) of one reference geometry.

        Of the dual jets, the right ones are in units of the natural length.
        """
        m, n_points, _ = x.shape
        s = distances(x.flatten(0, 1), y).view(m, n_points, -1)
        k, d1, d2 = self.kernel.unit_profile(s, value=bool(c_right.any()))
        pull = (d1.flatten(0, 1) @ w_right.flatten(1)).view(m, n_points * self.width, -1)
        result = w_left.flatten(1, 2).mT @ pull
        left = (x[:, :, None] @ w_left) - y @ w_left  # (m, P, P, L), slopes along x - y
        right = (x.flatten(0, 1) @ w_right.transpose(0, 1).flatten(1)).view(m, n_points, *w_right.shape[::2])
        right = right - torch.einsum("qw,qwr->qr", y, w_right)  # (m, P, P, R)
        q = right * d2[..., None]
        if k is not None:
            q = q + d1[..., None] * c_right
        result = (result - left.flatten(1, 2).mT @ q.flatten(1, 2)).div_(self.kernel.natural_length)
        if c_left.any():
            values = torch.einsum("mpq,mpqr->mr", d1, right)
            values = values if k is None else values + k.sum((1, 2))[:, None] * c_right
            result = result + c_left[:, None] * values[:, None, :]
        return result
