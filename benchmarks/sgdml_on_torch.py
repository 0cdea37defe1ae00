"""Time sGDML 1.0.3's module for torch; run by gpu.py in sGDML's environment.

Usage: python sgdml_on_torch.py MODEL.npz POSITIONS.npy DEVICE, which prints milliseconds for each call.
"""

import statistics
import sys
import time

import numpy as np
import torch
from sgdml.torchtools import GDMLTorchPredict


def main():
    model, device = dict(np.load(sys.argv[1], allow_pickle=True)), torch.device(sys.argv[3])
    module = GDMLTorchPredict(model).to(device)
    positions = torch.tensor(np.load(sys.argv[2]), device=device)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        _, forces = module(positions)
        forces[0, 0, 0].item()  # which waits for the device
        times.append(time.perf_counter() - start)
    print(1e3 * statistics.median(times[2:]))


if __name__ == "__main__":
    main()
