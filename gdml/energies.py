"""Do the energies belong to the forces? And the constant that forces leave open."""

import warnings

import numpy as np

from .dataset import Dataset
from .errors import DataError, DataWarning, EnergyWarning, name_frames

# Ratios that a mistake in the units of energies or forces gives.
MISTAKES = {
    23.06: "kcal/mol against eV",
    27.21: "Hartree against eV",
    96.49: "kJ/mol against eV",
    13.61: "Rydberg against eV",
    51.42: "Hartree/Bohr against eV/Å",
    25.71: "Rydberg/Bohr against eV/Å",
    1.890: "Bohr against Å",
    4.184: "kcal against kJ",
    627.5: "kcal/mol against Hartree",
    1000.0: "eV against meV",
}
TOLERANCE = 0.15  # in the logarithm of such a ratio
OUTLIER = 20.0  # times the typical disagreement


def compare_units(integrated: np.ndarray, reference: np.ndarray) -> None:
    """Raise if energies are in another unit than the forces, or of the other sign.

    Only ratios that a mistake in the units explains are refused; others can
    come from too few geometries, and are left to `constant_of_energy`.

    Parameters
    ----------
    integrated : (M,) array
        Energies that the forces imply, up to a constant.
    reference : (M,) array

    Raises
    ------
    DataError
    """
    if not integrated.std() > 0:
        return
    correlation = float(np.corrcoef(integrated, reference)[0, 1])
    if correlation < -0.9:
        raise DataError("energies rise where the forces say they fall; are these gradients instead of forces?")
    if correlation < 0.95:
        return
    ratio = float(reference.std() / integrated.std())
    off = {factor: abs(abs(np.log(ratio)) - np.log(factor)) for factor in MISTAKES}
    factor = min(off, key=off.get)
    if off[factor] < TOLERANCE:
        raise DataError(
            f"energies vary {ratio:.3g} times as much as the forces imply, as if units were mixed up "
            f"({MISTAKES[factor]}: {factor:g}); give energy_unit or length_unit on reading, or leave the energies out"
        )


def constant_of_energy(integrated: np.ndarray, dataset: Dataset) -> float:
    """The constant of the energy: the mean difference, without outliers.

    Parameters
    ----------
    integrated : (M,) array
        Energies that the forces imply, up to a constant, eV.
    dataset : Dataset
        With energies.

    Returns
    -------
    float, eV

    Warns
    -----
    EnergyWarning
        If energies disagree with the integrated forces on the whole.
    DataWarning
        If those of a few frames do.
    """
    difference = dataset.energy - integrated
    error = np.abs(difference - np.median(difference))
    typical = max(float(np.median(error)), 1e-3)
    outliers = error > OUTLIER * typical
    constant = float(difference[~outliers].mean())
    spread = float(dataset.energy[~outliers].std())
    if len(dataset) >= 5 and np.abs(difference[~outliers] - constant).mean() > 0.25 * spread > 0:
        worst = dataset.frame_numbers[np.argsort(-error)[:5]]
        warnings.warn(
            f"energies disagree with the integrated forces by {1e3 * error.mean():.3g} meV on average, where they vary "
            f"by {1e3 * spread:.3g} meV; worst in {name_frames(worst)}. With few geometries this is normal, and "
            "use_energy helps; otherwise see whether energies and forces are of the same, converged calculation",
            EnergyWarning,
            stacklevel=4,
        )
    elif outliers.any():
        warnings.warn(
            f"the energies of {name_frames(dataset.frame_numbers[outliers])} are off the integrated forces by more "
            f"than {OUTLIER:g} times the typical {1e3 * typical:.3g} meV, and were not used; "
            "look at these calculations",
            DataWarning,
            stacklevel=4,
        )
    return constant
