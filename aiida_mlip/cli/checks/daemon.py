"""The daemon: is it running, and do its workers listen to the broker.

A broker that was restarted alone is up, the daemon is up, and nothing ever runs: its workers do not subscribe again.
What tells is the number of task subscribers that the broker counts. Where PostgreSQL began again, workers are up, too,
and nothing that they run goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiida_mlip.cli.checks import Finding
from aiida_mlip.cli.checks.processes import CURE, check_processes
from aiida_mlip.cli.checks.storage import server_age_s
from aiida_mlip.data.task_queue import read_tasks, tasks_folder

if TYPE_CHECKING:
    from aiida.brokers import Broker

#: The broker writes its status every 5 s, and a fresh worker needs as long to subscribe.
SETTLING_S = 15.0
#: What to do meanwhile.
REPEAT = f"repeat in {SETTLING_S:.0f} s"
#: Longest wait (s) for a broker that has just come back to say what listens to it.
STATUS_S = 10.0


@dataclass(frozen=True)
class DaemonState:
    """What daemon and embedded broker say about themselves.

    :ivar running: whether the daemon answers.
    :ivar error: why it does not, if it left a trace of having run.
    :ivar workers: pids of workers that are alive.
    :ivar uptime_s: age of the youngest worker (s).
    :ivar oldest_s: age of the oldest worker (s).
    :ivar broker: ``up``, ``down``, ``none``, or ``other`` for one that is not embedded.
    :ivar status: status of the embedded broker, as its file says.
    :ivar tasks: pks of the processes in its queue, those in work included.
    :ivar in_work: pks of those that a worker has taken.
    :ivar slots: processes that one worker takes at a time.
    """

    running: bool
    error: str | None
    workers: tuple[int, ...]
    uptime_s: float
    oldest_s: float
    broker: str
    status: dict[str, Any]
    tasks: tuple[int, ...]
    in_work: tuple[int, ...]
    slots: int


def read_daemon_state() -> DaemonState:
    """Ask circus and read the files of the embedded broker of the loaded profile; changes nothing.

    AiiDA's own ``iterate_tasks`` is no reader: it puts the tasks in work back into the queue of the running broker.
    """
    from aiida.engine.daemon.client import DaemonException, DaemonNotRunningException
    from aiida.manage import get_config_option, get_manager

    manager = get_manager()
    profile = manager.get_profile()
    if profile is None:
        raise RuntimeError("no profile is loaded")
    slots = int(get_config_option("daemon.worker_process_slots"))
    broker = manager.get_broker()
    if broker is None:
        return DaemonState(False, None, (), 0.0, 0.0, "none", {}, (), (), slots)
    kind, status, tasks, in_work = _read_broker(broker)
    running, error, ages = False, None, {}
    try:
        info = manager.get_daemon_client().get_worker_info(timeout=10).get("info", {})
        running, ages = True, {int(pid): float(about["age"]) for pid, about in info.items() if _is_alive(int(pid))}
    except DaemonNotRunningException:
        pass
    except DaemonException as exception:
        error = str(exception)
    youngest, oldest = min(ages.values(), default=0.0), max(ages.values(), default=0.0)
    return DaemonState(running, error, tuple(ages), youngest, oldest, kind, status, tasks, in_work, slots)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _read_broker(broker: Broker) -> tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    from aiida.brokers.zeromq.broker import ZeromqBroker
    from aiida.brokers.zeromq.service import ZeromqBrokerService
    from aiida.manage import get_config, get_manager

    if not isinstance(broker, ZeromqBroker):
        return "other" if broker.check_service_reachable() else "down", {}, (), ()
    folder = get_config().filepaths(get_manager().get_profile())["broker_service"]["dir"]
    layout = ZeromqBrokerService.FilepathLayout(folder)
    kind = "up" if broker.check_service_reachable() else "down"
    status = _read_status(layout.status_file)
    end = time.monotonic() + STATUS_S
    # one that has just come back has not written its own yet: the last one's counts workers that do not listen to it
    while kind == "up" and status and not _is_alive(int(status["pid"])) and time.monotonic() < end:
        time.sleep(0.2)
        status = _read_status(layout.status_file)
    return kind, status, read_tasks(tasks_folder()), read_tasks(tasks_folder(), ("processing",))


def _read_status(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):  # none yet, or half written
        return {}


def check_daemon() -> Iterator[Finding]:
    """Daemon, workers, broker and its subscribers, free slots, and processes that nobody runs."""
    state = read_daemon_state()
    if state.broker == "none":
        yield Finding("daemon", "note", "the profile has no broker: everything runs in the terminal, with `verdi run`")
        return
    if not state.running:
        yield _not_running(state)
    elif not state.workers:
        yield Finding("daemon", "fix", "it is running, and none of its workers is alive", CURE)
    else:
        yield Finding("daemon", "ok", f"running, {len(state.workers)} worker(s)")
        yield _listening(state)
        yield from _sessions(state)
    yield from check_processes(state)


def _not_running(state: DaemonState) -> Finding:
    waiting = len(state.tasks)
    if state.error is not None:
        return Finding("daemon", "fix", f"does not answer: {state.error}", CURE)
    if waiting:
        return Finding("daemon", "fix", f"stopped, and {waiting} process(es) wait for it", CURE)
    return Finding("daemon", "note", "stopped: `verdi run` works, submitting needs it", "verdi daemon start")


def _sessions(state: DaemonState) -> Iterator[Finding]:
    """Whether PostgreSQL began again while workers ran: AiiDA's sessions do not come back from that."""
    age = server_age_s()
    if age is None:
        return
    if age < state.oldest_s:
        message = f"PostgreSQL began again {age:.0f} s ago, after workers were started: what they run hangs, or fails"
        yield Finding("database", "fix", message, CURE)
    else:
        yield Finding("database", "ok", "PostgreSQL, which began before the workers")


def _listening(state: DaemonState) -> Finding:
    if state.broker == "down":
        return Finding("broker", "fix", "the daemon is running without it", CURE)
    if state.broker == "other":
        return Finding(
            "broker", "note", "reachable; whether workers subscribe is not visible from here", "verdi status"
        )
    subscribers = int(state.status.get("task_subscribers", 0))
    if subscribers >= len(state.workers):
        return Finding("broker", "ok", f"embedded, {len(state.workers)} worker(s) listen to it")
    message = f"{subscribers} of {len(state.workers)} worker(s) listen to it"
    if state.uptime_s < SETTLING_S:
        return Finding("broker", "note", f"{message}: the daemon started {state.uptime_s:.0f} s ago", REPEAT)
    return Finding("broker", "fix", f"{message}: submitted jobs stay Created for ever", CURE)
