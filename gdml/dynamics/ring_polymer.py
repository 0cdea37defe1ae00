"""Path-integral molecular dynamics, with all beads of all replicas in one evaluation of the forces."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCom
from ase.md.md import MolecularDynamics
from torch import Tensor

from ..errors import DataError, DynamicsError, DynamicsWarning, GDMLError
from ..force_field import ForceField
from ..hardware import check_device
from .barostat import Barostat
from .classical import MAX_TEMPERATURE, check_settings
from .forces import batched, check_precision_error, source_of
from .normal_modes import NormalModes
from .settings import check_names, check_replicas, name_of, natural
from .stability import highest_frequency, longest_step
from .thermostats import Thermostat

CHECK_INTERVAL = 10  # steps between looks at whether the state is sound
MAX_GROWTH = 0.1  # of the cell's logarithm in a step
# What a step changes, besides the barostat and the generator of random numbers.
CHANGING = ("_q", "_p", "_f", "_bead_forces", "_potential", "_stress", "_cells", "_heat")


def generator_on(device: torch.device) -> torch.Generator:
    """Random numbers that are drawn where they are used."""
    return torch.Generator(device)


class RingPolymerMD(MolecularDynamics):
    r"""Path-integral molecular dynamics in ASE's manner.

    Each atom is a ring of P beads, which are classical particles at the temperature
    P T, tied by springs; their distribution is that of the quantum nuclei as P grows
    (a few times ħω/kT of the highest frequency). One bead is classical dynamics.

    A step is B A O A B: forces, free ring, thermostat, free ring, forces.

    Source: M. Parrinello, A. Rahman, J. Chem. Phys. 80, 860 (1984); I. R. Craig,
    D. E. Manolopoulos, J. Chem. Phys. 121, 3368 (2004); J. Liu, D. Li, X. Liu,
    J. Chem. Phys. 145, 024103 (2016), for the order of the step.

    Parameters
    ----------
    atoms : Atoms, or list of Atoms
        Start of all beads; several are replicas that run independently side by
        side. Where anything can look at them, ``atoms`` (the first replica) have
        positions and momenta of the centroid, the mean energy of the beads and the
        force on the centroid. Momenta of a replica that are not all zero are its
        centroid's start, else they are drawn. All beads start at one point: see
        `start_from` for dynamics without a thermostat.
    timestep : float
        In ASE's units (``0.5 * units.fs``).
    temperature_K : float
    n_beads : int
    thermostat : {"pile-l", "pile-g", "t-rpmd", "none"}
        See `Thermostat`. "none" keeps the energy (RPMD, or classical NVE).
    propagator : {"cayley", "exact"}
        Of the free ring. The exact one is unstable from steps of a little less than
        π / (2 P k_B T / ħ) on; Cayley's is stable up to 2 / ω of the atoms. See
        `longest_step`.
    tau : float
        Time of the centroid's thermostat, in ASE's units; 100 fs by default.
    pressure : float, optional
        In eV/Å³: keeps this pressure, by scaling the cell isotropically; needs stress.
    tau_p : float
        Time of the barostat, in ASE's units; 500 fs by default.
    forces : ForceField, callable or ASE calculator, optional
        By default the calculator of the atoms. A force field takes all beads in one
        call, a calculator one after another; a callable (M, N, 3) -> (M,), (M, N, 3)
        is called with tensors (see `gdml.dynamics.forces.batched`).
    max_outside : float or None
        Ends the run when a pair of atoms leaves the range of its distances in
        training by so many times the width of that range; None never does.
    rng : numpy.random.Generator or int, optional
    device : str
        Of the positions ("cpu", "cuda").
    trajectory, logfile, loginterval, append_trajectory
        As of ASE's dynamics; of the centroid of the first replica.

    Attributes
    ----------
    moves : (N, 1) tensor
        One for atoms that move, zero for those that are fixed.
    holds_com : bool
        Whether the centre of mass of the centroid is held.
    evaluate : callable
        What gives the forces: see `gdml.dynamics.forces.batched`.
    n_outside : int
        Looks at a state, every tenth step, that found a bead outside the training region.

    Raises
    ------
    DataError
        For settings that make no sense, different replicas, or constraints other
        than FixCom and FixAtoms.
    ModelMismatchError
        For a force field of other atoms, or periodic in another way.
    DynamicsError
        For a start that has no finite energy.

    Warns
    -----
    DynamicsWarning
        For a step that is too long for the propagator.
    """

    def __init__(
        self,
        atoms: Atoms | Sequence[Atoms],
        timestep: float,
        *,
        temperature_K: float,
        n_beads: int = 32,
        thermostat: str = "pile-l",
        propagator: str = "cayley",
        tau: float = 100 * units.fs,
        pressure: float | None = None,
        tau_p: float = 500 * units.fs,
        forces: object = None,
        max_outside: float | None = 2.0,
        rng: np.random.Generator | None = None,
        device: str | torch.device | None = None,
        trajectory: str | Path | None = None,
        logfile: str | Path | None = None,
        loginterval: int = 10,
        **kwargs,
    ):
        replicas = [atoms] if isinstance(atoms, Atoms) else list(atoms)
        n_beads = natural(n_beads)
        check_settings(timestep=timestep, temperature_K=temperature_K, tau=tau, tau_p=tau_p)
        check_names(thermostat, propagator)
        check_replicas(replicas, pressure)
        self.atoms, self.dt, self.nsteps = replicas[0], float(timestep), 0
        self.replicas, self.n_beads, self.temperature_K = replicas, n_beads, float(temperature_K)
        self.kind, self.propagator, self.max_outside = thermostat, propagator, max_outside
        self.source = source_of(forces, replicas[0])
        self.evaluate = batched(self.source, replicas[0])
        check_precision_error(self.source, np.array([a.positions for a in replicas]), replicas[0].cell.array)
        self.n_outside, self.records, self._only_at_observers = 0, [], False
        self._shape = (len(replicas), n_beads, len(replicas[0]), 3)
        on = self.source.device if isinstance(self.source, ForceField) else None
        device = check_device(on if device is None else device)
        self.device = device
        self._tensor = lambda x: torch.tensor(np.asarray(x, dtype=float), device=device)
        self._masses = self._tensor(replicas[0].get_masses()).view(-1, 1)
        self.generator = generator_on(device)
        self.generator.manual_seed(int(np.random.default_rng(rng).integers(2**62)))
        self.modes = NormalModes(n_beads, temperature_K, device)
        self._constrain(replicas[0])
        in_crystal = getattr(self.source, "pbc", None) == (True, True, True)
        self._wants_stress = pressure is not None or in_crystal
        self._prepare(tau, pressure, tau_p, device)
        self._start()  # before ASE deletes an old trajectory
        super().__init__(
            replicas[0], self.dt, trajectory=trajectory, logfile=logfile, loginterval=loginterval, **kwargs
        )

    # Preparation

    def _constrain(self, atoms: Atoms) -> None:
        self.moves = torch.ones_like(self._masses)
        self.holds_com = False
        for constraint in atoms.constraints:
            if type(constraint) is FixCom:
                self.holds_com = True
            else:
                self.moves[torch.as_tensor(constraint.index)] = 0.0
        if self.holds_com and not bool(self.moves.all()):
            raise DataError("FixCom and FixAtoms contradict each other; fixed atoms hold the rest already")
        self.n_free = 3 * int(self.moves.sum()) - 3 * self.holds_com

    def _prepare(self, tau: float, pressure: float | None, tau_p: float, device: torch.device) -> None:
        kt = self.n_beads * units.kB * self.temperature_K
        self._kt = kt
        self._free = self.modes.propagator(0.5 * self.dt, self.propagator)
        self._thermostat = Thermostat(self.kind, self.modes.frequencies, kt, tau, self.dt)
        self.barostat = None
        if pressure is not None:
            if not bool(self.moves.all()):
                raise DataError("a barostat scales all positions, so that no atom can be fixed")
            thermalized = self.kind != "none"
            self.barostat = Barostat(pressure, tau_p, kt, self._shape, thermalized, self.dt, self.holds_com, device)

    def _start(self) -> None:
        beads = self._tensor([a.positions for a in self.replicas])[:, None].expand(self._shape)
        self._q = self.modes.from_beads(beads.contiguous())
        periodic = bool(self.replicas[0].pbc.any())
        self._cells = self._tensor([a.cell.array for a in self.replicas]) if periodic else None
        self._heat = torch.zeros(self._shape[0], dtype=torch.float64, device=self._q.device)
        noise = torch.randn(self._shape, dtype=torch.float64, device=self._q.device, generator=self.generator)
        self._p = noise * torch.sqrt(self._masses * self._kt)
        momenta = self._tensor([a.get_momenta() for a in self.replicas])
        given = momenta.flatten(1).any(1)
        self._p[given, 0] = momenta[given] * self.n_beads**0.5
        self._p = self._projected(self._p)
        try:
            self._force()
        except PropertyNotImplementedError as error:
            raise DataError(f"a pressure needs stress, which these forces come without ({error})") from error
        problem = self._energy_problem()
        if problem:
            raise DynamicsError(f"at the start: {problem}")
        self._good = self.state()
        details = getattr(self.source, "details", {})
        if self.barostat and details.get("use_stress") is False:
            warnings.warn(
                "the force field was trained without stress (use_stress): the volume at a pressure is extrapolated",
                DynamicsWarning,
                stacklevel=4,
            )
        self._collapsed = self.n_beads > 1 and self.kind in ("none", "t-rpmd")
        self._warn_of_long_steps()

    def start_from(self, state: dict[str, np.ndarray]) -> None:
        """Take positions and momenta of the beads from the `state` of another run of as many beads and replicas.

        Dynamics without a thermostat on the internal modes keeps what it starts with,
        so that its start has to be sampled by a run with ``pile-l``.

        Raises
        ------
        DataError
            If the shapes differ.
        """
        if np.shape(state["q"]) != self._shape or ("cells" in state) != (self._cells is not None):
            raise DataError(f"the state is of (replicas, beads, atoms, 3) = {np.shape(state['q'])}, not {self._shape}")
        self._collapsed = False
        self._q, self._p = self._tensor(state["q"]), self._projected(self._tensor(state["p"]))
        if self._cells is not None:
            self._cells = self._tensor(state["cells"])
        self._force()
        self._good = self.state()
        self._refresh_properties()

    def _warn_of_long_steps(self) -> None:
        limit, why = self.longest_step()
        if self.dt > limit:
            warnings.warn(
                f"the time step of {self.dt / units.fs:.3g} fs is longer than the {limit / units.fs:.3g} fs that "
                f"{why} can take; shorten it{'' if self.propagator == 'cayley' else ', or take propagator=cayley'}",
                DynamicsWarning,
                stacklevel=4,
            )

    def longest_step(self) -> tuple[float, str]:
        """The limit of stability of a step for the vibrations about the start, in ASE's units, and what sets it."""
        return longest_step(self)

    def highest_frequency(self) -> float:
        """Of the vibrations about the start, as an angular frequency in ASE's units."""
        return highest_frequency(self)

    # The step

    def step(self) -> None:
        """One time step of all beads; one that fails leaves the state before it.

        Raises
        ------
        DynamicsError
            If beads or cell leave every meaningful region; the last good state is kept.
        """
        if self.nsteps % CHECK_INTERVAL == 0:  # and all observers have seen it
            self._good = self.state()
        kept = {name: getattr(self, name) for name in CHANGING}
        piston, generator = self.barostat and self.barostat.momentum, self.generator.get_state()
        try:
            problem = self._step()
        except BaseException as error:
            for name, value in kept.items():
                setattr(self, name, value)
            self.generator.set_state(generator)
            if self.barostat:
                self.barostat.momentum = piston
            if not isinstance(error, GDMLError):
                raise
            problem = str(error)
        if problem is None and (self.nsteps + 1) % CHECK_INTERVAL == 0:
            problem = self._energy_problem() or self._region_problem()
        if problem:
            self._give_up(problem)

    def _step(self) -> str | None:
        half = 0.5 * self.dt
        self._kick(half)
        self._drift(half)
        before = self._kinetic()
        self._p = self._projected(self._thermostat(self._p, self._masses, self.n_free, self.generator))
        self._heat = self._heat + before - self._kinetic()
        if self.barostat:
            self._heat = self._heat + self.barostat.thermalize(self.generator)
        self._drift(half)
        if self.barostat and not bool(
            ((self.barostat.momentum / self.barostat.mass * self.dt).abs() < MAX_GROWTH).all()
        ):
            return f"the volume changes too fast ({self._volumes()}); take a larger tau_p, or a shorter time step"
        self._force()
        self._kick(half)
        return None

    def _volumes(self) -> str:
        shown = ", ".join(f"{v:.4g} Å³" for v in self.volume.tolist()[:3])
        return shown + (", ..." if len(self.volume) > 3 else "")

    def _kick(self, time: float) -> None:
        if self.barostat:
            self.barostat.kick(time, self._p[:, 0], self._f[:, 0], self._masses, self._virial(), self.volume)
        self._p = self._p + time * self._f

    def _drift(self, time: float) -> None:
        q0, p0 = self._q[:, 0], self._p[:, 0]
        self._q, self._p = self._free(self._q, self._p, self._masses)
        if self.barostat:
            self._q[:, 0], self._p[:, 0], scale = self.barostat.drift(time, q0, p0, self._masses)
            if self.holds_com:
                moved = (self._masses * (self._q[:, 0] - q0)).sum(1, keepdim=True) / self._masses.sum()
                self._q[:, 0] -= moved
            self._cells = self._cells * scale.view(-1, 1, 1)

    def _force(self) -> None:
        beads = self.positions.flatten(0, 1)
        found = self.evaluate(beads, self._cells_of_beads(), self._wants_stress)
        self._potential = found.energy.to(beads.dtype).view(self._shape[:2])
        self._bead_forces = found.forces.to(beads.dtype).view(self._shape)
        self._stress = None if found.stress is None else found.stress.view(*self._shape[:2], 6)
        self._f = self._projected(self.modes.from_beads(self._bead_forces))

    def _projected(self, p: Tensor) -> Tensor:
        """Momenta or forces of the modes without what constraints forbid."""
        p = p * self.moves
        if self.holds_com:
            share = p[:, 0].sum(1, keepdim=True) / self._masses.sum()
            p = torch.cat([(p[:, 0] - share * self._masses)[:, None], p[:, 1:]], 1)
        return p

    def _virial(self) -> Tensor:
        """Of the centroid, summed over beads (R,): derivative of the energy by a strain of it."""
        own = self.volume.view(-1, 1) * self._stress[..., :3].sum(-1)
        return (own + (self._bead_forces * self.relative).sum((2, 3))).sum(1)

    def _kinetic(self) -> Tensor:
        return self.mode_kinetic().sum(1)

    # What can be looked at

    @property
    def positions(self) -> Tensor:
        """Of all beads (R, P, N, 3), Å."""
        return self.modes.to_beads(self._q)

    @property
    def momenta(self) -> Tensor:
        """Of all beads (R, P, N, 3), in ASE's units."""
        return self.modes.to_beads(self._p)

    @property
    def centroid(self) -> Tensor:
        """Mean position of the beads (R, N, 3), Å."""
        return self._q[:, 0] / self.n_beads**0.5

    @property
    def cells(self) -> Tensor | None:
        """Of the replicas (R, 3, 3), Å."""
        return self._cells

    @property
    def volume(self) -> Tensor:
        """Of the cells (R,), Å³."""
        return torch.linalg.det(self._cells).abs()

    @property
    def relative(self) -> Tensor:
        """Positions of the beads from their centroid (R, P, N, 3), Å."""
        return self.positions - self.centroid[:, None]

    @property
    def bead_forces(self) -> Tensor:
        """On all beads (R, P, N, 3), eV/Å."""
        return self._bead_forces

    @property
    def potential(self) -> Tensor:
        """Energy of each bead (R, P), eV."""
        return self._potential

    @property
    def stress(self) -> Tensor | None:
        """Of each bead (R, P, 6), eV/Å³, with a barostat, or a force field of a crystal."""
        return self._stress

    @property
    def n_moving(self) -> int:
        """Degrees of freedom of an internal mode."""
        return 3 * int(self.moves.sum())

    def spring_energy(self) -> Tensor:
        """Of the springs (R,), eV, at the temperature P T."""
        return self.modes.spring_energy(self._q, self._masses)

    def mode_kinetic(self) -> Tensor:
        """Kinetic energy of each mode (R, P), eV, at the temperature P T."""
        return 0.5 * (self._p**2 / self._masses).sum((2, 3))

    def forces_at(self, positions: Tensor) -> Tensor:
        """Forces on beads at other positions (R, P, N, 3)."""
        return self.evaluate(positions.flatten(0, 1), self._cells_of_beads(), False).forces.view(self._shape)

    def conserved(self) -> Tensor:
        """Energy (R,) of a bead that no motion but that of the time step's error changes, eV."""
        total = self._kinetic() + self.spring_energy() + self._potential.sum(1) + self._heat
        if self.barostat:
            total = total + self.barostat.energy(self.volume)
        return total / self.n_beads

    # Soundness, and what is kept

    def _give_up(self, problem: str) -> None:
        """Raise, with the last good state restored."""
        found = self.nsteps + 1
        self.restore(self._good)
        raise DynamicsError(f"at step {found}: {problem}. The state of step {self.nsteps} is kept")

    def _energy_problem(self) -> str | None:
        if not bool(self._potential.isfinite().all()):
            replica, bead = (int(i) for i in (~self._potential.isfinite()).nonzero()[0])
            return f"the energy of bead {bead} of replica {replica} is {float(self._potential[replica, bead])}"
        n_free = self.n_free + (self.n_beads - 1) * self.n_moving
        temperature = 2 * self._kinetic() / (max(n_free, 1) * units.kB * self.n_beads)
        worst = int(temperature.nan_to_num(nan=torch.inf).argmax())
        if float(temperature[worst]) < MAX_TEMPERATURE * self.temperature_K:
            return None
        fastest = int((self._p[worst] ** 2 / self._masses).sum((0, 2)).nan_to_num(nan=torch.inf).argmax())
        return (
            f"the temperature is {float(temperature[worst]):.3g} K (target {self.temperature_K:g} K), fastest is "
            f"{self.atoms.symbols[fastest]}{fastest}; use a shorter time step, or more geometries to train on"
        )

    def _region_problem(self) -> str | None:
        judge = getattr(self.source, "farthest_outside", None)
        if judge is None:
            return None
        widths, worst = judge(self.positions.flatten(0, 1), self._cells_of_beads())
        self.n_outside += worst is not None
        if worst is None or self.max_outside is None or widths < self.max_outside:
            return None
        i, j = worst.atoms
        return (
            f"{self.atoms.symbols[i]}{i} and {self.atoms.symbols[j]}{j} are {worst.distance:.3f} Å apart, in training "
            f"{worst.shortest:.3f} to {worst.longest:.3f} Å: forces there are invented; add such geometries"
        )

    def _cells_of_beads(self) -> Tensor | None:
        return None if self._cells is None else self._cells.repeat_interleave(self.n_beads, 0)

    @property
    def last_good(self) -> dict[str, np.ndarray]:
        """The `state` at the last look that found nothing wrong."""
        return self._good

    @property
    def settings(self) -> dict[str, str]:
        """What a run that goes on from a state has to have in common with it, in words."""
        names = ("n_beads", "temperature_K", "kind", "propagator", "dt", "n_free")
        found = {name: str(getattr(self, name)) for name in names}
        found |= {"atoms": str(self.atoms.symbols), "replicas": str(len(self.replicas))}
        found["masses"] = " ".join(f"{m:g}" for m in self._masses.flatten().tolist())
        found["fixed atoms"] = str((self.moves == 0).nonzero()[:, 0].tolist())
        found["pbc"] = str(self.atoms.pbc.tolist())
        if not self.barostat:
            found["cell"] = str(self.atoms.cell.array.round(8).tolist())
        found["forces"] = name_of(self.source)
        return found | {"barostat": str(self.barostat), "thermostat": str(self._thermostat)}

    def state(self) -> dict[str, np.ndarray]:
        """All that a run depends on, as arrays."""
        fields = {"step": self.nsteps, "heat": self._heat, "n_outside": self.n_outside}
        fields |= {"q": self._q, "p": self._p, "f": self._f, "bead_forces": self._bead_forces}
        fields |= {"potential": self._potential, "generator": self.generator.get_state()}
        for name in ("cells", "stress"):
            if getattr(self, f"_{name}") is not None:
                fields[name] = getattr(self, f"_{name}")
        if self.barostat:
            fields["barostat"] = self.barostat.momentum
        return {k: (v.cpu().numpy() if isinstance(v, Tensor) else np.asarray(v)).copy() for k, v in fields.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go back, or on, to a state; see `state`. Samples of later steps are dropped."""
        self.nsteps, self.n_outside, self._collapsed = int(state["step"]), int(state["n_outside"]), False
        for name in ("q", "p", "f", "bead_forces", "potential", "heat", "cells", "stress"):
            if name in state:
                setattr(self, f"_{name}", self._tensor(state[name]))
        self._restore_generator(torch.tensor(state["generator"]))
        if self.barostat:
            self.barostat.momentum = self._tensor(state["barostat"])
        self._good = dict(state)

    def _restore_generator(self, state: Tensor) -> None:
        if state.shape != self.generator.get_state().shape:
            raise DataError(f"this state is of a run on another kind of device than {self.device}; go on with it there")
        self.generator.set_state(state)
        for record in self.records:
            record.restore(record.until(self.nsteps))
        self._show()

    # ASE's habits

    def todict(self) -> dict:
        """What ASE writes into trajectories."""
        return {
            "type": "molecular-dynamics",
            "md-type": type(self).__name__,
            "timestep": self.dt,
            "temperature_K": self.temperature_K,
            "n_beads": self.n_beads,
        }

    def run(self, steps: int = 50) -> bool:
        """Run; afterwards the atoms have the calculator that they had before."""
        if self._collapsed:
            warnings.warn(
                f"thermostat={self.kind!r} keeps what it starts with, and all beads start at one point: run with "
                "'pile-l' first, and give its state to start_from",
                DynamicsWarning,
                stacklevel=2,
            )
            self._collapsed = False
        calculators = [atoms.calc for atoms in self.replicas]
        self._only_at_observers = True
        try:
            return super().run(steps)
        finally:
            self._only_at_observers = False
            self._show()
            for atoms, calculator in zip(self.replicas, calculators, strict=True):
                if calculator is not None:
                    atoms.calc = calculator

    def _refresh_properties(self) -> None:
        """Give the atoms the centroid's state, where anything is about to look at it."""
        looking = [interval for function, interval, _, _ in self.observers if getattr(function, "looks_at_atoms", True)]
        due = any(interval <= 0 or self.nsteps % interval == 0 for interval in looking)
        if due or not self._only_at_observers:
            self._show()

    def _show(self) -> None:
        centroid = self.centroid.cpu().numpy()
        momenta = (self._p[:, 0] / self.n_beads**0.5).cpu().numpy()
        energy, forces = self._potential.mean(1).cpu().numpy(), self._bead_forces.mean(1).cpu().numpy()
        for k, atoms in enumerate(self.replicas):
            if self.barostat:
                atoms.cell[:] = self._cells[k].cpu().numpy()
            atoms.positions = centroid[k]
            atoms.arrays["momenta"] = momenta[k].copy()
            atoms.calc = SinglePointCalculator(atoms, energy=float(energy[k]), forces=forces[k])
