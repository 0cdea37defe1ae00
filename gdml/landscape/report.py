"""What was found, as a table and as geometries."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ..io import write_frames
from ..npz import check_writable, whole_file
from .points import UNKNOWN, Landscape, Point

MEV = 1e3


class Row(NamedTuple):
    """A point as a line of the table; what is not known is NaN, or an empty text.

    Attributes
    ----------
    name : str
    energy : float
        Over the lowest minimum without a mark.
    zero_point : float
        Energy of the vibrations that do not lead down.
    softest : float
        Lowest frequency; imaginary ones are negative.
    count : int
    energy_deviation, forces_deviation : float
        Uncertainty, of forces the root mean square.
    ends, barriers : str
        Of a saddle point, the minima that it leads down to, and its heights over them.
    mark : str
    """

    name: str
    energy: float
    zero_point: float
    softest: float
    count: int
    energy_deviation: float
    forces_deviation: float
    ends: str
    barriers: str
    mark: str


UNITS = Row("", "meV", "meV", "1/cm", "", "meV", "meV/Ang", "", "meV", "")
HEADS = Row("", "energy", "zero point", "softest", "count", "± energy", "± forces", "between", "barriers", "")


def table(landscape: Landscape) -> list[Row]:
    """Minima, then saddle points."""
    lowest = landscape.minima[0].energy if landscape.minima else math.nan
    return [_row(p, lowest, landscape.barriers(p)) for p in (*landscape.minima, *landscape.saddles)]


def _row(point: Point, lowest: float, barriers: tuple[float, ...]) -> Row:
    known, frequencies = point.uncertainty, point.modes.frequencies
    return Row(
        name=point.name,
        energy=MEV * (point.energy - lowest),
        zero_point=MEV * point.modes.zero_point,
        softest=float(frequencies[0]) if len(frequencies) else math.nan,
        count=point.count,
        energy_deviation=math.nan if known is None else MEV * float(known.energy),
        forces_deviation=MEV * point.deviation,
        ends=" ".join(point.ends or ()),
        barriers=" ".join(UNKNOWN if math.isnan(height) else f"{MEV * height:.1f}" for height in barriers),
        mark=point.mark,
    )


def as_text(landscape: Landscape) -> str:
    """The table, and how many relaxations there were."""
    rows = [[_cell(value) for value in row] for row in table(landscape)]
    columns = [column for column in zip(HEADS, UNITS, *rows) if any(column[2:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [" ".join(cell.rjust(w) for cell, w in zip(line, widths)).rstrip() for line in zip(*columns)]
    n_lost = len(landscape.unconverged.positions)
    marked = f", {landscape.n_marked} of them marked" if landscape.n_marked else ""
    lost = f"; {n_lost} did not converge" if n_lost else ""
    lines.append(f"{len(landscape.starts)} relaxations, {len(landscape.minima)} distinct minima{marked}{lost}")
    if landscape.n_searches:
        found = f"{len(landscape.saddles)} distinct saddle points"
        lost = f"; {landscape.n_lost} came to none" if landscape.n_lost else ""
        lines.append(f"{landscape.n_searches} searches, {found}{lost}")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.1f}"
    return str(value)


def write_csv(landscape: Landscape, path: str | Path) -> None:
    """The table with commas, under a line of names with units.

    Raises
    ------
    OutputError
    """
    names = [f"{name} ({unit})" if unit else name for name, unit in zip(Row._fields, UNITS, strict=True)]
    rows = [["" if value != value else value for value in row] for row in table(landscape)]
    with whole_file(check_writable(path)) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def as_atoms(points: list[Point]) -> list[Atoms]:
    """Geometries with energy and forces; name, count, frequencies (cm⁻¹), mark and ends in ``info``."""
    return [_labelled(point) for point in points]


def _labelled(point: Point) -> Atoms:
    atoms = point.atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, **point.atoms.calc.results)
    atoms.info |= {"name": point.name, "count": point.count, "frequencies": point.modes.frequencies}
    if point.uncertainty is not None:
        atoms.info["energy_deviation"] = float(point.uncertainty.energy)
        atoms.arrays["forces_deviation"] = point.uncertainty.forces
    texts = {"mark": point.mark, "ends": " ".join(point.ends or ())}
    atoms.info |= {name: text for name, text in texts.items() if text}
    return atoms


def write_points(points: list[Point], path: str | Path) -> None:
    """Extended XYZ of minima or saddle points.

    Raises
    ------
    OutputError
    """
    write_frames(as_atoms(points), path)


def write_unconverged(landscape: Landscape, path: str | Path) -> None:
    """Extended XYZ of where relaxations were that did not converge, with the largest force in ``info``."""
    (template, *_) = landscape.starts[0].to_atoms()
    frames = []
    for positions, largest in zip(*landscape.unconverged, strict=True):
        frames.append(Atoms(template.numbers, positions, cell=template.cell, pbc=template.pbc))
        frames[-1].info["largest_force"] = float(largest)
    write_frames(frames, path)
