"""A small active learning of EMT copper, the events of its run, and what kills its worker or jobs at one of them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm
from aiida.common.links import LinkType
from ase.build import bulk
from emt_frames import emt_frames

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.protocols.explore import resolved_spec
from aiida_mlip.workchains.label_inputs import settings_hashes

LEVEL = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
TRAIN = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "batch_size": 2,
    "optimizer": {"warmup_epochs": 1},
    "split": {"test": 0.2, "val": 0.2},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
}
HEATING = {
    "kind": "md",
    "record_every": 20,
    "selected_every": 5,
    "md": {"timestep_fs": 4, "schedule": [{"n_steps": 200, "temperature_k": 300, "end_temperature_k": 1500}]},
    "watch": {"every": 5, "novelty_stop": 4.0, "error_select": None, "error_stop": None},
}
FRAGMENT = {"core_radius_ang": 2.6, "buffer_ang": 2.4, "max_atoms": 120, "min_distance_ang": 1.5}
#: Seconds between two looks at a run, and after which a wait for an event gives up.
LOOK_S, PATIENCE_S = 0.03, 900.0


def campaign(
    codes: Mapping[str, orm.AbstractCode],
    *,
    rounds: int = 2,
    committee: int = 2,
    epochs: int = 6,
    fragments: bool = False,
    reuse: bool = True,
) -> dict[str, Any]:
    """Inputs of an active learning: twenty labelled frames of four atoms, heated from 300 to 1500 K."""
    cells = bulk("Cu", cubic=True) * ((4, 4, 4) if fragments else (2, 1, 1))
    settings: dict[str, Any] = {"protocol": "fast", "max_rounds": rounds, "labels_per_round": 4}
    hosts = {}
    if fragments:
        settings |= {"mode": "fragments", "fragment": FRAGMENT}
        hosts = {"hosts": {"copper": orm.StructureData(ase=bulk("Cu", cubic=True))}}
    training = {**TRAIN, "committee": committee, "max_epochs": epochs}
    return {
        "dataset": DatasetData.from_frames(emt_frames(20), settings=settings_hashes(LEVEL)),
        "settings": orm.Dict(settings),
        "explorations": {
            "heating": {
                "structures": DatasetData.from_frames(from_ase([cells])),
                "spec": orm.Dict(resolved_spec(HEATING, protocol="fast")),
            }
        },
        "codes": {"explore": codes["explore"]},
        "train": {
            "settings": orm.Dict(training),
            "codes": {"train": codes["train"], "evaluate": codes["evaluate"]},
        },
        "label": {"fidelities": orm.Dict(LEVEL), "codes": {"ase": codes["ase"]}, "reuse": orm.Bool(reuse)},
        **hosts,
    }


# -- what happens in a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that a run comes by.

    :param path: link labels of the calls that lead to the process.
    :param what: ``created``; for a job also ``file`` (it has written one) and its states; ``finished``.
    :param name: of the file.
    """

    path: tuple[str, ...]
    what: str
    name: str = ""

    def __str__(self) -> str:
        return f"{'/'.join(self.path)}: {self.what} {self.name}".strip()


def calls(root: orm.ProcessNode) -> Iterator[tuple[tuple[str, ...], orm.ProcessNode]]:
    """All processes below one, with the link labels that lead to them, in the order in which they were made."""
    kinds = (LinkType.CALL_CALC, LinkType.CALL_WORK)
    found: list[tuple[tuple[str, ...], orm.ProcessNode]] = []
    todo: list[tuple[tuple[str, ...], orm.ProcessNode]] = [((), root)]
    while todo:
        path, node = todo.pop()
        for link in node.base.links.get_outgoing(link_type=kinds):
            found.append(((*path, link.link_label), link.node))
            todo.append(found[-1])
    return iter(sorted(found, key=lambda entry: entry[1].pk))


def jobs(root: orm.ProcessNode) -> list[tuple[tuple[str, ...], orm.CalcJobNode]]:
    """All jobs below a process."""
    return [(path, node) for path, node in calls(root) if isinstance(node, orm.CalcJobNode)]


def events(root: orm.ProcessNode) -> list[Event]:
    """What a finished run came by: its processes begin and end, its jobs pass through their states and write files."""
    found = []
    for path, node in calls(root):
        found += [Event(path, "created"), Event(path, "finished")]
        if isinstance(node, orm.CalcJobNode):
            found += [Event(path, state) for state in ("uploading", "submitting", "withscheduler", "parsing")]
            found += [Event(path, "file", name) for name in _written(node)]
    return found


def _written(job: orm.CalcJobNode) -> list[str]:
    """Files that a job has written in its folder, not those it was given."""
    folder = Path(job.get_remote_workdir())
    if not folder.exists():
        return []  # a workchain has cleaned it
    began = (folder / "_aiidasubmit.sh").stat().st_mtime
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_mtime > began and not path.name.endswith((".part", ".pyc"))
    )


def wait_for(root: orm.ProcessNode, event: Event) -> orm.ProcessNode | None:
    """Wait until a run comes by an event, or is past it.

    :returns: the process; None if the run ended first.
    :raises TimeoutError: nothing happened for a long time.
    """
    end = time.monotonic() + PATIENCE_S
    node: orm.ProcessNode | None = None
    while time.monotonic() < end:
        ended = root.is_terminated
        node = node or _follow(root, event.path)
        if node is not None and _has_come(node, event):
            return node
        if ended:
            return None
        time.sleep(LOOK_S)
    raise TimeoutError(f"{event} did not happen within {PATIENCE_S} s")


def _follow(root: orm.ProcessNode, path: tuple[str, ...]) -> orm.ProcessNode | None:
    node: orm.ProcessNode = root
    for label in path:
        links = node.base.links.get_outgoing(
            link_type=(LinkType.CALL_CALC, LinkType.CALL_WORK), link_label_filter=label
        ).all()
        if not links:
            return None
        node = max((link.node for link in links), key=lambda child: child.pk)
    return node


_STATES = ("uploading", "unstashing", "submitting", "withscheduler", "stashing", "retrieving", "parsing")


def _has_come(node: orm.ProcessNode, event: Event) -> bool:
    if event.what == "created" or node.is_terminated:
        return True
    if event.what == "finished":
        return False
    if event.what == "file":
        folder = node.get_remote_workdir()
        return folder is not None and (Path(folder) / event.name).exists()
    state = node.get_state()
    return state is not None and _STATES.index(state.value) >= _STATES.index(event.what)


# -- killing ---------------------------------------------------------------------------------------------------------


def programs_in(folder: str) -> list[tuple[int, str]]:
    """Processes that run in a folder: pid and name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str((entry / "cwd").readlink()) == folder:
                found.append((int(entry.name), (entry / "comm").read_text().strip()))
        except OSError:
            continue
    return found


def kill_job(job: orm.CalcJobNode, *, whole: bool) -> list[str]:
    """SIGKILL what runs in the folder of a job: its program, or the script as well (as a node that fails does).

    :returns: names of what was killed; empty when the job had ended before.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not job.is_terminated:
        folder = job.get_remote_workdir()
        running = [] if folder is None else programs_in(folder)
        chosen = [(pid, name) for pid, name in running if whole or name != "bash"]
        if any(name != "bash" for _, name in running):
            for pid, _ in sorted(chosen):  # the script first, so that it does not see its program die
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            return [name for _, name in chosen]
        if (state := job.get_state()) is not None and state.value in _STATES[4:]:
            return []
        time.sleep(LOOK_S)
    return []


def workers(client: Any) -> list[int]:
    """Pids of the workers of the daemon."""
    return [int(pid) for pid in client.get_worker_info(timeout=60).get("info", {})]


def kill_workers(pids: Iterable[int]) -> None:
    """SIGKILL the workers of the daemon, found beforehand so that none is lost; its supervisor starts others."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


# -- what came out -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What is left of a run.

    :param status: exit status.
    :param frame_ids: of the final dataset, in order.
    :param times_labelled: by frame id, labels that were made successfully.
    :param jobs: by program, jobs that ran.
    :param twice: workchains and jobs that were begun more than once; those that never got to run do not count.
    :param unfinished: processes that never ended.
    """

    status: int | None
    frame_ids: tuple[str, ...]
    times_labelled: dict[str, int]
    jobs: dict[str, int]
    twice: tuple[str, ...]
    unfinished: tuple[str, ...]


def outcome(root: orm.ProcessNode) -> Outcome:
    """Look at a run that has ended."""
    called = list(calls(root))
    labelled: Counter[str] = Counter()
    for _, node in called:
        if node.process_class is AseLabelCalculation and "dataset" in node.outputs:
            frames = node.outputs.dataset.frames()
            labelled.update(np.array(frames.ids())[frames.labelled].tolist())
    begun = [path for path, node in called if not isinstance(node, orm.CalcFunctionNode) and not node.is_excepted]
    paths = Counter("/".join(path) for path in begun)
    return Outcome(
        status=root.exit_status,
        frame_ids=tuple(root.outputs.dataset.frames().ids()) if "dataset" in root.outputs else (),
        times_labelled=dict(labelled),
        jobs=dict(Counter(node.process_label for _, node in called if isinstance(node, orm.CalcJobNode))),
        twice=tuple(path for path, count in paths.items() if count > 1),
        unfinished=tuple("/".join(path) for path, node in called if not node.is_terminated),
    )
