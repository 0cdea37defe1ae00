"""Draw the pictures of the documentation from the results.

python benchmarks/figures.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"


def scaling(result: dict) -> plt.Figure:
    """Time and memory against the number of geometries."""
    cases = result["scaling"]
    figure, axes = plt.subplots(2, len(cases), figsize=(8, 6), sharex="col", layout="constrained")
    for column, (name, runs) in zip(axes.T, cases.items()):
        for kind, label in (("cg", "CG"), ("cholesky", "closed form"), ("sgdml", "sGDML 1.0.3")):
            done = [r for r in runs if "seconds" in r.get(kind, {})]
            for axis, quantity in zip(column, ("seconds", "peak_GB")):
                axis.loglog([r["n_train"] for r in done], [r[kind][quantity] for r in done], "o-", label=label)
        column[0].set_title(name)
        column[1].set_xlabel("training geometries")
    axes[0, 0].set_ylabel("training time (s)")
    axes[1, 0].set_ylabel("memory (GB)")
    axes[0, 0].legend()
    return figure


def superlinear(result: dict) -> plt.Figure:
    """Iterations against the rank of the preconditioner."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for colour, (name, case) in zip(("C0", "C1", "C2"), result["decay"].items()):
        share = [100 * k / case["unknowns"] for k in case["ranks"]]
        for neighbours, style in (("None", "o--"), ("4", "o-")):
            label = name + (", multiple of the identity" if neighbours == "None" else ", 4 neighbours")
            axis.loglog(share, case["iterations"][neighbours], style, color=colour, label=label)
    axis.loglog([3, 30], [1000, 100], "k:", label="in proportion to 1/k")
    axis.set_xlabel("rank k (% of the unknowns)")
    axis.set_ylabel("iterations to a residual of 1e-4")
    axis.legend(fontsize="small")
    return figure


def learning_curves(result: dict) -> plt.Figure:
    """Force errors against the number of geometries, beside BIGDML's descriptor."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for k, (name, case) in enumerate(result["accuracy"].items()):
        n_train = [run["n_train"] for run in case["runs"]]
        for kind, style in (("default", "o-"), ("bigdml", "s--")):
            errors = [run[kind]["force_mae_meV_per_A"] for run in case["runs"]]
            axis.loglog(n_train, errors, style, color=f"C{k}", label=name if kind == "default" else None)
    axis.set_xlabel("training geometries")
    axis.set_ylabel("force MAE (meV/Å)")
    axis.set_title("default (circles), nearest images with 1/r (squares)", fontsize="medium")
    axis.set_xticks([6, 10, 20, 60], ["6", "10", "20", "60"])
    axis.set_xticks([], minor=True)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def translations(result: dict) -> plt.Figure:
    """Time of a sum over the group against the number of translations."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind, label in (("written_out_ms", "written out"), ("fourier_ms", "in Fourier space")):
        rows = [row for row in result["translations"] if kind in row]
        axis.loglog([r["order"] * r["entries"] for r in rows], [r[kind] for r in rows], "o", label=label)
    for row in result["translations"]:
        place = row["order"] * row["entries"], row["fourier_ms"]
        axis.annotate(str(row["translations"]), place, xytext=(4, -10), textcoords="offset points", fontsize="small")
    axis.set_xlabel("order of the group times entries of the descriptor")
    axis.set_ylabel("time of one prediction (ms)")
    axis.set_title("numbers: translations", fontsize="medium")
    axis.legend()
    return figure


def radial_distribution(result: dict) -> plt.Figure:
    """Of runs with a thermostat, and of the reference frames."""
    cases = result["dynamics"]
    figure, axes = plt.subplots(1, len(cases), figsize=(8, 3.5), layout="constrained")
    for axis, (name, case) in zip(axes, cases.items()):
        for key, label in (("structure", "dynamics"), ("structure_of_reference_frames", "reference frames")):
            axis.plot(case[key]["r_A"], case[key]["rdf"], label=label)
        axis.set_title(f"{name}, {case['langevin']['temperature_K']:.0f} K")
        axis.set_xlabel("r (Å)")
    axes[0].set_ylabel("g(r)")
    axes[0].legend()
    return figure


def beads(result: dict) -> plt.Figure:
    """Cost of a step, and of its forces, against the number of beads."""
    rows = result["beads"]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for key, label in (("step_ms", "a step"), ("forces_ms", "of it, forces")):
        axis.loglog([r["n_beads"] for r in rows], [r[key] for r in rows], "o-", label=label)
    one = rows[0]["step_ms"]
    axis.loglog([1, 128], [one, 128 * one], "k:", label="in proportion to the beads")
    axis.set(xlabel="beads", ylabel="time (ms)", ylim=(0.2, 30))
    axis.legend()
    return figure


def bond_lengths(result: dict) -> plt.Figure:
    """Of quantum and classical nuclei."""
    cases = {name: case for name, case in result["ethanol"].items() if name.endswith("beads")}
    edges = result["ethanol"]["edges_A"]
    middle = [0.5 * (a + b) for a, b in zip(edges, edges[1:])]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, case), style in zip(cases.items(), ("--", "-")):
        for bond, colour in (("O-H", "C3"), ("C-H", "C0")):
            axis.plot(middle, case[bond], style, color=colour, label=f"{bond}, {name.replace('1 beads', 'classical')}")
    axis.set(xlabel="length (Å)", ylabel="density (1/Å)")
    axis.legend()
    return figure


def free_energies(result: dict) -> plt.Figure:
    """Over the two dihedral angles of alanine dipeptide: of the frames, and of dynamics with beads."""
    n, cases = list(result["free_energy"].items())[-1]
    case = cases["bonds, angles"]
    counts = {"10,000 reference frames": result["reference"]["counts"]}
    counts |= {f"{way}, {n} frames": case[way]["counts"] for way in ("one fit", "ensemble")}
    figure, axes = plt.subplots(1, len(counts), figsize=(9, 3.2), layout="constrained", sharey=True)
    for axis, (title, found) in zip(axes, counts.items()):
        found = np.array(found, dtype=float)
        values = -np.log(np.where(found > 0, found, np.nan) / found.max())
        edges = np.linspace(-180, 180, len(found) + 1)
        picture = axis.pcolormesh(edges, edges, values.T, vmin=0, vmax=7, cmap="viridis", rasterized=True)
        axis.set(title=title, xlabel="φ (°)", xticks=(-180, -90, 0, 90, 180), yticks=(-180, -90, 0, 90, 180))
    axes[0].set_ylabel("ψ (°)")
    figure.colorbar(picture, ax=list(axes), label="free energy (kT)")
    return figure


# Each picture, and the result that it is of.
PICTURES = {
    "cg_scaling": (scaling, "cg"),
    "cg_superlinear": (superlinear, "cg"),
    "crystals_learning_curves": (learning_curves, "crystals"),
    "crystals_translations": (translations, "crystals"),
    "crystals_rdf": (radial_distribution, "crystals"),
    "path_integrals_beads": (beads, "path_integrals"),
    "coarse_free_energy": (free_energies, "coarse"),
    "path_integrals_bonds": (bond_lengths, "path_integrals"),
}


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "gdml"  # the same file for the same result
    FIGURES.mkdir(exist_ok=True)
    for name, (draw, result) in PICTURES.items():
        figure = draw(json.loads((HERE / "results" / f"{result}.json").read_text()))
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
