"""Arguments, and types of them, that several commands share."""

import argparse
import hashlib
import os
import re
from pathlib import Path

from .baselines import as_baseline
from .contractions import BACKENDS
from .dataset import Dataset, read
from .force_field import ForceField
from .hardware import PRECISIONS
from .models import at_state, load
from .states import StatesForceField


def natural(text: str) -> int:
    """A number from zero on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def numbers(text: str) -> list[float]:
    """Some numbers with commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 300,600") from error


def add_common(parser: argparse.ArgumentParser) -> None:
    """What all long jobs have."""
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_structure(parser: argparse.ArgumentParser, help_text: str) -> None:
    """A file, and which of its frames."""
    parser.add_argument("structure", type=Path, help=help_text)
    parser.add_argument("--index", type=int, default=0, help="frame of that file (0)")


def add_hardware(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Where, in which precision and how sums over training geometries are computed."""
    more = "; of several, with commas, each takes a part" if several else ""
    parser.add_argument("--device", metavar="NAME", help=f"cpu (default), cuda, cuda:1, ...{more}")
    parser.add_argument("--dtype", choices=tuple(PRECISIONS), help="of the sums of predictions (float64)")
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="how they are computed (auto)")


def add_state(parser: argparse.ArgumentParser) -> None:
    """Which state, of a model of several."""
    parser.add_argument("--state", metavar="STATE", help="of a model of several states: which")


def load_model(options: argparse.Namespace, **where) -> ForceField:
    """The model of the command line, of several states that of `add_state`, where it is to be evaluated."""
    found = load(options.model, **where)
    if isinstance(found, StatesForceField) and options.state is not None:
        return found.at(found.named(options.state))
    return at_state(found, options.state)


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
    return read(path, **reading(options))


def reading(options: argparse.Namespace) -> dict[str, str | None]:
    """The keys and units of the command line."""
    return {name: getattr(options, name) for name in ("energy_key", "forces_key", "energy_unit", "length_unit")}
