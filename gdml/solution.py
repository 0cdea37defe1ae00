"""Solution of the training system: which way, and when it is good enough."""

from dataclasses import dataclass

from torch import Tensor

from .cost import Problem, choose_solver
from .descriptors import PairFeatures
from .errors import FitError
from .memory import check_closed_form
from .operators import TrainingOperator
from .preconditioners import FACTORS, build
from .progress import iteration_bar, progress_bar
from .solvers import cg, cholesky_factor, cholesky_solve

# Of conjugate gradients. From here on the error on held-out forces hardly moves;
# benchmarks/cg.py has the figures.
DEFAULT_RTOL = 3e-4
# With a validation set, CG ends before that if its force error has stayed within this
# fraction over the last looks at it, so many iterations apart.
SETTLED, LOOKS, LOOK_EVERY = 1e-3, 4, 10


@dataclass(frozen=True)
class Method:
    """How to solve the training system; see `gdml.fit`."""

    solver: str = "cholesky"
    preconditioner: str = "rpcholesky"
    rank: int | str = "auto"
    rtol: float = DEFAULT_RTOL

    def check(self, n_frames: int, n_labels: int, size: int, order: int) -> None:
        """Find out before the work what can be found out: names, ranges, memory of the closed form."""
        if self.preconditioner not in (*FACTORS, "none"):
            raise FitError(f"unknown preconditioner {self.preconditioner!r}; known: {', '.join(FACTORS)} and none")
        if self.rank != "auto" and not (isinstance(self.rank, int) and self.rank >= 1):
            raise FitError(f"the rank must be a positive integer or 'auto', not {self.rank!r}")
        if not 0 < self.rtol < 1:
            raise FitError(f"rtol must lie between 0 and 1, not {self.rtol}")
        if self.solver == "cholesky":
            check_closed_form(n_frames, n_labels, size, order)


CLOSED_FORM = Method()


class ForceMonitor:
    """Whether the force error on held-out geometries has stopped to change, asked after each iteration.

    Parameters
    ----------
    features : PairFeatures or None
        Of the held-out geometries; with None it never has.
    forces : (M, N, 3) tensor or None
    """

    def __init__(self, features: PairFeatures | None = None, forces: Tensor | None = None):
        self.features, self.forces = features, forces
        self.errors: list[float] = []

    def __call__(self, operator: TrainingOperator, iteration: int, x: Tensor) -> bool:
        if self.features is None or iteration % LOOK_EVERY:
            return False
        c, w = operator.labels.spread(x.view_as(operator.labels.values))
        _, g = operator.contraction.apply(self.features.x, c, w)
        self.errors.append(float((self.features.vjp(g) + self.forces).square().mean().sqrt()))
        recent = self.errors[-LOOKS:]
        return len(recent) == LOOKS and max(recent) - min(recent) < SETTLED * recent[-1]


def solve(
    operator: TrainingOperator, method: Method, monitor: ForceMonitor, progress: bool
) -> tuple[Tensor, dict[str, str | int | float]]:
    """The solution of the training system, and an account of how it was found."""
    labels = operator.labels
    n_frames, n_labels = labels.values.shape
    order, size = operator.contraction.action.shape
    problem = Problem(n_frames, n_labels, size, order)
    rank = problem.default_rank() if method.rank == "auto" else min(int(method.rank), problem.n_unknowns)
    name, why = choose_solver(problem, operator, method.solver, rank)
    target = labels.values.flatten()
    if name == "cholesky":
        with progress_bar("kernel matrix", progress) as bar:
            matrix = operator.to_dense(bar)
        with progress_bar("Cholesky", progress) as bar:
            factor = cholesky_factor(matrix, progress=bar)
        return cholesky_solve(factor, target), {"name": name, "why": why}
    with progress_bar(f"preconditioner of rank {rank}", progress):
        preconditioner = build(method.preconditioner, operator, rank)
    with iteration_bar(method.rtol, progress) as report:

        def callback(iteration: int, x: Tensor, residual: float) -> bool:
            if report:
                report(iteration, x, residual)
            return monitor(operator, iteration, x)

        solution = cg(operator, target, preconditioner=preconditioner, rtol=method.rtol, callback=callback)
    solution.require_convergence()
    account = {"preconditioner": method.preconditioner, "rank": rank, "iterations": solution.n_iter}
    return solution.x, {"name": name, "why": why, **account, "residual": solution.residuals[-1]}
