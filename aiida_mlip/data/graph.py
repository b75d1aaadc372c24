"""Walks over large provenance graphs: what data flows into a node, and what flows out of it, in one query.

The walk is one recursive query in which a node that was reached is never looked at again (``UNION``): its cost grows
with the links, not with the paths as that of ``with_descendants`` does, nor with the depth as that of
:func:`aiida.tools.graph.graph_traversers.traverse_graph`, which asks the database once per level. A campaign of 50
rounds is 1000 levels deep. Works with the storages of AiiDA that are SQL databases, which all of them are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
from aiida import orm
from aiida.common.links import LinkType
from aiida.manage import get_manager
from sqlalchemy import bindparam, text

from aiida_mlip.data.roles import Role, role_of

#: How data flows: from a calculation to what it made, from there into other calculations.
DATA_FLOW: Final[tuple[LinkType, ...]] = (LinkType.CREATE, LinkType.INPUT_CALC)
CALLS: Final[tuple[LinkType, ...]] = (LinkType.CALL_CALC, LinkType.CALL_WORK)
#: Everything a node rests on, including the workflows that ran it.
ALL_LINKS: Final[tuple[LinkType, ...]] = (*DATA_FLOW, *CALLS, LinkType.RETURN, LinkType.INPUT_WORK)
#: Nodes that are looked up one by one; of more, it depends on the size of the profile.
FEW: Final[int] = 1000
#: Links of the profile for each start up to which all are read at once: a walk by the database costs fifteen times as
#: much for a start as reading one link.
_LINKS_PER_START: Final[int] = 15
_NODE: Final[str] = "node.id, node.uuid, node.node_type, node.process_type, node.label"
_ENTRY_POINT: Final[str] = "aiida."
#: What workflows of this package returned; as in :func:`walk`, links are to be looked up by node.
_RETURNED: Final[str] = """
    SELECT link.output_id FROM db_dbnode AS work JOIN db_dblink AS link ON link.input_id = work.id
    WHERE work.process_type LIKE 'aiida.workflows:aiida_mlip.%' AND (link.type || '') = 'return'
"""


@dataclass(frozen=True)
class NodeRef:
    """What is said about a node where it is mentioned.

    :param kind: ``DatasetData``, or the process: ``pw``, ``aiida_mlip.explore``, ``carve_fragments``.
    :param name: its label, or the label of the call or link through which it was found.
    """

    pk: int
    uuid: str
    kind: str
    name: str = ""


@dataclass(frozen=True)
class NodeRow:
    """A node as the database knows it, without its attributes."""

    pk: int
    uuid: str
    node_type: str
    process_type: str
    label: str

    @property
    def is_process(self) -> bool:
        """Whether it is a process."""
        return self.node_type.startswith("process.")

    @property
    def role(self) -> Role:
        """What it is for."""
        return role_of(self.node_type, self.process_type)

    @property
    def ref(self) -> NodeRef:
        """The same, for people."""
        return NodeRef(self.pk, self.uuid, kind_of(self.node_type, self.process_type), self.label)


def kind_of(node_type: str, process_type: str | None) -> str:
    """What people call a node: its class, or the entry point or function of a process."""
    if node_type.startswith("process.") and process_type:
        if process_type.startswith(_ENTRY_POINT) and ":" in process_type:
            return process_type.partition(":")[2]
        return process_type.rpartition(".")[2]
    return node_type.rstrip(".").rpartition(".")[2] or "Node"


@dataclass(frozen=True)
class Wanted:
    """Which nodes of a walk are wanted one by one.

    :param types: what their types begin with.
    :param without: process types that are not wanted.
    :param returned: what the types of nodes begin with that are wanted where a workflow of this package returned them.
    """

    types: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()

    def condition(self) -> tuple[str, dict[str, str]]:
        """SQL about a ``node``, and its parameters."""
        values = {f"type_{i}": f"{prefix}%" for i, prefix in enumerate(self.types)}
        values |= {f"number_{i}": f"{prefix}%" for i, prefix in enumerate(self.returned)}
        values |= {f"no_{i}": process_type for i, process_type in enumerate(self.without)}
        types = _any("node.node_type LIKE :type_{}", len(self.types))
        excluded = _any("node.process_type = :no_{}", len(self.without))
        numbers = _any("node.node_type LIKE :number_{}", len(self.returned))
        return f"({types} AND NOT coalesce({excluded}, 1 = 0)) OR ({numbers} AND node.id IN ({_RETURNED}))", values


@dataclass(frozen=True)
class Reach:
    """What a walk reached.

    :param counts: (node type, process type) -> number of nodes.
    :param nodes: those of the types that were asked for, in order of creation.
    """

    counts: dict[tuple[str, str], int]
    nodes: tuple[NodeRow, ...]

    @property
    def n_nodes(self) -> int:
        """Nodes in all, those included where the walk began."""
        return sum(self.counts.values())


def walk(
    pks: Collection[int],
    links: Sequence[LinkType],
    *,
    direction: Literal["forward", "backward"],
    wanted: Wanted | None = None,
) -> Reach:
    """Follow links of these kinds from these nodes, which are reached themselves, as far as they go.

    :param direction: ``forward``: along the links, ``backward``: against them.
    :param wanted: nodes to return one by one; all others are only counted.
    """
    if not pks:
        return Reach({}, ())
    ahead, behind = ("output_id", "input_id") if direction == "forward" else ("input_id", "output_id")
    condition, values = ("1 = 0", {}) if wanted is None else wanted.condition()
    # || '': the database must look links up by node, not by their type, of which there are few
    statement = f"""
        WITH RECURSIVE reached(id) AS (
            SELECT id FROM db_dbnode WHERE id IN :pks
            UNION
            SELECT link.{ahead} FROM reached JOIN db_dblink AS link ON link.{behind} = reached.id
            WHERE (link.type || '') IN :links
        ),
        found AS MATERIALIZED (
            SELECT {_NODE} FROM reached JOIN db_dbnode AS node ON node.id = reached.id
        )
        SELECT count(*), NULL, node.node_type, node.process_type, NULL FROM found AS node
        GROUP BY node.node_type, node.process_type
        UNION ALL
        SELECT {_NODE} FROM found AS node WHERE {condition}
    """  # noqa: S608 - names of columns
    rows = query_rows(
        statement,
        values,
        pks=list(pks),
        links=[link.value for link in links] or [""],
    )
    counts = {(row[2], row[3] or ""): int(row[0]) for row in rows if row[1] is None}
    nodes = sorted((_node(row) for row in rows if row[1] is not None), key=lambda node: node.pk)
    return Reach(counts, tuple(nodes))


def called_by(pk: int) -> list[tuple[int, str, str]]:
    """A process and all that it called, directly or not: (pk, uuid, process type) of each."""
    statement = """
        WITH RECURSIVE called(id) AS (
            SELECT id FROM db_dbnode WHERE id IN :pks
            UNION
            SELECT link.output_id FROM called JOIN db_dblink AS link ON link.input_id = called.id
            WHERE (link.type || '') IN :links
        )
        SELECT node.id, node.uuid, coalesce(node.process_type, '')
        FROM called JOIN db_dbnode AS node ON node.id = called.id
    """
    return [tuple(row) for row in query_rows(statement, pks=[pk], links=[link.value for link in CALLS])]


def are_many(pks: Collection[int]) -> bool:
    """Whether from so many nodes it is faster to read all links of the profile at once than to look them up by node."""
    return len(pks) > FEW and len(pks) * _LINKS_PER_START > int(query_rows("SELECT max(id) FROM db_dblink")[0][0] or 0)


def reached_pks(
    pks: Collection[int], links: Sequence[LinkType], *, direction: Literal["forward", "backward"]
) -> np.ndarray:
    """Sorted pks of all nodes that :func:`walk` reaches, those included where it begins, which may be very many."""
    if are_many(pks):
        return _reached_in_memory(pks, links, direction=direction)
    if not len(pks):
        return np.zeros(0, np.int64)
    ahead, behind = ("output_id", "input_id") if direction == "forward" else ("input_id", "output_id")
    statement = f"""
        WITH RECURSIVE reached(id) AS (
            SELECT id FROM db_dbnode WHERE id IN :pks
            UNION
            SELECT link.{ahead} FROM reached JOIN db_dblink AS link ON link.{behind} = reached.id
            WHERE (link.type || '') IN :links
        )
        SELECT id FROM reached ORDER BY id
    """  # noqa: S608 - names of columns
    return _pks(query_rows(statement, pks=[int(pk) for pk in pks], links=[link.value for link in links]))


def reach_in_memory(
    pks: Collection[int], links: Sequence[LinkType], *, wanted: Wanted
) -> tuple[np.ndarray, tuple[NodeRow, ...]]:
    """The same as :func:`walk` forward, for very many starts: all links of the profile are read, and walked in memory.

    Costs about a microsecond for each link of the profile, where :func:`walk` costs four for each node it reaches.

    :returns: sorted pks of the nodes that were reached, starts included; and those of them that are wanted.
    """
    reached = _reached_in_memory(pks, links, direction="forward")
    condition, values = wanted.condition()
    rows = query_rows(f"SELECT {_NODE} FROM db_dbnode AS node WHERE {condition} ORDER BY node.id", values)  # noqa: S608
    there = np.isin([row[0] for row in rows], reached)
    return reached, tuple(_node(row) for row, is_there in zip(rows, there, strict=True) if is_there)


def _reached_in_memory(
    pks: Collection[int], links: Sequence[LinkType], *, direction: Literal["forward", "backward"]
) -> np.ndarray:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order

    names = [link.value for link in links]
    found = query_rows("SELECT input_id, output_id FROM db_dblink WHERE type IN :links", links=names)
    ends = np.fromiter(chain.from_iterable(found), dtype=np.int64, count=2 * len(found)).reshape(-1, 2)
    ends = ends if direction == "forward" else ends[:, ::-1]
    starts = np.fromiter(pks, dtype=np.int64, count=len(pks))
    size = int(max(ends.max(initial=0), starts.max(initial=0))) + 1
    # no node has the number 0: it stands for all the starts at once
    sources, targets = np.append(ends[:, 0], np.zeros(len(starts), np.int64)), np.append(ends[:, 1], starts)
    graph = csr_matrix((np.ones(len(sources), dtype=np.int8), (sources, targets)), shape=(size, size))
    order = breadth_first_order(graph, 0, return_predecessors=False)
    return np.sort(order[order > 0])


def link_ends(
    links: Sequence[LinkType], *, of: Collection[int], column: Literal["input_id", "output_id"]
) -> np.ndarray:
    """(n, 2) pks of the two ends (from, to) of all links of these kinds, that these nodes are the one end of."""
    given, few = _among(of, column)
    statement = f"SELECT input_id, output_id FROM db_dblink WHERE (type || '') IN :links AND {given}"  # noqa: S608
    found = query_rows(statement, links=[link.value for link in links], pks=few)
    ends = np.fromiter(chain.from_iterable(found), dtype=np.int64, count=2 * len(found)).reshape(-1, 2)
    return ends[np.isin(ends[:, 0 if column == "input_id" else 1], np.fromiter(of, np.int64, len(of)))]


def data_without_creator(pks: Collection[int]) -> list[tuple[int, str, str]]:
    """(pk, uuid, node type) of those of these nodes that are data which no calculation made."""
    given, few = _among(pks, "node.id")
    statement = f"""
        SELECT node.id, node.uuid, node.node_type FROM db_dbnode AS node
        WHERE node.node_type LIKE 'data.%' AND {given} AND NOT EXISTS
        (SELECT 1 FROM db_dblink AS link WHERE link.output_id = node.id AND (link.type || '') = 'create')
        ORDER BY node.id
    """  # noqa: S608 - a name of a column
    rows = query_rows(statement, pks=few)
    there = np.isin([row[0] for row in rows], np.fromiter(pks, np.int64, len(pks)))
    return [tuple(row) for row, is_there in zip(rows, there, strict=True) if is_there]


def _among(pks: Collection[int], column: str) -> tuple[str, list[int]]:
    """SQL that looks few nodes up, and its parameter `pks`; of many all are read, and the caller takes his own."""
    if len(pks) > FEW:
        return f"({column} IN :pks OR 1 = 1)", [0]
    return f"{column} IN :pks", [int(pk) for pk in pks]


def processes_of(process_types: Collection[str]) -> np.ndarray:
    """Pks of all processes of these types."""
    return _pks(query_rows("SELECT id FROM db_dbnode WHERE process_type IN :types", types=list(process_types)))


def process_types_of(pks: Collection[int]) -> dict[int, str]:
    """Pk of each process among these nodes -> its type."""
    given, few = _among(pks, "id")
    statement = f"SELECT id, process_type FROM db_dbnode WHERE process_type IS NOT NULL AND {given}"  # noqa: S608
    rows = query_rows(statement, pks=few)
    there = np.isin([row[0] for row in rows], np.fromiter(pks, np.int64, len(pks)))
    return {int(row[0]): str(row[1]) for row, is_there in zip(rows, there, strict=True) if is_there}


def nodes_of_type(node_type: str) -> np.ndarray:
    """Pks of all nodes of exactly this type."""
    return _pks(query_rows("SELECT id FROM db_dbnode WHERE node_type IN :types", types=[node_type]))


def _pks(rows: list[Any]) -> np.ndarray:
    return np.fromiter((row[0] for row in rows), dtype=np.int64, count=len(rows))


def nodes_with(pks: Collection[int]) -> list[NodeRow]:
    """The nodes with these pks."""
    if not pks:
        return []
    statement = f"SELECT {_NODE} FROM db_dbnode AS node WHERE node.id IN :pks ORDER BY node.id"  # noqa: S608 - columns
    return [_node(row) for row in query_rows(statement, pks=list(pks))]


def neighbours(
    pks: Collection[int],
    links: Sequence[LinkType],
    *,
    direction: Literal["forward", "backward"],
    without: Collection[str] = (),
) -> list[tuple[int, str, NodeRow]]:
    """One step of a walk: (pk it starts from, label of the link, node) for each link.

    :param without: process types that are not wanted.
    """
    if not pks:
        return []
    ahead, behind = ("output_id", "input_id") if direction == "forward" else ("input_id", "output_id")
    statement = f"""
        SELECT {_NODE}, link.{behind}, link.label
        FROM db_dblink AS link JOIN db_dbnode AS node ON node.id = link.{ahead}
        WHERE link.{behind} IN :pks AND (link.type || '') IN :links AND coalesce(node.process_type, '') NOT IN :without
        ORDER BY link.id
    """  # noqa: S608 - names of columns
    names = [link.value for link in links]
    rows = query_rows(statement, pks=list(pks), links=names, without=list(without) or ["-"])
    return [(int(row[5]), str(row[6]), _node(row)) for row in rows]


def nodes_of(uuids: Iterable[str]) -> dict[str, NodeRow]:
    """The nodes with these uuids, those that are still in the profile."""
    wanted = list(dict.fromkeys(uuids))
    query = orm.QueryBuilder()
    query.append(
        orm.Node, filters={"uuid": {"in": wanted}}, project=["id", "uuid", "node_type", "process_type", "label"]
    )
    found = query.all() if wanted else []
    return {row[1]: NodeRow(row[0], row[1], row[2], row[3] or "", row[4]) for row in found}


def attribute(name: str, of: str = "node") -> str:
    """SQL for an attribute of a node as text or number."""
    return _member("attributes", name, of)


def extra(name: str, of: str = "node") -> str:
    """SQL for an extra of a node."""
    return _member("extras", name, of)


def is_sqlite() -> bool:
    """Whether the profile has its database in SQLite, not in PostgreSQL."""
    return bool(get_manager().get_profile_storage().get_session().get_bind().dialect.name == "sqlite")


def _member(column: str, name: str, of: str) -> str:
    return f"json_extract({of}.{column}, '$.{name}')" if is_sqlite() else f"({of}.{column} ->> '{name}')"


def query_rows(statement: str, values: dict[str, str] | None = None, **lists: list[Any]) -> list[Any]:
    """Rows of a query with parameters, some of them lists."""
    query = text(statement).bindparams(*(bindparam(name, expanding=True) for name in lists))
    session = get_manager().get_profile_storage().get_session()
    result = session.execute(query, {**(values or {}), **lists})
    rows: list[Any] = result.cursor.fetchall()  # the driver's own tuples: half the time of SQLAlchemy's rows
    result.close()
    return rows


def _any(condition: str, n: int) -> str:
    return "(" + (" OR ".join(condition.format(i) for i in range(n)) or "1 = 0") + ")"


def _node(row: Sequence[Any]) -> NodeRow:
    return NodeRow(int(row[0]), str(row[1]), row[2], row[3] or "", row[4] or "")
