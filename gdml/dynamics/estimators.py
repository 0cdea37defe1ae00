r"""Estimators of path-integral molecular dynamics, named as in i-PI's manual.

For P beads at inverse temperature β, with the centroid :math:`\bar q`:

* ``potential``: mean energy of the beads;
* ``kinetic_td``: primitive (thermodynamic) kinetic energy,
  :math:`3NP/2\beta - \frac{1}{P} \sum_j \frac{1}{2} m \omega_P^2 (q_j - q_{j+1})^2`;
* ``kinetic_cv``: centroid-virial kinetic energy,
  :math:`3N/2\beta - \frac{1}{2P} \sum_j (q_j - \bar q) \cdot f_j`, whose spread does not grow with P;
* ``temperature``: of the momenta of all modes, and ``temperature_centroid``;
* ``conserved``: per bead, what a run without errors of the time step keeps;
* ``pressure_cv`` (eV/Å³), ``volume``: of crystals, where stress is known;
* ``r_gyration``: root mean square distance (R, N) of beads from their centroid, Å.

Source: M. F. Herman, E. J. Bruskin, B. J. Berne, J. Chem. Phys. 76, 5150 (1982);
M. Ceriotti, J. More, D. E. Manolopoulos, Comput. Phys. Commun. 185, 1019 (2014).
"""

from collections import deque
from pathlib import Path

import numpy as np
import torch
from ase import units
from torch import Tensor

from ..errors import DataError
from .averages import Average, block_average, jackknife
from .ring_polymer import CHECK_INTERVAL, RingPolymerMD

EDGES = np.linspace(0.0, 1.0, 201)  # Å, of the distribution of beads
HEAT_STEP = 1e-3  # of the beads' distance from their centroid, for its second derivative


def properties(run: RingPolymerMD) -> dict[str, Tensor]:
    """All estimators of the present state, each (R,) but ``r_gyration`` (R, N)."""
    kt, n_free = units.kB * run.temperature_K, run.n_free
    relative, forces = run.relative, run.bead_forces
    internal = (run.n_beads - 1) * run.n_moving
    found = {
        "conserved": run.conserved(),
        "potential": run.potential.mean(1),
        "kinetic_td": 0.5 * (n_free + internal) * kt - run.spring_energy() / run.n_beads,
        "kinetic_cv": 0.5 * n_free * kt - 0.5 * (relative * forces).sum((2, 3)).mean(1),
        "temperature": _temperature(run.mode_kinetic().sum(1), n_free + internal, run.n_beads),
        "temperature_centroid": _temperature(run.mode_kinetic()[:, 0], n_free, run.n_beads),
        "r_gyration": (relative**2).sum(3).mean(1).sqrt(),
    }
    if run.atoms.pbc.all():
        found["volume"] = run.volume
    if run.stress is not None:
        # The centre of mass presses too, also where it is held.
        kinetic = 2 * found["kinetic_cv"] / 3 + (kt if run.holds_com else 0.0)
        found["pressure_cv"] = kinetic / run.volume - run.stress[..., :3].sum(-1).mean(1) / 3
    return found


def _temperature(kinetic: Tensor, n_free: int, n_beads: int) -> Tensor:
    return 2 * kinetic / (max(n_free, 1) * units.kB * n_beads)


def double_virial(run: RingPolymerMD) -> tuple[Tensor, Tensor]:
    r"""What the heat capacity is made of: ε (R,) and its derivative's part (R,).

    .. math::

       \epsilon = \frac{1}{P} \sum_j [V_j - \tfrac12 d_j \cdot f_j], \quad
       C_V / k_B = \beta^2 \operatorname{var} \epsilon + \frac{3N}{2}
       - \frac{\beta}{4 P} \Big\langle \sum_j d_j^T H_j d_j - 3 d_j \cdot f_j \Big\rangle,

    with d_j the distance of a bead from the centroid. The second derivative along d is a
    difference of forces, at the cost of two more evaluations.

    Source: T. M. Yamamoto, J. Chem. Phys. 123, 104101 (2005), by scaled coordinates.
    """
    d, forces = run.relative, run.bead_forces
    virial = (d * forces).sum((2, 3))
    beyond, before = (run.forces_at(run.positions + sign * HEAT_STEP * d) for sign in (1, -1))
    curvature = -(d * (beyond - before)).sum((2, 3)) / (2 * HEAT_STEP)
    return (run.potential - 0.5 * virial).mean(1), 0.25 * (curvature - 3 * virial).mean(1)


class Record:
    """Samples of the estimators along a run; attach it: ``run.attach(record, interval=10)``.

    Parameters
    ----------
    run : RingPolymerMD
    heat_capacity : bool
        Whether to sample for it too, which takes two more force evaluations; at a fixed
        volume, with a thermostat on all modes.

    Attributes
    ----------
    samples : dict of str to list of arrays
        Each (R,), or (R, N) of ``r_gyration``.
    elements : list of str
    counts : (n_elements, 200) array
        Distribution of the distances of beads from their centroid, at `EDGES`.
    """

    looks_at_atoms = False  # but at the beads, and so the atoms need not be brought up to date

    def __init__(self, run: RingPolymerMD, heat_capacity: bool = False):
        if heat_capacity and (run.barostat or run.kind not in ("pile-l", "pile-g")):
            raise DataError("the heat capacity needs a fixed volume, and the thermostat 'pile-l' or 'pile-g'")
        self.run, self.heat_capacity = run, heat_capacity
        run.records.append(self)
        self.samples: dict[str, list[np.ndarray]] = {}
        self.elements = sorted(set(run.atoms.symbols))
        self.counts = np.zeros((len(self.elements), len(EDGES) - 1), dtype=np.int64)
        self._recent: deque = deque(maxlen=CHECK_INTERVAL)

    def __call__(self) -> None:
        found = {"step": torch.tensor([self.run.nsteps]), "time": torch.tensor([self.run.get_time() / units.fs])}
        found |= properties(self.run) | {"_modes": self.run.mode_kinetic()}
        if self.heat_capacity:
            found["_epsilon"], found["_curvature"] = double_virial(self.run)
        for name, value in found.items():
            self.samples.setdefault(name, []).append(value.cpu().numpy())
        self._count()

    def _count(self) -> None:
        distances = self.run.relative.norm(dim=3).cpu().numpy()
        symbols = np.array(list(self.run.atoms.symbols))
        found = np.array([np.histogram(distances[:, :, symbols == e], EDGES)[0] for e in self.elements])
        self.counts = self.counts + found
        self._recent.append((self.run.nsteps, found))

    def series(self, name: str) -> np.ndarray:
        """Samples of a property, (n, R) or (n, R, N)."""
        return np.array(self.samples[name])

    def line(self) -> str:
        """The last sample in a few words."""
        last = {name: float(values[-1].mean()) for name, values in self.samples.items() if values[-1].size}
        return (
            f"{last['temperature']:.0f} K, potential {last['potential']:.4f} eV, kinetic {last['kinetic_cv']:.4f} eV, "
            f"gyration {last['r_gyration']:.3f} Å"
        )

    def until(self, step: int) -> dict[str, np.ndarray]:
        """The samples of a run up to a step."""
        if not self.samples:
            return {}
        n = int((self.series("step")[:, 0] <= step).sum())
        later = sum(counts for sampled, counts in self._recent if sampled > step)
        return {name: self.series(name)[:n] for name in self.samples} | {"counts": self.counts - later}

    def restore(self, samples: dict[str, np.ndarray]) -> None:
        """The inverse of `until`."""
        samples = dict(samples)
        if samples:
            self.counts = samples.pop("counts")
        self.samples = {name: list(values) for name, values in samples.items()}
        self._recent.clear()

    def averages(self, discard: float = 0.2) -> dict[str, Average]:
        """Means with standard errors, after a first part of the samples (a fraction) is thrown away.

        Besides those of `properties`: ``total_energy`` (potential and kinetic_cv),
        ``total_energy_td``, and ``heat_capacity`` in eV/K where it was sampled.
        ``r_gyration`` is averaged over atoms; see `r_gyration` for each.
        """
        kept = {name: self.series(name)[int(discard * len(values)) :] for name, values in self.samples.items()}
        kept["total_energy"] = kept["potential"] + kept["kinetic_cv"]
        kept["total_energy_td"] = kept["potential"] + kept["kinetic_td"]
        square = block_average((kept.pop("r_gyration") ** 2).mean(-1))
        wanted = [name for name in kept if name not in ("step", "time") and not name.startswith("_")]
        found = {name: block_average(kept[name]) for name in wanted}
        root = square.mean**0.5
        found["r_gyration"] = Average(root, square.error / (2 * root) if root else 0.0)
        if self.heat_capacity:
            found["heat_capacity"] = self._heat_capacity(kept["_epsilon"], kept["_curvature"])
        return found

    def _heat_capacity(self, epsilon: np.ndarray, curvature: np.ndarray) -> Average:
        beta = 1 / (units.kB * self.run.temperature_K)
        constant = 0.5 * self.run.n_free

        def capacity(e: np.ndarray, c: np.ndarray) -> float:
            return units.kB * (beta**2 * e.var() + constant - beta * c.mean())

        return jackknife(capacity, epsilon, curvature)

    def mode_temperatures(self, discard: float = 0.2) -> np.ndarray:
        """Mean temperature (P,) of each mode of the ring, K; the first is that of the centroid."""
        series = self.series("_modes")
        kinetic = series[int(discard * len(series)) :].mean((0, 1))
        n_free = np.full(self.run.n_beads, self.run.n_moving)
        n_free[0] = self.run.n_free
        return 2 * kinetic / (np.maximum(n_free, 1) * units.kB * self.run.n_beads)

    def r_gyration(self, discard: float = 0.2) -> np.ndarray:
        """Root mean square distance (N,) of each atom's beads from their centroid, Å."""
        series = self.series("r_gyration")
        return np.sqrt((series[int(discard * len(series)) :] ** 2).mean((0, 1)))


def write_table(record: Record, path: str | Path) -> None:
    """Samples as columns of text, averaged over replicas, under a line of names."""
    names = [name for name in record.samples if not name.startswith("_")]
    columns = [record.series(name).reshape(len(record.series(name)), -1).mean(1) for name in names]
    np.savetxt(path, np.column_stack(columns), header=" ".join(names), fmt="%.10g")
