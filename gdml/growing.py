"""A force field that takes in one geometry after the other, without being solved again from scratch."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from .dataset import Dataset
from .errors import FitError
from .force_field import ForceField
from .region import own_ranges
from .training import fit
from .uncertainty import labels_of_field, scaled_by_left_out, with_uncertainty

MOST_UNKNOWNS = 8_000  # of what is grown: a few matrices of this order take gigabytes


@dataclass(frozen=True)
class Growing:
    """A force field with the variances of all its labels, and what it was trained on.

    Hyper-parameters stay those of the start.

    Parameters
    ----------
    force_field : ForceField
    dataset : Dataset
    """

    force_field: ForceField
    dataset: Dataset

    @staticmethod
    def start(dataset: Dataset, **options: Any) -> "Growing":
        """Train from scratch; options as of `gdml.fit`."""
        force_field = fit(dataset, **{"solver": "cholesky"} | options)
        return Growing(with_uncertainty(force_field, dataset, most_unknowns=MOST_UNKNOWNS), dataset)

    def add(self, one: Dataset) -> "Growing":
        """With one more labelled geometry, by a border of the inverse Cholesky factor.

        For n unknowns and m new ones, 4 n² m operations, instead of n³/3 and all blocks of the matrix.

        Raises
        ------
        FitError
            If it is nearly equal to one that is there; if there are too many labels, or stress.
        """
        before, dataset = self.force_field, self.dataset.joined(one)
        if not before.error_model.is_exact or before.details.get("use_stress"):
            raise FitError("a force field of so many labels, or of stress, cannot take in one more; train again")
        labels = labels_of_field(before, one)
        posterior = before.error_model.grown(labels.features.x, labels.duals(torch.tensor([0])))
        everything = labels_of_field(before, dataset)
        alpha = posterior.solve(everything.values)
        c, w = everything.spread(alpha)
        field = replace(
            before,
            y=posterior.y.numpy(),
            c=None if c is None else c.numpy(),
            w=w.numpy(),
            offset=everything.offset,
            ranges=own_ranges(before.descriptor, before.group, dataset),
            error_model=scaled_by_left_out(posterior, everything),
            details=before.details | {"n_train": len(dataset), "fingerprint": dataset.fingerprint},
        )
        return Growing(self._with_constant(field, dataset), dataset)

    @staticmethod
    def _with_constant(field: ForceField, dataset: Dataset) -> ForceField:
        """With the constant of the energy that is the mean difference; labels of energy have it already."""
        if dataset.energy is None or field.c is not None:
            return field
        found = field.predict(dataset.positions, dataset.periodic_cell).energy
        return replace(field, offset=field.offset + float((dataset.energy - found).mean()))
