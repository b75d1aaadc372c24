"""Make the report of a process and write it: ``write_report(load_node(PK), "report.html")``."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from aiida import orm

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.report.content import Report
from aiida_mlip.report.html import as_html
from aiida_mlip.report.sections import SECTIONS
from aiida_mlip.report.tree import ProcessTree, node_references
from aiida_mlip.report.verdict import headline, verdict


def collect_report(node: orm.ProcessNode) -> Report:
    """Everything there is to say about a process: finished, failed or running.

    :raises InvalidInputError: not a process.
    """
    if not isinstance(node, orm.ProcessNode):
        raise InvalidInputError(f"{type(node).__name__}<{node.pk}> is no process: a report is made of a workchain")
    tree = ProcessTree(node)
    sections = tuple(found for make in SECTIONS.values() if not (found := make(tree)).is_empty)
    report = Report(
        title=f"{node.label or tree.root.kind or node.process_type} {node.pk}",
        pk=node.pk,
        uuid=node.uuid,
        made=datetime.now(tz=UTC),
        description=node.description,
        verdict=verdict(tree),
        headline=headline(tree),
        sections=sections,
    )
    return replace(report, nodes=node_references(report.uuids()))


def write_report(node: orm.ProcessNode, path: str | Path | None, *, json_path: str | Path | None = None) -> Report:
    """Write the report of a process as HTML, and where wanted the same content as JSON.

    :param path: HTML file; an existing one is replaced. None: no HTML.
    :param json_path: JSON file.
    :returns: what was written.
    :raises InvalidInputError: not a process, or a file that cannot be written.
    """
    targets = [None if one is None else Path(one) for one in (path, json_path)]
    for target in targets:
        if target is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
            raise InvalidInputError(f"{target}: no file can be written there")
    report = collect_report(node)
    html, plain = targets
    try:
        if html is not None:
            html.write_text(as_html(report), encoding="utf-8")
        if plain is not None:
            plain.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{error.filename}: {error.strerror}") from error
    return report
