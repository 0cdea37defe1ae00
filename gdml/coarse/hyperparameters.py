r"""Choice of length scale and signal of a fit to noisy forces.

The mean of a Gaussian process depends on λ = 1 / s² of the a-priori variance s² of energies, where forces are in
units of their noise. With s given, length scales are tried by steps of two. Otherwise tried are ratios of
signal to noise, too, with

.. math:: \lambda = d \left( \frac{\text{noise}}{\text{signal}} \right)^2

and d the mean diagonal of the kernel matrix.

Held-out errors are nearly all noise: what candidates differ by is a thousandth of them. But that noise is the same
for all. So each candidate is compared with the best by the differences of the squared errors on the same held-out
frames, in which it cancels, over all of several parts of the data that are left out in turn. Of candidates within one
standard error of the best, the one with the largest λ is taken: 1 / √λ is what energies vary by a priori, and where
data do not tell, they should vary little.

Source of that rule: L. Breiman, J. Friedman, R. Olshen, C. Stone, Classification and Regression Trees (1984).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..contractions import contraction
from ..dataset import Dataset
from ..dynamics.averages import Average
from ..errors import FitError
from ..hyperparameters import Chosen
from ..operators import TrainingOperator
from ..plan import Plan, labels_of, solve_plan, spread_of
from ..processes import Shares, Team
from ..progress import Report, progress_bar
from ..solution import Method

PARTS = 4  # of the data, left out in turn
MOST = 1200  # frames that judge
RATIOS = (0.03, 3.0)  # of signal to noise, that are tried
LENGTHS = (0.25, 16.0)  # in units of the spread of descriptors
START = (1.0, 0.1)
BLOCKS = 20
At = tuple[float, float]


@dataclass(frozen=True)
class Candidate:
    """A length scale and λ, and the mean squared error on frames held out.

    Attributes
    ----------
    length_scale : float
    noise : float
        λ.
    squares : (M,) array
        Of each frame, its mean squared error of generalised forces, in units of their noise.
    """

    length_scale: float
    noise: float
    squares: np.ndarray

    @property
    def energy(self) -> float:
        """What energies vary by a priori, eV."""
        return self.noise**-0.5

    @property
    def error(self) -> float:
        return float(self.squares.mean())

    def minus(self, other: "Candidate") -> Average:
        """The difference of mean squared errors, with its standard error from blocks of frames."""
        difference = self.squares - other.squares
        blocks = [part.mean() for part in np.array_split(difference, BLOCKS)]
        return Average(float(difference.mean()), float(np.std(blocks, ddof=1) / BLOCKS**0.5))


def regularisation(plan: Plan, training: Dataset, length_scale: float, ratio: float) -> float:
    """λ for a ratio of signal to noise, by the mean diagonal of the kernel matrix."""
    few = training[training.sample(min(len(training), 200))]
    labels = labels_of(plan, few, Shares(Team(), len(few)))
    jets = contraction(plan.kernel.with_length_scale(length_scale), labels.features.x, plan.action, plan.backend)
    return float(TrainingOperator(jets, labels, 0.0).diagonal().mean()) / ratio**2


def choose(
    plan: Plan, beads: Dataset, energy: float | None = None, progress: bool = False
) -> tuple[Candidate, list[Candidate]]:
    """The candidate of the largest λ within a standard error of the best on frames held out, by steps of two; and all.

    With an energy given it is that of the shortest length scale: more frames are trained on than those that judge.

    Parameters
    ----------
    plan : Plan
        Of the fit.
    beads : Dataset
        Of more than some thousand frames, a sample judges.
    energy : float, eV, optional
        What energies vary by a priori.
    progress : bool

    Raises
    ------
    FitError
        If there are fewer frames than parts to leave out.
    """
    if len(beads) < 2 * PARTS:
        raise FitError(f"{len(beads)} frames are too few to choose a length scale on; give length_scale and energy")
    with progress_bar("length scale and signal", progress) as bar:
        search = _Search(plan, beads, energy, bar)
        search.judge(*START)
        search.until_settled(search.best, (2.0, 0.5))
        search.until_settled(search.plainest, (0.5,))
    return search.found[search.plainest()], list(search.found.values())


class _Search:
    """Candidates tried so far, by multiples of the spread and ratios."""

    def __init__(self, plan: Plan, beads: Dataset, energy: float | None = None, progress: Report | None = None):
        self.plan, self.energy, self.progress = plan, energy, progress
        self.beads = beads[beads.sample(MOST)] if len(beads) > MOST else beads
        # Interleaved, so that each part is like all others.
        self.parts = [np.arange(k, len(self.beads), PARTS) for k in range(PARTS)]
        everything = labels_of(plan, self.beads, Shares(Team(), len(self.beads)))
        self.basis, self.labels = everything.basis, everything.values
        self.spread = spread_of(plan, everything.features.x)
        self.found: dict[At, Candidate] = {}

    def best(self) -> At:
        return min(self.found, key=lambda at: self.found[at].error)

    def plainest(self) -> At:
        """Of those within a standard error of the best, that with the largest λ, or the shortest length scale."""
        best = self.found[self.best()]
        worse = {at: one.minus(best) for at, one in self.found.items()}
        near = [at for at, more in worse.items() if more.mean <= more.error]
        if self.energy is not None:
            return min(near)
        return max(near, key=lambda at: (self.found[at].noise, -self.found[at].error))

    def until_settled(self, which: Callable[[], At], steps: Sequence[float]) -> None:
        """Judge what is beside a candidate, until that stays the same."""
        at = None
        while at != which():
            multiple, ratio = at = which()
            for step in steps:
                self.judge(multiple * step, ratio)
                if self.energy is None:
                    self.judge(multiple, ratio * step)

    def judge(self, multiple: float, ratio: float) -> None:
        at = min(max(multiple, LENGTHS[0]), LENGTHS[1]), min(max(ratio, RATIOS[0]), RATIOS[1])
        if at not in self.found:
            length_scale = at[0] * self.spread
            noise = (
                regularisation(self.plan, self.beads, length_scale, at[1]) if self.energy is None else self.energy**-2
            )
            squares = np.empty(len(self.beads))
            for part in self.parts:
                squares[part] = self._errors(part, Chosen(length_scale, None, noise))
            self.found[at] = Candidate(length_scale, noise, squares)
            if self.progress:
                self.progress(len(self.found), len(self.found) + 4)

    def _errors(self, held: np.ndarray, chosen: Chosen) -> np.ndarray:
        """Mean squared errors of frames by a fit of all others."""
        training = self.beads[np.setdiff1d(np.arange(len(self.beads)), held)]
        field = solve_plan(self.plan, training, chosen, method=Method("auto"), judged_by_forces=True)
        forces = torch.tensor(field.predict(self.beads.positions[held]).forces)
        predicted = -torch.einsum("mi,miq->mq", forces.flatten(1), self.basis[held])
        return (predicted - self.labels[held]).square().mean(1).numpy()
