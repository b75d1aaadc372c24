"""PostgreSQL and RabbitMQ begin again under campaigns that run: seen, cured by one command; nothing computed twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiida import orm
from aiida.engine import submit
from aiida.manage import get_manager
from faults.campaign import TINY, times_labelled
from service_jobs import BIN, psql, silicon, story, wait_until
from sqlalchemy.exc import SQLAlchemyError

from aiida_mlip.cli.checks import processes
from aiida_mlip.cli.checks.daemon import read_daemon_state
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.workchains.label import LabelWorkChain

pytestmark = [pytest.mark.qe, pytest.mark.daemon, pytest.mark.timeout(1800)]
LEVEL = TINY | {"pseudo_family": "debian-lda", "bundle_size": 1}


def database_begins_again(profile: Any) -> None:
    """A server process of its database is killed, as for want of memory: all sessions end, then it recovers."""
    sessions = "SELECT pid FROM pg_stat_activity WHERE datname = '{}' LIMIT 1"
    os.kill(int(psql(sessions.format(profile.storage_config["database_name"]))), signal.SIGKILL)
    wait_until(_answers, "PostgreSQL")


def _answers() -> bool:
    command = ["psql", "-d", "postgres", "-c", "SELECT 1"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def asked(question: Callable[[], Any]) -> Any:
    """Answer of the database, where the session of the test may have ended as well."""
    try:
        return question()
    except SQLAlchemyError:
        get_manager().get_profile_storage().get_session().rollback()
        return question()


def recover(profile: Any, *pks: int) -> str:
    """What the one cure says."""
    command = [BIN / "aiida-mlip", "-p", profile.name, "recover", "--yes", *map(str, pks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def broker_begins_again() -> None:
    """RabbitMQ stops, with all connections to it, and starts."""
    env = {**os.environ, "HOME": os.environ["RABBITMQ_HOME"]}
    for command in ("stop_app", "start_app"):
        subprocess.run(["/usr/lib/rabbitmq/bin/rabbitmqctl", command], env=env, check=True, capture_output=True)


def stranded() -> bool:
    """Whether the processes themselves show that something is wrong."""
    return any(each.state == "fix" for each in processes.check_processes(read_daemon_state()))


@pytest.mark.parametrize("n_processes", [1, 7], ids=["while it plans", "while jobs run"])
def test_postgresql_begins_again(pw_code, pseudo_family, workers, aiida_profile, monkeypatch, n_processes):
    dataset = silicon(4, seed=70 + n_processes)
    node = begun(pw_code, dataset, n_processes)
    database_begins_again(aiida_profile)
    for name in ("FRESH_S", "UNBEGUN_S", "QUIET_S"):
        monkeypatch.setattr(processes, name, 5.0)
    # also without asking the server: nobody runs it, or it says that it is in a step and does nothing
    wait_until(lambda: asked(lambda: node.is_terminated or stranded()), "the end, or that it is seen to be stranded")
    said = asked(lambda: recover(aiida_profile))
    assert "found      database: PostgreSQL began again" in said
    assert "daemon started with 2 worker(s)" in said
    all_labelled_once(brought_home(aiida_profile, node))


def test_rabbitmq_begins_again(pw_code, pseudo_family, workers, aiida_profile):
    """Workers come back to it, as a rule without help."""
    node = begun(pw_code, silicon(4, seed=80), 7)
    broker_begins_again()
    all_labelled_once(brought_home(aiida_profile, node))


def begun(code: orm.InstalledCode, dataset: DatasetData, n_processes: int) -> orm.ProcessNode:
    """A labelling of some frames one by one, once it has started so many processes."""
    node = submit(LabelWorkChain.get_builder_from_protocol({"pw": code}, dataset, {"lda": LEVEL}))
    wait_until(lambda: len(node.called_descendants) >= n_processes, "processes")
    return node


def brought_home(profile: Any, node: orm.ProcessNode) -> orm.ProcessNode:
    """A campaign as a person brings it to its end: where nothing happens, or it ended early, with the one cure."""
    for _ in range(5):
        end = time.monotonic() + 120
        while not (ended := asked(lambda node=node: node.is_terminated)) and time.monotonic() < end:
            time.sleep(1)
        if not ended:
            recover(profile)
        elif node.is_finished_ok:
            break
        else:
            node = orm.load_node(int(recover(profile, node.pk).split("again:")[1].split()[0]))
    return node


def all_labelled_once(node: orm.ProcessNode) -> None:
    """Nothing lost, nothing computed twice."""
    assert node.is_finished_ok, story(node)
    assert node.outputs.dataset.frames().labelled.all()
    counts = times_labelled("")
    assert {counts[name] for name in node.inputs.dataset.frame_ids()} == {1}
