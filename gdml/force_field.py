"""A trained force field: prediction, and its file."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import ArrayLike
from torch import Tensor

from .baselines import Baseline
from .committee import Committee
from .contractions import Contraction, check_backend, contraction
from .descriptors import Descriptor, Features, InverseDistances, ManyBody, PowerSpectrum
from .errors import DataError, FitError, ModelMismatchError
from .geometry import pair_distances, pair_indices
from .hardware import check_devices, check_precision, in_tiles, memory_explained, parts
from .kernels import RadialKernel
from .npz import write_archive
from .posterior import Posterior, Uncertainty
from .region import Excess, Region, is_of_pairs, over_group, ranges_by_element, watched
from .sgdml_models import to_sgdml
from .symmetry import Action, CrystalGroup, Environments, PermutationGroup

FORMAT = "gdml-force-field"
SCHEMA = 1
MAX_FRAMES = 4096  # geometries whose descriptors are held at a time
STEP = 5e-3  # Å, by which the atom that moves most does, for differences of a baseline's forces


class Prediction(NamedTuple):
    """Energies, and their negative gradients, of one geometry or of M.

    Attributes
    ----------
    energy : float or (M,) array, eV
    forces : (N, 3) or (M, N, 3) array, eV/Å
    stress : (6,) or (M, 6) array, eV/Å³, or None
        xx, yy, zz, yz, xz, xy in ASE's sign; of periodic systems, where asked for.
    """

    energy: float | np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class ForceField:
    r"""A symmetrised gradient-domain kernel force field.

    .. math::

       E(R) = E_0 + \sum_j \sum_{s \in S} \left[ c_j \, k(|x - s y_j|)
              + w_j \cdot \partial_y k(|x - s y_j|) \right], \quad x = \phi(R)

    Source: Chmiela et al., Nat. Commun. 9, 3887 (2018).

    Parameters
    ----------
    numbers : (N,) int array
    descriptor : Descriptor
        φ.
    group : PermutationGroup
        S.
    kernel : RadialKernel
        k.
    y : (n, D) array
        Descriptors of the training geometries.
    c : (n,) array or None
        Coefficients of energies; None if only forces were trained on.
    w : (n, D) array
        Coefficients of forces, in descriptor space.
    offset : float
        E_0, eV.
    details : dict
        Where the force field comes from: name, n_train, noise, fingerprint of
        the training data, whether energies are "absolute" or "relative", errors.
    ranges : (2, N (N - 1) / 2) array or None
        The region of the training data (`gdml.region.ranges_of`), where references do not tell it.
    reference_numbers : (N',) int array or None
        The atoms of the training geometries, where these are others (`for_atoms`).
    baseline : Baseline or None
        What is added to all that is predicted.
    error_model : Posterior, Committee or None
        Variances of what is predicted (`gdml.with_uncertainty`).
    devices : tuple of str
        Where it is evaluated; batches are shared out to them. These last three are no
        part of a model file: see `to`.
    dtype : {"float64", "float32"}
        Precision of the sums over training geometries.
    backend : {"auto", "gemm", "keops", "lattice"}
        How they are computed.
    """

    numbers: np.ndarray
    descriptor: Descriptor
    group: PermutationGroup
    kernel: RadialKernel
    y: np.ndarray
    c: np.ndarray | None
    w: np.ndarray
    offset: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    ranges: np.ndarray | None = None
    reference_numbers: np.ndarray | None = None
    baseline: Baseline | None = None
    error_model: Posterior | Committee | None = None
    devices: tuple[str, ...] = ("cpu",)
    dtype: str = "float64"
    backend: str = "auto"

    def to(
        self,
        device: str | torch.device | Sequence[str] | None = None,
        dtype: str | torch.dtype | None = None,
        backend: str | None = None,
    ) -> "ForceField":
        """The same force field, evaluated elsewhere, in another precision or in another way.

        Parameters
        ----------
        device : str, torch.device or sequence of them, optional
            "cpu", "cuda", "cuda:1", ...; batches are shared out to several, as in "cuda:0,cuda:1".
            What is left out stays as it is.
        dtype : {"float64", "float32"}, optional
            With "float32" the sums over training geometries are single precision. Their terms
            cancel, all the more the smaller the noise was: see `precision_error`.
        backend : {"auto", "gemm", "keops", "lattice"}, optional
            Matrix products, sums that KeOps compiles, Fourier sums over the translations
            of a crystal, or what promises to be fastest.

        Returns
        -------
        ForceField

        Raises
        ------
        DeviceError
            For a device, precision or backend that is not there.
        """
        changes = {
            "devices": self.devices if device is None else check_devices(device),
            "dtype": self.dtype if dtype is None else str(check_precision(dtype)).removeprefix("torch."),
            "backend": self.backend if backend is None else check_backend(backend),
        }
        if all(getattr(self, name) == value for name, value in changes.items()):
            return self
        changed = replace(self, **changes)
        _ = changed._jets  # what does not work fails here, not amid dynamics
        return changed

    def for_atoms(self, numbers: ArrayLike) -> "ForceField":
        """The same force field for other atoms, where it is a sum over atoms (`ManyBody`, `PowerSpectrum`).

        Its region are then the smallest distances of each pair of elements in training.
        Energies are absolute for a multiple of the training composition, else relative. Uncertainty is not known.

        Parameters
        ----------
        numbers : (N',) int array
            Of elements that it was trained on.

        Returns
        -------
        ForceField

        Raises
        ------
        ModelMismatchError
            If it is not a sum over atoms, or does not know an element.
        """
        numbers = np.asarray(numbers, dtype=int)
        if numbers.ndim != 1 or not len(numbers):
            raise ModelMismatchError(
                f"the atomic numbers of atoms are a sequence (N,), not of the shape {numbers.shape}"
            )
        if not (isinstance(self.descriptor, (ManyBody, PowerSpectrum)) and self.descriptor.is_local):
            raise ModelMismatchError(
                f"this force field is for the geometries of {self.formula} as a whole; for other atoms train one with "
                "descriptor=gdml.ManyBody()"
            )
        try:
            descriptor = self.descriptor.for_atoms(numbers)
        except FitError as error:
            raise ModelMismatchError(f"this force field was trained on {self.formula}: {error}") from error
        counts = [np.bincount(z, minlength=120) for z in (numbers, self.numbers)]
        multiple = len(numbers) / len(self.numbers)
        is_multiple = np.array_equal(counts[0], multiple * counts[1]) and not self.energies_are_relative
        return replace(
            self,
            numbers=numbers,
            descriptor=descriptor,
            group=PermutationGroup.trivial(len(numbers)),
            offset=multiple * self.offset if is_multiple else 0.0,
            details=self.details | {"energies": "absolute" if is_multiple else "relative"},
            ranges=ranges_by_element(self.ranges, self.numbers, numbers),
            reference_numbers=self.numbers if self.reference_numbers is None else self.reference_numbers,
            error_model=None,
        )

    @property
    def device(self) -> torch.device:
        """The first of the devices; a single geometry is evaluated there."""
        return torch.device(self.devices[0])

    @property
    def symmetry(self) -> PermutationGroup:
        """The group of permutations of atoms; its size is ``symmetry.order``."""
        return self.group

    @property
    def length_scale(self) -> float:
        return self.kernel.length_scale

    @property
    def formula(self) -> str:
        return Formula.from_list([chemical_symbols[z] for z in self.numbers]).format("hill")

    @property
    def energies_are_relative(self) -> bool:
        """Whether energies are known up to a constant only, for want of energy labels."""
        return self.details.get("energies") == "relative"

    @cached_property
    def _action(self) -> Action | Environments:
        return self.descriptor.summed_over(self.group)

    @cached_property
    def _jets(self):
        y, c, w = (None if v is None else torch.tensor(v, device=self.device) for v in (self.y, self.c, self.w))
        return self._contraction(y, self.backend, check_precision(self.dtype)).bind(c, w)

    @cached_property
    def _curvature(self):
        y, c, w = (None if v is None else torch.tensor(v, device=self.device) for v in (self.y, self.c, self.w))
        return self._contraction(y).bind_curvature(c, w)

    def _contraction(self, y: Tensor, backend: str = "auto", dtype: torch.dtype = torch.float64) -> Contraction:
        queries = None if self.reference_numbers is None else self._action
        return contraction(self.kernel, y, self.reference_action, backend, dtype, queries)

    @property
    def reference_action(self) -> Action | Environments:
        """How the descriptors of the training geometries are compared."""
        if self.reference_numbers is None:
            return self._action
        return self.descriptor.for_atoms(self.reference_numbers).summed_over(self.group)

    @cached_property
    def _copies(self) -> list["ForceField"]:
        """One for each of the devices."""
        return [replace(self, devices=(device,)) if k else self for k, device in enumerate(self.devices)]

    @property
    def is_periodic(self) -> bool:
        return self.pbc is not None

    @property
    def pbc(self) -> tuple[bool, bool, bool] | None:
        """Directions in which the atoms repeat; None for a molecule."""
        return self.descriptor.pbc if any(self.descriptor.pbc) else None

    @property
    def cell(self) -> np.ndarray | None:
        """The cell (3, 3) of the training geometries, Å; None for a molecule."""
        return np.array(self.descriptor.cell) if self.is_periodic else None

    def predict(self, positions: ArrayLike, cell: ArrayLike | None = None, stress: bool = False) -> Prediction:
        """Energy and forces of one geometry or of a batch.

        Parameters
        ----------
        positions : (N, 3) or (M, N, 3) array or tensor, Å
        cell : (3, 3) or (M, 3, 3) array, Å, optional
            Of a periodic system; by default that of the training geometries.
        stress : bool
            Whether stress is wanted, of a system that is periodic in three
            directions.

        Returns
        -------
        Prediction
            Arrays, or tensors on the device of the positions if these are a tensor.

        Raises
        ------
        DataError
            If the shape does not fit, a position is not finite, or two atoms
            coincide; for a cell or stress where nothing is periodic.
        BaselineError, MissingExtraError
            If the baseline fails, is not that of the training, or is not installed.
        """
        given = self._checked(positions, cell, stress)
        batch = given.reshape(-1, *given.shape[-2:])
        cell = None if cell is None else _array(cell)
        found = tuple(part.to(given.device) for part in self._shared_out(batch, cell, stress))
        energy, forces, pressure = self._with_baseline(found, batch, cell, stress)
        if not bool((energy + forces.sum((1, 2))).isfinite().all()):
            raise DataError(self._name_wrong(batch, energy, forces))
        shape = given.shape[:-2]
        pressure = pressure.reshape(*shape, 6) if stress else None
        if isinstance(positions, Tensor):
            return Prediction(energy.reshape(shape), forces.view_as(given), pressure)
        pressure = pressure.numpy() if stress else None
        if given.ndim == 2:
            return Prediction(float(energy), forces[0].numpy(), pressure)
        return Prediction(energy.numpy(), forces.numpy(), pressure)

    def _with_baseline(
        self, found: tuple[Tensor, ...], batch: Tensor, cell: np.ndarray | None, stress: bool
    ) -> tuple[Tensor, ...]:
        """Energies, forces and stress of a batch, with what the baseline adds."""
        energy, forces, pressure = found
        if self.baseline is None or not bool((energy + forces.sum((1, 2))).isfinite().all()):
            return found
        more = self._of_baseline(batch.cpu().numpy(), cell, stress)
        added = energy + energy.new_tensor(more.energy), forces + forces.new_tensor(more.forces)
        return *added, pressure + pressure.new_tensor(more.stress) if stress else pressure

    def _of_baseline(self, positions: np.ndarray, cell: np.ndarray | None, stress: bool = False):
        cell = self.cell if cell is None else cell
        return self.baseline.evaluate(self.numbers, positions, cell, self.pbc or (False,) * 3, stress)

    def _shared_out(self, batch: Tensor, cell: np.ndarray | None, stress: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction for a batch by all devices, each with a part of it."""
        if len(self.devices) == 1 or len(batch) < 2:
            return self._in_turn(batch, cell, stress)
        _ = [one._jets for one in self._copies]  # made here, not by several threads at once
        shares = [some for some in parts(len(batch), len(self.devices)) if some.start < some.stop]

        def predict(one: ForceField, some: slice) -> tuple[Tensor, ...]:
            own = cell if cell is None or cell.ndim == 2 else cell[some]
            return tuple(part.to(batch.device) for part in one._in_turn(batch[some], own, stress))

        with ThreadPoolExecutor(len(shares)) as pool:
            found = list(pool.map(predict, self._copies, shares))
        return tuple(torch.cat(part) for part in zip(*found, strict=True))

    def _in_turn(self, batch: Tensor, cell: np.ndarray | None, stress: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction on the first device, for so many geometries at a time that their descriptors fit."""
        found = {}

        def work(some: slice) -> None:
            own = cell if cell is None or cell.ndim == 2 else cell[some]
            found[some.start] = self._predict(batch[some], own, stress)

        with memory_explained(self.device, "predict on another device, or on the CPU"):
            in_tiles(len(batch), MAX_FRAMES, work)
        if len(found) == 1:
            return found[0]
        return tuple(torch.cat(part) for part in zip(*(found[start] for start in sorted(found)), strict=True))

    def at_descriptors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (M,), eV, and their gradients (M, D) at descriptors (M, D) themselves; without a baseline."""
        e, g = (part.cpu() for part in self._jets(x.to(self.device)))
        return self.offset + e, g

    def hessian(self, positions: ArrayLike, cell: ArrayLike | None = None) -> np.ndarray:
        """Second derivatives of the energy by all positions, as the derivative of the contraction gives them.

        Parameters
        ----------
        positions : (N, 3) array, Å
        cell : (3, 3) array, Å, optional
            Of a periodic system; by default that of the training geometries.

        Returns
        -------
        (3N, 3N) array, eV/Å²
            In the order x, y, z of the first atom, then of the second.

        Raises
        ------
        DataError
            As `predict`.
        """
        n = 3 * len(self.numbers)
        hessian = self.hessian_products(positions, np.eye(n).reshape(n, -1, 3), cell).reshape(n, n)
        return 0.5 * (hessian + hessian.T)

    def hessian_products(self, positions: ArrayLike, vectors: ArrayLike, cell: ArrayLike | None = None) -> np.ndarray:
        r"""Products of the matrix of second derivatives with vectors, without the matrix.

        .. math::

           \frac{\partial^2 E}{\partial R^2} v
           = J^T \frac{\partial^2 e}{\partial x^2} J v + \frac{\partial (J^T g)}{\partial R} v ,

        with g = ∂e/∂x held fixed in the second term. A baseline's part comes from differences
        of its forces.

        Parameters
        ----------
        positions : (N, 3) array, Å
        vectors : (k, N, 3) array
        cell : (3, 3) array, Å, optional

        Returns
        -------
        (k, N, 3) array
            In eV/Å² times the unit of the vectors.

        Raises
        ------
        DataError
            As `predict`, and for vectors of another shape.
        """
        given = self._checked(positions, cell, False)
        vectors = _tensor(vectors).to(self.device)
        if given.ndim != 2 or vectors.ndim != 3 or vectors.shape[1:] != given.shape:
            raise DataError(f"one geometry (N, 3) and vectors (k, N, 3) are needed, not {given.shape}, {vectors.shape}")
        features = self._features(given[None], cell)
        g = self._jets(features.x)[1]
        if features.is_costly:
            jacobian = features.jacobian()[0]
            straight = self._curvature(features.x[0], vectors.flatten(1) @ jacobian.mT) @ jacobian
        else:
            repeated = features.map(lambda part: part.expand(len(vectors), *part.shape[1:]))
            straight = repeated.vjp(self._curvature(features.x[0], repeated.jvp(vectors)))
        products = straight.view_as(vectors) + self._bent(given[None], g, vectors, cell)
        if not bool(products.isfinite().all()):
            raise DataError(self._name_wrong(given[None], features.x.sum(1) * torch.nan, products[:1]))
        products = products.cpu().numpy()
        if self.baseline is not None:
            products += self._baseline_products(given.cpu().numpy(), vectors.cpu().numpy(), cell)
        return products

    def _baseline_products(self, positions: np.ndarray, vectors: np.ndarray, cell: ArrayLike | None) -> np.ndarray:
        """The part of products with the Hessian that is the baseline's, by central differences of its forces."""
        size = np.abs(vectors).max((1, 2), keepdims=True)
        steps = STEP / np.where(size > 0, size, 1.0)
        ends = np.concatenate([positions - steps * vectors, positions + steps * vectors])
        before, after = np.split(self._of_baseline(ends, None if cell is None else _array(cell)).forces, 2)
        return (before - after) / (2 * steps)

    def _bent(self, positions: Tensor, g: Tensor, vectors: Tensor, cell: ArrayLike | None) -> Tensor:
        """The part of products with the Hessian that comes from the descriptor's second derivatives."""
        with torch.enable_grad():
            leaf = positions.to(self.device).requires_grad_()
            x = self.descriptor.evaluate(leaf, **self._cells(cell)).x
            (gradient,) = torch.autograd.grad(x, leaf, g, create_graph=True)
            return torch.autograd.grad(gradient, leaf, vectors[:, None], is_grads_batched=True)[0][:, 0]

    def judged(
        self, positions: ArrayLike, cell: ArrayLike | None = None, stress: bool = False
    ) -> tuple[Prediction, list[Excess]]:
        """The prediction for one geometry, and what of it is outside of the training data, in one go.

        See `predict` and `outside`.
        """
        given = self._checked(positions, cell, stress)[None]
        features = self._features(given, cell, stress)
        found = tuple(part.cpu() for part in self._from_features(features, cell, stress))
        energy, forces, pressure = self._with_baseline(found, given, None if cell is None else _array(cell), stress)
        if not bool((energy + forces.sum()).isfinite()):
            raise DataError(self._name_wrong(given, energy, forces))
        prediction = Prediction(float(energy), forces[0].numpy(), pressure[0].numpy() if stress else None)
        return prediction, self._region.excesses(self._watched(features, given, cell)[0])

    def uncertainty(self, positions: ArrayLike, cell: ArrayLike | None = None) -> Uncertainty:
        """Standard deviations of energies and forces, where `gdml.with_uncertainty` has provided for them.

        Parameters
        ----------
        positions : (N, 3) or (M, N, 3) array, Å
        cell : (3, 3) or (M, 3, 3) array, Å, optional

        Returns
        -------
        Uncertainty

        Raises
        ------
        FitError
            If the force field has no variances.
        DataError
            As `predict`.
        """
        self.check_uncertainty()
        given = self._checked(positions, cell, False)
        cells = None if cell is None else _array(cell)
        batch = given.reshape(-1, *given.shape[-2:]).cpu()
        features = self.descriptor.evaluate(batch, **self._cells(cells))
        energy, forces = (part.numpy() for part in self.error_model.deviations(features))
        if given.ndim == 2:
            return Uncertainty(float(energy[0]), forces.reshape(given.shape))
        return Uncertainty(energy, forces.reshape(given.shape))

    def check_uncertainty(self, wanted: bool = True) -> None:
        """Raise if uncertainty is wanted, and not known.

        Raises
        ------
        FitError
        """
        if wanted and self.error_model is None:
            raise FitError("this force field knows no uncertainty; see gdml.with_uncertainty, gdml train --uncertainty")

    def precision_error(self, positions: ArrayLike, cell: ArrayLike | None = None) -> float:
        """Root mean square difference of the forces to those in double precision, eV/Å.

        Parameters
        ----------
        positions : (M, N, 3) array, Å
            Geometries like those to be predicted; a few are enough.
        cell : (3, 3) or (M, 3, 3) array, Å, optional
        """
        alone = replace(self, baseline=None)
        both = (one.predict(positions, cell).forces for one in (alone, alone.to(dtype="float64")))
        single, double = (torch.as_tensor(forces) for forces in both)
        return float((single - double).square().mean().sqrt())

    def _checked(self, positions: ArrayLike, cell: ArrayLike | None, stress: bool) -> Tensor:
        """Positions as a tensor, if they are what this force field can take."""
        given = _tensor(positions)
        if (cell is not None and not self.is_periodic) or (stress and self.pbc != (True, True, True)):
            raise DataError(f"this force field of {self.formula} is not periodic in the way a cell or stress needs")
        n_atoms = len(self.numbers)
        if given.ndim not in (2, 3) or given.shape[-2:] != (n_atoms, 3):
            raise DataError(
                f"positions must have the shape ({n_atoms}, 3) or (M, {n_atoms}, 3) for {self.formula}, "
                f"not {tuple(given.shape)}"
            )
        n_frames = len(given) if given.ndim == 3 else 1
        if not n_frames:
            raise DataError("there is no geometry to predict for: positions have the shape (0, N, 3)")
        shape = np.shape(cell)
        if cell is not None and shape not in ((3, 3), (n_frames, 3, 3)):
            raise DataError(f"{n_frames} geometries need one cell (3, 3), or ({n_frames}, 3, 3); not {shape}")
        return given

    def _name_wrong(self, batch: Tensor, energy: Tensor, forces: Tensor) -> str:
        """Why the prediction for some geometry of a batch is not finite."""
        if not bool(batch.isfinite().all()):
            return "positions contain NaN or infinite values"
        geometry = int((~(energy + forces.sum((1, 2))).isfinite()).nonzero()[0])
        distances = pair_distances(batch[geometry : geometry + 1].cpu().numpy())[0]
        first, second = (int(i[distances.argmin()]) for i in pair_indices(len(self.numbers)))
        atoms = " and ".join(f"{chemical_symbols[self.numbers[a]]}{a}" for a in (second, first))
        return f"geometry {geometry}: atoms {atoms} are {distances.min():.3g} Å apart, where no force is defined"

    def _predict(self, positions: Tensor, cells: np.ndarray | None, stress: bool) -> tuple[Tensor, Tensor, Tensor]:
        return self._from_features(self._features(positions, cells, stress), cells, stress)

    def _from_features(self, features: Features, cells: ArrayLike | None, stress: bool) -> tuple[Tensor, ...]:
        e, g = self._jets(features.x)
        pressure = e.new_empty(len(e), 0)
        if stress:
            volumes = np.abs(np.linalg.det(self.cell if cells is None else cells))
            pressure = features.strain_vjp(g) / g.new_tensor(volumes).reshape(-1, 1)
        return e + self.offset, features.vjp(-g), pressure

    def _features(self, positions: Tensor, cells: ArrayLike | None = None, strain: bool = False) -> Features:
        strain = {"strain": strain} if self.is_periodic else {}
        return self.descriptor.evaluate(positions.to(self.device), **self._cells(cells), **strain)

    @cached_property
    def _region(self) -> Region:
        if is_of_pairs(self.descriptor):
            return Region(self.descriptor, over_group(self.y, self._action))
        return Region(watched(self.descriptor), self.ranges)

    def _watched(self, features: Features, positions: Tensor, cells: ArrayLike | None) -> np.ndarray:
        """Descriptors (M, D) of the pairs that the region is about."""
        if not is_of_pairs(self.descriptor):
            features = self._region.descriptor.evaluate(positions.to(self.device), **self._cells(cells))
        return features.x.cpu().numpy()

    def _cells(self, cells: ArrayLike | None) -> dict[str, ArrayLike | None]:
        return {"cells": cells} if self.is_periodic else {}

    def outside(self, positions: ArrayLike, cell: ArrayLike | None = None) -> list[Excess]:
        """Pairs of atoms that are far out of the range of the training data.

        The range of each pair, over all training geometries and symmetric
        copies, is widened on both sides (in the descriptor) by half of its width
        or 2 % of its value. What is outside is extrapolated, and not to be trusted.

        Parameters
        ----------
        positions : (N, 3) array, Å
        cell : (3, 3) array, Å, optional

        Returns
        -------
        list of Excess
            Empty where all is well; worst first.
        """
        given = _tensor(positions)[None].to(self.device)
        features = self._region.descriptor.evaluate(given, **self._cells(cell))
        return self._region.excesses(features.x[0].cpu().numpy())

    def farthest_outside(self, positions: Tensor, cells: Tensor | None = None) -> tuple[float, Excess | None]:
        """Of a batch (M, N, 3), the pair of atoms whose distance is farthest out of its range in training, and how far.

        As a multiple of the width of that range (or of 2 % of the distance). Up to half a
        width all counts as inside, and the result is 0.0 and None.
        """
        cells = None if cells is None else cells.cpu().numpy()
        features = self._region.descriptor.evaluate(_tensor(positions).to(self.device), **self._cells(cells))
        return self._region.farthest(features.x.cpu().numpy())

    def check_atoms(self, numbers: ArrayLike) -> None:
        """Raise unless these are the atoms the force field was trained for, in its order.

        Raises
        ------
        ModelMismatchError
        """
        numbers = np.asarray(numbers)
        if np.array_equal(numbers, self.numbers):
            return
        if np.array_equal(np.sort(numbers), np.sort(self.numbers)):
            where = int(np.flatnonzero(numbers != self.numbers)[0])
            raise ModelMismatchError(
                f"the atoms are in another order than in training: index {where} is "
                f"{chemical_symbols[numbers[where]]}, expected {chemical_symbols[self.numbers[where]]} "
                f"(the order is {' '.join(chemical_symbols[z] for z in self.numbers)})"
            )
        found = Formula.from_list([chemical_symbols[z] for z in numbers]).format("hill")
        raise ModelMismatchError(f"this force field is for {self.formula}, the atoms are {found}")

    def save(self, path: str | Path, *, format: str = "gdml") -> None:
        """Write the force field to a ``.npz`` file, without pickled objects in the format "gdml".

        Parameters
        ----------
        path : path
        format : {"gdml", "sgdml"}
            With "sgdml", a model file for version 1.0.3 of the sGDML package.

        Raises
        ------
        OutputError
            If the place cannot be written to.
        ModelMismatchError
            If the sGDML package cannot express this force field.
        """
        if format not in ("gdml", "sgdml"):
            raise DataError(f"the format is 'gdml' or 'sgdml', not {format!r}")
        write_archive(path, self._fields() if format == "gdml" else self._sgdml_fields())

    def _fields(self) -> dict[str, np.ndarray]:
        recipe = {
            "descriptor": self.descriptor.recipe(),
            "kernel": self.kernel.recipe(),
            "details": self.details,
        }
        if self.baseline is not None:
            recipe["baseline"] = self.baseline.recipe()
        if self.error_model is not None:
            recipe["error_model"] = self.error_model.recipe()
        fields = {
            "format": FORMAT,
            "schema": SCHEMA,
            "energy_unit": "eV",
            "length_unit": "Ang",
            "recipe": json.dumps(recipe),
            "numbers": self.numbers,
            **_group_fields(self.group),
            "references": self.y,
            "force_coefficients": self.w,
            "offset": self.offset,
        }
        optional = {"energy_coefficients": self.c, "ranges": self.ranges, "reference_numbers": self.reference_numbers}
        if self.error_model is not None:
            optional |= {f"error_model_{name}": part.cpu() for name, part in self.error_model.arrays().items()}
        fields |= {name: value for name, value in optional.items() if value is not None}
        return {name: np.asarray(value) for name, value in fields.items()}

    def _sgdml_fields(self) -> dict[str, np.ndarray]:
        if self.baseline is not None:
            raise ModelMismatchError(f"the sGDML package knows no baseline, and this force field has {self.baseline}")
        if self.kernel.name != "matern52" or self.descriptor != InverseDistances(len(self.numbers)):
            raise ModelMismatchError(
                "the sGDML package knows the Matérn-5/2 kernel and inverse distances with power 1 only, this force "
                f"field has {self.kernel.name} and {self.descriptor.name}; train with descriptor='inverse-distances'"
            )
        return to_sgdml(self.numbers, self.group, self.length_scale, self.y, self.c, self.w, self.offset, self.details)

    def __repr__(self) -> str:
        return (
            f"ForceField({self.formula}, {len(self.y)} training geometries, "
            f"symmetry {self.group.summary}, length_scale={self.length_scale:g})"
        )


def _tensor(positions: ArrayLike) -> Tensor:
    """Positions as a tensor in double precision, without a graph; arrays are copied, tensors are not."""
    if isinstance(positions, Tensor):
        return positions.detach().to(torch.float64)
    return torch.tensor(np.asarray(positions, dtype=float))


def _array(cell: ArrayLike | Tensor) -> np.ndarray:
    return np.asarray(cell.detach().cpu() if isinstance(cell, Tensor) else cell, dtype=float)


def _group_fields(group: PermutationGroup) -> dict[str, object]:
    if not isinstance(group, CrystalGroup):
        return {"permutations": group.permutations}
    translations, cosets = group.split()
    return {
        "translations": translations,
        "cosets": cosets,
        "spacegroup": group.spacegroup,
        "symprec": group.symprec,
    }
