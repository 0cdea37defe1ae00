"""Dihedral angles of chosen atoms, as smooth functions that know left from right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FitError
from .autograd import Differentiated


@dataclass(frozen=True)
class Dihedrals(Differentiated):
    r"""Cosines and sines of dihedral angles φ, times the sines of the two angles θ beside them.

    .. math::

       \sin\theta_1 \sin\theta_2 \cos\phi = \frac{(u \times v) \cdot (v \times w)}{|u|\,|v|^2\,|w|}, \qquad
       \sin\theta_1 \sin\theta_2 \sin\phi = \frac{u \cdot (v \times w)}{|u|\,|v|\,|w|}

    with u, v, w the steps from one atom to the next. Where three atoms are in line φ is not
    defined, and these are zero, and smooth. Distances are the same for mirror images, and the
    second of these changes its sign: stand this beside distances (`Concatenated`) for what is chiral.

    Parameters
    ----------
    quadruples : sequence of four int each
        The atoms of each angle, in their order along the chain.

    Raises
    ------
    FitError
        If there are none, or atoms come twice in one of them; when training begins, for atoms that there are not.
    """

    quadruples: Sequence[Sequence[int]]

    name = "dihedrals"
    is_local = False

    def __post_init__(self):
        object.__setattr__(self, "quadruples", tuple(tuple(int(i) for i in four) for four in self.quadruples))
        wrong = [four for four in self.quadruples if len(four) != 4 or len(set(four)) != 4 or min(four) < 0]
        if wrong or not self.quadruples:
            raise FitError(f"a dihedral angle is of four different atoms, not {wrong[0] if wrong else 'of none'}")

    @property
    def title(self) -> str:
        return self.name

    def values(self, positions: Tensor, cells: Tensor | None = None) -> Tensor:
        """The descriptors (M, D) alone, as torch can differentiate them."""
        atoms = torch.tensor(self.quadruples, device=positions.device).T
        u, v, w = (positions[:, b] - positions[:, a] for a, b in zip(atoms[:-1], atoms[1:]))
        m, n = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
        uu, vv, ww = ((step * step).sum(2) for step in (u, v, w))
        cosines = (m * n).sum(2) / (vv * (uu * ww).sqrt())
        sines = (u * n).sum(2) / (uu * vv * ww).sqrt()
        return torch.cat([cosines, sines], 1)

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        names = "quadruples", "numbers", "example"
        return {"name": self.name, **{name: getattr(self, name) for name in names}, "shape": self.shape}
