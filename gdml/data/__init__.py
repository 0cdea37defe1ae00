"""Reference data that come with the package, computed by benchmarks/make_demo_data.py."""

from pathlib import Path

from ..dataset import Dataset, read

ETHANOL = Path(__file__).with_name("ethanol.extxyz.xz")


def ethanol() -> Dataset:
    """240 geometries of ethanol at 500 K with PBE/def2-SVP energies and forces."""
    return read(ETHANOL)
