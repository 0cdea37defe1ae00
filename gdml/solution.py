"""Solution of the training system: which way, and when it is good enough."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .checkpoints import Journal
from .cost import PROBE, Choice, Problem, choose
from .descriptors import Features
from .errors import FitError, ProcessError
from .hardware import memory_explained
from .operators import TrainingOperator
from .preconditioners import FACTORS, Begun, begin, build
from .progress import iteration_bar, progress_bar
from .solvers import Solution, State, cg, cholesky_factor, cholesky_solve
from .symmetry import Environments

SOLVERS = ("auto", "cholesky", "cg")
# Conjugate gradients end when the misfit on the training forces is this fraction of the
# error on other forces: if it were independent of it, an eighth of a percent more.
CLOSE = 0.05
# And where nothing is known about that error. benchmarks/cg.py has what it costs.
UNKNOWN_ERROR_RTOL = 3e-4
TIGHTEST_RTOL = 1e-7
# Geometries that the preconditioner sees together with each one; none of those of crystals,
# where a block of the matrix costs as much as hundreds of columns elsewhere.
DEFAULT_NEIGHBOURS = 4
# With a validation set, CG ends before that if its force error has stayed within this
# fraction over the last looks at it, so many iterations apart.
SETTLED, LOOKS, LOOK_EVERY = 1e-3, 8, 5


@dataclass(frozen=True)
class Method:
    """How to solve the training system; see `gdml.fit`."""

    solver: str = "cholesky"
    preconditioner: str = "rpcholesky"
    rank: int | str = "auto"
    neighbours: int | str = "auto"
    rtol: float | str = "auto"

    def check(self, problem: Problem) -> None:
        """Find out before the work what can be found out: names, ranges, memory of the closed form."""
        if problem.n_processes > problem.n_frames:
            raise ProcessError(
                f"{problem.n_processes} processes share out {problem.n_frames} geometries, so that some have none; "
                f"start at most {problem.n_frames}"
            )
        if self.solver not in SOLVERS:
            raise FitError(f"the solver is 'auto', 'cholesky' or 'cg', not {self.solver!r}")
        if self.preconditioner not in (*FACTORS, "none"):
            raise FitError(f"unknown preconditioner {self.preconditioner!r}; known: {', '.join(FACTORS)} and none")
        if self.rank != "auto" and not (isinstance(self.rank, int) and self.rank >= 1):
            raise FitError(f"the rank must be a positive integer or 'auto', not {self.rank!r}")
        if self.neighbours != "auto" and not (isinstance(self.neighbours, int) and self.neighbours >= 0):
            raise FitError(
                f"the number of neighbours must be 'auto' or an integer that is not negative, not {self.neighbours!r}"
            )
        if self.rtol != "auto" and not (isinstance(self.rtol, float) and 0 < self.rtol < 1):
            raise FitError(f"rtol must lie between 0 and 1, or be 'auto', not {self.rtol!r}")
        if self.solver == "cholesky":
            if problem.n_processes > 1:
                raise ProcessError("the closed form is for one process; several train by solver='cg' (or 'auto')")
            problem.check_closed_form()


CLOSED_FORM = Method()


class ForceMonitor:
    """What iterations are good for: the force error on other geometries.

    Parameters
    ----------
    features : Features, optional
        Of held-out geometries; of several processes, each has some.
    forces : (M, N, 3) tensor, optional
        Their forces.
    expected : float, optional
        Root mean square error to expect, eV/Å, where nothing is held out.

    Attributes
    ----------
    errors : list of float
        Root mean square errors at each look, eV/Å.
    """

    def __init__(self, features: Features | None = None, forces: Tensor | None = None, expected: float | None = None):
        self.features, self.forces, self.expected = features, forces, expected
        self.errors: list[float] = []

    def look(self, operator: TrainingOperator, x: Tensor) -> None:
        """Find the error that a solution has on the held-out geometries."""
        _, g = operator.contraction.apply(self.features.x, *operator.dual_jets(x))
        squares = (self.features.vjp(g) + self.forces).square()
        total, count = operator.shares.sum(torch.stack([squares.sum(), squares.new_tensor(squares.numel())])).tolist()
        self.errors.append(math.sqrt(total / count))

    def has_settled(self) -> bool:
        """Whether the error has stopped to change."""
        recent = self.errors[-LOOKS:]
        return len(recent) == LOOKS and max(recent) - min(recent) < SETTLED * recent[-1]

    def goal(self, operator: TrainingOperator) -> float:
        """The relative residual from which on the force error hardly moves."""
        error = self.errors[-1] if self.errors else self.expected
        if error is None:
            return TIGHTEST_RTOL if self.features else UNKNOWN_ERROR_RTOL
        labels = operator.labels
        misfit = CLOSE * error * math.sqrt(operator.shares.n * labels.basis.shape[1])  # norm of all components
        return min(0.1, max(TIGHTEST_RTOL, misfit / float(operator.norm(labels.values.flatten()))))


def solve(
    operator: TrainingOperator, method: Method, monitor: ForceMonitor, progress: bool, journal: Journal
) -> tuple[Tensor, dict[str, str | int | float]]:
    """The solution of the training system, and an account of how it was found."""
    order, size = operator.contraction.order, operator.contraction.size
    translations = operator.contraction.n_translations
    if method.neighbours == "auto":
        method = replace(method, neighbours=0 if translations > 1 else DEFAULT_NEIGHBOURS)
    team = operator.shares.team
    sizes = operator.shares.n, operator.block_size, size, order
    is_local = isinstance(operator.contraction.action, Environments)
    problem = Problem(*sizes, method.neighbours, translations, operator.device, team.size, is_local)
    with memory_explained(operator.device, "train with a lower rank, in several processes, or on the CPU"):
        return _solve(operator, problem, method, monitor, progress, journal)


def _solve(operator, problem, method, monitor, progress, journal) -> tuple[Tensor, dict[str, str | int | float]]:
    choice, begun = _choose(operator, problem, method, progress)
    if choice.name == "cg" or journal.rank:
        solution, account = _Iteration(operator, problem, method, monitor, progress, journal).run(choice, begun)
        return solution, {"name": "cg", "why": choice.why, **account}
    with progress_bar("kernel matrix", progress) as bar:
        matrix = operator.to_dense(bar)
    with progress_bar("Cholesky", progress) as bar:
        factor = cholesky_factor(matrix, progress=bar)
    return cholesky_solve(factor, operator.labels.values.flatten()), {"name": "cholesky", "why": choice.why}


def _choose(
    operator: TrainingOperator, problem: Problem, method: Method, progress: bool
) -> tuple[Choice, Begun | None]:
    """The solver and the rank, and the columns of the preconditioner that were made on the way."""
    if method.solver == "cholesky":
        return Choice("cholesky", "asked for"), None
    team = operator.shares.team
    if method.solver == "auto" and team.size == 1 and problem.is_small and problem.fits_closed_form():
        return Choice("cholesky", "a small problem"), None
    with progress_bar("decay of the matrix", progress):
        begun = begin(operator, max(min(16, problem.n_unknowns), problem.n_unknowns // PROBE))
    rank = None if method.rank == "auto" else int(method.rank)
    decay, solver = begun.decay(), method.solver if team.size == 1 else "cg"
    choice = team.agree(lambda: choose(problem, decay, operator.noise, solver, rank))
    return (choice if solver == method.solver else replace(choice, why=f"{team.size} processes")), begun


@dataclass
class _Iteration:
    """Conjugate gradients; where they are slow, they go on with a preconditioner of twice the rank."""

    operator: TrainingOperator
    problem: Problem
    method: Method
    monitor: ForceMonitor
    progress: bool
    journal: Journal

    def run(self, choice: Choice, begun: Begun | None) -> tuple[Tensor, dict[str, str | int | float]]:
        """The solution, and an account."""
        rank, spent = self.journal.rank or choice.rank, self.journal.spent
        start = self.journal.state and self.journal.state.share(self.operator)
        self.monitor.errors = list(self.journal.errors)
        team = self.operator.shares.team
        largest = team.agree(self.problem.largest_rank)
        while True:
            can_grow = self.method.rank == "auto" and self.method.preconditioner != "none" and rank < largest
            limit = team.agree(partial(self.problem.patience, rank)) if can_grow else None
            solution = self._attempt(rank, begun if rank == choice.rank else None, start, limit, spent)
            spent += solution.n_iter
            if solution.converged or solution.is_exhausted or not can_grow:
                break
            rank, begun = min(2 * rank, largest), None
            start = State.at(self.operator, self.operator.labels.values.flatten(), solution.x)
        solution.require_convergence()
        account = {"preconditioner": self.method.preconditioner, "rank": rank, "neighbours": self.method.neighbours}
        return solution.x, account | {"iterations": spent, "residual": solution.residuals[-1]}

    def _attempt(self, rank: int, begun: Begun | None, start: State | None, limit: int | None, spent: int) -> Solution:
        """Iterations with a preconditioner of one rank."""
        with progress_bar(f"preconditioner of rank {rank}", self.progress):
            name, neighbours = self.method.preconditioner, self.method.neighbours
            preconditioner = build(name, self.operator, rank, neighbours, begun=begun)
        is_auto = self.method.rtol == "auto"
        with iteration_bar(self.progress) as report:

            def callback(state: State) -> bool:
                if self.monitor.features and state.n_iter % LOOK_EVERY == 0:
                    self.monitor.look(self.operator, state.x)
                goal = self.monitor.goal(self.operator) if is_auto else self.method.rtol
                if report:
                    report(spent + state.n_iter, state.residuals[-1], goal, self.monitor.errors)
                self.journal.note(rank, spent, state, self.monitor.errors, self.operator.unknowns)
                return is_auto and (state.residuals[-1] < goal or self.monitor.has_settled())

            return cg(
                self.operator,
                self.operator.labels.values.flatten(),
                preconditioner=preconditioner,
                start=start,
                rtol=TIGHTEST_RTOL if is_auto else self.method.rtol,
                max_iter=limit,
                callback=callback,
            )
