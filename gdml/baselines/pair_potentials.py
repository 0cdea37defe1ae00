"""Simple potentials between pairs of atoms, as ASE calculators."""

import numpy as np
import torch
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers, chemical_symbols
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from ..errors import BaselineError, MissingExtraError

COULOMB = units.Hartree * units.Bohr  # e²/4πε₀, eV Å
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
NEUTRAL = 1e-6


class ZBL(Calculator):
    r"""The universal repulsion of nuclei, screened by their electrons.

    .. math::

       E = \sum_{i<j} \frac{Z_i Z_j e^2}{4 \pi \epsilon_0 r} \, \phi(r / a) \, S(r), \quad
       a = \frac{0.8854 \, a_0}{Z_i^{0.23} + Z_j^{0.23}}

    Source: Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Matter
    (Pergamon, 1985). S goes from 1 to 0 between `inner` and `outer`, twice continuously differentiable.

    Parameters
    ----------
    inner, outer : float, Å
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, inner: float = 2.0, outer: float = 4.0):
        super().__init__()
        if not 0 <= inner < outer:
            raise BaselineError(f"zbl needs 0 <= inner < outer, not {inner} and {outer} Å")
        self.inner, self.outer = inner, outer

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill `results` with energy (eV), forces (eV/Å) and stress (eV/Å³)."""
        super().calculate(atoms, properties, system_changes)
        z = self.atoms.numbers.astype(float)
        i, j, r, d = neighbor_list("ijdD", self.atoms, self.outer)
        energy, slope = self._pair(z[i], z[j], r)
        forces = np.zeros((len(z), 3))
        pull = (slope / r)[:, None] * d  # each pair stands there from both sides
        np.add.at(forces, i, pull)
        total = 0.5 * float(energy.sum())
        self.results = {"energy": total, "free_energy": total, "forces": forces}
        if self.atoms.pbc.all():
            virial = 0.5 * pull.T @ d
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / self.atoms.get_volume())

    def _pair(self, z_i: np.ndarray, z_j: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies of pairs, and their slopes by the distance."""
        length = 0.8854 * units.Bohr / (z_i**0.23 + z_j**0.23)
        parts = [(weight * np.exp(-rate * r / length), rate / length) for weight, rate in SCREENING]
        phi, d_phi = sum(value for value, _ in parts), -sum(value * rate for value, rate in parts)
        t = np.clip((r - self.inner) / (self.outer - self.inner), 0.0, 1.0)
        switch = 1 - t**3 * (10 - 15 * t + 6 * t**2)
        d_switch = -30 * t**2 * (1 - t) ** 2 / (self.outer - self.inner)
        bare = COULOMB * z_i * z_j / r
        return bare * phi * switch, bare * (d_phi * switch + phi * d_switch - phi * switch / r)


class FixedCharges(Calculator):
    """Electrostatics of fixed charges: of all pairs of a molecule, or by Ewald's sums in a crystal.

    Parameters
    ----------
    charges : float
        By element, in units of e, such as ``K=1, Cl=-1``.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, **charges: float):
        super().__init__()
        unknown = sorted(set(charges) - set(chemical_symbols))
        if unknown or not charges:
            raise BaselineError(
                "coulomb needs charges by element, such as coulomb(K=1, Cl=-1)"
                + (f"; there is no {', '.join(unknown)}" if unknown else "")
            )
        self.charges = {atomic_numbers[symbol]: float(charge) for symbol, charge in charges.items()}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill `results` with energy (eV), forces (eV/Å) and, of crystals, stress (eV/Å³)."""
        super().calculate(atoms, properties, system_changes)
        missing = sorted({chemical_symbols[z] for z in self.atoms.numbers if z not in self.charges})
        if missing:
            raise BaselineError(f"coulomb has no charge for {', '.join(missing)}; give one, such as {missing[0]}=0")
        charges = torch.tensor([self.charges[z] for z in self.atoms.numbers])[:, None].double()
        positions = torch.tensor(self.atoms.positions, requires_grad=True)
        if not self.atoms.pbc.any():
            self._finish(_of_molecule(positions, charges), positions)
            return
        if not self.atoms.pbc.all() or abs(float(charges.sum())) > NEUTRAL:
            raise BaselineError(
                "coulomb is for molecules, and for crystals that are periodic in three directions and neutral; these "
                f"atoms have pbc {self.atoms.pbc.tolist()} and the charge {float(charges.sum()):g} e"
            )
        self._crystal(positions, charges)

    def _crystal(self, positions: torch.Tensor, charges: torch.Tensor) -> None:
        strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        deformation = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.mT)
        cell = torch.tensor(self.atoms.cell.array) @ deformation
        energy = _of_crystal(self.atoms, positions @ deformation, cell, charges)
        self._finish(energy, positions, strain)

    def _finish(self, energy: torch.Tensor, positions: torch.Tensor, *strain: torch.Tensor) -> None:
        slopes = [part.numpy() for part in torch.autograd.grad(energy, (positions, *strain))]
        self.results = {"energy": energy.item(), "free_energy": energy.item(), "forces": -slopes[0]}
        if strain:
            self.results["stress"] = full_3x3_to_voigt_6_stress(slopes[1] / self.atoms.get_volume())


def _of_molecule(positions: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    i, j = torch.triu_indices(len(positions), len(positions), 1)
    return COULOMB * (charges[i, 0] * charges[j, 0] / (positions[i] - positions[j]).norm(dim=1)).sum()


def _of_crystal(atoms, positions: torch.Tensor, cell: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    try:
        from torchpme import CoulombPotential, EwaldCalculator
    except ImportError as error:
        raise MissingExtraError("torch-pme", "electrostatics of a crystal", "electrostatics") from error
    # Neighbours up to somewhat less than the cell, and a smearing with which both sums converge to 1e-9.
    cutoff = max(5.0, 0.6 * atoms.get_volume() ** (1 / 3))
    smearing = cutoff / 7.0
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    distances = (positions[j] + torch.tensor(shift).double() @ cell - positions[i]).norm(dim=1)
    ewald = EwaldCalculator(CoulombPotential(smearing), lr_wavelength=0.5 * smearing, full_neighbor_list=True).double()
    potential = ewald(charges, cell, positions, torch.tensor(np.stack([i, j], 1)), distances)
    return COULOMB * (charges * potential).sum()
