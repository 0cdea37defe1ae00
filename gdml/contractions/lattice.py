r"""The contraction of 1-jets for crystals, as Fourier sums over the translations.

The group is T times coset representatives Q, with T the translations. As sums
over T, inner products of a descriptor with all images of another are
correlations, and sums of images are convolutions. With the transform
:math:`\hat x(\chi) = |T|^{-1/2} \sum_t x(t) \bar\chi(t)` of each orbit o of entries
along T, over the characters χ of T,

.. math::

   (u x) \cdot y = \sum_\chi \chi(u) \sum_o \hat x_o(\chi) \overline{\hat y_o(\chi)} ,
   \qquad
   \hat g(\chi) = \sum_u a(u) \bar\chi(u) \, \hat w(\chi)
   \;\text{ for }\; g = \sum_u a(u) \, u^{-1} w .

Only one of each pair of conjugate characters is kept, and complex products are
written as real ones. The transforms are matrix products too: for the |T| of
supercells, up to some hundreds, that is faster than an FFT, and any T will do.

Cost for one query and one reference: about |S| (20 D / |T| + 10 |T|) flops
instead of 8 |S| D. Source of the method: the convolution theorem.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..hardware import in_tiles, tile
from ..kernels import RadialKernel
from ..symmetry import Action, characters
from .base import Contraction, Jet

# Numbers in the intermediates of a few queries. Measured: beyond this the caches are left.
TILE = 512 * 1024
ARRAYS = 8  # of this size at a time
# And of a few columns: of their intermediates, which the caches should hold, and of the result.
COLUMN_TILE, COLUMNS = 3 * 1024 * 1024, 16 * 1024 * 1024
# And in the dual jets of a few pairs: the more of one column, the better.
PAIRS = 64 * 1024 * 1024


class Transform:
    """The real Fourier transform over a commuting group, of the entries that it permutes.

    Descriptors (m, D) become (2, F, m, O): real and imaginary parts for F
    characters, one of each conjugate pair, and O orbits of entries.

    Parameters
    ----------
    rows : (|T|, D) int array
        Permutations of entries, all different.
    device, dtype
        Of the descriptors.
    """

    def __init__(self, rows: np.ndarray, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64):
        self.order = len(rows)
        representatives = np.unique(rows.min(0))
        self.orbits = torch.tensor(rows[:, representatives], device=device)  # (|T|, O)
        # Of an orbit with fewer than |T| entries, each occurs several times.
        repeats = (self.orbits == self.orbits[0]).sum(0)
        self.weights = None if (repeats == 1).all() else repeats.double().rsqrt().to(dtype)
        exponents = characters(rows)
        conjugate = -exponents % self.order
        kept = [a for a in range(self.order) if exponents[a].tolist() <= conjugate[a].tolist()]
        twice = 2.0 - torch.tensor((exponents == conjugate)[kept].all(1)).double()
        angles = torch.tensor(exponents[kept]).double() * (2 * math.pi / self.order)
        waves = torch.stack([angles.cos(), -angles.sin()])  # (2, F, |T|)
        self.sums = waves.flatten(0, 1).to(device, dtype)
        self.products = (waves * twice[:, None]).flatten(0, 1).T.contiguous().to(device, dtype)
        self.forward, self.backward = (m / math.sqrt(self.order) for m in (self.sums, self.products))

    def of(self, x: Tensor, orbits: Tensor | None = None) -> Tensor:
        """Transforms (2, F, m, O) of descriptors x (m, D), or (2, F, m k, O) of k images of each, given their orbits.

        Parameters
        ----------
        orbits : (|T|, k, O) int tensor
            The entries that the permuted orbits consist of.
        """
        orbits = self.orbits[:, None] if orbits is None else orbits
        entries, (_, n_images, n_orbits) = orbits.flatten(), orbits.shape
        result = x.new_empty(len(self.forward), len(x), n_images * n_orbits)
        at_once = 1 if x.device.type == "cpu" else len(x)  # one by one, all stays in the cache
        for some, into in zip(x.split(at_once), result.split(at_once, 1)):
            lifted = some[:, entries].view(-1, *orbits.shape)
            if self.weights is not None:
                lifted *= self.weights
            into.copy_((self.forward @ lifted.flatten(2)).transpose(0, 1))
        return result.view(2, -1, len(x) * n_images, n_orbits)

    def back(self, transforms: Tensor) -> Tensor:
        """Along orbits, (|T|, ..., O), from transforms (2, F, ..., O)."""
        lifted = (self.backward @ transforms.flatten(0, 1).flatten(1)).view(self.order, *transforms.shape[2:])
        return lifted if self.weights is None else lifted.div_(self.weights)

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner products (|T|, m, k) of all images of m descriptors with k, from their transforms."""
        (a, b), (c, d) = x, y
        found = x.new_empty(2, len(a), a.shape[1], c.shape[1])
        torch.bmm(a, c.mT, out=found[0]).baddbmm_(b, d.mT)
        torch.bmm(b, c.mT, out=found[1]).baddbmm_(a, d.mT, alpha=-1)
        return (self.products @ found.view(len(self.sums), -1)).view(self.order, *found.shape[2:])

    def convolve(self, coefficients: Tensor, y: Tensor, into: Tensor | None = None) -> Tensor:
        """Transforms (2, F, B, m, O) of sums of images of k descriptors, added to `into`.

        Parameters
        ----------
        coefficients : (|T|, B, m, k) tensor
            Of the images of each descriptor.
        y : (2, F, B, k, O) tensor
        """
        shape = *y.shape[:3], coefficients.shape[2], y.shape[4]
        a, b = (self.sums @ coefficients.flatten(1)).view(2, -1, *coefficients.shape[2:])
        c, d = y.flatten(1, 2)
        into = y.new_zeros(shape) if into is None else into
        real, imaginary = into.view(2, -1, *shape[3:])
        real.baddbmm_(a, c).baddbmm_(b, d, alpha=-1)
        imaginary.baddbmm_(a, d).baddbmm_(b, c)
        return into


class LatticeContraction(Contraction):
    """Sums of a kernel and its derivatives over reference points and a group with many translations.

    Parameters as of `Contraction`; those of the action by translations all different.
    """

    def __init__(self, kernel: RadialKernel, y: Tensor, action: Action, dtype: torch.dtype = torch.float64):
        super().__init__(kernel, y, action, dtype)
        self.transform = Transform(action.translations, y.device, dtype)
        self.n_translations, self.n_cosets = len(action.translations), len(action.cosets)
        # Entries of the orbits of all images under Q, and where these go to when the images are undone.
        cosets = torch.tensor(action.cosets, device=y.device)
        self.images = cosets[:, self.transform.orbits].transpose(0, 1).contiguous()
        place = torch.empty(self.size, dtype=torch.long, device=y.device)
        place[self.transform.orbits.flatten()] = torch.arange(self.transform.orbits.numel(), device=y.device)
        self.undone = place[cosets.argsort(1)]
        self.y_hat = self.transform.of(self.y)

    def bind(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor], Jet]:
        w = (w / self.kernel.natural_length).to(self.dtype)
        c = None if c is None else c.to(self.dtype)
        duals = torch.cat([self.y_hat, self.transform.of(w)], 2)
        constants = torch.cat([(self.y * self.y).sum(1), (w * self.y).sum(1)])
        step = tile(w.device, TILE, ARRAYS) // (self.order * len(w) + self.n_cosets * self.size)

        def evaluate(x: Tensor) -> Jet:
            nonlocal step  # where memory was short once, it is likely to be again
            e, g = x.new_empty(len(x)), torch.empty_like(x)

            def work(some: slice) -> None:
                e[some], g[some] = self._evaluate_tile(duals, constants, c, self.centred(x[some]))

            step = in_tiles(len(x), step, work)
            return e, g.div_(self.kernel.natural_length)

        return evaluate

    def _evaluate_tile(self, duals: Tensor, constants: Tensor, c: Tensor | None, x: Tensor) -> Jet:
        n = len(self.y)
        products = self.transform.correlate(self.transform.of(x, self.images), duals)  # (|T|, m |Q|, 2 n)
        of_x = (x * x).sum(1).repeat_interleave(self.n_cosets)[:, None]
        s = products[..., :n].mul_(-2.0).add_(of_x + constants[:n]).clamp_(min=0.0).sqrt_()
        k, d1, d2 = self.kernel.unit_profile(s, value=c is not None)
        u = products[..., n:].sub_(constants[n:])
        e, q = (u * d1).sum((0, 2)), u * d2
        if c is not None:
            e += (k @ c).sum(0)
            q.addcmul_(d1, c)
        images = self.transform.convolve(torch.cat([q, d1], 2)[:, None], duals[:, :, None])
        images = self.transform.back(images[:, :, 0]).transpose(0, 1).reshape(len(x), self.n_cosets, -1)
        g = images.gather(2, self.undone.expand(len(x), -1, -1)).sum(1)
        g -= q.sum((0, 2)).view(-1, self.n_cosets).sum(1)[:, None] * x
        return e.view(-1, self.n_cosets).sum(1), g

    def smallest_distances(self, x: Tensor) -> Tensor:
        result = x.new_empty(len(x), len(self.y))
        centred = self.centred(x)

        def work(some: slice) -> None:
            part = centred[some]
            products = self.transform.correlate(self.transform.of(part, self.images), self.y_hat).amax(0)
            products = products.view(len(part), self.n_cosets, -1).amax(1)
            squared = (part * part).sum(1)[:, None] + (self.y * self.y).sum(1) - 2.0 * products
            result[some] = squared.clamp_(min=0.0).sqrt_()

        in_tiles(len(x), tile(x.device, TILE, ARRAYS) // (self.order * len(self.y) + self.n_cosets * self.size), work)
        return result

    def columns_at_once(self, m: int) -> int:
        return max(1, tile(self.y.device, COLUMNS, ARRAYS) // (m * self.size))

    def separate(self, x: Tensor, references: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_hat, of_x = self.transform.of(x), (x * x).sum(1)
        e, g, q = x.new_empty(len(x), len(c)), x.new_empty(len(c), *x.shape), x.new_empty(len(x), len(c))
        numbers = tile(x.device, COLUMN_TILE, ARRAYS)
        step = max(1, numbers // (len(x) * (self.order + 3 * self.size) + 4 * self.n_cosets * self.size))
        for start in range(0, len(c), step):
            some = slice(start, start + step)
            e[:, some], q[:, some] = self._separate(x_hat, of_x, references[some], c[some], w[some], g[some])
        return e, g, q

    def _separate(self, x_hat, of_x, references, c, w, g) -> tuple[Tensor, Tensor]:
        """Values and q of a few columns; their gradients go into g."""
        # Here Q acts on the references, so that sums over it are products too.
        length, n_cosets, m, b = self.kernel.natural_length, self.n_cosets, len(of_x), len(c)
        w = w / length
        used, which = references.unique(return_inverse=True)
        y = self.y[used]
        y_hat, w_hat = self.transform.of(y, self.images), self.transform.of(w, self.images)  # (2, F, b |Q|, O)
        products = self.transform.correlate(x_hat, y_hat).view(-1, m, len(used), n_cosets)
        s = products.mul_(-2.0).add_(of_x[:, None, None] + (y * y).sum(1)[:, None])
        k, d1, d2 = self.kernel.unit_profile(s.clamp_(min=0.0).sqrt_(), value=bool(c.any()))
        d1, d2 = d1[:, :, which], d2[:, :, which]  # (|T|, m, b, |Q|)
        u = self.transform.correlate(x_hat, w_hat).view(-1, m, b, n_cosets)
        u -= (w * self.y[references]).sum(1)[:, None]
        e, q = (d1 * u).sum((0, 3)), u.mul_(d2)
        if k is not None:
            e += k[:, :, which].sum((0, 3)) * c
            q += d1 * c[:, None]
        d1, slopes = d1.transpose(1, 2).contiguous(), q.transpose(1, 2).contiguous()  # (|T|, b, m, |Q|)
        images = self.transform.convolve(d1, w_hat.unflatten(2, (b, n_cosets)))
        y_hat = y_hat.unflatten(2, (-1, n_cosets))
        if len(used) == 1:  # all columns are of one geometry
            self.transform.convolve(
                slopes.view(-1, 1, b * m, n_cosets), y_hat, images.view(*y_hat.shape[:3], b * m, -1)
            )
        else:
            self.transform.convolve(slopes, y_hat[:, :, which], images)
        for entries, part in zip(self.transform.orbits, self.transform.back(images).div_(length)):
            g[:, :, entries] = part
        return e, q.sum((0, 3)) / length

    def pairs_at_once(self, n_labels: int) -> int:
        return max(1, tile(self.y.device, PAIRS, ARRAYS) // (2 * self.size * n_labels))

    def pairs(
        self, x: Tensor, c_left: Tensor, w_left: Tensor, references: Tensor, c_right: Tensor, w_right: Tensor
    ) -> Tensor:
        result = x.new_empty(len(x), len(c_left), len(c_right))
        for reference in references.unique():
            rows = (references == reference).nonzero()[:, 0]
            result[rows] = self._column(x[rows], c_left, w_left[rows], reference, c_right, w_right[rows[0]])
        return result

    def _column(self, x, c_left, w_left, reference, c_right, w_right) -> Tensor:
        """Blocks (m, L, R) between m points and one reference point."""
        x = self.centred(x)
        result = x.new_empty(len(x), len(c_left), len(c_right))
        step = self.columns_at_once(len(x))
        for start in range(0, len(c_right), step):
            some = slice(start, start + step)
            c = c_right[some]
            e, g, q = self.separate(x, reference.expand(len(c)), c, w_right[:, some].mT)
            g -= q.T[..., None] * x
            result[..., some] = w_left.mT @ g.permute(1, 2, 0) + c_left[:, None] * e[:, None, :]
        return result
