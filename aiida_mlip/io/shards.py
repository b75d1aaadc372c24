"""Shards: the bytes of :class:`~aiida_mlip.kernel.frames.Frames`, deterministic and readable by ``numpy.load``.

A shard is an uncompressed zip of ``.npy`` columns plus ``header.json`` (version, name tables). Columns that are
entirely absent (no forces anywhere, say) are left out. Equal frames give equal bytes, so a shard is named by its
SHA-256 and a content-addressed store keeps it once.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO, Any, Final

import numpy as np

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.arrays import UNREADABLE
from aiida_mlip.io.documents import brief, parse_json
from aiida_mlip.kernel.frames import ATOM_COLUMNS, NONE, OPTIONAL_ATOM_COLUMNS, ROW_COLUMNS, Failure, Frames, frame_ids

VERSION: Final[int] = 1
#: Rows per shard: large enough that a file is not a cost, small enough that one shard fits in memory many times.
ROWS_PER_SHARD: Final[int] = 10_000
_HEADER: Final[str] = "header.json"
_SUFFIX: Final[str] = ".npy"
#: Largest header of names (bytes).
MAX_HEADER_BYTES: Final[int] = 4 * 1024**2
#: Largest atomic number that has a symbol.
_HEAVIEST: Final[int] = 118
#: Bytes within which the header of an array must end.
_MAX_ARRAY_HEADER: Final[int] = 4096
_TABLES: Final[tuple[str, str]] = ("fidelities", "generators")
#: Columns that every shard has.
_ALWAYS: Final[tuple[str, ...]] = ("numbers", "positions", "cell", "frame_id")
_EPOCH: Final[tuple[int, int, int, int, int, int]] = (1980, 1, 1, 0, 0, 0)


def write_shard(frames: Frames) -> bytes:
    """Deterministic bytes of a shard."""
    buffer = io.BytesIO()
    header = {"version": VERSION, "fidelities": frames.fidelities, "generators": frames.generators}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, _HEADER, json.dumps(header, sort_keys=True).encode())
        for name, value in _columns(frames):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(value))
            # an empty array has no bytes to take a view of
            body = memoryview(value.data).cast("B") if value.size else b""
            _write_member(archive, name + _SUFFIX, head.getvalue(), body)
    return buffer.getvalue()


def shard_name(data: bytes) -> str:
    """File name of a shard: its content hash."""
    return f"{hashlib.sha256(data).hexdigest()}.npz"


def read_shard(stream: IO[bytes], *, source: str = "shard") -> Frames:
    """Frames of a shard.

    :raises FileFormatError: truncated, of another version, or with columns of the wrong type or shape.
    """
    header, columns = _read(stream, None, source)
    natoms = columns["natoms"]
    n, a = len(natoms), int(natoms.sum())
    for name, (dtype, shape, absent) in {**ROW_COLUMNS, **ATOM_COLUMNS}.items():
        if name not in columns:
            columns[name] = np.full((n if name in ROW_COLUMNS else a, *shape), absent, dtype=dtype)
    try:
        return Frames(**columns, fidelities=tuple(header["fidelities"]), generators=tuple(header["generators"]))
    except (TypeError, ValueError, KeyError) as error:
        raise FileFormatError(f"{source}: {brief(error)}") from error


def read_foreign_shard(stream: IO[bytes], *, source: str) -> Frames:
    """Frames of a shard that a job left or a person gave: readable, and frames that can be.

    The frame ids must be those of the geometries: what is already labelled is recognised by them.

    :raises FileFormatError: as :func:`read_shard`, or rows without atoms, atoms without an element, positions, cells or
        labels that are infinite, labels of no level of theory, failures that do not exist, wrong frame ids.
    """
    frames = read_shard(stream, source=source)
    labels = (frames.energy, frames.forces, frames.stress)
    wrong = {
        "no rows": len(frames) == 0,
        "rows without atoms": (frames.natoms < 1).any(),
        f"atomic numbers other than 1..{_HEAVIEST}": ((frames.numbers < 1) | (frames.numbers > _HEAVIEST)).any(),
        "positions that are not finite": not np.isfinite(frames.positions).all(),
        "cells that are not finite": not np.isfinite(frames.cell).all(),
        "periodicities other than 0 and 1": frames.pbc.view(np.uint8).max(initial=0) > 1,
        "infinite labels": any(np.isinf(values).any() for values in labels),
        "failures that do not exist": frames.failure.max(initial=0) > max(Failure),
        "names that repeat": any(len(set(names)) < len(names) for names in (frames.fidelities, frames.generators)),
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise FileFormatError(f"{source}: {', '.join(found)}")
    if (frames.labelled & (frames.fidelity == NONE)).any():
        raise FileFormatError(f"{source}: labels without a level of theory")
    if (changed := (frames.frame_id != frame_ids(frames)).any(axis=1)).any():
        raise FileFormatError(f"{source}, frame {int(changed.argmax())}: the frame id is not that of the geometry")
    return frames


def read_columns(stream: IO[bytes], names: Iterable[str], *, source: str = "shard") -> dict[str, np.ndarray]:
    """Only some columns of a shard, without reading the others; ``natoms`` is always among them.

    :raises FileFormatError: see :func:`read_shard`.
    """
    wanted = {"natoms", *names}
    _, columns = _read(stream, wanted, source)
    n, a = len(columns["natoms"]), int(columns["natoms"].sum())
    for name in wanted - set(columns):
        spec = ROW_COLUMNS.get(name) or ATOM_COLUMNS.get(name) or OPTIONAL_ATOM_COLUMNS[name]
        columns[name] = np.full((n if name in ROW_COLUMNS else a, *spec[1]), spec[2], dtype=spec[0])
    return columns


def read_tables(stream: IO[bytes], *, source: str = "shard") -> dict[str, tuple[str, ...]]:
    """Name tables of a shard: ``fidelities`` and ``generators``.

    :raises FileFormatError: see :func:`read_shard`.
    """
    header, _ = _read(stream, {"natoms"}, source)
    return {name: tuple(header[name]) for name in _TABLES}


def _columns(frames: Frames) -> Iterable[tuple[str, np.ndarray]]:
    """Columns worth writing, in a fixed order and byte layout."""
    yield "natoms", np.ascontiguousarray(frames.natoms, dtype="<i4")
    for table in (ROW_COLUMNS, ATOM_COLUMNS, OPTIONAL_ATOM_COLUMNS):
        for name, (dtype, _, absent) in table.items():
            value = getattr(frames, name)
            if value is None:
                continue
            value = np.ascontiguousarray(value, dtype=dtype)
            if name not in _ALWAYS and table is not OPTIONAL_ATOM_COLUMNS and _is_blank(value, absent):
                continue
            yield name, value


def _is_blank(value: np.ndarray, absent: float) -> bool:
    """Whether nothing but the "absent" value is in a column; most columns are told by their first entry."""
    return all(np.isnan(part).all() if np.isnan(absent) else (part == absent).all() for part in (value[:1], value))


def _write_member(archive: zipfile.ZipFile, name: str, *parts: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.external_attr = 0o644 << 16
    with archive.open(info, "w") as handle:
        for part in parts:
            handle.write(part)


def _read(stream: IO[bytes], wanted: set[str] | None, source: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    known = {"natoms": ("<i4", ()), **{k: v[:2] for k, v in _ALL.items()}}
    columns: dict[str, np.ndarray] = {}
    # everything is wanted: one buffer, and arrays that are views of it; else only the members wanted are read
    data = None if wanted is not None else bytearray(stream.read())
    try:
        with zipfile.ZipFile(stream if data is None else io.BytesIO(data)) as archive:
            header = _read_header(archive, source)
            for info in archive.infolist():
                name = info.filename.removesuffix(_SUFFIX)
                if info.filename == _HEADER or (wanted is not None and name not in wanted):
                    continue
                if name not in known or name in columns:
                    raise FileFormatError(f"{source}: unknown or repeated column {info.filename!r}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise FileFormatError(f"{source}: column {name!r} is compressed")
                columns[name] = _read_array(bytearray(archive.read(info)) if data is None else _member(info, data))
                dtype, shape = known[name]
                if columns[name].dtype != np.dtype(dtype) or columns[name].shape[1:] != shape:
                    raise FileFormatError(
                        f"{source}: column {name!r} is {columns[name].dtype} {columns[name].shape}, "
                        f"expected {dtype} (*, {shape})"
                    )
            lengths = {name: _member_length(archive, name) for name in _ALWAYS}
    except UNREADABLE as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{source}: not a readable shard ({brief(error)})") from error
    if "natoms" not in columns:
        raise FileFormatError(f"{source}: column 'natoms' is missing")
    if (columns["natoms"] < 0).any():
        raise FileFormatError(f"{source}: negative number of atoms")
    # what is absent is filled in by these numbers: they must be true before anything is allocated
    n, a = len(columns["natoms"]), int(columns["natoms"].sum(dtype=np.int64))
    for name, length in lengths.items():
        if length != (n if name in ROW_COLUMNS else a):
            raise FileFormatError(f"{source}: column {name!r} has {length} entries for {n} rows and {a} atoms")
    return header, columns


def _read_header(archive: zipfile.ZipFile, source: str) -> dict[str, Any]:
    info = archive.getinfo(_HEADER)
    if info.compress_type != zipfile.ZIP_STORED:
        raise FileFormatError(f"{source}: the header is compressed")
    if info.file_size > MAX_HEADER_BYTES:
        raise FileFormatError(f"{source}: a header of {info.file_size} bytes, more than {MAX_HEADER_BYTES}")
    header = parse_json(archive.read(info), source=f"{source}, header")
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise FileFormatError(f"{source}: not a shard of version {VERSION}")
    for table in _TABLES:
        names = header.get(table)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileFormatError(f"{source}: {table!r} is not a list of names")
    return header


def _member_length(archive: zipfile.ZipFile, name: str) -> int:
    """Length of a column from its array header, without reading the column."""
    with archive.open(name + _SUFFIX) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"column {name!r} is of an unknown array format")
        shape, _, _ = np.lib.format.read_array_header_1_0(member)
    if not shape:
        raise ValueError(f"column {name!r} has no length")
    return int(shape[0])


def _member(info: zipfile.ZipInfo, data: bytearray) -> memoryview:
    """Writable view of a stored member's bytes, checked against its CRC."""
    local = info.header_offset
    name_length, extra_length = struct.unpack_from("<HH", data, local + 26)
    start = local + 30 + name_length + extra_length
    view = memoryview(data)[start : start + info.file_size]
    if len(view) != info.file_size or zlib.crc32(view) != info.CRC:
        raise ValueError(f"member {info.filename!r} is damaged")
    return view


def _read_array(data: bytearray | memoryview) -> np.ndarray:
    """A .npy member as a writable view of its bytes, without ever unpickling."""
    stream = io.BytesIO(data[:_MAX_ARRAY_HEADER])
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"array format {version} is not supported")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError("array is in Fortran order or holds Python objects")
    return np.frombuffer(memoryview(data)[stream.tell() :], dtype=dtype).reshape(shape)


_ALL: Final = {**ROW_COLUMNS, **ATOM_COLUMNS, **OPTIONAL_ATOM_COLUMNS}
