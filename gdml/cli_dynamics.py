"""The commands that run dynamics."""

import argparse
import time
from pathlib import Path

from ase import units
from ase.calculators.socketio import SocketClient

from . import plots
from .calculator import GDMLCalculator
from .cli_options import add_hardware, add_state, add_structure, load_model, natural
from .dataset import read_structure
from .dynamics import Average, run_md, run_pimd, write_table
from .dynamics.normal_modes import PROPAGATORS
from .dynamics.thermostats import THERMOSTATS
from .errors import DataError
from .npz import check_writable


def md(options: argparse.Namespace) -> None:
    """Molecular dynamics from a structure."""
    force_field = load_model(options, device=options.device, dtype=options.dtype, backend=options.backend)
    atoms = read_structure(options.structure, options.index)
    start = time.perf_counter()
    report = run_md(
        force_field,
        atoms,
        steps=options.steps,
        temperature_K=options.temperature,
        timestep_fs=options.timestep,
        ensemble=options.ensemble,
        friction_per_fs=options.friction,
        seed=options.seed,
        trajectory=options.output,
        interval=options.interval,
        progress=not options.quiet,
    )
    print(f"{report}; {options.steps / (time.perf_counter() - start):.0f} steps/s")


def pimd(options: argparse.Namespace) -> None:
    """Path-integral molecular dynamics from a structure: nuclei are quantum."""
    for path in filter(None, (options.samples, options.plot)):
        check_writable(path)
    if options.plot:
        plots.check_picture(options.plot)
    force_field = load_model(options, device=options.device, dtype=options.dtype, backend=options.backend)
    atoms = read_structure(options.structure, options.index)
    start = time.perf_counter()
    record = run_pimd(
        force_field,
        atoms,
        steps=options.steps,
        temperature_K=options.temperature,
        n_beads=options.beads,
        timestep_fs=options.timestep,
        thermostat=options.thermostat,
        propagator=options.propagator,
        tau_fs=options.tau,
        pressure_GPa=options.pressure,
        seed=options.seed,
        interval=options.interval,
        trajectory=options.output,
        bead_trajectory=options.bead_output,
        restart=options.restart,
        resume=options.resume,
        start=options.start,
        heat_capacity=options.heat_capacity,
        progress=not options.quiet,
    )
    seconds = time.perf_counter() - start
    for name, average in record.averages().items():
        unit, factor = UNITS.get(name, ("eV", 1.0))
        print(f"{name:21s} {Average(average.mean * factor, average.error * factor)} {unit}")
    outside = f"; {record.run.n_outside} looks found beads outside the training region" if record.run.n_outside else ""
    print(f"{options.steps} steps of {options.beads} beads; {seconds:.1f} s{outside}")
    if options.samples:
        write_table(record, options.samples)
    if options.plot:
        plots.plot_beads(record, options.plot)


def ipi(options: argparse.Namespace) -> None:
    """Give forces to a run of i-PI through a socket, or say where the driver is that it loads itself."""
    if options.path:
        print(Path(__file__).with_name("ipi_driver.py"))
        return
    if options.model is None or options.structure is None:
        raise DataError("gdml ipi needs a model and a structure (or --path)")
    atoms = read_structure(options.structure)
    force_field = load_model(options, device=options.device, dtype=options.dtype, backend=options.backend)
    atoms.calc = GDMLCalculator(force_field)
    atoms.calc.force_field.check_atoms(atoms.numbers)
    client = SocketClient(host=options.host, port=options.port, unixsocket=options.unix)
    client.run(atoms, use_stress=atoms.calc.force_field.pbc == (True, True, True))


UNITS = {
    "temperature": ("K", 1.0),
    "temperature_centroid": ("K", 1.0),
    "r_gyration": ("Å", 1.0),
    "heat_capacity": ("eV/K", 1.0),
    "volume": ("Å³", 1.0),
    "pressure_cv": ("GPa", 1 / units.GPa),
}


def add_md(commands, data) -> None:
    """The arguments of ``gdml md``."""
    parser = commands.add_parser("md", help="molecular dynamics", description=md.__doc__)
    parser.set_defaults(command=md)
    _add_start(parser)
    parser.add_argument("--ensemble", choices=("langevin", "nve"), default="langevin")
    parser.add_argument("--friction", type=float, default=0.01, metavar="PER_FS", help="1/fs (0.01)")


def add_pimd(commands, data) -> None:
    """The arguments of ``gdml pimd``."""
    parser = commands.add_parser("pimd", help="dynamics of quantum nuclei", description=pimd.__doc__)
    parser.set_defaults(command=pimd)
    _add_start(parser)
    parser.add_argument("--beads", type=int, default=32, metavar="P", help="beads of each ring (32)")
    parser.add_argument("--thermostat", choices=THERMOSTATS, default="pile-l", help="of the ring's modes (pile-l)")
    parser.add_argument("--propagator", choices=PROPAGATORS, default="cayley", help="of the free ring (cayley)")
    parser.add_argument("--tau", type=float, default=100.0, metavar="FS", help="of the centroid's thermostat (100)")
    parser.add_argument("--pressure", type=float, metavar="GPA", help="of crystals: keep this pressure")
    parser.add_argument("--heat-capacity", action="store_true", help="sample for it, too")
    parser.add_argument("--bead-output", type=Path, metavar="TRAJ", help="ASE trajectory of all beads")
    parser.add_argument("--restart", type=Path, metavar="FILE", help="state to go on from, kept while running (.npz)")
    parser.add_argument("--resume", action="store_true", help="go on from --restart; --steps counts from the start")
    parser.add_argument("--start", type=Path, metavar="FILE", help="restart file of another run, to take its beads")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="table of the estimators (text)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="running averages, and how far beads spread")


def add_ipi(commands, data) -> None:
    """The arguments of ``gdml ipi``."""
    parser = commands.add_parser("ipi", help="forces for i-PI", description=ipi.__doc__)
    parser.set_defaults(command=ipi)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("structure", type=Path, nargs="?", help="a geometry, in the order of atoms of i-PI's")
    parser.add_argument("--path", action="store_true", help="print the path of the driver for <ffdirect>")
    parser.add_argument("--unix", metavar="NAME", help="name of i-PI's unix socket")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=31415)
    add_state(parser)
    add_hardware(parser)


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path)
    add_structure(parser, "file with the start; its first frame unless --index is given")
    parser.add_argument("--temperature", type=float, required=True, metavar="K")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="fs (0.5)")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("-o", "--output", type=Path, metavar="TRAJ", help="ASE trajectory to write")
    parser.add_argument("--interval", type=int, default=10, help="steps between frames (10)")
    add_state(parser)
    add_hardware(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
