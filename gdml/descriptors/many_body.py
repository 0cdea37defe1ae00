r"""What surrounds each atom: distributions of distances and angles, element by element.

After the representation FCHL19, with two changes: the angular functions are
smooth for atoms in a row, where :math:`\sin\theta` has a kink, and the three-body part
weighs more.

Around an atom i, for each element z and radius R of a grid,

.. math::

   x_{zR} = \sum_{j: z_j = z} \frac{f(r_{ij})}{r_{ij}^{1.8}} \,
            \frac{1}{R \, \sigma \sqrt{2\pi}} \exp\left(-\frac{(\ln R - \mu)^2}{2\sigma^2}\right),
   \quad \sigma^2 = \ln(1 + w / r_{ij}^2), \quad \mu = \ln r_{ij} - \sigma^2 / 2 ,

with :math:`f(r) = (1 + \cos(\pi r / r_c)) / 2` up to the cutoff; and for each pair of elements,
radius, and a of the two functions :math:`\cos\theta_i` and :math:`\sin^2\theta_i`,

.. math::

   x_{zz'Ra} = \beta \sum_{j < k} \sqrt{\eta / \pi} \, e^{-\eta (\bar r - R)^2} \,
               \frac{1 + 3 \cos\theta_i \cos\theta_j \cos\theta_k}{(r_{ij} r_{ik} r_{jk})^{0.57}} \,
               f(r_{ij}) f(r_{ik}) \, a(\theta_i), \quad \bar r = (r_{ij} + r_{ik}) / 2 .

Source: A. S. Christensen, L. A. Bratholm, F. A. Faber, O. A. von Lilienfeld, J. Chem. Phys.
152, 044107 (2020), eqs. 5 to 13.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from ..errors import FitError
from ..geometry import pair_indices
from ..symmetry import Action, Environments, PermutationGroup
from .autograd import AutogradFeatures, Differentiated
from .inverse_distances import InverseDistances

TWO_WIDTH, TWO_POWER = 0.32, 1.8  # w in Å², and the power of the distance
THREE_WIDTH, THREE_POWER = 2.7, 0.57  # η in Å⁻², and the power of the three distances
AXILROD_TELLER = 3.0
ANGULAR = 2  # functions of the angle


@dataclass(frozen=True)
class ManyBodyFeatures(AutogradFeatures):
    """Descriptors of M geometries, whose dense Jacobians come from those by the distances."""

    def jacobian(self) -> Tensor:
        """J itself, (M, D, 3N)."""
        step = self.descriptor.jacobians_at_once
        return torch.cat([self.descriptor.jacobian(r) for r in self.positions.split(step)])


@dataclass(frozen=True)
class ManyBody(Differentiated):
    """Two- and three-body distributions around each atom (see `gdml.descriptors.many_body`), for molecules.

    Parameters
    ----------
    cutoff : float
        r_c, Å.
    n_two, n_three : int
        Radii of the grids, from cutoff / n to the cutoff.
    weight : float
        β of the three-body part.
    local : bool
        Whether the kernel compares atoms of the same element, so that energies are sums
        over atoms; else it compares geometries as a whole, with a group.
    scales : sequence of float
        Further weights of the parts that `part_names` lists; `gdml.learn_metric` finds them.

    Raises
    ------
    FitError
        If a parameter is not positive, or, when training begins, for periodic systems.
    """

    cutoff: float = 8.0
    n_two: int = 24
    n_three: int = 20
    weight: float = 0.5
    local: bool = True
    scales: tuple[float, ...] = ()
    elements: tuple[int, ...] = ()

    name = "many-body"
    is_costly = True
    noises = (1e-6, 1e-7, 1e-5, 1e-4)

    def __post_init__(self):
        for what in ("cutoff", "n_two", "n_three", "weight"):
            value = getattr(self, what)
            if not (math.isfinite(value) and value > 0):
                raise FitError(f"{what} of the many-body descriptor must be positive, not {value}")

    @property
    def title(self) -> str:
        return self.name

    @property
    def is_local(self) -> bool:
        return self.local

    def bound(
        self, numbers: np.ndarray, positions: np.ndarray, pbc: tuple[bool, ...], cell: np.ndarray | None = None
    ) -> "ManyBody":
        """The descriptor for these atoms."""
        if any(pbc):
            raise FitError("the many-body descriptor is for molecules, and these geometries are periodic")
        if len(numbers) < 2:
            raise FitError("a single atom has no distances and so no forces to learn")
        return replace(self, elements=tuple(sorted({int(z) for z in numbers}))).for_atoms(numbers)

    def for_atoms(self, numbers: np.ndarray) -> "ManyBody":
        """The same for other atoms of the elements that it knows.

        Raises
        ------
        FitError
            For an element that it does not know.
        """
        numbers = known_atoms(numbers, self.elements)
        n = len(self.elements)
        width = n * self.n_two + n * (n + 1) // 2 * ANGULAR * self.n_three
        return replace(self, numbers=numbers, shape=(len(numbers), width))

    def action(self, group: PermutationGroup) -> Action | Environments:
        """Which rows of the descriptor are compared, or how a group permutes them."""
        if self.local:
            return Environments(np.array(self.numbers), self.shape[1])
        width = np.arange(self.shape[1])
        return Action(*((rows[:, :, None] * self.shape[1] + width).reshape(len(rows), -1) for rows in group.split()))

    def recipe(self) -> dict[str, object]:
        """What a model file needs to make this descriptor again, besides the number of atoms."""
        names = "cutoff", "n_two", "n_three", "weight", "local", "scales", "elements", "numbers"
        return {"name": self.name, **{name: getattr(self, name) for name in names}}

    def part_names(self) -> list[str]:
        """What the parts of a row are called: by the element of neighbours, then by those of two."""
        symbols = [chemical_symbols[z] for z in self.elements]
        both = [f"{a} and {b} around" for k, a in enumerate(symbols) for b in symbols[k:]]
        return [f"{a} around" for a in symbols] + both

    def parts_of_entries(self) -> np.ndarray:
        """Which part each entry (D,) is of."""
        widths = [self.n_two] * len(self.elements) + [ANGULAR * self.n_three] * self._n_element_pairs
        return np.tile(np.repeat(np.arange(len(widths)), widths), len(self.numbers))

    def scaled(self, scales: np.ndarray) -> "ManyBody":
        """The same with parts multiplied by further weights."""
        before = self.scales or (1.0,) * len(scales)
        return replace(self, scales=tuple((np.asarray(before) * scales).tolist()))

    @cached_property
    def _scales(self) -> Tensor:
        """The weight of each entry (D,)."""
        return torch.tensor(np.asarray(self.scales)[self.parts_of_entries()])

    def _weighted(self, x: Tensor) -> Tensor:
        """Descriptors (M, D), or derivatives of them (M, D, n), times the weights of parts."""
        if not self.scales:
            return x
        scales = self._scales.to(x.device)
        return x * (scales if x.ndim == 2 else scales[:, None])

    @property
    def intermediates(self) -> int:
        return 8 * len(self._triples[0]) * ANGULAR * self.n_three + 8 * self.size

    @property
    def jacobians_at_once(self) -> int:
        """How many dense Jacobians to make at a time."""
        return max(1, 2**21 // (self.size * len(self._pairs[0])))

    @cached_property
    def _kinds(self) -> np.ndarray:
        """Which element (N,) each atom is."""
        return np.searchsorted(self.elements, self.numbers)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        return pair_indices(len(self.numbers))

    @cached_property
    def _rows(self) -> Tensor:
        """Where pairs go: (atom, element of the other), first in one and then in the other direction."""
        first, second = self._pairs
        atoms, others = np.concatenate([first, second]), np.concatenate([second, first])
        return torch.tensor(atoms * len(self.elements) + self._kinds[others])

    @cached_property
    def _triples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pairs ij, ik and jk of all triples i; j < k, and where they go: (i, elements of j and k)."""
        n, n_kinds = len(self.numbers), len(self.elements)
        pair = np.zeros((n, n), dtype=np.int64)
        pair[self._pairs] = pair[self._pairs[::-1]] = np.arange(len(self._pairs[0]))
        i, j, k = (a.ravel() for a in np.meshgrid(*[np.arange(n)] * 3, indexing="ij"))
        kept = (j < k) & (i != j) & (i != k)
        i, j, k = i[kept], j[kept], k[kept]
        low, high = np.sort([self._kinds[j], self._kinds[k]], axis=0)
        kinds = low * n_kinds - low * (low - 1) // 2 + high - low
        rows = i * (n_kinds * (n_kinds + 1) // 2) + kinds
        return tuple(torch.tensor(a) for a in (pair[i, j], pair[i, k], pair[j, k], rows))

    def values(self, positions: Tensor, cells: Tensor | None = None) -> Tensor:
        """The descriptors (M, D) alone, as torch can differentiate them."""
        first, second = (torch.tensor(i, device=positions.device) for i in self._pairs)
        s = torch.linalg.vector_norm(positions[:, first] - positions[:, second], dim=2)
        ij, ik, jk, rows = (index.to(s.device) for index in self._triples)
        two = self._two_body(s)
        two = _summed(torch.cat([two, two], 1), self._rows.to(s.device), len(self.numbers) * len(self.elements))
        three = _summed(self._three_body(s[:, ij], s[:, ik], s[:, jk]), rows, len(self.numbers) * self._n_element_pairs)
        parts = [part.unflatten(1, (len(self.numbers), -1)).flatten(2) for part in (two, three)]
        return self._weighted(torch.cat(parts, 2).flatten(1))

    @property
    def _n_element_pairs(self) -> int:
        return len(self.elements) * (len(self.elements) + 1) // 2

    def _cut(self, r: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.cos(torch.minimum(r, r.new_tensor(self.cutoff)) * (math.pi / self.cutoff))

    def _grid(self, n: int, like: Tensor) -> Tensor:
        return torch.linspace(self.cutoff / n, self.cutoff, n, dtype=like.dtype, device=like.device)

    def _two_body(self, r: Tensor) -> Tensor:
        """The radial functions (..., n_two) of distances (...)."""
        mean, inverse, factor = (part[..., None] for part in self._two_scalars(r))
        grid = self._grid(self.n_two, r)
        return torch.exp(-((grid.log() - mean) * inverse).square()) * factor / grid

    def _two_scalars(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the logarithm of a distance: mean, inverse width, and the factor of the function."""
        variance = torch.log1p(TWO_WIDTH / r.square())
        factor = self._cut(r) * r.pow(-TWO_POWER) * (2.0 * math.pi * variance).rsqrt()
        return torch.log(r) - 0.5 * variance, (2.0 * variance).rsqrt(), factor

    def _two_slopes(self, r: Tensor) -> Tensor:
        """The derivatives of the radial functions by the distance."""
        scalars = [part[..., None] for part in self._two_scalars(r)]
        by_r = [part[..., None] for (part,) in _slopes(self._two_scalars, r)]
        (mean, inverse, factor), (mean_r, inverse_r, factor_r) = scalars, by_r
        grid = self._grid(self.n_two, r)
        away = grid.log() - mean
        scaled = away * inverse
        change = factor_r - 2.0 * factor * scaled * (away * inverse_r - mean_r * inverse)
        return torch.exp(-scaled.square()) * change / grid

    def _three_body(self, ij: Tensor, ik: Tensor, jk: Tensor) -> Tensor:
        """The functions (..., ANGULAR n_three) of the three distances (...) of triples."""
        angular = torch.stack(self._three_scalars(ij, ik, jk), -1)
        return _outer(angular, self._radial(ij, ik)[1])

    def _radial(self, ij: Tensor, ik: Tensor) -> tuple[Tensor, Tensor]:
        """Distances from the radii (..., n_three), and the functions of them."""
        away = 0.5 * (ij + ik)[..., None] - self._grid(self.n_three, ij)
        return away, torch.exp(away.square() * -THREE_WIDTH)

    def _three_scalars(self, ij: Tensor, ik: Tensor, jk: Tensor) -> tuple[Tensor, ...]:
        """The angular functions, with all factors that are not radial."""
        a, b, c = ij.square(), ik.square(), jk.square()
        at_i, at_j, at_k = (a + b - c) / (2 * ij * ik), (a + c - b) / (2 * ij * jk), (b + c - a) / (2 * ik * jk)
        factor = (1.0 + AXILROD_TELLER * at_i * at_j * at_k) * (ij * ik * jk).pow(-THREE_POWER)
        factor = factor * self._cut(ij) * self._cut(ik) * (self.weight * math.sqrt(THREE_WIDTH / math.pi))
        return factor * at_i, factor * (1.0 - at_i.square())

    def _three_slopes(self, *distances: Tensor) -> Iterator[Tensor]:
        """The derivatives of the functions of triples by each of the distances."""
        angular = torch.stack(self._three_scalars(*distances), -1)
        away, radial = self._radial(*distances[:2])
        by_mean = away * radial * -THREE_WIDTH  # and half of it, for the mean of two distances
        for k, slopes in enumerate(zip(*_slopes(self._three_scalars, *distances))):
            result = _outer(torch.stack(slopes, -1), radial)
            yield result + _outer(angular, by_mean) if k < 2 else result

    def evaluate(self, positions: Tensor, **options) -> ManyBodyFeatures:
        """Descriptors at positions (M, N, 3), Å."""
        found = super().evaluate(positions, **options)
        return ManyBodyFeatures(found.x, self, found.positions, graph=found.graph)

    def jacobian(self, positions: Tensor) -> Tensor:
        """Jacobians (M, D, 3N): those by the distances, times those of the distances.

        The functions of a pair or triple are differentiated once for each of its distances,
        instead of for each of the 3N coordinates.
        """
        lengths = InverseDistances(len(self.numbers), 1.0).evaluate(positions)
        s = 1.0 / lengths.x
        by_positions = lengths.jacobian() * -s.square()[..., None]
        n_pairs, n_atoms = s.shape[1], len(self.numbers)
        own = torch.arange(n_pairs, device=s.device).repeat(2)
        slopes = self._two_slopes(s).repeat(1, 2, 1)
        rows = self._rows.to(s.device) * n_pairs + own
        two = _summed(slopes, rows, n_atoms * len(self.elements) * n_pairs)
        *pairs, rows = (index.to(s.device) for index in self._triples)
        three = s.new_zeros(len(s), n_atoms * self._n_element_pairs * n_pairs, ANGULAR * self.n_three)
        for pair, slopes in zip(pairs, self._three_slopes(*(s[:, p] for p in pairs))):
            three.index_add_(1, rows * n_pairs + pair, slopes)
        parts = [
            part.view(len(s), n_atoms, -1, n_pairs, part.shape[2]).transpose(3, 4).flatten(2, 3)
            for part in (two, three)
        ]
        by_distances = torch.cat(parts, 2).flatten(1, 2)  # (M, D, pairs)
        return self._weighted(by_distances @ by_positions)


def known_atoms(numbers: np.ndarray, elements: tuple[int, ...]) -> tuple[int, ...]:
    """Atomic numbers, if all of them are known; else raise `FitError`."""
    numbers = tuple(int(z) for z in numbers)
    if unknown := set(numbers) - set(elements):
        raise FitError(f"the descriptor does not know the elements {sorted(unknown)}")
    return numbers


def _summed(terms: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Sums (M, n_rows, W) of those of the terms (M, T, W) that go to the same row."""
    return terms.new_zeros(len(terms), n_rows, terms.shape[2]).index_add(1, rows, terms)


def _outer(angular: Tensor, radial: Tensor) -> Tensor:
    """Products of all angular (..., A) and radial functions (..., R), (..., A R)."""
    return (angular[..., :, None] * radial[..., None, :]).flatten(-2)


def _slopes(function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> list[tuple[Tensor, ...]]:
    """The derivatives of each value of an entrywise function, by each of its arguments."""
    with torch.enable_grad():
        leaves = [a.detach().requires_grad_() for a in arguments]
        values = function(*leaves)
        return [torch.autograd.grad(v, leaves, torch.ones_like(v), retain_graph=True) for v in values]
