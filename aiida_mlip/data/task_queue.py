"""The queue of the embedded broker, read without moving anything in it.

AiiDA's own ``iterate_tasks`` is no reader: it puts the tasks in work back into the queue of the running broker.
"""

from __future__ import annotations

import json
from pathlib import Path


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


def read_tasks(folder: Path) -> tuple[int, ...]:
    """Pks of the processes in a queue of the embedded broker, waiting and in work."""
    pks = []
    for path in [*folder.glob("pending/*.json"), *folder.glob("processing/*.json")]:
        try:
            pks.append(int(json.loads(path.read_text())["body"]["args"]["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # taken out of the queue between the two calls, or no launch task
    return tuple(pks)
