"""The rounds of an active learning, as far as they are recorded."""

from __future__ import annotations

from typing import Any

from aiida_mlip.report.tree import ProcessTree


def history(tree: ProcessTree) -> tuple[list[tuple[dict[str, Any], str]], Any | None]:
    """Rounds with the uuid of the record each appears in first, and the last record."""
    records = [tree.output(one, "result") for one in tree.find("record_round")]
    known = [node for node in records if node is not None]
    if not known:
        last = tree.output(tree.root, "history")
        known = [] if last is None else [last]
    rounds: list[tuple[dict[str, Any], str]] = []
    for node in known:
        rounds += [(entry, node.uuid) for entry in node["rounds"][len(rounds) :]]
    return rounds, known[-1] if known else None
