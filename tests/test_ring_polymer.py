"""Path-integral dynamics against what is known exactly of harmonic oscillators, and against ASE."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLengths, FixCom
from ase.io import read

import gdml
from gdml.cli import main
from gdml.dynamics import Record, RingPolymerMD, block_average, run_pimd
from gdml.dynamics.averages import jackknife
from gdml.dynamics.normal_modes import HBAR, NormalModes
from gdml.errors import DataError, DynamicsError, DynamicsWarning, FormatError, ModelMismatchError, OutputError

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
    assert exact_energy(3000, 4096) == pytest.approx(quantum, rel=1e-4)


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
        assert error <= 0.05 * abs(value) or name == "heat_capacity"


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
    for forces in (model, gdml.GDMLCalculator(model), lambda x: model.predict(x)[:2], _Slow(model)):
        start = atoms.copy()
        run = RingPolymerMD(
            start, 0.5 * units.fs, temperature_K=300, n_beads=4, forces=forces, rng=np.random.default_rng(0)
        )
        run.run(5)
        ends.append(run.positions)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0])


class _Slow(gdml.GDMLCalculator):
    """A calculator that is asked for one geometry after another."""

    @property
    def __class__(self):
        return object


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


def _pressed(pressure, n_beads=1, steps=1000, timestep_fs=4.0, **settings):
    """Copper, whose forces and stress come from ASE's EMT."""
    atoms = bulk("Cu", cubic=True) * 2
    run = RingPolymerMD(
        atoms,
        timestep_fs * units.fs,
        temperature_K=300,
        n_beads=n_beads,
        forces=EMT(),
        pressure=pressure,
        tau_p=100 * units.fs,
        rng=np.random.default_rng(2),
        **settings,
    )
    record = Record(run)
    run.attach(record, interval=2)
    run.run(steps)
    return record, atoms


def test_pressure_is_kept():
    target = 5 * units.GPa
    record, atoms = _pressed(target)
    found = record.averages()
    mean, error = found["pressure_cv"]
    # That of a piston is known up to a k T / V.
    assert abs(mean - target) < 4 * error + KT / atoms.get_volume()
    assert atoms.get_volume() < 0.985 * 8 * 3.61**3
    assert atoms.get_volume() == pytest.approx(record.series("volume")[-1, 0])


@pytest.mark.parametrize("thermostat", ["none", "pile-l"])
def test_energy_of_the_piston_is_conserved(thermostat):
    spread = []
    for timestep in (4.0, 1.0):
        steps = round(240 / timestep)
        record, _ = _pressed(2 * units.GPa, 4, steps, timestep_fs=timestep, thermostat=thermostat)
        conserved = record.series("conserved")[:, 0]
        spread.append(np.abs(conserved - conserved[0]).max())
        assert np.ptp(record.series("volume")) > 1.0
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


def test_interrupted(model, frames, tmp_path, monkeypatch):
    """Ctrl-C keeps the last good state."""
    step = RingPolymerMD.step

    def interrupted(self):
        if self.nsteps == 17:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(RingPolymerMD, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_of(model, frames, tmp_path)
    continued, _ = run_of(model, frames, tmp_path, resume=True)
    np.testing.assert_array_equal(continued.series("step")[:, 0], np.arange(0, 61, 5))


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
    assert "go on with it (--resume), or delete it" in capsys.readouterr().err
    assert main([*common, "--steps", "60", "--resume", *files]) == 0
    assert np.loadtxt(tmp_path / "s.txt").shape[0] == 31
    assert len(read(tmp_path / "c.traj", ":")) == 31


# What does not fit


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n_beads": 0}, "n_beads must be at least 1"),
        ({"n_beads": 2.5}, "n_beads must be at least 1"),
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


def test_other_atoms(model):
    with pytest.raises(ModelMismatchError):
        RingPolymerMD(Atoms("H2O", np.eye(3)), 0.5, temperature_K=300, forces=model)


def test_replicas_that_differ(model, frames):
    atoms = frames.to_atoms()[0]
    with pytest.raises(DataError, match="replica 1 is .* unlike replica 0"):
        RingPolymerMD([atoms, atoms[::-1]], 0.5, temperature_K=300, forces=model)


@pytest.mark.parametrize("propagator, timestep", [("exact", 2.0), ("cayley", 4.0)])
def test_steps_that_are_too_long(propagator, timestep):
    atoms, forces = oscillators(3000, 1)
    settings = {"temperature_K": 300, "n_beads": 32, "forces": forces, "propagator": propagator}
    with pytest.warns(DynamicsWarning, match="longer than the"):
        run = RingPolymerMD(atoms, timestep * units.fs, **settings)
    assert run.highest_frequency() == pytest.approx(3000 * PER_CM, rel=1e-6)
    expected = {"exact": np.pi / (2 * 32 * KT / HBAR), "cayley": 2 / (3000 * PER_CM)}[propagator]
    assert run.longest_step()[0] == pytest.approx(expected, rel=1e-6)


def test_missing_stress(model, frames):
    atoms = frames.to_atoms()[0]
    atoms.set_cell([20, 20, 20])
    atoms.pbc = True
    with pytest.raises(DataError, match="stress"):
        RingPolymerMD(atoms, 0.5, temperature_K=300, forces=model, pressure=0.0)


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


def test_beads_that_leave_the_training_region(model, frames):
    atoms = frames.to_atoms()[0]
    run = RingPolymerMD(atoms, 0.5 * units.fs, temperature_K=300, n_beads=4, forces=model, max_outside=1e-9)
    run._q[:, 0, 3] += 2.0
    run._p *= 0
    with pytest.raises(DynamicsError, match="apart, in training|the temperature is"):
        run.run(20)


def test_restart_of_another_run(model, frames, tmp_path):
    run_of(model, frames, tmp_path, steps=20)
    with pytest.raises(DataError, match=r"it differs in n_beads \(4 there, 8 here\)"):
        run_of(model, frames, tmp_path, resume=True, n_beads=8)
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
