"""The command that looks for minima and saddle points."""

import argparse
from pathlib import Path
from typing import NamedTuple

from . import plots
from .cli_options import add_common, add_hardware, add_state, add_structure, load_model, numbers, read_data
from .dataset import read_structure
from .errors import DataError
from .landscape import OPTIMISERS, Landscape, as_text, write_csv, write_points, write_unconverged
from .landscape import explore as explore_from
from .landscape.exploration import TEMPERATURES
from .npz import check_writable


def explore(options: argparse.Namespace) -> None:
    """Relax snapshots of dynamics by the thousand, and tell which minima there are."""
    paths = _paths(options)
    if options.plot:
        plots.check_picture(options.plot)
    force_field = load_model(options, device=options.device, dtype=options.dtype, backend=options.backend)
    found = explore_from(
        force_field,
        read_structure(options.structure, options.index),
        n=options.n,
        temperatures=options.temperature,
        timestep_fs=options.timestep,
        starts=read_data(options.starts, options) if options.starts else None,
        saddles=options.saddles,
        optimiser=options.optimiser,
        max_steps=options.max_steps,
        seed=options.seed,
        keep=None if options.starts else paths.samples,
        progress=not options.quiet,
    )
    print(as_text(found))
    _write(found, paths)
    if not found.minima:
        raise DataError(f"no relaxation converged to a minimum; see {paths.unconverged}, or give more --max-steps")
    if options.table:
        write_csv(found, options.table)
    if options.plot:
        plots.plot_landscape(found, options.plot)
    if not options.starts:
        paths.samples.unlink(missing_ok=True)


def _write(found: Landscape, paths: "_Paths") -> None:
    """Write what there is, and remove what an earlier run has left that there is not any more."""
    for path, points in ((paths.minima, found.minima), (paths.saddles, found.saddles)):
        if points:
            write_points(points, path)
        else:
            path.unlink(missing_ok=True)
    if len(found.unconverged.positions):
        write_unconverged(found, paths.unconverged)
        print(f"{paths.unconverged}: those that did not converge")
    else:
        paths.unconverged.unlink(missing_ok=True)


class _Paths(NamedTuple):
    """Files of one exploration."""

    minima: Path
    saddles: Path
    unconverged: Path
    samples: Path


def _paths(options: argparse.Namespace) -> _Paths:
    """What is written, none of it in the place of what is read."""
    check_writable(options.output, ".extxyz")
    ends = (".extxyz", ".saddles.extxyz", ".unconverged.extxyz", ".samples.npz")
    paths = _Paths(*(check_writable(options.output.with_suffix(end)) for end in ends))
    if options.table:
        check_writable(options.table, ".csv")
    read = [path.resolve() for path in (options.model, options.structure, options.starts) if path]
    written = [path for path in (*paths, options.table, options.plot) if path]
    for path in written:
        if path.resolve() in read:
            raise DataError(f"{path} would be written over, and is read from; give another name after -o")
    return paths


def add_explore(commands, data) -> None:
    """The arguments of this command."""
    help_text = "minima and saddle points"
    parser = commands.add_parser("explore", parents=[data], help=help_text, description=explore.__doc__)
    parser.set_defaults(command=explore)
    parser.add_argument("model", type=Path, help="best with uncertainty (gdml train --uncertainty)")
    add_structure(parser, "where dynamics start, such as a training geometry")
    add_state(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="minima (.extxyz); saddle points beside"
    )
    parser.add_argument("-n", type=int, default=1000, help="relaxations (1000)")
    kelvin = ",".join(f"{t:g}" for t in TEMPERATURES)
    help_text = f"of the dynamics ({kelvin})"
    parser.add_argument("--temperature", type=numbers, default=list(TEMPERATURES), metavar="K[,K]", help=help_text)
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="fs (0.5)")
    parser.add_argument("--starts", type=Path, metavar="FILE", help="geometries to relax, instead of dynamics")
    parser.add_argument("--saddles", type=int, default=0, metavar="N", help="N searches for saddle points (0)")
    parser.add_argument("--optimiser", choices=tuple(OPTIMISERS), default="lbfgs", help="(lbfgs)")
    parser.add_argument("--max-steps", type=int, default=500, metavar="N", help="of each relaxation (500)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the table as .csv")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="levels of energy, and the lowest minima")
    add_common(parser)
    add_hardware(parser)
