r"""The contraction of 1-jets, as matrix products.

A dual jet on a reference point y is a pair (c, w): it stands for the
functional f -> c f(y) + w · ∂f(y). A contraction turns dual jets on n reference
points into the value and gradient of

.. math::

   e(x) = \sum_{j=1}^{n} \sum_{s \in S} \left[ c_j \, k(|x - s y_j|)
          + w_j \cdot \partial_{y} k(|x - s y_j|) \right]

at M query points. With d = x - s y and the kernel's profile (k, 𝒟k, 𝒟²k),
u = (s w) · d and q = c 𝒟k + u 𝒟²k,

.. math:: e = \sum c \, k + u \, 𝒟k, \qquad \partial_x e = \sum 𝒟k \, (s w) - q \, d .

Distances come from ``|x|² + |y|² - 2 x·y``, so that all sums over descriptor
entries are matrix products, and no array of (queries, references, entries) is
ever built. Because ``|x - s y| = |s⁻¹x - y|``, the group acts on the queries: the
references stay n short rows that fit into the cache.

Cost for one query: 8 n |S| D flops in products and about ten elementwise
operations on n |S| numbers.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..kernels import RadialKernel

# Numbers in one tile of the (queries, references) matrix. Measured: smaller tiles
# spend their time in waking threads, larger ones leave the caches.
TILE = 512 * 1024
MAX_REFERENCES = 4096
# Numbers in the intermediates of a few columns.
COLUMN_TILE = 8 * 1024 * 1024

Jet = tuple[Tensor, Tensor]


class GemmContraction:
    """Sums of a kernel and its derivatives over reference points and a group.

    Parameters
    ----------
    kernel : RadialKernel
    y : (n, D) tensor
        Descriptors of the reference points.
    action : (|S|, D) int array
        The group's permutations of descriptor entries: s x = x[action[s]].
    """

    def __init__(self, kernel: RadialKernel, y: Tensor, action: np.ndarray):
        self.kernel = kernel
        self.action = torch.as_tensor(np.array(action))
        self.inverse = torch.argsort(self.action, dim=1)
        # The kernel sees differences only: an origin amid the references that the
        # group leaves alone keeps |x|² small and so the differences exact.
        self.origin = y.mean(0)[self.action].mean(0)
        self.y = self._scaled(y)

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.origin) / self.kernel.natural_length

    def bind(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor], Jet]:
        """The map from queries to jets for fixed dual jets.

        Parameters
        ----------
        c : (n,) tensor or None
            None stands for zeros, and saves the kernel's values.
        w : (n, D) tensor

        Returns
        -------
        callable
            From x (M, D) to e (M,) and g (M, D).
        """
        length = self.kernel.natural_length
        chunks = []
        for y, w_part, c_part in zip(
            self.y.split(MAX_REFERENCES),
            (w / length).split(MAX_REFERENCES),
            [None] * len(self.y) if c is None else c.split(MAX_REFERENCES),
        ):
            chunks.append(_References(self.kernel, y, c_part, w_part))
        return lambda x: self._evaluate(chunks, x)

    def apply(self, x: Tensor, c: Tensor | None, w: Tensor) -> Jet:
        """Values e (M,) and gradients g (M, D) at queries x (M, D)."""
        return self.bind(c, w)(x)

    def _evaluate(self, chunks: list["_References"], x: Tensor) -> Jet:
        n_queries, size = x.shape
        order = len(self.action)
        e, g = x.new_empty(n_queries), torch.empty_like(x)
        columns = max(len(chunk.y) for chunk in chunks)
        step = max(1, TILE // (order * columns))
        for start in range(0, n_queries, step):
            part = self._scaled(x[start : start + step])
            images = part[:, self.action].reshape(-1, size)
            values, gradients = chunks[0](images)
            for chunk in chunks[1:]:
                more = chunk(images)
                values, gradients = values + more[0], gradients + more[1]
            e[start : start + step] = values.view(-1, order).sum(1)
            gradients = gradients.view(-1, order, size)
            back = self.inverse.expand(len(gradients), -1, -1)
            g[start : start + step] = gradients.gather(2, back).sum(1)
        return e, g.div_(self.kernel.natural_length)

    def smallest_distances(self, x: Tensor) -> Tensor:
        """The smallest of the distances of x and s y over the group.

        In units of the kernel's natural length; x is (m, D), the result (m, n).
        """
        result = x.new_empty(len(x), len(self.y))
        step = max(1, TILE // (len(self.action) * len(self.y)))
        for part, into in zip(self._scaled(x).split(step), result.split(step)):
            images = part[:, self.action].flatten(0, 1)
            into.copy_(_distances(images, self.y).view(len(part), -1, len(self.y)).amin(1))
        return result

    def columns(self, x: Tensor, c_left: Tensor, w_left: Tensor, references: Tensor, c: Tensor, w: Tensor) -> Tensor:
        """The contraction between bases of dual jets and single ones, written out: columns of the kernel.

        Parameters
        ----------
        x : (m, D) tensor
            Points of the left dual jets.
        c_left, w_left : (L,) and (m, D, L) tensors
            L dual jets on each of these points; the values c are the same on all.
        references : (b,) int tensor
            The reference points that the right dual jets are on; may repeat.
        c, w : (b,) and (b, D) tensors

        Returns
        -------
        (m, L, b) tensor
        """
        x = self._scaled(x)
        along = (w_left.mT @ x[..., None])[..., 0]
        result = x.new_empty(len(x), len(c_left), len(c))
        step = max(1, COLUMN_TILE // (x.numel() + len(x) * len(self.action)))
        for start in range(0, len(c), step):
            some = slice(start, start + step)
            jets = self._separate(x, references[some], c[some], w[some])
            result[:, :, some] = self._against(c_left, w_left, along, *jets)
        return result

    def _separate(self, x: Tensor, references: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The jets of single dual jets at scaled points x: values (m, b), and gradients as g (b, m, D) - q (m, b) x."""
        order, length = len(self.action), self.kernel.natural_length
        images = self.y[references][:, self.action]  # (b, |S|, D)
        duals = (w / length)[:, self.action]
        k, d1, d2 = self.kernel.unit_profile(_distances(x, images.flatten(0, 1)), value=bool(c.any()))
        u = x @ duals.flatten(0, 1).mT
        u -= torch.linalg.vecdot(images, duals).flatten()
        e, q = d1 * u, u.mul_(d2)
        if k is not None:
            spread = c.repeat_interleave(order)
            e += k * spread
            q += d1 * spread
        d1, q = d1.div_(length).view(len(x), -1, order), q.div_(length).view(len(x), -1, order)
        g = torch.bmm(torch.cat([d1, q], 2).transpose(0, 1), torch.cat([duals, images], 1))
        return e.view(len(x), -1, order).sum(2), g, q.sum(2)

    @staticmethod
    def _against(c_left: Tensor, w_left: Tensor, along: Tensor, e: Tensor, g: Tensor, q: Tensor) -> Tensor:
        """What left dual jets, with `along` = w · x (m, L), say of such jets: (m, L, b)."""
        result = torch.bmm(w_left.mT, g.permute(1, 2, 0))
        result -= along[:, :, None] * q[:, None, :]
        if c_left.any():
            result += c_left[:, None] * e[:, None, :]
        return result

    def pairs(
        self, x: Tensor, c_left: Tensor, w_left: Tensor, references: Tensor, c_right: Tensor, w_right: Tensor
    ) -> Tensor:
        """The contraction between bases of dual jets on p pairs of points, written out: kernel blocks.

        Parameters
        ----------
        x : (p, D) tensor
            Points of the left dual jets.
        c_left, w_left : (L,) and (p, D, L) tensors
            L dual jets on each of these points; the values c are the same on all.
        references : (p,) int tensor
            The reference point of each pair.
        c_right, w_right : (R,) and (p, D, R) tensors
            R dual jets on each of the reference points.

        Returns
        -------
        (p, L, R) tensor
        """
        length = self.kernel.natural_length
        x, w_left, w_right = self._scaled(x), w_left / length, w_right / length
        p, size = x.shape
        d = x[:, None] - self.y[references][:, self.action]  # (p, |S|, D)
        k, d1, d2 = self.kernel.unit_profile(torch.linalg.vector_norm(d, dim=2), value=bool(c_right.any()))
        # The group as it acts on the right jets, Σ_s 𝒟k P_s, is small beside their images.
        place = torch.arange(size) * size + self.action
        group = x.new_zeros(p, size * size)
        group.index_add_(1, place.flatten(), d1.repeat_interleave(size, 1))
        result = w_left.mT @ (group.view(p, size, size) @ w_right)
        left_u = d @ w_left  # (p, |S|, L)
        u = d.gather(2, self.inverse.expand_as(d)) @ w_right
        q = u * d2[..., None]
        if k is not None:
            q += d1[..., None] * c_right
        result.baddbmm_(left_u.mT, q, alpha=-1)
        if c_left.any():
            values = (d1[:, None] @ u)[:, 0]
            values = values if k is None else values + k.sum(1)[:, None] * c_right
            result += c_left[:, None] * values[:, None, :]
        return result


def _distances(x: Tensor, y: Tensor) -> Tensor:
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * (x @ y.T)
    return squared.clamp_(min=0.0).sqrt_()


class _References:
    """A tile of references with their dual jets, laid out for matrix products.

    The constant parts of |x - y|² and w · (x - y) ride along as further entries
    of the descriptors, so that each is one product.
    """

    def __init__(self, kernel: RadialKernel, y: Tensor, c: Tensor | None, w: Tensor):
        self.kernel, self.y, self.c = kernel, y, c
        one = y.new_ones(len(y), 1)
        zero = torch.zeros_like(one)
        self.for_squares = torch.cat([-2.0 * y, (y * y).sum(1, keepdim=True), one], 1).T.contiguous()
        self.for_slopes = torch.cat([w, -(w * y).sum(1, keepdim=True), zero], 1).T.contiguous()
        self.y_and_one = torch.cat([y, one], 1)
        self.w_and_zero = torch.cat([w, zero], 1)

    def __call__(self, x: Tensor) -> Jet:
        size = x.shape[1]
        one = x.new_ones(len(x), 1)
        query = torch.cat([x, one, (x * x).sum(1, keepdim=True)], 1)
        s = (query @ self.for_squares).clamp_(min=0.0).sqrt_()
        k, d1, d2 = self.kernel.unit_profile(s, value=self.c is not None)
        u = query @ self.for_slopes
        e = torch.linalg.vecdot(u, d1)
        q = u.mul_(d2)
        if self.c is not None:
            e += k @ self.c
            q.addcmul_(d1, self.c)
        pull = (q @ self.y_and_one).addmm_(d1, self.w_and_zero)
        return e, torch.addcmul(pull[:, :size], pull[:, size:], x, value=-1)
