"""Where a node comes from: walks over the provenance graph, and the audit of its rules.

Every walk is one query, or is done in memory (:mod:`aiida_mlip.data.graph`), never with path queries
(``with_ancestors``), whose cost grows with the number of paths through a learning loop.

>>> from aiida_mlip.data.provenance import audit, ancestors
>>> report = audit(load_node(PK))  # doctest: +SKIP
>>> report.orphans  # doctest: +SKIP
()
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.graph import ALL_LINKS, FEW, data_without_creator, link_ends, process_types_of, reached_pks

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
    return set(reached_pks([node.pk for node in nodes], ALL_LINKS, direction="backward").tolist())


def descendants(nodes: Iterable[orm.Node]) -> set[int]:
    """Pks of everything that was called or made by these nodes or from them, themselves included."""
    return set(reached_pks([node.pk for node in nodes], ALL_LINKS, direction="forward").tolist())


def inside_and_behind(node: orm.Node) -> np.ndarray:
    """Sorted pks of everything that a node rests on, itself included; of a process also of all it called and made."""
    pks: Collection[int] = [node.pk]
    if isinstance(node, orm.ProcessNode):
        pks = reached_pks(pks, _FORWARD, direction="forward").tolist()
    return reached_pks(pks, ALL_LINKS, direction="backward")


def audit(node: orm.Node) -> AuditReport:
    """Check rule 1 of the provenance: every Data node has a creator or is an input a person gave.

    Starts at a potential, a dataset or a workchain and looks at everything it rests on; of a process also at all it
    called and made.
    """
    pks = inside_and_behind(node)
    processes = _processes(pks)
    loose = data_without_creator(pks.tolist())
    used_by, callers = _consumers({pk for pk, _, _ in loose}, set(processes))
    counts = {"user_inputs": 0, "installed": 0}
    third_party, orphans = [], []
    for pk, uuid, node_type in loose:
        users = used_by.get(pk, [])
        if any(process not in callers for process in users):
            counts["user_inputs"] += 1
        elif node_type.startswith(_INSTALLED_TYPES) or "data.core.code." in node_type:
            counts["installed"] += 1
        elif users and all(callers[process].startswith(_THIRD_PARTY) for process in users):
            third_party.append(DataOrigin(uuid, pk, node_type, callers[users[0]]))
        elif pk == node.pk and not users:
            counts["user_inputs"] += 1  # the node asked about, given by a person and not used yet
        else:
            named = ", ".join(f"{_label(process) or 'process'}<{process}>" for process in users)
            orphans.append(DataOrigin(uuid, pk, node_type, f"no creator; used by {named}"))
    return AuditReport(
        node=node.uuid,
        n_nodes=len(pks),
        n_processes=len(processes),
        created=len(pks) - len(processes) - len(loose),
        **counts,
        third_party=tuple(third_party),
        orphans=tuple(orphans),
        unfinished=tuple(sorted(pk for pk, (state, status) in processes.items() if state != "finished" or status)),
    )


def _processes(pks: np.ndarray) -> dict[int, tuple[str | None, int | None]]:
    """Pk of each process among these nodes -> its state and exit status."""
    few = {"id": {"in": pks.tolist()}} if len(pks) <= FEW else {}
    project = ["id", "attributes.process_state", "attributes.exit_status"]
    rows = orm.QueryBuilder().append(orm.ProcessNode, filters=few, project=project).all()
    there = np.isin([row[0] for row in rows], pks)
    return {pk: (state, status) for (pk, state, status), is_there in zip(rows, there, strict=True) if is_there}


def _consumers(data: set[int], processes: set[int]) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Pk of each data node -> processes of these that took it as input; and types of the callers of such processes."""
    inputs = link_ends((LinkType.INPUT_CALC, LinkType.INPUT_WORK), of=data, column="input_id").tolist()
    used_by: dict[int, list[int]] = {}
    for pk, process in inputs:
        if process in processes:
            used_by.setdefault(pk, []).append(process)
    users = {process for found in used_by.values() for process in found}
    calls = link_ends((LinkType.CALL_CALC, LinkType.CALL_WORK), of=users, column="output_id")
    kinds = process_types_of(set(calls[:, 0].tolist()))
    return used_by, {process: kinds.get(caller, "") for caller, process in calls.tolist()}


def _label(process: int) -> str | None:
    label: str | None = orm.load_node(process).process_label
    return label
