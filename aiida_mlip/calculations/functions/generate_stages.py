"""Generation with stages in four calculations: plan the stages, run generators, take parents, join everything.

Nodes of a step carry its number in the specification: ``step_03`` (what it is), ``frames_03`` (what it made).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.calculations.functions.generate import plain, seed_frames
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import FAILED_STEPS
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.coverage import coverage, reference_space
from aiida_mlip.kernel.frames import Frames, concatenate, id_bytes
from aiida_mlip.kernel.generate import SEEDS, Generation, PlannedStep, Step, chosen_parents
from aiida_mlip.kernel.joining import Joining, Part
from aiida_mlip.kernel.labelling import first_rows, without_labels
from aiida_mlip.protocols.generate import AnyStep, parse_filters, parse_generate, parse_step
from aiida_mlip.protocols.stages import StageStep

#: Programs of stages: keys of the input ``codes``.
CODES = ("pw", "metadynamics", "explore")
#: Name of the input of an engine of one's own in a job.
_ENGINE_FILE = "engine_input.txt"


@calcfunction
def plan_stages(
    spec: orm.Dict, seed: orm.Int, fidelities: orm.Dict | None = None, options: orm.Dict | None = None
) -> dict[str, orm.Data]:
    """Make what the steps need besides frames, before any of them runs.

    :param spec: see :mod:`aiida_mlip.protocols.generate`.
    :param seed: of all random numbers.
    :param fidelities: levels of theory, for stages of pw.x.
    :param options: of the jobs, by code or for all.
    :returns: ``step_<i>`` of every step, and the inputs of the children: ``settings_<i>``, ``seed_<i>``, ...
    """
    content = spec.get_dict()
    steps, _keep = parse_generate(content)
    numbers = {step.name: index for index, step in enumerate(steps)}
    result: dict[str, orm.Data] = {}
    for index, step in enumerate(steps):
        names = [name for name in step.parents if name != SEEDS] if step.needs_parents else []
        parents = {name: numbers[name] for name in names}
        entry = {"index": index, "parents": parents, "step": content["steps"][index]}
        result[f"step_{index:02d}"] = orm.Dict(entry)
        if isinstance(step, StageStep):
            levels = {} if fidelities is None else fidelities.get_dict()
            for port, node in _child_inputs(step, seed.value, levels):
                result[f"{port}_{index:02d}"] = node
            if given := options_by_code({} if options is None else options.get_dict()).get(step.job.code):
                result[f"options_{index:02d}"] = orm.Dict(given)
    return result


@calcfunction
def generate_steps(
    seed: orm.Int, structures: DatasetData | None = None, **nodes: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Run generators; each step for itself, so that one that fails takes along only those that start from it.

    :param seed: of all random numbers.
    :param structures: seed frames.
    :param nodes: ``step_<i>`` of the steps to run, in order; ``frames_<i>`` of those that they start from and that ran
        before; any other: a seed structure.
    :returns: ``frames_<i>`` of each step, and ``report``: what went wrong, by number.
    """
    entries = {index: node.get_dict() for index, node in _numbered(nodes, "step").items()}
    frames = _numbered(nodes, "frames")
    names = {number: name for entry in entries.values() for name, number in entry["parents"].items()}
    sources = {names[number]: distinct(node.frames()) for number, node in frames.items()}
    steps: dict[int, Step] = {}
    for index, entry in entries.items():
        step = _without_lost_parents(parse_step(entry["step"], where=f"spec.steps[{index}]"), entry, entries, frames)
        if isinstance(step, Step):
            steps[index] = step
    made = id_bytes([Process.current().node.uuid])
    result: dict[str, orm.Data] = {}
    problems: dict[str, str] = {}
    try:
        run = Generation(seed_frames(structures, nodes), list(steps.values()), seed=seed.value, sources=sources)
    except InvalidInputError as error:
        return ExitCode(310, f"frames could not be generated: {error}")
    for index, step in steps.items():
        try:
            blocks = (
                block.with_columns(geometry_uuid=np.tile(made, (len(block), 1))) for block in run.frames_of(step.name)
            )
            result[f"frames_{index:02d}"] = DatasetData.from_blocks(blocks)
        except InvalidInputError as error:
            problems[str(index)] = str(error)
    return {**result, "report": orm.Dict({"problems": problems})}


@calcfunction
def take_parents(
    step: orm.Dict, seed: orm.Int, structures: DatasetData | None = None, **nodes: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Frames that a stage starts from: all of its parents' or some of them, each once, without labels.

    :param step: of :func:`plan_stages`.
    :param seed: of all random numbers.
    :param structures: seed frames.
    :param nodes: ``frames_<i>`` of the steps it starts from; any other: a seed structure.
    :returns: ``structures``, or exit code 310 when there are none.
    """
    entry = step.get_dict()
    parsed = parse_step(entry["step"], where=f"spec.steps[{entry['index']}]")
    frames = _numbered(nodes, "frames")
    parts = []
    for name in parsed.parents:
        if name == SEEDS:
            parts += [seeds] if (seeds := seed_frames(structures, nodes)) is not None else []
        elif (number := entry["parents"][name]) in frames:
            parts.append(frames[number].frames())
    if not parts:
        return ExitCode(310, f"spec.steps[{entry['index']}].parents: {list(parsed.parents)} made no frames")
    pool = distinct(concatenate(parts))
    if parsed.n_parents is not None:
        pool = pool.take(
            chosen_parents(len(pool), parsed.n_parents, name=parsed.name, seed=seed.value, step_seed=parsed.seed)
        )
    return {"structures": DatasetData.from_frames(pool)}


@calcfunction
def join_steps(
    spec: orm.Dict,
    structures: DatasetData | None = None,
    reference: DatasetData | None = None,
    **nodes: orm.Data,
) -> dict[str, orm.Data] | ExitCode:
    """Filter what all steps made, leave out what is there already, and say what came from where.

    The summary names the process behind every step, and how it ended, as the workchain that called this one has it.

    :param spec: see :mod:`aiida_mlip.protocols.generate`.
    :param structures: seed frames.
    :param reference: the summary says which part of this dataset's environments the frames reach.
    :param nodes: ``frames_<i>`` of the steps that made any; any other: a seed structure.
    :returns: ``dataset`` and ``summary``; or exit code 310: nothing is kept.
    """
    content = spec.get_dict()
    steps, keep_seeds = parse_generate(content)
    frames = _numbered(nodes, "frames")
    seeds = seed_frames(structures, nodes)
    parts = [
        Part(step, frames[index].iter_shards if index in frames else tuple, keep=step.keep)
        for index, step in enumerate(steps)
    ]
    joining = Joining(seeds, parts, keep_seeds=keep_seeds, filters=parse_filters(content))
    kept = [frames[index] for index, step in enumerate(steps) if step.keep and index in frames]
    try:
        settings = merged_settings([*([structures] if structures is not None and keep_seeds else []), *kept])
        dataset = DatasetData.from_blocks(joining, settings=settings)
    except InvalidInputError as error:
        return ExitCode(310, str(error))
    origins = origins_of_steps(Process.current().node.caller, frames)
    table = [
        {**{key: plain(value) for key, value in asdict(summary).items()}, **_labels(frames.get(index))}
        | origins.get(index, {})
        for index, summary in enumerate(joining.table)
    ]
    n_frames = joining.n_seeds + sum(step["frames"] for step in table)
    summary: dict[str, Any] = {"steps": table, "n_seeds": joining.n_seeds, "n_frames": n_frames}
    if reference is not None:
        summary["coverage"] = asdict(coverage(dataset.iter_shards(), reference_space(reference.iter_shards)))
    return {"dataset": dataset, "summary": orm.Dict(summary)}


def distinct(frames: Frames) -> Frames:
    """Every frame once, without labels."""
    return without_labels(frames.take(first_rows(frames.frame_id)))


def child_label(index: int, step: PlannedStep) -> str:
    """Link label of the child that runs a stage."""
    return f"step_{index:02d}_{step.generator}"


def origins_of_steps(caller: orm.ProcessNode | None, frames: Mapping[int, DatasetData]) -> dict[int, dict[str, Any]]:
    """Process behind each step, and how it ended, from what a workchain called and from who made the frames."""
    found: dict[int, dict[str, Any]] = {}
    for index, node in frames.items():
        creator = node.creator
        found[index] = {"process": None if creator is None else creator.uuid, "exit_status": 0, "message": ""}
    if caller is None:
        return found
    for link in caller.base.links.get_outgoing(node_class=orm.ProcessNode).all():
        label = link.link_label.split("_")
        if label[0] == "step" and len(label) > 2 and isinstance(link.node, orm.WorkflowNode):
            found[int(label[1])] = {"process": link.node.uuid, "exit_status": 0, "message": ""}
    for number, (status, message) in caller.base.extras.get(FAILED_STEPS, {}).items():
        found[int(number)] = {"process": None, **found.get(int(number), {}), "exit_status": status, "message": message}
    return found


def _labels(node: DatasetData | None) -> dict[str, Any]:
    """Labels that the frames of a step came with, by fidelity."""
    fidelities = {} if node is None else node.base.attributes.get("fidelities")
    return {"labels": {name: {key: entry[key] for key in ("labelled", "failed")} for name, entry in fidelities.items()}}


def _without_lost_parents(
    step: AnyStep, entry: Mapping[str, Any], entries: Mapping[int, Any], frames: Mapping[int, DatasetData]
) -> AnyStep:
    """The step without those parents that made no frames; they are neither given nor run now."""
    there = [name for name in step.parents if name == SEEDS or entry["parents"][name] in {*entries, *frames}]
    return replace(step, parents=tuple(there)) if step.needs_parents else step


def _child_inputs(step: StageStep, seed: int, levels: Mapping[str, Any]) -> Iterator[tuple[str, orm.Data]]:
    """Inputs of the child of a stage that are not frames, by port."""
    job = step.job
    if job.code == "pw":
        name = job.fidelity or next(iter(levels))
        yield "settings", orm.Dict(dict(job.settings))
        yield "fidelities", orm.Dict({name: levels[name]})
        yield "seed", orm.Int(step.child_seed(seed))
    elif job.code:
        yield "spec", orm.Dict({**job.settings, "seed": step.child_seed(seed)})
        if job.engine_input is not None:
            yield "engine_input", orm.SinglefileData(io.BytesIO(job.engine_input.encode()), filename=_ENGINE_FILE)


def options_by_code(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the jobs of each code, from options by code or for all."""
    if options and set(options) <= set(CODES):
        return {code: dict(options.get(code, {})) for code in CODES}
    return {code: dict(options) for code in CODES}


def merged_settings(datasets: Iterable[DatasetData]) -> dict[str, str]:
    """Settings hash per fidelity of several datasets.

    :raises InvalidInputError: one name with two hashes.
    """
    settings: dict[str, str] = {}
    for node in datasets:
        for name, value in node.settings.items():
            if settings.setdefault(name, value) != value:
                raise InvalidInputError(
                    f"fidelity {name!r}: labels of two settings ({settings[name][:8] or 'from elsewhere'} and "
                    f"{value[:8] or 'from elsewhere'}) cannot be in one dataset; give one of them another name"
                )
    return settings


def _numbered(nodes: dict[str, orm.Data], prefix: str) -> dict[int, Any]:
    """Nodes ``<prefix>_<i>`` by number, in order; they are taken out of the others."""
    keys = sorted((int(key.rpartition("_")[2]), key) for key in nodes if key.startswith(prefix + "_"))
    return {number: nodes.pop(key) for number, key in keys}
