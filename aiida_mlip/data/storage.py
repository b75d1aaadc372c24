"""What takes the space of a profile: database, files of nodes, work directories of jobs, what was stashed.

>>> from aiida_mlip.data.storage import storage
>>> storage().repository.kinds  # doctest: +SKIP
(Kind(name='datasets', n_nodes=12, n_files=40, n_bytes=10458112), ...)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from aiida import orm
from aiida.manage import get_manager

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.frame_index import index_path
from aiida_mlip.data.graph import attribute, is_sqlite, query_rows
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.remote_folders import Sizes, measure
from aiida_mlip.data.roles import PROCESS
from aiida_mlip.data.work_directories import STASHED, work_directories

_Is = Callable[[str, str], bool]
#: Kinds of nodes, told by their type and the name under which a process made them. A file that several kinds have is
#: counted once, with the first of them.
_KINDS: Final[tuple[tuple[str, _Is], ...]] = (
    ("datasets", lambda kind, _: kind.startswith(DatasetData.class_node_type)),
    ("potentials", lambda kind, _: kind.startswith(PotentialData.class_node_type)),
    ("pseudopotentials", lambda kind, _: kind.startswith("data.pseudo.")),
    ("checkpoints", lambda _, link: link == "checkpoint"),
    ("retrieved files", lambda _, link: link == "retrieved"),
    ("arrays and trajectories", lambda kind, _: kind.startswith("data.core.array.")),
    ("inputs of jobs", lambda kind, _: kind.startswith("process.calculation.calcjob.")),
    ("sources of functions", lambda kind, _: kind.startswith(PROCESS)),
    ("others", lambda *_: True),
)
_HASH: Final[re.Pattern[str]] = re.compile(r'"k":\s*"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Kind:
    """Files of nodes of one kind.

    :param n_files: that no kind before it has.
    :param n_bytes: of those, on the disk.
    """

    name: str
    n_nodes: int
    n_files: int
    n_bytes: int


@dataclass(frozen=True)
class Repository:
    """Files of nodes; equal ones are kept once.

    :param n_loose: that are files of their own: packing them makes few of many.
    :param n_unreferenced: of nodes that were deleted.
    :param gap_bytes: of packs that nothing lies in any more.
    """

    kinds: tuple[Kind, ...]
    n_loose: int
    loose_bytes: int
    n_unreferenced: int
    unreferenced_bytes: int
    gap_bytes: int

    @property
    def n_bytes(self) -> int:
        """All of it, on the disk."""
        return sum(kind.n_bytes for kind in self.kinds) + self.unreferenced_bytes + self.gap_bytes


@dataclass(frozen=True)
class Database:
    """The database.

    :param free_bytes: of deleted rows, which it takes again before it grows.
    :param n_checkpoints: of processes that have not ended.
    """

    n_bytes: int
    free_bytes: int
    n_nodes: int
    n_processes: int
    n_links: int
    n_checkpoints: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Folders:
    """Folders on one computer that are alike.

    :param what: empty: they may go, else one of :data:`~aiida_mlip.data.work_directories.REASONS`; of stashed files
        how they were kept.
    :param n_bytes: on the disk; None where the computer was not, or could not be, asked.
    """

    computer: str
    what: str
    n: int
    n_bytes: int | None
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """All that takes space.

    :param n_cleaned: work directories that are gone.
    :param index_bytes: of the index of frames, which any command that needs it makes again.
    :param problems: label of a computer that could not be asked -> why.
    """

    database: Database
    repository: Repository
    work: tuple[Folders, ...]
    n_cleaned: int
    stashed: tuple[Folders, ...]
    index_path: str
    index_bytes: int
    problems: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "repository": {**asdict(self.repository), "n_bytes": self.repository.n_bytes}}


def storage(*, ask_computers: bool = True) -> Storage:
    """Look at everything.

    :param ask_computers: for the sizes of work directories and stashed files; else only the database is asked.
    """
    directories = work_directories()
    stashes = _stashes()
    places = [(each.computer, each.path) for each in directories.there] + [(pk, path) for pk, path, _ in stashes]
    sizes = measure(places) if ask_computers else Sizes()
    index = index_path()
    return Storage(
        database=database(),
        repository=repository(),
        work=_folders([(each.computer, each.path, each.kept, each.kind) for each in directories.there], sizes),
        n_cleaned=directories.n_cleaned,
        stashed=_folders([(*stash, "") for stash in stashes], sizes),
        index_path=str(index),
        index_bytes=index.stat().st_size if index.exists() else 0,
        problems=sizes.problems,
    )


def database() -> Database:
    """Measure the database."""
    if is_sqlite():
        page, pages, free = (
            int(query_rows(f"PRAGMA {what}")[0][0]) for what in ("page_size", "page_count", "freelist_count")
        )
        n_bytes, free_bytes = page * pages, page * free
    else:
        n_bytes, free_bytes = int(query_rows("SELECT pg_database_size(current_database())")[0][0]), 0
    n_nodes, n_processes = query_rows(
        "SELECT count(*), count(CASE WHEN node_type LIKE 'process.%' THEN 1 END) FROM db_dbnode"
    )[0]
    checkpoint = attribute("checkpoints")
    n_checkpoints, checkpoint_bytes = query_rows(
        f"SELECT count({checkpoint}), coalesce(sum(length({checkpoint})), 0) FROM db_dbnode AS node "  # noqa: S608
        f"WHERE node.node_type LIKE '{PROCESS}%'"
    )[0]
    return Database(
        n_bytes=n_bytes,
        free_bytes=free_bytes,
        n_nodes=int(n_nodes),
        n_processes=int(n_processes),
        n_links=int(query_rows("SELECT count(*) FROM db_dblink")[0][0]),
        n_checkpoints=int(n_checkpoints),
        checkpoint_bytes=int(checkpoint_bytes),
    )


def repository() -> Repository:
    """Measure the files of nodes, by kind of node."""
    sizes, loose, gap = _objects()
    hashes: list[set[str]] = [set() for _ in _KINDS]
    n_nodes: Counter[int] = Counter()
    for node_type, link, files in _nodes_with_files():
        number = next(i for i, (_, fits) in enumerate(_KINDS) if fits(node_type, link or ""))
        hashes[number].update(_HASH.findall(files))
        n_nodes[number] += 1
    kinds, seen = [], set[str]()
    for number, (name, _) in enumerate(_KINDS):
        new = (hashes[number] & sizes.keys()) - seen
        seen |= new
        if n_nodes[number]:
            kinds.append(Kind(name, n_nodes[number], len(new), sum(sizes[each] for each in new)))
    forgotten = sizes.keys() - seen
    return Repository(
        kinds=tuple(kinds),
        n_loose=len(loose),
        loose_bytes=sum(sizes[each] for each in loose),
        n_unreferenced=len(forgotten),
        unreferenced_bytes=sum(sizes[each] for each in forgotten),
        gap_bytes=gap,
    )


def _nodes_with_files() -> list[tuple[str, str | None, str]]:
    """(type, name under which a calculation made it, names and hashes of files) of each node that has files."""
    return query_rows(
        "SELECT node.node_type, "
        "(SELECT link.label FROM db_dblink AS link WHERE link.output_id = node.id AND (link.type || '') = 'create'), "
        "CAST(node.repository_metadata AS TEXT) FROM db_dbnode AS node "
        "WHERE CAST(node.repository_metadata AS TEXT) != '{}'"
    )


def _objects() -> tuple[dict[str, int], set[str], int]:
    """Hash -> bytes on the disk of each file; hashes of those that are not packed; bytes of packs that hold nothing."""
    backend = get_manager().get_profile_storage().get_repository()
    container = getattr(backend, "_container", None)
    if container is None or not hasattr(container, "get_objects_meta"):  # an archive: read-only, nothing to gain
        return dict.fromkeys(backend.list_objects(), 0), set(), 0
    sizes, loose = {}, set()
    with container as opened:
        for key, meta in opened.get_objects_meta(opened.list_all_objects()):
            packed = meta.pack_length is not None
            sizes[key] = int(meta.pack_length if packed else meta.size)
            if not packed:
                loose.add(key)
        total = opened.get_total_size()
    return sizes, loose, int(total.total_size_packfiles_on_disk - total.total_size_packed_on_disk)


def _stashes() -> list[tuple[int, str, str]]:
    """(computer, path, mode) of what jobs were told to keep."""
    rows = query_rows(
        f"SELECT node.dbcomputer_id, {attribute('target_basepath')}, {attribute('stash_mode')} "  # noqa: S608
        f"FROM db_dbnode AS node WHERE node.node_type LIKE '{STASHED}%' ORDER BY node.id"
    )
    return [(int(computer), path, mode) for computer, path, mode in rows if computer is not None and path]


def _folders(found: list[tuple[int, str, str, str]], sizes: Sizes) -> tuple[Folders, ...]:
    """(computer, path, what, kind) of folders, added up."""
    labels = dict(orm.QueryBuilder().append(orm.Computer, project=["id", "label"]).all())
    together: dict[tuple[str, str], list[tuple[int | None, str]]] = {}
    for computer, path, what, kind in dict.fromkeys(found):
        label = labels.get(computer, str(computer))
        together.setdefault((label, what), []).append((sizes.n_bytes.get((computer, path)), kind))
    return tuple(
        Folders(
            computer=label,
            what=what,
            n=len(those),
            n_bytes=None if any(size is None for size, _ in those) else sum(size for size, _ in those if size),
            kinds=dict(sorted(Counter(kind for _, kind in those if kind).items())),
        )
        for (label, what), those in sorted(together.items())
    )
