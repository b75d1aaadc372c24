"""The files between an explore job and its worker, and the specification a person writes: one model for both."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aiida_mlip.io.metadynamics import Atom, Forces, Positive, Settings, Uncertainty
from aiida_mlip.io.watch import WatchSpec

REQUEST_FILE: Final[str] = "input.json"
FRAMES_FILE: Final[str] = "structures.npz"
MODEL_FILE: Final[str] = "model.nequip.zip"
#: Arrays of the potential's grades, beside its package.
STATISTICS_FILE: Final[str] = "statistics.npz"
#: The person's own LAMMPS commands, beside the request.
ENGINE_INPUT_FILE: Final[str] = "engine_input.txt"
OUTPUT_FILE: Final[str] = "output.json"
#: Shard of the frames recorded so far.
TRAJECTORY_FILE: Final[str] = "trajectory.npz"
#: One value per frame: run, step, temperature, energy, ...
SERIES_FILE: Final[str] = "series.npz"
#: Shard of the frames that the watch found worth a label, and the grades of their atoms.
SELECTED_FILE: Final[str] = "selected.npz"
GRADES_FILE: Final[str] = "grades.npz"
#: Where unfinished and stopped runs go on from.
CHECKPOINT_FILE: Final[str] = "checkpoint.npz"

Kind = Literal["md", "relax", "monte_carlo", "lammps"]
KINDS: Final[tuple[str, ...]] = ("md", "relax", "monte_carlo", "lammps")
NonNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=1)]
_FS_PER_PS: Final[float] = 1000.0


class Limits(Settings):
    """Where a run ends, whatever the potential says about itself.

    :param min_distance_ang: smallest allowed distance of two atoms, for all pairs or by pair ({'Si-O': 1.4}); a pair
        not named: 0.7 times the sum of the covalent radii. Watched at every force call; no frame below it is kept.
    :param max_temperature_k: kinetic temperature; null: three times the highest target, more for few atoms.
    """

    min_distance_ang: Positive | dict[str, Positive] | None = None
    max_temperature_k: Positive | None = None


class Segment(Settings):
    """One part of a molecular dynamics run.

    :param ensemble: ``langevin``: constant volume; ``npt``: Langevin and a barostat that scales the cell as a whole
        (stochastic cell rescaling); ``nve``: constant energy.
    :param temperature_k: of the thermostat, at the beginning of the segment. The first segment's is the temperature of
        the starting velocities; a later ``nve`` segment has none.
    :param end_temperature_k: at its end; in between the target changes linearly. Null: constant.
    :param friction_per_ps: of the thermostat.
    :param pressure_gpa: of the barostat.
    :param barostat_ps: time in which the barostat equilibrates the volume.
    :param compressibility_per_gpa: rough compressibility; only the speed of the barostat depends on it.
    """

    ensemble: Literal["nve", "langevin", "npt"] = "langevin"
    n_steps: Steps
    temperature_k: Positive | None = None
    end_temperature_k: Positive | None = None
    friction_per_ps: Positive = 5.0
    pressure_gpa: float = 0.0
    barostat_ps: Positive = 0.5
    compressibility_per_gpa: Positive = 0.01

    @model_validator(mode="after")
    def _check_together(self) -> Segment:
        if self.ensemble != "nve" and self.temperature_k is None:
            raise ValueError(f"temperature_k: missing, the ensemble {self.ensemble} needs it")
        if self.ensemble == "nve" and self.end_temperature_k is not None:
            raise ValueError("end_temperature_k: the ensemble nve has no thermostat")
        return self


class MeltQuench(Settings):
    """Melt, hold, quench, hold: amorphous frames.

    :param start_temperature_k: of the crystal.
    :param melt_temperature_k: of the melt, well above the melting point: superheated crystals are stubborn.
    :param final_temperature_k: of the glass.
    :param heat_ps: time from start to melt; the target rises linearly.
    :param melt_ps: time in the melt.
    :param quench_rate_k_per_ps: how fast the target falls.
    :param hold_ps: time at the final temperature.
    :param ensemble: ``npt``: the density finds itself; ``langevin``: it stays that of the starting structure.
    :param keep: frames of which part: ``all``, or only those of the ``glass`` (the hold at the end).
    """

    start_temperature_k: Positive = 300.0
    melt_temperature_k: Positive
    final_temperature_k: Positive = 300.0
    heat_ps: Positive = 1.0
    melt_ps: Positive = 5.0
    quench_rate_k_per_ps: Positive = 100.0
    hold_ps: Positive = 2.0
    ensemble: Literal["langevin", "npt"] = "npt"
    friction_per_ps: Positive = 5.0
    pressure_gpa: float = 0.0
    keep: Literal["all", "glass"] = "all"

    @model_validator(mode="after")
    def _check_together(self) -> MeltQuench:
        if self.melt_temperature_k <= max(self.start_temperature_k, self.final_temperature_k):
            raise ValueError("melt_temperature_k: must be above start_temperature_k and final_temperature_k")
        return self

    def segments(self, timestep_fs: float) -> tuple[Segment, ...]:
        """The same as a schedule."""
        hot, cold = self.melt_temperature_k, self.final_temperature_k
        parts = (
            (self.heat_ps, self.start_temperature_k, hot),
            (self.melt_ps, hot, None),
            ((hot - cold) / self.quench_rate_k_per_ps, hot, cold),
            (self.hold_ps, cold, None),
        )
        return tuple(
            Segment(
                ensemble=self.ensemble,
                n_steps=max(1, round(time * _FS_PER_PS / timestep_fs)),
                temperature_k=begin,
                end_temperature_k=end,
                friction_per_ps=self.friction_per_ps,
                pressure_gpa=self.pressure_gpa,
            )
            for time, begin, end in parts
        )


class MolecularDynamics(Settings):
    """Settings of the kind ``md``: a schedule of segments, or the preset ``melt_quench``.

    :param timestep_fs: of the integrator.
    :param uncertainty: drives the dynamics to where the potential, which must have grades, is uncertain; null: not.
    """

    timestep_fs: Annotated[float, Field(gt=0, le=10)]
    schedule: tuple[Segment, ...] = ()
    melt_quench: MeltQuench | None = None
    uncertainty: Uncertainty | None = None

    @model_validator(mode="after")
    def _check_together(self) -> MolecularDynamics:
        if bool(self.schedule) == (self.melt_quench is not None):
            raise ValueError("schedule: give either this list of segments or melt_quench, not both and not none")
        if self.schedule and self.schedule[0].temperature_k is None:
            raise ValueError("schedule.0.temperature_k: missing, the starting velocities need it")
        for index, segment in enumerate(self.schedule[1:], start=1):
            if segment.ensemble == "nve" and segment.temperature_k is not None:
                raise ValueError(f"schedule.{index}.temperature_k: only a first segment at constant energy has one")
        if self.uncertainty is not None and any(segment.ensemble == "nve" for segment in self.segments):
            raise ValueError("uncertainty: a bias that adapts conserves no energy, give every segment a thermostat")
        return self

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The schedule, whichever way it was given."""
        return self.schedule if self.melt_quench is None else self.melt_quench.segments(self.timestep_fs)


class Relaxation(Settings):
    """Settings of the kind ``relax``; frames along the path are kept when one of the two spacings is reached.

    :param optimizer: ``fire`` or ``lbfgs``.
    :param fmax_ev_per_ang: converged when no force is larger (with the cell: stress times volume over atoms as well).
    :param max_steps: give up after so many.
    :param cell: ``fixed``; ``free``: all six strains; ``isotropic``: the volume only.
    :param pressure_gpa: on the cell.
    :param frame_displacement_ang: a frame whenever an atom has moved so far since the last one.
    :param frame_energy_ev_per_atom: a frame whenever the energy has fallen so much since the last one.
    """

    optimizer: Literal["fire", "lbfgs"] = "fire"
    fmax_ev_per_ang: Positive = 0.05
    max_steps: Steps = 500
    cell: Literal["fixed", "free", "isotropic"] = "fixed"
    pressure_gpa: float = 0.0
    frame_displacement_ang: Positive = 0.2
    frame_energy_ev_per_atom: Positive = 0.05

    @model_validator(mode="after")
    def _check_together(self) -> Relaxation:
        if self.pressure_gpa and self.cell == "fixed":
            raise ValueError("pressure_gpa: a fixed cell takes none; set cell to free or isotropic")
        return self


class MonteCarlo(Settings):
    """Settings of the kind ``monte_carlo``: swaps of atoms of different elements at a temperature.

    :param moves: ``swap``: sites stay where they are; ``hybrid``: swaps and short trajectories in turn.
    :param n_steps: attempted swaps, or cycles of a hybrid run.
    :param elements: which elements are swapped; empty: all.
    :param swaps_per_cycle: of a hybrid run; 0: displacements only.
    :param md_steps: of one short trajectory.
    :param timestep_fs: of it.
    :param n_shells: shells of neighbours whose Warren-Cowley parameters are recorded; 0: none.
    """

    moves: Literal["swap", "hybrid"] = "swap"
    temperature_k: Positive
    n_steps: Steps
    elements: tuple[str, ...] = ()
    swaps_per_cycle: Annotated[int, Field(ge=0)] = 10
    md_steps: Steps = 10
    timestep_fs: Annotated[float, Field(gt=0, le=10)] = 2.0
    n_shells: Annotated[int, Field(ge=0, le=10)] = 2


class LammpsRun(Settings):
    """Settings of the kind ``lammps``: LAMMPS in the program's process integrates, the forces are the potential's.

    :param integrate: ``nve``, ``langevin``, or ``none``: the commands bring an integrator of their own. The atoms
        that move are the group ``mobile``.
    :param commands: LAMMPS commands between set-up and run (units metal), e.g. ``fix pull all deform 1 x erate 0.1``;
        the input ``engine_input`` is the same as a file, and comes after them.
    :param pair_commands: ``pair_style`` and ``pair_coeff`` of a LAMMPS that has the potential itself; the forces are
        then LAMMPS'. Atom types follow the atomic numbers; {species} stands for their symbols.
    """

    timestep_fs: Annotated[float, Field(gt=0, le=10)]
    n_steps: Steps
    temperature_k: Positive
    integrate: Literal["nve", "langevin", "none"] = "langevin"
    friction_per_ps: Positive = 5.0
    commands: tuple[str, ...] = ()
    pair_commands: tuple[str, ...] = ()


class ExploreSpec(Settings):
    """Runs with a potential, as a person writes them: one run per structure and replica.

    :param kind: ``md``, ``relax``, ``monte_carlo`` or ``lammps``; the section of that name says what to do.
    :param forces: calculator of the forces; left out when a potential is given.
    :param record_every: steps between frames (a relaxation has spacings of its own).
    :param replicas: runs per structure, with different random numbers.
    :param seed: of all random numbers.
    :param fixed_atoms: atoms (from 0) that do not move, in every structure.
    :param limits: where a run ends.
    :param watch: of a potential that has grades: when a frame is worth a label, and when to stop; null: not watched.
    :param selected_every: steps between two frames that are selected for a label, at least.
    :param device: for a potential.
    :param mode: of a potential: ``eager``, or ``compiled`` (a minute to compile once per machine, then faster).
    :param fidelity: level of theory of a potential of several.
    """

    kind: Kind
    forces: Forces | None = None
    record_every: Steps
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    fixed_atoms: tuple[Atom, ...] = ()
    limits: Limits = Limits()
    watch: WatchSpec | None = None
    selected_every: Steps = 20
    md: MolecularDynamics | None = None
    relax: Relaxation | None = None
    monte_carlo: MonteCarlo | None = None
    lammps: LammpsRun | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mode: Literal["eager", "compiled"] = "eager"
    fidelity: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> ExploreSpec:
        for name in KINDS:
            if (getattr(self, name) is not None) != (name == self.kind):
                raise ValueError(
                    f"{name}: missing, the kind {self.kind} needs it"
                    if name == self.kind
                    else f"{name}: belongs to the kind {name}, this one is {self.kind}"
                )
        if self.kind != "relax" and self.record_every > self.n_steps:
            raise ValueError(f"record_every ({self.record_every}) is above the {self.n_steps} steps: no frame at all")
        if self.kind == "relax" and self.replicas > 1:
            raise ValueError("replicas: relaxations of one structure are all the same, give 1")
        if self.watch is not None and self.watch.min_distance_ang is not None:
            raise ValueError("watch.min_distance_ang: belongs into limits.min_distance_ang, which every step looks at")
        if self.watch is not None and self.forces is not None:
            raise ValueError("watch: only a potential with grades can be watched, not a calculator in forces")
        if self.uncertainty is not None and (self.forces is not None or self.mode == "compiled"):
            raise ValueError(
                "md.uncertainty: needs a potential with grades, in mode eager: its slope is taken on the way"
            )
        return self

    @property
    def uncertainty(self) -> Uncertainty | None:
        """Bias of the dynamics."""
        return None if self.md is None else self.md.uncertainty

    @property
    def n_steps(self) -> int:
        """Steps of each run, at most."""
        if self.md is not None:
            return sum(segment.n_steps for segment in self.md.segments)
        if self.relax is not None:
            return self.relax.max_steps
        section = self.monte_carlo or self.lammps
        return 0 if section is None else section.n_steps

    @property
    def timestep_fs(self) -> float | None:
        """Time between steps, where steps are time."""
        section = self.md or self.lammps
        return None if section is None else section.timestep_fs

    @property
    def changes_cell(self) -> bool:
        """Whether the cell changes by itself (a person's LAMMPS commands are not looked at)."""
        if self.md is not None:
            return any(segment.ensemble == "npt" for segment in self.md.segments)
        return self.relax is not None and self.relax.cell != "fixed"

    @property
    def highest_temperature_k(self) -> float | None:
        """Largest target of a thermostat, or temperature of the starting velocities."""
        if self.md is not None:
            return max(
                value
                for segment in self.md.segments
                for value in (segment.temperature_k, segment.end_temperature_k)
                if value is not None
            )
        section = self.monte_carlo or self.lammps
        return None if section is None else section.temperature_k

    @property
    def start_temperature_k(self) -> float | None:
        """Temperature of the starting velocities; None: there are none."""
        if self.md is not None:
            return self.md.segments[0].temperature_k
        return None if self.lammps is None else self.lammps.temperature_k

    @property
    def starts_at_rest(self) -> bool:
        """Whether the centre of mass has no velocity at the start: where no thermostat moves it anyway."""
        if self.md is not None:
            return self.md.segments[0].ensemble == "nve"
        return self.lammps is not None and self.lammps.integrate == "nve"

    @property
    def generator(self) -> str:
        """What the frames are called in a dataset's column of generators."""
        return "melt_quench" if self.md is not None and self.md.melt_quench is not None else self.kind


class Member(Settings):
    """A further member of the committee of the driving potential.

    :param file: its package.
    :param sha256: hash that the package must have.
    """

    file: str
    sha256: str


class ExploreRequest(Settings):
    """Contents of ``input.json``.

    :param spec: what to do.
    :param structures: shards of the starting structures.
    :param engine_input: name of the file with the person's own LAMMPS commands, if any.
    :param restart_stopped: whether runs that a watch or limit ended go on from their last trusted frame, too.
    :param sha256: hash that the package of the potential must have.
    :param species: chemical symbols that the potential covers, in the order of its types.
    :param fidelities: its levels of theory, in the order of its index.
    :param energy_shifts: eV per atom to add, by chemical symbol.
    :param graded: whether ``statistics.npz`` holds the grades of the potential.
    :param committee: the other members.
    :param calibration: of the committee, see :class:`aiida_mlip.kernel.calibration.Calibration`.
    :param max_seconds: stop cleanly after this wall time.
    :param checkpoint_seconds: everything is written at least this often.
    """

    version: Literal[1] = 1
    spec: ExploreSpec
    structures: tuple[str, ...] = (FRAMES_FILE,)
    engine_input: str | None = None
    restart_stopped: bool = False
    sha256: str | None = None
    species: tuple[str, ...] = ()
    fidelities: tuple[str, ...] = ()
    energy_shifts: dict[str, float] = Field(default_factory=dict)
    graded: bool = False
    committee: tuple[Member, ...] = ()
    calibration: dict[str, Any] | None = None
    max_seconds: Positive | None = None
    checkpoint_seconds: NonNegative = 30.0


#: Why a run ended. ``finished`` and ``converged``: it did what was asked.
Stop = Literal[
    "finished",
    "converged",
    "not_converged",
    "novelty",
    "error",
    "pair_distance",
    "temperature",
    "forces_failed",
    "walltime",
    "running",
    "not_started",
]


class RunReport(BaseModel):
    """How one run went.

    :param structure: row of the starting structure.
    :param replica: number among the runs from that structure.
    :param steps: steps done; after a stop: those up to the last trusted frame, which the run went back to.
    :param frames: frames recorded.
    :param selected: of those, frames that the watch found worth a label.
    :param stopped_by: why it ended.
    :param stopped_at: step at which the watch or limit said stop.
    :param message: what there is to say about it.
    """

    model_config = ConfigDict(extra="forbid")

    structure: int
    replica: int
    steps: int = 0
    frames: int = 0
    selected: int = 0
    stopped_by: Stop = "not_started"
    stopped_at: int | None = None
    message: str = ""
    mean_temperature_k: float | None = None
    smallest_distance_ang: float | None = None
    largest_novelty: float | None = None
    largest_error_ev_per_ang: float | None = None
    energy_ev: float | None = None
    numbers: dict[str, Any] = Field(default_factory=dict)


class ExploreReport(BaseModel):
    """Contents of ``output.json``.

    :param status: ``finished``: every run ended; ``walltime``: stopped cleanly, can go on; ``running``: was ended from
        outside; ``refused``: nothing was done, see ``reason``.
    :param reason: ``invalid_input``, ``engine_missing``, ``species_not_covered`` or ``model_not_loaded``.
    """

    model_config = ConfigDict(extra="forbid")

    status: Literal["finished", "walltime", "running", "refused"]
    reason: Literal["", "invalid_input", "engine_missing", "species_not_covered", "model_not_loaded"] = ""
    message: str = ""
    kind: str = ""
    steps_asked: int = 0
    runs: list[RunReport] = Field(default_factory=list)
    seconds: float = 0.0
    seconds_per_step: float | None = None
