"""Path-integral dynamics against what is known exactly of harmonic oscillators, and against ASE."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLengths, FixCom
from ase.io import read
from ase.neighborlist import NeighborList

import gdml
from gdml.cli import main
from gdml.dynamics import Record, RingPolymerMD, block_average, run_pimd
from gdml.dynamics.averages import jackknife
from gdml.dynamics.normal_modes import HBAR, NormalModes
from gdml.errors import DataError, DynamicsError, DynamicsWarning, FormatError, ModelMismatchError, OutputError

pytestmark = pytest.mark.filterwarnings("ignore:thermostat=.* keeps what it starts with")
TEMPERATURE = 300.0
KT = units.kB * TEMPERATURE
PER_CM = 2 * np.pi * units._c * 100 / units.second  # angular frequency of one wavenumber


@pytest.fixture
def model(force_field):
    return force_field


def oscillators(frequency_cm, n_replicas):
    """Three-dimensional oscillators of 1 amu, each its own replica, with their energies and forces."""
    k = (frequency_cm * PER_CM) ** 2
    atoms = [Atoms("H", [[0.0, 0.0, 0.0]], masses=[1.0]) for _ in range(n_replicas)]
    return atoms, lambda x: (0.5 * k * (x**2).sum((1, 2)), -k * x)


def exact_energy(frequency_cm, n_beads, temperature=TEMPERATURE):
    """Of one dimension, in eV, for a number of beads."""
    modes = NormalModes(n_beads, temperature).frequencies.numpy()
    square = (frequency_cm * PER_CM) ** 2
    return units.kB * temperature * np.sum(square / (square + modes**2))


def exact_gyration(frequency_cm, n_beads):
    """Of one dimension and 1 amu, Å."""
    modes = NormalModes(n_beads, TEMPERATURE).frequencies.numpy()[1:]
    return np.sqrt(np.sum(KT / ((frequency_cm * PER_CM) ** 2 + modes**2)))


def sampled(frequency_cm, n_beads, steps=3000, n_replicas=100, timestep_fs=0.5, **settings):
    atoms, forces = oscillators(frequency_cm, n_replicas)
    settings = {"thermostat": "pile-l", "tau": 20 * units.fs} | settings
    run = RingPolymerMD(
        atoms,
        timestep_fs * units.fs,
        temperature_K=TEMPERATURE,
        n_beads=n_beads,
        forces=forces,
        rng=np.random.default_rng(7),
        **settings,
    )
    record = Record(run, heat_capacity=True)
    run.attach(record, interval=10)
    run.run(steps)
    return record


# The literature's figures for a bead, in meV and Å.


@pytest.mark.parametrize(
    "frequency, n_beads, energy",
    [(3000, 1, 25.852), (3000, 16, 169.620), (3000, 32, 181.448), (3000, 64, 184.813), (1600, 16, 96.549)]
    + [(1600, 32, 98.575), (500, 16, 37.106)],
)
def test_exact_energies(frequency, n_beads, energy):
    assert 1e3 * exact_energy(frequency, n_beads) == pytest.approx(energy, abs=5e-4)


@pytest.mark.parametrize("frequency, gyration", [(3000, 0.06857), (1600, 0.08789), (500, 0.11097)])
def test_exact_gyration(frequency, gyration):
    assert exact_gyration(frequency, 32) == pytest.approx(gyration, abs=5e-6)


def test_many_beads_are_quantum():
    classical = 3000 * PER_CM * HBAR
    quantum = classical / 2 / np.tanh(classical / (2 * KT))
    assert 1e3 * quantum == pytest.approx(185.977, abs=1e-3)
    assert exact_energy(3000, 1024) == pytest.approx(quantum, rel=1e-4)


# The free ring


@pytest.mark.parametrize("n_beads", [1, 2, 3, 8, 17, 32])
def test_modes_diagonalise_the_springs(n_beads, rng):
    modes = NormalModes(n_beads, TEMPERATURE)
    x = torch.tensor(rng.normal(size=(2, n_beads, 3, 3)))
    torch.testing.assert_close(modes.to_beads(modes.from_beads(x)), x)
    masses = torch.tensor(rng.uniform(1, 20, (3, 1)))
    neighbours = 0.5 * modes.spring_frequency**2 * (masses * (x - x.roll(1, 1)) ** 2).sum((1, 2, 3))
    if n_beads == 2:  # whose two beads are each other's neighbour on both sides
        assert float(neighbours[0]) > 0
    torch.testing.assert_close(modes.spring_energy(modes.from_beads(x), masses), neighbours)


@pytest.mark.parametrize("n_beads", [1, 4, 5])
def test_free_motion_is_exact(n_beads, rng):
    """Against the exponential of the equations of motion, and its Cayley form."""
    modes = NormalModes(n_beads, TEMPERATURE)
    masses = torch.tensor([[3.0]])
    q, p = (torch.tensor(rng.normal(size=(1, n_beads, 1, 1))).expand(-1, -1, -1, 3) for _ in range(2))
    time = 0.3 / max(float(modes.frequencies.max()), 1.0)
    for k, omega in enumerate(modes.frequencies.tolist()):
        generator = torch.tensor([[0.0, 1 / 3.0], [-3.0 * omega**2, 0.0]], dtype=torch.float64)
        start = torch.stack([q[0, k, 0, 0], p[0, k, 0, 0]])
        unit = torch.eye(2, dtype=torch.float64)
        cayley = torch.linalg.solve(unit - generator * time, unit + generator * time)
        for kind, whole in (("exact", torch.linalg.matrix_exp(2 * time * generator)), ("cayley", cayley)):
            half = modes.propagator(time, kind)
            end = half(*half(q, p, masses), masses)
            torch.testing.assert_close(torch.stack([end[0][0, k, 0, 0], end[1][0, k, 0, 0]]), whole @ start)


# Sampling


@pytest.mark.parametrize(
    "frequency, n_beads, thermostat, propagator",
    [
        (3000, 1, "pile-l", "cayley"),
        (3000, 1, "pile-g", "exact"),
        (3000, 16, "pile-l", "cayley"),
        (3000, 16, "pile-g", "exact"),
        (3000, 32, "pile-l", "exact"),
        (1600, 16, "pile-g", "cayley"),
        (500, 16, "pile-l", "cayley"),
    ],
)
def test_harmonic_oscillator(frequency, n_beads, thermostat, propagator):
    # With the exact propagator, the step's error grows with the frequencies of the ring.
    timestep = 0.2 if propagator == "exact" else 0.5
    record = sampled(frequency, n_beads, timestep_fs=timestep, thermostat=thermostat, propagator=propagator)
    found = record.averages()
    energy = 3 * exact_energy(frequency, n_beads)
    # Of momenta between two kicks, at the end of a step B A O A B.
    cold = 1 - (frequency * PER_CM * timestep * units.fs) ** 2 / 4
    step = 1e-3
    slope = exact_energy(frequency, n_beads, TEMPERATURE + step) - exact_energy(frequency, n_beads, TEMPERATURE - step)
    expected = {
        "total_energy": energy,
        "total_energy_td": energy,
        "potential": energy / 2,
        "kinetic_cv": energy / 2,
        "kinetic_td": energy / 2,
        "temperature": TEMPERATURE * cold,
        "temperature_centroid": TEMPERATURE * cold,
        "r_gyration": 3**0.5 * exact_gyration(frequency, n_beads),
        "heat_capacity": 3 * slope / (2 * step),
    }
    for name, value in expected.items():
        mean, error = found[name]
        assert abs(mean - value) <= 4 * error + 1e-3 * abs(value), (name, found[name], value)
        assert error <= 0.05 * abs(value) or (name == "heat_capacity" and frequency > 500)


@pytest.mark.parametrize("n_beads", [8, 32])
def test_spread_of_the_estimators(n_beads):
    """The variance of the primitive estimator grows with P, that of the virial one does not."""
    record = sampled(1600, n_beads, steps=1500)
    ring, own = NormalModes(n_beads, TEMPERATURE).frequencies.numpy()[1:] ** 2, (1600 * PER_CM) ** 2
    for name, share in (("kinetic_td", ring / (ring + own)), ("kinetic_cv", own / (ring + own))):
        variance = 1.5 * KT**2 * (share**2).sum()
        assert record.series(name)[40:].var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("thermostat", ["pile-l", "pile-g", "t-rpmd", "none"])
@pytest.mark.parametrize("propagator", ["cayley", "exact"])
def test_what_is_conserved(thermostat, propagator):
    """Its error is of second order in the step."""
    spread = []
    for timestep in (0.4, 0.2):
        atoms, forces = oscillators(1600, 4)
        settings = {"thermostat": thermostat, "propagator": propagator, "temperature_K": TEMPERATURE, "n_beads": 8}
        run = RingPolymerMD(atoms, timestep * units.fs, forces=forces, rng=np.random.default_rng(1), **settings)
        record = Record(run)
        run.attach(record, interval=1)
        run.run(round(100 / timestep))
        conserved = record.series("conserved")
        spread.append(np.abs(conserved - conserved[0]).max())
    assert spread[1] < 0.45 * spread[0] < 1e-3


def test_a_bead_is_classical():
    """One bead without a thermostat moves as ASE's velocity Verlet, up to the order of the step."""
    from ase.md.verlet import VelocityVerlet

    start = bulk("Cu") * (2, 2, 2)
    start.rattle(0.1, seed=1)
    start.set_momenta(np.random.default_rng(0).normal(size=(8, 3)))
    ends = []
    for make in (
        lambda atoms: VelocityVerlet(atoms, 1.0 * units.fs),
        lambda atoms: RingPolymerMD(
            atoms, 1.0 * units.fs, temperature_K=300, n_beads=1, thermostat="none", forces=EMT()
        ),
    ):
        atoms = start.copy()
        atoms.calc = EMT()
        make(atoms).run(50)
        ends.append((atoms.positions, atoms.get_momenta(), atoms.get_potential_energy()))
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_replicas_run_as_alone(frames, model):
    """Each bead of each replica sees its own forces."""
    starts = frames.to_atoms()[:3]
    settings = {"temperature_K": 300, "n_beads": 4, "thermostat": "none", "forces": model, "max_outside": None}
    momenta = np.random.default_rng(3).normal(size=(3, 4, frames.n_atoms, 3))

    def run(atoms, p):
        ring = RingPolymerMD(atoms, 0.25 * units.fs, rng=np.random.default_rng(0), **settings)
        ring._p = ring.modes.from_beads(torch.tensor(p))
        ring.run(20)
        return ring.positions

    together = run([a.copy() for a in starts], momenta)
    for k, atoms in enumerate(starts):
        torch.testing.assert_close(run(atoms.copy(), momenta[k : k + 1])[0], together[k])


def test_calculator_bead_by_bead_as_all_at_once(frames, model):
    atoms = frames.to_atoms()[0]
    ends = []
    for forces in (model, gdml.GDMLCalculator(model), lambda x: model.predict(x)[:2], Slow(model)):
        start = atoms.copy()
        run = RingPolymerMD(
            start, 0.5 * units.fs, temperature_K=300, n_beads=4, forces=forces, rng=np.random.default_rng(0)
        )
        run.run(5)
        ends.append(run.positions)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0])


class Slow(Calculator):
    """A calculator that is asked for one geometry after another."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, force_field):
        super().__init__()
        self.force_field_inside = force_field

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        cell = self.atoms.cell.array if self.force_field_inside.is_periodic else None
        found = self.force_field_inside.predict(self.atoms.positions, cell, "stress" in properties)
        self.results = {"energy": found.energy, "forces": found.forces, "stress": found.stress}


def test_autograd_callable(frames):
    """Energies and forces that still hang in a graph."""

    def forces(x):
        x = x.clone().requires_grad_()
        energy = (x**2).sum((1, 2))
        return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    run = RingPolymerMD(frames.to_atoms()[0], 0.5, temperature_K=300, n_beads=2, forces=forces)
    run.run(3)
    assert not run.positions.requires_grad


def test_the_atoms_show_the_centroid(frames, model):
    """Whenever one can look: at each yield of irun, and after a run with the calculator that they had."""
    atoms = frames.to_atoms()[0]
    atoms.calc = calculator = gdml.GDMLCalculator(model, warn_outside=False)
    run = RingPolymerMD(atoms, 0.5 * units.fs, temperature_K=300, n_beads=4)
    for _ in run.irun(4):
        np.testing.assert_array_equal(atoms.positions, run.centroid[0].numpy())
        assert atoms.get_potential_energy() == pytest.approx(float(run.potential.mean()))
    run.run(3)
    np.testing.assert_array_equal(atoms.positions, run.centroid[0].numpy())
    atoms.calc = calculator
    run = RingPolymerMD(atoms, 0.5 * units.fs, temperature_K=300, n_beads=4)
    run.run(3)
    assert atoms.calc is calculator
    run = RingPolymerMD(atoms, 0.5 * units.fs, temperature_K=300, n_beads=4)
    seen = []
    run.attach(Record(run), interval=1)
    run.attach(lambda: seen.append(np.abs(atoms.positions - run.centroid[0].numpy()).max()), interval=2)
    run.run(4)
    assert seen == [0.0, 0.0, 0.0]


def test_start_from_equilibrated_beads():
    """Without thermostats on the modes, the energy of the start is kept: so take a sampled one."""
    sampled_run = sampled(1600, 8, steps=600).run
    atoms, forces = oscillators(1600, 100)
    settings = {"temperature_K": TEMPERATURE, "n_beads": 8, "forces": forces}
    for thermostat in ("none", "t-rpmd"):
        run = RingPolymerMD(atoms, 0.5 * units.fs, thermostat=thermostat, rng=1, **settings)
        run.start_from(sampled_run.state())
        record = Record(run)
        run.attach(record, interval=10)
        run.run(600)
        found = record.averages()
        for name in ("potential", "kinetic_cv"):
            assert found[name].mean == pytest.approx(1.5 * exact_energy(1600, 8), rel=0.06)
        temperatures = record.mode_temperatures()
        assert temperatures.shape == (8,)
        np.testing.assert_allclose(temperatures, TEMPERATURE, rtol=0.2)


def test_a_start_at_one_point_is_warned_about(frames, model):
    run = RingPolymerMD(
        frames.to_atoms()[0], 0.2, temperature_K=300, n_beads=4, thermostat="none", forces=model, max_outside=None
    )
    with pytest.warns(DynamicsWarning, match="give its state to start_from"):
        run.run(1)


# Constraints


def test_centre_of_mass_is_held(frames, model):
    atoms = frames.to_atoms()[0]
    atoms.set_constraint(FixCom())
    start = atoms.get_center_of_mass()
    run = RingPolymerMD(atoms, 0.5 * units.fs, temperature_K=300, n_beads=8, forces=model, max_outside=None)
    record = Record(run)
    run.attach(record)
    run.run(200)
    np.testing.assert_allclose(atoms.get_center_of_mass(), start, atol=1e-10)
    assert run.n_free == 3 * 9 - 3
    assert abs(record.averages()["temperature"].mean - 300) < 60


def test_fixed_atoms_stay(frames, model):
    atoms = frames.to_atoms()[0]
    atoms.set_constraint(FixAtoms([0, 4]))
    start = atoms.positions.copy()
    run = RingPolymerMD(atoms, 0.5 * units.fs, temperature_K=300, n_beads=4, forces=model, max_outside=None)
    run.run(20)
    beads = run.positions[0].numpy()
    np.testing.assert_allclose(beads[:, [0, 4]], np.broadcast_to(start[[0, 4]], (4, 2, 3)), atol=1e-10)
    assert np.abs(beads[:, 1:4] - start[1:4]).max() > 1e-3


# Constant pressure


class Pairs(NeighborList):
    """The neighbours of the start, for good."""

    def update(self, atoms):
        return self.nl.nupdates == 0 and super().update(atoms)


class Copper(EMT):
    """EMT that looks once for pairs within 1 Å more than it needs, which takes longer than all else."""

    def initialize(self, atoms):
        super().initialize(atoms)
        self.nl = Pairs([0.5 * self.rc_list + 0.5] * len(atoms), self_interaction=False, bothways=True)


def _pressed(pressure, n_beads=1, steps=1000, timestep_fs=4.0, seed=2, **settings):
    """Copper, whose forces and stress come from ASE's EMT."""
    atoms = bulk("Cu") * 2
    run = RingPolymerMD(
        atoms,
        timestep_fs * units.fs,
        temperature_K=300,
        n_beads=n_beads,
        forces=Copper(),
        pressure=pressure,
        tau_p=100 * units.fs,
        rng=seed,
        **settings,
    )
    record = Record(run)
    run.attach(record, interval=2)
    run.run(steps)
    return record, atoms


@pytest.mark.parametrize("constraint", [None, FixCom()])
@pytest.mark.parametrize("n_beads", [1, 3])
def test_volume_of_an_ideal_gas(constraint, n_beads):
    """(N + 1) kT/p, whether or not the centre of mass is held; which then stays where it is."""
    pressure = KT / 50.0
    gas = [Atoms("He3", np.eye(3), cell=[6.0, 6, 6], pbc=True, constraint=constraint) for _ in range(200)]
    run = RingPolymerMD(
        gas,
        20.0 * units.fs,
        temperature_K=TEMPERATURE,
        n_beads=n_beads,
        forces=lambda x, cells=None: (x.new_zeros(len(x)), 0 * x, x.new_zeros(len(x), 6)),
        pressure=pressure,
        tau=100 * units.fs,
        tau_p=1000 * units.fs,
        rng=3,
    )
    record = Record(run)
    run.attach(record, interval=10)
    run.run(1500)
    found = record.averages(discard=0.3)
    assert abs(found["volume"].mean - 4 * KT / pressure) < 4 * found["volume"].error
    assert found["volume"].error < 8
    if constraint:
        np.testing.assert_allclose(run.centroid.mean(1), 1 / 3, atol=1e-9)


def test_pressure_is_kept():
    target = 5 * units.GPa
    record, atoms = _pressed(target)
    found = record.averages()
    mean, error = found["pressure_cv"]
    # That of a piston is known up to a k T / V.
    assert abs(mean - target) < 4 * error + KT / atoms.get_volume()
    assert found["volume"].mean < 0.985 * 8 * 3.61**3 / 4
    assert atoms.get_volume() == pytest.approx(record.series("volume")[-1, 0])
    atoms.calc = EMT()  # and no pair had come from farther away
    assert atoms.get_potential_energy() == pytest.approx(record.series("potential")[-1, 0], abs=1e-9)


def test_a_piston_that_is_too_fast():
    """Found before the cell is anywhere, with the last good state kept."""
    atoms = bulk("Cu", cubic=True)
    settings = {"temperature_K": 300, "n_beads": 2, "forces": EMT(), "pressure": 0.05, "rng": 0}
    with pytest.warns(DynamicsWarning, match=r"longer than the .* fs that the barostat"):
        run = RingPolymerMD(atoms, 2 * units.fs, tau_p=5 * units.fs, **settings)
    with pytest.raises(DynamicsError, match="the volume changes too fast .* is kept"):
        run.run(2000)
    assert 20 < atoms.get_volume() < 80


@pytest.mark.parametrize("thermostat", ["none", "pile-l"])
def test_energy_of_the_piston_is_conserved(thermostat):
    spread = []
    for timestep in (4.0, 1.0):
        errors = []
        for seed in range(3):
            settings = {"timestep_fs": timestep, "thermostat": thermostat, "seed": seed}
            record, _ = _pressed(2 * units.GPa, 2, round(160 / timestep), **settings)
            conserved = record.series("conserved")[:, 0]
            errors.append(np.abs(conserved - conserved[0]).max())
            assert np.ptp(record.series("volume")) > 0.5
        spread.append(np.mean(errors))
    assert spread[1] < 0.25 * spread[0]


# Averages


def test_block_average_of_correlated_samples(rng):
    """An autoregressive series, whose error is known."""
    keep, n = 0.9, 40_000
    noise = rng.normal(size=(n, 4))
    series = np.zeros((n, 4))
    for k in range(1, n):
        series[k] = keep * series[k - 1] + noise[k]
    exact = 1 / (1 - keep) / np.sqrt(n * 4)
    mean, error = block_average(series)
    assert error == pytest.approx(exact, rel=0.3)
    assert abs(mean) < 4 * exact
    variance = jackknife(lambda x: x.var(), series)
    assert abs(variance.mean - 1 / (1 - keep**2)) < 4 * variance.error


def test_errors_cover_slow_motion():
    """Where the thermostat is slow beside the run: the spread of many runs against the error that each claims."""
    runs = sampled(1000, 4, steps=4000, n_replicas=60, tau=100 * units.fs)
    series = runs.series("potential")[80:]
    claimed = np.mean([block_average(one).error for one in series.T])
    assert claimed > 0.7 * series.mean(0).std()


def test_too_few_samples():
    assert np.isnan(block_average([1.0, 2.0]).error)
    assert block_average([1.0, 2.0]).mean == 1.5


# Whole runs


def run_of(model, frames, folder, steps=60, **settings):
    atoms = frames.to_atoms()[0]
    files = {"trajectory": folder / "centroid.traj", "bead_trajectory": folder / "beads.traj"}
    files |= {"restart": folder / "restart.npz", "restart_interval": 20}
    settings = {"temperature_K": 300, "n_beads": 4, "interval": 5} | files | settings
    return run_pimd(model, atoms, steps=steps, **settings), atoms


def test_outputs(model, frames, tmp_path):
    record, atoms = run_of(model, frames, tmp_path)
    centroid, beads = read(tmp_path / "centroid.traj", ":"), read(tmp_path / "beads.traj", ":")
    assert (len(centroid), len(beads)) == (13, 13 * 4)
    last = np.mean([b.positions for b in beads[-4:]], 0)
    np.testing.assert_allclose(centroid[-1].positions, last)
    np.testing.assert_allclose(atoms.positions, last)
    potential = record.series("potential")[:, 0]
    np.testing.assert_allclose([a.get_potential_energy() for a in centroid], potential)
    assert record.counts.sum() == 13 * 4 * 9


@pytest.mark.parametrize("killed_after", [7, 33, 59])
def test_a_killed_run_goes_on_as_if_it_had_not_been(model, frames, tmp_path, monkeypatch, killed_after):
    """Killed, so that nothing is written any more, at any step: the same to the last bit."""
    (tmp_path / "whole").mkdir()
    whole, end = run_of(model, frames, tmp_path / "whole")
    step = RingPolymerMD.step

    class Killed(BaseException):
        pass

    def fatal(self):
        if self.nsteps == killed_after:
            raise Killed
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(RingPolymerMD, "step", fatal)
        patch.setattr("gdml.dynamics.restarts.Restart.write", _only_called)
        with pytest.raises(Killed):
            run_of(model, frames, tmp_path)
    continued, atoms = run_of(model, frames, tmp_path, resume=True)
    np.testing.assert_array_equal(atoms.positions, end.positions)
    for name in whole.samples:
        np.testing.assert_array_equal(continued.series(name), whole.series(name))
    np.testing.assert_array_equal(continued.counts, whole.counts)
    for name in ("centroid.traj", "beads.traj"):
        ours, theirs = (read(folder / name, ":") for folder in (tmp_path, tmp_path / "whole"))
        assert len(ours) == len(theirs)
        np.testing.assert_array_equal([a.positions for a in ours], [a.positions for a in theirs])


def _only_called(self, state, write=gdml.dynamics.Restart.write):
    """As a kill: what a run writes when it breaks off is not written."""
    if state is not self.run.last_good:
        write(self, state)


@pytest.mark.parametrize("where", ["step", "observer", "trajectory", "beads"])
def test_interrupted(model, frames, tmp_path, monkeypatch, where):
    """By Ctrl-C, in the middle of a step or of any observer: the same to the last bit."""
    (tmp_path / "whole").mkdir()
    whole, end = run_of(model, frames, tmp_path / "whole")
    owner, name, at = {
        "step": (RingPolymerMD, "_kick", 17),
        "observer": (Record, "_count", 30),
        "trajectory": (RingPolymerMD, "_traj_write_image", 30),
        "beads": (gdml.dynamics.BeadWriter, "__call__", 30),
    }[where]
    original = getattr(owner, name)

    def interrupted(self, *args, **kwargs):
        if getattr(self, "run", self) is not None and getattr(getattr(self, "run", None), "nsteps", None) == at:
            raise KeyboardInterrupt
        if isinstance(self, RingPolymerMD) and self.nsteps == at:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_of(model, frames, tmp_path)
    continued, atoms = run_of(model, frames, tmp_path, resume=True)
    np.testing.assert_array_equal(atoms.positions, end.positions)
    for sample in whole.samples:
        np.testing.assert_array_equal(continued.series(sample), whole.series(sample))
    np.testing.assert_array_equal(continued.counts, whole.counts)
    for file, n_frames in (("centroid.traj", 13), ("beads.traj", 52)):
        assert len(read(tmp_path / file, ":")) == n_frames


def test_a_step_that_fails_leaves_the_state_before_it(frames, model):
    """So that trying again is as if nothing had happened."""
    ends = []
    for fails in (False, True):
        calculator, failed = Slow(model), []
        run = RingPolymerMD(
            frames.to_atoms()[0],
            0.5 * units.fs,
            temperature_K=300,
            n_beads=3,
            forces=calculator,
            rng=0,
            max_outside=None,
        )
        if fails:
            predict = calculator.calculate

            def broken(*args, failed=failed, predict=predict, run=run, **kwargs):
                if run.nsteps == 13 and not failed:
                    failed.append(True)
                    raise RuntimeError("no convergence")
                return predict(*args, **kwargs)

            calculator.calculate = broken
            with pytest.raises(RuntimeError, match="no convergence"):
                run.run(20)
            assert run.nsteps == 13
        run.run(20 - run.nsteps)
        ends.append(run.positions)
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:the force field was trained without stress")
@pytest.mark.parametrize("settings", [{"pressure_GPa": 1.0}, {"thermostat": "pile-g"}, {"heat_capacity": True}])
def test_other_ensembles_go_on_too(settings, tmp_path):
    rng = np.random.default_rng(0)
    ideal = bulk("Cu", cubic=True) * 2
    positions = ideal.positions + rng.normal(scale=0.05, size=(4, 32, 3))
    frames = gdml.Dataset(
        positions, ideal.numbers, forces=-(positions - ideal.positions), cell=ideal.cell.array, pbc=True
    )
    force_field = gdml.fit(frames, reference=ideal, length_scale=20.0, noise=1e-3)
    common = {"temperature_K": 100, "n_beads": 2, "interval": 5, "restart": tmp_path / "r.npz"} | settings
    whole = run_pimd(force_field, ideal.copy(), steps=20, **common | {"restart": None})
    run_pimd(force_field, ideal.copy(), steps=10, **common)
    continued = run_pimd(force_field, ideal.copy(), steps=20, resume=True, **common)
    for name in whole.samples:
        np.testing.assert_array_equal(continued.series(name), whole.series(name))
    assert "pressure_cv" in whole.averages()
    if "heat_capacity" in settings:
        assert "heat_capacity" in continued.averages()


def test_what_is_finished_stays(model, frames, tmp_path):
    _, atoms = run_of(model, frames, tmp_path, steps=20)
    _, again = run_of(model, frames, tmp_path, steps=20, resume=True)
    np.testing.assert_array_equal(again.positions, atoms.positions)
    with pytest.raises(DataError, match="20 steps already, more than the 10 in all"):
        run_of(model, frames, tmp_path, steps=10, resume=True)
    with pytest.raises(OutputError, match="here is a run already"):
        run_of(model, frames, tmp_path, steps=20)
    with pytest.raises(OutputError, match="no such restart file, and .* would be lost"):
        run_of(model, frames, tmp_path, steps=20, resume=True, restart=tmp_path / "typo.npz")
    with pytest.raises(DataError, match="say from which"):
        run_of(model, frames, tmp_path, steps=20, resume=True, restart=None)
    with pytest.raises(DataError, match=r"interval \(5 there, 10 here\)"):
        run_of(model, frames, tmp_path, steps=40, resume=True, interval=10)
    assert len(read(tmp_path / "beads.traj", ":")) == 5 * 4


def test_beads_of_another_run(model, frames, tmp_path):
    record, _ = run_of(model, frames, tmp_path, steps=20)
    other = run_pimd(
        model, frames.to_atoms()[0], steps=5, temperature_K=300, n_beads=4, interval=5, thermostat="t-rpmd",
        start=tmp_path / "restart.npz",
    )  # fmt: skip
    assert other.series("r_gyration")[0] == pytest.approx(record.series("r_gyration")[-1])


def test_command_line(model, frames, tmp_path, capsys):
    model.save(tmp_path / "model.npz")
    frames.write(tmp_path / "start.extxyz")
    common = ["pimd", str(tmp_path / "model.npz"), str(tmp_path / "start.extxyz"), "--temperature", "300", "-q"]
    common += ["--beads", "4", "--interval", "2", "--restart", str(tmp_path / "r.npz"), "--heat-capacity"]
    files = ["--samples", str(tmp_path / "s.txt"), "--plot", str(tmp_path / "p.png"), "-o", str(tmp_path / "c.traj")]
    assert main([*common, "--steps", "40", *files]) == 0
    out = capsys.readouterr().out
    assert "kinetic_cv" in out and "heat_capacity" in out and "40 steps of 4 beads" in out
    table = np.loadtxt(tmp_path / "s.txt")
    assert table.shape[0] == 21
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert main([*common, "--steps", "60"]) == 5
    assert "go on with it (--resume" in capsys.readouterr().err
    assert main([*common, "--steps", "60", "--resume", *files]) == 0
    assert np.loadtxt(tmp_path / "s.txt").shape[0] == 31
    assert len(read(tmp_path / "c.traj", ":")) == 31


# What does not fit


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n_beads": 0}, "n_beads must be at least 1"),
        ({"n_beads": 2.5}, "n_beads must be a whole number"),
        ({"n_beads": "4"}, "n_beads must be a whole number"),
        ({"temperature_K": 0}, "temperature_K must be positive"),
        ({"temperature_K": -1}, "temperature_K must be positive"),
        ({"timestep": np.nan}, "timestep must be positive"),
        ({"thermostat": "nose"}, "the thermostat is one of pile-l"),
        ({"propagator": "verlet"}, "the propagator is one of cayley"),
        ({"pressure": 0.0}, "needs atoms that are periodic"),
        ({"forces": 3}, "forces must be a force field"),
        ({"forces": None}, "there are no forces"),
    ],
)
def test_settings_that_make_no_sense(settings, message, model, frames):
    settings = {"temperature_K": 300, "n_beads": 2, "timestep": 0.5, "forces": model} | settings
    with pytest.raises(DataError, match=message):
        RingPolymerMD(frames.to_atoms()[0].copy() if settings["forces"] else Atoms("H"), **settings)


def test_constraints_that_make_no_sense(model, frames):
    atoms = frames.to_atoms()[0]
    atoms.set_constraint(FixBondLengths([[0, 1]]))
    with pytest.raises(DataError, match="FixCom and FixAtoms make sense"):
        RingPolymerMD(atoms, 0.5, temperature_K=300, forces=model)
    atoms.set_constraint([FixCom(), FixAtoms([0])])
    with pytest.raises(DataError, match="contradict each other"):
        RingPolymerMD(atoms, 0.5, temperature_K=300, forces=model)


def test_heat_capacity_of_other_ensembles(frames, model):
    run = RingPolymerMD(frames.to_atoms()[0], 0.2, temperature_K=300, n_beads=2, thermostat="none", forces=model)
    with pytest.raises(DataError, match="needs a fixed volume"):
        Record(run, heat_capacity=True)


def test_a_start_without_an_energy(frames):
    with pytest.raises(DynamicsError, match="at the start: the energy of bead 0 of replica 0 is nan"):
        RingPolymerMD(
            frames.to_atoms()[0], 0.2, temperature_K=300, n_beads=2, forces=lambda x: (x[:, 0, 0] * np.nan, 0 * x)
        )


def test_other_atoms(model):
    with pytest.raises(ModelMismatchError):
        RingPolymerMD(Atoms("H2O", np.eye(3)), 0.5, temperature_K=300, forces=model)


def test_replicas_that_differ(model, frames):
    atoms = frames.to_atoms()[0]
    heavy, held = atoms.copy(), atoms.copy()
    heavy.set_masses([20.0] * len(atoms))
    held.set_constraint(FixAtoms([0]))
    for other, message in (
        (atoms[::-1], "replica 1 is .* unlike replica 0"),
        (heavy, "other masses"),
        (held, "other constraints"),
        (atoms, "given twice"),
    ):
        with pytest.raises(DataError, match=message):
            RingPolymerMD([atoms, other], 0.5, temperature_K=300, forces=model)


@pytest.mark.parametrize("propagator", ["exact", "cayley"])
@pytest.mark.parametrize("n_beads", [1, 8, 11, 32])
def test_longest_step(propagator, n_beads):
    """Just below, the energy is kept; just above, the run explodes, and was warned about."""
    atoms, forces = oscillators(3000, 4)
    settings = {"temperature_K": 300, "n_beads": n_beads, "forces": forces, "propagator": propagator}
    settings |= {"thermostat": "none", "rng": 0}
    run = RingPolymerMD(atoms, 0.1 * units.fs, **settings)
    assert run.highest_frequency() == pytest.approx(3000 * PER_CM, rel=1e-6)
    limit, _ = run.longest_step()
    assert limit <= 2 / (3000 * PER_CM) * (1 + 1e-6)
    RingPolymerMD([a.copy() for a in atoms], 0.97 * limit, **settings).run(300)
    with pytest.warns(DynamicsWarning, match="longer than the"):
        run = RingPolymerMD([a.copy() for a in atoms], 1.03 * limit, **settings)
    with pytest.raises(DynamicsError, match="the temperature is"):
        run.run(300)


def test_missing_stress(model, frames):
    atoms = frames.to_atoms()[0]
    atoms.set_cell([20, 20, 20])
    atoms.pbc = True
    with pytest.raises(DataError, match="stress"):
        RingPolymerMD(atoms, 0.5, temperature_K=300, forces=model, pressure=0.0)
    with pytest.raises(DataError, match="a pressure needs stress"):
        RingPolymerMD(
            atoms, 0.5, temperature_K=300, forces=lambda x, cells=None: (x.new_zeros(len(x)), 0 * x), pressure=0.0
        )


def test_beads_that_explode(model, frames, tmp_path):
    """The last good state is kept, and can be gone on from."""
    step = RingPolymerMD.step
    atoms = frames.to_atoms()[0]
    with pytest.MonkeyPatch.context() as patch:

        def kicked(self):
            if self.nsteps == 25:
                self._p[0, :, 4] += 50.0
            step(self)

        patch.setattr(RingPolymerMD, "step", kicked)
        with pytest.raises(DynamicsError, match="at step 30: .* The state of step 20 is kept"):
            run_of(model, frames, tmp_path)
    record, atoms = run_of(model, frames, tmp_path, resume=True)
    assert record.series("step")[-1, 0] == 60


@pytest.mark.parametrize("length, stops", [(1.25, False), (1.6, True), (3.0, True)])
def test_beads_that_leave_the_training_region(model, frames, length, stops):
    """The bond of the hydroxyl group, 0.95 to 1.1 Å in training or so, with the default setting."""
    atoms = frames.to_atoms()[0]
    distances = atoms.get_all_distances()
    oxygen = list(atoms.symbols).index("O")
    hydrogen = next(i for i in np.argsort(distances[oxygen]) if atoms.symbols[i] == "H")
    atoms.set_distance(oxygen, hydrogen, length, fix=0)
    run = RingPolymerMD(atoms, 1e-3 * units.fs, temperature_K=1e-3, n_beads=2, forces=lambda x: (0 * x[:, 0, 0], 0 * x))
    run.source = model
    if stops:
        with pytest.raises(DynamicsError, match=f"O{oxygen}|H{hydrogen}.* apart, in training"):
            run.run(10)
    else:
        run.run(10)


def test_restart_of_another_run(model, frames, tmp_path):
    run_of(model, frames, tmp_path, steps=20)
    with pytest.raises(DataError, match=r"it differs in n_beads \(4 there, 8 here\)"):
        run_of(model, frames, tmp_path, resume=True, n_beads=8)
    run_of(model, frames, tmp_path, steps=25, resume=True, temperature_K=300.0)
    with pytest.raises(DataError, match="it differs in forces"):
        run_of(gdml.fit(frames[:20], length_scale=20.0), frames, tmp_path, resume=True)
    (tmp_path / "restart.npz").write_bytes((tmp_path / "restart.npz").read_bytes()[:500])
    with pytest.raises(FormatError, match="cut short"):
        run_of(model, frames, tmp_path, resume=True)
    model.save(tmp_path / "restart.npz")
    with pytest.raises(FormatError, match="no restart file"):
        run_of(model, frames, tmp_path, resume=True)


def test_a_trajectory_that_is_gone(model, frames, tmp_path):
    run_of(model, frames, tmp_path, steps=20)
    (tmp_path / "beads.traj").unlink()
    with pytest.raises(OutputError, match=r"beads.traj: the trajectory .* is not there"):
        run_of(model, frames, tmp_path, resume=True)
    (tmp_path / "beads.traj").write_text("something else")
    with pytest.raises(FormatError, match=r"beads.traj: this trajectory cannot be read"):
        run_of(model, frames, tmp_path, resume=True)
