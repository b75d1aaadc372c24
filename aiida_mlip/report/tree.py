"""The processes below a process, with what they made: read by a few queries, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.report.content import NodeReference

_CALLS: Final[dict[str, Any]] = {"type": {"in": [LinkType.CALL_CALC.value, LinkType.CALL_WORK.value]}}
_OUTPUTS: Final[dict[str, Any]] = {"type": {"in": [LinkType.CREATE.value, LinkType.RETURN.value]}}
_INPUTS: Final[dict[str, Any]] = {"type": {"in": [LinkType.INPUT_CALC.value, LinkType.INPUT_WORK.value]}}
_PROCESS: Final[tuple[str, ...]] = (
    "id",
    "uuid",
    "process_type",
    "node_type",
    "ctime",
    "mtime",
    "attributes.process_label",
    "attributes.process_state",
    "attributes.exit_status",
    "attributes.exit_message",
    "attributes.exception",
    "attributes.version",
    "attributes.resources",
)
#: Ids in one query: SQLite takes 250,000 variables, other databases fewer.
_MOST_IDS: Final[int] = 5000
_ENDED: Final[tuple[str, ...]] = ("finished", "excepted", "killed")


@dataclass(frozen=True)
class Process:
    """A process of the tree.

    :param name: label of the call that started it, as the workchain gave it.
    :param kind: name of its class or function.
    :param version: of aiida-core (``core``) and of the package that owns it (``plugin``).
    :param cores: processors its job asked for; 1 where it is no job.
    """

    pk: int
    uuid: str
    name: str
    kind: str
    process_type: str
    is_job: bool
    state: str
    exit_status: int | None
    message: str
    started: datetime
    changed: datetime
    parent: int | None
    version: Mapping[str, Any] = field(default_factory=dict)
    cores: int = 1

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in _ENDED

    @property
    def went_wrong(self) -> bool:
        """Whether it failed, excepted, or was killed; 5xx, a target not met, is a finding."""
        if not self.has_ended:
            return False
        return self.state != "finished" or not (self.exit_status == 0 or 500 <= (self.exit_status or -1) < 600)

    @property
    def seconds(self) -> float:
        """From its start to its end, or to now."""
        end = self.changed if self.has_ended else datetime.now(tz=UTC)
        return max(0.0, (end - self.started).total_seconds())

    @property
    def outcome(self) -> str:
        """State, and exit status where it matters."""
        if self.state != "finished":
            return self.state
        return "finished" if self.exit_status == 0 else f"finished [{self.exit_status}]"


class ProcessTree:
    """A process, all it called, and what they returned.

    :param root: the process asked about.
    """

    def __init__(self, root: orm.ProcessNode) -> None:
        self.root_node = root
        self.processes: dict[int, Process] = {}
        self.children: dict[int, list[Process]] = {}
        self._load(root.pk)
        self._outputs = self._links(_OUTPUTS, list(self.processes))
        self._inputs: dict[int, dict[str, str]] = {}

    @property
    def root(self) -> Process:
        """The process asked about."""
        return self.processes[self.root_node.pk]

    def _load(self, pk: int) -> None:
        rows = orm.QueryBuilder().append(orm.ProcessNode, filters={"id": pk}, project=list(_PROCESS)).all()
        self.processes[pk] = _process(rows[0], "", None)
        level = [pk]
        while level:
            found: list[Process] = []
            for ids in _portions(level):
                query = orm.QueryBuilder()
                query.append(orm.ProcessNode, filters={"id": {"in": ids}}, tag="caller", project=["id"])
                query.append(
                    orm.ProcessNode,
                    with_incoming="caller",
                    edge_filters=_CALLS,
                    edge_project=["label"],
                    project=list(_PROCESS),
                )
                for parent, *row, label in query.all():
                    found.append(_process(row, label, parent))
            for one in sorted(found, key=lambda process: process.pk):
                self.processes[one.pk] = one
                self.children.setdefault(one.parent or 0, []).append(one)
            level = [one.pk for one in found]

    def _links(self, kinds: dict[str, Any], pks: list[int]) -> dict[int, dict[str, str]]:
        """Pk of each process -> label of the link -> uuid of the data."""
        found: dict[int, dict[str, str]] = {}
        incoming = kinds is _OUTPUTS
        for ids in _portions(pks):
            query = orm.QueryBuilder()
            query.append(orm.ProcessNode, filters={"id": {"in": ids}}, tag="process", project=["id"])
            relation = {"with_incoming" if incoming else "with_outgoing": "process"}
            query.append(orm.Data, **relation, edge_filters=kinds, edge_project=["label"], project=["uuid"])
            for pk, uuid, label in query.all():
                found.setdefault(pk, {})[label] = uuid
        return found

    # -- looking -----------------------------------------------------------------------------------------------

    def find(self, *kinds: str, below: Process | None = None) -> list[Process]:
        """Processes of these classes or functions, in order of their start."""
        inside = self.processes.values() if below is None else list(self.below(below))
        return sorted((one for one in inside if one.kind in kinds), key=lambda one: one.pk)

    def below(self, process: Process) -> Iterator[Process]:
        """The process itself and all it called."""
        yield process
        for child in self.children.get(process.pk, []):
            yield from self.below(child)

    def caller(self, process: Process) -> Process | None:
        """Who called it, inside the tree."""
        return self.processes.get(process.parent) if process.parent is not None else None

    def stage(self, process: Process) -> Process:
        """The direct call of the root that it belongs to."""
        while (caller := self.caller(process)) is not None and caller.pk != self.root.pk:
            process = caller
        return process

    def outputs(self, process: Process) -> dict[str, str]:
        """Uuid of each output by its link label; of a namespace ``potentials__member_0``."""
        return self._outputs.get(process.pk, {})

    def output(self, process: Process, name: str) -> Any:  # Any: a Data node, or None
        """Output of this name, loaded; None where there is none."""
        uuid = self.outputs(process).get(name)
        return None if uuid is None else orm.load_node(uuid)

    def namespace(self, process: Process, name: str) -> dict[str, Any]:  # Any: Data nodes
        """Outputs of a namespace, loaded, by name."""
        prefix = f"{name}__"
        return {
            label.removeprefix(prefix): orm.load_node(uuid)
            for label, uuid in sorted(self.outputs(process).items())
            if label.startswith(prefix)
        }

    def inputs(self, process: Process) -> dict[str, str]:
        """Uuid of each input by its link label."""
        if process.pk not in self._inputs:
            self._inputs[process.pk] = self._links(_INPUTS, [process.pk]).get(process.pk, {})
        return self._inputs[process.pk]

    def input(self, process: Process, name: str) -> Any:  # Any: a Data node, or None
        """Input of this name, loaded; None where there is none."""
        uuid = self.inputs(process).get(name)
        return None if uuid is None else orm.load_node(uuid)


def step_name(tree: ProcessTree, process: Process) -> str:
    """Name of a call, with that of the stage it belongs to."""
    stage = tree.stage(process)
    return process.name if stage.pk in (process.pk, tree.root.pk) else f"{stage.name}: {process.name}"


def node_references(uuids: Iterable[str]) -> dict[str, NodeReference]:
    """What these uuids stand for, in their order."""
    wanted = list(dict.fromkeys(uuids))
    found: dict[str, NodeReference] = {}
    fields = ["uuid", "id", "node_type", "label", "ctime", "attributes.process_label"]
    for part in _portions(wanted):
        for uuid, pk, kind, label, made, process in (
            orm.QueryBuilder().append(orm.Node, filters={"uuid": {"in": part}}, project=fields).all()
        ):
            found[uuid] = NodeReference(uuid, pk, process or kind.rstrip(".").rpartition(".")[2], label, made)
        query = orm.QueryBuilder()
        query.append(orm.Data, filters={"uuid": {"in": part}}, project=["uuid"], tag="data")
        query.append(
            orm.CalculationNode,
            with_outgoing="data",
            edge_filters={"type": LinkType.CREATE.value},
            edge_project=["label"],
            project=["id", "attributes.process_label"],
        )
        for uuid, pk, process, output in query.all():
            node = found[uuid]
            maker = f"{output} of {process} {pk}"
            found[uuid] = NodeReference(uuid, node.pk, node.kind, node.label, node.made, maker)
    return {uuid: found[uuid] for uuid in wanted if uuid in found}


def _portions(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + _MOST_IDS] for start in range(0, len(values), _MOST_IDS))


def _process(row: Any, label: str, parent: int | None) -> Process:
    pk, uuid, process_type, node_type, started, changed, kind, state, status, message, exception, version, resources = (
        row
    )
    asked = resources or {}
    cores = asked.get("tot_num_mpiprocs") or asked.get("num_machines", 1) * asked.get("num_mpiprocs_per_machine", 1)
    return Process(
        pk=pk,
        uuid=uuid,
        name=label if label and label != "CALL" else kind or "process",
        kind=kind or "",
        process_type=process_type or "",
        is_job="calcjob" in node_type,
        state=state or "created",
        exit_status=status,
        message=message or exception or "",
        started=started,
        changed=changed,
        parent=parent,
        version=version or {},
        cores=int(cores) * int(asked.get("num_cores_per_mpiproc") or 1),
    )
