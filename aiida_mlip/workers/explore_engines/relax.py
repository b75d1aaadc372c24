"""Relaxation of positions, or of positions and cell, by ASE; frames are kept by how far they are from the last one."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.explore import ExploreSpec, Relaxation, Stop
from aiida_mlip.kernel.units import GPA
from aiida_mlip.workers.explore_engines.base import State
from aiida_mlip.workers.guarded_calculator import GuardedCalculator


class RelaxationEngine:
    """Steps of an optimizer until no force is larger than asked for.

    :param spec: what to do.
    :param guard: calculator that watches pair distances.
    """

    def __init__(self, spec: ExploreSpec, guard: GuardedCalculator) -> None:
        if spec.relax is None:
            raise InvalidInputError("spec.relax: missing")
        self._spec, self._guard = spec, guard
        self._settings: Relaxation = spec.relax
        guard.with_stress = spec.changes_cell

    def start(self, atoms: Atoms, *, step: int, seed: int, state: State) -> None:  # noqa: ARG002 - one signature for all engines
        """Take a structure; the optimizer begins afresh but for what ``state`` says."""
        settings = self._settings
        self._atoms = atoms
        atoms.set_momenta(np.zeros((len(atoms), 3)))
        fixed = list(self._spec.fixed_atoms)
        atoms.set_constraint(FixAtoms(fixed) if fixed else None)
        atoms.calc = self._guard
        self._original_cell = state.get("original_cell", atoms.cell.array).copy()
        self._target = self._filtered(atoms)
        kinds: dict[str, type[Optimizer]] = {"fire": FIRE, "lbfgs": LBFGS}
        self._optimizer = kinds[settings.optimizer](self._target, logfile=None)
        _set_memory(self._optimizer, state)
        self._has_recorded = "kept_positions" in state
        self._kept = state.get("kept_positions", atoms.positions).copy()
        self._kept_energy = float(state.get("kept_energy", np.array(self.energy())))

    def advance(self, n_steps: int, *, seed: int) -> int:  # noqa: ARG002 - nothing is random here
        """Steps of the optimizer, none when the forces are small enough already."""
        for done in range(n_steps):
            if self._is_converged():
                return done
            self._optimizer.step()
        return n_steps

    def stride(self, step: int, record_every: int) -> int:  # noqa: ARG002 - a relaxation has spacings of its own
        """Every step may be worth a frame."""
        return 1

    def is_worth_recording(self, step: int, record_every: int, *, last: bool) -> bool:  # noqa: ARG002 - one signature for all engines
        """When an atom has moved or the energy has fallen far enough since the last frame, and at the end."""
        settings = self._settings
        moved = float(np.linalg.norm(self._atoms.positions - self._kept, axis=1).max())
        if last:
            return moved > 0 or not self._has_recorded
        fallen = (self._kept_energy - self.energy()) / len(self._atoms)
        return moved >= settings.frame_displacement_ang or fallen >= settings.frame_energy_ev_per_atom

    def recorded(self) -> None:
        """The next spacing begins here."""
        self._has_recorded = True
        self._kept, self._kept_energy = self._atoms.positions.copy(), self.energy()

    @property
    def outcome(self) -> Stop:
        """Whether the forces are small enough."""
        return "converged" if self._is_converged() else "not_converged"

    def energy(self) -> float:
        """Potential energy (eV)."""
        return float(self._atoms.get_potential_energy())

    def moves_atoms(self) -> bool:
        """There are no momenta."""
        return False

    def state(self) -> dict[str, np.ndarray]:
        """Memory of the optimizer, and the last frame that was kept."""
        kept: dict[str, np.ndarray] = {}
        if self._has_recorded:
            kept |= {"kept_positions": self._kept, "kept_energy": np.array(self._kept_energy)}
        if self._settings.cell != "fixed":
            kept["original_cell"] = self._original_cell
        return {**kept, **_memory(self._optimizer)}

    def numbers(self) -> dict[str, Any]:
        """Largest force, and the volume where it may change."""
        found: dict[str, Any] = {"fmax_ev_per_ang": self._fmax()}
        if self._settings.cell != "fixed":
            found["volume_ang3_per_atom"] = float(self._atoms.get_volume() / len(self._atoms))
        return found

    def finish(self) -> None:
        """Nothing to close."""

    def _filtered(self, atoms: Atoms) -> Any:
        """What the optimizer moves: the atoms, or atoms and cell, strained from the cell that the run began with."""
        settings = self._settings
        if settings.cell == "fixed":
            return atoms
        present = atoms.cell.array.copy()
        atoms.set_cell(self._original_cell)
        target = FrechetCellFilter(
            atoms, hydrostatic_strain=settings.cell == "isotropic", scalar_pressure=settings.pressure_gpa * GPA
        )
        atoms.set_cell(present)
        return target

    def _is_converged(self) -> bool:
        return self._fmax() < self._settings.fmax_ev_per_ang

    def _fmax(self) -> float:
        return float(np.linalg.norm(np.asarray(self._target.get_forces()), axis=1).max())


def _memory(optimizer: Optimizer) -> dict[str, np.ndarray]:
    """What FIRE remembers of the steps before; L-BFGS begins afresh, after an interruption."""
    if not isinstance(optimizer, FIRE) or optimizer.vel is None:
        return {}
    numbers = np.array([optimizer.dt, optimizer.a, optimizer.Nsteps])
    return {"fire_velocities": np.array(optimizer.vel), "fire_numbers": numbers}


def _set_memory(optimizer: Optimizer, state: State) -> None:
    if isinstance(optimizer, FIRE) and "fire_velocities" in state:
        optimizer.vel = state["fire_velocities"].copy()
        dt, a, n = state["fire_numbers"]
        optimizer.dt, optimizer.a, optimizer.Nsteps = float(dt), float(a), int(n)
