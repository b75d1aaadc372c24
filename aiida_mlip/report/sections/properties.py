"""Properties: what the potential says about the physics, against its reference."""

from __future__ import annotations

from aiida_mlip.report.content import Section
from aiida_mlip.report.sections.expected import is_expected, reason
from aiida_mlip.report.tree import ProcessTree


def section(tree: ProcessTree) -> Section:
    """One table of all properties with their verdicts, and the curves behind them."""
    missing = (f"no properties: {reason(tree, 'properties')}",) if is_expected(tree, "properties") else ()
    return Section("properties", "Properties", missing=missing)
