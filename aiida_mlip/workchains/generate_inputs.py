"""What the inputs of a generation must be, checked before anything is submitted."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiida import orm
from ase.data import chemical_symbols

from aiida_mlip.calculations.dynamics_inputs import check_potential
from aiida_mlip.calculations.explore import ExploreCalculation, validate_explore_inputs
from aiida_mlip.calculations.functions.generate import seed_frames
from aiida_mlip.calculations.functions.generate_stages import distinct, merged_settings, options_by_code
from aiida_mlip.calculations.metadynamics import MetadynamicsCalculation, validate_metadynamics_inputs
from aiida_mlip.calculations.options import check_job_options
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError, MlipError, ProtocolError
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.generate import SEEDS, Step, check_steps
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.kernel.generators.random_structure import parse_composition
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.fidelity import QeFidelity, parse_fidelities
from aiida_mlip.protocols.generate import AnyStep, parse_generate, stage_steps
from aiida_mlip.protocols.model import check_name
from aiida_mlip.protocols.stages import StageStep, without_sections
from aiida_mlip.workchains.label_inputs import check_options, check_pseudos, settings_hashes

#: Code -> its jobs, but for pw.x.
_JOBS: Final[Mapping[str, Any]] = {"metadynamics": MetadynamicsCalculation, "explore": ExploreCalculation}


def validate_generate_inputs(inputs: Mapping[str, Any], namespace: Any) -> str | None:
    """Validator of the ports of the generation: the first thing that is wrong, or None."""
    if "spec" not in namespace or "spec" not in inputs:
        return None  # an optional namespace of another workchain, left empty
    try:
        _check(inputs)
    except MlipError as error:
        return str(error)
    return None


def validate_spec_node(value: orm.Dict | None, _: Any) -> str | None:
    """Validator of the specification by itself."""
    if value is None:
        return None
    try:
        parse_generate(value.get_dict())
    except InvalidInputError as error:
        return str(error)
    return None


def _check(inputs: Mapping[str, Any]) -> None:
    steps, keep_seeds = parse_generate(inputs["spec"].get_dict())
    stages = stage_steps(steps)
    seeds = seed_frames(inputs.get("structures"), inputs.get("cells") or {})
    if seeds is not None:
        check_geometries(seeds, source="structures")
    imports = inputs.get("imports") or {}
    _check_imports(stages, imports)
    if inputs.get("committee") and "potential" not in inputs:
        raise ProtocolError("committee: the input `potential`, whose other members it is, is not given")
    given = {step.name: len(imports[step.job.dataset]) for step in stages.values() if step.job.dataset}
    checked = [step for step in steps if step.name not in given]
    if checked or not given:
        try:
            check_steps(checked, n_seeds=0 if seeds is None else len(seeds), given=given)
        except InvalidInputError as error:
            raise ProtocolError(f"spec.{error}") from error
    known = _known_frames(steps, seeds, imports)
    for index, step in stages.items():
        where = f"spec.steps[{index}]"
        _check_code(step, inputs, where)
        if step.job.code == "pw":
            _check_level(step, inputs, _known_species(steps, known, step), where)
        elif step.job.code:
            try:
                _check_run(step, inputs, known.get(step.name), _known_species(steps, known, step))
            except MlipError as error:
                message = without_sections(re.sub(r"^spec(?=\.)", where, str(error)), where)
                raise ProtocolError(message if message.startswith(where) else f"{where}: {message}") from error
    _check_settings(stages, inputs, keep_seeds)
    _check_all_options(stages, inputs)


def _check_imports(stages: Mapping[int, StageStep], imports: Mapping[str, DatasetData]) -> None:
    used = set()
    for index, step in stages.items():
        if name := step.job.dataset:
            if name not in imports:
                raise ProtocolError(
                    f"spec.steps[{index}].dataset: {name!r} is not among the inputs `imports`, which has "
                    f"{', '.join(sorted(imports)) or 'none'}"
                )
            used.add(name)
    if unused := sorted(set(imports) - used):
        raise ProtocolError(f"imports.{unused[0]}: no step imports it; add a step {{generator: import, dataset: ...}}")


def _check_code(step: StageStep, inputs: Mapping[str, Any], where: str) -> None:
    code = step.job.code
    if code and code not in (inputs.get("codes") or {}):
        raise ProtocolError(f"{where} ({step.generator}): needs the input `codes.{code}`, which is not given")
    if code in ("", "pw") or step.job.has_forces or "potential" in inputs:
        return
    raise ProtocolError(
        f"{where} ({step.generator}): needs forces: give the key `forces` (a calculator) in the step, or the input "
        "`potential`"
    )


def _check_level(step: StageStep, inputs: Mapping[str, Any], species: Sequence[str], where: str) -> None:
    """The level of theory of molecular dynamics with pw.x."""
    if "fidelities" not in inputs:
        raise ProtocolError(f"{where} ({step.generator}): needs the input `fidelities`, which is not given")
    levels = parse_fidelities(inputs["fidelities"].get_dict())
    name = step.job.fidelity
    if name is None:
        if len(levels) > 1:
            raise ProtocolError(f"{where}.fidelity: missing, there are several: {', '.join(levels)}")
        name = next(iter(levels))
    check_name("fidelity", name, list(levels), where=f"{where}.fidelity")
    level = levels[name]
    if not isinstance(level, QeFidelity):
        raise ProtocolError(f"{where}.fidelity: molecular dynamics runs with engine qe, {name!r} is of {level.engine}")
    check_pseudos(level, list(species), f"fidelities.{name}")


def _check_run(step: StageStep, inputs: Mapping[str, Any], frames: Frames | None, species: Sequence[str]) -> None:
    """A run with a potential or calculator, as far as its structures are known."""
    job = step.job
    if frames is not None:
        given: dict[str, Any] = {
            "structures": DatasetData.from_frames(distinct(frames)),
            "spec": orm.Dict(dict(job.settings)),
            **inputs_of_run(step, inputs),
        }
        if job.engine_input is not None:
            given["engine_input"] = orm.SinglefileData(io.BytesIO(job.engine_input.encode()))
        validate = validate_explore_inputs if job.code == "explore" else validate_metadynamics_inputs
        if problem := validate(given, None):
            raise ProtocolError(problem)
    elif not job.has_forces:
        fidelity = job.settings.get("fidelity")
        if problem := check_potential(inputs["potential"], fidelity, species):
            raise ProtocolError(problem)


def inputs_of_run(step: StageStep, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Potential and committee, as far as a run takes them."""
    if step.job.has_forces or "potential" not in inputs:
        return {}
    watched = step.job.settings.get("watch") is not None and inputs.get("committee")
    return {"potential": inputs["potential"], **({"committee": dict(inputs["committee"])} if watched else {})}


def _known_frames(
    steps: Sequence[AnyStep], seeds: Frames | None, imports: Mapping[str, DatasetData]
) -> dict[str, Frames]:
    """Frames that each stage starts from, where all of its parents are given."""
    pools = {} if seeds is None else {SEEDS: seeds}
    for step in steps:
        if isinstance(step, StageStep) and step.job.dataset:
            pools[step.name] = imports[step.job.dataset].frames()
    return {
        step.name: concatenate([pools[name] for name in step.parents])
        for step in steps
        if isinstance(step, StageStep) and not step.job.dataset and set(step.parents) <= set(pools)
    }


def _known_species(steps: Sequence[AnyStep], known: Mapping[str, Frames], step: StageStep) -> list[str]:
    """Species that a stage is sure to meet: of given parents, and of generators that keep the composition."""
    if step.name in known:
        return list(known[step.name].species)
    by_name = {other.name: other for other in steps}
    found: set[str] = set()
    for name in step.parents:
        parent = by_name.get(name)
        if isinstance(parent, Step) and not parent.needs_parents and GENERATORS[parent.generator].composition == "kept":
            for formula in getattr(parent.parameters, "formulas", ()):
                found |= {chemical_symbols[z] for z in parse_composition(formula)}
    return sorted(found)


def _check_settings(stages: Mapping[int, StageStep], inputs: Mapping[str, Any], keep_seeds: bool) -> None:
    """Labels of one name must be of one level of theory, wherever they come from."""
    kept = [inputs["imports"][step.job.dataset] for step in stages.values() if step.job.dataset and step.keep]
    if keep_seeds and "structures" in inputs:
        kept.append(inputs["structures"])
    settings = merged_settings(kept)
    if "fidelities" not in inputs or not any(step.job.code == "pw" for step in stages.values()):
        return
    for name, value in settings_hashes(inputs["fidelities"].get_dict()).items():
        if settings.get(name, value) != value:
            raise ProtocolError(
                f"fidelities.{name}: the frames that are imported, or kept seeds, have labels of this name with other "
                f"settings ({settings[name][:8] or 'from elsewhere'}, not {value[:8]}); give one of them another name"
            )


def _check_all_options(stages: Mapping[int, StageStep], inputs: Mapping[str, Any]) -> None:
    if "options" not in inputs:
        return
    options = inputs["options"].get_dict()
    for code, given in options_by_code(options).items():
        used = any(step.job.code == code for step in stages.values())
        if code == "pw" and used:
            check_options(given, "qe")
        elif used:
            check_job_options(given, _JOBS[code], f"options of {code}")
