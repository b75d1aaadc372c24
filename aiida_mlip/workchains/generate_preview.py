"""What a generation would make, before anything is stored or submitted: exact for generators, estimated for stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from aiida_mlip.calculations.functions.generate import plain
from aiida_mlip.calculations.functions.generate_stages import distinct
from aiida_mlip.data.label_costs import MeasuredLabels
from aiida_mlip.kernel.frames import NONE, Frames, concatenate
from aiida_mlip.kernel.generate import SEEDS, Filters, Generation, check_steps
from aiida_mlip.kernel.joining import Joining, Part
from aiida_mlip.kernel.label_cost import LabelCost, fit_label_cost
from aiida_mlip.protocols.generate import AnyStep, kernel_steps
from aiida_mlip.protocols.stages import StageStep


@dataclass(frozen=True)
class Sizes:
    """How many frames of which size: of each kind the atoms, whether it is periodic, and how many there are.

    :param natoms: (k,).
    :param periodic: (k,).
    :param count: (k,).
    :param labelled: frames that carry a label already, by fidelity.
    """

    natoms: np.ndarray
    periodic: np.ndarray
    count: np.ndarray
    labelled: Mapping[str, int]

    @property
    def total(self) -> float:
        """Frames in all."""
        return float(self.count.sum())

    def scaled(self, factor: float, *, growth: int = 1) -> Sizes:
        """So many times as many frames, of cells so many times as large, without labels."""
        return Sizes(self.natoms * growth, self.periodic, self.count * factor, {})


@dataclass(frozen=True)
class Preview:
    """What a generation would make.

    :param summary: as that of the generation; a step with ``estimated`` has counts that are estimates.
    :param sizes: of the frames of each step that are in the result, and of kept seeds.
    :param pw_steps: atoms of the cells in which steps of pw.x are done, and how many, by fidelity (``""``: the only).
    """

    summary: dict[str, Any]
    sizes: tuple[Sizes, ...]
    pw_steps: Mapping[str, Sizes]


def preview(
    seeds: Frames | None,
    steps: Sequence[AnyStep],
    *,
    seed: int,
    keep_seeds: bool = False,
    filters: Filters | None = None,
    imports: Mapping[str, Frames] | None = None,
) -> Preview:
    """Make what needs no program, and estimate the rest.

    :param imports: frames of the datasets of import steps, by name of the dataset.
    :raises InvalidInputError: unusable steps.
    """
    given = {
        step.name: (imports or {})[step.job.dataset]
        for step in steps
        if isinstance(step, StageStep) and step.job.dataset
    }
    others = [step for step in steps if step.name not in given]
    if others or not given:
        counts = {name: len(frames) for name, frames in given.items()}
        check_steps(others, n_seeds=0 if seeds is None else len(seeds), given=counts)
    exact = _exact_names(steps)
    generators = [step for step in kernel_steps(steps) if step.name in exact]
    made: dict[str, Frames] = dict(given)
    if generators:
        sources = {name: distinct(frames) for name, frames in given.items()}
        run = Generation(seeds, generators, seed=seed, sources=sources)
        made |= {step.name: concatenate(list(run.frames_of(step.name))) for step in generators}
    parts = [Part(step, partial(_block, made[step.name]), keep=step.keep) for step in steps if step.name in made]
    joining = Joining(seeds, parts, keep_seeds=keep_seeds, filters=filters, allow_nothing=len(parts) < len(steps))
    blocks = list(joining)
    table = {entry.name: {key: plain(value) for key, value in asdict(entry).items()} for entry in joining.table}
    pools = {name: _sizes(frames) for name, frames in made.items()}
    if seeds is not None:
        pools[SEEDS] = _sizes(distinct(seeds))
    return _with_estimates(steps, table, pools, joining.n_seeds, blocks)


def preview_of(blocks: Iterable[Frames]) -> Preview:
    """Frames that exist already, as what a generation would make."""
    sizes = tuple(_sizes(block) for block in blocks)
    return Preview({"steps": [], "n_seeds": 0, "n_frames": round(sum(part.total for part in sizes))}, sizes, {})


def _with_estimates(
    steps: Sequence[AnyStep],
    table: dict[str, dict[str, Any]],
    pools: dict[str, Sizes],
    n_seeds: int,
    blocks: Sequence[Frames],
) -> Preview:
    """Add what stages, and the steps that start from them, may make."""
    sizes = [_sizes(block) for block in blocks]
    pw_steps: dict[str, list[Sizes]] = {}
    for step in steps:
        if step.name in table:
            continue
        taken = _united([pools[name] for name in step.parents])
        if step.n_parents is not None and taken.total > step.n_parents:
            taken = taken.scaled(step.n_parents / taken.total)
        growth = step.job.growth if isinstance(step, StageStep) else 1
        made = taken.scaled(step.expected(1), growth=growth)
        pools[step.name] = made
        if isinstance(step, StageStep) and step.job.pw_steps:
            pw_steps.setdefault(step.job.fidelity or "", []).append(taken.scaled(step.job.pw_steps, growth=growth))
            made = Sizes(made.natoms, made.periodic, made.count, {step.job.fidelity or "": round(made.total)})
        frames = round(made.total) if step.keep else 0
        table[step.name] = {
            "name": step.name,
            "generator": step.generator,
            "parents": list(step.parents),
            "frames": frames,
            "made": round(made.total),
            "duplicates": 0,
            "natoms": [int(made.natoms.min()), int(made.natoms.max())] if len(made.natoms) else None,
            "volume_ang3_per_atom": None,
            "smallest_distance_ang": None,
            "dropped": {},
            "estimated": True,
        }
        if step.keep:
            sizes.append(made)
    rows = [table[step.name] for step in steps]
    summary = {"steps": rows, "n_seeds": n_seeds, "n_frames": n_seeds + sum(row["frames"] for row in rows)}
    return Preview(summary, tuple(sizes), {name: _united(parts) for name, parts in pw_steps.items()})


@dataclass(frozen=True)
class CostEstimate:
    """Core-hours at one level of theory.

    :param fidelity: its name.
    :param labels: what it rests on; None: no measured label yet.
    :param periodic: model of frames with a periodic direction; None when none was measured.
    :param isolated: model of the others; None when none was measured.
    :param n_frames: frames that need a label.
    :param label_hours: core-hours of their labels.
    :param n_pw_steps: steps of pw.x in stages.
    :param pw_hours: core-hours of those.
    """

    fidelity: str
    labels: MeasuredLabels | None
    periodic: LabelCost | None
    isolated: LabelCost | None
    n_frames: int
    label_hours: float
    n_pw_steps: int
    pw_hours: float

    @property
    def hours(self) -> float:
        """Core-hours in all."""
        return self.label_hours + self.pw_hours


def estimate_cost(plan: Preview, fidelity: str, labels: MeasuredLabels | None, *, only: bool) -> CostEstimate:
    """Core-hours of a generation and of the labels of its frames at one level of theory.

    :param labels: measured ones of that level.
    :param only: whether it is the only level, which stages that name none run at.
    """
    names = {fidelity, ""} if only else {fidelity}
    have = sum(number for part in plan.sizes for name, number in part.labelled.items() if name in names)
    total = sum(part.total for part in plan.sizes)
    pw_steps = [part for name, part in plan.pw_steps.items() if name in names]
    n_frames, n_steps = max(0, round(total - have)), round(sum(part.total for part in pw_steps))
    if labels is None:
        return CostEstimate(fidelity, None, None, None, n_frames, 0.0, n_steps, 0.0)
    models = [
        fit_label_cost(labels.natoms[mask], labels.core_seconds[mask]) if mask.any() else None
        for mask in (labels.periodic, ~labels.periodic)
    ]
    share = n_frames / total if total else 0.0
    label_hours = share * sum(_hours(part, models) for part in plan.sizes)
    pw_hours = sum(_hours(part, models) for part in pw_steps)
    return CostEstimate(fidelity, labels, models[0], models[1], n_frames, label_hours, n_steps, pw_hours)


def _hours(part: Sizes, models: Sequence[LabelCost | None]) -> float:
    """Core-hours of labels of these frames; frames of a kind never measured cost like those of the other kind."""
    hours = 0.0
    for mask, model, other in ((part.periodic, models[0], models[1]), (~part.periodic, models[1], models[0])):
        if (known := model or other) is not None and mask.any():
            hours += float(known.core_seconds(part.natoms[mask]) @ part.count[mask]) / 3600.0
    return hours


def _block(frames: Frames) -> tuple[Frames]:
    return (frames,)


def _is_import(step: AnyStep) -> bool:
    return isinstance(step, StageStep) and bool(step.job.dataset)


def _exact_names(steps: Sequence[AnyStep]) -> set[str]:
    """Steps whose frames can be made here: generators that start from nothing, seeds, imports, or such generators."""
    exact = {SEEDS}
    for step in steps:
        is_stage = isinstance(step, StageStep)
        if _is_import(step) or (not is_stage and (not step.needs_parents or set(step.parents) <= exact)):
            exact.add(step.name)
    return exact


def _sizes(frames: Frames) -> Sizes:
    kinds = np.stack([frames.natoms.astype(int), frames.pbc.any(axis=1).astype(int)], axis=1)
    found, count = np.unique(kinds, axis=0, return_counts=True)
    names = [*frames.fidelities, ""]
    labelled = {
        names[index]: int((frames.fidelity[frames.labelled] == index).sum())
        for index in np.unique(frames.fidelity[frames.labelled])
        if index != NONE
    }
    return Sizes(found[:, 0], found[:, 1].astype(bool), count.astype(float), labelled)


def _united(parts: Sequence[Sizes]) -> Sizes:
    return Sizes(
        np.concatenate([part.natoms for part in parts]),
        np.concatenate([part.periodic for part in parts]),
        np.concatenate([part.count for part in parts]),
        {},
    )
