"""Folders on computers, over any transport: how large they are, and how work directories are removed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aiida import orm
from aiida.common.exceptions import NotExistent
from aiida.schedulers import JobState

from aiida_mlip.data.work_directories import WorkDirectory
from aiida_mlip.errors import ExternalProgramError

#: Folders that one command measures.
_AT_ONCE: Final[int] = 200
#: A computer and a path on it.
Place = tuple[int, str]
T = TypeVar("T")


@dataclass
class Sizes:
    """What folders take.

    :param n_bytes: on the disk, of each that is there; one that was looked for and is not there takes 0.
    :param problems: label of a computer that could not be asked -> why.
    """

    n_bytes: dict[Place, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass
class Cleaning:
    """What became of work directories.

    :param cleaned: those that are gone.
    :param kept: path -> why it is still there.
    """

    cleaned: list[WorkDirectory] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def measure(places: Sequence[Place]) -> Sizes:
    """Ask each computer how large folders of it are."""
    sizes = Sizes()
    for computer, paths in _by_computer(places, lambda place: place[0]):
        try:
            with _transport(computer) as transport:
                for batch in _batches([path for _, path in paths]):
                    sizes.n_bytes |= {(computer.pk, path): n for path, n in _measured(transport, batch).items()}
        except Exception as error:  # noqa: BLE001 - a transport raises what its library raises
            sizes.problems[computer.label] = _said(error)
    return sizes


def clean(directories: Sequence[WorkDirectory], done: Callable[[int], None] = lambda _: None) -> Cleaning:
    """Remove work directories and mark them as AiiDA does; one that is gone already is marked.

    A job that was killed or excepted is looked for in the queue first. A directory is marked only when it is gone.

    :param directories: that may go: see :attr:`WorkDirectory.kept`.
    :param done: is told how many more have been dealt with.
    """
    result = Cleaning()
    for computer, those in _by_computer(directories, lambda each: each.computer):
        try:
            with _transport(computer) as transport:
                queued = _queued(computer, transport, [job_id for each in those for job_id in each.job_ids])
                for batch in _batches(those):
                    _clean_batch(transport, batch, queued, result)
                    done(len(batch))
        except Exception as error:  # noqa: BLE001 - a transport raises what its library raises
            dealt_with = {each.path for each in result.cleaned}
            problem = f"{computer.label}: {_said(error)}"
            result.kept |= {each.path: problem for each in those if each.path not in dealt_with | set(result.kept)}
    return result


def _clean_batch(transport: Any, batch: Sequence[WorkDirectory], queued: set[str], result: Cleaning) -> None:
    gone = []
    for each in batch:
        if not queued.isdisjoint(each.job_ids):
            result.kept[each.path] = "its job is still known to the scheduler"
        elif problem := _removed(transport, each.path):
            result.kept[each.path] = problem
        else:
            gone.append(each)
    _mark([pk for each in gone for pk in each.remotes])
    result.cleaned += gone


def _removed(transport: Any, path: str) -> str:
    """Remove a directory; why it is still there, or empty."""
    said = ""
    if transport.path_exists(path):
        try:
            transport.rmtree(path)
        except OSError as error:
            said = _said(error)
        return (said or "it could not be removed") if transport.path_exists(path) else ""
    return ""


def _mark(remotes: list[int]) -> None:
    query = orm.QueryBuilder().append(orm.RemoteData, filters={"id": {"in": remotes}})
    for (remote,) in query.all() if remotes else []:
        remote.base.extras.set(orm.RemoteData.KEY_EXTRA_CLEANED, True)


def _queued(computer: orm.Computer, transport: Any, job_ids: list[str]) -> set[str]:
    """Those of these jobs that the scheduler still knows."""
    if not job_ids:
        return set()
    scheduler = computer.get_scheduler()
    scheduler.set_transport(transport)
    found = scheduler.get_jobs(jobs=job_ids)
    return {str(job.job_id) for job in found if job.job_state != JobState.DONE}.intersection(job_ids)


def _measured(transport: Any, paths: Sequence[str]) -> dict[str, int]:
    """Path -> bytes on the disk."""
    found = dict.fromkeys(paths, 0)
    try:
        command = "du -sk -- " + " ".join(shlex.quote(path) for path in paths)
        _, output, _ = transport.exec_command_wait(command)  # fails where one of them is missing
    except NotImplementedError:
        return {path: _added_up(transport, path) for path in paths}
    for line in output.splitlines():
        size, _, path = line.partition("\t")
        if path in found and size.isdecimal():
            found[path] = 1024 * int(size)
    return found


def _added_up(transport: Any, path: str) -> int:
    """Bytes of the files in a folder, for a transport that runs no commands."""
    if not transport.path_exists(path):
        return 0
    if transport.isfile(path):
        return int(transport.get_attribute(path)["st_size"])
    inside = transport.listdir_withattributes(path)
    return sum(
        _added_up(transport, f"{path}/{entry['name']}") if entry["isdir"] else int(entry["attributes"]["st_size"])
        for entry in inside
    )


def _transport(computer: orm.Computer) -> Any:
    """A connection to open.

    :raises ExternalProgramError: the computer is not configured.
    """
    user = orm.User.collection.get_default()
    try:
        return computer.get_authinfo(user).get_transport()
    except NotExistent as error:
        raise ExternalProgramError(
            f"not configured for {getattr(user, 'email', 'anybody')}: verdi computer configure "
            f"{computer.transport_type} {computer.label}"
        ) from error


def _by_computer(things: Sequence[T], of: Callable[[T], int]) -> list[tuple[orm.Computer, list[T]]]:
    found: dict[int, list[T]] = {}
    for thing in things:
        found.setdefault(of(thing), []).append(thing)
    return [(orm.load_computer(pk), those) for pk, those in found.items()]


def _batches(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), _AT_ONCE):
        yield things[start : start + _AT_ONCE]


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
