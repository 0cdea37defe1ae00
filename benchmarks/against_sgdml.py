"""Accuracy and speed beside sGDML 1.0.3, on the same frames with the same hyper-parameters.

sGDML needs NumPy < 2 and SciPy < 1.14, so it gets an environment of its own,
``.venv-sgdml`` beside this file, on the first run:

    python benchmarks/against_sgdml.py

The two programs take turns, so that both see the same state of the machine.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import HERE, dataset, median_seconds, write_result

import gdml

ENVIRONMENT = HERE / ".venv-sgdml"
PYTHON = ENVIRONMENT / "bin" / "python"
CASES = {
    "acetylacetone": ("molecules/acac_300K_train.extxyz", "molecules/acac_300K_test.extxyz"),
    "ethanol": ("molecules/rmd17_ethanol.extxyz", None),
}
N_TRAIN, LENGTH_SCALE, NOISE = 200, 20.0, 1e-10
ROUNDS = 3


def prepare_environment() -> None:
    """Make the second environment unless it is there."""
    if PYTHON.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "numpy<2", "scipy<1.14", "ase", "sgdml==1.0.3"], check=True)


def sgdml_job(training: gdml.Dataset, test: gdml.Dataset, group: gdml.PermutationGroup) -> dict[str, np.ndarray]:
    """What sgdml_worker.py needs to know."""
    return {
        "z": training.numbers,
        "R": training.positions,
        "F": training.forces,
        "E": training.energy,
        "R_test": test.positions,
        "perms": group.permutations,
        "sig": int(LENGTH_SCALE),
        "lam": NOISE,
    }


def run_sgdml(job: dict[str, np.ndarray], folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Train and predict with sGDML in its environment; its timings and its predictions."""
    np.savez(folder / "job.npz", **job)
    command = [PYTHON, HERE / "sgdml_worker.py", folder / "job.npz", folder / "out.npz"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with np.load(folder / "out.npz") as out:
        return json.loads(str(out["timings"])), {k: out[k] for k in ("energy", "forces")}


def reads_our_files(folder: Path) -> dict:
    """What sGDML predicts with a model that this package wrote, and whether it knows our dataset as one."""
    files = [folder / name for name in ("job.npz", "export.npz", "dataset.npz", "imported.npz")]
    subprocess.run([PYTHON, HERE / "sgdml_import.py", *files], check=True, stdout=subprocess.DEVNULL)
    with np.load(files[-1]) as out:
        return {"forces": out["forces"], "reads_dataset": bool(out["reads_dataset"])}


def run_gdml(
    training: gdml.Dataset, test: gdml.Dataset, group: gdml.PermutationGroup, export: Path
) -> tuple[dict, gdml.Prediction]:
    """The same with this package; the force field is left in `export`, in the sGDML format."""

    def train():
        return gdml.fit(training, symmetry=group, length_scale=LENGTH_SCALE, noise=NOISE)

    force_field = train()
    positions = test.positions
    calculator = gdml.GDMLCalculator(force_field, warn_outside=False)
    frames = test.to_atoms()[:200]

    def ase_calls():
        for atoms in frames:
            calculator.calculate(atoms)

    def single_calls():
        for geometry in positions[:200]:
            force_field.predict(geometry)

    force_field.save(export, format="sgdml")
    timings = {
        "train_s": median_seconds(train, 2, warm_up=0),
        "batch_ms": 1e3 * median_seconds(lambda: force_field.predict(positions), 5) / len(positions),
        "single_ms": 1e3 * median_seconds(single_calls, 5) / 200,
        "ase_call_ms": 1e3 * median_seconds(ase_calls, 5) / len(frames),
    }
    return timings, force_field.predict(positions)


def run_case(train_file: str, test_file: str | None) -> dict:
    frames = dataset(train_file)
    drawn = frames.sample(N_TRAIN)
    rest = np.setdiff1d(np.arange(len(frames)), drawn)
    training = frames[drawn]
    test = dataset(test_file) if test_file else frames[rest]
    group = gdml.molecular_group(frames)
    job = sgdml_job(training, test, group)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            timing, reference = run_sgdml(job, Path(folder))
            theirs.append(timing)
            timing, prediction = run_gdml(training, test, group, Path(folder) / "export.npz")
            ours.append(timing)
        training.write(Path(folder) / "dataset.npz")
        imported = reads_our_files(Path(folder))
    ours, theirs = (_medians(t) for t in (ours, theirs))
    batch = min(theirs["batch_numpy_ms"], theirs["batch_torch_ms"])
    return {
        "n_train": N_TRAIN,
        "n_test": len(test),
        "symmetry_order": group.order,
        "force_mae_meV_per_A": 1e3 * float(np.abs(prediction.forces - test.forces).mean()),
        "largest_force_difference_eV_per_A": float(np.abs(prediction.forces - reference["forces"]).max()),
        "sgdml_reads_our_dataset": imported["reads_dataset"],
        "largest_force_difference_in_sgdml_with_our_model": float(np.abs(prediction.forces - imported["forces"]).max()),
        "largest_energy_difference_eV": float(np.abs(prediction.energy - reference["energy"]).max()),
        "gdml": ours,
        "sgdml": theirs,
        "faster": {
            "train": theirs["train_s"] / ours["train_s"],
            "batch": batch / ours["batch_ms"],
            "single": theirs["single_ms"] / ours["single_ms"],
            "ase_call_against_its_predict": theirs["single_ms"] / ours["ase_call_ms"],
        },
    }


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def main() -> None:
    prepare_environment()
    settings = {"length_scale": LENGTH_SCALE, "noise": NOISE, "rounds": ROUNDS}
    write_result("against_sgdml", {**settings, "cases": {name: run_case(*files) for name, files in CASES.items()}})


if __name__ == "__main__":
    main()
