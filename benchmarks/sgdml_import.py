"""Load files of this package with sGDML 1.0.3; run by against_sgdml.py in an environment of its own.

Usage: python sgdml_import.py JOB.npz MODEL.npz DATASET.npz OUT.npz
"""

import sys

import numpy as np
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain
from sgdml.utils import io


def main():
    job, model, dataset = sys.argv[1:4]
    positions = np.load(job)["R_test"]
    predictor = GDMLPredict(np.load(model, allow_pickle=True))
    _, forces = predictor.predict(positions.reshape(len(positions), -1))
    _, loaded = io.is_file_type(dataset, "dataset")
    task = GDMLTrain().create_task(dict(loaded), 20, dict(loaded), 20, sig=20, perms=np.load(job)["perms"])
    reads_dataset = task["R_train"].shape == (20, *positions.shape[1:]) and loaded["md5"] == io.dataset_md5(loaded)
    np.savez(sys.argv[4], forces=forces.reshape(positions.shape), reads_dataset=bool(reads_dataset))


if __name__ == "__main__":
    main()
