"""Processes that train together, each with a share of the geometries.

They are those of torch's default process group, where a program has initialised
one: NCCL moves what is on GPUs, gloo what is not. Without there is one process,
and nothing here does anything.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from .errors import ProcessError
from .hardware import parts

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # for the others, while one does what only one has to


class Team:
    """This process among those that work together.

    Attributes
    ----------
    rank, size : int
        Its number, from 0, and how many there are.
    bytes_received : int
        From other processes, as sums and collections take at least.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size, self.bytes_received = rank, size, 0

    @classmethod
    def current(cls) -> "Team":
        """The processes of torch's default group; this one alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        team = cls(distributed.get_rank(), distributed.get_world_size())
        try:
            distributed.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            raise ProcessError(
                f"the process group cannot add up arrays of the CPU ({error}); initialise it with the backend 'gloo', "
                "or with 'cpu:gloo,cuda:nccl' where GPUs compute"
            ) from error
        return team

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, t: Tensor) -> Tensor:
        """The sum over all processes; in the memory of t, if that is contiguous."""
        if self.size == 1:
            return t
        t = t.contiguous()
        self._together(distributed.all_reduce, t)
        self.bytes_received += 2 * (self.size - 1) * t.nbytes // self.size
        return t

    def most(self, count: int) -> int:
        """The largest of the numbers of all processes."""
        if self.size == 1:
            return count
        largest = torch.tensor(count)
        self._together(distributed.all_reduce, largest, op=distributed.ReduceOp.MAX)
        return int(largest)

    def least(self, count: int) -> int:
        """The smallest of the numbers of all processes."""
        return -self.most(-count)

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first process decides; an error there is raised everywhere."""
        if self.size == 1:
            return decide()
        outcome: list = [None, None]
        if self.is_first:
            try:
                outcome[0] = decide()
            except Exception as error:
                outcome[1] = error
        self._together(distributed.broadcast_object_list, outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def check_same(self, facts: dict[str, str]) -> None:
        """Raise everywhere unless all processes have the same facts.

        Raises
        ------
        ProcessError
            That says in what this process, or another, differs from the first.
        """
        first = self.agree(lambda: facts)
        other = [f"{key} ({value}, not {first.get(key)})" for key, value in facts.items() if value != first.get(key)]
        if self.most(bool(other)):
            said = ", ".join(other) or "another one differs"
            raise ProcessError(f"the processes do not train on the same: {said}")

    def _together(self, operation: Callable, *arguments, **options) -> None:
        # All that goes wrong in an operation on sound arguments is that another process is gone.
        try:
            operation(*arguments, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ProcessError(
                f"process {self.rank} of {self.size} waited for another that has stopped; see its message. Where there "
                f"is a checkpoint, it is not lost: start again with --resume (resume=True). ({error})"
            ) from error


class Shares:
    """n blocks of rows each, shared out to the processes in order, as equal as can be.

    A tensor that is shared out has on each process the rows of its own blocks.

    Parameters
    ----------
    team : Team
    n : int
        Blocks in all.
    unit : int
        Rows of each.

    Attributes
    ----------
    own : slice
        The rows of this process.
    """

    def __init__(self, team: Team, n: int, unit: int = 1):
        self.team, self.n, self.unit = team, n, unit
        self.slices = [slice(some.start * unit, some.stop * unit) for some in parts(n, team.size)]
        self.own = self.slices[team.rank]

    def times(self, unit: int) -> "Shares":
        """The same blocks with other rows."""
        return Shares(self.team, self.n, unit)

    def sum(self, t: Tensor) -> Tensor:
        """Of what all processes have, their sum."""
        return self.team.sum(t)

    def owned(self, rows: Tensor) -> Tensor:
        """Which of some rows are this process's."""
        return (rows >= self.own.start) & (rows < self.own.stop)

    def gather(self, t: Tensor) -> Tensor:
        """The whole of a tensor that is shared out, on each process."""
        team = self.team
        if team.size == 1:
            return t
        largest = max(some.stop - some.start for some in self.slices)
        padded = t.new_zeros(largest, *t.shape[1:])
        padded[: len(t)] = t
        found = [torch.empty_like(padded) for _ in self.slices]
        team._together(distributed.all_gather, found, padded)
        team.bytes_received += (team.size - 1) * padded.nbytes
        return torch.cat([part[: some.stop - some.start] for part, some in zip(found, self.slices, strict=True)])

    def rows(self, t: Tensor, rows: Tensor) -> Tensor:
        """Rows of a tensor that is shared out; the same ones on all processes."""
        if self.team.size == 1:
            return t[rows]
        result, owned = t.new_zeros(len(rows), *t.shape[1:]), self.owned(rows)
        result[owned] = t[rows[owned] - self.own.start]
        return self.team.sum(result)

    def fetch(self, t: Tensor, rows: Tensor) -> Tensor:
        """Rows of a tensor that is shared out; on each process the ones that it asks for."""
        fetch, place = self.halo(rows)
        return fetch(t)[place]

    def halo(self, rows: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """How to fetch the different ones of some rows of any tensor that is shared out, and where each then is."""
        if self.team.size == 1:
            return lambda t: t, rows
        different, place = rows.unique(return_inverse=True)  # in order, and so by owners
        stops = torch.tensor([0, *(some.stop for some in self.slices)], device=rows.device)
        ends = torch.searchsorted(different, stops)
        first, last = ends[self.team.rank : self.team.rank + 2].tolist()
        asked = ends.diff()
        asked[self.team.rank] = 0
        one_each = [1] * self.team.size
        wanted = self._exchange(one_each, one_each, asked).tolist()
        asked = asked.tolist()
        served = self._exchange(asked, wanted, torch.cat([different[:first], different[last:]])) - self.own.start
        own = different[first:last] - self.own.start

        def fetch(t: Tensor) -> Tensor:
            found = self._exchange(wanted, asked, t[served])
            return torch.cat([found[:first], t[own], found[first:]])

        return fetch, place

    def _exchange(self, sent: list[int], received: list[int], t: Tensor) -> Tensor:
        """To each process so many rows of t, and from each so many."""
        result = t.new_empty(sum(received), *t.shape[1:])
        self.team._together(distributed.all_to_all_single, result, t.contiguous(), received, sent)
        self.team.bytes_received += result.nbytes
        return result

    def in_step(self, rows: Tensor, at_once: int) -> Iterator[Tensor]:
        """Some rows at a time, in equally many parts on all processes, of which the last may be empty."""
        n_parts = self.team.most(-(-len(rows) // at_once))
        yield from (rows[k * at_once : (k + 1) * at_once] for k in range(n_parts))


@contextmanager
def started_together() -> Iterator[Team]:
    """The processes that ``torchrun`` started; this one alone without it.

    Raises
    ------
    ProcessError
        If they do not find each other.
    """
    if not _is_one_of_several():
        yield Team()
        return
    on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    try:
        if on_gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"the processes of torchrun did not find each other: {error}") from error
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield Team.current()
    finally:
        signal.signal(signal.SIGTERM, before)
        distributed.destroy_process_group()


def _stop(*_) -> None:
    raise ProcessError(
        f"process {os.environ['RANK']} was told to stop, as torchrun does where another one has failed; see its message"
    )


def is_first() -> bool:
    """Whether this process is to speak and write for all that ``torchrun`` started; so is one that it did not."""
    return not _is_one_of_several() or os.environ["RANK"] == "0"


def _is_one_of_several() -> bool:
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: str | torch.device | None) -> str | torch.device | None:
    """For "cuda", the GPU of this process among those that ``torchrun`` started on this machine."""
    if str(device) == "cuda" and _is_one_of_several() and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return device
