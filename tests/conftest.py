"""Fixtures: the package's own ethanol, and the reference data where they are."""

import json
import os
from pathlib import Path

import ase.io
import numpy as np
import pytest

import gdml
from gdml.data import ethanol

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("GDML_DATA", HERE.parent.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def reference():
    return json.loads((HERE / "reference.json").read_text())


@pytest.fixture(scope="session")
def frames() -> gdml.Dataset:
    """Ethanol, 240 geometries with energies and forces."""
    return ethanol()


@pytest.fixture(scope="session")
def force_field(frames) -> gdml.ForceField:
    """Trained on 60 geometries; good enough for everything but accuracy."""
    return gdml.fit(frames[:60], length_scale=20.0)


@pytest.fixture(scope="session")
def molecules() -> dict[str, gdml.Dataset]:
    """Minima of common molecules, by name."""
    return {atoms.info["name"]: gdml.read(atoms) for atoms in ase.io.read(HERE / "molecules.extxyz", ":")}


@pytest.fixture(scope="session")
def shared():
    """A callable from a path in the reference data to the whole path; skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"reference data {path} are absent; set GDML_DATA to their folder")
        return path

    return find


@pytest.fixture
def rng():
    return np.random.default_rng(7)
