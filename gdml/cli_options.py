"""Arguments, and types of them, that several commands share."""

import argparse
import hashlib
import os
import re
from pathlib import Path

from .baselines import as_baseline
from .contractions import BACKENDS
from .dataset import Dataset, read
from .hardware import PRECISIONS


def natural(text: str) -> int:
    """A number from zero on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def add_hardware(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Where, in which precision and how sums over training geometries are computed."""
    more = "; of several, with commas, each takes a part" if several else ""
    parser.add_argument("--device", metavar="NAME", help=f"cpu (default), cuda, cuda:1, ...{more}")
    parser.add_argument("--dtype", choices=tuple(PRECISIONS), help="of the sums of predictions (float64)")
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="how they are computed (auto)")


def baseline_cache(data: Path, baseline: object) -> Path | None:
    """Where labels of a baseline are kept: beside the data, if one can write there."""
    if baseline is None or not os.access(data.parent, os.W_OK):
        return None
    text = str(as_baseline(baseline))
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name != text:  # options may differ in what a name cannot have
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    path = data.with_name(f"{data.stem}.{name}.npz")
    return None if path.exists() and not os.access(path, os.W_OK) else path


def read_data(path: Path, options: argparse.Namespace) -> Dataset:
    """Geometries of a file, with the keys and units of the command line."""
    return read(
        path,
        energy_key=options.energy_key,
        forces_key=options.forces_key,
        energy_unit=options.energy_unit,
        length_unit=options.length_unit,
    )
