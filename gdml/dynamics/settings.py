"""Settings of path-integral dynamics: do they make sense, and what are they in words?"""

import hashlib
import operator

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCom

from ..errors import DataError
from .normal_modes import PROPAGATORS
from .thermostats import THERMOSTATS


def name_of(source: object) -> str:
    """What gives the forces, for the settings of a run."""
    if hasattr(source, "w"):
        precision = "" if source.dtype == "float64" else f"{source.dtype} "
        return f"{source!r} {precision}{hashlib.sha256(source.w.tobytes()).hexdigest()[:16]}"
    return type(source).__name__


def natural(n_beads: int) -> int:
    """The number of beads, if it is one."""
    try:
        number = operator.index(n_beads)
    except TypeError as error:
        raise DataError(f"n_beads must be a whole number, but it is {n_beads!r}") from error
    if number < 1:
        raise DataError(f"n_beads must be at least 1, but it is {number}")
    return number


def check_names(thermostat: str, propagator: str) -> None:
    """Raise unless there are such."""
    if thermostat not in THERMOSTATS:
        raise DataError(f"the thermostat is one of {', '.join(THERMOSTATS)}, not {thermostat!r}")
    if propagator not in PROPAGATORS:
        raise DataError(f"the propagator is one of {', '.join(PROPAGATORS)}, not {propagator!r}")


def check_replicas(replicas: list[Atoms], pressure: float | None) -> None:
    """Raise unless all replicas are of one kind, and can be run."""
    if not replicas or not len(replicas[0]):
        raise DataError("there are no atoms to run")
    if len({id(atoms) for atoms in replicas}) < len(replicas):
        raise DataError("the same atoms are given twice; make copies of them for replicas")
    if pressure is not None and not (np.isfinite(pressure) and all(a.pbc.all() for a in replicas)):
        raise DataError("a pressure must be finite, and needs atoms that are periodic in three directions")
    for k, atoms in enumerate(replicas):
        if not np.array_equal(atoms.numbers, replicas[0].numbers) or (atoms.pbc != replicas[0].pbc).any():
            raise DataError(f"replica {k} is {atoms.symbols} with pbc={atoms.pbc.tolist()}, unlike replica 0")
        if not np.array_equal(atoms.get_masses(), replicas[0].get_masses()):
            raise DataError(f"replica {k} has other masses than replica 0; run them apart")
        for constraint in atoms.constraints:
            if type(constraint) not in (FixCom, FixAtoms):  # nor their subclasses, which do other things
                raise DataError(f"of constraints, FixCom and FixAtoms make sense for beads, not {constraint!r}")
        if [c.todict() for c in atoms.constraints] != [c.todict() for c in replicas[0].constraints]:
            raise DataError(f"replica {k} has other constraints than replica 0")
