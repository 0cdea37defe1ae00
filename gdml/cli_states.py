"""The commands ``gdml train`` and ``gdml test`` for several states in one model."""

import argparse
import json
import time

import numpy as np

from .cli_options import baseline_cache, reading
from .dataset import Dataset, read_structure
from .errors import DataError
from .metrics import evaluate
from .states import StatesForceField, fit_states, read_states
from .states.force_field import State
from .uncertainty import coverage, with_uncertainty

# What training of one state has, and of several has not.
ALONE = ("resume", "use_stress", "committee", "plot", "learning_curve")


def check_options(options: argparse.Namespace) -> None:
    """Raise `DataError` for options that do not go with several states."""
    for name in ALONE:
        if getattr(options, name):
            raise DataError(f"--{name.replace('_', '-')} does not go with --state; leave it out")


def train_states(options: argparse.Namespace) -> None:
    """Train on frames of all states, judge on others of each, and save."""
    data = read_data_of_states(options)
    parts = {state: _split(dataset, options) for state, dataset in data.items()}
    start = time.perf_counter()
    field = fit_states(
        {state: training for state, (training, _) in parts.items()},
        reference=None if options.reference is None else read_structure(options.reference),
        symmetry=options.symmetry,
        symprec=options.symprec,
        descriptor=options.descriptor,
        kernel=options.kernel,
        length_scale=options.length_scale,
        noise=options.noise,
        use_energy=options.use_energy,
        solver=options.solver,
        preconditioner=options.preconditioner,
        rank=options.rank,
        neighbours=options.neighbours,
        rtol=options.rtol,
        baseline=options.baseline,
        baseline_cache=baseline_cache(options.data, options.baseline),
        backend=options.backend,
        device=options.device,
        dtype=options.dtype,
        progress=not options.quiet,
    )
    seconds = time.perf_counter() - start
    field.save(options.output)
    held_out = {state: held for state, (_, held) in parts.items() if held is not None}
    if options.uncertainty:
        field = with_uncertainty(field, {state: training for state, (training, _) in parts.items()}, held_out or None)
        field.save(options.output)
    print(f"{options.output}: {describe(field)}; trained in {seconds:.1f} s")
    _judge(field, held_out)


def read_data_of_states(options: argparse.Namespace) -> dict[State, Dataset]:
    """Geometries of a file by the keys of ``--state``, which commas separate."""
    keys = tuple(options.state.split(","))
    return read_states(options.data, keys[0] if len(keys) == 1 else keys, **reading(options))


def _split(dataset: Dataset, options: argparse.Namespace) -> tuple[Dataset, Dataset | None]:
    """Training and held-out frames of one state."""
    wanted = len(dataset) - (options.n_valid or 0) if options.n_train is None else options.n_train
    drawn = dataset.sample(min(max(wanted, 1), len(dataset)), seed=options.seed)
    n_held = min(len(dataset) - len(drawn), 200 if options.n_valid is None else options.n_valid)
    held = dataset[dataset.sample(n_held, seed=options.seed, exclude=drawn)] if n_held else None
    return dataset[drawn], held


def describe(field: StatesForceField) -> str:
    """What is in a model of several states."""
    counts = np.bincount(field.state_of, minlength=len(field.states))
    states = ", ".join(f"{state} ({n} geometries)" for state, n in zip(field.states, counts))
    above = np.triu_indices(len(field.states), 1)
    correlations = ", ".join(f"{c:.4g}" for c in field.correlation[above])
    return f"{field.formula}, states {states}, correlations {correlations}, {field.shared!r}"


def _judge(field: StatesForceField, data: dict[State, Dataset]) -> None:
    for state, metrics in evaluate(field, data).items():
        print(f"state {state}: {metrics}")
        if field.shared.error_model is not None and data[state].forces is not None:
            found = 100 * coverage(field.at(state), data[state])[0]
            print(f"state {state}: coverage of 90 % intervals of forces: {found:.0f} %")


def test_states(field: StatesForceField, options: argparse.Namespace) -> None:
    """Errors of each state on a file of labelled geometries."""
    if options.state is None:
        field.at(None)  # which says what to do
    data = read_data_of_states(options)
    if options.json:
        print(json.dumps({str(state): metrics.to_dict() for state, metrics in evaluate(field, data).items()}))
    else:
        _judge(field, data)
