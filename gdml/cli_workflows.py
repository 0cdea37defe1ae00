"""The commands around training: choice of geometries, learning curves, distillation, active learning."""

import argparse
from pathlib import Path

import numpy as np

from . import plots
from .active import learn_actively
from .attribution import check_viewer, contributions
from .baselines import as_baseline
from .cli_options import add_common, add_state, add_structure, baseline_cache, load_model, numbers, read_data
from .curves import learning_curve
from .dataset import read_structure
from .distillation import distill as distill_from
from .errors import DataError, OutputError
from .io import write_frames
from .metrics import evaluate
from .npz import check_writable
from .pool import METHODS, select


def choose(options: argparse.Namespace) -> None:
    """Choose geometries to label, or to train on, from a pool."""
    if options.output:
        check_writable(options.output)
    pool = read_data(options.pool, options)
    reference = None if options.reference is None else read_structure(options.reference)
    chosen = select(
        pool, options.n, method=options.method, reference=reference, seed=options.seed, progress=not options.quiet
    )
    if options.output:
        pool[chosen].write(options.output)
        print(f"{options.output}: {options.n} of {len(pool)} geometries, by {options.method}")
    else:
        print(" ".join(map(str, pool.frame_numbers[chosen].tolist())))


def curve(options: argparse.Namespace) -> None:
    """Errors on held-out geometries against the number of training geometries."""
    if options.plot:
        plots.check_picture(options.plot)
    dataset = read_data(options.data, options)
    found = learning_curve(
        dataset,
        options.sizes,
        n_test=options.n_test,
        repeats=options.repeats,
        method=options.method,
        seed=options.seed,
        progress=not options.quiet,
        keep=options.output,
        reference=None if options.reference is None else read_structure(options.reference),
        descriptor=options.descriptor,
        kernel=options.kernel,
        baseline=options.baseline,
        baseline_cache=baseline_cache(options.data, options.baseline),
    )
    print(found)
    if options.plot:
        plots.plot_learning_curve(found.sizes, found.median_draws, options.plot)


def distill(options: argparse.Namespace) -> None:
    """Train a fast force field without baseline on what a slower one says in dynamics."""
    check_writable(options.output, ".npz")
    kept, checkpoint = (options.output.with_suffix(f".{what}.npz") for what in ("sampling", "checkpoint"))
    if options.samples and check_writable(options.samples) in (kept, checkpoint):
        raise OutputError(f"{options.samples}: this file is removed in the end; give another one for the samples")
    held = read_data(options.test, options) if options.test else None
    teacher = load_model(options)
    start = read_data(options.start, options)
    found = distill_from(
        teacher,
        start,
        options.n,
        temperatures=options.temperature,
        timestep_fs=options.timestep,
        seed=options.seed,
        progress=not options.quiet,
        keep=kept,
        checkpoint=checkpoint,
        resume=True,
    )
    if options.samples:
        found.samples.write(options.samples)
    found.force_field.save(options.output)
    for path in (kept, checkpoint):
        path.unlink(missing_ok=True)
    print(f"{options.output}: {found.force_field}; against its teacher: {found.against_teacher}")
    ratio = found.ms_teacher / found.ms_student
    print(
        f"one geometry takes {found.ms_student:.2f} ms, its teacher {found.ms_teacher:.2f} ms: {ratio:.1f} times faster"
    )
    if held is not None:
        for name, field in (("teacher", teacher), ("student", found.force_field)):
            print(f"{name} against the reference: {evaluate(field, held)}")


def learn(options: argparse.Namespace) -> None:
    """Let dynamics choose geometries, label them by a reference calculator, and train on them."""
    check_writable(options.output, ".npz")
    structure = read_structure(options.structure, options.index)
    (term, *more) = as_baseline(options.calculator).terms
    if more:
        raise DataError(f"the reference is one calculator, not the sum {options.calculator}")
    labels = options.labels or options.output.with_suffix(".labels.extxyz")
    if labels.exists() and labels.samefile(options.structure):
        raise DataError(f"{labels} is the structure to start from; give another file for the labels")
    found = learn_actively(
        structure,
        term.make(),
        labels,
        budget=options.budget,
        temperatures=options.temperature,
        n_beads=options.beads,
        timestep_fs=options.timestep,
        goal=options.goal,
        seed=options.seed,
        report=None if options.quiet else lambda line: print(line, flush=True),
        descriptor=options.descriptor,
        baseline=options.baseline,
    )
    found.force_field.save(options.output)
    failed = f"; the calculator failed on {found.failed}" if found.failed else ""
    print(f"{options.output}: {len(found.dataset)} labels in {labels}{failed}; {found.reason}")


def contribute(options: argparse.Namespace) -> None:
    """What each atom and each pair of atoms contributes to the energy."""
    if options.output:
        check_writable(options.output)
    if options.plot:
        plots.check_picture(options.plot)
    if options.viewer:
        check_viewer(options.viewer)
    force_field, dataset = load_model(options), read_data(options.data, options)
    force_field.check_atoms(dataset.numbers)
    found, frames = contributions(force_field, dataset.positions, dataset.periodic_cell), dataset.to_atoms()
    print(f"{'atom':>8s} {'mean (meV)':>12s} {'RMS (meV)':>12s}")
    for k, symbol in enumerate(frames[0].get_chemical_symbols()):
        own = 1e3 * found.atoms[:, k]
        print(f"{symbol + str(k):>8s} {own.mean():12.1f} {np.sqrt((own**2).mean()):12.1f}")
    if options.output:
        write_frames(found.label(frames), options.output)
    if options.plot:
        plots.plot_contributions(found, frames, options.plot)
    if options.viewer:
        found.write_viewer(frames, options.viewer)


def add_workflows(commands, data) -> None:
    """The arguments of these commands."""
    _add_select(commands, data)
    _add_curve(commands, data)
    _add_distill(commands, data)
    _add_learn(commands)
    _add_contributions(commands, data)


def _add_select(commands, data) -> None:
    parser = commands.add_parser(
        "select", parents=[data], help="choose geometries from a pool", description=choose.__doc__
    )
    parser.set_defaults(command=choose)
    parser.add_argument("pool", type=Path)
    parser.add_argument("-n", type=int, required=True, help="how many")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write them; else their numbers")
    parser.add_argument("--method", choices=METHODS, default="farthest", help="(farthest)")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="of a crystal: its ideal structure")
    add_common(parser)


def _add_curve(commands, data) -> None:
    parser = commands.add_parser("curve", parents=[data], help="learning curve", description=curve.__doc__)
    parser.set_defaults(command=curve)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", required=True, metavar="N", help="training geometries")
    parser.add_argument("--n-test", type=int, metavar="N", help="geometries to judge by (what is left, at most 500)")
    parser.add_argument("--repeats", type=int, default=1, help="draws of each size (1)")
    parser.add_argument("--method", choices=METHODS, default="random", help="how they are drawn (random)")
    parser.add_argument("--descriptor", default="auto")
    parser.add_argument("--kernel", default="matern52")
    parser.add_argument("--baseline", metavar="NAME", help="as of gdml train")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="of a crystal: its ideal structure")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="JSON of all errors (eV, Å), to go on from after a kill"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE")
    add_common(parser)


def _add_distill(commands, data) -> None:
    help_text = "a fast force field from one with a baseline"
    parser = commands.add_parser("distill", parents=[data], help=help_text, description=distill.__doc__)
    parser.set_defaults(command=distill)
    parser.add_argument("model", type=Path, help="the teacher")
    parser.add_argument("start", type=Path, help="geometries to start from, best what it was trained on")
    add_state(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="model file to write (.npz)")
    parser.add_argument("-n", type=int, default=2000, help="samples (2000)")
    parser.add_argument("--temperature", type=numbers, default=[500.0], metavar="K[,K]", help="of the dynamics (500)")
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="fs (0.5)")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="where to write them in the end")
    parser.add_argument("--test", type=Path, metavar="FILE", help="geometries with reference labels, to judge both by")
    add_common(parser)


def _add_learn(commands) -> None:
    parser = commands.add_parser("learn", help="active learning", description=learn.__doc__)
    parser.set_defaults(command=learn)
    add_structure(parser, "where to start, best a minimum")
    help_text = "the reference, by a name as of --baseline; other ASE calculators by gdml.learn_actively"
    parser.add_argument("--calculator", required=True, metavar="NAME", help=help_text)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="model file to write (.npz)")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="where labels are kept (beside the model, .labels.extxyz)"
    )
    parser.add_argument("--budget", type=int, default=50, metavar="N", help="labels in all (50)")
    parser.add_argument("--temperature", type=numbers, default=[300.0], metavar="K[,K]", help="of the dynamics (300)")
    parser.add_argument("--beads", type=int, default=1, metavar="P", help="more than one: path integrals (1)")
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="fs (0.5)")
    parser.add_argument("--goal", type=float, metavar="X", help="eV/Å: RMSE of forces of new labels at which it ends")
    parser.add_argument("--descriptor", default="auto")
    parser.add_argument("--baseline", metavar="NAME", help="as of gdml train")
    add_common(parser)


def _add_contributions(commands, data) -> None:
    help_text = "what atoms contribute to the energy"
    parser = commands.add_parser("contributions", parents=[data], help=help_text, description=contribute.__doc__)
    parser.set_defaults(command=contribute)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="geometries")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="extended XYZ with an array `contribution`")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="coloured atoms, and pairs against distance")
    parser.add_argument("--viewer", type=Path, metavar="FILE", help="for chemiscope.org (.json, .json.gz)")
    add_state(parser)
