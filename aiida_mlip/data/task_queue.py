"""The queue of the embedded broker, read without moving anything in it, and whether a process is alive.

AiiDA's own ``iterate_tasks`` is no reader: it puts the tasks in work back into the queue of the running broker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path
from typing import Any


def queued_processes() -> set[int] | None:
    """Pks of the processes in the queue of the loaded profile, waiting and in work; None where it cannot be read."""
    from aiida.brokers.zeromq.broker import ZeromqBroker
    from aiida.manage import get_manager

    manager = get_manager()
    return set(read_tasks(tasks_folder())) if isinstance(manager.get_broker(), ZeromqBroker) else None


def tasks_folder() -> Path:
    """Folder of the queue of the embedded broker of the loaded profile."""
    from aiida.brokers.zeromq.service import ZeromqBrokerService
    from aiida.manage import get_config, get_manager

    folder = get_config().filepaths(get_manager().get_profile())["broker_service"]["dir"]
    return Path(ZeromqBrokerService.FilepathLayout(folder).storage_path) / "tasks"


def read_tasks(folder: Path, states: Collection[str] = ("pending", "processing")) -> tuple[int, ...]:
    """Pks of the processes in a queue of the embedded broker.

    :param states: ``pending`` (waiting for a worker) and ``processing`` (in work).
    """
    pks = []
    for path in (path for state in states for path in folder.glob(f"{state}/*.json")):
        try:
            pks.append(int(json.loads(path.read_text())["body"]["args"]["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # taken out of the queue between the two calls, or no launch task
    return tuple(pks)


def silent_processes(pks: Collection[int], *, timeout_s: float = 2.0) -> list[int]:
    """Those of some processes that are alive nowhere, see :func:`ask_processes`."""
    return sorted(set(pks) - ask_processes(pks, timeout_s=timeout_s).keys())


def ask_processes(pks: Collection[int], *, timeout_s: float = 2.0) -> dict[int, str]:
    """States that processes say they are in, without those that are alive nowhere: in no worker and in no terminal.

    They are asked all at once. Functions that run inside their caller (calcfunctions) do not listen.

    :param timeout_s: one that has not answered by then is there, and busy.
    :returns: pk -> e.g. ``running``, ``waiting``; empty for a busy one.
    """
    from aiida.brokers.zeromq.broker import ZeromqBroker
    from aiida.manage import get_manager

    broker = get_manager().get_broker()
    if broker is None or (isinstance(broker, ZeromqBroker) and not broker.check_service_reachable()):
        return {}  # nobody can be asked; to wait for a broker that was not started would take ten seconds
    controller = get_manager().get_process_controller()
    asked = {}
    said = {}
    for pk in sorted(pks):
        # each broker has its own error for "no such recipient", at once or in the answer
        with suppress(Exception):
            asked[pk] = controller.get_status(pk)
    end = time.monotonic() + timeout_s
    for pk, answer in asked.items():
        try:
            answer = last_answer(answer, until=end)
        except FutureTimeoutError:
            said[pk] = ""
        except Exception:  # noqa: BLE001, S112 - as above
            continue
        else:
            said[pk] = str(answer["state"]).rpartition(".")[2].lower() if isinstance(answer, dict) else ""
    return said


def last_answer(answer: Any, *, until: float) -> Any:
    """What a process or a worker said; RabbitMQ's first answer, that it was delivered, holds the next one.

    :param until: on the monotonic clock.
    :raises concurrent.futures.TimeoutError: it has not come by then.
    """
    while isinstance(answer, Future):
        answer = answer.result(timeout=max(until - time.monotonic(), 0.01))
    return answer
