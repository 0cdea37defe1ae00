"""How a group permutes the entries of a descriptor, and the characters of its translations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Action:
    """Permutations of D entries, as translations times representatives of their cosets.

    Each element s is one ``translations[t][cosets[q]]``, and s x = x[s]. A group
    that is not split has the identity as its only translation.

    Parameters
    ----------
    translations : (|T|, D) int array
        Commuting, and a normal subgroup.
    cosets : (|Q|, D) int array
    """

    translations: np.ndarray
    cosets: np.ndarray

    @property
    def order(self) -> int:
        return len(self.translations) * len(self.cosets)

    @property
    def size(self) -> int:
        """The number of entries, D."""
        return self.cosets.shape[1]

    def distinct(self) -> "Action":
        """Without elements that permute the entries as another one does, where there are no translations."""
        if len(self.translations) > 1:
            return self
        return Action(self.translations, self.cosets[np.sort(np.unique(self.cosets, axis=0, return_index=True)[1])])

    def rows(self) -> np.ndarray:
        """All elements, (|S|, D)."""
        return self.translations[:, self.cosets].reshape(-1, self.size)

    def parts(self) -> Iterator[np.ndarray]:
        """All elements, in an array (|Q|, D) for each translation."""
        return (row[self.cosets] for row in self.translations)

    def reduce(self, values: np.ndarray, reduction: Callable) -> np.ndarray:
        """A mean, minimum or maximum of values (D,) over their images under the group, (D,)."""
        return reduction(reduction(values[self.translations], axis=0)[self.cosets], axis=0)


def characters(rows: np.ndarray) -> np.ndarray:
    """The characters of a commuting group of permutations, (|T|, |T|), as multiples of 2π/|T|.

    Character a takes element b to exp(2πi result[a, b] / |T|). The group is built
    up from subgroups: where g^m is the first power of a new element g in the
    subgroup H, each character of H goes on to g in m ways, as the m-th roots of
    its value on g^m.

    Parameters
    ----------
    rows : (|T|, N) int array
        All elements, each once.
    """
    order, n = len(rows), rows.shape[1]
    members, exponents = [np.arange(n)], np.zeros((1, 1), dtype=np.int64)
    for g in rows:
        place = {row.tobytes(): k for k, row in enumerate(members)}
        if g.tobytes() in place:
            continue
        powers = [np.arange(n)]
        while (following := powers[-1][g]).tobytes() not in place:
            powers.append(following)
        m = len(powers)
        first = exponents[:, place[following.tobytes()]] // m
        root = first[:, None] + order // m * np.arange(m)
        grown = exponents[:, None, None, :] + root[:, :, None, None] * np.arange(m)[:, None]
        exponents = grown.reshape(len(members) * m, -1) % order
        members = [power[h] for power in powers for h in members]
    place = {row.tobytes(): k for k, row in enumerate(members)}
    return exponents[:, [place[row.tobytes()] for row in rows]]
