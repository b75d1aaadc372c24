"""Why a child did not do what it was started for, in words for reports and exit messages."""

from __future__ import annotations

from aiida import orm


def reason_of(node: orm.ProcessNode) -> str:
    """Name of a process with its exit message, exception or state."""
    return f"{node.process_label}<{node.pk}>: {node.exit_message or node.exception or node.process_state}"
