"""Path-integral molecular dynamics, with all beads of all replicas in one evaluation of the forces."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCom
from ase.md.md import MolecularDynamics
from torch import Tensor

from ..errors import DataError, DynamicsError, DynamicsWarning
from .barostat import Barostat
from .forces import batched
from .normal_modes import PROPAGATORS, NormalModes
from .thermostats import THERMOSTATS, Thermostat

MAX_TEMPERATURE = 20.0  # times the target: atoms are flying apart
CHECK_INTERVAL = 10  # steps between looks at whether the state is sound


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
        side. Between steps that anything observes, ``atoms`` (the first replica)
        has positions and momenta of the centroid, the mean energy of the beads and
        the force on the centroid. Momenta that are not zero are the centroid's
        start, else they are drawn.
    timestep : float
        In ASE's units (``0.5 * units.fs``).
    temperature_K : float
    n_beads : int
    thermostat : {"pile-l", "pile-g", "t-rpmd", "none"}
        See `Thermostat`. "none" keeps the energy (RPMD, or classical NVE).
    propagator : {"cayley", "exact"}
        Of the free ring. The exact one has resonances from π / (2 P k_B T / ħ) on;
        Cayley's is stable up to 2 / ω of the molecule.
    tau : float
        Time of the centroid's thermostat, in ASE's units; 100 fs by default.
    pressure : float, optional
        In eV/Å³: keeps this pressure, by scaling the cell isotropically; needs stress.
    tau_p : float
        Time of the barostat, in ASE's units; 500 fs by default.
    forces : ForceField, callable or ASE calculator, optional
        By default the calculator of the atoms. A force field takes all beads in one
        call, a calculator one after another; a callable (M, N, 3) -> (M,), (M, N, 3)
        is called with tensors.
    max_outside : float or None
        Ends the run when a pair of atoms is outside of the training region
        (`ForceField.outside`) by so many of its widths; None never does.
    rng : numpy.random.Generator, optional
    device : str
        Of the positions ("cpu", "cuda").
    trajectory, logfile, loginterval, append_trajectory
        As of ASE's dynamics; of the centroid of the first replica.

    Attributes
    ----------
    n_outside : int
        Looks at a state, every tenth step, that found a bead outside the training region.

    Raises
    ------
    DataError
        For settings that make no sense, different replicas, or constraints other
        than FixCom and FixAtoms.
    ModelMismatchError
        For a force field of other atoms.

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
        max_outside: float | None = 1.0,
        rng: np.random.Generator | None = None,
        device: str = "cpu",
        trajectory: str | Path | None = None,
        logfile: str | Path | None = None,
        loginterval: int = 10,
        **kwargs,
    ):
        replicas = [atoms] if isinstance(atoms, Atoms) else list(atoms)
        _check(replicas, timestep, temperature_K, n_beads, thermostat, propagator, tau, pressure, tau_p)
        self.replicas, self.n_beads, self.temperature_K = replicas, n_beads, temperature_K
        self.kind, self.propagator, self.max_outside = thermostat, propagator, max_outside
        self.source = forces if forces is not None else replicas[0].calc
        self._evaluate = batched(forces, replicas[0])
        self.n_outside = 0
        self._shape = (len(replicas), n_beads, len(replicas[0]), 3)
        self._tensor = lambda x: torch.tensor(np.asarray(x, dtype=float), device=device)
        self._masses = self._tensor(replicas[0].get_masses()).view(-1, 1)
        self.generator = torch.Generator(device)
        self.generator.manual_seed(int((rng or np.random.default_rng()).integers(2**62)))
        self.modes = NormalModes(n_beads, temperature_K, device)
        self._constrain(replicas[0])
        self._prepare(timestep, tau, pressure, tau_p)
        super().__init__(
            replicas[0], timestep, trajectory=trajectory, logfile=logfile, loginterval=loginterval, **kwargs
        )
        self._start()

    # Preparation

    def _constrain(self, atoms: Atoms) -> None:
        self._moves = torch.ones_like(self._masses)
        self._holds_com = False
        for constraint in atoms.constraints:
            if isinstance(constraint, FixCom):
                self._holds_com = True
            else:
                self._moves[torch.as_tensor(constraint.index)] = 0.0
        if self._holds_com and not bool(self._moves.all()):
            raise DataError("FixCom and FixAtoms contradict each other; fixed atoms hold the rest already")
        self.n_free = 3 * int(self._moves.sum()) - 3 * self._holds_com

    def _prepare(self, timestep: float, tau: float, pressure: float | None, tau_p: float) -> None:
        kt = self.n_beads * units.kB * self.temperature_K
        self._kt = kt
        self._free = self.modes.propagator(0.5 * timestep, self.propagator)
        self._thermostat = Thermostat(self.kind, self.modes.frequencies, kt, tau, timestep)
        self.barostat = None
        if pressure is not None:
            if not bool(self._moves.all()):
                raise DataError("a barostat scales all positions, so that no atom can be fixed")
            self.barostat = Barostat(pressure, tau_p, kt, self._shape, self.kind != "none", timestep)

    def _start(self) -> None:
        beads = self._tensor([a.positions for a in self.replicas])[:, None].expand(self._shape)
        self._q = self.modes.from_beads(beads.contiguous())
        periodic = bool(self.replicas[0].pbc.any())
        self._cells = self._tensor([a.cell.array for a in self.replicas]) if periodic else None
        self._heat = torch.zeros(self._shape[0], dtype=torch.float64, device=self._q.device)
        noise = torch.randn(self._shape, dtype=torch.float64, device=self._q.device, generator=self.generator)
        self._p = noise * torch.sqrt(self._masses * self._kt)
        momenta = self._tensor([a.get_momenta() for a in self.replicas])
        if bool(momenta.any()):
            self._p[:, 0] = momenta * self.n_beads**0.5
        self._p = self._projected(self._p)
        self._force()
        self._good = self.state()
        self._warn_of_long_steps()

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
        """The limit of stability of a step, in ASE's units, and what sets it."""
        physical = 2 / max(self.highest_frequency(), 1e-12)
        if self.propagator == "exact" and self.n_beads > 1:
            resonance = np.pi / float(self.modes.frequencies.max())
            if resonance < physical:
                return resonance, f"the exact propagator with {self.n_beads} beads"
        return physical, "the highest frequency of the atoms"

    def highest_frequency(self, iterations: int = 10) -> float:
        """Of the vibrations about the start, as an angular frequency in ASE's units; by power iteration."""
        centroid = self.positions.mean(1)[:1]
        root = self._masses.sqrt()
        generator = torch.Generator(centroid.device).manual_seed(0)
        v = torch.randn(centroid.shape, dtype=torch.float64, device=centroid.device, generator=generator)
        square = 0.0
        for _ in range(iterations):
            v = v / v.norm()
            step = 1e-3 * v / root * float(root.mean())
            pair = torch.cat([centroid + step, centroid - step])
            cells = None if self._cells is None else self._cells[:1].expand(2, 3, 3)
            found = self._evaluate(pair, cells, False).forces
            v = (found[1:] - found[:1]) / (2e-3 * float(root.mean())) / root
            square = float(v.norm())
        return square**0.5

    # The step

    def step(self) -> None:
        """One time step of all beads."""
        half = 0.5 * self.dt
        self._kick(half)
        self._drift(half)
        before = self._kinetic()
        self._p = self._projected(self._thermostat(self._p, self._masses, self.n_free, self.generator))
        self._heat += before - self._kinetic()
        if self.barostat:
            self._heat += self.barostat.thermalize(self.generator)
        self._drift(half)
        self._force()
        self._kick(half)
        if (self.nsteps + 1) % CHECK_INTERVAL == 0:
            self._check()

    def _kick(self, time: float) -> None:
        if self.barostat:
            self.barostat.kick(time, self._p[:, 0], self._f[:, 0], self._masses, self._virial(), self.volume)
        self._p = self._p + time * self._f

    def _drift(self, time: float) -> None:
        q0, p0 = self._q[:, 0], self._p[:, 0]
        self._q, self._p = self._free(self._q, self._p, self._masses)
        if self.barostat:
            self._q[:, 0], self._p[:, 0], scale = self.barostat.drift(time, q0, p0, self._masses)
            self._cells = self._cells * scale.view(-1, 1, 1)

    def _force(self) -> None:
        beads = self.positions.flatten(0, 1)
        cells = None if self._cells is None else self._cells.repeat_interleave(self.n_beads, 0)
        found = self._evaluate(beads, cells, self.barostat is not None)
        self._potential = found.energy.to(beads.dtype).view(self._shape[:2])
        self._bead_forces = found.forces.to(beads.dtype).view(self._shape)
        self._stress = None if found.stress is None else found.stress.view(*self._shape[:2], 6)
        self._f = self._projected(self.modes.from_beads(self._bead_forces))

    def _projected(self, p: Tensor) -> Tensor:
        """Momenta or forces of the modes without what constraints forbid."""
        p = p * self._moves
        if self._holds_com:
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
        """Of each bead (R, P, 6), eV/Å³, where there is a barostat."""
        return self._stress

    @property
    def n_moving(self) -> int:
        """Degrees of freedom of an internal mode."""
        return 3 * int(self._moves.sum())

    def spring_energy(self) -> Tensor:
        """Of the springs (R,), eV, at the temperature P T."""
        return self.modes.spring_energy(self._q, self._masses)

    def mode_kinetic(self) -> Tensor:
        """Kinetic energy of each mode (R, P), eV, at the temperature P T."""
        return 0.5 * (self._p**2 / self._masses).sum((2, 3))

    def forces_at(self, positions: Tensor) -> Tensor:
        """Forces on beads at other positions (R, P, N, 3)."""
        cells = None if self._cells is None else self._cells.repeat_interleave(self.n_beads, 0)
        return self._evaluate(positions.flatten(0, 1), cells, False).forces.view(self._shape)

    def conserved(self) -> Tensor:
        """Energy (R,) of a bead that no motion but that of the time step's error changes, eV."""
        total = self._kinetic() + self.spring_energy() + self._potential.sum(1) + self._heat
        if self.barostat:
            total = total + self.barostat.energy(self.volume)
        return total / self.n_beads

    # Soundness, and what is kept

    def _check(self) -> None:
        """Raise, with the last good state restored, if the beads are no longer where forces mean something."""
        problem = self._problem()
        if problem:
            found = self.nsteps + 1
            self.restore(self._good)
            self._refresh_properties(force=True)
            raise DynamicsError(f"at step {found}: {problem}. The state of step {self.nsteps} is kept")
        self._good = self.state() | {"step": self.nsteps + 1}

    def _problem(self) -> str | None:
        temperature = self._kinetic() / (1.5 * self.n_beads * len(self.atoms) * units.kB) / self.n_beads
        if not bool(self._potential.isfinite().all() and (temperature < MAX_TEMPERATURE * self.temperature_K).all()):
            replica = int((~(temperature < MAX_TEMPERATURE * self.temperature_K)).int().argmax())
            fastest = (self._p[replica] ** 2 / self._masses).sum((0, 2)).nan_to_num(nan=torch.inf).argmax()
            name = f"{self.atoms.symbols[int(fastest)]}{int(fastest)}"
            return (
                f"the temperature is {float(temperature[replica]):.3g} K (target {self.temperature_K:g} K), fastest is "
                f"{name}; use a shorter time step, or more geometries to train on"
            )
        return self._judge_region()

    def _judge_region(self) -> str | None:
        judge = getattr(getattr(self.source, "force_field", self.source), "farthest_outside", None)
        if judge is None:
            return None
        cells = None if self._cells is None else self._cells.repeat_interleave(self.n_beads, 0)
        widths, worst = judge(self.positions.flatten(0, 1), cells)
        self.n_outside += worst is not None
        if worst is None or self.max_outside is None or widths < self.max_outside:
            return None
        i, j = worst.atoms
        return (
            f"{self.atoms.symbols[i]}{i} and {self.atoms.symbols[j]}{j} are {worst.distance:.3f} Å apart, in training "
            f"{worst.shortest:.3f} to {worst.longest:.3f} Å: forces there are invented; add such geometries"
        )

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
        found["masses"] = " ".join(f"{m:g}" for m in self.masses.flat)
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
        """Go back, or on, to a state; see `state`."""
        self.nsteps, self.n_outside = int(state["step"]), int(state["n_outside"])
        for name in ("q", "p", "f", "bead_forces", "potential", "heat", "cells", "stress"):
            if name in state:
                setattr(self, f"_{name}", self._tensor(state[name]))
        self.generator.set_state(torch.tensor(state["generator"]))
        if self.barostat:
            self.barostat.momentum = self._tensor(state["barostat"])

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

    def _refresh_properties(self, force: bool = False) -> None:
        """Give the atoms the centroid's state, where an observer is about to look at it."""
        due = any(interval <= 0 or self.nsteps % interval == 0 for _, interval, _, _ in self.observers)
        if not (due or force or self.nsteps >= self.max_steps):
            return
        centroid = self.centroid.cpu().numpy()
        momenta = (self._p[:, 0] / self.n_beads**0.5).cpu().numpy()
        energy, forces = self._potential.mean(1).cpu().numpy(), self._bead_forces.mean(1).cpu().numpy()
        for k, atoms in enumerate(self.replicas):
            if self.barostat:
                atoms.cell[:] = self._cells[k].cpu().numpy()
            atoms.positions = centroid[k]
            atoms.arrays["momenta"] = momenta[k].copy()
            atoms.calc = SinglePointCalculator(atoms, energy=float(energy[k]), forces=forces[k])


def _check(replicas, timestep, temperature_K, n_beads, thermostat, propagator, tau, pressure, tau_p) -> None:
    settings = {"timestep": timestep, "temperature_K": temperature_K, "tau": tau, "tau_p": tau_p}
    for name, value in settings.items():
        if not 0 < value < np.inf:
            raise DataError(f"{name} must be positive and finite, but it is {value}")
    if int(n_beads) != n_beads or n_beads < 1:
        raise DataError(f"n_beads must be at least 1, but it is {n_beads}")
    if thermostat not in THERMOSTATS:
        raise DataError(f"the thermostat is one of {', '.join(THERMOSTATS)}, not {thermostat!r}")
    if propagator not in PROPAGATORS:
        raise DataError(f"the propagator is one of {', '.join(PROPAGATORS)}, not {propagator!r}")
    if pressure is not None and not (np.isfinite(pressure) and all(a.pbc.all() for a in replicas)):
        raise DataError("a pressure must be finite, and needs atoms that are periodic in three directions")
    if not replicas:
        raise DataError("there are no atoms to run")
    for k, atoms in enumerate(replicas):
        if not np.array_equal(atoms.numbers, replicas[0].numbers) or (atoms.pbc != replicas[0].pbc).any():
            raise DataError(f"replica {k} is {atoms.symbols} with pbc={atoms.pbc.tolist()}, unlike replica 0")
        for constraint in atoms.constraints:
            if not isinstance(constraint, (FixCom, FixAtoms)):
                raise DataError(f"of constraints, FixCom and FixAtoms make sense for beads, not {constraint!r}")
