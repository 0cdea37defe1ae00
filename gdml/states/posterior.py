r"""How sure a force field of several states is of each of them, and of their gaps.

The energy :math:`E_a = \sum_s a_s E_s`, of one state or a gap, has with itself and with a label p of a
geometry of the state s(p) the covariances

.. math::

   \operatorname{cov}(E_a(R), E_a(R')) = a^T C a \; k(R, R') , \qquad
   \operatorname{cov}(E_a(R), p) = (C a)_{s(p)} \; K_{Rp} .

With these, and with :math:`K \circ C` for the labels, the variance is that of `gdml.posterior`. So the
variance of a gap has the covariance of its states in it. Energies are relative to each state's mean over its own
training geometries; the means of all states are known.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor
from torch.nn.functional import one_hot

from ..posterior import Posterior


@dataclass(frozen=True, eq=False, kw_only=True)
class StatesPosterior(Posterior):
    """Variances from the labels of some geometries of all states.

    Parameters
    ----------
    state_of : (k,) int tensor
        The place of each geometry's state.
    couplings : (S, S) tensor
        C.
    weights : (S,) tensor, optional
        a; without it, variances are those of no energy yet: see `of`.
    whole : StatesPosterior, optional
        With the same labels; what does not depend on a is computed there, once.
    """

    state_of: Tensor
    couplings: Tensor
    weights: Tensor | None = None
    whole: "StatesPosterior | None" = None

    def of(self, weights: Tensor) -> "StatesPosterior":
        """The variances of the sum of the states' energies times weights (S,)."""
        return replace(self, weights=weights, whole=self)

    def recipe(self) -> dict[str, object]:
        return super().recipe() | {"kind": "states"}

    def arrays(self) -> dict[str, Tensor]:
        own = {"state_of": self.state_of, "couplings": self.couplings}
        return super().arrays() | own | ({} if self.weights is None else {"weights": self.weights})

    @property
    def _shares(self) -> Tensor:
        of_state = one_hot(self.state_of, len(self.couplings)).to(self.y).mT
        return of_state / of_state.sum(1, keepdim=True)

    @property
    def _reference(self) -> Tensor:
        return self.weights

    def _of_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _times(super()._of_means(x), (self.couplings @ self.weights)[:, None])

    def _means_with_points(self) -> tuple[Tensor, Tensor]:
        return _times(super()._of_means(self.y), self.couplings[:, self.state_of])

    def _between_labels(self) -> Tensor:
        factors, n_labels = self.couplings[self.state_of][:, self.state_of], len(self.c)
        return super()._between_labels() * factors.repeat_interleave(n_labels, 0).repeat_interleave(n_labels, 1)

    @cached_property
    def _mean_rows(self) -> tuple[Tensor, Tensor]:
        return super()._mean_rows if self.whole is None else self.whole._mean_rows

    @cached_property
    def _whitening(self) -> Tensor:
        return super()._whitening if self.whole is None else self.whole._whitening

    def _blocks(self, x: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        own, cross = super()._blocks(x, c, w)
        row = self.couplings @ self.weights
        factors = row[self.state_of].repeat_interleave(len(self.c))
        return own * (self.weights @ row), cross * factors[:, None]


def _times(jets: tuple[Tensor, Tensor], factors: Tensor) -> tuple[Tensor, Tensor]:
    e, g = jets
    return e * factors, g * factors[..., None]
