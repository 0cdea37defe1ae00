"""Devices, precisions, and the memory of each."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from .errors import DeviceError, MemoryBudgetError

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
TEMPORARY = 32 * 1024 * 1024 - 64 * 1024  # bytes: just below the largest measure
RESERVE = 0.9  # of the memory that is free; the rest is left to others


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, if it is there and has double precision; None is the CPU.

    Raises
    ------
    DeviceError
        The message says which devices there are.
    """
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"{device!r} names no device; {_known()}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise DeviceError(f"a device of the type {found.type!r} is of no use here; {_known()}")
    if not torch.cuda.is_available():
        built = "torch sees none" if torch.version.cuda or torch.version.hip else "this torch is built without CUDA"
        raise DeviceError(f"there is no GPU for device={str(device)!r} ({built}); use device='cpu'")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise DeviceError(f"there is no device {str(device)!r}; {_known()}")
    return torch.device("cuda", index)


def _known() -> str:
    return "known are " + ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])


def check_devices(devices: str | torch.device | Sequence[str | torch.device] | None) -> tuple[str, ...]:
    """The names of one device or of several: a sequence, or names with commas between them.

    Raises
    ------
    DeviceError
    """
    if devices is None or isinstance(devices, torch.device):
        devices = [devices]
    if isinstance(devices, str):
        devices = [name.strip() for name in devices.split(",")]
    if not isinstance(devices, Sequence):
        raise DeviceError(f"{devices!r} names no device; {_known()}")
    if not devices:
        raise DeviceError(f"no device is named; {_known()}")
    return tuple(str(check_device(device)) for device in devices)


def check_precision(dtype: str | torch.dtype | None) -> torch.dtype:
    """The type of numbers by its name or torch's own; None is double precision.

    Raises
    ------
    DeviceError
    """
    name = "float64" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in PRECISIONS:
        raise DeviceError(f"the dtype is 'float64' or 'float32', not {name!r}")
    return PRECISIONS[name]


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can be allocated now: of a GPU, or of this machine without swapping; half of it where unknown.

    In a container or batch job that has a limit of its own, what is left of that; of
    several processes that ``torchrun`` started on this machine, each has its part.
    """
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(RESERVE * (free + unused))
    meminfo = Path("/proc/meminfo")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(RESERVE * min(available, _left_in_control_group(available))) // processes


def _left_in_control_group(unlimited: int) -> int:
    """What Linux' control group (version 2) of this process may still take."""
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return unlimited
    return max(0, int(limit.read_text()) - int(used.read_text()))


@cache
def keep_freed_memory() -> None:
    """Make the C library keep what is freed for what is allocated next, up to 64 MB, rather than return it each time.

    Temporary arrays of a few megabytes come and go thousands of times; where the system
    has to clear their pages every time, that takes longer than to compute with them. The
    GNU C library takes the largest block that was freed, up to 32 MB, as the measure of
    what is temporary (mallopt(3), M_MMAP_THRESHOLD). Others are not harmed.
    """
    torch.empty(TEMPORARY, dtype=torch.uint8)


@contextmanager
def memory_explained(device: torch.device, advice: str) -> Iterator[None]:
    """Say what to do where a device has not the memory.

    Raises
    ------
    MemoryBudgetError
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free = 1e-9 * available_memory(device)
        raise MemoryBudgetError(f"{device} has not the memory for this ({free:.1f} GB are left); {advice}") from error


def in_tiles(n: int, step: int, work: Callable[[slice], None]) -> int:
    """Work on n things, `step` at a time; half as many each time that a device has not the memory.

    Parameters
    ----------
    n, step : int
    work : callable(slice)
        May be called again for things that it failed on.

    Returns
    -------
    int
        How many at a time there was memory for.

    Raises
    ------
    torch.OutOfMemoryError
        If there is too little memory even for one.
    """
    start, step = 0, max(1, step)
    while start < n:
        try:
            work(slice(start, min(start + step, n)))
        except torch.OutOfMemoryError:
            step = min(step, n - start)
            if step == 1:
                raise
            step = -(-step // 2)
            continue
        start += step
    return step


def tile(device: torch.device, on_cpu: int, arrays: int) -> int:
    """Numbers in one of the `arrays` of intermediates that a contraction treats at a time.

    On a CPU what stays in its caches; on a GPU, where large products are the fast
    ones, a quarter of its free memory, up to a gigabyte each.
    """
    if device.type == "cpu":
        return on_cpu
    return max(on_cpu, min(2**27, available_memory(device) // (4 * 8 * arrays)))


def parts(n: int, count: int) -> Iterator[slice]:
    """n things shared out to `count`, in order and as equal as can be; some may be empty."""
    ends = [n * k // count for k in range(count + 1)]
    yield from (slice(start, stop) for start, stop in zip(ends[:-1], ends[1:]))
