"""How long and how much memory a solution takes, before it starts; and which one to take."""

import math
import time
from dataclasses import dataclass

import torch

from . import memory
from .errors import MemoryBudgetError
from .memory import check_closed_form, closed_form_bytes
from .operators import DENSE

# A core that does r operations in a second moves about r / 5 bytes, measured.
OPERATIONS_PER_BYTE = 5
REJECTED = 1.15  # candidates for each column that is kept
# How much slower operations go than in a large matrix product: those of a contraction,
# of kernel columns, and of many small matrices; and that of Fourier sums. Measured.
CONTRACTION, COLUMNS, SMALL = 2.2, 8.0, 4.0
FOURIER = 5.0
CPU = torch.device("cpu")
# The largest rank to start with, as a fraction of the unknowns.
MOST = 5
# Unknowns for each of the columns that show how fast the matrix is described.
PROBE = 48
# Iterations at one rank, in units of those that the next preconditioner costs.
PATIENCE = 3


@dataclass(frozen=True)
class Problem:
    """The sizes that decide.

    Geometries n, labels of each L, descriptor entries D, order |S|; m neighbours
    of the preconditioner; translations |T| that the contraction sums over in
    Fourier space; the device, of each of P processes that share out the geometries;
    whether atoms are compared instead of geometries.
    """

    n_frames: int
    n_labels: int
    size: int
    order: int
    neighbours: int = 4
    n_translations: int = 1
    device: torch.device = CPU
    n_processes: int = 1
    is_local: bool = False

    @property
    def n_unknowns(self) -> int:
        return self.n_frames * self.n_labels

    @property
    def closed_form_bytes(self) -> int:
        return closed_form_bytes(*self._sizes)

    @property
    def _sizes(self) -> tuple[int, int, int, int, int, bool]:
        return self.n_frames, self.n_labels, self.size, self.order, self.n_translations, self.is_local

    def check_closed_form(self) -> None:
        """Raise `MemoryBudgetError` unless there is memory enough."""
        check_closed_form(*self._sizes, self.device)

    def fits_closed_form(self) -> bool:
        """Whether the closed form fits into the memory there is."""
        return self.closed_form_bytes <= memory.available_memory(self.device)

    @property
    def is_small(self) -> bool:
        """Whether the closed form takes less than about a second, or than finding out would."""
        single = 10 * self.pair_operations if self.n_translations > 1 else 2 * self.pair_operations
        probe = self.n_frames * (single + self.n_unknowns / PROBE * self.column_operations)
        return self.closed_form_operations < max(1e11, 5 * probe)

    @property
    def closed_form_operations(self) -> float:
        """N³/3, and half of the n² pairs of geometries, at the rates of these parts."""
        n = self.n_frames
        return self.n_unknowns**3 / 3 / 0.75 + 2 * n**2 * self.pair_operations

    @property
    def pair_operations(self) -> float:
        """Half of those for a block of the matrix: L D (3 |S| + L), or L columns by Fourier sums."""
        labels, size, order = self.n_labels, self.size, self.order
        if self.n_translations > 1:
            return labels * (self._fourier + FOURIER * size * labels) / 2
        return labels * size * (3 * order + labels)

    @property
    def column_operations(self) -> float:
        """A column of a block."""
        if self.n_translations > 1:
            return 2 * self._fourier + FOURIER * 2 * self.size * self.n_labels
        return COLUMNS * 2 * self.size * (2 * self.order + self.n_labels)

    @property
    def _fourier(self) -> float:
        """Of one query and one reference, |S| (20 D / |T| + 10 |T|)."""
        count = self.n_translations
        return FOURIER * self.order * (20 * self.size / count + 10 * count)

    def cg_bytes(self, rank: int) -> int:
        """Of each process: 8 [ (N k f + 2 n D L + 3 N r + N L (m + 1)) / P + 2 k² + 4 n D + 4 N ].

        Shared out are factor, duals, r = 64 columns, and neighbours; each process has the inner
        matrix, descriptors, and vectors. With neighbours, rows of others take as much as the own
        part of the factor, and are copied once: f = 3 for several processes, else 1.
        """
        # Of large molecules they are made where they are needed.
        duals = min(2 * self.n_frames * self.size * self.n_labels, 2 * DENSE * self.n_processes)
        if self.n_translations > 1:
            duals = min(duals, memory.FOURIER) + memory.FOURIER
        near = self.n_unknowns * self.n_labels * (self.neighbours + 1)
        copies = 3 if self.n_processes > 1 and self.neighbours else 1
        shared_out = self.n_unknowns * (rank * copies + 192) + duals + near
        everywhere = 2 * rank**2 + 4 * (self.n_frames * self.size + self.n_unknowns)
        return int(8 * (shared_out / self.n_processes + everywhere))

    def bytes_received(self, rank: int, iterations: float) -> float:
        """By each process from the others, for a preconditioner and the iterations with it.

        8 (1 - 1/P) [ a + i b ], with b = n D + 3 N + 2 k for an iteration: coefficients, the
        vector and its neighbours' parts, and what passes the inner matrix. The preconditioner takes
        a = N j/64 + 3 k² + 2 j D for j = 1.15 k candidates, in rounds of 64 that all processes have to know the
        diagonal for, and for neighbours their rows of the factor, twice, and their dual jets, as far as
        different ones are asked for: 2 N k min(1, (m + 1)/P) + (m + 1) (m + 2) N D / P.
        """
        n, size, members = self.n_unknowns, self.size, self.neighbours + 1
        candidates = REJECTED * rank
        building = n * candidates / 64 + 3 * rank**2 + 2 * candidates * size
        if self.neighbours:
            building += 2 * n * rank * min(1.0, members / self.n_processes)
            building += members * (members + 1) * n * size / self.n_processes
        iteration = self.n_frames * size + 3 * n + 2 * rank
        return 8 * (1 - 1 / self.n_processes) * (building + iterations * iteration)

    def largest_rank(self) -> int:
        """What half of the memory holds."""
        budget = memory.available_memory(self.device) * self.n_processes
        return max(1, min(self.n_unknowns, budget // (2 * 8 * self.n_unknowns)))

    def build_operations(self, rank: int) -> float:
        """Of a preconditioner: columns, 3.5 N k², and the rest by neighbours, n [(m + 1) L]² k."""
        n, labels = self.n_frames, self.n_labels
        columns = REJECTED * rank * n * self.column_operations
        members = self.neighbours + 1
        near = n * (members * labels) ** 2 * rank + n * members**2 * self.pair_operations
        return columns + 3.5 * self.n_unknowns * rank**2 + SMALL * near

    def iteration_operations(self, rank: int) -> float:
        """Of an iteration: a product, 8 n² |S| D, two passes over the factor and two over the neighbours."""
        pair = self._fourier if self.n_translations > 1 else CONTRACTION * 8 * self.order * self.size
        product = self.n_frames**2 * pair
        near = self.n_labels * (self.neighbours + 1)
        return product + OPERATIONS_PER_BYTE * 2 * 8 * self.n_unknowns * (rank + 2 * near)

    def patience(self, rank: int) -> int:
        """Iterations after which a preconditioner of twice the rank would have been the better investment."""
        return max(100, int(PATIENCE * self.build_operations(2 * rank) / self.iteration_operations(rank)))


@dataclass(frozen=True)
class Choice:
    """A solver, "cholesky" or "cg", why, and the rank of CG's preconditioner."""

    name: str
    why: str
    rank: int = 0


def expected_iterations(problem: Problem, rank: int, mu: float, noise: float) -> float:
    """Iterations to the default tolerance, from what a factor misses of the diagonal, μ.

    1.8 (μ / λ)^0.38 (N / k)^0.67, fitted to trainings on six molecules: within a
    factor of two there.
    """
    ratio = min(mu / max(noise, 1e-300), 1e6)
    return max(4.0, 1.8 * ratio**0.38 * (problem.n_unknowns / rank) ** 0.67)


def choose_rank(problem: Problem, decay: tuple[int, float, float], noise: float) -> tuple[int, float]:
    """The rank that promises the shortest time, and that time in operations.

    Parameters
    ----------
    problem : Problem
    decay : (int, float, float)
        A rank k₀, and the mean of the diagonal that factors of rank k₀/2 and k₀
        miss, from which a power law goes on; see `preconditioners.Begun`.
    noise : float
    """
    probe, before, after = decay
    exponent = math.log2(max(before, 1e-300) / max(after, 1e-300))
    best = None
    most = max(1, min(problem.n_unknowns // MOST, problem.largest_rank()))
    for rank in sorted({max(1, int(most * 0.85**i)) for i in range(24)}):
        mu = noise + after * (probe / rank) ** exponent
        work = problem.build_operations(rank)
        work += expected_iterations(problem, rank, mu, noise) * problem.iteration_operations(rank)
        if best is None or work < best[1]:
            best = rank, work
    return best


def choose(problem: Problem, decay: tuple[int, float, float], noise: float, solver: str, rank: int | None) -> Choice:
    """The solver to take, "auto" or "cg" being asked for, and the rank of its preconditioner where none is given.

    With "auto", the one that fits into memory and promises to be faster, by
    counts of operations and the decay that a small factor shows.

    Raises
    ------
    MemoryBudgetError
        If neither fits.
    """
    best, work = choose_rank(problem, decay, noise)
    rank = best if rank is None else min(rank, problem.n_unknowns)
    budget, closed = memory.available_memory(problem.device), problem.closed_form_operations
    if problem.cg_bytes(rank) > budget:
        if problem.n_processes > 1:
            raise MemoryBudgetError(
                f"a preconditioner of rank {rank} takes {problem.cg_bytes(rank) / 1e9:.1f} GB of each process, and "
                f"{budget / 1e9:.1f} GB are there; take a lower rank, or more processes"
            )
        problem.check_closed_form()
    if solver == "cg":
        return Choice("cg", "asked for", rank)
    if problem.closed_form_bytes > budget:
        why = f"the closed form needs {problem.closed_form_bytes / 1e9:.1f} GB and {budget / 1e9:.1f} are there"
        return Choice("cg", why, rank)
    rate = gemm_rate(device=problem.device)
    why = f"predicted {closed / rate:.1f} s in closed form, {work / rate:.1f} s by conjugate gradients"
    return Choice("cholesky" if closed <= work else "cg", why, rank)


def gemm_rate(n: int = 1200, device: torch.device = CPU) -> float:
    """Operations in a second of a large matrix product; the better of two runs, since the first wakes what sleeps."""
    a = torch.ones(n, n, dtype=torch.float64, device=device)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # which waits for a GPU to be done
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)
