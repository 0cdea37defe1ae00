"""Write the tables of the README and the documentation from the results.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    python benchmarks/tables.py
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGES = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def against_sgdml(result: dict) -> list[list[str]]:
    rows = [["", "sGDML", "gdml", "faster"]]
    for name, case in result["cases"].items():
        theirs, ours, faster = case["sgdml"], case["gdml"], case["faster"]
        batch = min(theirs["batch_numpy_ms"], theirs["batch_torch_ms"])
        label = f"{name} (order {case['symmetry_order']})"
        rows += [
            [f"{label}: training", f"{theirs['train_s']:.1f} s", f"{ours['train_s']:.2f} s", _times(faster["train"])],
            ["prediction in a batch, each", f"{batch:.2f} ms", f"{ours['batch_ms']:.3f} ms", _times(faster["batch"])],
            [
                "one by one",
                f"{theirs['single_ms']:.2f} ms",
                f"{ours['single_ms']:.2f} ms",
                _times(faster["single"]),
            ],
            [
                "one by one, through ASE (sGDML: without)",
                f"{theirs['single_ms']:.2f} ms",
                f"{ours['ase_call_ms']:.2f} ms",
                _times(faster["ase_call_against_its_predict"]),
            ],
            ["largest difference of a force", "", f"{case['largest_force_difference_eV_per_A']:.0e} eV/Å", ""],
        ]
    return rows


def symmetry_choice(result: dict) -> list[list[str]]:
    rows = [["Molecule", "n", "Permutations", "Order", "Force MAE (meV/Å)", "Training (s)", "Prediction (ms)"]]
    for name, case in result["cases"].items():
        for kind, run in case["groups"].items():
            rows.append(
                [
                    name,
                    str(case["n_train"]),
                    kind,
                    str(run["order"]),
                    f"{run['force_mae_meV_per_A']:.1f}",
                    f"{run['train_s']:.2f}",
                    f"{run['batch_ms']:.3f}",
                ]
            )
    return rows


def dynamics(result: dict) -> list[list[str]]:
    rows = [["Run", "Steps", "Temperature (K)", "Drift of the total energy (meV/atom/ps)", "Steps/s"]]
    for name, run in result["runs"].items():
        drift = "(thermostat)" if name.startswith("langevin") else f"{1e3 * run['energy_drift']:.1e}"
        rows.append(
            [
                name.replace("_", " "),
                str(run["steps"]),
                f"{run['temperature_K']:.0f} ± {run['temperature_std_K']:.0f}",
                drift,
                f"{run['steps_per_s']:.0f}",
            ]
        )
    return rows


def cg_training(result: dict) -> list[list[str]]:
    rows = [["Molecule", "n", "Solver", "Time (s)", "Memory (GB)", "Iterations", "Force MAE (meV/Å)"]]
    for name, case in result["training"].items():
        for kind in ("auto", "cg", "cholesky"):
            run = case[kind]
            solver = run["solver"]
            label = f"auto: {solver['name']}" if kind == "auto" else kind
            cells = [f"{run['seconds']:.1f}", f"{run['peak_GB']:.2f}", str(solver.get("iterations", ""))]
            rows.append([name, str(case["n_train"]), label, *cells, f"{run['force_mae_meV_per_A']:.2f}"])
    return rows


def cg_iterations(result: dict) -> list[list[str]]:
    kinds = ["rpcholesky", "cholesky", "leverage", "uniform"]
    rows = [["Molecule", "n", "k", "", *kinds, "svd"]]
    for name, case in result["iterations"].items():
        ours = [str(case["iterations"][kind] or "> 4000") for kind in kinds]
        theirs = [str(case["published"].get(kind, "")) for kind in [*kinds, "svd"]]
        rows.append([name, str(case["n_train"]), str(case["rank"]), "here", *ours, "not measured"])
        rows.append(["", "", "", "published", *theirs])
    return rows


def _times(factor: float) -> str:
    return f"{factor:.1f} ×" if factor < 10 else f"{factor:.0f} ×"


# Each table, and the result that it is of.
TABLES = {
    "against_sgdml": (against_sgdml, "against_sgdml"),
    "symmetry_choice": (symmetry_choice, "symmetry_choice"),
    "dynamics": (dynamics, "dynamics"),
    "cg_training": (cg_training, "cg"),
    "cg_iterations": (cg_iterations, "cg"),
}


def render(name: str) -> str:
    """The named table in Markdown."""
    make, result = TABLES[name]
    head, *rows = make(json.loads((HERE / "results" / f"{result}.json").read_text()))
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def filled(text: str) -> str:
    """A page with its tables as the results have them now."""
    return MARKED.sub(lambda match: match[1] + "\n" + render(match[2]) + "\n" + match[3], text)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        if text != filled(text):
            page.write_text(filled(text))
            print(f"updated {page}")


if __name__ == "__main__":
    main()
