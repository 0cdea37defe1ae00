"""Every error and warning that this package raises on purpose.

Messages say what was found, where, and what to do. Each error class carries
the exit code with which the command line ends on it.
"""

from collections.abc import Sequence

INTERRUPTED = 130  # the exit code that a shell expects of a program that Ctrl-C ended


class GDMLError(Exception):
    """Base class of all errors of this package."""

    exit_code = 1


class DataError(GDMLError, ValueError):
    """Reference data that cannot be used as they are."""

    exit_code = 3


class FormatError(DataError):
    """A file that is truncated, of a foreign format, or holds pickled objects."""


class SymmetryError(GDMLError, ValueError):
    """Permutations that form no group, or a group that does not fit the atoms."""

    exit_code = 3


class ModelMismatchError(GDMLError, ValueError):
    """A force field applied to atoms that it was not trained for."""

    exit_code = 3


class BaselineError(GDMLError, RuntimeError):
    """A baseline that is unknown, fails on a geometry, or is not the one of the training."""

    exit_code = 3


class FitError(GDMLError, RuntimeError):
    """A training system that cannot be solved."""

    exit_code = 4


class NotPositiveDefiniteError(FitError):
    """A kernel matrix whose Cholesky factorisation breaks down."""


class MemoryBudgetError(FitError, MemoryError):
    """A job that would need more memory than there is; found before it starts."""


class DeviceError(GDMLError, RuntimeError):
    """A device, a precision or a way to compute that is not there."""

    exit_code = 4


class ProcessError(FitError):
    """Several processes of one training that cannot work together, or of which one has stopped."""


class ConvergenceError(GDMLError, RuntimeError):
    """Iterations that ended without a result."""

    exit_code = 4


class DynamicsError(GDMLError, RuntimeError):
    """Molecular dynamics that left every meaningful region."""

    exit_code = 4


class OutputError(GDMLError, OSError):
    """A place that cannot be written to; found before the work, not after."""

    exit_code = 5


class MissingExtraError(GDMLError, ImportError):
    """An optional dependency that is not installed."""

    exit_code = 6

    def __init__(self, package: str, purpose: str, extra: str):
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'gdml[{extra}]'")
        self.given = package, purpose, extra

    def __reduce__(self):  # as other processes get it
        return type(self), self.given


class GDMLWarning(UserWarning):
    """Base class of all warnings of this package."""


class DataWarning(GDMLWarning):
    """Reference data that were accepted under an assumption that may be wrong."""


class EnergyWarning(GDMLWarning):
    """Energies that do not agree with the integrated forces."""


class BaselineWarning(GDMLWarning):
    """A baseline that does not help."""


class CheckpointWarning(GDMLWarning):
    """A checkpoint that could not be written; the training goes on without."""


class DynamicsWarning(GDMLWarning):
    """Dynamics with settings that may not give what they should."""


class ExtrapolationWarning(GDMLWarning):
    """A geometry outside the region of the training data."""


def name_frames(frames: Sequence[int], most: int = 5) -> str:
    """'frame 3', or 'frames 1, 2, 7 and 12 more', for messages."""
    shown = ", ".join(str(int(f)) for f in frames[:most])
    rest = f" and {len(frames) - most} more" if len(frames) > most else ""
    return f"frame{'s' if len(frames) > 1 else ''} {shown}{rest}"
