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
    filters:                     # what kept frames must pass; a key left out is not looked at
      min_distance_ang: {Si-Si: 1.8}    # or one number; also where generators have limits of their own
      volume_ang3_per_atom: [10, 40]
      max_force_ev_per_ang: 30          # of frames whose forces are known
      duplicate_tolerance: 0.005        # leave out structures that are there already, in any orientation and cell

Generators that change frames make ``per_parent`` frames of each parent, those that invent them make ``count`` in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import create_model

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.generate import SEEDS, Filters, Step, check_steps
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.kernel.sanity import SanityLimits
from aiida_mlip.protocols.model import SpecModel, check_name, validate_spec


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


class StepSpec(SpecModel):
    """Keys that every step has, whatever its generator."""

    generator: str
    name: str | None = None
    parents: str | list[str] = SEEDS
    keep: bool = True
    seed: int = 0


def parse_generate(data: Any, *, where: str = "spec") -> tuple[tuple[Step, ...], bool]:
    """Steps of a specification and whether the seeds are part of the result.

    :param data: plain mapping, see the module's example.
    :raises ProtocolError: unknown generator or key (with the nearest valid one), a value that is not allowed, steps
        that cannot follow one another.
    """
    spec = validate_spec(GenerateSpec, data, where=where)
    _filters(spec, where=where)
    steps = tuple(_parse_step(step, where=f"{where}.steps[{index}]") for index, step in enumerate(spec.steps))
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


def needs_seeds(steps: tuple[Step, ...]) -> bool:
    """Whether any step takes its parents from the seeds."""
    return any(GENERATORS[step.generator].needs_parents and SEEDS in step.parents for step in steps)


def _parse_step(data: Mapping[str, Any], *, where: str) -> Step:
    if "generator" not in data:
        raise ProtocolError(f"{where}.generator: missing; valid are {', '.join(sorted(GENERATORS))}")
    name = check_name("generator", str(data["generator"]), sorted(GENERATORS), where=f"{where}.generator")
    model = _step_model(name)
    spec = validate_spec(model, data, where=where)
    values = {key: getattr(spec, key) for key in model.model_fields}
    common = {key: values.pop(key) for key in StepSpec.model_fields}
    try:
        parameters = GENERATORS[name].parameters(**values)
    except InvalidInputError as error:
        raise ProtocolError(f"{where}.{error}") from error
    parents = common["parents"]
    if common["seed"] < 0:
        raise ProtocolError(f"{where}.seed: must not be negative, got {common['seed']}")
    return Step(
        name=common["name"] or name,
        generator=name,
        parameters=parameters,
        parents=(parents,) if isinstance(parents, str) else tuple(parents),
        keep=common["keep"],
        seed=common["seed"],
    )


@cache
def _step_model(name: str) -> type[SpecModel]:
    """Model with the common keys and those of a generator's parameter dataclass."""
    parameters = GENERATORS[name].parameters
    hints = get_type_hints(parameters, localns={"Mapping": Mapping}, include_extras=True)
    keys: dict[str, Any] = {}
    for entry in fields(parameters):
        default = entry.default if entry.default is not MISSING else ...
        keys[entry.name] = (hints[entry.name], default)
    model: type[SpecModel] = create_model(f"{name}_step", __base__=StepSpec, __module__=__name__, **keys)
    return model
