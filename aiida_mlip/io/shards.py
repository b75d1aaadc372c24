"""Shards: the bytes of :class:`~aiida_mlip.kernel.frames.Frames`, deterministic and readable by ``numpy.load``.

A shard is an uncompressed zip of ``.npy`` columns plus ``header.json`` (version, name tables). Columns that are
entirely absent (no forces anywhere, say) are left out. Equal frames give equal bytes, so a shard is named by its
SHA-256 and a content-addressed store keeps it once.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from typing import IO, Any, Final

import numpy as np

from aiida_mlip.errors import FileFormatError
from aiida_mlip.kernel.frames import ATOM_COLUMNS, OPTIONAL_ATOM_COLUMNS, ROW_COLUMNS, Frames

VERSION: Final[int] = 1
#: Rows per shard: large enough that a file is not a cost, small enough that one shard fits in memory many times.
ROWS_PER_SHARD: Final[int] = 10_000
_HEADER: Final[str] = "header.json"
_SUFFIX: Final[str] = ".npy"
_EPOCH: Final[tuple[int, int, int, int, int, int]] = (1980, 1, 1, 0, 0, 0)


def write_shard(frames: Frames) -> bytes:
    """Deterministic bytes of a shard."""
    buffer = io.BytesIO()
    header = {"version": VERSION, "fidelities": frames.fidelities, "generators": frames.generators}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, _HEADER, json.dumps(header, sort_keys=True).encode())
        for name, value in _columns(frames):
            member = io.BytesIO()
            np.lib.format.write_array(member, value, version=(1, 0), allow_pickle=False)
            _write_member(archive, name + _SUFFIX, member.getbuffer())
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
        raise FileFormatError(f"{source}: {error}") from error


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


def _columns(frames: Frames) -> Iterable[tuple[str, np.ndarray]]:
    """Columns worth writing, in a fixed order and byte layout."""
    yield "natoms", np.ascontiguousarray(frames.natoms, dtype="<i4")
    for table in (ROW_COLUMNS, ATOM_COLUMNS, OPTIONAL_ATOM_COLUMNS):
        for name, (dtype, _, absent) in table.items():
            value = getattr(frames, name)
            if value is None:
                continue
            value = np.ascontiguousarray(value, dtype=dtype)
            blank = np.isnan(value).all() if np.isnan(absent) else not (value != absent).any()
            if blank and name not in ("numbers", "positions", "cell", "frame_id"):
                continue
            yield name, value


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.external_attr = 0o644 << 16
    with archive.open(info, "w") as handle:
        handle.write(data)


def _read(stream: IO[bytes], wanted: set[str] | None, source: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    known = {"natoms": ("<i4", ()), **{k: v[:2] for k, v in _ALL.items()}}
    columns: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(stream) as archive:
            header = json.loads(archive.read(_HEADER))
            if not isinstance(header, dict) or header.get("version") != VERSION:
                raise FileFormatError(f"{source}: not a shard of version {VERSION}")
            for info in archive.infolist():
                name = info.filename.removesuffix(_SUFFIX)
                if info.filename == _HEADER or (wanted is not None and name not in wanted):
                    continue
                if name not in known:
                    raise FileFormatError(f"{source}: unknown column {info.filename!r}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise FileFormatError(f"{source}: column {name!r} is compressed")
                columns[name] = _read_array(archive.read(info))
                dtype, shape = known[name]
                if columns[name].dtype != np.dtype(dtype) or columns[name].shape[1:] != shape:
                    raise FileFormatError(
                        f"{source}: column {name!r} is {columns[name].dtype} {columns[name].shape}, "
                        f"expected {dtype} (*, {shape})"
                    )
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{source}: not a readable shard ({error})") from error
    if "natoms" not in columns:
        raise FileFormatError(f"{source}: column 'natoms' is missing")
    if (columns["natoms"] < 0).any():
        raise FileFormatError(f"{source}: negative number of atoms")
    return header, columns


def _read_array(data: bytes) -> np.ndarray:
    """A .npy member as a writable array, without copying the data twice and without ever unpickling."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise FileFormatError(f"array format {version} is not supported")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise FileFormatError("array is in Fortran order or holds Python objects")
    return np.frombuffer(bytearray(memoryview(data)[stream.tell() :]), dtype=dtype).reshape(shape)


_ALL: Final = {**ROW_COLUMNS, **ATOM_COLUMNS, **OPTIONAL_ATOM_COLUMNS}
