"""A sum of ASE calculators that is subtracted from labels, and added to predictions."""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator

from ..dataset import Dataset
from ..errors import BaselineError, name_frames
from ..progress import progress_bar
from .catalogue import Term, parse
from .labels import SMALL, BaselineLabels, LabelFile, Memory, Workers, compute, geometries, key_of, labels_of, stacked

SAME = 2e-3  # eV/Å: differences of forces up to which a baseline counts as the same


@dataclass(frozen=True)
class Example:
    """A geometry, and the forces that the baseline had on it in training, by which it is known again."""

    numbers: list[int]
    positions: list[list[float]]
    cell: list[list[float]] | None
    pbc: list[bool]
    forces: list[list[float]]


@dataclass(frozen=True, eq=False)
class Baseline:
    """A sum of ASE calculators; see `as_baseline`.

    Parameters
    ----------
    terms : tuple of Term
    example : Example, optional
        By which it is checked, at the first evaluation, to be that of the training.
    """

    terms: tuple[Term, ...]
    example: Example | None = None
    _memory: Memory = field(default_factory=Memory, repr=False)
    _lock: object = field(default_factory=threading.RLock, repr=False)  # calculators have a state

    def __reduce__(self):
        return Baseline, (self.terms, self.example)  # locks and calculators of this process stay here

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))

    def recipe(self) -> dict:
        """What a file keeps: names, options and an example; no code."""
        terms = [{"name": term.name, "options": term.options} for term in self.terms]
        return {"terms": terms, "example": self.example and asdict(self.example)}

    @staticmethod
    def from_recipe(recipe: dict, given: "Baseline | None" = None) -> "Baseline":
        """The baseline of a file, with calculators that it cannot hold from a given one.

        Raises
        ------
        BaselineError
            If those are needed and not given, or others.
        """
        terms = tuple(Term(**term) for term in recipe["terms"])
        example = recipe["example"] and Example(**recipe["example"])
        if given is not None:
            if [term.name for term in given.terms] != [term.name for term in terms]:
                wanted = Baseline(terms)
                raise BaselineError(f"the baseline of the training is {wanted}, the given one is {given}")
            return replace(given, example=example)
        return Baseline(terms, example)

    @cached_property
    def _calculators(self) -> list[Calculator]:
        return [term.make() for term in self.terms]

    @cached_property
    def _workers(self) -> Workers:
        return Workers(self.terms)

    @property
    def _takes_batches(self) -> bool:
        """Whether all its calculators take geometries without a cell in a batch."""
        return all(hasattr(calculator, "batch") for calculator in self._calculators)

    def _in_a_batch(self, positions: np.ndarray) -> BaselineLabels:
        geometries = torch.tensor(np.asarray(positions, dtype=float))
        parts = [calculator.batch(geometries) for calculator in self._calculators]
        energy, forces = (sum(part).numpy() for part in zip(*parts))
        wrong = ~(np.isfinite(energy) & np.isfinite(forces).all((1, 2)))
        if wrong.any():
            raise BaselineError(f"the baseline {self} is not finite on {name_frames(np.flatnonzero(wrong))}")
        return BaselineLabels(energy, forces)

    @property
    def has_stress(self) -> bool:
        """Whether all its calculators can give stress."""
        return all("stress" in calculator.implemented_properties for calculator in self._calculators)

    def evaluate(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cells: np.ndarray | None = None,
        pbc: Sequence[bool] = (False, False, False),
        stress: bool = False,
    ) -> BaselineLabels:
        """Energies, forces and, where wanted, stress of geometries (M, N, 3); small ones at the same time.

        Raises
        ------
        BaselineError
            If a calculator fails on a geometry, gives what is not finite, or is not the one of the training.
        MissingExtraError
            If the package of a calculator is not installed.
        """
        self.check()
        if self._takes_batches and not (stress or any(pbc)):
            return self._in_a_batch(positions)
        return stacked(self._of(geometries(numbers, positions, cells, pbc), stress), stress)

    def labels(
        self, dataset: Dataset, *, stress: bool = False, cache: str | Path | None = None, progress: bool = False
    ) -> BaselineLabels:
        """The same for a dataset, by several processes where that is worth it.

        Parameters
        ----------
        dataset : Dataset
        stress : bool
        cache : path, optional
            A file (.npz) of labels, to which new ones are added while they are
            computed, so that none is computed twice.
        progress : bool

        Raises
        ------
        BaselineError, MissingExtraError
            As `evaluate`; the message names the frames. Labels of the others are in the cache. Also for a
            cache of a calculator that was given as an object, or of another version.
        FormatError, OutputError
            For a cache of something else, or that cannot be written.
        """
        self.check()
        if cache is not None and any(term.given is not None for term in self.terms):
            raise BaselineError(
                f"labels of {self} cannot be kept in a file, which would not know its settings; leave cache out"
            )
        if self._takes_batches and not (stress or any(dataset.pbc)):
            return self._in_a_batch(dataset.positions)
        file = LabelFile(cache, str(self), dataset.n_atoms)
        frames = geometries(dataset.numbers, dataset.positions, dataset.periodic_cell, dataset.pbc)
        keys = [key_of(one) for one in frames]
        known = [self._memory.get(key, stress) or file.get(key, stress) for key in keys]
        self._check_file(file, frames, keys)
        places = [k for k, labels in enumerate(known) if labels is None]
        failed = {}
        try:
            with progress_bar(f"baseline {self}", progress) as bar, self._lock:
                wanted = [frames[k] for k in places]
                found = compute(self.terms, lambda atoms: self._computed([atoms], stress)[0], wanted, stress)
                for done, (place, labels) in enumerate(found, 1):
                    frame = places[place]
                    if isinstance(labels, str):
                        failed[frame] = labels
                    else:
                        known[frame] = labels
                        file.put(keys[frame], labels)
                    if bar:
                        bar(done, len(places))
        finally:  # also where the user interrupts
            file.write()
        if failed:
            where, first = name_frames(dataset.frame_numbers[sorted(failed)]), failed[min(failed)]
            raise BaselineError(f"the baseline {self} failed on {where} ({first}); leave such frames out")
        for key, labels in zip(keys, known):
            self._memory.put(key, labels)
        return stacked(known, stress)

    def _check_file(self, file: LabelFile, frames: Sequence[Atoms], keys: Sequence[str]) -> None:
        """Raise where a file has other labels for the first of its frames than are found today."""
        for atoms, key in zip(frames, keys):
            labels = file.get(key, False)
            if labels is not None:
                with self._lock:
                    (today,) = self._computed([atoms], False)
                if np.abs(today.forces - labels.forces).max() > SAME:
                    raise BaselineError(f"{file.path}: labels of another version of {self}; delete this file")
                return

    def _of(self, frames: Sequence[Atoms], stress: bool) -> list[BaselineLabels]:
        keys = [key_of(atoms) for atoms in frames]
        with self._lock:
            known = [self._memory.get(key, stress) for key in keys]
            places = [k for k, labels in enumerate(known) if labels is None]
            for k, labels in zip(places, self._computed([frames[k] for k in places], stress)):
                known[k] = labels
                self._memory.put(keys[k], labels)
        return known

    def _computed(self, frames: Sequence[Atoms], stress: bool) -> list[BaselineLabels]:
        by_name = all(term.given is None for term in self.terms)
        if frames and by_name and len(frames[0]) <= SMALL:
            return self._workers.labels(frames, stress)
        return [labels_of(self._calculators, atoms, stress) for atoms in frames]

    def difference(self, dataset: Dataset, **options) -> Dataset:
        """The dataset with what the labels are above the baseline; options as of `labels`.

        Stress is left out where the baseline has none.
        """
        stress = dataset.has_stress and self.has_stress
        labels = self.labels(dataset, stress=stress, **options)
        return replace(
            dataset,
            energy=None if dataset.energy is None else dataset.energy - labels.energy,
            forces=None if dataset.forces is None else dataset.forces - labels.forces,
            stress=dataset.stress - labels.stress if stress else None,
        )

    def with_example(self, dataset: Dataset) -> "Baseline":
        """The same, to be known again by its forces on the first geometry."""
        first = dataset[0]
        (atoms,) = geometries(first.numbers, first.positions, first.periodic_cell, first.pbc)
        example = Example(
            numbers=atoms.numbers.tolist(),
            positions=atoms.positions.tolist(),
            cell=atoms.cell.tolist() if atoms.pbc.any() else None,
            pbc=atoms.pbc.tolist(),
            forces=self._computed([atoms], False)[0].forces.tolist(),
        )
        return replace(self, example=example)

    def check(self) -> None:
        """Raise unless it gives the forces that it gave in training; once.

        Raises
        ------
        BaselineError, MissingExtraError
        """
        if self.example is not None and not self._is_same:
            raise BaselineError(
                f"the baseline {self} is not the one of the training: its forces on a geometry from there differ by "
                f"more than {1e3 * SAME:g} meV/Å; use the version and settings of that time, or train again"
            )

    @cached_property
    def _is_same(self) -> bool:
        one = self.example
        cell = None if one.cell is None else np.array(one.cell)
        (atoms,) = geometries(np.array(one.numbers), np.array([one.positions]), cell, one.pbc)
        return bool(np.abs(self._of([atoms], False)[0].forces - np.array(one.forces)).max() < SAME)


def as_baseline(given: object) -> Baseline | None:
    """What a user gives as a baseline.

    Parameters
    ----------
    given : str, ASE calculator, sequence of these, Baseline or None
        Names, also as a sum, with options: "gfn2-xtb", "gfn1-xtb(charge=1)",
        "d4(method=pbe)", "zbl + coulomb(K=1, Cl=-1)", "lj(epsilon=0.01, sigma=3.4)".

    Returns
    -------
    Baseline or None

    Raises
    ------
    BaselineError
        For a name that is unknown, or what is no calculator.
    """
    if given is None or isinstance(given, Baseline):
        return given
    parts = given if isinstance(given, (list, tuple)) else [given]
    terms = [term for part in parts for term in _terms(part)]
    if not terms:
        raise BaselineError("an empty list is no baseline; leave it out")
    return Baseline(tuple(terms))


def _terms(given: object) -> list[Term]:
    if isinstance(given, str):
        return parse(given)
    if isinstance(given, BaseCalculator):
        return [Term(type(given).__name__, {}, given)]
    raise BaselineError(f"a baseline is a name or an ASE calculator, not {given!r}")
