"""The geometries of several states in a row."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..baselines import Baseline
from ..dataset import Dataset
from .force_field import State


@dataclass(frozen=True)
class Together:
    """The geometries of all states in a row.

    Attributes
    ----------
    dataset : Dataset
        Energies are relative to the mean of their state.
    states : (n,) int tensor
        The place of each geometry's state.
    means : (S,) array, eV
        The means of the energies; NaN where there are none.
    """

    dataset: Dataset
    states: Tensor
    means: np.ndarray

    @classmethod
    def of(cls, datasets: dict[State, Dataset], use_energy: bool) -> "Together":
        parts = list(datasets.values())
        means = np.array([np.nan if one.energy is None else one.energy.mean() for one in parts])
        parts = [
            replace(one, stress=None, energy=one.energy - mean if use_energy else None)
            for one, mean in zip(parts, means)
        ]
        whole = parts[0]
        for one in parts[1:]:
            whole = whole.joined(one)
        states = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(one) for one in parts]))
        return cls(whole, states, means)

    def some(self, most: int) -> "Together":
        """Up to so many geometries, of all states as equally as can be."""
        rng = np.random.default_rng(0)
        drawn = self.rows(most, lambda rows, share: rng.choice(rows, share, replace=False))
        return replace(self, dataset=self.dataset[drawn], states=self.states[drawn])

    def rows(self, most: int, choose: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
        """Of each state as many geometries as its share of some, of its own chosen by a function."""
        shares = shares_of(torch.bincount(self.states).tolist(), most)
        return np.concatenate([np.sort(choose(np.flatnonzero(self.states == s), share)) for s, share in shares])


def shares_of(counts: list[int], most: int) -> list[tuple[int, int]]:
    """How many of each state: all where there are few, and the others share what is left."""
    shares, left = {}, most
    for rank, s in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[s] = min(counts[s], max(1, left // (len(counts) - rank)))
        left -= shares[s]
    return sorted(shares.items())


def differences(
    datasets: dict[State, Dataset], baseline: Baseline, cache: str | Path | None, progress: bool
) -> dict[State, Dataset]:
    """What is left to learn on top of a baseline."""
    return {s: baseline.difference(dataset, cache=cache, progress=progress) for s, dataset in datasets.items()}


def fingerprint(datasets: dict[State, Dataset]) -> str:
    """What tells these geometries and labels from others."""
    text = " ".join(f"{state!r}:{dataset.fingerprint}" for state, dataset in datasets.items())
    return hashlib.sha256(text.encode()).hexdigest()
