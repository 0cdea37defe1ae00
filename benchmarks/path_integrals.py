"""Path-integral dynamics: speed beside i-PI with sGDML, cost of beads, averages beside i-PI, ethanol and KCl.

python benchmarks/path_integrals.py [harmonic] [speed] [beads] [averages] [ethanol] [crystal]
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from against_sgdml import ENVIRONMENT, prepare_environment
from ase import Atoms, units
from ase.constraints import FixCom
from ase.optimize import BFGS
from common import HERE, dataset, median_seconds, run_parts

import gdml
from gdml.dynamics import Record, RingPolymerMD, block_average
from gdml.dynamics.normal_modes import HBAR, NormalModes

TEMPERATURE, N_BEADS = 300.0, 32
EXAMPLE = (HERE.parent / "docs" / "ipi" / "direct.xml").read_text()
OSCILLATORS = ((3000, 1), (3000, 16), (3000, 32), (3000, 64), (1600, 16), (1600, 32), (500, 16))
IPI_COLUMNS = ("conserved", "temperature", "potential", "kinetic_cv", "kinetic_td")


def ethanol() -> tuple[gdml.ForceField, Atoms]:
    """A force field from 500 geometries of rMD17, and its minimum."""
    frames = dataset("molecules/rmd17_ethanol.extxyz")
    force_field = gdml.fit(frames[frames.sample(500)], length_scale=20.0)
    atoms = frames[int(frames.energy.argmin())].to_atoms()[0]
    atoms.calc = gdml.GDMLCalculator(force_field)
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    atoms.set_constraint(FixCom())
    return force_field, atoms


def ring(force_field, atoms, timestep_fs=0.5, n_replicas=1, **settings) -> RingPolymerMD:
    """A run of copies of the atoms."""
    copies = [atoms.copy() for _ in range(n_replicas)]
    settings = {"temperature_K": TEMPERATURE, "n_beads": N_BEADS, "rng": np.random.default_rng(0)} | settings
    return RingPolymerMD(copies, timestep_fs * units.fs, forces=force_field, **settings)


def measure_harmonic() -> list[dict]:
    """Oscillators of 1 amu, a hundred replicas in three dimensions, beside what is exact for a number of beads."""
    found = [_oscillator(*case, "pile-l", "cayley") for case in OSCILLATORS]
    for thermostat in ("pile-g", "t-rpmd", "none"):
        found.append(_oscillator(1600, 16, thermostat, "cayley"))
    found += [_oscillator(*case, "pile-l", "exact") for case in ((3000, 16), (1600, 32))]
    return found


def _oscillator(frequency_cm: float, n_beads: int, thermostat: str, propagator: str) -> dict:
    square = (2 * np.pi * units._c * 100 / units.second * frequency_cm) ** 2
    atoms = [Atoms("H", np.zeros((1, 3)), masses=[1.0]) for _ in range(100)]
    # With the exact propagator, the step's error grows with the frequencies of the ring.
    timestep = (0.1 if propagator == "exact" else 0.25) * units.fs
    settings = {"temperature_K": TEMPERATURE, "n_beads": n_beads, "propagator": propagator, "tau": 20 * units.fs}
    settings["forces"] = lambda x: (0.5 * square * (x**2).sum((1, 2)), -square * x)
    start = RingPolymerMD(atoms, timestep, rng=0, **settings)
    start.run(1000)
    run = RingPolymerMD(atoms, timestep, rng=1, thermostat=thermostat, **settings)
    run.start_from(start.state())
    record = Record(run)
    run.attach(record, interval=10)
    run.run(6000)
    averages = record.averages(discard=0.0)
    ring_squares = run.modes.frequencies.numpy() ** 2
    energy = float(units.kB * TEMPERATURE * (square / (square + ring_squares)).sum())
    gyration = float(np.sqrt((units.kB * TEMPERATURE / (square + ring_squares[1:])).sum()))
    row = {"frequency_cm": frequency_cm, "n_beads": n_beads, "thermostat": thermostat, "propagator": propagator}
    row |= {"exact_meV": 1e3 * energy, "exact_gyration_A": gyration}
    row["virial_meV"], row["primitive_meV"] = (
        [1e3 * value / 3 for value in averages[name]] for name in ("total_energy", "total_energy_td")
    )
    row["gyration_A"] = [value / 3**0.5 for value in averages["r_gyration"]]
    print(row, flush=True)
    return row


def measure_speed() -> dict:
    """Steps per second beside i-PI that drives sGDML's ASE calculator, and beside i-PI with all beads in one call."""
    prepare_environment()
    pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "ipi==3.3.1"]
    subprocess.run(pip, check=True)
    force_field, atoms = ethanol()
    ours = ring(force_field, atoms)
    ours.run(100)
    theirs = {"sgdml": [], "gdml": []}
    own = []
    for _ in range(3):
        own.append(1000 / _seconds(lambda: ours.run(1000)))
        theirs["sgdml"].append(_ipi_steps_per_second(force_field, atoms, "sgdml", (10, 60)))
        theirs["gdml"].append(_ipi_steps_per_second(force_field, atoms, "gdml", (50, 550)))
    speeds = {"gdml": np.median(own)} | {f"ipi_with_{name}": np.median(values) for name, values in theirs.items()}
    speeds = {name: float(value) for name, value in speeds.items()}
    return {
        "n_train": 500,
        "n_beads": N_BEADS,
        "steps_per_s": speeds,
        "faster": speeds["gdml"] / speeds["ipi_with_sgdml"],
    }


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _ipi_steps_per_second(force_field, atoms, driver: str, steps: tuple[int, int]) -> float:
    """From the difference of two runs, so that starting up does not count."""
    fewer, more = (_seconds(lambda n=n: run_ipi(force_field, atoms, driver, n)) for n in steps)
    return (steps[1] - steps[0]) / (more - fewer)


def run_ipi(force_field, atoms, driver: str, steps: int, timestep_fs: float = 0.5, stride: int = 10) -> np.ndarray:
    """The table of a run of i-PI, with this package's forces or with sGDML's."""
    scripts = (ENVIRONMENT / "bin") if driver == "sgdml" else Path(sys.executable).parent
    path = HERE / "sgdml_ipi_driver.py" if driver == "sgdml" else Path(gdml.__file__).with_name("ipi_driver.py")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        force_field.save(folder / "ethanol.npz", format=driver)
        start = Atoms(atoms.numbers, atoms.positions)
        start.center(vacuum=10)
        start.pbc = False
        start.write(folder / "start.extxyz")
        text = EXAMPLE.replace("DRIVER", str(path)).replace("<total_steps> 100 ", f"<total_steps> {steps} ")
        text = text.replace("'femtosecond'> 0.5 ", f"'femtosecond'> {timestep_fs} ")
        text = text.replace("stride='10'", f"stride='{stride}'").replace("32", str(N_BEADS))
        if driver == "sgdml":
            text = text.replace(f"<batch_size> {N_BEADS} ", "<batch_size> 1 ")
        (folder / "input.xml").write_text(text)
        subprocess.run([scripts / "i-pi", "input.xml"], cwd=folder, check=True, capture_output=True)
        return np.loadtxt(folder / "direct.out")


def measure_beads() -> list[dict]:
    """Cost of a step against the number of beads."""
    force_field, atoms = ethanol()
    found = []
    for n_beads in (1, 2, 4, 8, 16, 32, 64, 128):
        run = ring(force_field, atoms, n_beads=n_beads)
        run.run(10)
        beads = run.positions.flatten(0, 1)
        row = {"n_beads": n_beads, "step_ms": 10 * median_seconds(partial(run.run, 100), 5)}
        row["forces_ms"] = 1e3 * median_seconds(partial(force_field.predict, beads), 50)
        found.append(row)
    return found


def measure_averages() -> dict:
    """The same averages as i-PI with the same force field, from 10 ps each."""
    force_field, atoms = ethanol()
    run = ring(force_field, atoms, timestep_fs=0.25)
    record = Record(run)
    run.attach(record, interval=10)
    run.run(40_000)
    own = record.averages()
    table = run_ipi(force_field, atoms, "gdml", 40_000, timestep_fs=0.25)
    table = dict(zip(IPI_COLUMNS, table[len(table) // 5 :, 2:].T, strict=True))
    reference = force_field.predict(atoms.positions).energy
    found = {}
    for name in ("temperature", "potential", "kinetic_cv", "kinetic_td"):
        shift = reference if name == "potential" else 0.0
        theirs = block_average(table[name] - shift)
        found[name] = {"gdml": [own[name].mean - shift, own[name].error], "ipi": list(theirs)}
    return found


def measure_ethanol() -> dict:
    """Energy at 300 K against the sum over harmonic modes, and lengths of bonds of quantum and classical nuclei."""
    force_field, atoms = ethanol()
    minimum = force_field.predict(atoms.positions).energy
    harmonic = {n: _harmonic_energy(force_field, atoms, n) for n in (1, N_BEADS)}
    found, edges = {}, np.linspace(0.75, 1.4, 131)
    for n_beads in (1, N_BEADS):
        run = ring(force_field, atoms, n_replicas=8 if n_beads > 1 else 64, n_beads=n_beads)
        record, lengths = Record(run), []
        run.attach(record, interval=10)
        run.attach(lambda run=run, lengths=lengths: lengths.append(_bonds(run, atoms)), interval=20)
        run.run(16_000)
        averages = record.averages()
        total = averages["total_energy"]
        found[f"{n_beads} beads"] = {
            "total_energy_eV": [total.mean - minimum, total.error],
            "harmonic_eV": harmonic[n_beads],
            "kinetic_eV": list(averages["kinetic_cv"]),
            "gyration_A": record.r_gyration().round(4).tolist(),
            "outside": run.n_outside,
        } | {
            name: np.histogram(np.concatenate([s[name] for s in lengths[len(lengths) // 5 :]]), edges, density=True)[0]
            .round(3)
            .tolist()
            for name in ("O-H", "C-H")
        }
        print(n_beads, found[f"{n_beads} beads"]["total_energy_eV"], harmonic, flush=True)
    found["single_modes_eV"] = _anharmonicity_of_single_modes(force_field, atoms)
    return found | {"edges_A": edges.round(4).tolist(), "symbols": list(atoms.symbols)}


def _bonds(run: RingPolymerMD, minimum: Atoms) -> dict[str, np.ndarray]:
    """Lengths of O-H and C-H bonds in all beads."""
    positions = run.positions.flatten(0, 1).numpy()
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=3)
    symbols, at_minimum = np.array(list(minimum.symbols)), minimum.get_all_distances()
    found = {}
    for name, partner in (("O-H", "O"), ("C-H", "C")):
        bonded = (symbols[:, None] == partner) & (symbols == "H") & (at_minimum < 1.25)
        found[name] = distances[:, bonded].ravel()
    return found


def _normal_modes(force_field, atoms) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the angular frequencies, and the modes (modes, N, 3) by unit of length times root of mass."""
    step, n = 1e-3, 3 * len(atoms)
    moved = atoms.positions + step * np.eye(n).reshape(n, -1, 3)
    back = atoms.positions - step * np.eye(n).reshape(n, -1, 3)
    hessian = (force_field.predict(back).forces - force_field.predict(moved).forces).reshape(n, n) / (2 * step)
    roots = np.sqrt(np.repeat(atoms.get_masses(), 3))
    squares, modes = np.linalg.eigh(0.5 * (hessian + hessian.T) / np.outer(roots, roots))
    return squares[6:], (modes[:, 6:].T / roots).reshape(-1, len(atoms), 3)


def _anharmonicity_of_single_modes(force_field, atoms) -> float:
    """What the potential along each normal coordinate alone adds to the harmonic energy at the temperature, eV."""
    kt, minimum, total = units.kB * TEMPERATURE, force_field.predict(atoms.positions).energy, 0.0
    for square, mode in zip(*_normal_modes(force_field, atoms)):
        quantum = HBAR * square**0.5
        harmonic = 0.5 * quantum / np.tanh(0.5 * quantum / kt)
        q = np.linspace(-6, 6, 121) * (harmonic / square) ** 0.5
        index, spacing = np.arange(len(q)), q[1] - q[0]
        apart = index[:, None] - index
        kinetic = np.where(apart == 0, np.pi**2 / 3, 2 * (-1.0) ** apart / np.where(apart == 0, 1, apart) ** 2)
        potential = force_field.predict(atoms.positions + q[:, None, None] * mode).energy - minimum
        levels = np.linalg.eigvalsh(HBAR**2 / (2 * spacing**2) * kinetic + np.diag(potential.clip(max=5.0)))
        weights = np.exp(-(levels - levels[0]) / kt)
        total += (levels * weights).sum() / weights.sum() - harmonic
    return float(total)


def _harmonic_energy(force_field, atoms, n_beads: int) -> float:
    """Of the modes about the minimum for a number of beads, with free rotation, eV."""
    squares, _ = _normal_modes(force_field, atoms)
    ring_squares = NormalModes(n_beads, TEMPERATURE).frequencies.numpy() ** 2
    kt = units.kB * TEMPERATURE
    return float(kt * sum((square / (square + ring_squares)).sum() for square in squares) + 1.5 * kt)


def measure_crystal() -> dict:
    """KCl, 64 atoms, 16 beads at 100 K, from 20 geometries; kinetic energy beside that of classical nuclei."""
    from crystals import load

    frames, reference = load("KCl")
    force_field = gdml.fit(frames[frames.sample(20)], reference=reference)
    reference.set_constraint(FixCom())
    settings = {"temperature_K": 100.0, "n_beads": 16, "timestep_fs": 2.0}
    run = ring(force_field, reference, **settings)
    record = Record(run)
    run.attach(record, interval=5)
    run.run(2000)
    averages = record.averages()
    gyration = record.r_gyration()
    symbols = np.array(list(reference.symbols))
    return settings | {
        "n_train": 20,
        "steps": 2000,
        "kinetic_meV_per_atom": [1e3 * value / len(reference) for value in averages["kinetic_cv"]],
        "classical_meV_per_atom": 1.5e3 * units.kB * 100.0,
        "conserved_drift_meV_per_atom": 1e3 * float(np.ptp(record.series("conserved"))) / len(reference),
        "gyration_A": {e: float(np.sqrt((gyration[symbols == e] ** 2).mean())) for e in ("K", "Cl")},
    }


def main() -> None:
    parts = {
        "harmonic": measure_harmonic,
        "speed": measure_speed,
        "beads": measure_beads,
        "averages": measure_averages,
        "ethanol": measure_ethanol,
        "crystal": measure_crystal,
    }
    run_parts("path_integrals", parts, sys.argv[1:])


if __name__ == "__main__":
    main()
