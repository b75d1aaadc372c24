"""The processes of the daemon: is a slot free for them, does somebody run them, are they paused.

A worker whose database session broke, because the server began again or SQLite was locked, is up. Of the processes
that it had some no longer answer, others say that they are in a step, and do nothing. The embedded broker's queue can
be read; of another one (RabbitMQ) nothing is seen from here, and every process is asked instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from aiida_mlip.cli.checks import Finding
from aiida_mlip.data.task_queue import ask_processes

if TYPE_CHECKING:
    from aiida_mlip.cli.checks.daemon import DaemonState

#: A process younger than this (s) may be on its way into the queue; one that no worker has begun yet, for so long.
FRESH_S, UNBEGUN_S = 20.0, 60.0
#: Seconds without a change after which a process in a step is looked at, and between the two questions.
QUIET_S, AGAIN_S = 60.0, 2.0
#: How many processes are asked whether they live: of those that the queue does not explain, or of all.
MAX_ASKED, MAX_ASKED_OF_ALL = 50, 2000
#: What mends all that is found here, and subjects that it mends while the daemon runs on.
CURE = "aiida-mlip recover"
SLOTS, PAUSED = "worker slots", "paused processes"


def check_processes(state: DaemonState) -> Iterator[Finding]:
    """Free slots, processes that nobody runs, paused ones."""
    if state.broker == "other":
        yield from _by_asking(state)
    else:
        if state.running and state.workers:
            taken = int(state.status.get("in_flight_tasks", len(state.tasks)))
            yield _free_slots(state, taken, waiting=max(len(state.tasks) - taken, 0))
        yield from _by_queue(state)
    yield from _paused()


def _free_slots(state: DaemonState, taken: int, *, waiting: int) -> Finding:
    total = len(state.workers) * state.slots
    message = f"{taken} of {total} taken"
    if taken >= total:
        message += f", {waiting} process(es) wait; parents that wait for their children keep theirs: a deadlock"
        return Finding(SLOTS, "fix", message, CURE)
    if taken >= 0.8 * total:
        return Finding(SLOTS, "note", message, "verdi daemon incr 1")
    return Finding(SLOTS, "ok", message)


def _by_asking(state: DaemonState) -> Iterator[Finding]:
    """As far as the answers of the processes tell: whoever answers has a slot; the others wait for one, or are lost.

    A worker takes what is in the queue as long as it has slots, so nobody who was begun waits beside a free one.
    """
    if not (state.running and state.workers):
        return
    active = active_processes(older_than_s=FRESH_S)
    asked = active[:MAX_ASKED_OF_ALL]
    said = ask_processes(asked)
    silent, taken = [pk for pk in asked if pk not in said], len(said)
    yield _free_slots(state, taken, waiting=len(silent))
    if state.uptime_s < FRESH_S or len(active) - len(silent) >= len(state.workers) * state.slots:
        return  # the workers may not have come to the others yet; who was not asked may have a slot
    new = set(active_processes(older_than_s=FRESH_S, unbegun=True))
    new -= set(active_processes(older_than_s=UNBEGUN_S, unbegun=True))
    lost = [pk for pk in silent if pk not in new and is_active(pk)]
    hung = list(_hung(said))
    if lost:
        message = f"{len(lost)} that nobody runs, although workers have free slots (pk {_shown(lost)}): stranded"
        yield Finding("processes", "fix", message, CURE)
    yield from hung
    if not (lost or hung):
        yield Finding("processes", "ok", f"{taken} with the daemon or in a terminal, none stranded")


def _by_queue(state: DaemonState) -> Iterator[Finding]:
    """Processes that have not ended and that nobody runs: not in the queue and in no terminal, or lost by a worker."""
    active = set(active_processes(older_than_s=FRESH_S))
    unexplained = sorted(active - set(state.tasks))
    if state.broker == "down":
        if unexplained:
            message = (
                f"{len(unexplained)} not finished and not queued (pk {_shown(unexplained)}): a terminal runs them, "
            )
            yield Finding("processes", "note", message + "or nobody does", f"if nobody does: {CURE}")
        return
    settled = state.running and state.uptime_s > FRESH_S
    taken = sorted(active & set(state.in_work)) if settled else []
    asked = [*unexplained[:MAX_ASKED], *taken[:MAX_ASKED]]
    said = ask_processes(asked)
    silent = [pk for pk in asked if pk not in said]
    dead = [pk for pk in silent if pk in unexplained]
    lost = [pk for pk in silent if pk in taken and is_active(pk)]
    if dead:
        yield Finding("processes", "fix", f"{len(dead)} stranded, nobody runs them (pk {_shown(dead)})", CURE)
    if lost:
        message = f"{len(lost)} were taken by a worker that no longer answers for them (pk {_shown(lost)}): wedged"
        yield Finding("processes", "fix", message, CURE)
    hung = list(_hung({pk: said[pk] for pk in taken if pk in said}))
    yield from hung
    if not (dead or lost or hung):
        in_terminal = f"{len(unexplained)} in a terminal" if unexplained else "none stranded"
        yield Finding("processes", "ok", f"{len(state.tasks)} with the daemon, {in_terminal}")


def _hung(said: Mapping[int, str]) -> Iterator[Finding]:
    """Processes that say at once, and once more a moment later, that they are in a step, yet did nothing for long.

    A step does not let a worker answer while it computes. One that was left by an error of the database does.
    """
    in_step = [pk for pk, state in said.items() if state == "running"]
    quiet = set(active_processes(older_than_s=FRESH_S, quiet_s=QUIET_S)) if in_step else set()
    suspects = [pk for pk in in_step if pk in quiet]
    if not suspects:
        return
    time.sleep(AGAIN_S)
    again = ask_processes(suspects)
    quiet = set(active_processes(older_than_s=FRESH_S, quiet_s=QUIET_S))
    if pks := [pk for pk in suspects if again.get(pk) == "running" and pk in quiet]:
        message = f"{len(pks)} stopped in the middle of a step (pk {_shown(pks)}): their worker lost the database"
        yield Finding("processes", "fix", message, CURE)


def _paused() -> Iterator[Finding]:
    """Processes that AiiDA has paused: five times in a row a job could not be uploaded, submitted or fetched."""
    from aiida import orm

    filters = {**_ACTIVE, "attributes.paused": True}
    found = orm.QueryBuilder().append(
        orm.ProcessNode, filters=filters, project=["id", "attributes.process_status"]
    )  # the status says which of these failed
    if rows := found.all():
        status = f", e.g. {str(rows[0][1])[:80]!r}" if rows[0][1] else ""
        message = f"{len(rows)} (pk {_shown([pk for pk, _ in rows])}){status}"
        yield Finding(PAUSED, "fix", message, CURE)


def _shown(pks: Sequence[int]) -> str:
    return ", ".join(str(pk) for pk in pks[:8]) + (" ..." if len(pks) > 8 else "")


_ACTIVE = {"attributes.process_state": {"in": ["created", "waiting", "running"]}}


def active_processes(*, older_than_s: float, quiet_s: float = 0.0, unbegun: bool = False) -> Sequence[int]:
    """Pks of workchains and jobs that have not ended and exist for longer than ``older_than_s`` seconds.

    Functions are left out: they run inside their caller, and listen to nobody.

    :param quiet_s: only those that nothing was written of for so long.
    :param unbegun: only those that no worker has begun.
    """
    from datetime import UTC, datetime, timedelta

    from aiida import orm

    state = {"attributes.process_state": "created"} if unbegun else _ACTIVE
    ages = {"ctime": older_than_s, "mtime": quiet_s}
    now = datetime.now(tz=UTC)
    filters = {**state, **{name: {"<": now - timedelta(seconds=age)} for name, age in ages.items() if age}}
    kinds = (orm.WorkChainNode, orm.CalcJobNode)
    return sorted(orm.QueryBuilder().append(kinds, filters=filters, project="id").all(flat=True))


def is_active(pk: int) -> bool:
    """Whether a process has not ended, by now."""
    from aiida import orm

    return bool(orm.QueryBuilder().append(orm.ProcessNode, filters={**_ACTIVE, "id": pk}).count())
