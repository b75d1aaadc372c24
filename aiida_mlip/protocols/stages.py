"""Steps of a generation that a program makes, not a generator: molecular dynamics, biased dynamics, import.

A stage is one entry of :data:`STAGES`: a reader of its keys. What each reader returns says which code the stage needs,
what its child takes, and how many frames to expect. The keys are those of the stage's own specification
(:mod:`~aiida_mlip.protocols.aimd`, :mod:`~aiida_mlip.protocols.metadynamics`, :mod:`~aiida_mlip.protocols.explore`),
with ``protocol`` as the source of what is left out. Runs with a potential take the keys of their section without its
name::

    - {generator: relax, parents: random, cell: free, fmax_ev_per_ang: 0.05}
    - {generator: md, n_steps: 2000, temperature_k: 600, record_every: 100}  # or a `schedule` of several segments
    - {generator: melt_quench, melt_temperature_k: 3000, frames: glass}
    - {generator: monte_carlo, n_steps: 5000, temperature_k: 800}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.io.explore import ExploreSpec, LammpsRun, MeltQuench, MonteCarlo, Relaxation, Segment
from aiida_mlip.io.metadynamics import MetadynamicsSpec
from aiida_mlip.kernel.frames import digest
from aiida_mlip.protocols import explore
from aiida_mlip.protocols.aimd import AimdSettings
from aiida_mlip.protocols.metadynamics import check_against_structures, resolved_spec
from aiida_mlip.protocols.model import PROTOCOLS, check_name, merged_protocol, validate_spec

#: More atoms than any structure has: what can be checked without structures is checked with it.
_ANY_SIZE: Final[int] = 2**31
#: Frames along the path of one relaxation, for estimates: it keeps one per 0.2 Å or 0.05 eV/atom by default.
FRAMES_OF_A_PATH: Final[int] = 10
#: Seeds of children are below this.
_LARGEST_SEED: Final[int] = 2**31 - 1


@dataclass(frozen=True)
class Job:
    """What a stage asks of its child, read from the keys of the step.

    :param code: key of the input ``codes`` that it needs; empty: none.
    :param settings: what the child takes, defaults written out, without the seed.
    :param per_parent: frames it makes of each parent, or may make at most.
    :param exact: whether ``per_parent`` is a promise.
    :param growth: atoms of a frame over atoms of its parent.
    :param pw_steps: steps of pw.x per parent.
    :param fidelity: level of theory by name, for pw.x; None: the only one there is.
    :param has_forces: whether the step names a calculator itself, so that no potential is needed.
    :param engine_input: text of an input file of one's own.
    :param dataset: key of the input ``imports``.
    """

    code: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    per_parent: int = 1
    exact: bool = False
    growth: int = 1
    pw_steps: int = 0
    fidelity: str | None = None
    has_forces: bool = False
    engine_input: str | None = None
    dataset: str = ""


@dataclass(frozen=True)
class StageStep:
    """One step of a specification that a child workchain makes, or that takes frames as they are.

    :param name: what later steps call its frames.
    :param generator: key of :data:`STAGES`.
    :param job: what it asks of its child.
    :param parents: names of earlier steps, or ``"seeds"``.
    :param keep: whether its frames are in the result, or only parents of others.
    :param seed: changes this step's random numbers only.
    :param n_parents: start from so many frames of the parents, drawn by seed, at most; None: from all.
    """

    name: str
    generator: str
    job: Job
    parents: tuple[str, ...]
    keep: bool = True
    seed: int = 0
    n_parents: int | None = None

    @property
    def needs_parents(self) -> bool:
        """Whether it starts from existing frames; only an import does not."""
        return not self.job.dataset

    def expected(self, n_parents: int) -> int:
        """Frames it may make of so many parents; an import: 1, until the dataset is there to be looked at."""
        return n_parents * self.job.per_parent if self.needs_parents else 1

    def child_seed(self, seed: int) -> int:
        """Seed of the child from that of the whole generation: it depends on both seeds and the step's name only."""
        word = int.from_bytes(digest(self.name, "child").tobytes(), "little")
        return int(np.random.SeedSequence([seed, self.seed, word]).generate_state(1)[0]) % _LARGEST_SEED


Reader: TypeAlias = Callable[[dict[str, Any], str], Job]


@dataclass(frozen=True)
class Stage:
    """One kind of stage.

    :param keys: its own keys.
    :param read: keys of the step and what it is called in messages -> what is asked of the child.
    """

    keys: Sequence[str]
    read: Reader


def _read_import(own: dict[str, Any], where: str) -> Job:
    name = own.get("dataset")
    if not isinstance(name, str) or not name:
        raise ProtocolError(f"{where}.dataset: expected the name of a dataset of the input `imports`, got {name!r}")
    return Job(dataset=name)


def _read_aimd(own: dict[str, Any], where: str) -> Job:
    fidelity = own.pop("fidelity", None)
    if fidelity is not None and not isinstance(fidelity, str):
        raise ProtocolError(f"{where}.fidelity: expected the name of a level of theory, got {fidelity!r}")
    settings = validate_spec(AimdSettings, _with_protocol("aimd", own, where), where=where)
    runs = len(settings.temperatures_kelvin) * len(settings.volume_scales) * len(settings.strains) * settings.replicas
    frames = -(-(settings.n_steps - settings.equilibration_steps) // settings.thinning.every)
    return Job(
        code="pw",
        settings=settings.model_dump(mode="json"),
        per_parent=runs * min(frames, settings.thinning.max_frames or frames),
        growth=int(np.prod(settings.supercell)),
        pw_steps=runs * settings.n_steps,
        fidelity=fidelity,
    )


def _read_metadynamics(own: dict[str, Any], where: str) -> Job:
    protocol, text = _protocol_name(own, where), own.pop("engine_input", None)
    if text is not None and not isinstance(text, str):
        raise ProtocolError(f"{where}.engine_input: expected the text of an input file, got {type(text).__name__}")
    values = resolved_spec(own, protocol=protocol, where=where)
    spec = validate_spec(MetadynamicsSpec, values, where=where)
    try:
        check_against_structures(spec, [_ANY_SIZE], engine_input=text, where=where)
    except ProtocolError as error:
        raise ProtocolError(_below(str(error), where)) from error
    return Job(
        code="metadynamics",
        settings=values,
        per_parent=spec.replicas * (spec.n_steps // spec.record_every),
        has_forces=spec.forces is not None,
        engine_input=text,
    )


#: Keys of a step that are not those of the section: of the whole specification of a run with a potential.
_RUN_KEYS: Final[tuple[str, ...]] = tuple(
    key for key in ExploreSpec.model_fields if key not in ("seed", "kind", "md", "relax", "monte_carlo", "lammps")
)
_SEGMENT_KEYS: Final[tuple[str, ...]] = tuple(Segment.model_fields)
#: A step's own ``keep`` says whether its frames are in the result; which part of a quench is meant has another name.
_QUENCH_KEYS: Final[tuple[str, ...]] = (*(key for key in MeltQuench.model_fields if key != "keep"), "frames")


def _explore_reader(kind: str, section_keys: Sequence[str], fold: Callable[[dict[str, Any]], dict[str, Any]]) -> Reader:
    """Reader of a kind of run with a potential.

    :param section_keys: keys of the step that belong to the section ``kind``.
    :param fold: the section from them.
    """

    def read(own: dict[str, Any], where: str) -> Job:
        protocol, text = _protocol_name(own, where), own.pop("engine_input", None)
        section = fold({key: own.pop(key) for key in section_keys if key in own})
        try:
            values = explore.resolved_spec({"kind": kind, **own, kind: section}, protocol=protocol, where=where)
            spec = explore.parse_explore(values, where=where)
        except ProtocolError as error:
            raise ProtocolError(without_sections(str(error), where)) from error
        return Job(
            code="explore",
            settings=values,
            per_parent=FRAMES_OF_A_PATH if kind == "relax" else spec.replicas * _recorded(spec),
            has_forces=spec.forces is not None or (spec.lammps is not None and bool(spec.lammps.pair_commands)),
            engine_input=text,
        )

    return read


def _recorded(spec: ExploreSpec) -> int:
    """Frames of one run with regular records."""
    quench = spec.md.melt_quench if spec.md is not None else None
    if spec.md is not None and quench is not None and quench.keep == "glass":
        return max(1, spec.md.segments[-1].n_steps // spec.record_every)
    return spec.n_steps // spec.record_every


def _one_segment(section: dict[str, Any]) -> dict[str, Any]:
    """Keys of a segment, given without a schedule, as a schedule of one."""
    segment = {key: section.pop(key) for key in _SEGMENT_KEYS if key in section}
    return {**section, "schedule": [segment]} if segment and "schedule" not in section else {**section, **segment}


def _quench(section: dict[str, Any]) -> dict[str, Any]:
    timestep = {"timestep_fs": section.pop("timestep_fs")} if "timestep_fs" in section else {}
    part = {"keep": section.pop("frames")} if "frames" in section else {}
    return {**timestep, "melt_quench": {**section, **part}}


def without_sections(message: str, where: str) -> str:
    """Paths of keys as the person who wrote the step knows them: without the names of sections."""
    for section in ("md.melt_quench.keep", "md.melt_quench", "md.schedule.0", "md", "relax", "monte_carlo", "lammps"):
        name = ".frames" if section.endswith("keep") else ""
        message = message.replace(f"{where}.{section}.", f"{where}{name}.").replace(
            f"{where}.{section}:", f"{where}{name}:"
        )
    return message


def _explore_stage(kind: str, keys: Sequence[str], fold: Callable[[dict[str, Any]], dict[str, Any]]) -> Stage:
    extra = ("engine_input",) if kind == "lammps" else ()
    return Stage(keys=("protocol", *_RUN_KEYS, *keys, *extra), read=_explore_reader(kind, keys, fold))


#: Kinds of stages, by the word of the specification.
STAGES: Final[dict[str, Stage]] = {
    "import": Stage(keys=("dataset",), read=_read_import),
    "aimd": Stage(keys=("protocol", "fidelity", *AimdSettings.model_fields), read=_read_aimd),
    "metadynamics": Stage(
        keys=("protocol", "engine_input", *(key for key in MetadynamicsSpec.model_fields if key != "seed")),
        read=_read_metadynamics,
    ),
    "md": _explore_stage("md", ("timestep_fs", "schedule", "uncertainty", *_SEGMENT_KEYS), _one_segment),
    "melt_quench": _explore_stage("md", ("timestep_fs", *_QUENCH_KEYS), _quench),
    "relax": _explore_stage("relax", tuple(Relaxation.model_fields), dict),
    "monte_carlo": _explore_stage("monte_carlo", tuple(MonteCarlo.model_fields), dict),
    "lammps": _explore_stage("lammps", tuple(LammpsRun.model_fields), dict),
}


def read_stage(name: str, data: Mapping[str, Any], *, common: Sequence[str], where: str) -> Job:
    """What a stage asks of its child.

    :param name: key of :data:`STAGES`.
    :param data: all keys of the step.
    :param common: keys that every step has; they are read elsewhere.
    :raises ProtocolError: an unknown key (with the nearest valid one), or a value that is not allowed.
    """
    stage = STAGES[name]
    valid = [*common, *stage.keys]
    for key in data:
        check_name("key", str(key), valid, where=f"{where}.{key}")
    own = {key: value for key, value in data.items() if key not in common}
    try:
        return stage.read(own, where)
    except ProtocolError:
        raise
    except InvalidInputError as error:
        raise ProtocolError(_below(str(error), where)) from error


def _with_protocol(stage: str, own: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of the protocol that ``own`` names, with the rest of ``own`` merged in."""
    return merged_protocol(stage, _protocol_name(own, where), own)


def _protocol_name(own: dict[str, Any], where: str) -> str | None:
    protocol = own.pop("protocol", None)
    if protocol is None:
        return None
    return check_name("protocol", str(protocol), list(PROTOCOLS), where=f"{where}.protocol")


def _below(message: str, where: str) -> str:
    return message if message.startswith(where) else f"{where}.{message}"
