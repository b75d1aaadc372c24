"""The files between a metadynamics job and its worker, and the specification a person writes: one model for both."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from aiida_mlip.io.import_path import CalculatorPath

REQUEST_FILE: Final[str] = "input.json"
FRAMES_FILE: Final[str] = "structures.npz"
REFERENCE_FILE: Final[str] = "reference.npz"
MODEL_FILE: Final[str] = "model.nequip.zip"
#: Arrays of the potential's grades, beside its package.
STATISTICS_FILE: Final[str] = "statistics.npz"
#: The person's own input of the engine (COLVARS or PLUMED), beside the request.
ENGINE_INPUT_FILE: Final[str] = "engine_input.txt"
OUTPUT_FILE: Final[str] = "output.json"
#: Shard of the frames recorded so far.
TRAJECTORY_FILE: Final[str] = "trajectory.npz"
#: One value per frame: step, temperature, energies, smallest distance.
SERIES_FILE: Final[str] = "series.npz"
#: Where an unfinished run goes on from.
CHECKPOINT_FILE: Final[str] = "checkpoint.npz"
#: Folder of the bias, read at the start if it is there, written at the end.
BIAS_FOLDER: Final[str] = "bias"

Engine = Literal["environment", "colvars", "plumed", "uncertainty"]
ENGINES: Final[tuple[str, ...]] = ("environment", "colvars", "plumed", "uncertainty")
Positive = Annotated[float, Field(gt=0)]
Atom = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """Base: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Forces(Settings):
    """Who computes the forces, when it is no potential of the profile.

    :param calculator: dotted import path of an ASE calculator, e.g. ``ase.calculators.emt.EMT``; its code is run.
    :param arguments: its keyword arguments.
    """

    calculator: CalculatorPath
    arguments: dict[str, Any] = Field(default_factory=dict)


class Hills(Settings):
    """Hills that make up the bias.

    :param height_ev: of one hill; in environment space of one atom's hill.
    :param every: steps between hills.
    :param bias_factor: γ of well-tempered metadynamics; null: heights stay as they are.
    """

    height_ev: Positive
    every: Annotated[int, Field(ge=1)]
    bias_factor: Annotated[float, Field(gt=1)] | None = None


class Walls(Settings):
    """What keeps the dynamics sane.

    :param min_distance_ang: smallest allowed distance of two atoms, for all pairs or by pair ({'Si-O': 1.4}); a pair
        not named: 0.7 times the sum of the covalent radii. No frame below it is ever kept.
    :param pair_action: ``repel``: a soft wall pushes the atoms apart before the limit; ``stop``: no wall. Below the
        limit the trajectory ends in both cases.
    :param pair_strength_ev_per_ang2: stiffness of the wall.
    :param pair_onset: where the wall begins, in units of the limit.
    :param max_temperature_k: kinetic temperature; null: three times the target, more for few atoms.
    :param temperature_action: ``repel``: velocities are scaled back to the target; ``stop``: the trajectory ends.
    """

    min_distance_ang: Positive | dict[str, Positive] | None = None
    pair_action: Literal["stop", "repel"] = "repel"
    pair_strength_ev_per_ang2: Positive = 10.0
    pair_onset: Annotated[float, Field(ge=1)] = 1.15
    max_temperature_k: Positive | None = None
    temperature_action: Literal["stop", "repel"] = "stop"


class Environment(Settings):
    """Space of atomic environments, for the engine ``environment``.

    :param cutoff_ang: of an environment.
    :param n_radial: radial functions of the descriptor.
    :param components: whitened coordinates per element.
    :param width: of a hill, in standard deviations of the reference.
    :param reference_steps: unbiased steps per structure that make the reference, where none is given.
    """

    cutoff_ang: Annotated[float, Field(gt=0, le=12)] = 5.0
    n_radial: Annotated[int, Field(ge=2, le=16)] = 4
    components: Annotated[int, Field(ge=1, le=4)] = 2
    width: Annotated[float, Field(gt=0, le=10)] = 0.5
    reference_steps: Annotated[int, Field(ge=20)] = 200


class Uncertainty(Settings):
    """Bias −τ Σ_i u_i by the potential's own uncertainty, for the engine ``uncertainty``.

    :param measure: u of an atom: ``novelty``, a smooth γ, or ``laplace``, the width of the posterior of the readout in
        units of its root mean square over the training set.
    :param strength: τ is such that the bias pushes with this fraction of the potential's forces (root mean square).
    :param saturation: u beyond which an atom is hardly pushed any further; for ``novelty`` in units of the border.
    :param ramp_steps: the strength rises from 0 over so many steps.
    :param memory_steps: steps that the averages behind τ reach back.
    :param update_every: steps between two changes of τ.
    :param most_ev: τ is at most this; null: no limit.
    """

    measure: Literal["novelty", "laplace"] = "novelty"
    strength: Annotated[float, Field(gt=0, le=2)] = 0.25
    saturation: Positive = 4.0
    ramp_steps: Annotated[int, Field(ge=0)] = 100
    memory_steps: Annotated[int, Field(ge=1)] = 200
    update_every: Annotated[int, Field(ge=1)] = 10
    most_ev: Positive | None = None


class CollectiveVariable(Settings):
    """One collective variable of the engine ``colvars``; atoms count from 0.

    ``distance``: between the centres of ``group1`` and ``group2``; ``angle``: at ``group2`` between ``group1`` and
    ``group3``; ``coordination``: number of pairs of ``group1`` × ``group2`` within ``cutoff_ang``, smooth.

    :param lower: where the region of interest begins (Å, degrees or a number); a wall stands there.
    :param upper: where it ends.
    :param width: of a hill (its σ) in the unit of the variable.
    :param wall_ev: energy of the wall one ``width`` beyond the region.
    """

    name: str
    kind: Literal["distance", "angle", "coordination"]
    group1: Annotated[tuple[Atom, ...], Field(min_length=1)]
    group2: Annotated[tuple[Atom, ...], Field(min_length=1)]
    group3: tuple[Atom, ...] = ()
    cutoff_ang: Positive | None = None
    lower: float
    upper: float
    width: Positive
    wall_ev: Positive = 0.2

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z]\w{0,31}", value):
            raise ValueError("a name has letters, digits and '_' and begins with a letter")
        return value

    @field_validator("kind", mode="before")
    @classmethod
    def _check_kind(cls, value: Any) -> Any:
        if value == "cell":
            raise ValueError("COLVARS has no variable of the cell: use the engine plumed (CELL, VOLUME)")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> CollectiveVariable:
        if self.upper <= self.lower:
            raise ValueError(f"upper must be above lower, got {self.lower:g} and {self.upper:g}")
        if self.width * 2 > self.upper - self.lower:
            raise ValueError("width must be at most half of the region from lower to upper")
        if (self.kind == "angle") != bool(self.group3):
            raise ValueError("an angle needs group3, and nothing else takes one")
        if (self.kind == "coordination") != (self.cutoff_ang is not None):
            raise ValueError("a coordination number needs cutoff_ang, and nothing else takes one")
        for first, second in (("group1", "group2"), ("group2", "group3"), ("group1", "group3")):
            if shared := set(getattr(self, first)) & set(getattr(self, second)):
                raise ValueError(f"{first} and {second} share the atoms {sorted(shared)}")
        return self

    @property
    def atoms(self) -> tuple[int, ...]:
        """All atoms it refers to."""
        return (*self.group1, *self.group2, *self.group3)


class MetadynamicsSpec(Settings):
    """A metadynamics run, as a person writes it.

    :param engine: ``environment``, ``colvars``, ``plumed`` or ``uncertainty``.
    :param forces: calculator of the forces; left out when a potential is given.
    :param temperature_k: of the thermostat.
    :param timestep_fs: of the dynamics.
    :param n_steps: of each trajectory.
    :param record_every: steps between frames; walls of temperature are looked at as often.
    :param friction_per_ps: of the Langevin thermostat.
    :param replicas: trajectories per structure.
    :param seed: of all random numbers.
    :param fixed_atoms: atoms (from 0) that do not move, in every structure.
    :param hills: the bias; for ``environment`` and for ``colvars`` with ``collective_variables`` (an input of one's own
        states its hills itself).
    :param walls: what keeps the dynamics sane.
    :param environment: for the engine ``environment``.
    :param collective_variables: for the engine ``colvars``, when no input of one's own is given.
    :param uncertainty: for the engine ``uncertainty``, which needs a potential with grades.
    :param device: for a potential.
    :param fidelity: level of theory of a potential of several.
    """

    engine: Engine
    forces: Forces | None = None
    temperature_k: Positive
    timestep_fs: Annotated[float, Field(gt=0, le=10)]
    n_steps: Annotated[int, Field(ge=1)]
    record_every: Annotated[int, Field(ge=1)]
    friction_per_ps: Positive = 5.0
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    fixed_atoms: tuple[Atom, ...] = ()
    hills: Hills | None = None
    walls: Walls = Walls()
    environment: Environment | None = None
    collective_variables: tuple[CollectiveVariable, ...] = ()
    uncertainty: Uncertainty | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fidelity: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> MetadynamicsSpec:
        if self.record_every > self.n_steps:
            raise ValueError(f"record_every ({self.record_every}) is above n_steps ({self.n_steps}): no frame at all")
        for key, engine in (
            ("environment", "environment"),
            ("collective_variables", "colvars"),
            ("uncertainty", "uncertainty"),
        ):
            if getattr(self, key) and self.engine != engine:
                raise ValueError(f"{key} belongs to the engine {engine}, this one is {self.engine}")
        if self.engine == "environment" and self.hills is None:
            raise ValueError("hills: missing, the engine environment needs them")
        if self.engine == "plumed" and self.hills is not None:
            raise ValueError("hills: the engine plumed has its hills in its own input file")
        if self.engine == "uncertainty":
            self._check_uncertainty()
        names = [variable.name for variable in self.collective_variables]
        if len(set(names)) != len(names):
            raise ValueError(f"collective_variables: a name is used twice in {names}")
        if self.collective_variables and self.hills is None:
            raise ValueError("hills: missing, collective_variables need them")
        return self

    def _check_uncertainty(self) -> None:
        if self.uncertainty is None:
            raise ValueError("uncertainty: missing, the engine uncertainty needs it")
        if self.forces is not None:
            raise ValueError("forces: a calculator knows no uncertainty, give a potential with grades instead")
        if self.hills is not None:
            raise ValueError("hills: the engine uncertainty lays none")


class MetadynamicsRequest(Settings):
    """Contents of ``input.json``.

    :param spec: what to do.
    :param structures: shards of the starting structures.
    :param reference: shards of the reference frames of environment space, if any.
    :param engine_input: whether ``engine_input.txt`` holds the person's own input of the engine.
    :param sha256: hash that the package of the potential must have.
    :param species: chemical symbols that the potential covers, in the order of its types.
    :param fidelities: its levels of theory, in the order of its index.
    :param energy_shifts: eV per atom to add, by chemical symbol.
    :param max_seconds: stop cleanly after this wall time.
    :param checkpoint_seconds: everything is written at least this often.
    """

    version: Literal[1] = 1
    spec: MetadynamicsSpec
    structures: tuple[str, ...] = (FRAMES_FILE,)
    reference: tuple[str, ...] = ()
    engine_input: bool = False
    sha256: str | None = None
    species: tuple[str, ...] = ()
    fidelities: tuple[str, ...] = ()
    energy_shifts: dict[str, float] = Field(default_factory=dict)
    max_seconds: Positive | None = None
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0


Stop = Literal["finished", "temperature", "pair_distance", "forces_failed", "walltime", "running", "not_started"]


class TrajectoryReport(BaseModel):
    """How one trajectory went.

    :param structure: row of the starting structure.
    :param replica: number among the trajectories from that structure.
    :param steps: steps done, of those asked for.
    :param frames: frames recorded.
    :param stopped_by: why it ended; ``finished`` when it did all its steps.
    :param message: what there is to say about it.
    """

    model_config = ConfigDict(extra="forbid")

    structure: int
    replica: int
    steps: int = 0
    frames: int = 0
    stopped_by: Stop = "not_started"
    message: str = ""
    mean_temperature_k: float | None = None
    smallest_distance_ang: float | None = None
    largest_bias_ev: float | None = None


class MetadynamicsReport(BaseModel):
    """Contents of ``output.json``.

    :param status: ``finished``: every trajectory ended; ``walltime``: stopped cleanly, can go on; ``running``: was
        ended from outside; ``refused``: nothing was done, see ``reason``.
    :param reason: ``invalid_input``, ``engine_missing``, ``species_not_covered`` or ``model_not_loaded``.
    :param hills: grid points that carry a hill, for the engine ``environment``.
    :param tau_ev: strength at the end, for the engine ``uncertainty``.
    """

    model_config = ConfigDict(extra="forbid")

    status: Literal["finished", "walltime", "running", "refused"]
    reason: Literal["", "invalid_input", "engine_missing", "species_not_covered", "model_not_loaded"] = ""
    message: str = ""
    engine: str = ""
    steps_asked: int = 0
    trajectories: list[TrajectoryReport] = Field(default_factory=list)
    hills: int = 0
    tau_ev: float | None = None
    seconds: float = 0.0
    seconds_per_step: float | None = None
