"""Geometries and labels from and to files: everything ASE reads, and the sGDML format.

Here a set of geometries is a plain dict with the fields of a `Dataset`, in eV
and Å; `gdml.dataset` makes the checked object of it.
"""

import hashlib
import warnings
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import filetype, open_with_compression

from .errors import DataError, DataWarning, FormatError, OutputError, name_frames
from .npz import Archive, check_writable, read_archive, whole_file, write_archive
from .units import energy_factor, length_factor

Fields = dict[str, np.ndarray]

# Endings of files in which ASE keeps all labels, and what may follow them.
LOSSLESS = (".extxyz", ".xyz", ".traj", ".db", ".json")
COMPRESSED = (".gz", ".bz2", ".xz")


def read_fields(
    source: str | Path | Atoms | Sequence[Atoms],
    index: str | int | slice,
    keys: dict[str, str | None],
    energy_unit: str | None,
    length_unit: str | None,
) -> Fields:
    """The fields of a Dataset from a file or from Atoms; see `gdml.read`."""
    if isinstance(source, (str, Path)) and Path(source).suffix == ".npz":
        path = _existing(source)
        return _from_archive(read_archive(path), energy_unit, length_unit, index)
    frames, name = read_frames(source, index)
    return _from_atoms(frames, keys, name, energy_unit or "eV", length_unit or "Ang")


def read_frames(
    source: str | Path | Atoms | Sequence[Atoms], index: str | int | slice = ":"
) -> tuple[list[Atoms], str]:
    """Atoms, with all that ASE reads of a file, and what to call them."""
    if isinstance(source, (str, Path)):
        path = _existing(source)
        frames, name = _read_ase(path, index), path.name.split(".")[0]
    else:
        frames, name = ([source] if isinstance(source, Atoms) else list(source)), ""
    if not frames:
        raise DataError(f"{name or 'the list of Atoms'} holds no geometry")
    return frames, name


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    return path


def read_structure(path: str | Path, index: int) -> Atoms:
    """One geometry of a file of any format."""
    path = Path(path)
    if path.suffix == ".npz":
        return to_atoms(read_fields(path, index, {}, None, None))[0]
    return _read_ase(_existing(path), index)[0]


def write_fields(fields: Fields, path: str | Path) -> None:
    """Write ``.npz`` in the sGDML format, else by ASE from the suffix.

    Raises
    ------
    OutputError
        If the place cannot be written to, or ASE knows no such format.
    """
    path = check_writable(path)
    if path.suffix == ".npz":
        return write_archive(path, _to_archive(fields))
    if not path.name.removesuffix(path.suffix if path.suffix in COMPRESSED else "").endswith(LOSSLESS):
        raise OutputError(
            f"{path}: energies and forces are kept by files that end in {', '.join(LOSSLESS)} or .npz; use one"
        )
    with whole_file(path) as partial:
        ase.io.write(partial, to_atoms(fields))
    return None


def write_frames(frames: list[Atoms], path: str | Path) -> None:
    """Extended XYZ of geometries as they are, in whole or not at all.

    Raises
    ------
    OutputError
        If the place cannot be written to.
    """
    with whole_file(check_writable(path)) as partial:
        ase.io.write(partial, frames, format="extxyz")


def to_atoms(fields: Fields) -> list[Atoms]:
    """The geometries as ASE Atoms, labels in a SinglePointCalculator."""
    result = []
    cell = fields.get("cell")
    for frame, positions in enumerate(fields["positions"]):
        own_cell = cell[frame] if cell is not None and cell.ndim == 3 else cell
        atoms = Atoms(fields["numbers"], positions, cell=own_cell, pbc=fields["pbc"])
        labels = {k: fields[k][frame] for k in ("energy", "forces", "stress") if k in fields}
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        result.append(atoms)
    return result


def _read_ase(path: Path, index: str | int | slice) -> list[Atoms]:
    try:
        if path.suffix in COMPRESSED and filetype(str(path)) == "extxyz":
            # Decompressed whole: the reader goes back again and again, each time from the start.
            with open_with_compression(str(path)) as file:
                frames = ase.io.read(StringIO(file.read()), index=index, format="extxyz")
        else:
            frames = ase.io.read(path, index=index)
    except (IndexError, StopIteration) as error:
        raise DataError(f"{path}: there is no frame {index}") from error
    except Exception as error:  # each of ASE's readers fails in its own way
        raise FormatError(f"{path}: ASE could not read this file ({type(error).__name__}: {error})") from error
    return [frames] if isinstance(frames, Atoms) else frames


def _from_atoms(
    frames: list[Atoms], keys: dict[str, str | None], name: str, energy_unit: str, length_unit: str
) -> Fields:
    first = frames[0]
    for number, atoms in enumerate(frames):
        _check_same_atoms(first, atoms, number)
        _check_calculator(atoms, number)
    energy, length = energy_factor(energy_unit), length_factor(length_unit)
    factors = {"energy": energy, "forces": energy / length, "stress": energy / length**3}
    labels = {field: _labels(frames, field, key) for field, key in keys.items()}
    cells = np.array([atoms.cell.array for atoms in frames]) * length
    fields = {
        "positions": np.array([atoms.positions for atoms in frames]) * length,
        "numbers": first.numbers,
        "pbc": tuple(first.pbc),
        "name": name,
    }
    if first.pbc.any():
        fields["cell"] = cells[0] if np.allclose(cells, cells[0]) else cells
    return fields | {field: v * factors[field] for field, v in labels.items() if v is not None}


def _check_same_atoms(first: Atoms, atoms: Atoms, number: int) -> None:
    if not np.array_equal(first.numbers, atoms.numbers):
        found, expected = atoms.get_chemical_formula(), first.get_chemical_formula()
        if found == expected:
            where = int(np.flatnonzero(first.numbers != atoms.numbers)[0])
            raise DataError(
                f"frame {number} has its atoms in another order than frame 0 (first at index {where}); "
                "bring all frames into one order"
            )
        raise DataError(f"frame {number} is {found}, frame 0 is {expected}; use one dataset for each molecule")
    if not np.array_equal(first.pbc, atoms.pbc):
        raise DataError(f"frame {number} has pbc={atoms.pbc.tolist()}, frame 0 has {first.pbc.tolist()}")


def _check_calculator(atoms: Atoms, number: int) -> None:
    """Raise if a calculator's results are of other positions, as one's that several Atoms share."""
    if atoms.calc is not None and getattr(atoms.calc, "results", None) and atoms.calc.check_state(atoms):
        raise DataError(
            f"the calculator of frame {number} holds results of other positions than the frame's; compute it again "
            "and keep the results, with a SinglePointCalculator for each frame"
        )


def _labels(frames: list[Atoms], field: str, key: str | None) -> np.ndarray | None:
    """The labels of one kind, of all frames or (None) of no frame."""
    candidates = (key,) if key else (field, f"REF_{field}")
    found = {c: [_label(atoms, c) for atoms in frames] for c in candidates}
    found = {c: values for c, values in found.items() if any(v is not None for v in values)}
    if not found:
        if key:
            known = sorted({k for atoms in frames for k in (*atoms.info, *atoms.arrays)})
            raise DataError(f"no frame has {key!r}; the frames have {', '.join(known)}")
        return None
    if len(found) > 1:
        raise DataError(f"the frames have both {' and '.join(found)}; say which with {field}_key")
    (name, values), *_ = found.items()
    missing = [i for i, v in enumerate(values) if v is None]
    if missing:
        raise DataError(
            f"{name} is missing in {name_frames(missing)} but present in {len(frames) - len(missing)} others; "
            "label all frames or leave these out"
        )
    shapes = {np.shape(v) for v in values}
    if len(shapes) > 1:
        raise DataError(f"{name} has different shapes in different frames: {sorted(shapes)}")
    result = np.array(values, dtype=float)
    return result.reshape(len(frames)) if field == "energy" else _voigt(result, field)


def _label(atoms: Atoms, key: str) -> np.ndarray | None:
    """A label from where ASE keeps it: the calculator, info or arrays."""
    results = getattr(atoms.calc, "results", {}) if atoms.calc is not None else {}
    for place in (results, atoms.info, atoms.arrays):
        if place.get(key) is not None:
            return place[key]
    return None


def _voigt(values: np.ndarray, field: str) -> np.ndarray:
    """Stress as (M, 6) also where a file has 3×3 matrices; forces as they are."""
    if field != "stress" or values.shape[1:] == (6,):
        return values
    if values.shape[1:] not in ((9,), (3, 3)):
        raise DataError(f"stress has the shape {values.shape[1:]} in a frame; it must have 6 numbers, or 3 x 3")
    matrices = values.reshape(-1, 3, 3)
    return matrices[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _from_archive(
    archive: Archive, energy_unit: str | None, length_unit: str | None, index: str | int | slice
) -> Fields:
    """A dataset of the sGDML format; its units are kcal/mol and Å where it says nothing."""
    if archive.text("type", "d") != "d":
        raise FormatError(f"{archive.path}: this is no dataset but a file of type {archive.text('type')!r}")
    positions, forces, numbers = archive["R"], archive["F"], archive["z"]
    lengths = {name: len(archive[name]) for name in ("R", "F", "E") if name in archive}
    if len(set(lengths.values())) > 1:
        raise FormatError(f"{archive.path}: the fields have different numbers of frames: {lengths}")
    if not {"r_unit", "e_unit"} <= archive.keys() and not (energy_unit and length_unit):
        warnings.warn(
            f"{archive.path} does not say its units; taken as kcal/mol and Å, as this format's "
            "older files are (energy_unit and length_unit override)",
            DataWarning,
            stacklevel=3,
        )
    energy = energy_factor(energy_unit or archive.text("e_unit", "kcal/mol"))
    length = length_factor(length_unit or archive.text("r_unit", "Ang"))
    frames = ase.io.formats.string2index(index) if isinstance(index, str) else index
    try:
        chosen = np.atleast_1d(np.arange(len(positions))[frames])
    except IndexError as error:
        raise DataError(f"{archive.path}: there is no frame {index}, but {len(positions)} in all") from error
    fields = {
        "positions": positions[chosen] * length,
        "numbers": numbers,
        "forces": forces[chosen] * (energy / length),
        "pbc": "lattice" in archive,
        "name": archive.text("name", archive.path.stem),
    }
    if "E" in archive:
        fields["energy"] = archive["E"].reshape(-1)[chosen] * energy
    if "lattice" in archive:
        fields["cell"] = archive["lattice"].T * length  # the format has its vectors as columns
    return fields


def _to_archive(given: Fields) -> Fields:
    """Fields of the sGDML package's dataset format, version 1.0.3, in eV and Å."""
    if "forces" not in given:
        raise DataError("the sGDML format needs forces, and there are none")
    if any(given["pbc"]) != all(given["pbc"]) or "stress" in given:
        what = "stress" if "stress" in given else f"pbc={list(given['pbc'])}"
        raise DataError(f"the sGDML format has no room for {what}; write .extxyz instead")
    fields = {
        "type": "d",
        "code_version": "1.0.3",
        "name": given["name"] or "unnamed",
        "theory": "unknown",
        "z": given["numbers"].astype(np.uint8),
        "R": given["positions"],
        "F": given["forces"],
        "r_unit": "Ang",
        "e_unit": "eV",
    }
    if "energy" in given:
        fields["E"] = given["energy"]
    if "cell" in given and all(given["pbc"]):
        if given["cell"].ndim == 3:
            raise DataError("the sGDML format has one cell for all frames; these have several")
        fields["lattice"] = given["cell"].T
    for key in ("E", "F"):
        if key in fields:
            values = fields[key]
            fields |= {
                f"{key}_min": values.min(),
                f"{key}_max": values.max(),
                f"{key}_mean": values.mean(),
                f"{key}_var": values.var(),
            }
    fields["md5"] = sgdml_md5(fields)
    return {key: np.asarray(value) for key, value in fields.items()}


def sgdml_md5(fields: Fields) -> bytes:
    """Fingerprint by which the sGDML package knows a dataset."""
    total = hashlib.md5(usedforsecurity=False)
    for key in ("z", "R", "E", "F"):
        if key in fields:
            data = np.ascontiguousarray(fields[key]).tobytes()
            total.update(hashlib.md5(data, usedforsecurity=False).digest())
    return total.hexdigest().encode()
