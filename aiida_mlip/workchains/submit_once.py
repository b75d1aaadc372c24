"""A workchain that starts each of its children once, also where the worker dies in the step that starts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import ProcessBuilder, ProcessState, WorkChain

from aiida_mlip.data.task_queue import queued_processes

_CALLS = (LinkType.CALL_CALC, LinkType.CALL_WORK)
_INPUTS = (LinkType.INPUT_CALC, LinkType.INPUT_WORK)


class SubmitOnceWorkChain(WorkChain):
    """WorkChain whose :meth:`submit` finds the child again that an interrupted step has already started.

    AiiDA repeats a step that was interrupted from its beginning, and what the step had submitted by then runs twice.
    Here a child with the same ``call_link_label``, class and inputs is the same child, so that every child needs a
    label of its own.
    """

    def submit(self, process: Any, inputs: dict[str, Any] | None = None, **kwargs: Any) -> orm.ProcessNode:
        """Submit a child, or find it where that was done before the worker died."""
        if isinstance(process, ProcessBuilder):
            process_class, given = process.process_class, dict(process._inputs(prune=True))
        else:
            process_class, given = process, {**(inputs or {}), **kwargs}
        label = given.get("metadata", {}).get("call_link_label")
        for child in [] if label is None else self._begun(label, process_class.build_process_type()):
            if _same_inputs(child, given) and self._is_alive(child):
                self.report(f"{child.process_label}<{child.pk}> was started before the interruption, and is kept")
                return child
        return super().submit(process, inputs, **kwargs)

    def _begun(self, label: str, process_type: str) -> list[orm.ProcessNode]:
        links = self.node.base.links.get_outgoing(link_type=_CALLS, link_label_filter=label).all()
        return [link.node for link in links if link.node.process_type == process_type]

    def _is_alive(self, child: orm.ProcessNode) -> bool:
        """Whether a child runs, has run, or will: one that died on its way to the queue is sent there, if it can."""
        if child.is_terminated or child.process_state is not ProcessState.CREATED:
            return True
        if child.checkpoint is None:
            child.set_exception("the worker died before this process was ready to run")
            child.set_process_state(ProcessState.EXCEPTED)
            child.seal()
            return False
        queue = queued_processes()
        if self.runner.is_daemon_runner and queue is not None and child.pk not in queue:
            self.runner.controller.continue_process(child.pk, nowait=False, no_reply=True)
        return True


def _same_inputs(child: orm.ProcessNode, given: Mapping[str, Any]) -> bool:
    """Whether the nodes given are those that a child has, or equal ones that the repeated step has made again."""
    linked = {link.link_label: link.node for link in child.base.links.get_incoming(link_type=_INPUTS)}
    return all(name in linked and _same_content(linked[name], node) for name, node in _nodes(given))


def _nodes(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, orm.Data]]:
    for name, value in given.items():
        if isinstance(value, orm.Data):
            yield prefix + name, value
        elif isinstance(value, Mapping) and name != "metadata":
            yield from _nodes(value, f"{prefix}{name}__")


def _same_content(first: orm.Node, second: orm.Node) -> bool:
    if first.uuid == second.uuid:
        return True
    if type(first) is not type(second) or not second.is_stored:
        return False
    known = first.base.caching.get_hash()
    return known is not None and known == second.base.caching.get_hash()
