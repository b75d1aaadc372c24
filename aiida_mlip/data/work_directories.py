"""Work directories of jobs: which are still there, which may go, and why the others stay.

All of a profile are judged by a few queries, whatever their number. What keeps one is a word of :data:`REASONS`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.graph import CALLS, FEW, attribute, called_by, extra, kind_of, link_ends, query_rows, reached_pks
from aiida_mlip.data.roles import PROCESS

#: Why a work directory stays -> the same for people.
REASONS: Final[dict[str, str]] = {
    "foreign": "not a work directory of a job of this profile and user",
    "running": "the job has not ended",
    "needed": "a process that has not ended uses it or may go on from it",
    "stash": "files that were to be kept lie in it",
    "failed": "the job failed and nothing made up for it: a restart can go on from it",
}
#: States of processes that have ended.
ENDED: Final[tuple[str, ...]] = ("finished", "excepted", "killed")
#: Node types.
REMOTE: Final[str] = "data.core.remote.RemoteData."
STASHED: Final[str] = "data.core.remote.stash."
#: Workflows of this package that go on from the work directory of an earlier job; the others never look into one.
_GO_ON: Final[frozenset[str]] = frozenset({"aiida.workflows:aiida_mlip.nequip_base"})
_OURS: Final[str] = "aiida.workflows:aiida_mlip."
_USES: Final[tuple[LinkType, ...]] = (LinkType.INPUT_CALC, LinkType.INPUT_WORK)
_GIVES: Final[tuple[LinkType, ...]] = (LinkType.CREATE, LinkType.RETURN)


@dataclass(frozen=True)
class WorkDirectory:
    """A directory that is not marked as cleaned.

    :param computer: pk.
    :param jobs: pks; several where AiiDA took a job from its cache, as that has the directory of the first.
    :param remotes: pks of their remote folders.
    :param kind: what the job is, such as ``quantumespresso.pw``.
    :param ended: when the last of the jobs was changed last.
    :param job_ids: numbers that the scheduler may still know although the process has ended: killed or excepted ones.
    :param kept: why it stays, of :data:`REASONS`; empty: it may go.
    """

    computer: int
    path: str
    jobs: tuple[int, ...]
    remotes: tuple[int, ...]
    kind: str
    ended: datetime
    job_ids: tuple[str, ...]
    kept: str


@dataclass(frozen=True)
class WorkDirectories:
    """Those of a profile, or of a workchain.

    :param there: not marked as cleaned, in order of their jobs.
    :param n_cleaned: the others.
    """

    there: tuple[WorkDirectory, ...]
    n_cleaned: int


class _Row(NamedTuple):
    """A job and its remote folder, as the database has them."""

    remote: int
    path: str | None
    cleaned: Any
    computer: int | None
    job: int
    uuid: str
    process_type: str | None
    mtime: Any
    state: str | None
    exit_status: Any
    scheduler_state: str | None
    job_id: str | None
    user: int

    @property
    def is_cleaned(self) -> bool:
        return self.cleaned in (1, True, "true")

    @property
    def went_well(self) -> bool:
        return self.state == "finished" and str(self.exit_status) == "0"

    @property
    def may_be_queued(self) -> bool:
        return self.state in ("excepted", "killed") and self.scheduler_state != "done" and self.job_id is not None


def work_directories(workchain: int | None = None) -> WorkDirectories:
    """Judge all work directories, as things are now.

    :param workchain: pk of a process: only those of jobs that it called, directly or not.
    """
    groups: dict[tuple[int, str], list[_Row]] = {}
    for row in _rows():
        if row.path and row.computer is not None:
            groups.setdefault((row.computer, row.path), []).append(row)
    if workchain is not None:
        wanted = {pk for pk, _, _ in called_by(workchain)}
        groups = {place: rows for place, rows in groups.items() if any(row.job in wanted for row in rows)}
    left = {place: rows for place, rows in groups.items() if not any(row.is_cleaned for row in rows)}
    judge = _Judge.of(row for rows in left.values() for row in rows)
    there = [_directory(place, rows, judge.reason(place, rows)) for place, rows in left.items()]
    return WorkDirectories(tuple(sorted(there, key=lambda each: each.jobs)), len(groups) - len(left))


def is_work_directory(path: str, uuid: str) -> bool:
    """Whether a path is what AiiDA calls the work directory of the job with this uuid.

    >>> uuid = "1a2b3c4d-0000-4000-8000-000000000000"
    >>> is_work_directory("/scratch/me/1a/2b/3c4d-0000-4000-8000-000000000000", uuid)
    True
    >>> is_work_directory("/home/me", uuid)
    False
    """
    parts = PurePosixPath(path).parts
    return path.startswith("/") and ".." not in parts and parts[-3:] == (uuid[:2], uuid[2:4], uuid[4:])


@dataclass(frozen=True)
class _Judge:
    """What has to be known of a profile to judge its work directories.

    :param needed: pks of remote folders that a process that has not ended uses or may use.
    :param used: (computer, path) of those, of all folders that they are in.
    :param stashed: the same for what is stashed.
    :param settled: pks of jobs that failed under a process that ended well all the same.
    :param user: pk of the user, as whom work directories are reached.
    """

    needed: frozenset[int]
    used: frozenset[tuple[int | None, str]]
    stashed: frozenset[tuple[int | None, str]]
    settled: frozenset[int]
    user: int | None

    @classmethod
    def of(cls, rows: Iterable[_Row]) -> _Judge:
        """Look up what concerns these jobs."""
        needed, places = _needed()
        user = orm.User.collection.get_default()
        return cls(
            needed=needed,
            used=_with_parents(places),
            stashed=_with_parents(_places(STASHED, "target_basepath")),
            settled=_settled([row.job for row in rows if row.state in ENDED and not row.went_well]),
            user=None if user is None else user.pk,
        )

    def reason(self, place: tuple[int, str], rows: list[_Row]) -> str:
        """Why a directory stays; empty: it may go."""
        if not any(is_work_directory(place[1], row.uuid) for row in rows) or any(r.user != self.user for r in rows):
            return "foreign"
        if any(row.state not in ENDED for row in rows):
            return "running"
        if place in self.used or not self.needed.isdisjoint(row.remote for row in rows):
            return "needed"
        if place in self.stashed:
            return "stash"
        return "" if all(row.went_well or row.job in self.settled for row in rows) else "failed"


def _directory(place: tuple[int, str], rows: list[_Row], kept: str) -> WorkDirectory:
    return WorkDirectory(
        computer=place[0],
        path=place[1],
        jobs=tuple(row.job for row in rows),
        remotes=tuple(row.remote for row in rows),
        kind=kind_of(PROCESS, rows[0].process_type),
        ended=max(_time(row.mtime) for row in rows),
        job_ids=tuple(str(row.job_id) for row in rows if row.may_be_queued),
        kept=kept,
    )


def _rows() -> list[_Row]:
    """Every job that has a remote folder."""
    states = ", ".join(attribute(name, "job") for name in ("process_state", "exit_status", "scheduler_state", "job_id"))
    statement = f"""
        SELECT node.id, {attribute("remote_path")}, {extra("cleaned")}, node.dbcomputer_id,
            job.id, job.uuid, job.process_type, job.mtime, {states}, job.user_id
        FROM db_dblink AS link
        JOIN db_dbnode AS node ON node.id = link.output_id
        JOIN db_dbnode AS job ON job.id = link.input_id
        WHERE link.label = 'remote_folder' AND (link.type || '') = 'create' AND node.node_type = '{REMOTE}'
        ORDER BY job.id
    """  # noqa: S608 - names of columns and attributes
    return [_Row(*row)._replace(uuid=str(row[5])) for row in query_rows(statement)]


def _needed() -> tuple[frozenset[int], list[tuple[int | None, str]]]:
    """Remote folders that processes which have not ended use or may use, and the places of those among their inputs."""
    alive = _alive()
    inputs = link_ends(_USES, of=list(alive), column="output_id")[:, 0]
    users = [pk for pk, kind in alive.items() if not kind.startswith(_OURS) or kind in _GO_ON]
    called = reached_pks(users, CALLS, direction="forward")
    outputs = link_ends(_GIVES, of=called, column="input_id")[:, 1] if len(called) else np.zeros(0, np.int64)
    return frozenset(map(int, [*inputs, *outputs])), _places(REMOTE, "remote_path", frozenset(map(int, inputs)))


def _alive() -> dict[int, str]:
    """Pk of each process that has not ended -> its type."""
    statement = f"""
        SELECT node.id, coalesce(node.process_type, '') FROM db_dbnode AS node
        WHERE node.node_type LIKE '{PROCESS}%' AND coalesce({attribute("process_state")}, '') NOT IN :ended
    """  # noqa: S608 - names of attributes
    return {int(pk): kind for pk, kind in query_rows(statement, ended=list(ENDED))}


def _places(node_type: str, name: str, among: frozenset[int] | None = None) -> list[tuple[int | None, str]]:
    """(computer, path) of nodes of a type, where the attribute of this name has the path."""
    few = among is not None and len(among) <= FEW
    chosen = "AND node.id IN :pks" if few else ""
    statement = f"""
        SELECT node.id, node.dbcomputer_id, {attribute(name)} FROM db_dbnode AS node
        WHERE node.node_type LIKE '{node_type}%' {chosen}
    """  # noqa: S608 - names of attributes
    rows = query_rows(statement, pks=list(among)) if few and among is not None else query_rows(statement)
    return [(computer, path) for pk, computer, path in rows if path and (among is None or pk in among)]


def _with_parents(places: Iterable[tuple[int | None, str]]) -> frozenset[tuple[int | None, str]]:
    """Places, and all folders that they are in."""
    found = set()
    for computer, path in places:
        found |= {(computer, str(folder)) for folder in (PurePosixPath(path), *PurePosixPath(path).parents)}
    return frozenset(found)


def _settled(jobs: list[int]) -> frozenset[int]:
    """Those of these jobs that were called, directly or not, by a process that ended well."""
    settled: set[int] = set()
    above = {job: job for job in jobs}  # job -> the process above it that was looked at last
    while above:
        caller_of = {
            int(child): int(caller) for caller, child in link_ends(CALLS, of=set(above.values()), column="output_id")
        }
        above = {job: caller_of[process] for job, process in above.items() if process in caller_of}
        well = _that_ended_well(set(above.values()))
        settled |= {job for job, process in above.items() if process in well}
        above = {job: process for job, process in above.items() if process not in well}
    return frozenset(settled)


def _that_ended_well(pks: Collection[int]) -> frozenset[int]:
    few = len(pks) <= FEW
    statement = f"""
        SELECT node.id, {attribute("exit_status")} FROM db_dbnode AS node
        WHERE node.node_type LIKE '{PROCESS}%' AND {attribute("process_state")} = 'finished'
        {"AND node.id IN :pks" if few else ""}
    """  # noqa: S608 - names of attributes
    rows = query_rows(statement, pks=list(pks) or [0]) if few else query_rows(statement)
    return frozenset(int(pk) for pk, status in rows if str(status) == "0").intersection(pks)


def _time(value: Any) -> datetime:
    """A time of the database, which SQLite has as text in UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
