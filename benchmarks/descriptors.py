"""Which descriptor and which kernel: errors on held-out frames of four molecules, and what descriptors cost.

All hyper-parameters are those that training chooses by itself.

    python benchmarks/descriptors.py [table] [cost] [vibrations] [extrapolation] [--n 50 200]
"""

import argparse
import functools
import json
import time

import numpy as np
import torch
from ase import Atoms
from common import RESULTS, dataset, median_seconds, run_parts

import gdml
from gdml.contractions import contraction
from gdml.data import ethanol
from gdml.descriptors import (
    ExponentialDistances,
    InternalCoordinates,
    InverseDistances,
    ManyBody,
    PowerSpectrum,
    SideBySide,
)
from gdml.errors import SymmetryError
from gdml.geometry import pair_indices
from gdml.operators import Labels, TrainingOperator

MOLECULES = {
    "ethanol": "molecules/rmd17_ethanol.extxyz",
    "aspirin": "molecules/rmd17_aspirin.extxyz",
    "acetylacetone": "molecules/acac_300K_train.extxyz",
    "3bpa": "molecules/3bpa_300K_train.extxyz",
}
N_TEST, SEED = 300, 0


def two_powers(n: int, frames: gdml.Dataset) -> SideBySide:
    return SideBySide.balanced([InverseDistances(n), InverseDistances(n, 3.0)], torch.tensor(frames.positions))


DESCRIPTORS = {
    "1/r": lambda frames: InverseDistances(frames.n_atoms),
    "1/√r": lambda frames: InverseDistances(frames.n_atoms, 0.5),
    "1/r²": lambda frames: InverseDistances(frames.n_atoms, 2.0),
    "exp(-r/2Å)": lambda frames: ExponentialDistances(frames.n_atoms),
    "1/r, 1/r³": lambda frames: two_powers(frames.n_atoms, frames),
    "internal coordinates": lambda frames: InternalCoordinates(),
    "power spectra, atoms": lambda frames: PowerSpectrum(),
    "many-body, atoms": lambda frames: ManyBody(),
}
# The incumbent's choice comes first, and "auto", the default with its learned metric, last.
KERNELS = ["matern52", "matern32", "matern72", "gaussian", "rational-quadratic"]
FINAL = [("1/r", "matern52"), ("many-body, atoms", "gaussian"), ("auto", "matern52")]
TRIED = {
    50: [("1/r", kernel) for kernel in KERNELS]
    + [(name, "matern52") for name in list(DESCRIPTORS)[1:]]
    + [("many-body, atoms", kernel) for kernel in KERNELS[2:]]
    + [("auto", "matern52")],
    200: [("1/r", "gaussian"), ("1/r, 1/r³", "matern52"), *FINAL],
    400: FINAL,
    500: FINAL,
    900: [FINAL[0], FINAL[2]],
}


def error(frames: gdml.Dataset, n: int, name: str, kernel: str) -> dict:
    order = np.random.default_rng(SEED).permutation(len(frames))
    training, held_out = frames[order[:n]], frames[order[n : n + N_TEST]]
    descriptor = DESCRIPTORS[name](training) if name in DESCRIPTORS else name
    start = time.perf_counter()
    try:
        force_field = gdml.fit(training, descriptor=descriptor, kernel=kernel)
    except SymmetryError as problem:
        return {"not_possible": str(problem)}
    seconds = time.perf_counter() - start
    found = gdml.evaluate(force_field, held_out)
    return {
        "forces_mae": 1e3 * found.forces_mae,
        "forces_rmse": 1e3 * found.forces_rmse,
        "length_scale": force_field.length_scale,
        "noise": force_field.details["noise"],
        "solver": force_field.details["solver"]["name"],
        "train_s": seconds,
    }


def table(sizes: list[int], molecules: list[str], descriptors: list[str] | None) -> dict:
    """Errors in meV/Å; what was measured before stays where it is not measured again."""
    path = RESULTS / "descriptors.json"
    known = json.loads(path.read_text()).get("table", {}) if path.exists() else {}
    for n in sizes:
        for molecule in molecules:
            frames = dataset(MOLECULES[molecule])
            if n > len(frames) - 50:
                continue
            cases = known.setdefault(molecule, {}).setdefault(str(n), {})
            for name, kernel in TRIED[n]:
                if descriptors and name not in descriptors:
                    continue
                cases[f"{name}; {kernel}"] = error(frames, n, name, kernel)
                print(molecule, n, name, kernel, cases[f"{name}; {kernel}"], flush=True)
                keep("table", known)
    return known


def keep(part: str, result: dict) -> None:
    """Write what is there of a long part."""
    path = RESULTS / "descriptors.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: result}, indent=2) + "\n")


def extrapolation() -> dict:
    """3BPA, 150 geometries at 300 K: force RMSE (meV/Å) on the others, by their distance from the training data."""
    frames = dataset(MOLECULES["3bpa"])
    order = np.random.default_rng(SEED).permutation(len(frames))
    training, rest = frames[order[:150]], frames[order[150:]]
    x, y = (InverseDistances(frames.n_atoms).evaluate(torch.tensor(d.positions)).x for d in (rest, training))
    thirds = np.array_split(torch.cdist(x, y).amin(1).argsort().numpy(), 3)
    result = {}
    for name, kernel in FINAL:
        descriptor = DESCRIPTORS[name](training) if name in DESCRIPTORS else name
        force_field = gdml.fit(training, descriptor=descriptor, kernel=kernel)
        errors = [1e3 * gdml.evaluate(force_field, rest[third]).forces_rmse for third in thirds]
        result[f"{name}; {kernel}"] = dict(zip(("near", "middle", "far"), errors))
        print(name, result[f"{name}; {kernel}"], flush=True)
    return result


def inverse_distances(positions: torch.Tensor) -> torch.Tensor:
    first, second = map(torch.tensor, pair_indices(len(positions)))
    return 1.0 / (positions[first] - positions[second]).norm(dim=1)


def cost() -> dict:
    """Times of the same descriptor made by hand and given as a function, and of products with dense derivatives."""
    frames = dataset(MOLECULES["ethanol"])
    made = {"by hand": InverseDistances(frames.n_atoms), "function": gdml.AutogradDescriptor(inverse_distances)}
    fields = {k: gdml.fit(frames[:200], descriptor=d, length_scale=20.0) for k, d in made.items()}
    batch, single = frames.positions[200:700], frames.positions[200]
    result = {}
    for name, field in fields.items():
        operator = operator_of(frames[:200], field)
        v = operator.labels.values.flatten()
        result[name] = {
            "single_ms": 1e3 * median_seconds(functools.partial(field.predict, single), 50, 5),
            "batch_ms": 1e3 * median_seconds(functools.partial(field.predict, batch), 10) / len(batch),
            "product_ms": 1e3 * median_seconds(functools.partial(operator.matmul, v), 10),
        }
    few = frames[:24]
    operator = operator_of(few, fields["function"])
    v = operator.labels.values.flatten()
    seconds = median_seconds(lambda: operator.matmul(v), 20)
    by_dense = median_seconds(lambda: dense_product(few, fields["function"], operator.labels.basis, v), 3)
    result["dense derivatives"] = {"n": len(few), "product_ms": 1e3 * by_dense, "ours_ms": 1e3 * seconds}
    result["ratios"] = {k: result["function"][k] / v for k, v in result["by hand"].items()}
    result["ratios"]["dense_product"] = by_dense / seconds
    hessian = median_seconds(lambda: fields["by hand"].hessian(single), 10)
    moves = np.eye(27).reshape(27, 9, 3) * 1e-3
    differences = median_seconds(
        lambda: fields["by hand"].predict(np.concatenate([single + moves, single - moves])), 10
    )
    result["hessian"] = {"exact_ms": 1e3 * hessian, "differences_ms": 1e3 * differences}
    many = gdml.fit(frames[:50], descriptor="many-body", kernel="gaussian", length_scale=6.0, noise=1e-6)
    result["many-body, n = 50"] = {
        "single_ms": 1e3 * median_seconds(functools.partial(many.predict, single), 20, 3),
        "batch_ms": 1e3 * median_seconds(functools.partial(many.predict, batch[:100]), 5) / 100,
    }
    print(json.dumps(result, indent=2))
    return result


def operator_of(frames: gdml.Dataset, field: gdml.ForceField) -> TrainingOperator:
    features = field.descriptor.evaluate(torch.tensor(frames.positions))
    jets = contraction(field.kernel, features.x, field.descriptor.action(field.group))
    return TrainingOperator(jets, Labels(features, frames), 1e-10)


def dense_product(frames: gdml.Dataset, field: gdml.ForceField, basis: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same product, from the kernel's dense second derivatives by the positions of each pair."""
    rows = torch.tensor(field.descriptor.action(field.group).rows())
    positions = torch.tensor(frames.positions)

    def kernel(r: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        away = (inverse_distances(r) - inverse_distances(other)[rows]).square().sum(1)
        return field.kernel.profile((away + 1e-20).sqrt())[0].sum()

    block = torch.func.jacfwd(torch.func.jacrev(kernel, argnums=0), argnums=1)
    blocks = torch.vmap(torch.vmap(block, (None, 0)), (0, None))(positions, positions)
    moves = torch.einsum("miq,mq->mi", basis, v.view(len(frames), -1))
    n = moves.shape[1]
    return torch.einsum("miq,mnij,nj->mq", basis, blocks.reshape(len(frames), len(frames), n, n), moves).flatten()


def vibrations() -> dict:
    """Frequencies (cm⁻¹) of the demo's ethanol against those of its own method."""
    reference = json.loads((RESULTS / "reference_vibrations.json").read_text())
    atoms = Atoms(reference["numbers"], reference["positions"])
    expected = np.array(reference["frequencies_per_cm"])
    result = {"reference": expected.tolist()}
    frames = ethanol()
    for name, options in {
        "1/r": {"descriptor": "inverse-distances"},
        "auto": {},
        "many-body, atoms": {"descriptor": "many-body", "kernel": "gaussian"},
    }.items():
        field = gdml.fit(frames, **options)
        relaxed = gdml.relax(field, atoms)
        found = np.real(gdml.vibrations(field, relaxed).get_frequencies()[6:])
        moves = np.eye(27).reshape(27, 9, 3) * 2e-3
        ends = [field.predict(relaxed.positions + k * moves).forces.reshape(27, 27) for k in (-2, -1, 1, 2)]
        differences = -(ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * 2e-3)
        hessian = field.hessian(relaxed.positions)
        result[name] = {
            "frequencies": found.tolist(),
            "mae": float(np.abs(found - expected).mean()),
            "largest": float(np.abs(found - expected).max()),
            "hessian_against_differences": float(np.abs(hessian - differences).max() / np.abs(hessian).max()),
        }
        print(name, result[name])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--n", type=int, nargs="*", default=list(TRIED))
    parser.add_argument("--molecules", nargs="*", default=list(MOLECULES))
    parser.add_argument("--descriptors", nargs="*")
    options = parser.parse_args()
    parts = {
        "table": functools.partial(table, options.n, options.molecules, options.descriptors),
        "extrapolation": extrapolation,
        "cost": cost,
        "vibrations": vibrations,
    }
    run_parts("descriptors", parts, options.parts)


if __name__ == "__main__":
    main()
