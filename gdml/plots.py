"""Pictures: predicted against reference values, error against training size, path integrals, free energies, minima."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import natural_cutoffs, neighbor_list

from .attribution import Contributions
from .coarse.free_energy import FreeEnergy
from .dataset import Dataset
from .dynamics.estimators import EDGES, Record
from .errors import DataError, MissingExtraError, OutputError
from .force_field import ForceField, Prediction
from .landscape import Landscape, Point
from .metric import Metric
from .metrics import Metrics, compare, predict
from .npz import check_writable
from .uncertainty import coverage


def plot_parity(prediction: Prediction, dataset: Dataset, path: str | Path, *, relative: bool = False) -> None:
    """Predicted against reference forces and energies, as far as there are any.

    Parameters
    ----------
    prediction : Prediction
        For the geometries of the dataset.
    dataset : Dataset
    path : path
        Its ending chooses the format.
    relative : bool
        Whether the energies are known up to a constant only.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    OutputError
        If the file cannot be written, or matplotlib knows no such format.
    """
    path = check_picture(path)
    metrics = compare(prediction, dataset, relative)
    panels = []
    if dataset.forces is not None:
        panels.append(("forces", "eV/Å", dataset.forces, prediction.forces, metrics.forces_mae))
    if dataset.energy is not None:
        mean = dataset.energy.mean()
        shift = prediction.energy.mean() if relative else mean
        energies = dataset.energy - mean, prediction.energy - shift
        panels.append(("energy - mean", "eV", *energies, metrics.energy_mae))
    figure, axes = _figure(len(panels))
    for axis, (name, unit, reference, predicted, mae) in zip(axes, panels, strict=True):
        axis.plot(np.ravel(reference), np.ravel(predicted), ".", ms=2, alpha=0.4, rasterized=True)
        ends = [np.min(reference), np.max(reference)]
        axis.plot(ends, ends, "k-", lw=0.8)
        axis.set(xlabel=f"reference {name} ({unit})", ylabel=f"predicted {name} ({unit})")
        axis.set_title(f"MAE {1e3 * mae:.3g} m{unit}")
    figure.savefig(path, dpi=160)


def plot_reliability(force_field: ForceField, dataset: Dataset, path: str | Path) -> None:
    """How many errors of forces are within intervals that should hold so many, and errors against deviations.

    Parameters
    ----------
    force_field : ForceField
        With uncertainty.
    dataset : Dataset
        Geometries with forces that it was not trained on.
    path : path

    Raises
    ------
    FitError
        If it knows no uncertainty.
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    levels = np.linspace(0.05, 0.95, 19)
    found = coverage(force_field, dataset, levels)
    deviations = force_field.uncertainty(dataset.positions, dataset.periodic_cell).forces
    errors = np.abs(predict(force_field, dataset).forces - dataset.forces)
    figure, (left, right) = _figure(2)
    left.plot([0, 1], [0, 1], "k-", lw=0.8)
    left.plot(levels, found, "o-", ms=3)
    left.set(xlabel="expected fraction of errors", ylabel="found fraction", xlim=(0, 1), ylim=(0, 1))
    each = [np.sqrt((part**2).mean((1, 2))) for part in (deviations, errors)]
    right.loglog(*each, ".", ms=4, alpha=0.6)
    ends = [min(map(np.min, each)), max(map(np.max, each))]
    right.plot(ends, ends, "k-", lw=0.8)
    right.set(xlabel="standard deviation of forces (eV/Å)", ylabel="error of forces (eV/Å)")
    figure.savefig(path, dpi=160)


def plot_metric(metric: Metric, path: str | Path) -> None:
    """The weights of a learned metric, and the error that they lowered step by step.

    Raises
    ------
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    figure, (weights, history) = _figure(2)
    names = list(metric.weights)
    weights.barh(range(len(names)), list(metric.weights.values()), height=0.7)
    weights.set_yticks(range(len(names)), names, fontsize=max(3, min(8, 160 // max(1, len(names)))))
    weights.axvline(1.0, color="k", lw=0.8)
    weights.set(xscale="log", xlabel="weight over that of the grid")
    weights.invert_yaxis()
    history.plot(np.exp(metric.history), ".-")
    history.set(yscale="log", xlabel="step", ylabel="leave-one-out error² (eV²/Å²)")
    errors = ", ".join(f"{name} {1e3 * error:.3g}" for name, error in metric.errors.items())
    history.set_title(f"held-out RMSE: {errors} meV/Å", fontsize=9)
    figure.savefig(path, dpi=160)


def plot_learning_curve(sizes: list[int], metrics: list[Metrics], path: str | Path) -> None:
    """Error of forces (and energies) against the number of training geometries, on logarithmic axes.

    Raises
    ------
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    kinds = [("forces_mae", "force MAE (meV/Å)"), ("energy_mae", "energy MAE (meV)")]
    kinds = [(key, label) for key, label in kinds if getattr(metrics[0], key) is not None]
    figure, axes = _figure(len(kinds))
    for axis, (key, label) in zip(axes, kinds, strict=True):
        axis.loglog(sizes, [1e3 * getattr(m, key) for m in metrics], "o-")
        axis.set(xlabel="training geometries", ylabel=label)
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=160)


def plot_free_energy(free_energies: Mapping[str, FreeEnergy], path: str | Path, *, names=("φ", "ψ"), most=8.0) -> None:
    """Free energies over one or two dihedral angles, beside each other, in kT.

    Over one angle, with their standard errors.

    Parameters
    ----------
    free_energies : dict of FreeEnergy
        By their titles; all over as many angles.
    path : path
    names : two str
        Of the angles.
    most : float
        The end of the scale, kT.

    Raises
    ------
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    is_plane = next(iter(free_energies.values())).values.ndim == 2
    figure, axes = _figure(len(free_energies) if is_plane else 1)
    for k, (title, found) in enumerate(free_energies.items()):
        edges = np.degrees(found.edges)
        if is_plane:
            axis, values = axes[k], np.where(np.isfinite(found.values), found.values, np.nan)
            picture = axis.pcolormesh(edges, edges, values.T, vmin=0.0, vmax=most, cmap="viridis", rasterized=True)
            axis.set(xlabel=f"{names[0]} (°)", ylabel=f"{names[1]} (°)", title=title, aspect="equal")
        else:
            middle = 0.5 * (edges[1:] + edges[:-1])
            axes[0].errorbar(middle, found.values, found.errors, label=title, capsize=2)
    if is_plane:
        figure.colorbar(picture, ax=list(axes), label="free energy (kT)")
    else:
        axes[0].set(xlabel=f"{names[0]} (°)", ylabel="free energy (kT)", ylim=(None, most))
        axes[0].legend()
    figure.savefig(path, dpi=160)


def plot_beads(record: Record, path: str | Path) -> None:
    """Running averages of path-integral dynamics, and how far beads are from their centroid, by element.

    Raises
    ------
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    figure, (energies, spread) = _figure(2)
    time = record.series("time")[:, 0] / 1000
    for name, label in (("kinetic_cv", "kinetic, centroid virial"), ("kinetic_td", "kinetic, primitive")):
        energies.plot(time, _running_mean(record.series(name)), label=label)
    potential = _running_mean(record.series("potential"))
    energies.plot(time, potential - potential[-1] + _running_mean(record.series("kinetic_cv"))[-1], label="potential")
    energies.set(xlabel="time (ps)", ylabel="running mean (eV; potential shifted)")
    energies.legend(fontsize="small")
    middle = 0.5 * (EDGES[1:] + EDGES[:-1])
    for element, counts in zip(record.elements, record.counts, strict=True):
        spread.plot(middle, counts / max(counts.sum(), 1) / np.diff(EDGES), label=element)
    spread.set(xlabel="distance of a bead from its centroid (Å)", ylabel="density (1/Å)")
    spread.legend(fontsize="small")
    figure.savefig(path, dpi=160)


def _running_mean(series: np.ndarray) -> np.ndarray:
    return np.cumsum(series.mean(1)) / np.arange(1, len(series) + 1)


def plot_contributions(found: Contributions, frames: list[Atoms], path: str | Path) -> None:
    """The first geometry, its atoms coloured by what they contribute, and contributions of pairs against distance.

    Parameters
    ----------
    found : Contributions
        Of all geometries.
    frames : list of ase.Atoms
    path : path

    Raises
    ------
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, (picture, far) = _figure(2)
    most = 1e3 * np.abs(found.atoms[0]).max() or 1.0
    scale = ScalarMappable(Normalize(-most, most), colormaps["coolwarm"])
    one = frames[0]
    _draw(one, scale.to_rgba(1e3 * found.atoms[0]), picture)
    figure.colorbar(scale, ax=picture, label="contribution (meV)", shrink=0.7)
    symbols = np.array(one.get_chemical_symbols())
    kinds = np.array(["-".join(sorted(pair)) for pair in zip(symbols[found.first], symbols[found.second])])
    sizes = 1e3 * np.sqrt((found.pairs**2).mean(0))
    for kind in sorted(set(kinds)):
        far.semilogy(found.distances.mean(0)[kinds == kind], sizes[kinds == kind], ".", label=kind)
    far.set(xlabel="mean distance of the pair (Å)", ylabel="RMS contribution of the pair (meV)")
    far.legend(fontsize=7)
    figure.savefig(path, dpi=160)


DRAWN, NAMED = 6, 12  # minima whose atoms are drawn, of molecules, and levels that have their names


def plot_landscape(found: Landscape, path: str | Path) -> None:
    """Minima and saddle points as levels of energy, the lowest minima of a molecule drawn below.

    Saddle points of which no end is known are left out.

    Parameters
    ----------
    found : Landscape
        With one minimum at least; marked ones are red.
    path : path

    Raises
    ------
    DataError
        If there is no minimum.
    MissingExtraError, OutputError
        As `plot_parity`.
    """
    path = check_picture(path)
    if not found.minima:
        raise DataError("there is no minimum to draw: no relaxation has converged")
    from matplotlib.figure import Figure

    drawn = [] if found.minima[0].atoms.pbc.any() else found.minima[:DRAWN]
    figure = Figure(figsize=(max(4.2, 1.7 * len(drawn)), 5.5 if drawn else 3.7), layout="constrained")
    levels, *pictures = figure.subfigures(1 + bool(drawn), 1, squeeze=False, height_ratios=(2, 1)[: 1 + bool(drawn)])[
        :, 0
    ]
    _draw_levels(found, levels.subplots())
    for point, axis in zip(drawn, pictures[0].subplots(1, len(drawn), squeeze=False)[0] if drawn else ()):
        _draw(point.atoms, [jmol_colors[z] for z in point.atoms.numbers], axis)
        axis.set_title(f"{point.name}, {point.count}", fontsize=9)
    figure.savefig(path, dpi=160)


def _draw_levels(found: Landscape, axis) -> None:
    """Levels of minima from left to right, and of saddle points between those that they connect."""
    lowest, places = found.minima[0].energy, {p.name: float(k) for k, p in enumerate(found.minima)}

    def level(point: Point, x: float, colour: str) -> float:
        y = 1e3 * (point.energy - lowest)
        axis.plot([x - 0.2, x + 0.2], [y, y], color="tab:red" if point.mark else colour, lw=2.5)
        if int(point.name[1:]) <= NAMED:
            axis.annotate(f"{point.name}  {y:.0f}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        return y

    heights = {point.name: level(point, places[point.name], "k") for point in found.minima}
    for saddle in found.saddles:
        ends = [name for name in saddle.ends if name in places]
        if not ends:
            continue
        x = np.mean([places[name] for name in ends]) if len(ends) == 2 else places[ends[0]]
        y = level(saddle, x, "tab:blue")
        for name in set(ends):
            side = 0.2 * np.sign(places[name] - x)
            axis.plot([x + side, places[name] - side], [y, heights[name]], ":", color="0.5", lw=1)
    axis.set(ylabel="energy (meV)", xticks=[])
    axis.margins(0.1, 0.12)


def _draw(atoms: Atoms, colours: Sequence, axis) -> None:
    """Atoms with their symbols and bonds, seen from where they are widest."""
    centred = atoms.positions - atoms.positions.mean(0)
    x, y, height = np.linalg.svd(centred)[2] @ centred.T
    for i, j, image in zip(*neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=1.15))):
        if i < j and not image.any():
            axis.plot(x[[i, j]], y[[i, j]], "-", color="0.6", lw=2, zorder=-100)
    for k, symbol in enumerate(atoms.get_chemical_symbols()):
        size = 900 * covalent_radii[atoms.numbers[k]] ** 1.5
        axis.scatter(x[k], y[k], size, color=colours[k], edgecolors="k", lw=0.8, zorder=height[k], clip_on=False)
        axis.text(x[k], y[k], symbol, ha="center", va="center", fontsize=8, zorder=height[k])
    axis.set_aspect("equal")
    axis.margins(0.15)
    axis.set_axis_off()


def check_picture(path: str | Path) -> Path:
    """The path, if a picture can be drawn and written there; to be asked before the work.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    OutputError
        If the place cannot be written to, or the ending is of no picture.
    """
    try:
        import matplotlib  # noqa: F401
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingExtraError("matplotlib", "drawing pictures", "plot") from error
    path = check_writable(path)
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise OutputError(f"{path}: no format of pictures; the name may end in .png, .pdf or .svg")
    return path


def _figure(n_panels: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * n_panels, 4.0), layout="constrained")
    return figure, figure.subplots(1, n_panels, squeeze=False)[0]
