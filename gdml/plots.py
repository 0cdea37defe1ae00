"""Pictures: predicted against reference values, and error against training size."""

from pathlib import Path

import numpy as np

from .dataset import Dataset
from .errors import MissingExtraError, OutputError
from .force_field import Prediction
from .metrics import Metrics, compare
from .npz import check_writable


def plot_parity(prediction: Prediction, dataset: Dataset, path: str | Path) -> None:
    """Predicted against reference forces (and energies, where there are any).

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    OutputError
        If the file cannot be written, or matplotlib knows no such format.
    """
    metrics = compare(prediction, dataset)
    panels = [("forces", "eV/Å", dataset.forces, prediction.forces, metrics.forces_mae)]
    if dataset.energy is not None:
        mean = dataset.energy.mean()
        panels.append(("energy - mean", "eV", dataset.energy - mean, prediction.energy - mean, metrics.energy_mae))
    figure, axes = _figure(len(panels))
    for axis, (name, unit, reference, predicted, mae) in zip(axes, panels, strict=True):
        axis.plot(np.ravel(reference), np.ravel(predicted), ".", ms=2, alpha=0.4, rasterized=True)
        ends = [np.min(reference), np.max(reference)]
        axis.plot(ends, ends, "k-", lw=0.8)
        axis.set(xlabel=f"reference {name} ({unit})", ylabel=f"predicted {name} ({unit})")
        axis.set_title(f"MAE {1e3 * mae:.3g} m{unit}")
    _save(figure, path)


def plot_learning_curve(sizes: list[int], metrics: list[Metrics], path: str | Path) -> None:
    """Error of forces (and energies) against the number of training geometries, on logarithmic axes.

    Raises
    ------
    MissingExtraError, OutputError
        As `plot_parity`.
    """
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
    _save(figure, path)


def require_matplotlib() -> None:
    """Raise unless pictures can be drawn; to be asked before the work.

    Raises
    ------
    MissingExtraError
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "drawing pictures", "plot") from error


def _figure(n_panels: int):
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * n_panels, 4.0), layout="constrained")
    return figure, figure.subplots(1, n_panels, squeeze=False)[0]


def _save(figure, path: str | Path) -> None:
    path = check_writable(path)
    try:
        figure.savefig(path, dpi=160)
    except ValueError as error:
        raise OutputError(f"{path}: {error}") from error
