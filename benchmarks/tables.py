"""Write the tables of the README and the documentation from the results.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    python benchmarks/tables.py
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from ase import units

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
    names = list(result["iterations"])
    rows = [["Preconditioner", *names]]
    sizes = [f"n = {c['n_train']}, N = {c['unknowns']}, k = {c['rank']}" for c in result["iterations"].values()]
    rows.append(["", *sizes])
    variants = [(v["factor"], v["neighbours"]) for v in result["iterations"][names[0]]["counts"]]
    for factor, neighbours in variants:
        rest = "μ" if neighbours is None else f"{neighbours} neighbours"
        found = [_count(c["counts"], factor, neighbours) for c in result["iterations"].values()]
        rows.append([f"{factor}, {rest}", *found])
    for factor in ("svd", "cholesky", "leverage", "uniform"):
        published = [str(c["published"].get(factor, "")) for c in result["iterations"].values()]
        rows.append([f"published: {factor}", *published])
    return rows


def _count(counts: list[dict], factor: str, neighbours: int | None) -> str:
    (found,) = (c["iterations"] for c in counts if (c["factor"], c["neighbours"]) == (factor, neighbours))
    return "> 4000" if found is None else str(found)


def cg_tolerance(result: dict) -> list[list[str]]:
    first = next(iter(result["tolerance"].values()))
    rows = [["Molecule", "n", "Force MAE (meV/Å)", *(str(run["rtol"]) for run in first["runs"][:-1])]]
    for name, case in result["tolerance"].items():
        *runs, exact = case["runs"]
        best = exact["force_mae_meV_per_A"]
        more = [f"{100 * (run['force_mae_meV_per_A'] / best - 1):+.2f} % ({run['iterations']})" for run in runs]
        rows.append([name, str(case["n_train"]), f"{best:.2f}", *more])
    return rows


def cg_energies(result: dict) -> list[list[str]]:
    rows = [["Molecule", "n", "Labels", "Iterations", "Force MAE: CG, closed form", "Energy MAE: CG, closed form"]]
    for name, case in result["energies"].items():
        for labels, run in case["labels"].items():
            forces, energies = ("{:.2f}, {:.2f}".format(*run[key]) for key in ("force_mae_meV_per_A", "energy_mae_meV"))
            rows.append(
                [name, str(case["n_train"]), labels, str(run["iterations"]), f"{forces} meV/Å", f"{energies} meV"]
            )
    return rows


def cg_scaling(result: dict) -> list[list[str]]:
    rows = [["Molecule", "n", "CG", "Closed form", "sGDML"]]
    for name, runs in result["scaling"].items():
        for run in runs:
            cells = [_time_and_memory(run.get(kind)) for kind in ("cg", "cholesky", "sgdml")]
            rows.append([name, str(run["n_train"]), *cells])
    return rows


def _time_and_memory(run: dict | None) -> str:
    if run is None:
        return "not tried"
    if "refused" in run:
        return "refused: too large for the memory"
    if "failed" in run:
        return f"failed ({run['failed']})"
    return f"{run['seconds']:.1f} s, {run['peak_GB']:.2f} GB"


def crystals_accuracy(result: dict) -> list[list[str]]:
    rows = [
        ["Crystal", "n", "Force MAE (meV/Å)", "BIGDML's descriptor", "Energy MAE (meV/atom)", "BIGDML's descriptor"]
    ]
    for name, case in result["accuracy"].items():
        for run in case["runs"]:
            cells = [f"{run[kind]['force_mae_meV_per_A']:.3g}" for kind in ("default", "bigdml")]
            cells += [f"{run[kind]['energy_mae_meV_per_atom']:.2g}" for kind in ("default", "bigdml")]
            rows.append([f"{name} (order {case['symmetry_order']})", str(run["n_train"]), *cells])
    return rows


def crystals_cells(result: dict) -> list[list[str]]:
    rows = [["Silicon", "Atoms", "Order", "n", "Force MAE (meV/Å)", "BIGDML's descriptor"]]
    for name, case in result["cells"].items():
        sizes = [str(case[key]) for key in ("n_atoms", "symmetry_order", "n_train")]
        rows.append([name, *sizes, *(f"{case[kind]['force_mae_meV_per_A']:.3g}" for kind in ("default", "bigdml"))])
    return rows


def crystals_time(result: dict) -> list[list[str]]:
    case = result["time"]
    faster = case["written_out_single_ms"] / case["single_ms"]
    batch = case["written_out_batch_ms"] / case["batch_ms"]
    rows = [["KCl, 64 atoms, order 1536, 26 training geometries", "Time", "Sums written out", "Faster"]]
    rows.append(["training, with the choice of the length scale", f"{case['train_s']:.0f} s", "", ""])
    rows.append(
        ["one prediction", f"{case['single_ms']:.1f} ms", f"{case['written_out_single_ms']:.0f} ms", _times(faster)]
    )
    rows.append(
        ["in a batch, each", f"{case['batch_ms']:.1f} ms", f"{case['written_out_batch_ms']:.0f} ms", _times(batch)]
    )
    rows.append(["a force call of ASE", f"{case['ase_call_ms']:.1f} ms", "", ""])
    return rows


def crystals_memory(result: dict) -> list[list[str]]:
    case = result["memory"]
    head = ["Crystal", "n", "Unknowns", "Order", "Training", "Memory", "Solver", "Iterations", "One prediction"]
    solver = case["solver"]
    row = [
        "Al, 125 atoms",
        case["n_train"],
        case["unknowns"],
        case["symmetry_order"],
        f"{case['train_s'] / 60:.0f} min",
    ]
    row += [f"{case['peak_GB']:.1f} GB", solver["name"], solver.get("iterations", ""), f"{case['single_ms']:.0f} ms"]
    return [head, [str(cell) for cell in row]]


def crystals_conservation(result: dict) -> list[list[str]]:
    rows = [["KCl, NVE", "Temperature (K)", "Drift of the energy (meV/atom/ps)", "Fluctuation (meV/atom)"]]
    names = {"default": "smooth distances (default)", "bigdml": "nearest images (BIGDML)"}
    for kind, run in result["conservation"]["runs"].items():
        drift, fluctuation = (f"{1e3 * run[f'energy_{what}']:.1e}" for what in ("drift", "fluctuation"))
        rows.append([names[kind], f"{run['temperature_K']:.0f}", drift, fluctuation])
    return rows


def crystals_dynamics(result: dict) -> list[list[str]]:
    rows = [["Run", "Temperature (K)", "Drift of the energy (meV/atom/ps)", "Displacement² (Å²)", "First peak of g(r)"]]
    for name, case in result["dynamics"].items():
        for kind in ("nve", "langevin"):
            run, structure = case[kind], case["structure"] if kind == "langevin" else None
            drift = "(thermostat)" if structure else f"{1e3 * run['energy_drift']:.1e}"
            rows.append([f"{name}, {kind}", f"{run['temperature_K']:.0f}", drift, *_structure(structure)])
        rows.append([f"{name}, reference frames", "", "", *_structure(case["structure_of_reference_frames"])])
        if "npt" in case:
            npt = case["npt"]
            pressure = f"{npt['pressure_GPa']:.3f} ± {npt['pressure_std_GPa']:.2f} GPa"
            rows.append([f"{name}, constant pressure 0: {pressure}", f"{npt['temperature_K']:.0f}", "", "", ""])
    return rows


def _structure(structure: dict | None) -> list[str]:
    if structure is None:
        return ["", ""]
    peak = f"{structure['first_peak_height']:.1f} at {structure['first_peak_at_A']:.2f} Å"
    return [f"{structure['mean_square_displacement_A2']:.4f}", peak]


def path_integrals_harmonic(result: dict) -> list[list[str]]:
    rows = [["Oscillator", "Beads", "Thermostat", "Exact (meV)", "Virial", "Primitive", "Gyration (Å): exact", "Found"]]
    for case in result["harmonic"]:
        energies = ("{:.2f} ± {:.2f}".format(*case[key]) for key in ("virial_meV", "primitive_meV"))
        gyration = f"{case['exact_gyration_A']:.5f}", "{:.5f} ± {:.5f}".format(*case["gyration_A"])
        settings = f"{case['thermostat']}, {case['propagator']}"
        beads = str(case["n_beads"])
        rows.append([f"{case['frequency_cm']} cm⁻¹", beads, settings, f"{case['exact_meV']:.3f}", *energies, *gyration])
    return rows


def path_integrals_speed(result: dict) -> list[list[str]]:
    case = result["speed"]
    names = {
        "gdml": "gdml",
        "ipi_with_gdml": "i-PI, gdml's driver, all beads in one call",
        "ipi_with_sgdml": "i-PI, sGDML's ASE calculator",
    }
    rows = [["Ethanol, 32 beads", "Steps/s", "gdml is faster"]]
    for key, name in names.items():
        speed = case["steps_per_s"][key]
        faster = "" if key == "gdml" else _times(case["steps_per_s"]["gdml"] / speed)
        rows.append([name, f"{speed:.0f}" if speed > 20 else f"{speed:.1f}", faster])
    return rows


def path_integrals_averages(result: dict) -> list[list[str]]:
    rows = [["Average", "gdml", "i-PI"]]
    for name, case in result["averages"].items():
        unit = "K" if name == "temperature" else "eV"
        digits = 1 if name == "temperature" else 4
        # i-PI counts the centre of mass, which both programs hold still, as moving.
        held = {"gdml": 0.0, "ipi": 1.5 * units.kB * 300 if name.startswith("kinetic") else 0.0}
        cells = [
            f"{mean - held[kind]:.{digits}f} ± {error:.{digits}f} {unit}"
            for kind, (mean, error) in ((kind, case[kind]) for kind in held)
        ]
        rows.append([name, *cells])
    return rows


def path_integrals_ethanol(result: dict) -> list[list[str]]:
    rows = [["Ethanol, 300 K", "Energy above the minimum (eV)", "Harmonic modes (eV)", "Kinetic energy (eV)"]]
    for name, case in result["ethanol"].items():
        if name.endswith("beads"):
            energy, kinetic = ("{:.4f} ± {:.4f}".format(*case[key]) for key in ("total_energy_eV", "kinetic_eV"))
            rows.append([name.replace("1 beads", "1 bead"), energy, f"{case['harmonic_eV']:.4f}", kinetic])
    return rows


def path_integrals_crystal(result: dict) -> list[list[str]]:
    case = result["crystal"]
    rows = [["KCl, 64 atoms, 16 beads, 100 K", ""]]
    mean, error = case["kinetic_meV_per_atom"]
    rows.append(
        [
            "kinetic energy (meV/atom)",
            f"{mean:.2f} ± {error:.2f}, of classical nuclei {case['classical_meV_per_atom']:.2f}",
        ]
    )
    rows.append(["radius of gyration (Å)", ", ".join(f"{e} {value:.4f}" for e, value in case["gyration_A"].items())])
    rows.append(["conserved quantity, range in 4 ps (meV/atom)", f"{case['conserved_drift_meV_per_atom']:.2f}"])
    return rows


def _kinds(result: dict) -> list[tuple[str, dict]]:
    """Results of each kind of device that has some, by its name."""
    kinds = ((kind, result[kind]) for kind in ("cpu", "cuda"))
    return [(case.get("name", kind), case) for kind, case in kinds if "missing" not in case]


def _missing(result: dict, part: str) -> list[list[str]]:
    """A row for a GPU without results of a part."""
    return [] if part in result["cuda"] else [["GPU", "missing"]]


def gpu_backends(result: dict) -> list[list[str]]:
    rows = [["Device", "D", "n", "GEMM", "KeOps", "KeOps / GEMM", "in float32"]]
    for name, case in _kinds(result):
        for row in case.get("backends", []):
            gemm, keops = row["gemm_float64_ms"], row["keops_float64_ms"]
            single = row["keops_float32_ms"] / row["gemm_float32_ms"]
            cells = [f"{gemm:.0f} ms", f"{keops:.0f} ms", f"{keops / gemm:.2g}", f"{single:.2g}"]
            rows.append([name, str(row["size"]), str(row["n"]), *cells])
    return _even(rows + _missing(result, "backends"))


def gpu_precision(result: dict) -> list[list[str]]:
    rows = [["Device", "Molecule", "Noise", "Force error, RMS (meV/Å)", "of single precision", "times faster"]]
    for name, case in _kinds(result):
        for row in case.get("precision", []):
            cells = [f"{row['rmse_meV_A']:.1f}", f"{row['float32_meV_A']:.2g}", f"{row['times_faster']:.2f}"]
            rows.append([name, row["molecule"], f"{row['noise']:.0e}", *cells])
    return _even(rows + _missing(result, "precision"))


def gpu_batches(result: dict) -> list[list[str]]:
    rows = [["Device", "Molecule", "Geometries", "float64", "of GEMM's rate", "float32", "sGDML's torch module"]]
    for name, case in _kinds(result):
        for row in case.get("batches", []):
            theirs = row["sgdml_torch_ms"]
            cells = [f"{row['float64_ms']:.2f} ms", f"{100 * row['float64_of_gemm_rate']:.0f} %"]
            cells += [f"{row['float32_ms']:.2f} ms", theirs if isinstance(theirs, str) else f"{theirs:.2f} ms"]
            rows.append([name, row["molecule"], str(row["geometries"]), *cells])
    return _even(rows + _missing(result, "batches"))


def gpu_runs(result: dict) -> list[list[str]]:
    rows = [["Device", "Molecule", "MD (steps/s)", "PIMD, 32 beads (steps/s)", "Training (s)", "of GEMM's rate"]]
    for name, case in _kinds(result):
        trainings = {row["molecule"]: row for row in case.get("training", [])}
        for run in case.get("dynamics", []):
            training = trainings.get(run["molecule"], {})
            seconds, share = training.get("seconds"), training.get("products_of_gemm_rate")
            cells = [f"{run['md_steps_s']:.0f}", f"{run['pimd_steps_s']:.0f}"]
            cells += ["" if seconds is None else f"{seconds:.1f}", "" if share is None else f"{100 * share:.0f} %"]
            rows.append([name, run["molecule"], *cells])
    return _even(rows + _missing(result, "dynamics"))


def gpu_crystal(result: dict) -> list[list[str]]:
    head = ["Device", "Training, n = 20 (s)", "One geometry", "Each of 26"]
    rows = [[*head, "One, by products", "Each of 26, by products"]]
    for name, case in _kinds(result):
        if "crystal" in case:
            row = case["crystal"]
            names = ("lattice_one_ms", "lattice_batch_ms", "gemm_one_ms", "gemm_batch_ms")
            rows.append([name, f"{row['training_s']:.1f}", *(f"{row[key]:.1f} ms" for key in names)])
    return _even(rows + _missing(result, "crystal"))


def _even(rows: list[list[str]]) -> list[list[str]]:
    """Rows with as many cells as the head."""
    return [row + [""] * (len(rows[0]) - len(row)) for row in rows]


def processes_training(result: dict) -> list[list[str]]:
    head = ["Training", "n", "One; model (s)", "Two; model (s)", "Efficiency", "Iterations", "Difference of α"]
    rows = [[*head, "Memory of each: one, two; model (GB)", "Received; model (MB)"]]
    for row in result["training"]:
        memory, model = ([f"{value:.2f}" for value in row[name]] for name in ("peak_GB", "predicted_GB"))
        one, two = row["predicted_s"]
        rows.append(
            [
                row["case"],
                str(row["n_train"]),
                f"{row['one_s']:.1f}; {one:.1f}",
                f"{row['two_s']:.1f}; {two:.1f}",
                f"{row['efficiency']:.2f}",
                ", ".join(map(str, row["iterations"])),
                f"{row['largest_difference']:.0e}",
                f"{', '.join(memory)}; {', '.join(model)}",
                f"{row['received_MB']:.0f}; {row['predicted_MB']:.0f}",
            ]
        )
    return rows


def processes_large(result: dict) -> list[list[str]]:
    head = ["Training", "Unknowns", "Rank", "Processes"]
    rows = [[*head, "Memory of each (GB)", "Received by each (GB)", "Operations of each", "Hours"]]
    for row in result["large"]:
        cells = [
            f"{row['GB_each']:.0f}",
            f"{row['received_GB_each']:.0f}",
            f"{row['Pflop_each']:.2g} · 10¹⁵",
            f"{row['hours']:.1f}",
        ]
        rows.append([row["case"], str(row["unknowns"]), str(row["rank"]), str(row["processes"]), *cells])
    return rows


NAMES = {"acetylacetone": "acetylacetone", "3bpa": "3BPA", "ethanol": "ethanol", "aspirin": "aspirin"}


def descriptors(result: dict, sizes: tuple[str, ...] = ("50",)) -> list[list[str]]:
    """Force MAE by descriptor and kernel."""
    columns = [(m, n) for m in NAMES for n in sizes if n in result["table"].get(m, {})]
    lines = {case: None for m, n in columns for case in result["table"][m][n]}
    rows = [["Descriptor", "Kernel", *[NAMES[m] + (f", n = {n}" if len(sizes) > 1 else "") for m, n in columns]]]
    for case in lines:
        found = [result["table"][m][n].get(case, {}) for m, n in columns]
        cells = ["not its group" if "not_possible" in f else _number(f.get("forces_mae")) for f in found]
        rows.append([*case.split("; "), *cells])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def descriptors_short(result: dict) -> list[list[str]]:
    """The incumbent's choice, the default, and kernels between atoms."""
    cases = "1/r; matern52", "auto; matern52", "many-body, atoms; gaussian"
    rows = [["", *NAMES.values()]]
    for case, label in zip(cases, ("1/r (sGDML)", "gdml, default", 'descriptor="many-body"')):
        rows.append([label, *(_number(result["table"][m]["50"][case]["forces_mae"]) for m in NAMES)])
    return rows


def descriptors_more(result: dict) -> list[list[str]]:
    """The same with more geometries."""
    return descriptors(result, ("200", "400", "500", "900"))


def descriptors_cost(result: dict) -> list[list[str]]:
    """What a descriptor costs that is given as a function."""
    cost = result["cost"]
    rows = [["Ethanol, n = 200", "by hand", "as a function", "ratio"]]
    labels = {"single_ms": "one geometry", "batch_ms": "each of 500", "product_ms": "product with the matrix"}
    for key, label in labels.items():
        times = [cost[name][key] for name in ("by hand", "function")]
        rows.append([label, *(f"{t:.3g} ms" for t in times), f"{cost['ratios'][key]:.2f}"])
    dense = cost["dense derivatives"]
    rows.append(
        [
            f"product, n = {dense['n']}, by dense derivatives",
            f"{dense['product_ms']:.3g} ms",
            f"{dense['ours_ms']:.3g} ms",
            f"{cost['ratios']['dense_product']:.0f} times slower",
        ]
    )
    hessian = cost["hessian"]
    ratio = hessian["exact_ms"] / hessian["differences_ms"]
    rows.append(["Hessian", f"{hessian['exact_ms']:.3g} ms", "", f"{ratio:.2f} of central differences"])
    many = cost["many-body, n = 50"]
    rows.append(
        ["many-body, n = 50: one geometry; each of 100", f"{many['single_ms']:.3g}; {many['batch_ms']:.3g} ms", "", ""]
    )
    return rows


def descriptors_extrapolation(result: dict) -> list[list[str]]:
    """Force RMSE by the distance from the training data."""
    rows = [["Descriptor", "Kernel", "near", "middle", "far"]]
    for case, found in result["extrapolation"].items():
        rows.append([*case.split("; "), *(f"{found[third]:.1f}" for third in ("near", "middle", "far"))])
    return rows


def vibrations(result: dict) -> list[list[str]]:
    """Errors of frequencies."""
    rows = [["Ethanol's 21 frequencies, n = 240", "mean error (cm⁻¹)", "largest", "Hessian against differences"]]
    for name, found in result["vibrations"].items():
        if name != "reference":
            cells = f"{found['mae']:.1f}", f"{found['largest']:.0f}", f"{found['hessian_against_differences']:.0e}"
            rows.append([name, *cells])
    return rows


def few_molecules(result: dict) -> list[list[str]]:
    """Force MAE of direct force fields and of differences."""
    rows = [["", "n", "direct", "difference to GFN2-xTB"]]
    for molecule, sizes in result["table"].items():
        for n, cases in sizes.items():
            each = [sorted(one["forces_mae"] for one in cases[name]) for name in ("direct", "gfn2-xtb")]
            cells = [f"{f[len(f) // 2]:.1f} ({f[0]:.1f} to {f[-1]:.1f})" for f in each]
            rows.append([NAMES[molecule], n, *cells])
    return rows


def few_flexible(result: dict) -> list[list[str]]:
    """Force RMSE of 3BPA."""
    found = result["flexible"]
    rows = [["n", "direct", "difference to GFN2-xTB"]]
    for n in dict.fromkeys(key.split()[0] for key in found):
        rows.append([n, *(_number(found.get(f"{n} {name}", {}).get("forces_rmse")) for name in ("direct", "gfn2-xtb"))])
    return rows


def few_coverage(result: dict) -> list[list[str]]:
    """Fractions of errors inside of intervals."""
    ways = {"held out": "held out: lower half", "leave-one-out": "leave-one-out: lower half"}
    ways["committee"] = "committee, held out: lower half"
    heads = [head for way in ways.values() for head in (way, "upper quarter")]
    rows = [["", *heads, "force MAE (meV/Å)"]]
    for name, found in result["coverage"].items():
        cells = [f"{100 * found[way][where]:.0f} %" for way in ways for where in ("in", "out")]
        errors = " and ".join(f"{found['forces_mae'][where]:.1f}" for where in ("in", "out"))
        rows.append([NAMES.get(name, name), *cells, errors])
    return rows


def few_cost(result: dict) -> list[list[str]]:
    """What uncertainty costs."""
    rows = [["", "labels", "prediction", "posterior variance", "committee of eight", "prediction with GFN2-xTB"]]
    for name, found in result["cost"].items():
        keys = ("predict_ms", "posterior_ms", "committee_ms", "with_baseline_ms")
        times = (f"{found[key]:.2g} ms" if key in found else "" for key in keys)
        rows.append([NAMES.get(name, name), str(found["unknowns"]), *times])
    return rows


def few_distilled(result: dict) -> list[list[str]]:
    """The teacher and its students."""
    found = result["distilled"]
    rows = [["", "force MAE against the reference (meV/Å)", "against the teacher", "one geometry"]]
    students = [(n, one) for n, one in found.items() if n != "teacher"]
    last = students[-1][1]
    rows.append(["teacher", f"{found['teacher']['forces_mae']:.1f}", "", f"{last['ms_teacher']:.2f} ms"])
    for n, one in students:
        cells = (
            f"{one['student']['forces_mae']:.1f}",
            f"{one['against_teacher_mae']:.1f}",
            f"{one['ms_student']:.2f} ms",
        )
        rows.append([f"student of {n} samples", *cells])
    return rows


def few_crystals(result: dict) -> list[list[str]]:
    """Crystals with and without baselines."""
    rows = [["", "n", "baseline", "force MAE (meV/Å)", "training says"]]
    for crystal, sizes in result["crystals"].items():
        for n, cases in sizes.items():
            for baseline, one in cases.items():
                says = "does not help" if one["warned"] else "" if baseline == "direct" else "helps"
                rows.append(
                    [crystal, n, "none" if baseline == "direct" else baseline, _number(one["forces_mae"]), says]
                )
    return rows


def few_nanosecond(result: dict) -> list[list[str]]:
    """Dynamics at 500 K."""
    rows = [["", "", "ps", "stopped", "looks that found something outside", "force MAE (meV/Å)"]]
    for name, kinds in result["nanosecond"].items():
        for kind, one in kinds.items():
            stops = f"{len(one['stops'])} times" if one["stops"] else "never"
            outside = f"{100 * one['looks_outside']:.2g} %"
            rows.append([NAMES[name], kind, f"{one['picoseconds']:.0f}", stops, outside, _number(one["forces_mae"])])
    return rows


def few_active(result: dict) -> list[list[str]]:
    """Active learning and random frames."""
    rows = [["", "labels", "active", "random, classical", "random, path integral"]]

    def errors_of(cases: dict, n: str) -> str:
        if n not in cases:
            return ""
        medians = (median(one[key] for one in cases[n]) for key in ("forces_mae", "forces_rmse"))
        return " / ".join(map(_number, medians))

    for name, found in result["active"].items():
        kinds = [found["active"], found["classical"], found["path integral"]]
        rows += [[name, n, *(errors_of(cases, n) for cases in kinds)] for n in found["classical"]]
    return rows


def states_carbene(result: dict) -> list[list[str]]:
    """One model of two states, and two models: medians over draws."""
    heads = ["force MAE, singlet (meV/Å)", "triplet", "gap (meV)", "gradient of the gap (meV/Å)"]
    rows = [["Labels", "geometries", "models", *heads]]
    entries = [("singlet", "forces"), ("triplet", "forces"), ("gap", "energy"), ("gap", "forces")]
    ways = {"apart": "as many, each in one state", "same": "half as many, each in both states"}
    for way, label in ways.items():
        for n, cases in result["carbene"][way].items():
            for model in ("one", "two"):
                cells = [f"{median(case[model][a][b] for case in cases):.2g}" for a, b in entries]
                rows.append([n, label, model, *cells])
    return rows


def states_levels(result: dict) -> list[list[str]]:
    """Ethanol at CCSD(T)."""
    rows = [["50 labels at CCSD(T)", "force MAE (meV/Å)", "energy MAE (meV)"]]
    for way, cases in result["levels"].items():
        rows.append([way, *(_median_and_range(case[part] for case in cases) for part in ("forces", "energy"))])
    return rows


def states_uncertainty(result: dict) -> list[list[str]]:
    """Coverage of intervals that are for nine tenths of the errors."""
    rows = [["Scales from", "labels", "singlet", "triplet", "gap"]]
    ways = {
        "left out": "the training geometries, each from the others",
        "held out": "20 other geometries in each state",
    }
    for way, label in ways.items():
        for n, cases in result["uncertainty"][way].items():
            found = ([100 * case[part] for case in cases] for part in ("singlet", "triplet", "gap"))
            cells = [f"{median(one):.0f} % ({min(one):.0f} to {max(one):.0f})" for one in found]
            rows.append([label, n, *cells])
    return rows


def _median_and_range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{median(ordered):.1f} ({ordered[0]:.1f} to {ordered[-1]:.1f})"


def coarse_free_energy(result: dict) -> list[list[str]]:
    ways, alone = ("one fit", "ensemble", "forces alone"), result["reference"]["prior_alone"]
    rows = [["n", "prior", "prior alone", *ways]]
    for prior in ("bonds, angles", "bonds, angles, dihedrals", "none"):
        for n, cases in result["free_energy"].items():
            if prior in cases:
                runs = alone[n].get(prior), *(cases[prior].get(way) for way in ways)
                rows.append([n, prior, *map(_deviation, runs)])
    return rows


def _deviation(run: dict | None) -> str:
    if run is None:
        return ""
    if "failed" in run:
        return f"explodes ({run['failed'].split(':')[0]})"
    return "{:.2f} ± {:.2f}".format(*run["deviation"])


def coarse_reference(result: dict) -> list[list[str]]:
    """Of halves of the frames, and of the first and the second half of dynamics."""
    found = result["reference"]["halves"]
    rows = [["", "apart (kT)"], ["halves of the frames", "{:.2f} ± {:.2f}".format(*found)]]
    for n, cases in result["free_energy"].items():
        apart = cases["bonds, angles"]["one fit"]["late_from_early"]
        rows.append([f"halves of dynamics with one fit of {n} frames", "{:.2f} ± {:.2f}".format(*apart)])
    return rows


def coarse_noise(result: dict) -> list[list[str]]:
    kinds = {"bonds (kcal/mol/Å)": slice(0, 4), "angles (kcal/mol)": slice(4, 7), "dihedrals (kcal/mol)": slice(7, 9)}
    rows = [["noise", *kinds]]
    for width, sizes in result["reference"]["noise"].items():
        name = f"after turns of {float(width):.2g}" if float(width) else "of instantaneous forces"
        rows.append([name, *(", ".join(f"{size:.3g}" for size in sizes[some]) for some in kinds.values())])
    return rows


def coarse_training(result: dict) -> list[list[str]]:
    head = [
        "n",
        "trained on",
        "choice of the length scale, wall (CPU)",
        "one fit, wall (CPU)",
        "CG iterations",
        "peak memory",
    ]
    rows = [head]
    for n, run in result["training"].items():
        times = ["{seconds:.1f} s ({cpu_seconds:.1f} s)".format(**run[name]) for name in ("choice", "fit")]
        iterations = str(run["solver"].get("iterations", "closed form"))
        rows.append([n, str(run["frames"]), *times, iterations, f"{run['peak_gb']:.1f} GB"])
    return rows


def _times(factor: float) -> str:
    return f"{factor:.1f} ×" if factor < 10 else f"{factor:.0f} ×"


# Each table, and the result that it is of.
def landscape_ethanol(result: dict) -> list[list[str]]:
    """Points of ethanol, of the model and of the reference."""
    rows = [["", "", "C-C-O-H", "found", "model", "±", "reference", "barriers", "reference", "shift (Å)"]]
    points = result["ethanol"]["points"]
    for name, point in points.items():
        heights = ("barriers", "reference_barriers")
        rows.append(
            [
                name,
                _kind_of(name, points),
                f"{point['torsion']:.0f}°",
                str(point["count"]),
                *(f"{point[key]:.1f}" for key in ("energy", "deviation", "reference")),
                *(", ".join(f"{h:.1f}" for h in sorted(set(point[key]))) for key in heights),
                f"{point['moved']:.3f}",
            ]
        )
    return rows


def _kind_of(name: str, points: dict) -> str:
    """Which turn a saddle point is: at that of the methyl group, the hydroxyl group stands as in a minimum."""
    point = points[name]
    if not point["ends"]:
        return "gauche" if point["torsion"] < 120 else "trans"
    ends = [points[end]["torsion"] for end in point["ends"]]
    is_methyl = min(abs(point["torsion"] - angle) for angle in ends) < 20
    return f"{' to '.join(point['ends'])}, turn of {'CH3' if is_methyl else 'OH'}"


def landscape_relaxations(result: dict) -> list[list[str]]:
    heads = ("training", "starts", "distinct minima", "marked", "not converged")
    rows = [["", *heads, "in a batch (1/s)", "ASE (1/s)", "faster"]]
    for name, run in result["relaxations"].items():
        run = run | {"starts": sum(run["counts"]) + run["unconverged"]}
        rows.append(
            [
                name,
                *(str(run[key]) for key in ("n_train", "starts", "minima", "marked", "unconverged")),
                *(f"{run[key]:.3g}" for key in ("batch_per_s", "ase_per_s")),
                _times(run["faster"]),
            ]
        )
    return rows


TABLES = {
    "against_sgdml": (against_sgdml, "against_sgdml"),
    "symmetry_choice": (symmetry_choice, "symmetry_choice"),
    "dynamics": (dynamics, "dynamics"),
    "cg_training": (cg_training, "cg"),
    "cg_iterations": (cg_iterations, "cg"),
    "cg_tolerance": (cg_tolerance, "cg"),
    "cg_energies": (cg_energies, "cg"),
    "cg_scaling": (cg_scaling, "cg"),
    "crystals_accuracy": (crystals_accuracy, "crystals"),
    "crystals_cells": (crystals_cells, "crystals"),
    "crystals_time": (crystals_time, "crystals"),
    "crystals_memory": (crystals_memory, "crystals"),
    "crystals_conservation": (crystals_conservation, "crystals"),
    "crystals_dynamics": (crystals_dynamics, "crystals"),
    "path_integrals_harmonic": (path_integrals_harmonic, "path_integrals"),
    "path_integrals_speed": (path_integrals_speed, "path_integrals"),
    "path_integrals_averages": (path_integrals_averages, "path_integrals"),
    "path_integrals_ethanol": (path_integrals_ethanol, "path_integrals"),
    "path_integrals_crystal": (path_integrals_crystal, "path_integrals"),
    "gpu_backends": (gpu_backends, "gpu"),
    "gpu_precision": (gpu_precision, "gpu"),
    "gpu_batches": (gpu_batches, "gpu"),
    "gpu_runs": (gpu_runs, "gpu"),
    "gpu_crystal": (gpu_crystal, "gpu"),
    "descriptors": (descriptors, "descriptors"),
    "descriptors_short": (descriptors_short, "descriptors"),
    "descriptors_more": (descriptors_more, "descriptors"),
    "descriptors_cost": (descriptors_cost, "descriptors"),
    "descriptors_extrapolation": (descriptors_extrapolation, "descriptors"),
    "few_molecules": (few_molecules, "few_geometries"),
    "few_flexible": (few_flexible, "few_geometries"),
    "few_coverage": (few_coverage, "few_geometries"),
    "few_cost": (few_cost, "few_geometries"),
    "few_distilled": (few_distilled, "few_geometries"),
    "few_crystals": (few_crystals, "few_geometries"),
    "few_nanosecond": (few_nanosecond, "few_geometries"),
    "few_active": (few_active, "few_geometries"),
    "states_carbene": (states_carbene, "states"),
    "states_levels": (states_levels, "states"),
    "states_uncertainty": (states_uncertainty, "states"),
    "coarse_free_energy": (coarse_free_energy, "coarse"),
    "coarse_reference": (coarse_reference, "coarse"),
    "coarse_noise": (coarse_noise, "coarse"),
    "coarse_training": (coarse_training, "coarse"),
    "landscape_ethanol": (landscape_ethanol, "landscape"),
    "landscape_relaxations": (landscape_relaxations, "landscape"),
    "vibrations": (vibrations, "descriptors"),
    "processes_training": (processes_training, "processes"),
    "processes_large": (processes_large, "processes"),
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
