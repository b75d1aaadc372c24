"""The specification of a generation, as a person writes it.

::

    keep_seeds: false            # put the seed structures into the result, too
    steps:
      - generator: strain        # which generator; its keys follow
        per_parent: 12
        linear: 0.06
        volume: [0.9, 1.1]
      - generator: rattle
        parents: [strain]        # "seeds" (default), or names of earlier steps
        per_parent: 5
        amplitude_ang: [0.03, 0.2]
      - generator: random_structure
        name: random             # what others call it; default: the generator's name
        composition: Si8
        count: 8
        keep: true               # false: only parents of others
        seed: 0                  # changes the random numbers of this step only
      - generator: aimd          # a stage: a program makes the frames; its keys follow
        parents: {of: [strain, random], count: 3}     # 3 of their frames, drawn by seed
        temperatures_kelvin: [600]
      - generator: import
        dataset: known           # frames of the input `imports.known`, with their labels
    filters:                     # what kept frames must pass; a key left out is not looked at
      min_distance_ang: {Si-Si: 1.8}    # or one number; also where generators have limits of their own
      volume_ang3_per_atom: [10, 40]
      max_force_ev_per_ang: 30          # of frames whose forces are known
      duplicate_tolerance: 0.005        # leave out structures that are there already, in any orientation and cell

Generators that change frames make ``per_parent`` frames of each parent, those that invent them make ``count`` in all.
Stages are those of :mod:`aiida_mlip.protocols.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, TypeAlias, get_type_hints

from pydantic import Field, create_model

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.generate import SEEDS, Filters, Step, check_steps
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.kernel.sanity import SanityLimits
from aiida_mlip.protocols.model import SpecModel, check_name, validate_spec
from aiida_mlip.protocols.stages import STAGES, StageStep, read_stage

AnyStep: TypeAlias = Step | StageStep


class FilterSpec(SpecModel):
    """Filters of kept frames, see :class:`~aiida_mlip.kernel.generate.Filters`."""

    min_distance_ang: float | dict[str, float] | None = None
    volume_ang3_per_atom: tuple[float, float] | None = None
    max_force_ev_per_ang: float | None = None
    duplicate_tolerance: float | None = None


class GenerateSpec(SpecModel):
    """Top level of the specification; each step is read by the model of its generator."""

    steps: list[dict[str, Any]]
    keep_seeds: bool = False
    filters: FilterSpec | None = None


class GenerateJob(SpecModel):
    """A generation in one file: what ``aiida-mlip generate --spec job.yaml`` reads, beside the specification itself.

    :param steps: see :class:`GenerateSpec`, like ``keep_seeds`` and ``filters``.
    :param structures: seed structures: files that ASE reads, relative to this file, or nodes of the profile.
    :param seed: of all random numbers.
    :param codes: labels of AiiDA codes: ``pw``, ``metadynamics``, ``explore``, as the steps need them.
    :param fidelities: levels of theory of aimd steps, and of the estimate of costs.
    :param potential: pk, uuid or label of a potential.
    :param committee: pk, uuid or label of the other members of its committee, by any name, for steps with a watch.
    :param imports: pk, uuid or label of a dataset, by the name that import steps use.
    :param reference: pk, uuid or label of the dataset whose coverage the summary states.
    :param options: of the jobs of all codes, or by code.
    :param max_concurrent: runs of pw.x alive at once in one step.
    """

    steps: list[dict[str, Any]]
    keep_seeds: bool = False
    filters: dict[str, Any] | None = None
    structures: list[str | int] = []
    seed: Annotated[int, Field(ge=0)] = 0
    codes: dict[str, str] = {}
    fidelities: dict[str, dict[str, Any]] = {}
    potential: str | int | None = None
    committee: dict[str, str | int] = {}
    imports: dict[str, str | int] = {}
    reference: str | int | None = None
    options: dict[str, Any] = {}
    max_concurrent: Annotated[int, Field(ge=1)] | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """The specification: what a node keeps."""
        return {name: getattr(self, name) for name in GenerateSpec.model_fields if name in self.model_fields_set}


class ParentsSpec(SpecModel):
    """Some frames of the parents.

    :param of: ``seeds``, or names of earlier steps.
    :param count: so many of their frames, drawn by seed, at most.
    """

    of: str | list[str] = SEEDS
    count: Annotated[int, Field(ge=1)]


class StepSpec(SpecModel):
    """Keys that every step has, whatever its generator."""

    generator: str
    name: str | None = None
    parents: str | list[str] = SEEDS
    keep: bool = True
    seed: int = 0


def parse_generate(data: Any, *, where: str = "spec") -> tuple[tuple[AnyStep, ...], bool]:
    """Steps of a specification and whether the seeds are part of the result.

    :param data: plain mapping, see the module's example.
    :raises ProtocolError: unknown generator, stage or key (with the nearest valid one), a value that is not allowed,
        steps that cannot follow one another.
    """
    spec = validate_spec(GenerateSpec, data, where=where)
    _filters(spec, where=where)
    steps = tuple(parse_step(step, where=f"{where}.steps[{index}]") for index, step in enumerate(spec.steps))
    try:
        check_steps(steps, n_seeds=1)
    except InvalidInputError as error:
        raise ProtocolError(f"{where}.{error}") from error
    return steps, spec.keep_seeds


def parse_filters(data: Any, *, where: str = "spec") -> Filters:
    """Filters of a specification; those that leave out nothing but identical frames where it has none.

    :raises ProtocolError: unknown key, or a value that is not allowed.
    """
    return _filters(validate_spec(GenerateSpec, data, where=where), where=where)


def _filters(spec: GenerateSpec, *, where: str) -> Filters:
    if spec.filters is None:
        return Filters()
    values = spec.filters.model_dump()
    tolerance = values.pop("duplicate_tolerance")
    try:
        sanity = SanityLimits(**values) if any(value is not None for value in values.values()) else None
        return Filters(sanity=sanity, duplicate_tolerance=tolerance)
    except InvalidInputError as error:
        raise ProtocolError(f"{where}.filters.{error}") from error


def kernel_steps(steps: Sequence[AnyStep]) -> tuple[Step, ...]:
    """The steps that generators make."""
    return tuple(step for step in steps if isinstance(step, Step))


def stage_steps(steps: Sequence[AnyStep]) -> dict[int, StageStep]:
    """The steps that programs make, or that import, by their number."""
    return {index: step for index, step in enumerate(steps) if isinstance(step, StageStep)}


def parse_step(data: Mapping[str, Any], *, where: str) -> AnyStep:
    """One step.

    :raises ProtocolError: see :func:`parse_generate`.
    """
    known = sorted([*GENERATORS, *STAGES])
    if "generator" not in data:
        raise ProtocolError(f"{where}.generator: missing; valid are {', '.join(known)}")
    name = check_name("generator", str(data["generator"]), known, where=f"{where}.generator")
    data, n_parents = _split_parents(data, where=where)
    common, parameters = (_read_stage if name in STAGES else _read_generator)(name, data, where)
    if common.seed < 0:
        raise ProtocolError(f"{where}.seed: must not be negative, got {common.seed}")
    given: dict[str, Any] = {
        "name": common.name or name,
        "generator": name,
        "parents": (common.parents,) if isinstance(common.parents, str) else tuple(common.parents),
        "keep": common.keep,
        "seed": common.seed,
        "n_parents": n_parents,
    }
    return StageStep(job=parameters, **given) if name in STAGES else Step(parameters=parameters, **given)


def _split_parents(data: Mapping[str, Any], *, where: str) -> tuple[dict[str, Any], int | None]:
    """The step with plain ``parents``, and how many of their frames are taken."""
    parents = data.get("parents")
    if not isinstance(parents, Mapping):
        return dict(data), None
    spec = validate_spec(ParentsSpec, parents, where=f"{where}.parents")
    return {**data, "parents": spec.of}, spec.count


def _read_stage(name: str, data: dict[str, Any], where: str) -> tuple[StepSpec, Any]:
    job = read_stage(name, data, common=list(StepSpec.model_fields), where=where)
    if job.dataset and "parents" in data:
        raise ProtocolError(f"{where}.parents: an import has none")
    return validate_spec(StepSpec, {key: data[key] for key in data if key in StepSpec.model_fields}, where=where), job


def _read_generator(name: str, data: dict[str, Any], where: str) -> tuple[StepSpec, Any]:
    model = _step_model(name)
    spec = validate_spec(model, data, where=where)
    values = {key: getattr(spec, key) for key in model.model_fields if key not in StepSpec.model_fields}
    try:
        return spec, GENERATORS[name].parameters(**values)
    except InvalidInputError as error:
        raise ProtocolError(f"{where}.{error}") from error


@cache
def _step_model(name: str) -> type[StepSpec]:
    """Model with the common keys and those of a generator's parameter dataclass."""
    parameters = GENERATORS[name].parameters
    hints = get_type_hints(parameters, localns={"Mapping": Mapping}, include_extras=True)
    keys: dict[str, Any] = {}
    for entry in fields(parameters):
        default = entry.default if entry.default is not MISSING else ...
        keys[entry.name] = (hints[entry.name], default)
    model: type[StepSpec] = create_model(f"{name}_step", __base__=StepSpec, __module__=__name__, **keys)
    return model
