"""Reading and writing ``.npz`` archives without ever unpickling anything."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import DataError, FormatError, OutputError


class Archive(dict):
    """The plain arrays of an archive, and the names of the fields that are pickled.

    Asking for a field that is not there says which file lacks it.
    """

    def __init__(self, path: Path, fields: dict, pickled: frozenset[str]):
        super().__init__(fields)
        self.path = path
        self.pickled = pickled

    def __missing__(self, name: str):
        if name in self.pickled:
            raise FormatError(
                f"{self.path}: field {name!r} is a pickled object, which could run any code on "
                "loading and is refused; store it as a plain array"
            )
        raise FormatError(f"{self.path}: there is no field {name!r}; the file has {', '.join(sorted(self)) or 'none'}")

    def text(self, name: str, default: str | None = None) -> str | None:
        """A scalar field as text, or `default` where the field is absent."""
        if name not in self:
            return default
        value = self[name].item()
        return value.decode() if isinstance(value, bytes) else str(value)


def read_archive(path: str | Path) -> Archive:
    """All plain fields of a ``.npz`` file.

    Raises
    ------
    FormatError
        For a file that is no archive, or is cut short.
    """
    path = Path(path)
    fields, pickled = {}, set()
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise FormatError(f"{path}: this is a single array, not an .npz archive")
        with archive:
            for name in archive.files:
                if _is_pickled(archive, name):
                    pickled.add(name)
                else:
                    fields[name] = archive[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, (FileNotFoundError, FormatError)):
            raise
        raise FormatError(
            f"{path}: not a readable .npz archive; it is cut short, or another kind of file ({error})"
        ) from error
    return Archive(path, fields, frozenset(pickled))


def refuse_another(path: str | Path, known: dict[str, str], own: dict[str, str], what: str) -> None:
    """Raise where a file was written with other settings than those of today, both in words.

    Raises
    ------
    DataError
        That says in what they differ.
    """
    different = [key for key in sorted({*known, *own}) if known.get(key) != own.get(key)]
    if different:
        listed = ", ".join(f"{key} ({known.get(key)} there, {own.get(key)} here)" for key in different)
        raise DataError(f"{path}: {what}; it differs in {listed}")


def _is_pickled(archive: np.lib.npyio.NpzFile, name: str) -> bool:
    """Whether a member holds Python objects, judged by its header alone."""
    with archive.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        return read_header is not None and read_header(member)[2].hasobject


def check_writable(path: str | Path, suffix: str = "") -> Path:
    """The path, if a file can be written there; to be asked before the work.

    Raises
    ------
    OutputError
        If the folder is missing, or not writable, or the path is a folder or
        does not end in `suffix`.
    """
    path = Path(path)
    if not path.name.endswith(suffix):
        raise OutputError(f"{path}: the name must end in {suffix}")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder; give the name of a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise OutputError(f"{path}: no permission to write there; choose another place")
    return path


def write_archive(path: str | Path, fields: dict[str, np.ndarray]) -> None:
    """Write arrays to a ``.npz`` file; at no moment is there half a file."""
    with whole_file(check_writable(path, ".npz")) as partial:
        np.savez_compressed(partial, **fields)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; the file appears under its own once it is complete.

    Raises
    ------
    OutputError
        If writing fails; the old file, if there was one, is as it was.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: writing failed ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
