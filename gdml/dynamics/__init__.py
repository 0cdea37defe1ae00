"""Molecular dynamics with a force field: classical, and with quantum nuclei."""

from .averages import Average, block_average
from .classical import MDReport, run_md
from .estimators import Record, write_table
from .overdamped import OverdampedLangevin
from .path_integrals import run_pimd
from .restarts import BeadWriter, Restart, read_state
from .ring_polymer import RingPolymerMD

__all__ = [
    "Average",
    "BeadWriter",
    "MDReport",
    "OverdampedLangevin",
    "Record",
    "Restart",
    "RingPolymerMD",
    "block_average",
    "read_state",
    "run_md",
    "run_pimd",
    "write_table",
]
