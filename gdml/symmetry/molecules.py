"""The permutations of a molecule's equal atoms that its dynamics can reach.

Every permutation of equal nuclei leaves the energy unchanged, but most lead to
geometries behind a barrier that would break bonds; they cost time and teach
nothing. Kept are the automorphisms of the bonded graph that also respect the
handedness of the molecule where it is fixed:

1. *Bonds.* Two atoms are bonded if their median distance is below 1.3 times the
   sum of their covalent radii. The hydrogen of a strong hydrogen bond within a
   molecule, whose median distance to a second N, O or F is below 1.95 Å, counts as
   bonded to both: it is exchanged.
2. *Automorphisms* of that graph, coloured by element.
3. *Handedness.* An atom with four neighbours in a tetrahedron does not invert.
   A permutation either keeps its handedness or mirrors it. Mirroring the whole
   molecule is nothing, since distances do not see it, but mirroring one of two
   bonded tetrahedra and not the other is out of reach. So is mirroring one of two
   tetrahedra apart, unless one is a terminal rotor (such as a methyl group) at
   the far side of something flat, which a mirrored rotor looks the same to. These are
   the groups of the published models; ``handedness="global"`` is stricter.
4. *Double bonds.* Of two groups on a short bond outside of rings, between atoms
   with three neighbours (or N with two), cis stays cis.

Only medians over the frames enter, and signs relative to each other, which a
mirror image of a frame does not change. So the answer does not depend on which
or how many frames are given, unless a median lies at one of the thresholds.
Centres with more than four neighbours are not looked at.
"""

from collections.abc import Iterator
from itertools import islice, permutations, product

import networkx as nx
import numpy as np
from ase.data import covalent_radii
from networkx.algorithms.isomorphism import GraphMatcher, categorical_node_match
from scipy.sparse.csgraph import connected_components

from ..dataset import Dataset
from ..errors import SymmetryError
from ..geometry import bonds, median_distances
from .group import MAX_ORDER, PermutationGroup

SHARED_HYDROGEN = 1.95  # Å; in acetylacetone the median is 1.65, in ethylene glycol 2.3
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
    if dataset.n_atoms == 1:
        return PermutationGroup.trivial(1)
    distances = median_distances(dataset.positions)
    graph = bond_graph(dataset.numbers, distances)
    if graph.number_of_edges() == 0:
        closest = distances[np.triu_indices(dataset.n_atoms, 1)].min()
        raise SymmetryError(
            f"no two atoms of {dataset.formula} are bonded (the closest pair is {closest:.3g} Å apart); "
            "are the positions in Å? For single atoms side by side give symmetry='none' or a group"
        )
    candidates = _candidates(graph, dataset.formula)
    coupled = _coupled_tetrahedra(graph, dataset.positions, candidates, handedness)
    double = _double_bonds(graph, dataset, distances, candidates)
    kept = [p for p in candidates if _keeps_handedness(p, graph, coupled) and _keeps_double_bonds(p, double)]
    if len(kept) > max_order:
        raise SymmetryError(_too_many(dataset.formula, max_order))
    return PermutationGroup(kept)


def bond_graph(numbers: np.ndarray, distances: np.ndarray) -> nx.Graph:
    """Graph of the bonds, with the element of each node, from (N, N) distances in Å."""
    bonded = bonds(numbers, distances)
    _, fragment = connected_components(bonded)
    shared = np.zeros_like(bonded)
    acceptors = np.isin(numbers, (7, 8, 9))
    for hydrogen in np.flatnonzero(numbers == 1):
        if (bonded[hydrogen] & acceptors).any():
            # Not O···H in H-O-O: two bonds away is always close.
            two_bonds_away = bonded[bonded[hydrogen]].any(0)
            near = acceptors & (distances[hydrogen] < SHARED_HYDROGEN) & ~two_bonds_away
            shared[hydrogen] = near & (fragment == fragment[hydrogen])
    bonded |= shared | shared.T
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


Signs = dict[tuple[int, int], int]


def _coupled_tetrahedra(graph: nx.Graph, positions: np.ndarray, candidates: list[np.ndarray], handedness: str) -> Signs:
    """Pairs of tetrahedra that mirror together, and their handedness relative to each other (±1).

    Only pairs whose equivalents all are such pairs: else the permutations that
    respect them would be no group.
    """
    if handedness not in ("local", "global"):
        raise SymmetryError(f"handedness is 'local' or 'global', not {handedness!r}")
    volumes = {a: _volumes(positions, a, sorted(graph[a])) for a in graph if len(graph[a]) == 4}
    tetrahedra = [a for a, v in volumes.items() if np.median(np.abs(v)) > FLAT]
    rotors = {a for a in tetrahedra if _is_terminal_rotor(graph, a)}
    found = {}
    for a, b in permutations(tetrahedra, 2):
        apart = not graph.has_edge(a, b) and not rotors.isdisjoint((a, b))
        sign = np.median(np.sign(volumes[a] * volumes[b]))
        if sign != 0 and not (apart and handedness == "local"):
            found[a, b] = int(sign)
    return {(a, b): sign for (a, b), sign in found.items() if all((p[a], p[b]) in found for p in candidates)}


def _is_terminal_rotor(graph: nx.Graph, atom: int) -> bool:
    """Whether three of an atom's neighbours are equal and have no other neighbour."""
    leaves = [graph.nodes[n]["element"] for n in graph[atom] if len(graph[n]) == 1]
    return max((leaves.count(element) for element in leaves), default=0) >= 3


def _keeps_handedness(permutation: np.ndarray, graph: nx.Graph, coupled: Signs) -> bool:
    """Whether a permutation mirrors both of each pair of tetrahedra, or neither."""
    parity = {a: _parity(a, permutation, graph) for a, _ in coupled}
    return all(
        parity[a] * parity[b] * sign * coupled[permutation[a], permutation[b]] > 0 for (a, b), sign in coupled.items()
    )


def _parity(atom: int, permutation: np.ndarray, graph: nx.Graph) -> int:
    """Parity of the order in which the images of an atom's neighbours surround its image."""
    target = sorted(graph[int(permutation[atom])])
    order = [target.index(int(permutation[a])) for a in sorted(graph[atom])]
    inversions = sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
    return -1 if inversions % 2 else 1


def _volumes(positions: np.ndarray, atom: int, neighbours: list[int]) -> np.ndarray:
    """Signed volume in each frame of the unit vectors from an atom to its four neighbours."""
    arms = positions[:, neighbours] - positions[:, [atom]]
    arms = arms / np.linalg.norm(arms, axis=-1, keepdims=True)
    a, b, c = (arms[:, k] - arms[:, 3] for k in range(3))
    return np.einsum("mi,mi->m", a, np.cross(b, c)) / 3.0


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
        if short and _can_be_cis(graph, a) and _can_be_cis(graph, b):
            for i, j in product(set(graph[a]) - {b}, set(graph[b]) - {a}):
                cis = bool(np.median(_cosine(dataset.positions, i, a, b, j)) > 0)
                found[_canonical((i, a, b, j))] = cis
    return {bond: cis for bond, cis in found.items() if all(_image(bond, p) in found for p in candidates)}


def _can_be_cis(graph: nx.Graph, atom: int) -> bool:
    return len(graph[atom]) == 3 or (len(graph[atom]) == 2 and graph.nodes[atom]["element"] == 7)


def _keeps_double_bonds(permutation: np.ndarray, double: dict[Bond, bool]) -> bool:
    return all(cis == double[_image(bond, permutation)] for bond, cis in double.items())


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
