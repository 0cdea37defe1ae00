r"""Priors: simple potentials of beads from the distributions of their internal coordinates.

Boltzmann inversion takes -kT ln p for the potential of a coordinate, with p the density against
its volume element: r² dr of a length, sin θ dθ of an angle. So the harmonic potential of a
length is about the mean of r with the weights 1/r², and its force constant kT over their variance.

Source: D. Reith, M. Pütz, F. Müller-Plathe, J. Comput. Chem. 24, 1624 (2003); as priors of learned force fields
J. Wang et al., ACS Cent. Sci. 5, 755 (2019).
"""

from collections.abc import Sequence
from dataclasses import replace

import networkx as nx
import numpy as np
import torch
from ase import units

from ..baselines import Bonded
from ..baselines.bonded import Terms
from ..dataset import Dataset
from ..dynamics.classical import check_settings
from ..errors import BaselineError, DataError, name_frames
from ..geometry import angles, dihedrals, lengths

Atoms = Sequence[Sequence[int]]
SPREAD = 1e-3  # Å or radians: coordinates that vary by less are held by a constraint
HISTOGRAM = 60  # bins of a dihedral angle
EXPLOSION = 10.0  # times the largest reference force, that no prior may reach on the frames


def chain(n_beads: int) -> list[tuple[int, int]]:
    """Bonds from each bead to the next."""
    return [(i, i + 1) for i in range(n_beads - 1)]


def angles_of(bonds: Atoms) -> list[tuple[int, int, int]]:
    """Beads of all angles between two bonds."""
    graph = nx.Graph([tuple(pair) for pair in bonds])
    near = {j: sorted(graph[j]) for j in sorted(graph)}
    return [(i, j, k) for j in near for i in near[j] for k in near[j] if i < k]


def dihedrals_of(bonds: Atoms) -> list[tuple[int, int, int, int]]:
    """Beads of all dihedral angles of three bonds in a row."""
    graph = nx.Graph([tuple(pair) for pair in bonds])
    return [
        (i, j, k, m)
        for j, k in sorted(tuple(sorted(edge)) for edge in graph.edges)
        for i in sorted(graph[j])
        for m in sorted(graph[k])
        if len({i, j, k, m}) == 4
    ]


def far_pairs(n_beads: int, bonds: Atoms) -> list[tuple[int, int]]:
    """Pairs that are more than three bonds apart, or not connected."""
    graph = nx.Graph()
    graph.add_nodes_from(range(n_beads))
    graph.add_edges_from(tuple(pair) for pair in bonds)
    near = dict(nx.all_pairs_shortest_path_length(graph, cutoff=3))
    return [(i, j) for i in range(n_beads) for j in range(i + 1, n_beads) if j not in near[i]]


def fit_prior(
    beads: Dataset,
    temperature_K: float,
    *,
    bonds: Atoms | None = None,
    angles: Atoms | None = None,
    repulsions: Atoms | None = None,
    dihedrals: Atoms | None = None,
    order: int = 3,
) -> Bonded:
    """A prior by Boltzmann inversion.

    Parameters
    ----------
    beads : Dataset
        Frames from the ensemble at the temperature; forces, where there are some, serve as a check.
    temperature_K : float
    bonds : sequence of pairs, optional
        Beads with a harmonic bond; by default each with the next.
    angles : sequence of triples, optional
        By default all between two bonds. Harmonic.
    repulsions : sequence of pairs, optional
        By default pairs more than three bonds apart. Of (σ/r)¹² with σ the shortest distance
        in the data and kT there, so that it is a wall where there are no data.
    dihedrals : sequence of quadruples, optional
        By default all of three bonds in a row. Fourier series. Without them, nothing keeps a force
        field from angles that the data do not have.
    order : int
        Of these series.

    Returns
    -------
    Bonded

    Raises
    ------
    DataError
        For coordinates that do not vary, as of rigid bonds, and settings that make no sense.
    BaselineError
        If it explodes on the frames: is not finite, or stronger than ten times the largest force of the data.
    """
    check_settings(temperature_K=temperature_K)
    kt, positions = units.kB * temperature_K, torch.tensor(beads.positions)
    bonds = chain(beads.n_atoms) if bonds is None else bonds
    angles = angles_of(bonds) if angles is None else angles
    repulsions = far_pairs(beads.n_atoms, bonds) if repulsions is None else repulsions
    dihedrals = dihedrals_of(bonds) if dihedrals is None else dihedrals
    for atoms in (*bonds, *angles, *repulsions, *dihedrals):
        if not all(0 <= i < beads.n_atoms for i in atoms):
            raise DataError(f"a prior for the beads {tuple(atoms)}, of which there are {beads.n_atoms}")
    prior = Bonded(
        bonds=_harmonic("bond", bonds, positions, kt),
        angles=_harmonic("angle", angles, positions, kt),
        repulsions=[[*pair, float(lengths(positions, [pair]).min()), kt] for pair in repulsions],
        dihedrals=[[*four, *_series(four, positions, kt, order)] for four in dihedrals],
    )
    check_prior(prior, beads)
    return prior


def _harmonic(kind: str, atoms: Atoms, positions: torch.Tensor, kt: float) -> Terms:
    """Rows of harmonic terms: atoms, force constant, where it is at rest."""
    if not len(atoms):
        return []
    of, volume = {"bond": (lengths, np.square), "angle": (angles, np.sin)}[kind]
    rows = []
    for some, values in zip(atoms, of(positions, atoms).numpy().T):
        weights = 1 / volume(values)
        middle = np.average(values, weights=weights)
        variance = np.average((values - middle) ** 2, weights=weights)
        if not variance > SPREAD**2:
            raise DataError(
                f"the {kind} of the beads {tuple(some)} varies by {variance**0.5:.2g} in {len(values)} frames, as if "
                "it were rigid: no potential follows from it; give more frames, or leave it out"
            )
        rows.append([*some, kt / variance, middle])
    return rows


def _series(four: Sequence[int], positions: torch.Tensor, kt: float, order: int) -> list[float]:
    """a1, b1, a2, b2, ... of a dihedral angle, by least squares to -kT ln p of a histogram, weighted by counts.

    One is added to all counts, so that the series stays bounded where there are no data.
    """
    if order < 1:
        raise DataError(f"the order of a dihedral's series must be at least 1, not {order}")
    counts, edges = np.histogram(dihedrals(positions, [four]).numpy(), HISTOGRAM, (-np.pi, np.pi))
    counts, middle = counts + 1.0, 0.5 * (edges[1:] + edges[:-1])
    columns = [f(n * middle) for n in range(1, order + 1) for f in (np.cos, np.sin)]
    design = np.stack([np.ones_like(middle), *columns], 1)
    root = np.sqrt(counts)[:, None]
    return (np.linalg.lstsq(root * design, -kt * root[:, 0] * np.log(counts), rcond=None)[0][1:]).tolist()


def check_prior(prior: Bonded, beads: Dataset) -> None:
    """Raise where a prior explodes on frames; see `fit_prior`.

    Raises
    ------
    BaselineError
        Names the frame, and the kind of term.
    """
    positions = torch.tensor(beads.positions)
    _, forces = prior.batch(positions)
    sizes = torch.linalg.vector_norm(forces, dim=2).amax(1).nan_to_num(nan=torch.inf)
    limit = np.inf if beads.forces is None else EXPLOSION * np.linalg.norm(beads.forces, axis=2).max()
    worst = int(sizes.argmax())
    if sizes[worst] < min(limit, 1e300):
        return
    energies = {name: of(positions[[worst]])[0].abs().max() for name, of in prior.terms()}
    kind = max(energies, key=lambda name: float(energies[name].nan_to_num(nan=torch.inf)))
    raise BaselineError(
        f"the prior explodes: its force on {name_frames(beads.frame_numbers[[worst]])} is {float(sizes[worst]):.3g} "
        f"eV/Å, where those of the data reach {limit / EXPLOSION:.3g}; look at its {kind}s, and at the units of data"
    )


def without_prior(beads: Dataset, prior: Bonded | None) -> Dataset:
    """The dataset with what forces are above the prior."""
    if prior is None:
        return beads
    check_prior(prior, beads)
    _, forces = prior.batch(torch.tensor(beads.positions))
    return replace(beads, forces=beads.require_forces() - forces.numpy())
