"""Run a function in several processes that train together, started as ``torchrun`` would."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

PATIENCE = 180  # seconds


def run_together(folder: Path, function: Callable, *arguments, size: int = 2) -> list:
    """What `function(*arguments)` returned in each process, or the error it ended with; None where it never did.

    The function has to be importable, and what it returns to be picklable.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # which loads the packages once, and computes nothing
    context.set_forkserver_preload([function.__module__])
    settings = [(folder, rank, size, port, function, arguments) for rank in range(size)]
    processes = [context.Process(target=_one, args=given) for given in settings]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    paths = [folder / f"{rank}.pkl" for rank in range(size)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]


def _one(folder: Path, rank: int, size: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    try:
        result = function(*arguments)
    except Exception as error:
        traceback.print_exc()
        result = error
    (folder / f"{rank}.pkl").write_bytes(pickle.dumps(result))
    torch.distributed.destroy_process_group()
