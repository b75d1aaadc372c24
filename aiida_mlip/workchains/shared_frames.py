"""Campaigns that want the same frames at the same time: a frame is left to whoever began it first.

What was labelled before is found when a campaign plans. What another one begins between that and the moment at which
this one comes to the frame is found here, by the description that every label process carries.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm

from aiida_mlip.calculations.functions.label import unlabelled_part
from aiida_mlip.data.reuse import SETTINGS
from aiida_mlip.data.task_queue import queued_processes, silent_processes
from aiida_mlip.kernel.frames import id_hex
from aiida_mlip.workchains.early_resume import EarlyResumeWorkChain


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Only one workchain of a profile, on this machine, looks who computes a frame and begins with it."""
    from aiida.manage import get_config, get_manager

    profile = get_manager().get_profile()
    path = Path(get_config().dirpath) / f"labels-{profile.name}.lock"
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class SharedFramesWorkChain(EarlyResumeWorkChain):
    """WorkChain that leaves frames which another campaign is computing to that one, and takes its labels.

    Of its ctx it uses ``batches``, ``again``, ``open`` and ``earlier`` of the labelling, and its own: ``hashes`` (of
    all its settings), ``others`` (pk -> settings hash of label processes that others began), ``parked`` ([batch, index,
    pk awaited]), ``taken`` ("<settings> <frame id>" -> pk of a process of others whose label is taken) and ``seen``
    (the last pk that was looked at).
    """

    def begin_sharing(self) -> None:
        """Begin with nothing in work, and nobody else known."""
        self.ctx.batches = {}  # number -> uuid, frames (uuid), job, prepared, found, ... of those in work
        self.ctx.again = []  # [batch, place] of tasks that come before those of the plan
        self.ctx.open = {}  # "<batch>_<place>" -> pk of the running process
        self.ctx.hashes, self.ctx.others, self.ctx.parked, self.ctx.taken, self.ctx.seen = [], {}, [], {}, 0

    def _notice_others(self) -> None:
        """Take note of label processes that others have begun since the last look; at the first, of those alive."""
        descriptions = [SETTINGS + value for value in self.ctx.hashes]
        filters: dict[str, Any] = {"description": {"in": descriptions}, "id": {">": self.ctx.seen}}
        if self.ctx.seen == 0:
            filters["attributes.process_state"] = {"in": ["created", "waiting", "running"]}
        query = orm.QueryBuilder().append(orm.ProcessNode, filters=filters, project=["id", "description"])
        last = orm.QueryBuilder().append(orm.ProcessNode, project="id").order_by({orm.ProcessNode: {"id": "desc"}})
        self.ctx.seen = last.limit(1).all(flat=True)[0]
        rows = query.all()
        mine = {pk for entry in self.ctx.batches.values() for pk in entry["found"].values()} if rows else set()
        for pk, description in rows:
            if pk in mine or pk in self.ctx.open.values():
                continue
            caller = orm.load_node(pk).caller
            if caller is None or caller.pk != self.node.pk:
                self.ctx.others[str(pk)] = description.removeprefix(SETTINGS)

    def _fate(self, batch: int, index: int) -> str:
        """What is to become of a task: ``start``, ``wait`` for another campaign, or some of it is ``labelled`` by now.

        Between this and the submission no calculation may run: another workchain of this worker would get its turn.
        """
        entry = self.ctx.batches[str(batch)]
        content = orm.load_node(entry["uuid"]).get_dict()
        self._notice_others()
        wanted = set(self._frame_ids(entry, content) if entry["job"] else [content["frame_ids"][index]])
        labelled = False
        for pk, settings in list(self.ctx.others.items()):
            other = orm.load_node(int(pk))
            if settings != content["settings"] or not (shared := wanted & set(_frames_of(other))):
                continue
            if not other.is_terminated:
                if self._is_alive_elsewhere(other.pk):
                    self.ctx.parked.append([batch, index, other.pk])
                    self.report(f"frames of batch {batch} are computed by {other.process_label}<{pk}>: waiting for it")
                    return "wait"
            elif isinstance(other, orm.CalcJobNode):
                labelled |= self._takes_labels(other, shared)
            elif other.is_finished_ok:
                self.ctx.taken[f"{settings} {min(shared)}"] = other.pk
                labelled |= entry["job"] is not None
        return "labelled" if labelled else "start"

    def _takes_labels(self, job: orm.CalcJobNode, wanted: set[str]) -> bool:
        """Note the dataset of a job of others, if it has labels that are wanted."""
        if "dataset" not in job.outputs:
            return False
        frames = job.outputs.dataset.frames()
        if not wanted & {name for name, good in zip(frames.ids(), frames.labelled, strict=True) if good}:
            return False
        if job.outputs.dataset.uuid not in self.ctx.earlier:
            self.ctx.earlier.append(job.outputs.dataset.uuid)
        return True

    def _take_out(self, batch: int, index: int) -> None:
        """Take what others have labelled out of a batch; what is left is the next task in the queue."""
        entry = self.ctx.batches[str(batch)]
        if not entry["job"]:
            entry["n"] -= 1
            return
        node, frames = orm.load_node(entry["uuid"]), orm.load_node(entry["frames"])
        sources = {f"earlier_{i:03d}": orm.load_node(uuid) for i, uuid in enumerate(self.ctx.earlier)}
        if sources:
            label = f"unlabelled_part_{batch:04d}_{index:04d}_{len(sources):03d}"
            left, made = unlabelled_part.run_get_node(frames, node, metadata={"call_link_label": label}, **sources)
            if not made.is_finished_ok:
                entry["n"] -= 1
                return
            node = left["batch"]
        alone, *rest = self._divided(node)
        if alone != node:
            self._add(alone)
            if not rest:
                entry["n"] -= 1
                return
            node = rest[0]
        entry["uuid"] = node.uuid
        self.ctx.again.insert(0, [batch, index])

    def _divided(self, node: orm.Dict) -> list[orm.Dict]:
        raise NotImplementedError

    def _add(self, node: orm.Dict) -> None:
        raise NotImplementedError

    @staticmethod
    def _frame_ids(entry: dict[str, Any], content: dict[str, Any]) -> list[str]:
        if "frame_ids" in content:
            return list(content["frame_ids"])
        ids = orm.load_node(entry["frames"]).column("frame_id")
        return id_hex(ids[np.array(content["rows"], dtype=int)])

    def _is_alive_elsewhere(self, pk: int) -> bool:
        """Whether somebody runs a process, or will: one that nobody runs is not waited for."""
        if self.runner.is_daemon_runner and pk in (queued_processes() or set()):
            return True
        return not silent_processes([pk])

    def _await_others(self) -> None:
        for pk in {pk for _, _, pk in self.ctx.parked}:
            self.to_context(**{f"children.other_{pk}": orm.load_node(pk)})

    def _others_ended(self) -> None:
        """Put back into the queue what waited for a process that has ended."""
        for place in list(self.ctx.parked):
            batch, index, pk = place
            if orm.load_node(pk).is_terminated:
                self.ctx.parked.remove(place)
                self.ctx.again.insert(0, [batch, index])
                if "children" in self.ctx:
                    self.ctx.children.pop(f"other_{pk}", None)


def _frames_of(process: orm.ProcessNode) -> list[str]:
    """Frame ids that a label process works on."""
    if not isinstance(process, orm.CalcJobNode):
        return [process.label.rpartition(":")[2]]
    if "batch" not in process.inputs or "dataset" not in process.inputs:
        return []
    ids = process.inputs.dataset.column("frame_id")
    return id_hex(ids[np.array(process.inputs.batch["rows"], dtype=int)])
