"""Progress of a running workchain: what is running, done and failed, and when it is expected to end.

Works the same for a process run here (:func:`run_with_progress`), one run by the daemon (:func:`watch`), and one that
ended long ago (:func:`snapshot`). Everything shown is read from the process nodes.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from aiida import orm
from aiida.common.links import LinkType
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from aiida_mlip.data.extras import EXPECTED_CALLS, WORK_DONE
from aiida_mlip.errors import FileFormatError, InvalidInputError, MlipError
from aiida_mlip.io.pw_bundle import DONE_FOLDER, INPUTS_FOLDER, WORK_FOLDER

#: Digits of a number of epochs.
_MOST_DIGITS: Final[int] = 9

_TERMINATED = ("finished", "excepted", "killed")
_REFRESH_SECONDS = 1.0
_LINE_SECONDS = 15.0
#: Names that AiiDA gives its log handlers that write to the terminal.
_TERMINAL_HANDLERS = ("cli", "console")


@dataclass(frozen=True)
class Stage:
    """One stage of a workchain: a direct child and the processes it called.

    :param total: calls it is going to make (at least those made so far).
    :param detail: what a single long job is doing, e.g. the epoch of a training.
    :param expected_end: by the rate so far; none before the first call ended.
    """

    name: str
    pk: int
    state: str
    exit_status: int | None
    running: int
    done: int
    failed: int
    total: int
    started: datetime
    seconds: float
    detail: str = ""
    expected_end: datetime | None = None


@dataclass(frozen=True)
class Snapshot:
    """State of a workchain and of its stages."""

    pk: int
    state: str
    exit_status: int | None
    exit_message: str | None
    seconds: float
    stages: tuple[Stage, ...]

    @property
    def is_terminated(self) -> bool:
        """Whether the workchain has ended, well or badly."""
        return self.state in _TERMINATED


def snapshot(pk: int) -> Snapshot:
    """State of the workchain with this pk, by three queries (independent of the number of its calls)."""
    root = _process(pk)
    stages = _children([pk]).get(pk, [])
    calls = _children([stage["id"] for stage in stages])
    return Snapshot(
        pk=pk,
        state=root["state"],
        exit_status=root["exit_status"],
        exit_message=root["exit_message"],
        seconds=_seconds(root),
        stages=tuple(_stage(stage, calls.get(stage["id"], [])) for stage in stages if not _is_function(stage)),
    )


def render(state: Snapshot) -> Group:
    """The state as a table."""
    table = Table(title=f"process {state.pk}: {_outcome(state.state, state.exit_status)}", title_justify="left")
    for column in ("stage", "pk", "state", "done", "running", "failed", "time", "expected end"):
        table.add_column(column, justify="left" if column in ("stage", "state") else "right")
    for stage in state.stages:
        end = stage.expected_end.astimezone().strftime("%H:%M:%S") if stage.expected_end else ""
        table.add_row(
            stage.name,
            str(stage.pk),
            stage.detail if stage.detail else _outcome(stage.state, stage.exit_status),
            f"{stage.done}/{stage.total}" if stage.total else "",
            str(stage.running or ""),
            str(stage.failed or ""),
            str(timedelta(seconds=int(stage.seconds))),
            "" if stage.state in _TERMINATED else end,
        )
    return Group(table)


def line(state: Snapshot) -> str:
    """The state as one line, for a log file."""
    parts = []
    for stage in state.stages:
        text = f"{stage.name} {stage.done}/{stage.total}" if stage.total else f"{stage.name} {stage.state}"
        if stage.failed:
            text += f" ({stage.failed} failed)"
        if stage.state not in _TERMINATED:
            text += f", {stage.detail}" if stage.detail else f", {stage.running} running" if stage.running else ""
            if stage.expected_end:
                text += f", expected end {stage.expected_end.astimezone():%H:%M:%S}"
        parts.append(text)
    return f"[{timedelta(seconds=int(state.seconds))}] " + ("; ".join(parts) or state.state)


def watch(pk: int, *, console: Console | None = None, poll_seconds: float = _REFRESH_SECONDS) -> Snapshot:
    """Show the progress of a process run by the daemon until it ends; interrupting this leaves the process alone."""
    with _display(console or Console()) as show:
        while not (state := snapshot(pk)).is_terminated:
            show(state)
            time.sleep(poll_seconds)
        show(state, final=True)
    return state


def run_with_progress(
    process: Any, *, console: Console | None = None
) -> tuple[dict[str, Any], orm.ProcessNode]:  # Any: a builder
    """Run a builder in this process, showing its progress; returns outputs and process node.

    :raises MlipError: interrupted from the keyboard.
    """
    from aiida.manage import get_manager

    # like `aiida.engine.run`: a runner of its own without communicator, so that no broker has to be up
    runner = get_manager().create_runner(communicator=None)
    with _display(console or Console()) as show, _quiet_reports():
        inputs = dict(process._inputs(prune=True))
        instance = runner.instantiate_process(process.process_class, **inputs)
        pk = instance.node.pk

        def refresh() -> None:
            show(snapshot(pk))
            if not instance.has_terminated():
                runner.loop.call_later(_REFRESH_SECONDS, refresh)

        runner.loop.call_later(_REFRESH_SECONDS, refresh)
        try:
            results, node = runner.run_get_node(instance)
        except Exception as error:
            if not instance.killed():
                raise
            raise MlipError(
                f"interrupted: process {pk} and what it was running were killed; what had ended stays in the profile "
                f"(`verdi process show {pk}`). --submit hands a job to the daemon, which goes on by itself"
            ) from error
        show(snapshot(pk), final=True)
    return results, node


def submit_to_daemon(process: Any) -> orm.ProcessNode:  # Any: a builder
    """Hand a builder to the daemon.

    :raises InvalidInputError: inputs that a port refuses, or no daemon that runs.
    """
    from aiida.common.exceptions import InvalidOperation
    from aiida.engine import submit

    try:
        return submit(process)
    except InvalidOperation as error:
        raise InvalidInputError(
            f"nothing was submitted, start the daemon first: verdi daemon start ({error})"
        ) from error
    except ValueError as error:  # a port's validator
        raise InvalidInputError(str(error)) from error


# -- reading nodes ------------------------------------------------------------------------------------------------

_PROJECT = {
    "id": "id",
    "state": "attributes.process_state",
    "exit_status": "attributes.exit_status",
    "exit_message": "attributes.exit_message",
    "process_label": "attributes.process_label",
    "workdir": "attributes.remote_workdir",
    "node_type": "node_type",
    "ctime": "ctime",
    "mtime": "mtime",
    "extras": "extras",
}


def _process(pk: int) -> dict[str, Any]:
    query = orm.QueryBuilder().append(orm.ProcessNode, filters={"id": pk}, project=list(_PROJECT.values()))
    rows = query.all()
    if not rows:
        raise InvalidInputError(f"there is no process with pk {pk} in this profile")
    return dict(zip(_PROJECT, rows[0], strict=True))


def _children(parents: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Processes called by each of these, in order of creation."""
    if not parents:
        return {}
    query = orm.QueryBuilder()
    query.append(orm.ProcessNode, filters={"id": {"in": parents}}, tag="parent", project=["id"])
    query.append(
        orm.ProcessNode,
        with_incoming="parent",
        edge_filters={"type": {"in": [LinkType.CALL_CALC.value, LinkType.CALL_WORK.value]}},
        edge_project=["label"],
        project=list(_PROJECT.values()),
        tag="child",
    )
    query.order_by({"child": "id"})
    found: dict[int, list[dict[str, Any]]] = {}
    for parent, *values, label in query.all():
        found.setdefault(parent, []).append({**dict(zip(_PROJECT, values, strict=True)), "link_label": label})
    return found


def _is_function(process: dict[str, Any]) -> bool:
    return "function." in process["node_type"]


def _stage(stage: dict[str, Any], calls: list[dict[str, Any]]) -> Stage:
    jobs = [call for call in calls if not _is_function(call)]
    ended = [call for call in jobs if call["state"] in _TERMINATED]
    done = [call for call in ended if _did_its_work(call["exit_status"])]
    running = [call for call in jobs if call["state"] not in _TERMINATED]
    extras = stage["extras"] or {}
    total = max(len(jobs), int(extras.get(EXPECTED_CALLS, 0)))
    seconds = _seconds(stage)
    done_part = extras.get(WORK_DONE)
    detail, fraction = "", len(ended) / total if total else 0.0
    if isinstance(done_part, float) and ended:
        fraction = done_part  # the longest are begun first: their number says too little
    if stage["state"] not in _TERMINATED and len(running) >= 1:
        below = [call for calls in _children([job["id"] for job in running]).values() for call in calls]
        here = [job for job in (*running, *below) if job["workdir"] and Path(job["workdir"]).is_dir()]
        detail, part = _bundle_detail(here)
        if not ended and total <= len(running):
            detail, fraction = (detail, part) if detail else _training_detail(here)
    end = None
    if 0 < fraction < 1 and stage["state"] not in _TERMINATED:
        end = datetime.now(tz=UTC) + timedelta(seconds=seconds * (1 - fraction) / fraction)
    return Stage(
        name=_name(stage),
        pk=stage["id"],
        state=stage["state"],
        exit_status=stage["exit_status"],
        running=len(running),
        done=len(done),
        failed=len(ended) - len(done),
        total=total,
        started=stage["ctime"],
        seconds=seconds,
        detail=detail,
        expected_end=end,
    )


def _name(process: dict[str, Any]) -> str:
    label = process["link_label"]
    return process["process_label"] if label in ("CALL", None) else label


def _seconds(process: dict[str, Any]) -> float:
    end = process["mtime"] if process["state"] in _TERMINATED else datetime.now(tz=UTC)
    return max(0.0, (end - process["ctime"]).total_seconds())


def _bundle_detail(jobs: list[dict[str, Any]]) -> tuple[str, float]:
    """Frames that running bundles of labels have done, and their part; of jobs with a folder on this machine."""
    done = total = 0
    for job in jobs:
        if job["state"] in _TERMINATED or not (folder := Path(job["workdir"]) / DONE_FOLDER).is_dir():
            continue
        ended = {path.name.removesuffix(".tar.gz") for path in folder.glob("*.tar.gz")}
        begun = {path.name for path in folder.with_name(WORK_FOLDER).glob("*")}
        left = {path.stem for path in folder.with_name(INPUTS_FOLDER).glob("*.in")}  # all of them, once begun again
        done, total = done + len(ended), total + len(ended | begun | left)
    return (f"{done} of {total} frames of running bundles", done / total) if total else ("", 0.0)


def _training_detail(jobs: list[dict[str, Any]]) -> tuple[str, float]:
    """Epoch and fraction of the trainings among these jobs, which have a folder on this machine."""
    epochs, maxima = [], []
    for folder in (Path(job["workdir"]) for job in jobs):
        for path in folder.rglob("metrics.csv"):
            epochs.append(_last_epoch(path))
            maxima.append(_max_epochs(folder))
    if not epochs or not max(maxima):
        return "", 0.0
    epoch = min(epochs)
    return f"epoch {epoch} of at most {max(maxima)}", min(1.0, epoch / max(maxima))


def _last_epoch(path: Path) -> int:
    """Epochs done by a table of metrics that may be half written; 0 where it says none."""
    epoch = 0
    try:
        with path.open(newline="", errors="replace") as handle:
            for row in csv.DictReader(handle):
                text = row.get("epoch") or ""
                if text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS:
                    epoch = int(text) + 1
    except (OSError, csv.Error):
        return epoch
    return epoch


def _max_epochs(folder: Path) -> int:
    """Epochs that a training may take; 0 where its configuration is not there or not readable."""
    from aiida_mlip.io.documents import load_yaml

    try:
        trainer = load_yaml((folder / "config.yaml").read_bytes(), source="config.yaml")["trainer"]
        epochs = trainer["max_epochs"]
    except (OSError, FileFormatError, KeyError, TypeError, IndexError):
        return 0
    return epochs if isinstance(epochs, int) and 0 <= epochs < 10**_MOST_DIGITS else 0


# -- showing ------------------------------------------------------------------------------------------------------


def _outcome(state: str, exit_status: int | None) -> str:
    if state != "finished":
        return state or "created"
    if exit_status == 0:
        return "finished"
    return f"finished [{exit_status}]" if _did_its_work(exit_status) else f"failed [{exit_status}]"


def _did_its_work(exit_status: int | None) -> bool:
    """Whether a process did what it was asked: well, or with a finding (5xx: stopped by a watch, a target not met)."""
    return exit_status is not None and (exit_status == 0 or 500 <= exit_status < 600)


@contextmanager
def _display(console: Console) -> Iterator[Any]:  # Any: a callable with a keyword argument
    """A function that shows a snapshot: a live table on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:

            def show(state: Snapshot, *, final: bool = False) -> None:  # noqa: ARG001 - one signature for both
                live.update(render(state), refresh=True)

            yield show
        return
    last_time, last_stages = 0.0, ""

    def show_line(state: Snapshot, *, final: bool = False) -> None:
        nonlocal last_time, last_stages
        stages = "".join(f"{stage.name}{stage.state}" for stage in state.stages)
        if final or stages != last_stages or time.monotonic() - last_time > _LINE_SECONDS:
            console.print(line(state), markup=False, highlight=False, soft_wrap=True)
            last_time, last_stages = time.monotonic(), stages

    yield show_line


@contextmanager
def _quiet_reports() -> Iterator[None]:
    """Keep AiiDA's report lines out of the live table; they stay in the node's log (`verdi process report`)."""
    handlers = [item for item in logging.getLogger("aiida").handlers if item.get_name() in _TERMINAL_HANDLERS]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
