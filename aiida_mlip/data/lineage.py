"""Lineage: what made a node and what it made, down to a frame and an atom.

>>> from aiida_mlip.data.lineage import frame_lineage, lineage
>>> lineage(load_node(PK)).rests_on  # doctest: +SKIP
{'label': 212, 'simulation': 12, 'training': 8, 'dataset': 31, 'potential': 8}
>>> found = frame_lineage("3fa2c1", atom=17)  # doctest: +SKIP
>>> found.atom.parent_atom, found.parent.frame_id, found.labels[0].calculation.pk  # doctest: +SKIP
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.frame_index import FrameIndex, Row
from aiida_mlip.data.graph import (
    ALL_LINKS,
    CALLS,
    DATA_FLOW,
    NodeRef,
    NodeRow,
    Reach,
    neighbours,
    nodes_of,
    nodes_with,
    walk,
)
from aiida_mlip.data.roles import Role, role_of
from aiida_mlip.data.trainings import Training, trainings_on
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Failure

_REGIONS: Final[tuple[str, ...]] = ("core", "trust", "buffer", "cap")
_OUTPUTS: Final[tuple[LinkType, ...]] = (LinkType.CREATE, LinkType.RETURN)
_INPUTS: Final[tuple[LinkType, ...]] = (LinkType.INPUT_CALC, LinkType.INPUT_WORK)
#: Roles that are counted; everything else is in ``n_nodes``.
_COUNTED: Final[tuple[Role, ...]] = ("label", "simulation", "training", "dataset", "potential")
#: What makes a trajectory; pw.x that computes labels may also run dynamics.
_MOVING: Final[tuple[Role, ...]] = ("simulation", "label")
#: Frames do not come through these, and from no farther than so many calculations and data nodes.
_NO_WAY_BACK: Final[tuple[Role, ...]] = ("potential", "training")
_STEPS_BACK: Final[int] = 12
#: Attributes that are shown.
_DETAILS: Final[dict[Role, tuple[str, ...]]] = {
    "dataset": ("n_rows", "n_atoms", "species", "fidelities", "generators", "failures"),
    "potential": ("engine", "species", "cutoff_ang", "fidelities", "sha256"),
}
_PROCESS_DETAILS: Final[tuple[str, ...]] = ("process_label", "process_state", "exit_status", "exit_message")


@dataclass(frozen=True)
class Label:
    """A label of a frame, or the attempt at one.

    :param fidelity: level of theory.
    :param calculation: the calculation that made it; None: imported, or no longer in the profile.
    :param uuid: of that calculation, as the row says.
    :param row: row within it where it made several, else None.
    :param failure: why it is missing, empty for a label that is there.
    """

    fidelity: str
    calculation: NodeRef | None
    uuid: str | None
    row: int | None
    failure: str = ""


@dataclass(frozen=True)
class Origin:
    """Where the geometry of a frame comes from.

    :param frame_id: the frame.
    :param made_by: process that made it; None: given by a person.
    :param simulation: simulation it comes from: ``made_by`` itself, or the nearest one behind it; None: none.
    :param datasets: datasets that hold the frame; none for a frame of a file, such as a scanned one.
    """

    frame_id: str
    made_by: NodeRef | None
    simulation: NodeRef | None
    datasets: tuple[NodeRef, ...]


@dataclass(frozen=True)
class AtomOrigin:
    """One atom of a frame.

    :param index: number in the frame, from 0.
    :param symbol: chemical symbol; empty where the index does not know it (frames that are no fragments).
    :param region: ``core``, ``trust``, ``buffer`` or ``cap``; empty for frames that are no fragments.
    :param parent_atom: number in the parent frame; None: it was not there, or the frame has no parent atoms.
    """

    index: int
    symbol: str
    region: str
    parent_atom: int | None


@dataclass(frozen=True)
class Place:
    """A row of a dataset."""

    dataset: NodeRef
    row: int


@dataclass(frozen=True)
class FrameLineage:
    """Result of :func:`frame_lineage`.

    :param origin: of the frame itself.
    :param parent: of the frame it was cut or made from; None: there is none.
    :param n_children: frames that were made from it.
    :param potentials: trained on a dataset that holds it; each says in which part the frame was.
    """

    frame_id: str
    natoms: int
    origin: Origin
    parent: Origin | None
    atom: AtomOrigin | None
    labels: tuple[Label, ...]
    places: tuple[Place, ...]
    potentials: tuple[Training, ...]
    n_children: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NodeLineage:
    """Result of :func:`lineage`.

    :param made_by: the process that made the node, the one that called it, and so on up to what a person started; for
        a process its callers.
    :param inputs: of the first of these, or of the process itself, by link label.
    :param used_by: processes that took it as input; for a process what it called.
    :param made: for a process its outputs; for data the datasets and potentials directly behind ``used_by``.
    :param rests_on: counts of the labels, simulations, trainings, datasets and potentials it rests on.
    :param led_to: counts of those that rest on it.
    :param details: numbers of a dataset (rows, labels) or potential (trained on).
    """

    node: NodeRef
    made_by: tuple[NodeRef, ...]
    inputs: tuple[NodeRef, ...]
    used_by: tuple[NodeRef, ...]
    made: tuple[NodeRef, ...]
    rests_on: dict[str, int]
    led_to: dict[str, int]
    n_behind: int
    n_ahead: int
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def lineage(node: orm.Node) -> NodeLineage:
    """What made a node, what it made, and how much lies behind and ahead of it; no file is opened.

    :param node: a dataset, a potential, a process, or any other node of the profile.
    """
    row = nodes_of([node.uuid])[node.uuid]
    behind = walk([row.pk], ALL_LINKS if row.is_process else DATA_FLOW, direction="backward")
    links = (*DATA_FLOW, *CALLS) if row.is_process else DATA_FLOW
    ahead = walk([row.pk], links, direction="forward")
    makers = _makers(row)
    inside = _named(neighbours([row.pk], CALLS if row.is_process else _INPUTS, direction="forward"))
    outputs = neighbours([row.pk], _OUTPUTS, direction="forward") if row.is_process else _results(inside)
    first = row.pk if row.is_process else makers[0].pk if makers else None
    return NodeLineage(
        node=row.ref,
        made_by=makers,
        inputs=_named(neighbours([first], _INPUTS, direction="backward")) if first is not None else (),
        used_by=inside,
        made=_named(outputs),
        rests_on=_counts(behind, row),
        led_to=_counts(ahead, row),
        n_behind=behind.n_nodes - 1,
        n_ahead=ahead.n_nodes - 1,
        details=_details(row, node),
    )


def frame_lineage(frame_id: str, *, atom: int | None = None, index: FrameIndex | None = None) -> FrameLineage:
    """Where a frame, and where asked for one of its atoms, comes from, who labelled it, and what learned from it.

    :param frame_id: 32 hexadecimal digits, or as many of the first ones as are not ambiguous.
    :param atom: number of the atom, from 0.
    :param index: an index that is open and fresh; None: the profile's, refreshed.
    :raises InvalidInputError: no such frame, several, or no such atom.
    """
    if index is None:
        with FrameIndex.open() as opened:
            opened.refresh()
            return frame_lineage(frame_id, atom=atom, index=opened)
    name = index.find_one(frame_id)
    rows = index.rows(name)
    parents = sorted({row.parent_id for row in rows if row.parent_id is not None})
    parent_rows = {parent: index.rows(parent) for parent in parents}
    held = index.datasets_with(rows)
    nodes = _mentioned([*rows, *(row for found in parent_rows.values() for row in found)])
    datasets = _datasets({*held, *(pk for found in parent_rows.values() for pk in index.datasets_with(found))})
    origin = _origin(name, rows, nodes, [datasets[pk] for pk in held])
    parent = None
    if parents:
        found = parent_rows[parents[0]]
        parent = _origin(parents[0], found, nodes, [datasets[pk] for pk in index.datasets_with(found)])
        if not found and origin.simulation is not None:
            parent = Origin(parents[0], None, origin.simulation, ())
    return FrameLineage(
        frame_id=name,
        natoms=rows[0].natoms,
        origin=origin,
        parent=parent,
        atom=None if atom is None else _atom(index, rows, atom),
        labels=_labels(rows, nodes),
        places=tuple(Place(datasets[pk], number) for pk, numbers in held.items() for number in numbers),
        potentials=trainings_on(held, index),
        n_children=index.count_children(name),
    )


# -- frames ---------------------------------------------------------------------------------------------------


def _mentioned(rows: Iterable[Row]) -> dict[str, NodeRow]:
    uuids = {uuid for row in rows for uuid in (row.geometry_uuid, row.label_uuid) if uuid is not None}
    return nodes_of(uuids)


def _datasets(pks: Collection[int]) -> dict[int, NodeRef]:
    return {row.pk: row.ref for row in nodes_with(pks)}


def _origin(frame_id: str, rows: Iterable[Row], nodes: dict[str, NodeRow], datasets: list[NodeRef]) -> Origin:
    """Origin of a frame; of several makers of one geometry the one that was first."""
    makers = sorted(
        {nodes[row.geometry_uuid] for row in rows if row.geometry_uuid in nodes}, key=lambda maker: maker.pk
    )
    maker = makers[0] if makers else None
    simulation = None if maker is None else _nearest_simulation(maker)
    return Origin(frame_id, None if maker is None else maker.ref, simulation, tuple(datasets))


def _nearest_simulation(maker: NodeRow) -> NodeRef | None:
    """The process itself, or the simulation whose output it worked on, a few calculations back at most."""
    level = [maker]
    seen = {maker.pk}
    for _ in range(_STEPS_BACK):
        if found := [node for node in level if node.role in _MOVING]:
            return found[-1].ref
        steps = neighbours([node.pk for node in level], DATA_FLOW, direction="backward")
        level = [node for _, _, node in steps if node.pk not in seen and node.role not in _NO_WAY_BACK]
        seen |= {node.pk for node in level}
        if not level:
            return None
    return None


def _atom(index: FrameIndex, rows: list[Row], atom: int) -> AtomOrigin:
    from ase.data import chemical_symbols

    natoms = rows[0].natoms
    if not 0 <= atom < natoms:
        raise InvalidInputError(f"frame {rows[0].frame_id[:8]} has atoms 0 to {natoms - 1}, got {atom}")
    for row in rows:
        if (atoms := index.atoms(row)) is not None:
            parent = int(atoms.parent_atom[atom])
            region = "" if atoms.region is None else _REGIONS[int(atoms.region[atom])]
            return AtomOrigin(atom, chemical_symbols[int(atoms.numbers[atom])], region, parent if parent >= 0 else None)
    return AtomOrigin(atom, "", "", None)


def _labels(rows: Iterable[Row], nodes: dict[str, NodeRow]) -> tuple[Label, ...]:
    """Each label once, however many datasets hold it."""
    found: dict[tuple[Any, ...], Label] = {}
    for row in rows:
        if row.fidelity is None:
            continue
        failure = row.failure.label if row.failure is not Failure.NONE else ""
        key = (row.fidelity, row.label_uuid, row.label_row, failure)
        if key in found or not (row.labelled or failure):
            continue
        node = nodes.get(row.label_uuid or "")
        number = row.label_row if row.label_row >= 0 else None
        found[key] = Label(row.fidelity, None if node is None else node.ref, row.label_uuid, number, failure)
    return tuple(found.values())


# -- nodes ----------------------------------------------------------------------------------------------------


def _makers(node: NodeRow) -> tuple[NodeRef, ...]:
    """The process that made a node, and its callers; for a process its callers."""
    chain: list[NodeRef] = []
    links = CALLS if node.is_process else (LinkType.CREATE,)
    steps = neighbours([node.pk], links, direction="backward")
    while steps:
        _, label, found = steps[0]
        chain.append(NodeRef(found.pk, found.uuid, found.ref.kind, found.label if links == CALLS else label))
        links = CALLS
        steps = neighbours([found.pk], CALLS, direction="backward")
    return tuple(chain)


def _named(steps: Iterable[tuple[int, str, NodeRow]]) -> tuple[NodeRef, ...]:
    """Each node once, with the label of its link."""
    found = {node.pk: NodeRef(node.pk, node.uuid, node.ref.kind, label) for _, label, node in reversed(list(steps))}
    return tuple(found[pk] for pk in sorted(found))


def _results(processes: Collection[NodeRef]) -> list[tuple[int, str, NodeRow]]:
    steps = neighbours([process.pk for process in processes], _OUTPUTS, direction="forward")
    return [step for step in steps if step[2].role in ("dataset", "potential")]


def _counts(reach: Reach, without: NodeRow) -> dict[str, int]:
    tally = Counter({without.role: -1})
    for (node_type, process_type), count in reach.counts.items():
        tally[role_of(node_type, process_type)] += count
    return {role: tally[role] for role in _COUNTED if tally[role] > 0}


def _details(row: NodeRow, node: orm.Node) -> dict[str, Any]:
    names = _PROCESS_DETAILS if row.is_process else _DETAILS.get(row.role, ())
    return {name: node.base.attributes.get(name, None) for name in names}
