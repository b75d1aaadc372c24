"""What a training left: its outputs, and where it has not ended those of its calculations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiida_mlip.report.tree import Process, ProcessTree


@dataclass(frozen=True)
class TrainingResults:
    """Nodes of a training, by member.

    :param process: the TrainWorkChain.
    :param errors: table of errors, Dict.
    :param parity: ArrayData per member, on the frames of its dataset.
    """

    process: Process
    potentials: dict[str, Any]
    curves: dict[str, Any]
    summaries: dict[str, Any]
    parity: dict[str, Any]
    calibrations: dict[str, Any]
    errors: Any | None


def trainings(tree: ProcessTree) -> list[TrainingResults]:
    """All trainings of the tree, in order of their start."""
    return [_results(tree, process) for process in tree.find("TrainWorkChain")]


def last_with(tree: ProcessTree, name: str) -> TrainingResults | None:
    """The last training that has this kind of node."""
    for process in reversed(tree.find("TrainWorkChain")):
        results = _results(tree, process)
        if getattr(results, name):
            return results
    return None


def _results(tree: ProcessTree, process: Process) -> TrainingResults:
    found: dict[str, dict[str, Any]] = {
        "potentials": {}, "curves": {}, "summaries": {}, "parity": {}, "calibrations": {}
    }  # fmt: skip
    errors = tree.output(process, "errors")
    for child in tree.children.get(process.pk, []):
        member = child.name.removeprefix("train_").removeprefix("evaluate_").removeprefix("judge_")
        if child.name.startswith("train_member"):
            for label, kind in (("potential", "potentials"), ("curves", "curves"), ("summary", "summaries")):
                _put(found[kind], member, tree.output(child, label))
        elif child.name.startswith("evaluate_member"):
            _put(found["parity"], member, tree.output(child, "parity"))
        elif child.name.startswith("judge_member"):
            _put(found["potentials"], member, tree.output(child, "result"))
        elif child.kind == "calibrate":
            for label in tree.outputs(child):
                _put(found["calibrations"], label, tree.output(child, label))
        elif child.kind == "tabulate" and errors is None:
            errors = tree.output(child, "result")
    for kind, members in found.items():
        members.update({k: v for k, v in tree.namespace(process, kind).items() if k.startswith("member_")})
    return TrainingResults(
        process=process, errors=errors, **{kind: dict(sorted(v.items())) for kind, v in found.items()}
    )


def _put(members: dict[str, Any], name: str, node: Any | None) -> None:
    if node is not None:
        members[name] = node
