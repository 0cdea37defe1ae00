"""How long and how much memory a solution takes, before it starts; and which one to take."""

import time
from dataclasses import dataclass

import torch

from . import memory
from .errors import FitError
from .linear import LinearOperator
from .memory import check_closed_form, closed_form_bytes

RANK_FRACTION = 12  # unknowns for each column of the preconditioner; 8 to 16 take about the same time
EXPECTED_ITERATIONS = 200  # what ethanol takes is 40, aspirin 200 to 500
REJECTED = 1.4  # candidates for each column that is kept


@dataclass(frozen=True)
class Problem:
    """The sizes that decide: geometries n, labels of each L, descriptor entries D, order |S|."""

    n_frames: int
    n_labels: int
    size: int
    order: int

    @property
    def n_unknowns(self) -> int:
        return self.n_frames * self.n_labels

    @property
    def closed_form_bytes(self) -> int:
        return closed_form_bytes(self.n_frames, self.n_labels, self.size, self.order)

    def cg_bytes(self, rank: int) -> int:
        """8 [ N k + 1.5 k² + 2 n D L + 3 N r ]: factor, inner matrix, duals, a round of r = 256 columns."""
        duals = 2 * self.n_frames * self.size * self.n_labels
        return int(8 * (self.n_unknowns * rank + 1.5 * rank**2 + duals + 768 * self.n_unknowns))

    def default_rank(self) -> int:
        """Columns for the preconditioner: a twelfth of the unknowns, or what half of the memory holds."""
        rank = max(1, self.n_unknowns // RANK_FRACTION)
        return max(1, min(rank, memory.available_memory() // (2 * 8 * self.n_unknowns)))


def choose_solver(problem: Problem, operator: LinearOperator, solver: str, rank: int) -> tuple[str, str]:
    """The solver to take, "cholesky" or "cg", and why.

    With "auto", the one that fits into memory and promises to be faster: by the
    measured rate of a matrix product and time of one product with the operator,

    closed form: N³/3 + n² (3 |S| D L + D L²) operations;
    CG: 3.5 N k² operations, and 200 iterations of one product and four passes
    over the factor.

    Raises
    ------
    MemoryBudgetError
        If the chosen solver, or with "auto" both, do not fit.
    FitError
        For an unknown name.
    """
    sizes = (problem.n_frames, problem.n_labels, problem.size, problem.order)
    if solver == "cholesky":
        check_closed_form(*sizes)
        return "cholesky", "asked for"
    if solver == "cg":
        return "cg", "asked for"
    if solver != "auto":
        raise FitError(f"the solver is 'auto', 'cholesky' or 'cg', not {solver!r}")
    budget = memory.available_memory()
    if problem.closed_form_bytes > budget:
        if problem.cg_bytes(rank) > budget:
            check_closed_form(*sizes)
        return "cg", f"the closed form needs {problem.closed_form_bytes / 1e9:.1f} GB and {budget / 1e9:.1f} are there"
    closed, iterative = _seconds(problem, operator, rank)
    name = "cholesky" if closed <= iterative else "cg"
    return name, f"predicted {closed:.1f} s in closed form, {iterative:.1f} s by conjugate gradients"


def _seconds(problem: Problem, operator: LinearOperator, rank: int) -> tuple[float, float]:
    """Predicted times of the closed form and of CG."""
    n, labels, size, order = problem.n_frames, problem.n_labels, problem.size, problem.order
    unknowns = problem.n_unknowns
    rate = _gemm_rate()
    closed = (unknowns**3 / 3 / 0.75 + n**2 * (3 * order * size * labels + size * labels**2) / 0.5) / rate
    if closed < 1.0:  # not worth a measurement
        return closed, float("inf")
    v = torch.ones(unknowns, dtype=torch.float64)
    product = _seconds_of(lambda: operator.matmul(v))
    columns = REJECTED * rank * 2 * n * size * (2 * order + labels) / (0.3 * rate)
    # A core that does r operations in a second moves about r / 8 bytes.
    solve = 2 * 8 * unknowns * rank / (rate / 8)
    return closed, columns + 3.5 * unknowns * rank**2 / rate + EXPECTED_ITERATIONS * (product + solve)


def _gemm_rate(n: int = 1200) -> float:
    """Operations in a second of a large matrix product."""
    a = torch.ones(n, n, dtype=torch.float64)
    return 2 * n**3 / _seconds_of(lambda: a @ a)


def _seconds_of(function) -> float:
    """The shorter of two runs; the first also wakes what sleeps."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
