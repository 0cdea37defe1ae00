"""Progress bars for what takes longer than a second."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

Report = Callable[..., None]
IterationReport = Callable[[int, float, float, Sequence[float]], None]


@contextmanager
def progress_bar(description: str, enabled: bool) -> Iterator[Report | None]:
    """A callable(done, total, note="") that moves a bar; None where no progress is wanted."""
    if not enabled:
        yield None
        return
    with tqdm(desc=description, delay=1.0, leave=False, dynamic_ncols=True) as bar:

        def report(done: int, total: int, note: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        yield report


@contextmanager
def iteration_bar(enabled: bool) -> Iterator[IterationReport | None]:
    """A callable(iteration, residual, goal, errors) that shows how far an iteration is.

    On a logarithmic scale of the residual, from which the remaining time follows;
    with the last of the errors on held-out forces, eV/Å, where there are any.
    """
    if not enabled:
        yield None
        return
    with tqdm(desc="conjugate gradients", total=100, delay=1.0, leave=False, dynamic_ncols=True, unit="%") as bar:

        def report(iteration: int, residual: float, goal: float, errors: Sequence[float]) -> None:
            error = f", held-out force error {1e3 * errors[-1]:.4g} meV/Å" if errors else ""
            bar.set_postfix_str(f"iteration {iteration}, residual {residual:.1e}{error}", refresh=False)
            bar.update(max(0, min(100, int(100 * math.log(residual) / math.log(goal))) - bar.n))

        yield report
