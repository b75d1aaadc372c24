"""Molecular dynamics by ASE: constant energy, Langevin, and Langevin with a barostat, along a schedule."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.explore import ExploreSpec, MolecularDynamics, Segment
from aiida_mlip.kernel.barostat import internal_pressure, rescaled_volume
from aiida_mlip.kernel.dynamics import drift
from aiida_mlip.kernel.units import GPA
from aiida_mlip.workers.adaptive_bias import AdaptiveBias
from aiida_mlip.workers.explore_engines.base import Clocked, State
from aiida_mlip.workers.guarded_calculator import ForcesFailed, GuardedCalculator

#: Steps between steps of the barostat: each costs a force call, and the volume moves slowly.
_BAROSTAT_EVERY: Final[int] = 10


class MolecularDynamicsEngine(Clocked):
    """Steps of a schedule, one segment after another.

    :param spec: what to do.
    :param guard: calculator that watches pair distances.
    """

    def __init__(self, spec: ExploreSpec, guard: GuardedCalculator) -> None:
        if spec.md is None:
            raise InvalidInputError("spec.md: missing")
        self._spec, self._guard = spec, guard
        self._settings: MolecularDynamics = spec.md
        self._segments = spec.md.segments
        self._ends = np.cumsum([segment.n_steps for segment in self._segments])
        melt = spec.md.melt_quench
        self._keep_from = int(self._ends[-2]) if melt is not None and melt.keep == "glass" else 0
        guard.with_stress = spec.changes_cell
        self._bias = None if spec.md.uncertainty is None else AdaptiveBias(guard, spec.md.uncertainty)

    def start(self, atoms: Atoms, *, step: int, seed: int, state: State) -> None:  # noqa: ARG002 - one signature for all engines
        """Take a structure."""
        self._atoms, self._step = atoms, step
        if self._bias is not None:
            self._bias.reset()
            if "tau_ev" in state:
                self._bias.restore(state)
        fixed = list(self._spec.fixed_atoms)
        atoms.set_constraint(FixAtoms(fixed) if fixed else None)
        atoms.calc = self._guard
        self._constant = -1  # segment at constant energy that the following numbers are of
        self._times: list[float] = []
        self._totals: list[float] = []

    def advance(self, n_steps: int, *, seed: int) -> int:
        """Integrate; the conserved energy of segments at constant energy is kept for the report."""
        rng = np.random.default_rng(seed)
        left = n_steps
        while left:
            index = int(np.searchsorted(self._ends, self._step, side="right"))
            segment = self._segments[index]
            n = min(left, int(self._ends[index]) - self._step)
            self._integrate(segment, self._step - int(self._ends[index]) + segment.n_steps, n, rng)
            left -= n
        index = int(np.searchsorted(self._ends, self._step, side="left"))
        if self._segments[index].ensemble == "nve":
            if index != self._constant:  # another segment, at another energy
                self._constant, self._times, self._totals = index, [], []
            self._times.append(self._step * self._settings.timestep_fs)
            self._totals.append(self.energy() + self._atoms.get_kinetic_energy())
        return n_steps

    def is_worth_recording(self, step: int, record_every: int, *, last: bool) -> bool:  # noqa: ARG002 - one signature for all engines
        """Every so many steps, of the part that is kept."""
        return step % record_every == 0 and step > self._keep_from

    def energy(self) -> float:
        """Potential energy (eV), without a bias."""
        self._atoms.get_potential_energy()  # after a step of the barostat the geometry is new
        return self._guard.base_energy

    def numbers(self) -> dict[str, Any]:
        """Drift of the energy where it should be constant; the volume where it is not."""
        found: dict[str, Any] = {}
        if len(self._totals) > 2:
            slope = drift(np.array(self._times), np.array(self._totals)) / len(self._atoms)
            found["energy_drift_ev_per_atom_ps"] = slope * 1000.0
        if self._spec.changes_cell:
            found["volume_ang3_per_atom"] = float(self._atoms.get_volume() / len(self._atoms))
        return found if self._bias is None else {**found, **self._bias.numbers()}

    def state(self) -> dict[str, np.ndarray]:
        """Strength of the bias, where there is one."""
        return {} if self._bias is None else self._bias.arrays()

    # -- one segment -------------------------------------------------------------------------------------------

    def _integrate(self, segment: Segment, begin: int, n_steps: int, rng: np.random.Generator) -> None:
        """``n_steps`` of a segment of which ``begin`` are done."""
        timestep = self._settings.timestep_fs * units.fs
        if segment.ensemble == "nve" or segment.temperature_k is None:
            dynamics = VelocityVerlet(self._atoms, timestep)
            for _ in range(n_steps):
                dynamics.step()
                self._step += 1
            return
        thermostat = Langevin(
            self._atoms,
            timestep=timestep,
            temperature_K=segment.temperature_k,
            friction=segment.friction_per_ps * 1e-3 / units.fs,
            fixcm=False,
            rng=rng,
        )
        for k in range(begin, begin + n_steps):
            target = segment.temperature_k
            if segment.end_temperature_k is not None:
                target += (segment.end_temperature_k - target) * (k + 0.5) / segment.n_steps
                thermostat.set_temperature(temperature_K=target)
            thermostat.step()
            if segment.ensemble == "npt" and (k + 1) % _BAROSTAT_EVERY == 0:
                self._rescale(segment, target, rng)
            self._step += 1
            if self._bias is not None:
                self._bias.after_step(self._step)

    def _rescale(self, segment: Segment, temperature: float, rng: np.random.Generator) -> None:
        """One step of the barostat: the cell and positions are scaled, the momenta inversely."""
        atoms, stress = self._atoms, self._guard.stress
        if stress is None:
            raise ForcesFailed("the calculator gave no stress, which the barostat needs")
        volume = atoms.get_volume()
        try:
            new = rescaled_volume(
                volume,
                internal_pressure(atoms.get_kinetic_energy(), stress, volume),
                target=segment.pressure_gpa * GPA,
                temperature=temperature,
                compressibility=segment.compressibility_per_gpa / GPA,
                relaxation_time=segment.barostat_ps * 1000.0,
                timestep=_BAROSTAT_EVERY * self._settings.timestep_fs,
                noise=float(rng.standard_normal()),
            )
        except InvalidInputError as error:
            raise ForcesFailed(str(error)) from error
        factor = (new / volume) ** (1 / 3)
        atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
        atoms.set_momenta(atoms.get_momenta() / factor)
