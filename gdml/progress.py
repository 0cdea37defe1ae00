"""Progress bars for what takes longer than a second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Report = Callable[[int, int], None]


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
