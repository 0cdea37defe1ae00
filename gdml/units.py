"""Names of units and their factors to eV and Å, the only units used inside."""

from ase import units

from .errors import DataError

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
}
LENGTH = {"Ang": 1.0, "Bohr": units.Bohr, "nm": 10.0}

_SYNONYMS = {
    "ev": "eV",
    "mev": "meV",
    "kcal/mol": "kcal/mol",
    "kcal mol-1": "kcal/mol",
    "kj/mol": "kJ/mol",
    "kj mol-1": "kJ/mol",
    "hartree": "Hartree",
    "ha": "Hartree",
    "eh": "Hartree",
    "au": "Hartree",
    "rydberg": "Rydberg",
    "ry": "Rydberg",
    "ang": "Ang",
    "angstrom": "Ang",
    "å": "Ang",
    "a": "Ang",
    "bohr": "Bohr",
    "a0": "Bohr",
    "nm": "nm",
}


def energy_factor(name: str) -> float:
    """Value in eV of one unit of energy called `name`."""
    return _factor(name, ENERGY, "energy")


def length_factor(name: str) -> float:
    """Value in Å of one unit of length called `name`."""
    return _factor(name, LENGTH, "length")


def _factor(name: str, table: dict[str, float], kind: str) -> float:
    canonical = _SYNONYMS.get(name.strip().lower())
    if canonical not in table:
        known = ", ".join(table)
        raise DataError(f"unknown unit of {kind} {name!r}; known units are {known}")
    return table[canonical]
