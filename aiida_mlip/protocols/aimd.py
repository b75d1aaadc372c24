"""The settings of molecular dynamics with pw.x, as a person writes them.

::

    temperatures_kelvin: [300, 600, 1000]
    volume_scales: [0.95, 1.0, 1.06]     # V/V0
    strains: [[0, 0, 0, 0, 0, 0]]        # xx, yy, zz, yz, xz, xy of the strain tensor
    supercell: [1, 1, 1]
    replicas: 1                          # runs that differ in their starting velocities only
    timestep_fs: 1.5
    n_steps: 400
    equilibration_fs: 100                # cut off from the start of every run
    thermostat: {kind: andersen, time_fs: 50}
    thinning: {mode: decorrelated, max_frames: 50}

One run per seed structure, volume, strain, temperature and replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.units import RYDBERG_TIME
from aiida_mlip.protocols.model import SpecModel, check_name, validate_spec

#: Names of thermostats -> keyword of pw.x.
THERMOSTATS: Final[Mapping[str, str]] = {
    "nve": "not_controlled",
    "not_controlled": "not_controlled",
    "andersen": "andersen",
    "rescale-v": "rescale-v",
}
#: Thermostats of pw.x that cannot start from given velocities: they divide by a temperature that is not set before the
#: first step, and every position is NaN (measured with pw.x 6.7).
_BROKEN: Final[tuple[str, ...]] = ("svr", "berendsen", "rescaling", "rescale-t")

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Thermostat(SpecModel):
    """How the temperature is controlled.

    :param kind: ``nve`` (pw.x: ``not_controlled``): not at all, energy is conserved; ``andersen``: every atom gets
        a new thermal velocity at random moments, canonical; ``rescale-v``: all velocities are scaled now and then.
    :param time_fs: mean time between two collisions of an atom, or between two rescalings.
    """

    kind: str = "andersen"
    time_fs: Positive = 50.0

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, value: str) -> str:
        name = value.lower()
        if name in _BROKEN:
            raise ValueError(
                f"pw.x cannot start {value!r} from given velocities (the first step gives NaN), so such a run could be "
                f"neither repeated from its seed nor continued; use one of {', '.join(sorted(THERMOSTATS))}"
            )
        try:
            return check_name("thermostat", name, list(THERMOSTATS), where="kind")
        except ProtocolError as error:
            raise ValueError(str(error)) from error


class Thinning(SpecModel):
    """Which steps of a run become frames of the dataset.

    :param mode: ``decorrelated``: as far apart as the measured autocorrelation of energy and forces asks for;
        ``every``: every ``every``-th step.
    :param every: smallest distance in steps, in both modes.
    :param max_frames: most frames of one run, spread evenly; None: no limit.
    """

    mode: Literal["decorrelated", "every"] = "decorrelated"
    every: Count = 1
    max_frames: Count | None = None


class Checks(SpecModel):
    """What a run must satisfy for the workchain to end well; the figures are reported in any case.

    :param energy_drift_ev_per_atom_per_ps: largest |slope| of the total energy of a run without thermostat, of
        at least 100 fs.
    :param temperature_fraction: largest deviation of the mean temperature of a run with thermostat, as a fraction of
        the target, where it also exceeds three standard errors.
    :param restart_mismatch_ev_per_atom: largest difference between the two energies of a step that was computed before
        and after an interruption: another electronic state, if it is larger.
    """

    energy_drift_ev_per_atom_per_ps: Positive = 0.02
    temperature_fraction: Positive = 0.25
    restart_mismatch_ev_per_atom: Positive = 1e-4


class AimdSettings(SpecModel):
    """Molecular dynamics over a ladder; see the module's example.

    :param initial_temperature_factor: starting temperature over target temperature; 2 for a start at rest in a minimum
        of the energy, since half of the kinetic energy soon is potential energy.
    :param extrapolation: of the density from step to step.
    :param max_restarts: continuations of one run (walltime, crash) before it is given up.
    """

    temperatures_kelvin: Annotated[list[Positive], Field(min_length=1)]
    volume_scales: Annotated[list[Positive], Field(min_length=1)] = Field(default_factory=lambda: [1.0])
    strains: Annotated[
        list[Annotated[list[Annotated[float, Field(gt=-1, lt=1)]], Field(min_length=6, max_length=6)]],
        Field(min_length=1),
    ] = Field(default_factory=lambda: [[0.0] * 6])
    supercell: Annotated[list[Count], Field(min_length=3, max_length=3)] = Field(default_factory=lambda: [1, 1, 1])
    replicas: Count = 1
    timestep_fs: Annotated[float, Field(gt=0, le=20)]
    n_steps: Count
    equilibration_fs: Annotated[float, Field(ge=0)] = 0.0
    initial_temperature_factor: Positive = 2.0
    thermostat: Thermostat = Thermostat()
    extrapolation: Literal["none", "atomic", "first_order", "second_order"] = "second_order"
    thinning: Thinning = Thinning()
    max_restarts: Annotated[int, Field(ge=0)] = 20
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _check_together(self) -> AimdSettings:
        if self.equilibration_fs >= self.n_steps * self.timestep_fs:
            raise ValueError(
                f"equilibration_fs ({self.equilibration_fs:g}) leaves nothing of a run of n_steps × timestep_fs = "
                f"{self.n_steps * self.timestep_fs:g} fs"
            )
        if self.thermostat.kind == "rescale-v" and self.thermostat_steps < 2:
            raise ValueError(
                f"thermostat.time_fs: rescale-v needs at least two timesteps ({2 * self.timestep_fs:g} fs), "
                f"got {self.thermostat.time_fs:g}"
            )
        return self

    @property
    def thermostat_steps(self) -> int:
        """``thermostat.time_fs`` in steps, at least 1."""
        return max(1, round(self.thermostat.time_fs / self.timestep_fs))

    @property
    def equilibration_steps(self) -> int:
        """Steps at the start of a run that give no frames."""
        # the small term keeps a whole multiple of the timestep from being rounded up
        return int(-(-self.equilibration_fs // self.timestep_fs)) if self.equilibration_fs else 0

    @property
    def conserves_energy(self) -> bool:
        """There is no thermostat."""
        return THERMOSTATS[self.thermostat.kind] == "not_controlled"

    def namelists(self, kelvin: float, n_steps: int) -> dict[str, dict[str, Any]]:
        """Keywords of pw.x that make an scf calculation a molecular dynamics run, by namelist.

        Without symmetry: pw.x finds the symmetry of the *first* geometry and keeps it, which would confine the
        dynamics of a perfect crystal. Velocities come from the input, never from pw.x, which draws them by the clock.

        :param kelvin: temperature in K.
        :param n_steps: steps of this run of pw.x.
        """
        kind = THERMOSTATS[self.thermostat.kind]
        ions: dict[str, Any] = {
            "ion_dynamics": "verlet",
            "ion_velocities": "from_input",
            "ion_temperature": kind,
            "pot_extrapolation": self.extrapolation,
            "wfc_extrapolation": self.extrapolation if self.extrapolation != "atomic" else "none",
        }
        if not self.conserves_energy:
            ions |= {"tempw": kelvin, "nraise": self.thermostat_steps}
        return {
            "CONTROL": {"calculation": "md", "nstep": n_steps, "dt": self.timestep_fs / RYDBERG_TIME},
            "SYSTEM": {"nosym": True},
            "IONS": ions,
        }


def parse_aimd(data: Mapping[str, Any], *, where: str = "settings") -> AimdSettings:
    """Validated settings.

    :raises ProtocolError: unknown, missing or impossible values, each with its path.
    """
    return validate_spec(AimdSettings, data, where=where)
