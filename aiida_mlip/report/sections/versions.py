"""Software versions: of what ran the workflows, and of what computed."""

from __future__ import annotations

from typing import Any, Final

from aiida import orm

from aiida_mlip.report.content import Number, Section, Table
from aiida_mlip.report.tree import ProcessTree

#: Names of packages by the beginning of a process type.
_PACKAGES: Final[dict[str, str]] = {
    "aiida.calculations:quantumespresso": "aiida-quantumespresso",
    "aiida.workflows:quantumespresso": "aiida-quantumespresso",
}
_OURS: Final[str] = "aiida-mlip-workchains"


def section(tree: ProcessTree) -> Section:
    """One line per program and version, with a node that says so."""
    found: dict[tuple[str, str], tuple[str, int]] = {}
    for process in tree.processes.values():
        for key, package in (("core", "aiida-core"), ("plugin", _package(process.process_type))):
            if package and (version := process.version.get(key)):
                _count(found, package, str(version), process.uuid)
    for uuid, versions in _potentials(tree):
        for name, version in versions.items():
            _count(found, name, str(version), uuid)
    for uuid, name, version in _programs(tree):
        _count(found, name, version, uuid)
    rows = [
        (Number(name), Number(version, uuids=(uuid,)), Number(count, uuids=(uuid,)))
        for (name, version), (uuid, count) in sorted(found.items())
    ]
    missing = () if rows else ("no process recorded a version",)
    tables = [Table("Versions", ("software", "version", "nodes that say so"), tuple(rows))] if rows else []
    if codes := _codes(tree):
        tables.append(Table("Codes", ("code", "program", "calculation jobs"), codes))
    return Section("versions", "Software", tables=tuple(tables), missing=missing)


def _count(found: dict[tuple[str, str], tuple[str, int]], name: str, version: str, uuid: str) -> None:
    first, count = found.get((name, version), (uuid, 0))
    found[name, version] = (first, count + 1)


def _package(process_type: str) -> str:
    """Package whose version `plugin` is; empty where it is not known."""
    if "aiida_mlip" in process_type:
        return _OURS
    return next((name for start, name in _PACKAGES.items() if process_type.startswith(start)), "")


def _potentials(tree: ProcessTree) -> list[tuple[str, dict[str, Any]]]:
    from aiida_mlip.report.sections.training_results import last_with

    results = last_with(tree, "potentials")
    return [] if results is None else [(node.uuid, node.versions) for node in results.potentials.values()]


def _programs(tree: ProcessTree) -> list[tuple[str, str, str]]:
    """Name and version that programs wrote into their results, e.g. pw.x."""
    jobs = [process.pk for process in tree.processes.values() if process.is_job]
    found = []
    for start in range(0, len(jobs), 5000):
        query = orm.QueryBuilder()
        query.append(orm.CalcJobNode, filters={"id": {"in": jobs[start : start + 5000]}}, tag="job")
        project = ["uuid", "attributes.creator_name", "attributes.creator_version"]
        query.append(
            orm.Dict, with_incoming="job", filters={"attributes": {"has_key": "creator_version"}}, project=project
        )
        found += [(uuid, str(name), str(version)) for uuid, name, version in query.all()]
    return found


def _codes(tree: ProcessTree) -> tuple[tuple[Number, ...], ...]:
    jobs = [process.pk for process in tree.processes.values() if process.is_job]
    counts: dict[str, int] = {}
    for start in range(0, len(jobs), 5000):
        query = orm.QueryBuilder()
        query.append(orm.CalcJobNode, filters={"id": {"in": jobs[start : start + 5000]}}, tag="job")
        query.append(
            orm.Data, with_outgoing="job", filters={"node_type": {"like": "data.core.code.%"}}, project=["uuid"]
        )
        for (uuid,) in query.all():
            counts[uuid] = counts.get(uuid, 0) + 1
    rows = []
    for uuid, count in counts.items():
        code = orm.load_node(uuid)
        program = Number(str(code.get_executable()), uuids=(uuid,))
        rows.append((Number(code.full_label, uuids=(uuid,)), program, Number(count, uuids=(uuid,))))
    return tuple(rows)
