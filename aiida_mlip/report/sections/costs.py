"""Costs: time per stage, and what labels were expected to cost and did."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from aiida import orm

from aiida_mlip.report.content import Fact, Figure, Number, Section, Table
from aiida_mlip.report.sections.round_history import history
from aiida_mlip.report.tree import Process, ProcessTree

_HOUR: Final[float] = 3600.0
#: Keys of summaries that say how long a job ran (s).
_WALL: Final[tuple[str, ...]] = ("wall_seconds", "wall_time_seconds", "seconds")
_ROUND: Final[re.Pattern[str]] = re.compile(r"^round_\d+_")


@dataclass
class _Stage:
    """Sums over the processes of a stage."""

    name: str
    uuids: list[str] = field(default_factory=list)
    calls: int = 0
    failed: int = 0
    running: int = 0
    elapsed: float = 0.0
    core_seconds: float = 0.0
    unmeasured: int = 0


def section(tree: ProcessTree) -> Section:
    """Stages, and forecast against spent."""
    stages = _stages(tree)
    root = tree.root
    facts = [
        Fact("processes", Number(len(tree.processes), uuids=(root.uuid,))),
        Fact("from start to end" if root.has_ended else "since its start", _span(root)),
    ]
    total = sum(stage.core_seconds for stage in stages)
    if total:
        unit, divisor = core_time([total])
        facts.append(Fact("in all", Number(total / divisor, unit, (root.uuid,))))
    tables = [_stage_table(stages)] if stages else []
    forecast = _forecasts(tree)
    if every := [*forecast, *_dear_forecasts(tree)]:
        tables.append(_forecast_table(every))
    tables += _budget_table(tree)
    figures = [*_stage_figure(stages), *_forecast_figure(forecast)]
    notes: tuple[str, ...] = ()
    if (unmeasured := sum(stage.unmeasured for stage in stages)) > 0:
        notes = (f"{unmeasured} job(s) do not say how long they ran, or left no output: not in the core-hours.",)
    return Section(
        "costs",
        "Costs",
        intro="Core-hours are the time each program measured, times the cores of its job, without queues.",
        facts=tuple(facts),
        figures=tuple(figures),
        tables=tuple(tables),
        notes=notes,
    )


def spent_fact(tree: ProcessTree) -> Fact | None:
    """Core-hours of labels, for the head of the report."""
    found = _label_costs(tree, [tree.root])
    seconds = sum(value for value, _ in found)
    if not found or not seconds:
        return None
    uuids = tuple(uuid for _, uuid in found)
    unit, divisor = core_time([seconds])
    return Fact("spent on labels", Number(seconds / divisor, unit, uuids))


def core_time(seconds: list[float]) -> tuple[str, float]:
    """Unit in which these core-seconds are readable, and what to divide them by."""
    return ("core-s", 1.0) if max(seconds, default=0.0) < 0.1 * _HOUR else ("core-h", _HOUR)


def _span(process: Process) -> Number:
    seconds = process.seconds
    for limit, factor, unit in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < limit:
            return Number(seconds / factor, unit, (process.uuid,))
    return Number(seconds / 86400.0, "days", (process.uuid,))


def _stages(tree: ProcessTree) -> list[_Stage]:
    """Direct calls by name; the same stage of all rounds together."""
    found: dict[str, _Stage] = {}
    wall = _wall_seconds(tree)
    for process in tree.children.get(tree.root.pk, []):
        stage = found.setdefault(_ROUND.sub("", process.name), _Stage(_ROUND.sub("", process.name)))
        stage.calls += 1
        stage.failed += process.went_wrong
        stage.running += not process.has_ended
        stage.elapsed += process.seconds
        stage.uuids.append(process.uuid)
        _add_costs(tree, process, stage, wall)
    return sorted(found.values(), key=lambda stage: -stage.elapsed)


def _add_costs(tree: ProcessTree, process: Process, stage: _Stage, wall: dict[int, float]) -> None:
    labels = _label_costs(tree, [process])
    stage.core_seconds += sum(value for value, _ in labels)
    counted = (
        {one.pk for label in tree.find("LabelWorkChain", below=process) for one in tree.below(label)}
        if labels
        else set()
    )
    for job in tree.below(process):
        if job.is_job and job.pk not in counted and job.has_ended:
            if job.pk in wall:
                stage.core_seconds += wall[job.pk] * job.cores
            else:
                stage.unmeasured += 1


def _label_costs(tree: ProcessTree, processes: Iterable[Process]) -> list[tuple[float, str]]:
    """Core-seconds of labels that the labellings below these processes report, with the uuid of the summary."""
    found = []
    for process in processes:
        for label in tree.find("LabelWorkChain", below=process):
            node = tree.output(label, "summary")
            if node is not None:
                seconds = sum(entry["core_seconds"] or 0.0 for entry in node["fidelities"].values())
                found.append((float(seconds), node.uuid))
    return found


def _wall_seconds(tree: ProcessTree) -> dict[int, float]:
    """Time that each job says it ran (s), by pk."""
    jobs = [process.pk for process in tree.processes.values() if process.is_job]
    found: dict[int, float] = {}
    for start in range(0, len(jobs), 5000):
        query = orm.QueryBuilder()
        query.append(orm.CalcJobNode, filters={"id": {"in": jobs[start : start + 5000]}}, tag="job", project=["id"])
        project = [f"attributes.{key}" for key in _WALL]
        query.append(orm.Dict, with_incoming="job", project=project)
        for pk, *values in query.all():
            known = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
            if known:
                found[pk] = float(known[0])
    return found


def _stage_table(stages: list[_Stage]) -> Table:
    unit, divisor = core_time([stage.core_seconds for stage in stages])
    rows = tuple(
        (
            Number(stage.name),
            Number(stage.calls, uuids=tuple(stage.uuids)),
            Number(stage.running, uuids=tuple(stage.uuids)),
            Number(stage.failed, uuids=tuple(stage.uuids), tone="warn" if stage.failed else ""),
            Number(stage.elapsed / 60, uuids=tuple(stage.uuids)),
            Number(stage.core_seconds / divisor if stage.core_seconds else None, uuids=tuple(stage.uuids)),
        )
        for stage in stages
    )
    columns = ("stage", "calls", "running", "failed", "start to end (min)", unit)
    return Table("Stages", columns, rows, caption="Stages of the same name are summed over the rounds.")


def _stage_figure(stages: list[_Stage]) -> list[Figure]:
    shown = [stage for stage in stages if stage.core_seconds > 0]
    if not shown:
        return []
    unit, divisor = core_time([stage.core_seconds for stage in shown])
    return [
        Figure(
            key="costs-stages",
            title="Cost by stage",
            kind="shares",
            data={
                "x_label": unit,
                "names": [stage.name for stage in shown],
                "values": [stage.core_seconds / divisor for stage in shown],
            },
            alt=f"Cost of each stage in {unit} as horizontal bars.",
            uuids=tuple(uuid for stage in shown for uuid in stage.uuids),
        )
    ]


def _budget_table(tree: ProcessTree) -> list[Table]:
    """What active learning may spend, and has."""
    loop = next(iter(tree.find("ActiveLearningWorkChain")), None)
    done, last = history(tree)
    plan = next(iter(tree.find("plan_active_learning")), None)
    settings = tree.output(plan, "settings") if plan is not None else None
    if settings is None and loop is not None:
        settings = tree.input(loop, "settings")
    if settings is None or last is None:
        return []
    asked = settings.get_dict()
    spent = {
        "rounds": ("max_rounds", len(done)),
        "labels (core-h)": ("dft_core_hours", sum(entry["dft_core_hours"] for entry, _ in done)),
        "training (h)": ("training_hours", sum(entry["training_hours"] for entry, _ in done)),
    }
    rows = tuple(
        (
            Number(name),
            Number(value, uuids=(last.uuid,)),
            Number(asked.get(key) if asked.get(key) is not None else "no limit given", uuids=(settings.uuid,)),
        )
        for name, (key, value) in spent.items()
    )
    return [Table("Budget of the active learning", ("of", "spent", "allowed"), rows)]


# -- forecast --------------------------------------------------------------------------------------------------


def _forecasts(tree: ProcessTree) -> list[tuple[str, Number, Number]]:
    """Of each selection: its name, what the labels were expected to cost (core-s), and what they did."""
    found = []
    for process in tree.find("select"):
        summary = tree.output(process, "summary")
        expected = None if summary is None else summary.get_dict().get("core_hours")
        caller = tree.caller(process)
        if expected is None or caller is None or not process.name.endswith("select"):
            continue
        prefix = process.name.removesuffix("select")
        labels = [one for one in tree.children.get(caller.pk, []) if one.name == f"{prefix}label"]
        cheap = [one for label in labels for one in tree.children.get(label.pk, []) if one.name == "label_cheap"]
        spent = _label_costs(tree, cheap or labels)
        number = Number(sum(value for value, _ in spent) if spent else None, "core-s", tuple(uuid for _, uuid in spent))
        name = prefix.strip("_").replace("_", " ") or "selection"
        found.append((name, Number(expected * _HOUR, "core-s", (summary.uuid,)), number))
    return found


def _dear_forecasts(tree: ProcessTree) -> list[tuple[str, Number, Number]]:
    """The same of each allocation of dear labels."""
    found = []
    for process in tree.find("account_for_labels"):
        account, caller = tree.output(process, "result"), tree.caller(process)
        if account is None or caller is None:
            continue
        name = caller.name.removesuffix("label").strip("_").replace("_", " ")
        costs = (account["forecast_core_hours"], account["core_hours"])
        expected, spent = (Number(None if c is None else c * _HOUR, "core-s", (account.uuid,)) for c in costs)
        found.append((f"{name} labels at {account['target']}".strip(), expected, spent))
    return found


def _forecast_table(forecast: list[tuple[str, Number, Number]]) -> Table:
    unit, divisor = core_time([one.value for row in forecast for one in row[1:] if isinstance(one.value, float)])
    rows = []
    for name, expected, spent in forecast:
        ratio = None
        if isinstance(spent.value, float) and isinstance(expected.value, float) and expected.value > 0:
            ratio = spent.value / expected.value
        rows.append(
            (
                Number(name),
                Number(_over(expected, divisor), uuids=expected.uuids),
                Number(_over(spent, divisor), uuids=spent.uuids),
                Number(ratio, uuids=(*expected.uuids, *spent.uuids)),
            )
        )
    columns = ("of", f"forecast ({unit})", f"spent ({unit})", "spent / forecast")
    return Table("Labels: forecast and spent", columns, tuple(rows))


def _over(number: Number, divisor: float) -> float | None:
    return number.value / divisor if isinstance(number.value, float) else None


def _forecast_figure(forecast: list[tuple[str, Number, Number]]) -> list[Figure]:
    known = [row for row in forecast if row[2].value is not None]
    if len(known) < 2:
        return []
    unit, divisor = core_time([one.value for row in known for one in row[1:] if isinstance(one.value, float)])
    series: list[dict[str, Any]] = [
        {"name": "forecast", "y": [_over(expected, divisor) for _, expected, _ in known]},
        {"name": "spent", "y": [_over(spent, divisor) for _, _, spent in known]},
    ]
    names = [name.removeprefix("round ").lstrip("0") or "0" for name, _, _ in known]
    return [
        Figure(
            key="costs-forecast",
            title="Labels: forecast and spent",
            kind="bars",
            data={"x_label": "round", "y_label": unit, "categories": names, "series": series},
            alt=f"Cost in {unit} that the labels of each round were expected to have, and had.",
            uuids=tuple(uuid for _, expected, spent in known for uuid in (*expected.uuids, *spent.uuids)),
        )
    ]
