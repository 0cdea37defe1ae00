"""The permutations of a molecule's equal atoms that its dynamics can reach.

Every permutation of equal nuclei leaves the energy unchanged, but most lead to
geometries behind a barrier that would break bonds; they cost time and teach
nothing. Kept are the automorphisms of the bonded graph that also respect the
handedness of the molecule where it is fixed:

1. *Bonds.* Two atoms are bonded if their median distance is below 1.25 times
   the sum of their covalent radii. A hydrogen that is within 1.9 Å of a second
   N, O or F counts as bonded to both: strong hydrogen bonds exchange it.
2. *Automorphisms* of that graph, coloured by element.
3. *Handedness.* An atom with four neighbours in a tetrahedron does not invert.
   A permutation either keeps its handedness or mirrors it. Mirroring all is
   the same as an inversion of space, which distances do not see. Mirroring one
   of two bonded tetrahedra but not the other is out of reach, and dropped. Two
   tetrahedra apart, as the methyl groups of acetylacetone, mirror independently:
   to the planar frame in between, a mirrored methyl group looks the same. These
   are the groups of the published models; ``handedness="global"`` is stricter.
4. *Double bonds.* Of two groups on a short bond between three-coordinated atoms
   outside of rings, cis stays cis.

Only medians and signs over the frames enter, so that the answer does not depend
on which or how many frames are given.
"""

from collections.abc import Iterator
from itertools import islice, pairwise, product

import networkx as nx
import numpy as np
from ase.data import covalent_radii
from networkx.algorithms.isomorphism import GraphMatcher, categorical_node_match

from ..dataset import Dataset
from ..errors import SymmetryError
from ..geometry import bonds, median_distances
from .group import MAX_ORDER, PermutationGroup

SHARED_HYDROGEN = 1.9  # Å
DOUBLE_BOND = 0.905  # of the sum of covalent radii: C=C is below (0.88), an amide C-N above (0.92)
FLAT = 0.2  # signed volume of unit vectors below which an atom is no tetrahedron (ideal: 1.54)


def molecular_group(dataset: Dataset, *, handedness: str = "local", max_order: int = 5000) -> PermutationGroup:
    """The reachable permutations of a molecule's atoms.

    Parameters
    ----------
    dataset : Dataset
        Geometries of one molecule, or of several side by side.
    handedness : {"local", "global"}
        Whether tetrahedra that are not bonded to each other mirror
        independently, as in the published models, or only all together, as in
        the molecular symmetry group of a rigid frame. Of acetylacetone's 72
        permutations, 36 are left with "global".
    max_order : int
        A larger group is an error, since time and memory grow with it.

    Returns
    -------
    PermutationGroup

    Raises
    ------
    SymmetryError
        If the group has more than `max_order` elements, or no atoms are bonded.
    """
    distances = median_distances(dataset.positions)
    graph = bond_graph(dataset.numbers, distances)
    if graph.number_of_edges() == 0:
        closest = distances[np.triu_indices(dataset.n_atoms, 1)].min()
        raise SymmetryError(
            f"no two atoms of {dataset.formula} are bonded (the closest pair is {closest:.3g} Å apart); "
            "are the positions in Å? For single atoms side by side give symmetry='none' or a group"
        )
    candidates = _candidates(graph, dataset.formula)
    tetrahedra = _tetrahedra(graph, dataset.positions, candidates)
    coupled = _coupled(graph, list(tetrahedra), handedness)
    double = _double_bonds(graph, dataset, distances, candidates)
    kept = []
    for permutation in candidates:
        mirrored = {a: _mirrored(a, permutation, tetrahedra) for a in tetrahedra}
        if all(mirrored[a] == mirrored[b] for a, b in coupled) and all(
            cis == double[_image(bond, permutation)] for bond, cis in double.items()
        ):
            kept.append(permutation)
    if len(kept) > max_order:
        raise SymmetryError(_too_many(dataset.formula, max_order))
    return PermutationGroup(kept)


def bond_graph(numbers: np.ndarray, distances: np.ndarray) -> nx.Graph:
    """Graph of the bonds, with the element of each node, from (N, N) distances in Å."""
    bonded = bonds(numbers, distances)
    acceptors = np.isin(numbers, (7, 8, 9))
    for hydrogen in np.flatnonzero(numbers == 1):
        if (bonded[hydrogen] & acceptors).any():
            shared = acceptors & (distances[hydrogen] < SHARED_HYDROGEN)
            bonded[hydrogen] |= shared
            bonded[:, hydrogen] |= shared
    graph = nx.Graph()
    graph.add_nodes_from((a, {"element": int(z)}) for a, z in enumerate(numbers))
    graph.add_edges_from(np.argwhere(np.triu(bonded)).tolist())
    return graph


def automorphisms(graph: nx.Graph) -> Iterator[np.ndarray]:
    """Permutations of the atoms that keep the elements and the bonds."""
    matcher = GraphMatcher(graph, graph, node_match=categorical_node_match("element", None))
    for mapping in matcher.isomorphisms_iter():
        yield np.array([mapping[a] for a in range(len(graph))])


def _candidates(graph: nx.Graph, formula: str) -> list[np.ndarray]:
    found = list(islice(automorphisms(graph), MAX_ORDER + 1))
    if len(found) > MAX_ORDER:
        raise SymmetryError(_too_many(formula, MAX_ORDER))
    return found


def _too_many(formula: str, most: int) -> str:
    return (
        f"{formula} has more than {most} permutations of equal atoms that come into question; "
        "give a smaller group, symmetry=PermutationGroup.generate([...]), or symmetry='none'"
    )


Tetrahedra = dict[int, tuple[list[int], float]]


def _tetrahedra(graph: nx.Graph, positions: np.ndarray, candidates: list[np.ndarray]) -> Tetrahedra:
    """Atoms of fixed handedness: their neighbours, and the sign of the volume these span.

    Only those whose equivalents all are tetrahedra too: else the permutations
    that respect handedness would be no group.
    """
    found = {}
    for atom in graph:
        neighbours = sorted(graph[atom])
        if len(neighbours) == 4:
            volumes = _volumes(positions, atom, neighbours)
            if np.abs(np.median(volumes)) > FLAT and (np.sign(volumes) == np.sign(volumes[0])).all():
                found[atom] = (neighbours, float(np.sign(volumes[0])))
    return {atom: t for atom, t in found.items() if all(int(p[atom]) in found for p in candidates)}


def _volumes(positions: np.ndarray, atom: int, neighbours: list[int]) -> np.ndarray:
    """Signed volume in each frame of the unit vectors from an atom to its four neighbours."""
    arms = positions[:, neighbours] - positions[:, [atom]]
    arms = arms / np.linalg.norm(arms, axis=-1, keepdims=True)
    a, b, c = (arms[:, k] - arms[:, 3] for k in range(3))
    return np.einsum("mi,mi->m", a, np.cross(b, c)) / 3.0


def _mirrored(atom: int, permutation: np.ndarray, tetrahedra: Tetrahedra) -> bool:
    """Whether a permutation takes a tetrahedron to one of the other handedness."""
    neighbours, sign = tetrahedra[atom]
    target, target_sign = tetrahedra[int(permutation[atom])]
    order = [target.index(int(permutation[a])) for a in neighbours]
    return sign * target_sign * _parity(order) < 0


def _parity(order: list[int]) -> int:
    inversions = sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
    return -1 if inversions % 2 else 1


def _coupled(graph: nx.Graph, tetrahedra: list[int], handedness: str) -> list[tuple[int, int]]:
    """Pairs of tetrahedra that mirror together."""
    if handedness == "global":
        return list(pairwise(tetrahedra))
    if handedness == "local":
        return [(a, b) for a, b in graph.edges if a in tetrahedra and b in tetrahedra]
    raise SymmetryError(f"handedness is 'local' or 'global', not {handedness!r}")


Bond = tuple[int, int, int, int]


def _double_bonds(
    graph: nx.Graph, dataset: Dataset, distances: np.ndarray, candidates: list[np.ndarray]
) -> dict[Bond, bool]:
    """Substituents (i, a, b, j) on double bonds a=b, and whether i and j are cis.

    As with tetrahedra, only bonds whose equivalents all are double bonds.
    """
    radii = covalent_radii[dataset.numbers]
    found = {}
    rigid = nx.bridges(graph)  # bonds that belong to no ring
    for a, b in rigid:
        short = distances[a, b] < DOUBLE_BOND * (radii[a] + radii[b])
        if short and len(graph[a]) == len(graph[b]) == 3:
            for i, j in product(set(graph[a]) - {b}, set(graph[b]) - {a}):
                cis = bool(np.median(_cosine(dataset.positions, i, a, b, j)) > 0)
                found[_canonical((i, a, b, j))] = cis
    return {bond: cis for bond, cis in found.items() if all(_image(bond, p) in found for p in candidates)}


def _cosine(positions: np.ndarray, i: int, a: int, b: int, j: int) -> np.ndarray:
    """Cosine of the dihedral angle i-a-b-j in each frame, up to a positive factor."""
    axis = positions[:, b] - positions[:, a]
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    arms = []
    for end, substituent in ((a, i), (b, j)):
        arm = positions[:, substituent] - positions[:, end]
        arms.append(arm - np.einsum("mi,mi->m", arm, axis)[:, None] * axis)
    return np.einsum("mi,mi->m", *arms)


def _image(bond: Bond, permutation: np.ndarray) -> Bond:
    i, a, b, j = (int(permutation[atom]) for atom in bond)
    return _canonical((i, a, b, j))


def _canonical(bond: Bond) -> Bond:
    i, a, b, j = bond
    return bond if a < b else (j, b, a, i)
