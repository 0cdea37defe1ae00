"""Reference geometries and their labels, checked once and then frozen."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from . import io
from .errors import DataError, name_frames
from .geometry import pair_distances, pair_indices

# Nuclei closer than this are a mistake in the data, not chemistry (H2: 0.74 Å).
CLOSEST = 0.25


@dataclass(frozen=True, eq=False)
class Dataset:
    """Geometries of the same atoms with energies, forces or both.

    Parameters
    ----------
    positions : (M, N, 3) array, Å
    numbers : (N,) int array
        Atomic numbers, in the same order in all geometries.
    energy : (M,) array, eV, optional
    forces : (M, N, 3) array, eV/Å, optional
    stress : (M, 6) array, eV/Å³, optional
        In ASE's Voigt order and sign.
    cell : (3, 3) or (M, 3, 3) array, Å, optional
    pbc : bool or three
        Directions in which the geometries repeat.
    name : str
        What messages and model files call these data.
    frame_numbers : (M,) int array, optional
        What messages call the frames: their places in the file or list that
        they came from, also after a choice of some of them.

    Raises
    ------
    DataError
        For shapes that do not fit, values that are not finite, or nuclei that
        coincide; the message names the frame and the atoms.
    """

    positions: np.ndarray
    numbers: np.ndarray
    energy: np.ndarray | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    cell: np.ndarray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    name: str = ""
    frame_numbers: np.ndarray | None = None

    def __post_init__(self):
        positions = np.asarray(self.positions, dtype=float)
        if positions.ndim != 3 or positions.shape[2] != 3:
            raise DataError(f"positions must have the shape (frames, atoms, 3), not {positions.shape}")
        n_frames, n_atoms = positions.shape[:2]
        frame_numbers = np.arange(n_frames) if self.frame_numbers is None else np.asarray(self.frame_numbers)
        object.__setattr__(self, "frame_numbers", _frozen(frame_numbers))
        if n_frames == 0:
            raise DataError("a dataset needs at least one geometry, and there is none")
        shapes = {
            "positions": (n_frames, n_atoms, 3),
            "energy": (n_frames,),
            "forces": (n_frames, n_atoms, 3),
            "stress": (n_frames, 6),
        }
        for field, shape in shapes.items():
            self._freeze(field, shape)
        object.__setattr__(self, "numbers", _frozen(_atomic_numbers(self.numbers)))
        object.__setattr__(self, "pbc", tuple(bool(p) for p in np.broadcast_to(self.pbc, 3)))
        if self.numbers.shape != (n_atoms,):
            raise DataError(f"{n_atoms} atoms have positions but {self.numbers.size} have numbers")
        if self.cell is not None:
            cell = np.asarray(self.cell, dtype=float)
            self._freeze("cell", (3, 3) if cell.ndim == 2 else (n_frames, 3, 3))
        self._check_coincident()

    def _freeze(self, field: str, shape: tuple[int, ...]) -> None:
        if getattr(self, field) is None:
            return
        values = np.asarray(getattr(self, field), dtype=float)
        if values.shape != shape:
            raise DataError(f"{field} must have the shape {shape}, not {values.shape}")
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            raise DataError(
                f"{field} of {name_frames(self.frame_numbers[~finite])} is NaN or infinite; "
                "remove such frames or compute them again"
            )
        object.__setattr__(self, field, _frozen(values))

    def _check_coincident(self) -> None:
        if any(self.pbc) or self.n_atoms < 2:  # images would have to be looked at, too
            return
        first, second = pair_indices(self.n_atoms)
        for start in range(0, len(self), 1000):
            distances = pair_distances(self.positions[start : start + 1000])
            if distances.min() < CLOSEST:
                frame, pair = np.unravel_index(distances.argmin(), distances.shape)
                atoms = " and ".join(self.label(a) for a in (second[pair], first[pair]))
                where = name_frames(self.frame_numbers[[start + frame]])
                raise DataError(f"{where}: atoms {atoms} are {distances.min():.3g} Å apart; are the positions in Å?")

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int | slice | ArrayLike) -> "Dataset":
        """A Dataset of the chosen frames."""
        frames = np.arange(len(self))[index]
        frames = np.atleast_1d(frames)
        chosen = {
            field: getattr(self, field)[frames]
            for field in ("positions", "energy", "forces", "stress", "frame_numbers")
            if getattr(self, field) is not None
        }
        if self.cell is not None and self.cell.ndim == 3:
            chosen["cell"] = self.cell[frames]
        return replace(self, **chosen)

    def __repr__(self) -> str:
        labels = [field for field in ("energy", "forces", "stress") if getattr(self, field) is not None]
        return f"Dataset({len(self)} geometries of {self.formula}: {', '.join(labels) or 'no labels'})"

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[1]

    @property
    def periodic_cell(self) -> np.ndarray | None:
        """The cell or cells, Å, if anything is periodic."""
        return self.cell if any(self.pbc) else None

    @property
    def has_stress(self) -> bool:
        """Whether there are labels of stress, and three periodic directions to make sense of them."""
        return self.stress is not None and all(self.pbc) and self.cell is not None

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order."""
        return Atoms(numbers=self.numbers).get_chemical_formula()

    def label(self, atom: int) -> str:
        """An atom as messages name it: its element and its index from zero."""
        return f"{chemical_symbols[self.numbers[atom]]}{atom}"

    @property
    def fingerprint(self) -> str:
        """Hash (SHA-256) of the numbers, positions and labels."""
        digest = hashlib.sha256()
        for field in ("numbers", "positions", "energy", "forces", "stress", "cell"):
            values = getattr(self, field)
            if values is not None:
                digest.update(field.encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def joined(self, other: "Dataset") -> "Dataset":
        """These geometries and then others of the same atoms, with the labels that both have."""
        if not np.array_equal(self.numbers, other.numbers) or self.pbc != other.pbc:
            raise DataError(f"geometries of {other.formula} cannot be joined to those of {self.formula}")
        merged = {}
        for field in ("positions", "energy", "forces", "stress"):
            parts = getattr(self, field), getattr(other, field)
            merged[field] = None if any(part is None for part in parts) else np.concatenate(parts)
        if self.cell is not None:
            shapes = [(len(d), 3, 3) for d in (self, other)]
            merged["cell"] = np.concatenate([np.broadcast_to(d.cell, shape) for d, shape in zip((self, other), shapes)])
        return replace(self, **merged, frame_numbers=None)

    def require_forces(self) -> np.ndarray:
        """The forces.

        Raises
        ------
        DataError
            If there are none.
        """
        if self.forces is None:
            raise DataError(
                f"{self.name or 'the dataset'} has no forces; a gradient-domain force field needs them "
                "(is the key of the forces another one? see forces_key)"
            )
        return self.forces

    def to_atoms(self) -> list[Atoms]:
        """The geometries as ASE Atoms, labels in a SinglePointCalculator."""
        return io.to_atoms(self._fields())

    def write(self, path: str | Path) -> None:
        """Write to a file: ``.npz`` of the sGDML format, else any format of ASE by its suffix.

        Raises
        ------
        OutputError
            If the place cannot be written to, or ASE knows no such format.
        """
        io.write_fields(self._fields(), path)

    def _fields(self) -> io.Fields:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def sample(
        self, n: int, *, seed: int = 0, strata: str | None = "energy", exclude: Sequence[int] = ()
    ) -> np.ndarray:
        """Indices of n frames drawn without replacement, ascending.

        Parameters
        ----------
        n : int
        seed : int
        strata : {"energy", None}
            With "energy", the sample has the distribution of the energies, as
            the literature on these models draws it: frames are sorted by
            energy, cut into n strata of equal size, and one is drawn from each.
            Without energies, the draw is uniform.
        exclude : sequence of int
            Frames not to be drawn.

        Returns
        -------
        (n,) int array
        """
        if strata not in ("energy", None):
            raise DataError(f"strata must be 'energy' or None, not {strata!r}")
        pool = np.setdiff1d(np.arange(len(self)), np.asarray(exclude, dtype=int))
        if not 0 < n <= len(pool):
            taken = f" ({len(self) - len(pool)} of {len(self)} are taken already)" if len(exclude) else ""
            raise DataError(f"{n} frames were asked for, but there are {len(pool)} to draw from{taken}")
        rng = np.random.default_rng(seed)
        if strata is None or self.energy is None:
            return np.sort(rng.choice(pool, n, replace=False))
        ordered = pool[np.argsort(self.energy[pool], kind="stable")]
        return np.sort([rng.choice(stratum) for stratum in np.array_split(ordered, n)])


def read(
    source: str | Path | Atoms | Sequence[Atoms],
    *,
    index: str | int | slice = ":",
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
) -> Dataset:
    """Read reference geometries.

    Parameters
    ----------
    source : path, Atoms or sequence of Atoms
        Extended XYZ (also compressed), ASE trajectory or database, any other
        format of ASE, or a dataset of the sGDML package (``.npz``).
    index : str, int or slice
        Which frames of a file, as in `ase.io.read`.
    energy_key, forces_key, stress_key : str, optional
        Where the labels are. By default ``energy``, else ``REF_energy``, and
        so on. A label may sit in the calculator or in ``info`` and ``arrays``.
    energy_unit, length_unit : str, optional
        Units of the labels and positions, such as "kcal/mol" and "Bohr". By
        default eV and Å, or for ``.npz`` what the file says.

    Returns
    -------
    Dataset
        In eV and Å.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        For a file that cannot be read.
    DataError
        For frames that do not belong together, or labels that only some have.
    """
    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    return Dataset(**io.read_fields(source, index, keys, energy_unit, length_unit))


def read_structure(path: str | Path, index: int = 0) -> Atoms:
    """One geometry of a file, without labels or a calculator.

    Raises
    ------
    FileNotFoundError, FormatError
        As `read`.
    DataError
        If there is no such frame.
    """
    atoms = io.read_structure(path, index)
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _atomic_numbers(numbers: ArrayLike) -> np.ndarray:
    result = np.asarray(numbers)
    if result.dtype.kind not in "iu" or (result.size and not 1 <= result.min() <= result.max() < len(chemical_symbols)):
        raise DataError(f"numbers must be atomic numbers such as 1, 6, 8, not {result.ravel()[:5].tolist()}")
    return result.astype(np.int64)


def _frozen(values: np.ndarray) -> np.ndarray:
    values = np.array(values)
    values.setflags(write=False)
    return values
