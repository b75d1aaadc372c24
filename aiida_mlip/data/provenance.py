"""Where a node comes from: walks over the provenance graph, and the audit of its rules.

Every walk goes level by level with :func:`aiida.tools.graph.graph_traversers.traverse_graph`, never with path queries
(``with_ancestors``), whose cost grows with the number of paths through a learning loop.

>>> from aiida_mlip.data.provenance import audit, ancestors
>>> report = audit(load_node(PK))  # doctest: +SKIP
>>> report.orphans  # doctest: +SKIP
()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from aiida import orm
from aiida.common.links import LinkType
from aiida.tools.graph.graph_traversers import traverse_graph

#: Links followed backwards: everything a node rests on, including the workflows that ran it.
_BACKWARD = (
    LinkType.CREATE,
    LinkType.RETURN,
    LinkType.INPUT_CALC,
    LinkType.INPUT_WORK,
    LinkType.CALL_CALC,
    LinkType.CALL_WORK,
)
#: Links followed forwards from a process: what it called and made.
_FORWARD = (LinkType.CALL_CALC, LinkType.CALL_WORK, LinkType.CREATE, LinkType.RETURN)
#: Nodes that people install once per profile, not per run.
_INSTALLED_TYPES = ("data.pseudo.",)
#: Workflows of other packages that make Data nodes in their own steps.
_THIRD_PARTY = ("aiida.workflows:quantumespresso.",)


@dataclass(frozen=True)
class DataOrigin:
    """A Data node and where it comes from."""

    uuid: str
    pk: int
    node_type: str
    origin: str


@dataclass(frozen=True)
class AuditReport:
    """Result of :func:`audit`.

    :param created: Data nodes made by a calculation.
    :param user_inputs: Data nodes given by a person to a process they launched.
    :param installed: codes and pseudopotentials.
    :param third_party: Data nodes made by steps of another package's workflows (named in ``origin``).
    :param orphans: Data nodes without any of these: a broken rule.
    :param unfinished: processes that have not ended, or failed, by pk.
    """

    node: str
    n_nodes: int
    n_processes: int
    created: int
    user_inputs: int
    installed: int
    third_party: tuple[DataOrigin, ...]
    orphans: tuple[DataOrigin, ...]
    unfinished: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether every Data node has an origin."""
        return not self.orphans

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "passed": self.passed}


def ancestors(nodes: Iterable[orm.Node]) -> set[int]:
    """Pks of everything these nodes rest on, themselves included: data, calculations, workflows."""
    return set(traverse_graph([node.pk for node in nodes], links_backward=_BACKWARD)["nodes"])


def descendants(nodes: Iterable[orm.Node]) -> set[int]:
    """Pks of everything that was called or made by these nodes or from them, themselves included."""
    forward = (*_FORWARD, LinkType.INPUT_CALC, LinkType.INPUT_WORK)
    return set(traverse_graph([node.pk for node in nodes], links_forward=forward)["nodes"])


def audit(node: orm.Node) -> AuditReport:
    """Check rule 1 of the provenance: every Data node has a creator or is an input a person gave.

    Starts at a potential, a dataset or a workchain and looks at everything it rests on; of a process also at all it
    called and made.
    """
    pks = [node.pk]
    if isinstance(node, orm.ProcessNode):
        pks = list(traverse_graph(pks, links_forward=_FORWARD)["nodes"])
    nodes = set(traverse_graph(pks, links_backward=_BACKWARD)["nodes"])
    return _classify(node, nodes)


def _classify(node: orm.Node, pks: set[int]) -> AuditReport:
    data = orm.QueryBuilder().append(orm.Data, filters={"id": {"in": list(pks)}}, project=["id", "uuid", "node_type"])
    created = _targets(LinkType.CREATE, orm.CalculationNode, orm.Data, pks)
    called = _targets((LinkType.CALL_CALC, LinkType.CALL_WORK), orm.WorkflowNode, orm.ProcessNode, pks)
    consumers = _consumers(pks)
    processes = {
        pk: (state, status)
        for pk, state, status in orm.QueryBuilder()
        .append(
            orm.ProcessNode,
            filters={"id": {"in": list(pks)}},
            project=["id", "attributes.process_state", "attributes.exit_status"],
        )
        .all()
    }
    counts = {"created": 0, "user_inputs": 0, "installed": 0}
    third_party, orphans = [], []
    for pk, uuid, node_type in data.all():
        used_by = consumers.get(pk, [])
        if pk in created:
            counts["created"] += 1
        elif any(process not in called for process, _ in used_by):
            counts["user_inputs"] += 1
        elif node_type.startswith(_INSTALLED_TYPES) or "data.core.code." in node_type:
            counts["installed"] += 1
        elif used_by and all(_made_by_third_party(process, called) for process, _ in used_by):
            origin = _caller_type(used_by[0][0], called)
            third_party.append(DataOrigin(uuid, pk, node_type, origin))
        elif pk == node.pk and not used_by:
            counts["user_inputs"] += 1  # the node asked about, given by a person and not used yet
        else:
            users = ", ".join(f"{label or 'process'}<{process}>" for process, label in used_by)
            orphans.append(DataOrigin(uuid, pk, node_type, f"no creator; used by {users}"))
    return AuditReport(
        node=node.uuid,
        n_nodes=len(pks),
        n_processes=len(processes),
        **counts,
        third_party=tuple(third_party),
        orphans=tuple(orphans),
        unfinished=tuple(sorted(pk for pk, (state, status) in processes.items() if state != "finished" or status)),
    )


def _targets(
    links: LinkType | tuple[LinkType, ...], source: type[orm.Node], target: type[orm.Node], pks: set[int]
) -> dict[int, tuple[int, str]]:
    """Pk of each target node -> (pk of the source, its process type), for incoming links of these kinds."""
    kinds = [link.value for link in (links if isinstance(links, tuple) else (links,))]
    query = orm.QueryBuilder()
    query.append(source, tag="source", project=["id", "process_type"])
    query.append(
        target,
        with_incoming="source",
        edge_filters={"type": {"in": kinds}},
        filters={"id": {"in": list(pks)}},
        project=["id"],
    )
    return {pk: (origin, process_type or "") for origin, process_type, pk in query.all()}


def _consumers(pks: set[int]) -> dict[int, list[tuple[int, str]]]:
    """Pk of each Data node -> processes (pk, label) that took it as input."""
    query = orm.QueryBuilder()
    query.append(orm.Data, tag="data", filters={"id": {"in": list(pks)}}, project=["id"])
    query.append(
        orm.ProcessNode,
        with_incoming="data",
        edge_filters={"type": {"in": [LinkType.INPUT_CALC.value, LinkType.INPUT_WORK.value]}},
        filters={"id": {"in": list(pks)}},
        project=["id", "attributes.process_label"],
    )
    found: dict[int, list[tuple[int, str]]] = {}
    for data, process, label in query.all():
        found.setdefault(data, []).append((process, label))
    return found


def _made_by_third_party(process: int, called: dict[int, tuple[int, str]]) -> bool:
    """Whether the workflow that called this process belongs to another package, so may have made its inputs."""
    return _caller_type(process, called).startswith(_THIRD_PARTY)


def _caller_type(process: int, called: dict[int, tuple[int, str]]) -> str:
    return called.get(process, (0, ""))[1]
