"""How long a time step of a `RingPolymerMD` can be."""

import numpy as np
import torch
from scipy.optimize import brentq

ITERATIONS = 10
STEP = 1e-3  # Å, or strain, of finite differences
TINY = 1e-12


def longest_step(run) -> tuple[float, str]:
    """The limit of stability for the vibrations about the present centroid, in ASE's units, and what sets it.

    A kick by forces of frequency Ω between two motions of the free ring is stable up to
    2/Ω with Cayley's form; with the exact one, as long as x tan x < (ω/Ω)² for x = ω h/2 and
    the ring's highest frequency ω: where the trace of the step leaves (-2, 2).
    """
    own = max(highest_frequency(run), TINY)
    limits = {"the highest frequency of the atoms": 2 / own}
    ring = float(run.modes.frequencies.max())
    if run.propagator == "exact" and run.n_beads > 1:
        angle = brentq(lambda x: x * np.sin(x) - (ring / own) ** 2 * np.cos(x), 1e-9, np.pi / 2)
        limits[f"the exact propagator with {run.n_beads} beads"] = 2 * angle / ring
    if run.barostat:
        limits["the barostat (with a larger tau_p)"] = 2 / max(_piston_frequency(run), TINY)
    why = min(limits, key=limits.get)
    return limits[why], why


def highest_frequency(run) -> float:
    """Of the vibrations about the present centroid of the first replica, by power iteration."""
    centroid, root = run.centroid[:1], run.centroid.new_tensor(run.atoms.get_masses()).view(-1, 1).sqrt()
    cells = None if run.cells is None else run.cells[:1].expand(2, 3, 3)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(centroid.shape, dtype=centroid.dtype, generator=generator).to(centroid.device)
    length = STEP * float(root.mean())
    square = 0.0
    for _ in range(ITERATIONS):
        v = run.moves * v
        v = v / v.norm().clamp(min=TINY)
        pair = torch.cat([centroid + length * v / root, centroid - length * v / root])
        forces = run.evaluate(pair, cells, False).forces
        v = (forces[1:] - forces[:1]) / (2 * length) / root
        square = float((run.moves * v).norm())
    return square**0.5


def _piston_frequency(run) -> float:
    """Of the cell's volume, from the change of the pressure with it."""
    scale = run.centroid.new_tensor([1 + STEP, 1 - STEP]).view(2, 1, 1)
    cells = scale * run.cells[:1]
    volume = torch.linalg.det(cells).abs()
    stress = run.evaluate(scale * run.centroid[:1], cells, True).stress
    work = volume * (stress[:, :3].sum(1) + 3 * run.barostat.pressure)
    return max(0.0, run.n_beads * float(work[0] - work[1]) / (2 * STEP * run.barostat.mass)) ** 0.5
