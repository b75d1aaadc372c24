"""What a report of each kind of process should hold, and why something is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiida_mlip.report.tree import ProcessTree

#: Class of the process -> sections without which its report is partial.
EXPECTED: Final[Mapping[str, tuple[str, ...]]] = {
    "DevelopWorkChain": ("dataset", "training", "parity"),
    "ActiveLearningWorkChain": ("dataset", "training", "parity", "rounds"),
    "TrainWorkChain": ("training", "parity"),
    "LabelWorkChain": ("dataset",),
    "GenerateWorkChain": ("dataset",),
    "ValidateWorkChain": ("properties",),
}
#: Stages whose absence explains that of a section.
_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("GenerateWorkChain", "LabelWorkChain"),
    "labels": ("LabelWorkChain",),
    "training": ("TrainWorkChain",),
    "parity": ("TrainWorkChain",),
    "calibration": ("TrainWorkChain",),
    "rounds": ("ActiveLearningWorkChain",),
    "properties": ("ValidateWorkChain",),
}


def is_expected(tree: ProcessTree, key: str) -> bool:
    """Whether a report of this process lacks something without this section."""
    kinds = {tree.root.kind} | {one.kind for one in tree.children.get(tree.root.pk, [])}
    return any(key in EXPECTED.get(kind, ()) for kind in kinds)


def reason(tree: ProcessTree, key: str) -> str:
    """Why there is none: the last stage that should have made it is running, failed, or was not reached."""
    stages = tree.find(*_STAGES.get(key, ()))
    if not stages:
        if not tree.root.has_ended:
            return f"the process is {tree.root.state} and has not come to it yet"
        return f"the process ended before it came to it ({describe_end(tree.root)})"
    last = stages[-1]
    if not last.has_ended:
        return f"the stage {last.name} (process {last.pk}) is {last.state}"
    return f"the stage {last.name} (process {last.pk}) made none: {describe_end(last)}"


def describe_end(process: object) -> str:
    """State, exit status and message of a process that ended."""
    outcome, message = getattr(process, "outcome", ""), getattr(process, "message", "")
    return f"{outcome}: {_first_line(message)}" if message else outcome


def _first_line(text: str, most: int = 300) -> str:
    line = next((line.strip() for line in reversed(text.strip().splitlines()) if line.strip()), "")
    return line if len(line) <= most else f"{line[: most - 1]}…"
