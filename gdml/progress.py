"""Progress bars for what takes longer than a second."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Report = Callable[[int, int], None]
IterationReport = Callable[[int, object, float], None]


@contextmanager
def progress_bar(description: str, enabled: bool) -> Iterator[Report | None]:
    """A callable(done, total) that moves a bar; None where no progress is wanted."""
    if not enabled:
        yield None
        return
    with tqdm(desc=description, delay=1.0, leave=False, dynamic_ncols=True) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


@contextmanager
def iteration_bar(rtol: float, enabled: bool) -> Iterator[IterationReport | None]:
    """A callable(iteration, x, residual) that shows how far the residual is, on a logarithmic scale."""
    if not enabled:
        yield None
        return
    with tqdm(desc="conjugate gradients", total=100, delay=1.0, leave=False, dynamic_ncols=True, unit="%") as bar:

        def report(iteration: int, _: object, residual: float) -> None:
            bar.set_postfix_str(f"iteration {iteration}, residual {residual:.1e}")
            bar.update(max(0, min(100, int(100 * math.log(residual) / math.log(rtol))) - bar.n))

        yield report
