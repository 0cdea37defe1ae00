"""Predictions of sGDML 1.0.3 that the tests compare with, on the package's own geometries.

python benchmarks/make_reference_values.py tests/reference_sgdml.npz
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from against_sgdml import prepare_environment, run_sgdml, sgdml_job

import gdml
from gdml.data import ethanol

TRAIN, TEST = slice(0, 25), slice(100, 104)


def main() -> None:
    prepare_environment()
    frames = ethanol()
    training, test = frames[TRAIN], frames[TEST]
    job = sgdml_job(training, test, gdml.molecular_group(frames))
    with tempfile.TemporaryDirectory() as folder:
        _, prediction = run_sgdml(job, Path(folder))
    np.savez(sys.argv[1], **prediction)


if __name__ == "__main__":
    main()
