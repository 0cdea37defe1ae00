"""Potentials of bonds, angles, dihedrals and repulsion, for many geometries at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from ..errors import BaselineError
from ..geometry import angles, dihedrals, lengths

STEEPNESS = 12  # power of the repulsion
Terms = Sequence[Sequence[float]]


class Bonded(Calculator):
    r"""A sum of simple terms between given atoms or beads, as priors of coarse-grained force fields are.

    .. math::

       E = \sum_\text{bonds} \tfrac{k}{2} (r - r_0)^2 + \sum_\text{angles} \tfrac{k}{2} (\theta - \theta_0)^2
         + \sum_\text{repulsions} \epsilon \left(\frac{\sigma}{r}\right)^{12}
         + \sum_\text{dihedrals} \sum_{n \ge 1} \left( a_n \cos n\phi + b_n \sin n\phi \right)

    Parameters
    ----------
    bonds : rows (i, j, k, r0)
        eV/Å² and Å, k not negative; atoms are counted from zero.
    angles : rows (i, j, l, k, theta0)
        At atom j; eV and radians, k not negative.
    repulsions : rows (i, j, sigma, epsilon)
        Å and eV, neither negative.
    dihedrals : rows (i, j, l, m, a1, b1, a2, b2, ...)
        eV; the angle of `gdml.geometry.dihedrals`.

    Raises
    ------
    BaselineError
        For rows that are none of these, or without any; and when it is evaluated, for geometries of fewer atoms.
    """

    implemented_properties = ["energy", "free_energy", "forces"]

    def __init__(self, bonds: Terms = (), angles: Terms = (), repulsions: Terms = (), dihedrals: Terms = ()):
        super().__init__()
        self.bonds, self.angles = _rows("bonds", bonds, 2, 2), _rows("angles", angles, 3, 2)
        self.repulsions, self.dihedrals = _rows("repulsions", repulsions, 2, 2), _rows("dihedrals", dihedrals, 4, None)
        atoms = [part[0] for part in self._parts if len(part[0])]
        if not atoms:
            raise BaselineError("bonded: there are no terms; give bonds, angles, repulsions or dihedrals")
        self.n_least = 1 + max(int(a.max()) for a in atoms)

    @property
    def _parts(self) -> tuple:
        return self.bonds, self.angles, self.repulsions, self.dihedrals

    @property
    def options(self) -> dict[str, list[list[float]]]:
        """What makes the same again, as a model file keeps it."""
        names = "bonds", "angles", "repulsions", "dihedrals"
        rows = {name: [[*map(int, a), *v.tolist()] for a, v in zip(*part)] for name, part in zip(names, self._parts)}
        return {name: values for name, values in rows.items() if values}

    def terms(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each kind of term by its name, as energies (M, k) of geometries (M, N, 3)."""
        kinds = {"bond": _bonds, "angle": _angles, "repulsion": _repulsions, "dihedral": _dihedrals}
        return [
            (name, lambda r, of=of, a=atoms, v=values: of(r, a, r.new_tensor(v)))
            for (name, of), (atoms, values) in zip(kinds.items(), self._parts)
            if len(atoms)
        ]

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (M,) and forces (M, N, 3) of geometries (M, N, 3).

        Raises
        ------
        BaselineError
            If there are fewer atoms than it has terms for.
        """
        if positions.shape[1] < self.n_least:
            raise BaselineError(f"bonded has terms for {self.n_least} atoms, the geometry has {positions.shape[1]}")
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_()
            energy = sum(of(leaf).sum(1) for _, of in self.terms())
            forces = -torch.autograd.grad(energy.sum(), leaf)[0]
        return energy.detach(), forces

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill `results` with energy (eV) and forces (eV/Å)."""
        super().calculate(atoms, properties, system_changes)
        if self.atoms.pbc.any():
            raise BaselineError("bonded is for beads or molecules, and these atoms are periodic")
        energy, forces = self.batch(torch.tensor(self.atoms.positions)[None])
        self.results = {"energy": float(energy), "free_energy": float(energy), "forces": forces[0].numpy()}


def _rows(name: str, rows: Terms, n_atoms: int, n_values: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (k, n_atoms) and parameters (k, n_values) of terms; of dihedrals an even number of these."""
    rows = [list(row) for row in rows]
    widths = {len(row) - n_atoms for row in rows}
    known = widths <= {n_values} if n_values else len(widths) <= 1 and all(w > 0 and w % 2 == 0 for w in widths)
    if not known:
        wanted = f"{n_values}" if n_values else "an even number of"
        raise BaselineError(f"bonded: {name} have {n_atoms} atoms and {wanted} parameters each, not {rows[0]}")
    table = np.array(rows, dtype=float).reshape(len(rows), n_atoms + (widths.pop() if rows else 0))
    atoms, values = table[:, :n_atoms].astype(int), table[:, n_atoms:]
    for row, own in zip(atoms, values):
        is_sound = np.isfinite(own).all() and (n_values is None or own[0] >= 0)
        is_sound &= name != "repulsions" or own[1] >= 0
        if len(set(row)) < n_atoms or row.min() < 0 or not is_sound:
            raise BaselineError(
                f"bonded: {name} of the atoms {row.tolist()} with {own.tolist()}: atoms must differ, and parameters be "
                "finite, force constants and sizes not negative"
            )
    return atoms, values


def _bonds(r: Tensor, atoms: np.ndarray, values: Tensor) -> Tensor:
    return 0.5 * values[:, 0] * (lengths(r, atoms) - values[:, 1]) ** 2


def _angles(r: Tensor, atoms: np.ndarray, values: Tensor) -> Tensor:
    return 0.5 * values[:, 0] * (angles(r, atoms) - values[:, 1]) ** 2


def _repulsions(r: Tensor, atoms: np.ndarray, values: Tensor) -> Tensor:
    return values[:, 1] * (values[:, 0] / lengths(r, atoms)) ** STEEPNESS


def _dihedrals(r: Tensor, atoms: np.ndarray, values: Tensor) -> Tensor:
    multiples = torch.arange(1, values.shape[1] // 2 + 1, device=r.device) * dihedrals(r, atoms)[..., None]
    return (values[:, ::2] * multiples.cos() + values[:, 1::2] * multiples.sin()).sum(2)
