"""Taint: what rests on a label, a frame, a calculation or any other node, should it turn out to be wrong.

The data flow of the graph is followed to its end, so nothing is left out. How a dataset or a potential rests on it is
told by the rows: a dataset may *hold* a label, or only come after it; a potential may have been *trained* on it, or
have met it in its held-out part, or only come after it: its training set was found with an earlier potential.

>>> from aiida_mlip.data.taint import taint, taint_frame
>>> found = taint_frame("3fa2c1", fidelity="pbe")  # doctest: +SKIP
>>> [each.node.uuid for each in found.potentials if each.how == "trained"]  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.frame_index import FrameIndex, Held
from aiida_mlip.data.graph import (
    DATA_FLOW,
    FEW,
    NodeRef,
    NodeRow,
    Wanted,
    are_many,
    called_by,
    neighbours,
    processes_of,
    reach_in_memory,
    walk,
)
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.roles import JOB, LABELS, NO_SIMULATIONS, NUMBERS, Role, role_of
from aiida_mlip.data.trainings import parts_by_potential
from aiida_mlip.errors import InvalidInputError

#: Extra in which AiiDA notes which node a cached one is a copy of.
CACHED_FROM: Final[str] = "_aiida_cached_from"
How = Literal["holds", "trained", "held out", "follows"]
_WANTED: Final[Wanted] = Wanted(
    types=(DatasetData.class_node_type, PotentialData.class_node_type, JOB),
    without=NO_SIMULATIONS,
    returned=NUMBERS,
)


@dataclass(frozen=True)
class Tainted:
    """A node that rests on the target.

    :param how: ``holds``: a dataset with the label or frame in it; ``trained``: a potential whose training or
        validation part had it; ``held out``: a potential that was only judged with it; ``follows``: any other way.
    """

    node: NodeRef
    how: How


@dataclass(frozen=True)
class Taint:
    """Result of :func:`taint`.

    :param target: what was asked about.
    :param n_rows: rows of datasets, each counted once, that are concerned themselves.
    :param properties: numbers that workflows returned: errors, summaries, properties; named by port and workflow.
    :param labels: label calculations that came after it: of frames that simulations with its potentials found.
    :param n_nodes: nodes of all kinds that rest on it.
    """

    target: str
    n_rows: int
    datasets: tuple[Tainted, ...]
    potentials: tuple[Tainted, ...]
    simulations: tuple[Tainted, ...]
    properties: tuple[Tainted, ...]
    labels: int
    n_nodes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def taint(node: orm.Node, *, row: int | None = None, index: FrameIndex | None = None) -> Taint:
    """Everything that rests on a node.

    :param node: a calculation or workflow (with what it called): its labels and geometries are meant; or any data node.
    :param row: one label of a calculation that made several, by its row in the calculation; or one row of a dataset.
    :param index: an index that is open and fresh; None: the profile's, refreshed.
    :raises InvalidInputError: ``row`` for another node, or a row that is not there.
    """
    if index is None:
        with FrameIndex.open() as opened:
            opened.refresh()
            return taint(node, row=row, index=opened)
    target = f"{type(node).__name__}<{node.pk}>" + ("" if row is None else f" row {row}")
    if isinstance(node, orm.ProcessNode):
        called = called_by(node.pk)
        uuids = [*(uuid for _, uuid, _ in called), *_cached_from({pk for pk, _, _ in called})]
        if row is None:
            return _follow(target, index.held_from(uuids), {pk: kind for pk, _, kind in called}, index)
        rows = [each for each in index.rows_labelled_by(uuids) if max(each.label_row, 0) == row]
        if not rows:
            raise InvalidInputError(f"{target}: no dataset holds a label of this row of the calculation")
        return _follow(target, index.held(rows), {}, index)
    if row is None:
        return _follow(target, Held(0, {}), {node.pk: ""}, index)
    if not isinstance(node, DatasetData):
        raise InvalidInputError(f"row: {type(node).__name__}<{node.pk}> has no rows")
    return _follow(target, index.held([index.row_of(node.pk, row)]), {}, index)


def _cached_from(pks: set[int]) -> list[str]:
    """Uuids of the calculations whose results AiiDA's caching gave to these: rows name those that computed."""
    key = f"extras.{CACHED_FROM}"
    few = {"id": {"in": list(pks)}} if len(pks) <= FEW else {}
    query = orm.QueryBuilder().append(
        orm.CalculationNode, filters={**few, "extras": {"has_key": CACHED_FROM}}, project=["id", key]
    )
    return [uuid for pk, uuid in query.all() if pk in pks and isinstance(uuid, str)]


def taint_frame(frame_id: str, *, fidelity: str | None = None, index: FrameIndex | None = None) -> Taint:
    """Everything that rests on a frame, or on its label at one level of theory.

    :param frame_id: 32 hexadecimal digits, or as many of the first ones as are not ambiguous.
    :param fidelity: the level of theory; None: the frame itself, and all its labels.
    :param index: an index that is open and fresh; None: the profile's, refreshed.
    :raises InvalidInputError: no such frame, several, or no label of it at this fidelity.
    """
    if index is None:
        with FrameIndex.open() as opened:
            opened.refresh()
            return taint_frame(frame_id, fidelity=fidelity, index=opened)
    name = index.find_one(frame_id)
    rows = index.rows(name)
    if fidelity is None:
        return _follow(f"frame {name}", index.held(rows), {}, index)
    known = sorted({row.fidelity for row in rows if row.fidelity is not None})
    if fidelity not in known:
        there = f"it has labels at {', '.join(known)}" if known else "it has no labels"
        raise InvalidInputError(f"frame {name[:8]} has no label at {fidelity!r}; {there}")
    labelled = index.held(row for row in rows if row.fidelity == fidelity)
    return _follow(f"label {fidelity}:{name}", labelled, {}, index)


def _follow(target: str, held: Held, asked: Mapping[int, str], index: FrameIndex) -> Taint:
    """What rests on rows of datasets and on nodes.

    :param held: rows that are concerned.
    :param asked: pk of each node that is concerned as a whole -> its process type; they rest on themselves, and are not
        counted.
    """
    trained = parts_by_potential(held.rows, index)
    ahead = _ahead({*held.rows, *asked})
    by_role: dict[Role, list[NodeRow]] = {}
    for node in ahead.nodes:
        if node.pk not in asked:
            by_role.setdefault(node.role, []).append(node)
    return Taint(
        target=target,
        n_rows=held.n_rows,
        datasets=tuple(
            Tainted(node.ref, "holds" if node.pk in held.rows else "follows") for node in by_role.get("dataset", ())
        ),
        potentials=tuple(Tainted(node.ref, _how(node.pk, trained)) for node in by_role.get("potential", ())),
        simulations=tuple(Tainted(node.ref, "follows") for node in by_role.get("simulation", ())),
        properties=_properties(by_role.get("property", ())),
        labels=ahead.n_labels - sum(process_type in LABELS for process_type in asked.values()),
        n_nodes=ahead.n_nodes - len(asked),
    )


@dataclass(frozen=True)
class _Ahead:
    """What data flows to: nodes that are told one by one, and numbers of all nodes and of label calculations."""

    nodes: tuple[NodeRow, ...]
    n_nodes: int
    n_labels: int


def _ahead(pks: Collection[int]) -> _Ahead:
    """Everything that rests on these nodes, themselves included."""
    if are_many(pks):
        reached, nodes = reach_in_memory(pks, DATA_FLOW, wanted=_WANTED)
        return _Ahead(nodes, len(reached), int(np.isin(processes_of(LABELS), reached).sum()))
    reach = walk(pks, DATA_FLOW, direction="forward", wanted=_WANTED)
    labels = sum(n for types, n in reach.counts.items() if role_of(*types) == "label")
    return _Ahead(reach.nodes, reach.n_nodes, labels)


def _how(potential: int, trained: Mapping[int, set[str]]) -> How:
    parts = trained.get(potential)
    if parts is None:
        return "follows"
    return "held out" if parts <= {"test", "unused"} else "trained"


def _properties(nodes: Collection[NodeRow]) -> tuple[Tainted, ...]:
    """Numbers, named by the port and the innermost of the workflows that returned them."""
    names: dict[int, tuple[int, str]] = {}
    for pk, label, work in neighbours([node.pk for node in nodes], (LinkType.RETURN,), direction="backward"):
        names[pk] = max(names.get(pk, (0, "")), (work.pk, f"{label} of {work.ref.kind}<{work.pk}>"))
    return tuple(Tainted(NodeRef(node.pk, node.uuid, node.ref.kind, names[node.pk][1]), "follows") for node in nodes)
