r"""What each pair of atoms and each atom contributes to an energy.

A force field is a function e of a descriptor x, of which each entry belongs to a pair of atoms. Along the
straight line from a reference x₀, the energy is the sum of what its entries contribute:

.. math::

   e(x) - e(x_0) = \sum_d c_d , \qquad c_d = (x - x_0)_d \int_0^1 \partial_d e(x_0 + t (x - x_0)) \, dt .

The reference is the mean of the training geometries' descriptors over all their symmetric copies. It is invariant
under the group, so that contributions of a permuted geometry are permuted. They are relative to it: a stretched
bond contributes, one of mean length does not. The integral is by Gauss and Legendre, with so many nodes that the
sum is complete to the tolerance.

Source: M. Sundararajan, A. Taly, Q. Yan, Axiomatic attribution for deep networks, ICML (2017), integrated gradients.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike
from torch import Tensor

from .descriptors import Descriptor, SideBySide
from .errors import ConvergenceError, DataError, MissingExtraError, OutputError
from .force_field import ForceField
from .geometry import pair_indices
from .hardware import in_tiles
from .npz import check_writable, whole_file
from .region import is_of_pairs

NODES = (8, 16, 32, 64, 128, 256)  # of the integral, tried one after the other
AT_ONCE = 4096  # descriptors
VIEWED = 3.5  # Å around an atom, what chemiscope shows of its environment


class Contributions(NamedTuple):
    """What M geometries' energies are made of, eV.

    Attributes
    ----------
    pairs : (M, N(N-1)/2) array
    atoms : (M, N) array
        Half of each of an atom's pairs.
    energy : (M,) array
        The energies over that of the reference; without a baseline. The sums of both.
    first, second : (N(N-1)/2,) int arrays
        The atoms of each pair.
    distances : (M, N(N-1)/2) array, Å
        By which the descriptor knows the pairs: of periodic systems, of the nearest images.
    """

    pairs: np.ndarray
    atoms: np.ndarray
    energy: np.ndarray
    first: np.ndarray
    second: np.ndarray
    distances: np.ndarray

    def label(self, frames: list[Atoms]) -> list[Atoms]:
        """Copies of the geometries with an array ``contribution`` (eV) of each atom, as for a viewer."""
        labelled = [atoms.copy() for atoms in frames]
        for atoms, values in zip(labelled, self.atoms, strict=True):
            atoms.set_array("contribution", values)
        return labelled

    def write_viewer(self, frames: list[Atoms], path: str | Path) -> None:
        """Write the geometries for chemiscope, a viewer in the browser, with atoms coloured by their contributions.

        Structures have the properties ``energy`` (eV, over that of the reference) and ``frame``, atoms
        ``contribution`` (eV), ``atom`` (its place) and ``symbol``.

        Parameters
        ----------
        frames : list of ase.Atoms
            All geometries.
        path : path
            Ending in ``.json`` or ``.json.gz``; to be opened on https://chemiscope.org.

        Raises
        ------
        MissingExtraError
            Without chemiscope.
        OutputError
            If the place cannot be written to, or the name ends otherwise.
        """
        path = check_viewer(path)
        import chemiscope

        most = float(np.abs(self.atoms).max())
        colour = {"property": "contribution", "palette": "bwr", "min": -most, "max": most}
        settings = chemiscope.quick_settings(
            x="atom",
            y="contribution",
            symbol="symbol",
            target="atom",
            map_settings={"color": colour},
            structure_settings={"color": colour, "environments": {"activated": False}, "supercell": [1, 1, 1]},
            periodic=bool(frames[0].pbc.any()),
        )
        with whole_file(path) as partial:
            chemiscope.write_input(
                str(partial),
                frames,
                metadata={"name": f"Contributions to the energy of {frames[0].get_chemical_formula()}"},
                properties=_properties(self, frames),
                environments=[(*one, VIEWED) for one in np.ndindex(self.atoms.shape)],
                settings=settings,
            )


def _properties(found: Contributions, frames: list[Atoms]) -> dict[str, dict]:
    """What the viewer shows of structures, and of atoms, of all structures in a row."""
    energy = {"units": "eV", "description": "over that of the symmetric mean of the training geometries"}
    contribution = {"units": "eV", "description": "half of what the atom's pairs contribute to the energy"}
    symbols = [symbol for atoms in frames for symbol in atoms.symbols]
    return {
        "energy": {"target": "structure", "values": found.energy, **energy},
        "frame": {"target": "structure", "values": np.arange(len(frames))},
        "contribution": {"target": "atom", "values": found.atoms.ravel(), **contribution},
        "atom": {"target": "atom", "values": np.indices(found.atoms.shape)[1].ravel()},
        "symbol": {"target": "atom", "values": symbols},
    }


def check_viewer(path: str | Path) -> Path:
    """The path, if a file for chemiscope can be made and written there; to be asked before the work.

    Raises
    ------
    MissingExtraError, OutputError
        As `Contributions.write_viewer`.
    """
    try:
        import chemiscope  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("chemiscope", "a file for its viewer", "viewer") from error
    path = check_writable(path)
    if not path.name.endswith((".json", ".json.gz")):
        raise OutputError(f"{path}: the name of a file for chemiscope ends in .json or .json.gz")
    return path


def contributions(
    force_field: ForceField, positions: ArrayLike, cell: ArrayLike | None = None, *, tolerance: float = 1e-6
) -> Contributions:
    """Contributions of pairs and atoms to the energies of geometries; see `gdml.attribution`.

    Parameters
    ----------
    force_field : ForceField
        With a descriptor of pairs. Of one with a baseline, what is learned is taken apart.
    positions : (N, 3) or (M, N, 3) array, Å
    cell : (3, 3) or (M, 3, 3) array, Å, optional
        Of periodic systems; by default that of the training geometries.
    tolerance : float, eV
        How far the sum may be from the energy.

    Returns
    -------
    Contributions

    Raises
    ------
    DataError
        For a descriptor whose entries do not belong to pairs, or geometries of other atoms.
    ConvergenceError
        If the integral does not converge.
    """
    descriptor = force_field.descriptor
    if not is_of_pairs(descriptor):
        raise DataError(
            f"the descriptor {descriptor.name} is not of pairs of atoms; train with 'auto' or 'inverse-distances'"
        )
    positions = np.asarray(positions, dtype=float)
    positions = positions[None] if positions.ndim == 2 else positions
    if positions.ndim != 3 or positions.shape[1:] != (len(force_field.numbers), 3):
        raise DataError(f"positions are (N, 3) or (M, N, 3) of {len(force_field.numbers)} atoms, not {positions.shape}")
    cells = {}
    if force_field.is_periodic:
        cell = force_field.cell if cell is None else np.asarray(cell, dtype=float)
        cells = {"cells": np.broadcast_to(cell, (len(positions), 3, 3))}
    x = descriptor.evaluate(torch.tensor(positions), **cells).x
    x0 = torch.tensor(force_field.reference_action.reduce(force_field.y.mean(0), np.mean))
    entries, energy = _integrated(force_field, x0, x, tolerance)
    n_pairs = len(pair_indices(descriptor.n_atoms)[0])
    pairs = entries.view(len(x), -1, n_pairs).sum(1).numpy()  # of several entries for each
    first, second = pair_indices(descriptor.n_atoms)
    atoms = np.zeros(positions.shape[:2])
    for own in (first, second):
        np.add.at(atoms, (slice(None), own), 0.5 * pairs)
    return Contributions(pairs, atoms, energy.numpy(), first, second, _distances(descriptor, x.numpy()))


def _distances(descriptor: Descriptor, x: np.ndarray) -> np.ndarray:
    if isinstance(descriptor, SideBySide):
        part = descriptor.parts[0]
        return part.distances(x[:, : part.size] / descriptor.weights[0])
    return descriptor.distances(x)


def _integrated(force_field: ForceField, x0: Tensor, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The integrals (M, D), and the differences of energy that they sum up to."""
    energy = force_field.at_descriptors(x)[0] - force_field.at_descriptors(x0[None])[0]
    for n in NODES:
        entries = _by_quadrature(force_field, x0, x, n)
        missing = float((entries.sum(1) - energy).abs().max())
        if missing <= tolerance:
            return entries, energy
    raise ConvergenceError(
        f"contributions miss {missing:.2g} eV of the energy with {n} nodes: some geometries are far outside of training"
    )


def _by_quadrature(force_field: ForceField, x0: Tensor, x: Tensor, n: int) -> Tensor:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    entries = torch.zeros_like(x)

    def work(some: slice) -> None:
        step = x[some] - x0
        for t, weight in zip(0.5 * (nodes + 1), 0.5 * weights):
            entries[some] += weight * force_field.at_descriptors(x0 + t * step)[1] * step

    in_tiles(len(x), AT_ONCE, work)
    return entries
