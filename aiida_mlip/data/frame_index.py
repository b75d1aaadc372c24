"""Where each frame is: an index over the lineage columns of all datasets of the profile.

A dataset is a node, its rows are not (ADR 0001): the database of AiiDA cannot find a frame. This index can, in a small
SQLite file beside the AiiDA configuration. It holds nothing of its own: a shard never changes and is known by its
content hash, so the index reads the lineage columns of each shard once, and can be deleted at any time.

>>> from aiida_mlip.data.frame_index import FrameIndex
>>> with FrameIndex.open() as index:  # doctest: +SKIP
...     index.refresh()
...     [frame_id] = index.find("3fa2")
...     index.rows(frame_id)
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.kernel.frames import NONE, Failure

_LOGGER = logging.getLogger(__name__)
#: Raised when the tables change: an index of another version is made anew.
_VERSION: Final[int] = 1
#: Seconds to wait for another command that is filling the index.
_PATIENCE: Final[float] = 60.0
#: Digits of a frame id, and the fewest that are looked up.
ID_DIGITS: Final[int] = 32
MIN_DIGITS: Final[int] = 4
_MOST_VALUES: Final[int] = 500
_DATASETS_AT_ONCE: Final[int] = 100
#: Statements of a transaction, and of one in it.
_OUTER: Final[tuple[str, str, str]] = ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
_NESTED: Final[tuple[str, str, str]] = ("SAVEPOINT one", "RELEASE one", "ROLLBACK TO one")
_COLUMNS: Final[tuple[str, ...]] = (
    "energy",
    "fidelity",
    "failure",
    "frame_id",
    "parent_id",
    "geometry_uuid",
    "label_uuid",
    "label_row",
    "numbers",
    "region",
    "parent_atom",
)
_TABLES: Final[str] = """
CREATE TABLE shards (shard INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE datasets (pk INTEGER PRIMARY KEY, uuid TEXT NOT NULL);
CREATE TABLE holds (pk INTEGER, first INTEGER, shard INTEGER, PRIMARY KEY (pk, first)) WITHOUT ROWID;
CREATE INDEX holds_shard ON holds (shard);
CREATE TABLE rows (
    shard INTEGER, row INTEGER, frame BLOB NOT NULL, parent BLOB, geometry BLOB, label BLOB, label_row INTEGER,
    fidelity TEXT, failure INTEGER, labelled INTEGER, natoms INTEGER, PRIMARY KEY (shard, row)
) WITHOUT ROWID;
CREATE INDEX rows_frame ON rows (frame);
CREATE INDEX rows_parent ON rows (parent) WHERE parent IS NOT NULL;
CREATE INDEX rows_geometry ON rows (geometry) WHERE geometry IS NOT NULL;
CREATE INDEX rows_label ON rows (label) WHERE label IS NOT NULL;
CREATE TABLE atoms (
    shard INTEGER, row INTEGER, numbers BLOB, region BLOB, parent_atom BLOB, PRIMARY KEY (shard, row)
) WITHOUT ROWID;
CREATE TABLE parts (split TEXT, member INTEGER, parts BLOB, PRIMARY KEY (split, member)) WITHOUT ROWID;
"""
_ROW: Final[str] = "shard, row, frame, parent, geometry, label, label_row, fidelity, failure, labelled, natoms"
_UUID_BYTES: Final[int] = 16
#: Rows that any of very many processes made: their uuids are one value, taken apart by the database.
_MADE_BY: Final[str] = """
WITH RECURSIVE number(i) AS (SELECT 0 WHERE :n > 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < :n)
SELECT shard, row, frame, fidelity, label FROM number CROSS JOIN rows ON {column} = substr(:uuids, :size * i + 1, :size)
"""


@dataclass(frozen=True)
class Row:
    """One row of a shard, as far as its lineage goes.

    :param frame_id: 32 hexadecimal digits.
    :param parent_id: frame id of the frame it was made from; None: of none.
    :param geometry_uuid: process that made the geometry; None: given by a person.
    :param label_uuid: process that made the label, or failed to; None: none, or not known.
    :param label_row: row within that process, -1 when it made one.
    :param fidelity: name, None: unlabelled.
    :param failure: why the label is missing.
    """

    shard: int
    row: int
    frame_id: str
    parent_id: str | None
    geometry_uuid: str | None
    label_uuid: str | None
    label_row: int
    fidelity: str | None
    failure: Failure
    labelled: bool
    natoms: int


@dataclass(frozen=True)
class FrameAtoms:
    """Atoms of a fragment.

    :param numbers: (a,) atomic numbers.
    :param region: (a,) 0 core, 1 trust, 2 buffer, 3 cap; None where it has no regions.
    :param parent_atom: (a,) index of each in the parent frame, -1 for an atom that was not there.
    """

    numbers: np.ndarray
    region: np.ndarray | None
    parent_atom: np.ndarray


@dataclass(frozen=True)
class Held:
    """Rows, and where they are.

    :param n_rows: rows, each (frame, level of theory, calculation of the label) counted once.
    :param rows: pk of each dataset that holds any of them -> (n,) row numbers there.
    """

    n_rows: int
    rows: dict[int, np.ndarray]


class FrameIndex:
    """The index of the profile that is loaded; see the module's text. Use :meth:`open`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._database = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path | None = None) -> Iterator[FrameIndex]:
        """Open the index of this profile; it is made where there is none, or one that cannot be read.

        :param path: file to use instead of the one beside the AiiDA configuration.
        """
        connection = _connect(path or index_path())
        try:
            yield cls(connection)
        finally:
            connection.close()

    # -- filling -----------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Take in the datasets that are new since the last time, forget those that were deleted.

        Two queries where nothing changed. Of each new shard the lineage columns are read, once for all datasets that
        hold it.

        :returns: datasets taken in.
        """
        if self._is_current():
            return 0
        present = dict(orm.QueryBuilder().append(DatasetData, subclassing=False, project=["id", "uuid"]).all())
        known = dict(self._database.execute("SELECT pk, uuid FROM datasets"))
        stale = [(pk,) for pk, uuid in known.items() if present.get(pk) != uuid]
        new = sorted(pk for pk, uuid in present.items() if known.get(pk) != uuid)
        with self._transaction():
            for table in ("datasets", "holds"):
                self._database.executemany(f"DELETE FROM {table} WHERE pk = ?", stale)  # noqa: S608 - two names
        taken = 0
        for part in _chunks(new, _DATASETS_AT_ONCE):
            with self._transaction():
                taken += sum(self._take_in(orm.load_node(pk)) for pk in part)
        return taken

    @contextmanager
    def _transaction(self, *, savepoint: bool = False) -> Iterator[None]:
        """All or nothing."""
        begin, commit, rollback = _NESTED if savepoint else _OUTER
        self._database.execute(begin)
        try:
            yield
        except BaseException:
            self._database.execute(rollback)
            raise
        self._database.execute(commit)

    def _is_current(self) -> bool:
        exact = {"cls": DatasetData, "subclassing": False}  # equal, not LIKE: the database has an index for that
        query = orm.QueryBuilder().append(**exact, tag="data", project=["id", "uuid"])
        last = query.order_by({"data": {"id": "desc"}}).limit(1).all()
        count = orm.QueryBuilder().append(**exact).count() if last else 0
        ours = self._database.execute("SELECT pk, uuid FROM datasets ORDER BY pk DESC LIMIT 1").fetchall()
        (n,) = self._database.execute("SELECT count(*) FROM datasets").fetchone()
        return n == count and [tuple(row) for row in last] == ours

    def _take_in(self, node: DatasetData) -> bool:
        """One dataset; False where a shard cannot be read, which the next refresh tries again."""
        try:
            with self._transaction(savepoint=True):
                self._database.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?)", (node.pk, node.uuid))
                first = 0
                for entry in node.base.attributes.get("shards"):
                    shard = self._shard(node, entry["name"])
                    self._database.execute("INSERT OR IGNORE INTO holds VALUES (?, ?, ?)", (node.pk, first, shard))
                    first += entry["n_rows"]
        except (FileFormatError, OSError) as error:
            _LOGGER.warning("frames of DatasetData<%s> are not in the index: %s", node.pk, error)
            return False
        return True

    def _shard(self, node: DatasetData, name: str) -> int:
        found = self._database.execute("SELECT shard FROM shards WHERE name = ?", (name,)).fetchone()
        if found is not None:
            return int(found[0])
        columns, tables = node.shard_columns(name, _COLUMNS)
        shard = self._database.execute("INSERT INTO shards (name) VALUES (?)", (name,)).lastrowid
        if shard is None:  # pragma: no cover - an INSERT that did not fail has a row
            raise FileFormatError(f"the index did not take shard {name}")
        marks = ", ".join("?" * 11)
        self._database.executemany(f"INSERT INTO rows VALUES ({marks})", _rows(shard, columns, tables))  # noqa: S608
        self._database.executemany("INSERT INTO atoms VALUES (?, ?, ?, ?, ?)", _atoms(shard, columns))
        return shard

    # -- asking ------------------------------------------------------------------------------------------------

    def find(self, prefix: str, *, most: int = 10) -> list[str]:
        """Frame ids that begin with these hexadecimal digits, at most so many.

        :raises InvalidInputError: no hexadecimal digits, or not 4 to 32 of them.
        """
        digits = prefix.lower()
        if not MIN_DIGITS <= len(digits) <= ID_DIGITS or not set(digits) <= set("0123456789abcdef"):
            raise InvalidInputError(
                f"a frame id is {ID_DIGITS} hexadecimal digits, or its first {MIN_DIGITS} or more; got {prefix!r}"
            )
        bounds = [bytes.fromhex(digits.ljust(ID_DIGITS, fill)) for fill in "0f"]
        rows = self._database.execute(
            "SELECT DISTINCT frame FROM rows WHERE frame BETWEEN ? AND ? ORDER BY frame LIMIT ?", (*bounds, most)
        )
        return [frame.hex() for (frame,) in rows]

    def find_one(self, prefix: str) -> str:
        """The one frame id that begins with these digits.

        :raises InvalidInputError: there is none, or there are several.
        """
        found = self.find(prefix)
        if not found:
            raise InvalidInputError(f"no dataset of this profile holds a frame {prefix!r}")
        if len(found) > 1:
            shown = ", ".join(frame_id[: len(prefix) + 6] for frame_id in found[:5])
            raise InvalidInputError(f"frame {prefix!r} is ambiguous, give more digits: {shown}, ...")
        return found[0]

    def rows(self, frame_id: str) -> list[Row]:
        """All rows of a frame, in all shards."""
        return self._select("frame", [bytes.fromhex(frame_id)])

    def rows_labelled_by(self, uuids: Iterable[str]) -> list[Row]:
        """Rows whose label, or failure, these processes made."""
        return self._select("label", [_blob(uuid) for uuid in uuids])

    def rows_made_by(self, uuids: Iterable[str]) -> list[Row]:
        """Rows whose geometry these processes made."""
        return self._select("geometry", [_blob(uuid) for uuid in uuids])

    def count_children(self, frame_id: str) -> int:
        """Frames that were made from a frame: fragments, perturbations."""
        query = "SELECT count(DISTINCT frame) FROM rows WHERE parent = ?"
        return int(self._database.execute(query, (bytes.fromhex(frame_id),)).fetchone()[0])

    def datasets_with(self, rows: Iterable[Row]) -> dict[int, list[int]]:
        """Pk of each dataset that holds any of the rows -> row numbers there."""
        return {pk: numbers.tolist() for pk, numbers in self.held(rows).rows.items()}

    def held(self, rows: Iterable[Row]) -> Held:
        """Datasets that hold any of the rows."""
        return self._held([(row.shard, row.row, row.frame_id, row.fidelity, row.label_uuid) for row in rows])

    def held_from(self, uuids: Iterable[str]) -> Held:
        """Datasets that hold rows whose label, failure or geometry these processes made, of which there may be many."""
        joined = bytes.fromhex("".join(uuids).replace("-", ""))
        values = {"uuids": joined, "n": len(joined) // _UUID_BYTES, "size": _UUID_BYTES}
        rows: list[tuple[Any, ...]] = []
        for column in ("label", "geometry"):
            rows += self._database.execute(_MADE_BY.format(column=column), values)
        return self._held(rows)

    def _held(self, rows: list[tuple[Any, ...]]) -> Held:
        """Where rows (shard, row, and three more that name the label) are held."""
        # shard and row in one number: they are sorted and made unique many times faster than pairs
        keys = np.unique(np.fromiter((row[0] << 32 | row[1] for row in rows), dtype=np.int64, count=len(rows)))
        shards, starts = np.unique(keys >> 32, return_index=True)
        by_shard = dict(zip(shards.tolist(), np.split(keys & 0xFFFFFFFF, starts[1:]), strict=False))
        found: dict[int, list[np.ndarray]] = {}
        for part in _chunks(list(by_shard)):
            marks = ", ".join("?" * len(part))
            query = f"SELECT pk, first, shard FROM holds WHERE shard IN ({marks})"  # noqa: S608 - question marks
            for pk, first, shard in self._database.execute(query, part):
                found.setdefault(pk, []).append(first + by_shard[shard])
        return Held(
            len({row[2:] for row in rows}),
            {pk: np.sort(np.concatenate(numbers)) for pk, numbers in sorted(found.items())},
        )

    def row_of(self, pk: int, number: int) -> Row:
        """Row of a dataset by its number.

        :raises InvalidInputError: no such row, or a dataset that could not be read.
        """
        found = self._database.execute(
            "SELECT shard, ? - first FROM holds WHERE pk = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            (number, pk, number),
        ).fetchone()
        rows = []
        if found is not None:
            query = f"SELECT {_ROW} FROM rows WHERE shard = ? AND row = ?"  # noqa: S608 - fixed columns
            rows = self._database.execute(query, found).fetchall()
        if not rows:
            raise InvalidInputError(f"dataset {pk} has no row {number}; rows are counted from 0")
        return _record(rows[0])

    def atoms(self, row: Row) -> FrameAtoms | None:
        """Atoms of a fragment; None for a row that has no atoms of a parent."""
        found = self._database.execute(
            "SELECT numbers, region, parent_atom FROM atoms WHERE shard = ? AND row = ?", (row.shard, row.row)
        ).fetchone()
        if found is None:
            return None
        numbers, region, parent_atom = found
        return FrameAtoms(
            np.frombuffer(numbers, dtype="|u1"),
            None if region is None else np.frombuffer(region, dtype="|u1"),
            np.frombuffer(parent_atom, dtype="<i4"),
        )

    def single_labels(self, datasets: Iterable[int]) -> list[str]:
        """Uuids of calculations that made one label each, where a dataset of these holds it."""
        uuids: set[bytes] = set()
        for part in _chunks(list(datasets)):
            marks = ", ".join("?" * len(part))
            query = f"""SELECT DISTINCT label FROM rows WHERE labelled AND label_row < 0 AND label IS NOT NULL
                        AND shard IN (SELECT shard FROM holds WHERE pk IN ({marks}))"""  # noqa: S608 - question marks
            uuids.update(label for (label,) in self._database.execute(query, part))
        return [found for label in sorted(uuids) if (found := _uuid(label)) is not None]

    def parts(self, split: str, member: int, rows: np.ndarray) -> np.ndarray:
        """Parts of a training, see :class:`~aiida_mlip.kernel.splits.Part`, that rows of its dataset were in.

        :param split: uuid of the split, which is read once.
        :param rows: (n,) row numbers.
        :returns: (n,); empty where it does not say.
        """
        key = (split, member)
        found = self._database.execute("SELECT parts FROM parts WHERE split = ? AND member = ?", key).fetchone()
        if found is None:
            try:
                values = orm.load_node(split).get_array(f"member_{member}")
            except (KeyError, OSError, AttributeError):
                values = np.zeros(0)  # a node does not change: it will not say later, either
            found = (np.ascontiguousarray(values, dtype=np.int8).tobytes(),)
            with self._database:
                self._database.execute("INSERT OR IGNORE INTO parts VALUES (?, ?, ?)", (*key, *found))
        parts = np.frombuffer(found[0], dtype=np.int8)
        return parts[rows] if rows.max(initial=0) < len(parts) else parts[:0]

    def _select(self, column: str, values: list[bytes]) -> list[Row]:
        rows: list[Row] = []
        for part in _chunks(values):
            marks = ", ".join("?" * len(part))
            query = f"SELECT {_ROW} FROM rows WHERE {column} IN ({marks}) ORDER BY shard, row"  # noqa: S608 - our names
            rows += [_record(row) for row in self._database.execute(query, part)]
        return rows


def index_path() -> Path:
    """File of the index of the profile that is loaded."""
    from aiida.manage import get_manager
    from aiida.manage.configuration.settings import AiiDAConfigDir

    profile = get_manager().get_profile()
    if profile is None:
        raise InvalidInputError("no AiiDA profile is loaded")
    return Path(AiiDAConfigDir.get()) / "aiida_mlip" / f"{profile.uuid}.frames.sqlite"


def _connect(path: Path) -> sqlite3.Connection:
    """The index in this file; in memory where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _prepared(path)
    except sqlite3.DatabaseError as error:
        _LOGGER.warning("the index of frames %s is made anew: %s", path, error)
        try:
            path.unlink(missing_ok=True)
            return _prepared(path)
        except (OSError, sqlite3.DatabaseError):
            return _prepared(None)
    except OSError:
        return _prepared(None)


def _prepared(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:" if path is None else path, timeout=_PATIENCE, isolation_level=None)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        if version != _VERSION:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version != _VERSION:  # another command may have made it while this one waited
                    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                        connection.execute(f"DROP TABLE {name}")
                    for statement in _TABLES.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _rows(shard: int, columns: dict[str, np.ndarray], tables: dict[str, tuple[str, ...]]) -> Iterator[tuple[Any, ...]]:
    blobs = [_blobs(columns[name]) for name in ("frame_id", "parent_id", "geometry_uuid", "label_uuid")]
    names = [*tables["fidelities"], None]
    for row, values in enumerate(
        zip(
            *blobs,
            columns["label_row"].tolist(),
            [names[index] for index in columns["fidelity"]],
            columns["failure"].tolist(),
            np.isfinite(columns["energy"]).astype(int).tolist(),
            columns["natoms"].tolist(),
            strict=True,
        )
    ):
        yield (shard, row, *values)


def _blobs(column: np.ndarray) -> list[bytes | None]:
    """(n, 16) -> 16 bytes each, None for zeros."""
    return [bytes(value) if value.any() else None for value in column]


def _atoms(shard: int, columns: dict[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """Atoms of the rows that have a parent, atom by atom."""
    parent_atom, region = columns["parent_atom"], columns["region"]
    if not (parent_atom != NONE).any():
        return
    ends = np.cumsum(columns["natoms"])
    for row, (start, end) in enumerate(zip(ends - columns["natoms"], ends, strict=True)):
        part = slice(int(start), int(end))
        if (parent_atom[part] != NONE).any():
            regions = region[part].tobytes() if region[part].any() else None  # a column that is missing is zeros
            yield shard, row, columns["numbers"][part].tobytes(), regions, parent_atom[part].tobytes()


def _record(values: tuple[Any, ...]) -> Row:
    shard, row, frame, parent, geometry, label, label_row, fidelity, failure, labelled, natoms = values
    return Row(
        shard,
        row,
        frame.hex(),
        None if parent is None else parent.hex(),
        _uuid(geometry),
        _uuid(label),
        label_row,
        fidelity,
        Failure(failure),
        bool(labelled),
        natoms,
    )


def _uuid(value: bytes | None) -> str | None:
    if value is None:
        return None
    digits = value.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _blob(uuid: str) -> bytes:
    return bytes.fromhex(uuid.replace("-", ""))


def _chunks(values: list[Any], size: int = _MOST_VALUES) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
