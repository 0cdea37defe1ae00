"""Model files of the sGDML package, all generations, to and from this package's terms.

Versions differ in names (2018: ``Rt_desc`` for ``R_desc``), in units (2018 and 0.2:
kcal/mol and Å without saying so), and in counting permutations from 1 (2018). Their
coefficients are already those of this package: with d = x - y, e = Σ 𝒟k w · d.
"""

import warnings
from typing import Any

import numpy as np

from .errors import DataWarning, FormatError
from .geometry import pair_permutation
from .npz import Archive
from .symmetry import PermutationGroup
from .units import energy_factor, length_factor


def is_sgdml_model(archive: Archive) -> bool:
    """Whether an archive is a model of the sGDML package."""
    return archive.text("type") == "m" or "Rt_desc" in archive


def from_sgdml(archive: Archive) -> dict[str, Any]:
    """What a ForceField is made of, from a model file of the sGDML package.

    Returns
    -------
    dict
        numbers (N,), group, length_scale (1/Å), y (n, D), c (n,) or None,
        w (n, D), offset, details; in eV and Å.

    Raises
    ------
    FormatError
        For a file with fields missing, or of a periodic system, which needs
        another descriptor.
    """
    if "lattice" in archive:
        raise FormatError(f"{archive.path}: a model with a lattice; periodic models cannot be read yet")
    first_generation = "Rt_desc" in archive
    energy = energy_factor(archive.text("e_unit", "kcal/mol"))
    length = length_factor(archive.text("r_unit", "Ang"))
    std = float(archive["std"]) if "std" in archive else 1.0
    if first_generation:
        y, w = archive["Rt_desc"].T, archive["Rt_d_desc_alpha"][..., 0]
    else:
        y, w = archive["R_desc"].T, archive["R_d_desc_alpha"]
    permutations = archive["perms"].astype(np.int64) - (1 if first_generation else 0)
    coefficients = archive.get("alphas_E")
    return {
        "numbers": archive["z"].astype(np.int64),
        "group": PermutationGroup(permutations),
        "length_scale": float(archive["sig"]) / length,
        "y": y / length,
        "c": None if coefficients is None else std * energy * coefficients.reshape(-1),
        "w": std * energy * w / length,
        "offset": float(archive["c"]) * energy,
        "details": {
            "name": archive.text("dataset", None) or archive.text("dataset_name", ""),
            "imported_from": f"sGDML {archive.text('code_version', '2018')}",
            "noise": float(archive["lam"]) if "lam" in archive else None,
            "energies": "absolute" if bool(archive.get("use_E", True)) else "relative",
        },
    }


def to_sgdml(
    numbers: np.ndarray,
    group: PermutationGroup,
    length_scale: float,
    y: np.ndarray,
    c: np.ndarray | None,
    w: np.ndarray,
    offset: float,
    details: dict[str, Any],
) -> dict[str, np.ndarray]:
    """Fields of a model file that version 1.0.3 of the sGDML package can load, in eV and Å.

    Its command line and its torch mode want an integer for the length scale; its
    predictor in NumPy takes any. The two records of errors are pickled
    dictionaries, as that package wants them.
    """
    if not float(length_scale).is_integer():
        warnings.warn(
            f"sGDML's command line fails on the length scale {length_scale:g}, which is no integer, and its torch mode "
            "cuts it to one and predicts something else; its predictor in NumPy is right",
            DataWarning,
            stacklevel=3,
        )
    size = y.shape[1]
    pairs = np.array([pair_permutation(p) for p in group.permutations])
    n_train = len(y)
    unknown = {"mae": np.nan, "rmse": np.nan}
    fields = {
        "type": "m",
        "code_version": "1.0.3",
        "dataset_name": details.get("name") or "unnamed",
        "dataset_theory": "unknown",
        "solver_name": "analytic",
        "z": numbers.astype(np.uint8),
        "idxs_train": np.arange(n_train),
        "md5_train": b"0" * 32,
        "idxs_valid": np.arange(0),
        "md5_valid": b"0" * 32,
        "n_test": 0,
        "md5_test": b"0" * 32,
        "f_err": unknown,
        "e_err": unknown,
        "R_desc": y.T,
        "R_d_desc_alpha": w,
        "c": offset,
        "std": 1.0,
        "sig": int(length_scale) if float(length_scale).is_integer() else length_scale,
        "lam": details.get("noise") or 0.0,
        "perms": group.permutations,
        "tril_perms_lin": (pairs + size * np.arange(group.order)[:, None]).flatten("F"),
        "use_E": details.get("energies") == "absolute",
        "r_unit": "Ang",
        "e_unit": "eV",
    }
    if c is not None:
        fields["alphas_E"] = c
    return {name: np.asarray(value) for name, value in fields.items()}
