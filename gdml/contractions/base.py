r"""The contraction of 1-jets.

A dual jet on a reference point y is a pair (c, w): it stands for the
functional f -> c f(y) + w · ∂f(y). A contraction turns dual jets on n reference
points into the value and gradient of

.. math::

   e(x) = \sum_{j=1}^{n} \sum_{s \in S} \left[ c_j \, k(|x - s y_j|)
          + w_j \cdot \partial_{y} k(|x - s y_j|) \right]

at M query points. With d = x - s y and the kernel's profile (k, 𝒟k, 𝒟²k),
u = (s w) · d and q = c 𝒟k + u 𝒟²k,

.. math:: e = \sum c \, k + u \, 𝒟k, \qquad \partial_x e = \sum 𝒟k \, (s w) - q \, d .
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..hardware import keep_freed_memory
from ..kernels import RadialKernel
from ..symmetry import Action, Environments

Jet = tuple[Tensor, Tensor]


class Contraction(ABC):
    """Sums of a kernel and its derivatives over reference points and a group.

    Parameters
    ----------
    kernel : RadialKernel
    y : (n, D) tensor
        Descriptors of the reference points.
    action : Action or Environments
        The group's permutations of descriptor entries, or the points that are compared.
    dtype : torch.dtype
        In which to compute, on the device of y; what goes in and comes out is in
        double precision, and so are sums over tiles.
    """

    def __init__(
        self, kernel: RadialKernel, y: Tensor, action: Action | Environments, dtype: torch.dtype = torch.float64
    ):
        keep_freed_memory()
        self.kernel, self.action, self.dtype = kernel, action, dtype
        self.order, self.size = action.order, action.size
        self.n_translations = 1  # that are made use of
        # The kernel sees differences only: an origin amid the references that the
        # group leaves alone keeps |x|² small and so the differences exact.
        self.origin = torch.tensor(action.reduce(y.detach().mean(0).cpu().numpy(), np.mean), device=y.device)
        self.x, self.y = y, self.centred(y)

    def centred(self, x: Tensor) -> Tensor:
        """Descriptors relative to the origin, in units of the kernel's natural length."""
        return ((x - self.origin) / self.kernel.natural_length).to(self.dtype)

    @abstractmethod
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

    def bind_curvature(self, c: Tensor | None, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        r"""The map from a query and directions to second derivatives, for fixed dual jets.

        With d = x - s y, u = (s w) · d and dq = 𝒟²k (s w) · v - (c 𝒟²k + u 𝒟³k) d · v for
        a direction v,

        .. math:: \partial^2 e \, v = -\sum 𝒟^2 k \, (d \cdot v) \, s w + dq \, d + q \, v .

        In double precision, one image of the query at a time: for n references, k directions
        and |S| images 8 n k |S| D flops.

        Returns
        -------
        callable
            From x (D,) and v (k, D) to ∂²e v (k, D).
        """
        length, parts = self.kernel.natural_length, self.action.parts
        y, w = (self.x - self.origin) / length, w / length

        def evaluate(x: Tensor, v: Tensor) -> Tensor:
            x, total = (x - self.origin) / length, torch.zeros_like(v)
            for row in (torch.as_tensor(row, device=x.device) for part in parts() for row in part):
                total[:, row] += self._curvature_of_image(x[row] - y, c, w, v[:, row])
            return total.div_(length**2)

        return evaluate

    def _curvature_of_image(self, d: Tensor, c: Tensor | None, w: Tensor, v: Tensor) -> Tensor:
        s = torch.linalg.vector_norm(d, dim=1)
        _, d1, d2 = self.kernel.unit_profile(s, value=False)
        u = torch.linalg.vecdot(w, d)
        q, inner = u * d2, u * self.kernel.unit_third(s)
        if c is not None:
            q, inner = q + c * d1, inner + c * d2
        along = v @ d.mT  # (k, n)
        dq = (v @ w.mT) * d2 - along * inner
        return -((along * d2) @ w + dq @ d + q.sum() * v)

    def apply(self, x: Tensor, c: Tensor | None, w: Tensor) -> Jet:
        """Values e (M,) and gradients g (M, D) at queries x (M, D)."""
        return self.bind(c, w)(x)

    @abstractmethod
    def smallest_distances(self, x: Tensor) -> Tensor:
        """The smallest of the distances of x and s y over the group.

        In units of the kernel's natural length; x is (m, D), the result (m, n).
        """

    @abstractmethod
    def columns_at_once(self, m: int) -> int:
        """How many columns to ask of `separate` at a time, at m queries, for speed."""

    @abstractmethod
    def separate(self, x: Tensor, references: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What single dual jets make of themselves: a function for each.

        Parameters
        ----------
        x : (m, D) tensor
            Queries, `centred`.
        references : (b,) int tensor
            The reference points that the dual jets are on; may repeat.
        c, w : (b,) and (b, D) tensors

        Returns
        -------
        e : (m, b) tensor
            The functions' values.
        g, q : (b, m, D) and (m, b) tensors
            Their gradients, as g - q x with the centred x.
        """

    @abstractmethod
    def pairs_at_once(self, n_labels: int) -> int:
        """How many pairs with L labels on each point to ask of `pairs` at a time, those of one reference together."""

    @abstractmethod
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
            R dual jets on each of the reference points; the same where it repeats.

        Returns
        -------
        (p, L, R) tensor
        """
