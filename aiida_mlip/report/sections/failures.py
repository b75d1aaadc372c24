"""Failures: labels by class, processes by what they ended with."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from aiida import orm

from aiida_mlip.report.content import Fact, Number, Section, Table
from aiida_mlip.report.sections.expected import describe_end
from aiida_mlip.report.tree import Process, ProcessTree

_MOST_MESSAGES: Final[int] = 50
_MOST_PROCESSES: Final[int] = 200


def section(tree: ProcessTree) -> Section:
    """Failed labels and failed processes; a restart that went well is a recovery."""
    classes, messages = _labels(tree)
    wrong = [process for process in tree.processes.values() if process.went_wrong]
    recovered = {process.pk for process in wrong if _recovered(tree, process)}
    tables = []
    if classes:
        rows = tuple((Number(name), Number(count, uuids=tuple(uuids))) for name, (count, uuids) in classes.items())
        tables.append(Table("Failed labels", ("class", "labels"), rows))
    if messages:
        tables.append(Table("What failed labels said", ("class", "frame", "message"), tuple(messages), collapsed=True))
    if wrong:
        tables.append(_process_table(wrong, recovered))
    n_labels = sum(count for count, _ in classes.values())
    root = (tree.root.uuid,)
    return Section(
        "failures",
        "Failures",
        facts=(
            Fact("failed labels", Number(n_labels, uuids=root, tone="warn" if n_labels else "good")),
            Fact("processes that went wrong", Number(len(wrong), uuids=root, tone="warn" if wrong else "good")),
            Fact("of those, recovered by a restart", Number(len(recovered), uuids=root)),
        ),
        tables=tuple(tables),
    )


def _labels(tree: ProcessTree) -> tuple[dict[str, tuple[int, list[str]]], list[tuple[Number, ...]]]:
    counts: Counter[str] = Counter()
    sources: dict[str, list[str]] = {}
    messages: list[tuple[Number, ...]] = []
    for process in tree.find("LabelWorkChain"):
        node = tree.output(process, "summary")
        for entry in [] if node is None else node["fidelities"].values():
            for name, count in entry["failures"].items():
                counts[name] += count
                sources.setdefault(name, []).append(node.uuid)
            messages += [_message(one, node.uuid) for one in entry["messages"]]
    return {name: (count, sources[name]) for name, count in counts.most_common()}, messages[:_MOST_MESSAGES]


def _message(failure: dict[str, Any], summary: str) -> tuple[Number, ...]:
    """The message links to the process that failed, where that is known and still there."""
    uuid = failure.get("uuid") or ""
    known = uuid and orm.QueryBuilder().append(orm.Node, filters={"uuid": uuid}).count()
    return (
        Number(failure["class"], uuids=(summary,)),
        Number(str(failure["frame_id"])[:8], uuids=(summary,)),
        Number(failure.get("message") or "", uuids=(uuid,) if known else (summary,)),
    )


def _recovered(tree: ProcessTree, process: Process) -> bool:
    """Whether a later call of the same caller, of the same kind, went well: the restart of a base workchain."""
    caller = tree.caller(process)
    if caller is None or caller.went_wrong or not process.name.startswith("iteration"):
        return False
    later = [one for one in tree.children[caller.pk] if one.kind == process.kind and one.pk > process.pk]
    return any(one.has_ended and not one.went_wrong for one in later)


def _process_table(wrong: list[Process], recovered: set[int]) -> Table:
    shown = sorted(wrong, key=lambda process: (process.pk in recovered, process.pk))[:_MOST_PROCESSES]
    rows = tuple(
        (
            Number(process.name, uuids=(process.uuid,)),
            Number(process.kind, uuids=(process.uuid,)),
            Number(process.pk, uuids=(process.uuid,)),
            Number(describe_end(process), uuids=(process.uuid,)),
            Number("yes" if process.pk in recovered else "no", uuids=(process.uuid,)),
        )
        for process in shown
    )
    caption = "" if len(shown) == len(wrong) else f"The first {len(shown)} of {len(wrong)}."
    columns = ("step", "kind", "pk", "ended with", "recovered")
    return Table("Processes that went wrong", columns, rows, caption)
