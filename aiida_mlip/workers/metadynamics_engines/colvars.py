"""Metadynamics of collective variables: COLVARS inside LAMMPS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ase import Atoms

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.io.colvars import colvars_input, without_values
from aiida_mlip.io.metadynamics import MetadynamicsSpec
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.lammps_driver import LammpsDynamics, load_lammps

STATE_FILE: Final[str] = "bias.colvars.state"
COLVARS_INPUT: Final[str] = "colvars.in"


class ColvarsEngine:
    """Metadynamics of collective variables: COLVARS inside LAMMPS.

    :param spec: what to do.
    :param guard: calculator with walls.
    :param text: input of COLVARS.
    :param folder: where its files go, and the state it goes on from is.
    """

    def __init__(self, spec: MetadynamicsSpec, guard: GuardedCalculator, text: str, folder: Path) -> None:
        load_lammps()
        self._spec, self._guard, self._folder = spec, guard, folder
        self._dynamics: LammpsDynamics | None = None
        self._broken = False
        folder.mkdir(exist_ok=True)
        (folder / COLVARS_INPUT).write_text(text, encoding="utf-8")

    def start(self, atoms: Atoms, *, step: int, seed: int) -> None:
        """Give the structure to LAMMPS and the variables to COLVARS."""
        spec = self._spec
        self._broken = True  # until LAMMPS and COLVARS have taken everything
        self._dynamics = LammpsDynamics(
            atoms,
            self._guard.compute,
            timestep_fs=spec.timestep_fs,
            temperature_k=spec.temperature_k,
            friction_per_ps=spec.friction_per_ps,
            seed=seed,
            fixed=spec.fixed_atoms,
        )
        self._dynamics.command(
            f"fix cv all colvars {self._folder / COLVARS_INPUT} output {self._folder / 'run'} "
            f"seed {seed % 900_000_000 + 1} tstat {self._dynamics.thermostat}"
        )
        self._load_state(self._dynamics, new_trajectory=step == 0)
        self._broken = False

    def advance(self, n_steps: int, *, seed: int) -> None:  # noqa: ARG002 - LAMMPS keeps its random numbers itself
        """Integrate."""
        try:
            self._running().run(n_steps)
        except ExternalProgramError:
            self._broken = True  # LAMMPS is in no state to be asked for anything
            raise

    def bias_energy(self) -> float:
        """Energy (eV) of all biases of COLVARS, walls included."""
        return self._running().extract_bias_energy("cv")

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        self._running().scale_velocities(factor)

    def save(self, folder: Path) -> None:
        """Write the state of COLVARS."""
        if self._dynamics is not None:
            self._dynamics.command(f"fix_modify cv save {folder / STATE_FILE}")

    def finish(self) -> None:
        """Write state and free energy, and free LAMMPS."""
        if self._dynamics is None:
            return
        try:
            if not self._broken:
                self.save(self._folder)
        finally:
            self._dynamics.close()
            self._dynamics = None
        # what COLVARS wrote under its own prefix gets a name that does not change
        for file in sorted(self._folder.glob("run.*")):
            if file.suffix in (".BAK", ".old"):
                file.unlink()
            elif file.suffix == ".traj":
                file.rename(self._folder / f"variables_{len(list(self._folder.glob('variables_*'))):04d}.traj")
            else:
                file.replace(self._folder / file.name.replace("run.", "bias.", 1))
        for file in (*self._folder.glob("*.old"), *self._folder.glob("*.BAK")):
            file.unlink()

    def summary(self) -> dict[str, Any]:
        """The hills are in the state file."""
        return {}

    def _load_state(self, dynamics: LammpsDynamics, *, new_trajectory: bool) -> None:
        """Take up the stored bias, if there is one.

        Not through the keyword ``input`` of the fix: with it every ``run`` reads the file anew and forgets all hills
        laid since (LAMMPS 22 Jul 2025).
        """
        state = self._folder / STATE_FILE
        if not state.exists():
            return
        if new_trajectory:
            # another trajectory under the same bias: the variables begin where this structure has them
            state.write_text(without_values(state.read_text(encoding="utf-8")), encoding="utf-8")
        dynamics.run(0)
        dynamics.command(f"fix_modify cv load {state}")

    def _running(self) -> LammpsDynamics:
        if self._dynamics is None:
            raise ExternalProgramError("no trajectory was started")
        return self._dynamics


def make_colvars(
    spec: MetadynamicsSpec,
    guard: GuardedCalculator,
    *,
    folder: Path,
    text: str | None,
    reference: Callable[[], Frames],  # noqa: ARG001 - one signature for all engines
) -> ColvarsEngine:
    """Engine of collective variables, from the person's own input or from the specification's variables.

    :raises InvalidInputError: neither is there.
    """
    if text is None:
        if spec.hills is None:
            raise InvalidInputError("spec.hills: missing")
        text = colvars_input(
            spec.collective_variables, spec.hills, temperature_k=spec.temperature_k, record_every=spec.record_every
        )
    return ColvarsEngine(spec, guard, text, folder)
