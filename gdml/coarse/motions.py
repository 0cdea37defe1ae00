r"""Motions of a chain or tree of beads: what generalised forces are along, and turns about bonds.

The bonds of N beads make a tree, and each of them parts it in two branches. One of these can be moved along the bond,
bent about the bead that it hangs on, and turned about the bond before: N - 1 lengths, N - 2 angles and N - 3 dihedral
angles, 3N - 6 internal coordinates q. Along the motions ∂R/∂q_k, without their parts that are rigid motions of the
whole, generalised forces are

.. math:: g_k = F \cdot \frac{\partial R}{\partial q_k}, \qquad \langle g_k \rangle_R = -\frac{\partial A}{\partial q_k}

of a free energy A. They do not depend on how a frame is turned, and noise that bonds, angles and dihedrals have
to a very different extent is a matrix of constants in them. To turn a branch about a bond leaves volumes in space as
they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import DataError
from ..geometry import internal_basis


@dataclass(frozen=True)
class Motion:
    """Beads that are moved: along a bond, bent about its bead, or turned about a bond.

    Attributes
    ----------
    kind : {"bond", "angle", "turn"}
    moved : tuple of int
    anchors : tuple of int
        The first of those moved, the bead that it hangs on, that one's, and so on.
    is_free : bool
        Whether all that hangs on a bond turns about it, which no ring hinders.
    """

    kind: str
    moved: tuple[int, ...]
    anchors: tuple[int, ...]
    is_free: bool = False

    def of(self, positions: Tensor) -> Tensor:
        """Displacements (M, N, 3) of geometries (M, N, 3) per Å or radian."""
        first, hinge, *before = (positions[:, i] for i in self.anchors[:3])
        bond = normalize(first - hinge, dim=1)
        result, moved = torch.zeros_like(positions), list(self.moved)
        if self.kind == "bond":
            result[:, moved] = bond[:, None]
            return result
        axis = normalize(hinge - before[0], dim=1)
        if self.kind == "angle":
            axis = normalize(torch.linalg.cross(bond, axis), dim=1)
        result[:, moved] = torch.linalg.cross(axis[:, None], positions[:, moved] - hinge[:, None])
        return result


class Motions:
    """The 3N - 6 motions of beads that bonds hold together.

    Parameters
    ----------
    n_beads : int
    bonds : sequence of pairs
        Of rings, one bond is none of the tree.

    Raises
    ------
    DataError
        If they do not hold all beads together.
    """

    def __init__(self, n_beads: int, bonds: Sequence[Sequence[int]]):
        graph = nx.Graph([tuple(int(i) for i in pair) for pair in bonds])
        graph.add_nodes_from(range(n_beads))
        parts = list(nx.connected_components(graph))
        if len(parts) > 1:
            apart = [sorted(part) for part in parts]
            raise DataError(
                f"the bonds leave the beads {apart} apart from each other; give bonds that hold all together"
            )
        self.all = _motions(graph)
        self.turns = [k for k, motion in enumerate(self.all) if motion.is_free]
        self.dihedrals = [self.all[k].anchors for k in self.turns]

    def along(self, positions: Tensor) -> Tensor:
        """The motions (M, 3N, q) of geometries (M, N, 3), without rigid parts."""
        internal = internal_basis(positions)
        return internal @ (internal.mT @ torch.stack([motion.of(positions).flatten(1) for motion in self.all], 2))

    def whitened(self, covariance: Tensor) -> Callable[[Tensor], Tensor]:
        """Combinations of motions along which noise of a covariance (q, q) is independent, and of variance 1."""
        factor = torch.linalg.cholesky(torch.linalg.inv(covariance))
        return lambda positions: self.along(positions) @ factor.to(positions)

    def generalised(self, positions: Tensor, forces: Tensor) -> Tensor:
        """Generalised forces (M, q) of forces (M, N, 3)."""
        return torch.einsum("mi,miq->mq", forces.flatten(1), self.along(positions))

    def cartesian(self, positions: Tensor, generalised: Tensor) -> Tensor:
        """The forces (M, N, 3) without net force and torque that have such generalised forces (M, q)."""
        along = self.along(positions)
        return (torch.linalg.pinv(along.mT) @ generalised[..., None]).view_as(positions)

    def turned(self, positions: Tensor, angles: Tensor) -> Tensor:
        """Geometries (M, N, 3) after turns about bonds by angles (M, len(turns)), radians."""
        result = positions.clone()
        for k, angle in zip(self.turns, angles.T):
            motion = self.all[k]
            moved, (_, hinge, before, _) = list(motion.moved), motion.anchors
            axis = normalize(result[:, hinge] - result[:, before], dim=1)[:, None]
            arms = result[:, moved] - result[:, hinge, None]
            along = (arms * axis).sum(2, keepdim=True) * axis
            cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
            arms = along + cosine * (arms - along) + sine * torch.linalg.cross(axis, arms)
            result[:, moved] = result[:, hinge, None] + arms
        return result


def _motions(graph: nx.Graph) -> list[Motion]:
    """Bonds, then angles, then turns; from a bead at an end."""
    bridges = {frozenset(edge) for edge in nx.bridges(graph)}
    spanning = nx.bfs_tree(graph, min(graph)).to_undirected()
    tree = nx.bfs_tree(spanning, min(graph, key=lambda i: (spanning.degree[i], i)))
    parent = {child: bead for bead, child in tree.edges}
    branch = {i: tuple(sorted({i} | nx.descendants(tree, i))) for i in tree}
    lengths = [Motion("bond", branch[i], (i, parent[i])) for i in tree if i in parent]
    bends, turns = [], []
    for hinge in tree:
        if hinge not in parent:
            continue
        before, hanging = parent[hinge], sorted(tree[hinge])
        bends += [Motion("angle", branch[i], (i, hinge, before)) for i in hanging]
        together = tuple(sorted(set().union(*(branch[i] for i in hanging))))
        for k, i in enumerate(hanging):
            if k:
                turns.append(Motion("turn", branch[i], (i, hinge, before)))
            elif before in parent:  # about the first bond, it is a rotation of the whole
                is_free = frozenset((before, hinge)) in bridges
                turns.append(Motion("turn", together, (i, hinge, before, parent[before]), is_free))
    return lengths + bends + turns
