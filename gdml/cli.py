"""The command line: arguments in, one library call, one line of figures out.

Exit codes: 0 success; 1 any other error; 2 wrong usage; 3 data, symmetry or
model that does not fit; 4 training or dynamics failed; 5 output cannot be
written; 6 an optional package is missing; 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from . import plots
from ._version import __version__
from .cli_dynamics import add_ipi, add_md, add_pimd
from .cli_landscape import add_explore
from .cli_options import add_hardware, add_state, baseline_cache, natural, read_data
from .cli_states import check_options, describe, test_states, train_states
from .cli_workflows import add_workflows
from .data import ethanol
from .dataset import Dataset, read_structure
from .descriptors import BY_NAME
from .errors import INTERRUPTED, DataError, FitError, FormatError, GDMLError, GDMLWarning, OutputError
from .force_field import ForceField
from .kernels import KERNELS
from .metrics import Metrics, compare, evaluate, predict
from .models import at_state, load
from .npz import check_writable, read_archive
from .preconditioners import FACTORS
from .processes import is_first, started_together
from .sgdml_models import is_sgdml_model
from .states import StatesForceField
from .training import fit
from .uncertainty import coverage, with_uncertainty

JUDGED = 20  # geometries on which the error of single precision is measured


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("default", GDMLWarning)
            options.command(options)
        return 0
    except GDMLError as error:
        return _fail(error, error.exit_code)
    except torch.OutOfMemoryError as error:
        message = "a device has not the memory for this; use the CPU, several processes, or fewer geometries"
        return _fail(f"{message} ({error})", FitError.exit_code)
    except FileNotFoundError as error:
        return _fail(error, DataError.exit_code)
    except OSError as error:
        return _fail(error, OutputError.exit_code)
    except KeyboardInterrupt:
        message = (
            "interrupted; no file is damaged; train and pimd go on from their last state with --resume; curve, "
            "distill, explore and learn by the same command"
        )
        return _fail(message, INTERRUPTED)


def _fail(message: object, code: int) -> int:
    who = "" if is_first() else f" in process {os.environ['RANK']}"
    print(f"gdml: error{who}: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if issubclass(category, GDMLWarning) and is_first():
        print(f"gdml: warning: {message}", file=sys.stderr)


def train(options: argparse.Namespace) -> None:
    """Train on frames of a file, judge on others, and save; by torchrun, with several processes."""
    if options.state is not None:
        check_options(options)
        check_writable(options.output, ".npz")
        return train_states(options)
    with started_together() as team:
        team.agree(lambda: _check_outputs(options))
        _train(options)
    return None


def _check_outputs(options: argparse.Namespace) -> None:
    check_writable(options.output, ".npz")
    _prepare_plots(options.plot, options.learning_curve)


def _train(options: argparse.Namespace) -> None:
    dataset = read_data(options.data, options)
    training, validation = _split(dataset, options.n_train, options.n_valid, options.seed)
    if validation is None and (options.plot or options.learning_curve):
        raise DataError("a picture of errors needs held-out geometries; give --n-train or --n-valid")
    settings = {
        "reference": None if options.reference is None else read_structure(options.reference),
        "symmetry": options.symmetry,
        "symprec": options.symprec,
        "descriptor": options.descriptor,
        "kernel": options.kernel,
        "length_scale": options.length_scale,
        "noise": options.noise,
        "use_energy": options.use_energy,
        "solver": options.solver,
        "preconditioner": options.preconditioner,
        "rank": options.rank,
        "neighbours": options.neighbours,
        "rtol": options.rtol,
        "use_stress": options.use_stress,
        "baseline": options.baseline,
        "baseline_cache": baseline_cache(options.data, options.baseline),
        "progress": is_first() and not options.quiet,
        "backend": options.backend,
        "device": options.device,
        "dtype": options.dtype,
    }
    start = time.perf_counter()
    checkpoint = options.output.with_suffix(".checkpoint.npz")
    force_field = fit(training, validation=validation, checkpoint=checkpoint, resume=options.resume, **settings)
    seconds = time.perf_counter() - start
    if is_first():
        force_field.save(options.output)
        if options.uncertainty or options.committee:
            kind = "committee" if options.committee else "posterior"
            force_field = with_uncertainty(force_field, training, validation, kind=kind, progress=not options.quiet)
            force_field.save(options.output)
        checkpoint.unlink(missing_ok=True)
        print(f"{options.output}: {_describe(force_field)}; trained in {seconds:.1f} s{_account(force_field)}")
        _judge(force_field, training, validation, options.plot)
    if options.learning_curve:
        chosen = {"length_scale": force_field.length_scale, "noise": force_field.details["noise"]}
        chosen |= {"baseline": force_field.baseline}
        settings |= chosen | {"symmetry": force_field.group, "descriptor": force_field.descriptor, "progress": False}
        _learning_curve(training, validation, settings, options.learning_curve)


def _judge(force_field: ForceField, training: Dataset, validation: Dataset | None, picture: Path | None) -> None:
    """What a new force field is worth."""
    _tell_precision(force_field, training)
    if validation is None:
        return
    prediction = predict(force_field, validation)
    print(f"validation: {compare(prediction, validation, force_field.energies_are_relative)}")
    if force_field.error_model is not None:
        print(f"coverage of 90 % intervals of forces: {100 * coverage(force_field, validation)[0]:.0f} %")
    if picture:
        plots.plot_parity(prediction, validation, picture, relative=force_field.energies_are_relative)


def _split(dataset: Dataset, n_train: int | None, n_valid: int | None, seed: int) -> tuple[Dataset, Dataset | None]:
    """Training and validation frames, apart; validation may be None."""
    if n_train is None:
        if n_valid:
            drawn = dataset.sample(n_valid, seed=seed)
            return dataset[np.setdiff1d(np.arange(len(dataset)), drawn)], dataset[drawn]
        return dataset, None
    drawn = dataset.sample(n_train, seed=seed)
    rest = len(dataset) - n_train
    n_valid = min(rest, 200) if n_valid is None else n_valid
    if not n_valid:
        return dataset[drawn], None
    return dataset[drawn], dataset[dataset.sample(n_valid, seed=seed, exclude=drawn)]


def _prepare_plots(*paths: Path | None) -> None:
    """Find out before the work whether pictures can be drawn and written."""
    for path in filter(None, paths):
        plots.check_picture(path)


def _learning_curve(training: Dataset, validation: Dataset, settings: dict, path: Path) -> None:
    n = len(training)
    sizes = sorted({max(2, n // 8), max(2, n // 4), max(2, n // 2), n})
    metrics: list[Metrics] = []
    for size in sizes:
        metrics.append(evaluate(fit(training[training.sample(size)], **settings), validation))
        if is_first():
            print(f"n = {size}: {metrics[-1]}")
    if not is_first():
        return
    plots.plot_learning_curve(sizes, metrics, path)


def test(options: argparse.Namespace) -> None:
    """Errors of a force field on a file of labelled geometries."""
    _prepare_plots(options.plot, options.reliability)
    force_field = load(options.model, device=options.device, dtype=options.dtype, backend=options.backend)
    if isinstance(force_field, StatesForceField):
        return test_states(force_field, options)
    at_state(force_field, options.state)
    dataset = read_data(options.data, options)
    force_field.check_atoms(dataset.numbers)
    cache = baseline_cache(options.data, force_field.baseline)
    prediction = predict(force_field, dataset, cache=cache, progress=not options.json)
    metrics = compare(prediction, dataset, force_field.energies_are_relative)
    print(json.dumps(metrics.to_dict()) if options.json else metrics)
    if not options.json:
        _tell_precision(force_field, dataset)
        if force_field.error_model is not None and dataset.forces is not None:
            print(f"coverage of 90 % intervals of forces: {100 * coverage(force_field, dataset)[0]:.0f} %")
    if options.reliability:
        plots.plot_reliability(force_field, dataset, options.reliability)
    if options.plot:
        plots.plot_parity(prediction, dataset, options.plot, relative=force_field.energies_are_relative)
    return None


def show(options: argparse.Namespace) -> None:
    """What is in a model file or a file of geometries."""
    if _is_model(options.file):
        force_field = load(options.file)
        print(describe(force_field) if isinstance(force_field, StatesForceField) else _describe(force_field))
        for key, value in force_field.details.items():
            print(f"  {key}: {value}")
        return
    dataset = read_data(options.file, options)
    print(f"{len(dataset)} geometries of {dataset.formula} ({dataset.n_atoms} atoms)")
    if dataset.energy is not None:
        low, high, std = dataset.energy.min(), dataset.energy.max(), dataset.energy.std()
        print(f"  energy: {low:.4f} to {high:.4f} eV, standard deviation {std:.4f} eV")
    if dataset.forces is not None:
        rms, most = np.sqrt((dataset.forces**2).mean()), np.abs(dataset.forces).max()
        print(f"  forces: root mean square {rms:.3f}, largest {most:.3f} eV/Å")
    print(f"  cell: {'none' if dataset.cell is None else f'pbc {dataset.pbc}'}")
    print(f"  fingerprint: {dataset.fingerprint}")


def convert(options: argparse.Namespace) -> None:
    """Geometries to another format, or a model to or from the sGDML package's."""
    if _is_model(options.input):
        check_writable(options.output, ".npz")
        imported = is_sgdml_model(read_archive(options.input))
        force_field = load(options.input)
        if isinstance(force_field, StatesForceField):
            force_field = force_field.at(None if options.state is None else force_field.named(options.state))
        force_field.save(options.output, format="gdml" if imported else "sgdml")
        print(f"{options.output}: {_describe(force_field)}, in the format of {'gdml' if imported else 'sGDML 1.0.3'}")
        return
    dataset = read_data(options.input, options)
    dataset.write(options.output)
    print(f"{options.output}: {len(dataset)} geometries of {dataset.formula}")


def demo(options: argparse.Namespace) -> None:
    """The whole job on data that come with the package."""
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    data, model = folder / "ethanol.extxyz", folder / "ethanol.npz"
    ethanol().write(data)
    for command in (
        ["train", str(data), "--n-train", "160", "-o", str(model)],
        ["md", str(model), str(data), "--temperature", "500", "--steps", "1000", "-o", str(folder / "ethanol.traj")],
        ["md", str(model), str(data), "--temperature", "300", "--steps", "1000", "--ensemble", "nve"],
    ):
        print("$ gdml", *command, flush=True)
        code = main(command)
        if code:
            raise SystemExit(code)


def _describe(force_field: ForceField) -> str:
    return (
        f"{force_field.formula}, {len(force_field.y)} training geometries, symmetry "
        f"{force_field.group.summary}, {force_field.descriptor.name}, {force_field.kernel.name} with length scale "
        f"{force_field.length_scale:.4g}" + (f", baseline {force_field.baseline}" if force_field.baseline else "")
    )


def _account(force_field: ForceField) -> str:
    solver = force_field.details["solver"]
    if solver["name"] == "cholesky":
        return " in closed form"
    return f" by conjugate gradients ({solver['iterations']} iterations, rank {solver['rank']}; {solver['why']})"


def _tell_precision(force_field: ForceField, dataset: Dataset) -> None:
    """Say what single precision costs on some of the geometries."""
    if force_field.dtype != "float64":
        some = dataset[dataset.sample(min(len(dataset), JUDGED))]
        error = force_field.precision_error(some.positions, some.periodic_cell)
        print(f"{force_field.dtype} changes forces by {1e3 * error:.2g} meV/Å (root mean square)")


def _is_model(path: Path) -> bool:
    if path.suffix != ".npz" or not path.exists():
        return False
    archive = read_archive(path)
    if "format" in archive or is_sgdml_model(archive):
        return True
    if "R" not in archive:
        known = ", ".join(sorted(archive)[:8])
        raise FormatError(f"{path}: neither a model nor a dataset; the file has the fields {known or 'none'}")
    return False


def _auto_or_float(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _auto_or_int(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gdml", description="Kernel force fields from few reference geometries.")
    parser.add_argument("--version", action="version", version=f"gdml {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = _data_options()
    for add in (_add_train, _add_test, _add_show, _add_convert, add_md, add_pimd, add_ipi, _add_demo):
        add(commands, data)
    add_workflows(commands, data)
    add_explore(commands, data)
    return parser


def _data_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("reading geometries")
    group.add_argument("--energy-key", metavar="KEY", help="where energies are (energy, else REF_energy)")
    group.add_argument("--forces-key", metavar="KEY", help="where forces are (forces, else REF_forces)")
    group.add_argument("--energy-unit", metavar="UNIT", help="eV, kcal/mol, kJ/mol, Hartree, ... (eV)")
    group.add_argument("--length-unit", metavar="UNIT", help="Ang, Bohr or nm (Ang)")
    return options


def _add_train(commands, data) -> None:
    parser = commands.add_parser("train", parents=[data], help="train a force field", description=train.__doc__)
    parser.set_defaults(command=train)
    parser.add_argument("data", type=Path, help="file of geometries with forces")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="model file to write (.npz)")
    help_text = "of several states: under which key of info (or keys, with commas) frames have theirs"
    parser.add_argument("--state", metavar="KEY", help=help_text)
    parser.add_argument("--n-train", type=int, metavar="N", help="train on N frames, drawn by energy strata (all)")
    parser.add_argument("--n-valid", type=natural, metavar="N", help="hold out N other frames (200, or what is left)")
    parser.add_argument("--length-scale", type=_auto_or_float, default="auto", metavar="L", help="1/Å, or auto")
    parser.add_argument("--noise", type=_auto_or_float, default="auto", metavar="X", help="1e-10 by default")
    parser.add_argument("--descriptor", default="auto", help=f"auto (default), {', '.join(sorted(BY_NAME))}")
    parser.add_argument("--kernel", default="matern52", help=f"{', '.join(KERNELS)}; matern52 by default")
    help_text = "learn the difference to it: gfn2-xtb, gfn1-xtb, d4(method=pbe), zbl, ..., or a sum with +"
    parser.add_argument("--baseline", metavar="NAME", help=help_text)
    parser.add_argument("--reference", type=Path, metavar="FILE", help="of a crystal: its ideal structure")
    help_text = "how far atoms of the reference may be off symmetric places, Å"
    parser.add_argument("--symprec", type=_auto_or_float, default="auto", metavar="X", help=help_text)
    parser.add_argument("--symmetry", choices=("auto", "none"), default="auto", help="permutations of equal atoms")
    parser.add_argument("--use-energy", action="store_true", help="train on energies too")
    parser.add_argument("--uncertainty", action="store_true", help="with standard deviations of what it predicts")
    parser.add_argument("--committee", action="store_true", help="these by a committee, cheaper for crystals")
    parser.add_argument("--use-stress", action="store_true", help="of crystals: train on stress too")
    parser.add_argument("--solver", choices=("auto", "cholesky", "cg"), default="auto", help="closed form or CG")
    parser.add_argument("--preconditioner", choices=(*FACTORS, "none"), default="rpcholesky", help="of CG")
    parser.add_argument("--rank", type=_auto_or_int, default="auto", metavar="K", help="of the preconditioner")
    help_text = "nearest geometries that the preconditioner sees with each (4)"
    parser.add_argument("--neighbours", type=_auto_or_int, default="auto", metavar="M", help=help_text)
    parser.add_argument("--rtol", type=_auto_or_float, default="auto", metavar="X", help="residual where CG ends")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of a killed training")
    parser.add_argument("--seed", type=natural, default=0, help="of the draw of frames (0)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="parity plot of the held-out frames")
    parser.add_argument("--learning-curve", type=Path, metavar="FILE", help="plot errors at n/8, n/4, n/2 and n")
    add_hardware(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def _add_test(commands, data) -> None:
    parser = commands.add_parser("test", parents=[data], help="errors on other geometries", description=test.__doc__)
    parser.set_defaults(command=test)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--state", metavar="KEY", help="of a model of several states: as in training")
    parser.add_argument("--reliability", type=Path, metavar="FILE", help="plot how far uncertainties can be trusted")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON (eV, Å)")
    add_hardware(parser, several=True)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="parity plot")


def _add_show(commands, data) -> None:
    parser = commands.add_parser("show", parents=[data], help="what is in a file", description=show.__doc__)
    parser.set_defaults(command=show)
    parser.add_argument("file", type=Path, help="model or geometries")


def _add_convert(commands, data) -> None:
    parser = commands.add_parser("convert", parents=[data], help="other file formats", description=convert.__doc__)
    parser.set_defaults(command=convert)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    add_state(parser)


def _add_demo(commands, data) -> None:
    parser = commands.add_parser("demo", help="the whole job on ethanol", description=demo.__doc__)
    parser.set_defaults(command=demo)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"), help="where to write (./demo)")
