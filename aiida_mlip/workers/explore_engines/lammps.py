"""Dynamics in LAMMPS, with the potential's forces and a person's own commands (deformation, indentation, ...)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.io.explore import ExploreSpec, LammpsRun
from aiida_mlip.workers.explore_engines.base import Clocked, State
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.lammps_driver import LammpsDynamics, LammpsState, load_lammps

#: Commands that act once: not given again to a run that goes on (LAMMPS' restart file keeps groups).
_ONCE: Final[frozenset[str]] = frozenset({"change_box", "displace_atoms", "group", "set", "velocity"})


class LammpsEngine(Clocked):
    """Steps of LAMMPS in this process.

    :param spec: what to do.
    :param guard: calculator that watches pair distances.
    :param text: the person's own commands of a file, after those of the specification.
    :raises LammpsMissingError: LAMMPS is not installed here.
    """

    def __init__(self, spec: ExploreSpec, guard: GuardedCalculator, text: str | None) -> None:
        if spec.lammps is None:
            raise InvalidInputError("spec.lammps: missing")
        load_lammps()
        self._spec, self._guard = spec, guard
        self._settings: LammpsRun = spec.lammps
        self._commands = [*spec.lammps.commands, *_logical_lines(text or "")]
        self._dynamics: LammpsDynamics | None = None

    def start(self, atoms: Atoms, *, step: int, seed: int, state: State) -> None:
        """Give the structure, the forces and the commands to LAMMPS."""
        settings = self._settings
        native = bool(settings.pair_commands)
        species = " ".join(chemical_symbols[z] for z in np.unique(atoms.numbers))
        # the pressure is only known where the calculator gives a stress; whoever needs none is not asked for it
        known = "stress" in getattr(self._guard.base, "implemented_properties", ())
        self._guard.with_stress = known and not native and bool(atoms.pbc.all()) and bool(self._commands)
        self._step, self._atoms = step, atoms
        self._dynamics = LammpsDynamics(
            atoms,
            None if native else self._guard.compute,
            timestep_fs=settings.timestep_fs,
            temperature_k=settings.temperature_k,
            friction_per_ps=settings.friction_per_ps if settings.integrate == "langevin" else 0.0,
            seed=seed,
            fixed=self._spec.fixed_atoms,
            stress=(lambda: self._guard.stress) if self._guard.with_stress else None,
            integrate=settings.integrate != "none",
            pair_commands=[line.format(species=species) for line in settings.pair_commands],
            state=_lammps_state(state),
        )
        self._dynamics.command(f"variable temperature equal {settings.temperature_k:.10g}")
        self._dynamics.command(f"variable seed equal {seed % 900_000_000 + 1}")
        for line in self._commands:
            if "restart" not in state or line.split()[0] not in _ONCE:
                self._dynamics.command(line)

    def advance(self, n_steps: int, *, seed: int) -> int:
        """Integrate."""
        dynamics, settings = self._running(), self._settings
        if settings.integrate == "langevin":
            dynamics.set_thermostat(settings.temperature_k, settings.friction_per_ps, seed=seed)
        dynamics.run(n_steps, whole=(0, settings.n_steps))
        self._step += n_steps
        return n_steps

    def energy(self) -> float:
        """Potential energy (eV) of the last step."""
        return self._running().potential_energy() if self._settings.pair_commands else self._guard.base_energy

    def state(self) -> dict[str, np.ndarray]:
        """LAMMPS' own restart file, where commands make a difference: a box that changes, and what the fixes keep."""
        if self._dynamics is None or not self._commands:
            return {}
        kept = self._dynamics.state()
        return {
            "restart": np.frombuffer(kept.restart, dtype=np.uint8),
            "rotation": kept.rotation,
            "origin": kept.origin,
        }

    def numbers(self) -> dict[str, Any]:
        """Volume per atom of a cell that is periodic in all directions."""
        if not self._atoms.pbc.all():
            return {}
        return {"volume_ang3_per_atom": float(self._atoms.get_volume() / len(self._atoms))}

    def finish(self) -> None:
        """Free LAMMPS."""
        if self._dynamics is not None:
            self._dynamics.close()
            self._dynamics = None

    def _running(self) -> LammpsDynamics:
        if self._dynamics is None:
            raise ExternalProgramError("no run was started")
        return self._dynamics


def _lammps_state(state: State) -> LammpsState | None:
    if "restart" not in state:
        return None
    return LammpsState(state["restart"].tobytes(), state["rotation"], state["origin"])


def _logical_lines(text: str) -> list[str]:
    """Lines of a LAMMPS input: comments taken away, continued lines joined."""
    joined = text.replace("&\n", " ")
    lines = (line.split("#")[0].strip() for line in joined.splitlines())
    return [line for line in lines if line]
