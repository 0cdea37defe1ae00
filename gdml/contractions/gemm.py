r"""The contraction of 1-jets, as matrix products.

Distances come from ``|x|² + |y|² - 2 x·y``, so that all sums over descriptor
entries are matrix products, and no array of (queries, references, entries) is
ever built. Because ``|x - s y| = |s⁻¹x - y|``, the group acts on the queries: the
references stay n short rows that fit into the cache.

Cost for one query: 8 n |S| D flops in products and about ten elementwise
operations on n |S| numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..hardware import in_tiles, tile
from ..kernels import RadialKernel
from ..symmetry import Action
from .base import Contraction, Jet

# Numbers in one tile of the (queries, references) matrix. Measured: smaller tiles
# spend their time in waking threads, larger ones leave the caches.
TILE = 512 * 1024
MAX_REFERENCES = 4096
ARRAYS = 8  # of this size at a time
# Numbers in the intermediates of a few columns, and of a few pairs of points.
COLUMN_TILE = 8 * 1024 * 1024
PAIR_TILE = 2 * 1024 * 1024
TINY = 1e-30  # where a square root still has a derivative


class GemmContraction(Contraction):
    """Sums of a kernel and its derivatives over reference points and a group, written out.

    Parameters as of `Contraction`.
    """

    def __init__(self, kernel: RadialKernel, y: Tensor, action: Action, dtype: torch.dtype = torch.float64):
        super().__init__(kernel, y, action, dtype)
        self.images = torch.as_tensor(action.rows(), device=y.device)
        self.inverse = torch.argsort(self.images, dim=1)

    def bind(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor], Jet]:
        w = (w / self.kernel.natural_length).to(self.dtype)
        chunks = []
        for y, w_part, c_part in zip(
            self.y.split(MAX_REFERENCES),
            w.split(MAX_REFERENCES),
            [None] * len(self.y) if c is None else c.to(self.dtype).split(MAX_REFERENCES),
        ):
            chunks.append(_References(self.kernel, y, c_part, w_part))
        columns = min(len(w), MAX_REFERENCES)
        return self._in_tiles(chunks, tile(w.device, TILE, ARRAYS) // (self.order * max(columns, self.size)))

    def _in_tiles(self, chunks: list[Callable[[Tensor], Jet]], step: int) -> Callable[[Tensor], Jet]:
        """The map from queries to jets that treats so many queries at a time, and their images against each chunk."""

        def evaluate(x: Tensor) -> Jet:
            nonlocal step  # where memory was short once, it is likely to be again
            e, g = x.new_empty(len(x)), torch.empty_like(x)

            def work(some: slice) -> None:
                e[some], g[some] = self._over_group(chunks, self.centred(x[some]))

            step = in_tiles(len(x), step, work)
            return e, g.div_(self.kernel.natural_length)

        return evaluate

    def _over_group(self, chunks: list[Callable[[Tensor], Jet]], x: Tensor) -> Jet:
        """Values and gradients, in units of the natural length, summed over references and images of the queries."""
        images = x[:, self.images].reshape(-1, self.size)
        values, gradients = (jet.double() for jet in chunks[0](images))
        for chunk in chunks[1:]:
            more = chunk(images)
            values, gradients = values + more[0], gradients + more[1]
        gradients = gradients.view(-1, self.order, self.size)
        back = self.inverse.expand(len(gradients), -1, -1)
        return values.view(-1, self.order).sum(1), gradients.gather(2, back).sum(1)

    def smallest_distances(self, x: Tensor) -> Tensor:
        result = x.new_empty(len(x), len(self.y))
        centred = self.centred(x)

        def work(some: slice) -> None:
            images = centred[some][:, self.images].flatten(0, 1)
            result[some] = distances(images, self.y).view(-1, self.order, len(self.y)).amin(1)

        in_tiles(len(x), tile(x.device, TILE, ARRAYS) // (self.order * max(len(self.y), self.size)), work)
        return result

    def columns_at_once(self, m: int) -> int:
        return max(1, tile(self.y.device, COLUMN_TILE, ARRAYS) // (m * (self.order + self.size)))

    def separate(self, x: Tensor, references: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        order, length = self.order, self.kernel.natural_length
        images = self.y[references][:, self.images]  # (b, |S|, D)
        duals = (w / length)[:, self.images]
        k, d1, d2 = self.kernel.unit_profile(distances(x, images.flatten(0, 1)), value=bool(c.any()))
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

    def pairs_at_once(self, n_labels: int) -> int:
        numbers = tile(self.y.device, PAIR_TILE, ARRAYS)
        return max(1, numbers // (self.size * n_labels + 2 * self.order * (self.size + n_labels)))

    def pairs(
        self, x: Tensor, c_left: Tensor, w_left: Tensor, references: Tensor, c_right: Tensor, w_right: Tensor
    ) -> Tensor:
        length = self.kernel.natural_length
        x, w_left, w_right = self.centred(x), w_left / length, w_right / length
        d = x[:, None] - self.y[references][:, self.images]  # (p, |S|, D)
        k, d1, d2 = self.kernel.unit_profile(torch.linalg.vector_norm(d, dim=2), value=bool(c_right.any()))
        is_single = len(references) > 0 and bool((references == references[0]).all())  # of shares, some are empty
        pull, u = (self._of_one if is_single else self._of_several)(d, d1, w_right)
        result = w_left.mT @ pull
        left_u = d @ w_left  # (p, |S|, L)
        q = u * d2[..., None]
        if k is not None:
            q += d1[..., None] * c_right
        result.baddbmm_(left_u.mT, q, alpha=-1)
        if c_left.any():
            values = (d1[:, None] @ u)[:, 0]
            values = values if k is None else values + k.sum(1)[:, None] * c_right
            result += c_left[:, None] * values[:, None, :]
        return result

    def _of_one(self, d: Tensor, d1: Tensor, w_right: Tensor) -> tuple[Tensor, Tensor]:
        """Sums Σ_s 𝒟k s w (p, D, R) and inner products d · s w (p, |S|, R), of jets on one reference point."""
        images = w_right[0][self.images]  # (|S|, D, R)
        pull = (d1 @ images.flatten(1)).unflatten(1, (self.size, -1))
        return pull, torch.bmm(d.transpose(0, 1), images).transpose(0, 1)

    def _of_several(self, d: Tensor, d1: Tensor, w_right: Tensor) -> tuple[Tensor, Tensor]:
        """The same on several, where the group as a matrix Σ_s 𝒟k P_s is small beside all images."""
        p, size = len(d), self.size
        place = torch.arange(size, device=d.device) * size + self.images
        group = d.new_zeros(p, size * size)
        group.index_add_(1, place.flatten(), d1.repeat_interleave(size, 1))
        return group.view(p, size, size) @ w_right, d.gather(2, self.inverse.expand_as(d)) @ w_right


def distances(x: Tensor, y: Tensor) -> Tensor:
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * (x @ y.T)
    return squared.clamp_(min=TINY).sqrt_()


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
