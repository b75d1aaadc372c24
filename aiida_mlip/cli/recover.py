"""``aiida-mlip recover``: the one cure. Daemon, broker and database are mended, and what ended early begins again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from aiida_mlip.cli.checks import Finding, perform
from aiida_mlip.cli.checks.daemon import REPEAT, SETTLING_S, DaemonState, check_daemon, read_daemon_state
from aiida_mlip.cli.checks.processes import PAUSED, SLOTS, active_processes
from aiida_mlip.cli.checks.storage import check_journal
from aiida_mlip.errors import InvalidInputError

if TYPE_CHECKING:
    import psutil
    from aiida.manage.configuration import Profile

#: Seconds that workers have to listen to the broker, to end, and paused processes to be reached.
LISTENING_S: Final[float] = 60.0
ENDING_S: Final[float] = 10.0
REACHED_S: Final[float] = 60.0


@click.command()
@click.argument("processes", type=int, nargs=-1, metavar="[PK]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--always", is_flag=True, help="Restart daemon and broker even if nothing is found to be wrong.")
def recover(processes: tuple[int, ...], yes: bool, always: bool) -> None:
    """Mend what a fault has left of daemon, broker and database, and begin the workchains PK again.

    Looks as `aiida-mlip doctor` does. Where that is needed the daemon is stopped, processes that nobody runs are put
    back into the queue, SQLite gets its WAL journal, and the daemon is started again, with more workers where parents
    hold all slots; processes that AiiDA has paused go on. A workchain PK that has ended begins again with the same
    inputs: what is labelled, trained and explored already is not computed again. Nothing is ever deleted.
    """
    from aiida.manage.configuration import load_profile

    load_profile()
    wrong = _wrong()
    for finding in wrong:
        click.echo(f"found      {finding.subject}: {finding.message}")
    if not wrong and not always:
        click.echo("daemon, broker and database: nothing to mend")
    elif yes or click.confirm("Mend this? Jobs that run go on, nothing is deleted.", abort=True):
        for line in mend(wrong, always=always):
            click.echo(f"done       {line}")
    for pk in processes:
        click.echo(begin_again(pk))


def _wrong() -> list[Finding]:
    """What is to be mended; of a daemon that has just started, once it can be told."""
    end = time.monotonic() + 2 * SETTLING_S
    while True:
        found = list(perform({"database": check_journal, "daemon": check_daemon}))
        if time.monotonic() > end or not any(each.cure == REPEAT for each in found):
            return [each for each in found if each.state == "fix"]
        time.sleep(1)


def mend(wrong: Sequence[Finding], *, always: bool = False) -> Iterator[str]:
    """Cure what was found; what was done, line by line.

    :param wrong: findings of ``check_daemon`` and ``check_journal``.
    :param always: restart also if it does not look necessary.
    """
    subjects = {finding.subject for finding in wrong}
    if always or subjects - {SLOTS, PAUSED}:
        yield from _restart()
    elif SLOTS in subjects:
        from aiida.engine.daemon.client import get_daemon_client

        state = read_daemon_state()
        more = max(_workers_needed(state) - len(state.workers), 1)
        get_daemon_client().increase_workers(more)
        yield f"{more} more worker(s)"
    yield from _play()


def _restart() -> Iterator[str]:
    """Stop, repair, start."""
    from aiida.engine.daemon.client import DaemonException, get_daemon_client
    from aiida.manage import get_manager

    from aiida_mlip.cli.installation import database_of, journal_mode, set_journal_mode

    profile = get_manager().get_profile()
    if profile is None:
        raise RuntimeError("no profile is loaded")
    state = read_daemon_state()
    client = get_daemon_client()
    try:
        client.stop_daemon(wait=True)
        yield "daemon stopped"
    except DaemonException:
        yield "the daemon was not running, or did not answer"
    if ended := end_leftovers(profile):
        yield f"{ended} leftover worker(s) or broker ended"
    get_manager().reset_broker()
    get_manager().reset_profile_storage()  # an open session would hold the database
    database = database_of(profile)
    if database is not None and journal_mode(database) != "wal":
        set_journal_mode(database)
        yield "SQLite: journal mode set to WAL"
    lost = _without_task() if state.broker == "other" else None
    if lost is None:
        yield from _repair(profile.name)
    n_workers = max(len(state.workers), _workers_needed(state))
    client.start_daemon(number_workers=n_workers)
    yield f"daemon started with {n_workers} worker(s)"
    yield "they listen to the broker" if _await_workers() else "they do not listen to the broker yet"
    if lost is not None:
        _continue(lost)
        yield f"{len(lost)} process(es) that nobody ran put back into the queue"


def _workers_needed(state: DaemonState) -> int:
    """So many that all processes that wait for their children leave a slot for one of these."""
    known = state.tasks if state.broker != "other" else active_processes(older_than_s=0)
    return len(known) // state.slots + 1


def _repair(profile: str) -> Iterator[str]:
    """AiiDA's own repair: processes without a task get one, tasks without a process go."""
    command = [sys.executable, "-m", "aiida", "-p", profile, "process", "repair", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InvalidInputError(f"`verdi process repair` failed: {(done.stdout + done.stderr).strip()[-500:]}")
    revived = done.stdout.count("Revived process") + done.stderr.count("Revived process")
    yield f"{revived} process(es) that nobody ran put back into the queue"


def _without_task() -> set[int]:
    """Pks of processes that have not ended and have no task with RabbitMQ. The daemon does not run."""
    from aiida.engine.processes.control import get_active_processes, get_process_tasks
    from aiida.manage import get_manager

    return set(get_active_processes(project="id")) - set(get_process_tasks(get_manager().get_broker()))


def _continue(pks: Collection[int]) -> None:
    """Give processes to the workers, and wait until these have them.

    AiiDA's own repair leaves before, and asks for the result of the process: with RabbitMQ some were never taken up.
    """
    from aiida.manage import get_manager

    from aiida_mlip.data.task_queue import last_answer

    controller = get_manager().get_process_controller()
    taken = [controller.continue_process(pk, nowait=True, no_reply=False) for pk in sorted(pks)]
    end = time.monotonic() + REACHED_S
    for answer in taken:
        with suppress(Exception):  # a function is not continued: it ends here; one without a slot waits in the queue
            last_answer(answer, until=end)


def end_leftovers(profile: Profile) -> int:
    """End workers and the embedded broker of a profile whose daemon is gone; how many there were."""
    import psutil

    found = [process for process in psutil.process_iter() if _is_leftover(process, profile)]
    for process in found:
        _send(process.pid, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(found, timeout=ENDING_S)
    for process in stubborn:
        _send(process.pid, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=ENDING_S)
    return len(found)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _is_leftover(process: psutil.Process, profile: Profile) -> bool:
    """Whether a process is a worker or the broker of a profile: by what it was called with."""
    import psutil
    from aiida.manage import get_config

    try:
        words = process.cmdline()
        mine = process.uids().real == os.getuid()
        folder = process.environ().get("AIIDA_PATH", "") if mine else ""
    except psutil.Error:
        return False
    files = get_config().filepaths(profile)
    is_broker = str(files["broker_service"]["dir"]) in words
    is_worker = words[-2:] == ["daemon", "worker"] and profile.name in words
    return mine and (is_broker or (is_worker and folder == os.environ.get("AIIDA_PATH", "")))


def _await_workers() -> bool:
    end = time.monotonic() + LISTENING_S
    while time.monotonic() < end:
        state = read_daemon_state()
        if state.broker == "other" or 0 < len(state.workers) <= int(state.status.get("task_subscribers", 0)):
            return True
        time.sleep(0.5)
    return False


def _play() -> Iterator[str]:
    """Let paused processes go on, as soon as a worker has them."""
    from aiida.engine.processes.control import get_active_processes, play_processes

    from aiida_mlip.data.task_queue import silent_processes

    paused = get_active_processes(paused=True)
    if not paused:
        return
    end = time.monotonic() + REACHED_S
    while time.monotonic() < end and silent_processes([node.pk for node in paused]):
        time.sleep(1)
    play_processes(paused, timeout=REACHED_S)
    yield f"{len(paused)} paused process(es) go on: {_list(node.pk for node in paused)}"


def _list(pks: Iterable[int]) -> str:
    return ", ".join(str(pk) for pk in pks)


def begin_again(pk: int) -> str:
    """Submit a workchain once more with the same inputs; what was done.

    :raises InvalidInputError: it does not exist, or is no workchain.
    """
    from aiida import orm
    from aiida.common.exceptions import NotExistent
    from aiida.engine import submit

    try:
        node = orm.load_node(pk)
    except NotExistent as error:
        raise InvalidInputError(f"there is no process {pk}") from error
    if not isinstance(node, orm.WorkChainNode):
        raise InvalidInputError(f"{pk} is a {type(node).__name__}, only a WorkChain can begin again")
    if not node.is_terminated:
        return f"{pk} goes on    {node.process_label}: it has not ended"
    again = submit(node.get_builder_restart())
    return f"{pk} again: {again.pk}    {node.process_label}"
