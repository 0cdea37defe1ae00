"""Several descriptors of pairs as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, FitError
from ..symmetry import Action, PermutationGroup
from .concatenated import Concatenated
from .distances import OfInverseDistances
from .inverse_distances import InverseDistances, PairDescriptor, PairFeatures, PowerDescriptor
from .periodic import PeriodicFeatures


@dataclass(frozen=True)
class SideBySide(Concatenated):
    """Descriptors of pairs in a row, each times a weight.

    Two powers of the same distances tell more than any one: a steep one resolves
    neighbours, a flat one what is far.

    Parameters
    ----------
    parts : sequence of PairDescriptor
        Of the same atoms.
    weights : sequence of float
        One for each part; positive. In inverse units of the part.

    Raises
    ------
    FitError
        If there are no parts, they are for different numbers of atoms, or the
        weights are not one positive number for each.

    See Also
    --------
    SideBySide.balanced : weights from geometries.
    """

    parts: Sequence[PairDescriptor]
    weights: Sequence[float]

    name = "side-by-side"

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        if not self.parts:
            raise FitError("there are no descriptors to set side by side; give at least one")
        if len({part.n_atoms for part in self.parts}) > 1:
            raise FitError(f"descriptors for {[part.n_atoms for part in self.parts]} atoms cannot stand side by side")
        if len(self.weights) != len(self.parts) or not all(np.isfinite(w) and w > 0 for w in self.weights):
            raise FitError(
                f"{len(self.parts)} descriptors need as many positive weights, not {list(self.weights)}; "
                "SideBySide.balanced finds them"
            )

    @classmethod
    def balanced(cls, parts: Sequence[PairDescriptor], positions: Tensor, **options) -> "SideBySide":
        """With weights that give each part the same variance, one, over geometries (M, N, 3).

        Parameters
        ----------
        options
            What the parts' `evaluate` takes besides positions, such as cells.

        Raises
        ------
        DataError
            If the geometries are all the same.
        """
        if len(positions) < 2:
            raise DataError(f"weights need at least two different geometries, and there is {len(positions)}")
        variances = [float(p.evaluate(positions, **options).x.var(0, correction=0).sum()) for p in parts]
        if not min(variances) > 0:
            raise DataError(f"the {len(positions)} geometries are all the same; weights need some that differ")
        return cls(parts, [v**-0.5 for v in variances])

    def evaluate(self, positions: Tensor, **options) -> PeriodicFeatures:
        """Descriptors and Jacobians at positions (M, N, 3), Å.

        Parameters
        ----------
        options
            As in the parts' `evaluate`: cells and strain for periodic ones.
        """
        features = []
        if all(isinstance(part, OfInverseDistances) for part in self.parts):
            inverse = InverseDistances(self.n_atoms).evaluate(positions)
            features = [part.of_inverse(inverse) for part in self.parts]
        for part in self.parts[len(features) :]:
            known = next(
                (k for k, other in enumerate(self.parts[: len(features)]) if _same_distances(part, other)), None
            )
            if known is None:
                features.append(part.evaluate(positions, **options))
            else:
                features.append(_raised(features[known], part.power / self.parts[known].power))

        def joined(name: str) -> Tensor:
            return torch.cat([w * getattr(f, name) for w, f in zip(self.weights, features)], 1)

        first, second = (torch.cat([getattr(f, name) for f in features]) for name in ("first", "second"))
        strain_slopes = joined("strain_slopes") if options.get("strain") else None
        return PeriodicFeatures(joined("x"), joined("slopes"), first, second, self.n_atoms, strain_slopes)

    def summed_over(self, group: PermutationGroup) -> Action:
        """What the kernel is summed over: the whole group, as for each of the parts."""
        return self.action(group)

    def explain(self, entry: int, value: float) -> tuple[int, int, float]:
        """What an entry of the descriptor means: its two atoms, and their distance in Å."""
        for part, weight in zip(self.parts, self.weights):
            if entry < part.size:
                return part.explain(entry, value / weight)
            entry -= part.size
        raise IndexError(f"the descriptor has {self.size} entries, and so no entry {self.size + entry}")

    def distances(self, x: np.ndarray) -> np.ndarray:
        """The distances (..., D) in Å that entries (..., D) stand for."""
        ends = np.cumsum([part.size for part in self.parts])[:-1]
        parts = zip(self.parts, self.weights, np.split(x, ends, axis=-1), strict=True)
        return np.concatenate([part.distances(values / weight) for part, weight, values in parts], -1)


def _same_distances(part: PairDescriptor, other: PairDescriptor) -> bool:
    both = isinstance(part, PowerDescriptor) and isinstance(other, PowerDescriptor)
    return both and replace(part, power=other.power) == other


def _raised(features: PairFeatures, exponent: float) -> PairFeatures:
    """Descriptors to a power, x^e, with their derivatives e x^(e-1)."""
    x = features.x.pow(exponent)
    factor = (exponent * x / features.x)[..., None]
    strain = getattr(features, "strain_slopes", None)
    more = {} if strain is None else {"strain_slopes": strain * factor}
    return replace(features, x=x, slopes=features.slopes * factor, **more)
