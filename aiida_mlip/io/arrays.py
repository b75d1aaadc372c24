"""Named arrays as deterministic ``.npz`` bytes: equal arrays give equal files, readable by ``numpy.load``.

Reading trusts nothing: archives are uncompressed, so what an array takes is bounded by the file; sizes and types are
checked before anything is allocated; nothing is ever unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

import numpy as np

from aiida_mlip.errors import FileFormatError, InvalidInputError

_EPOCH: Final[tuple[int, int, int, int, int, int]] = (1980, 1, 1, 0, 0, 0)
_SUFFIX: Final[str] = ".npy"
#: Most arrays of an archive.
MAX_ARRAYS: Final[int] = 100_000
#: Longest header of an array (bytes): the widest of ours has 128.
_MAX_HEADER: Final[int] = 4096
#: Kinds of numbers and fixed-width text; no Python objects, no records, no dates.
_KINDS: Final[str] = "biufcSU"
#: What a damaged or hostile archive or array makes the readers raise.
UNREADABLE: Final[tuple[type[Exception], ...]] = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    SyntaxError,
    RuntimeError,  # encrypted members, headers nested without end, compressions that do not exist
    MemoryError,  # literals nested without end
    struct.error,
    tokenize.TokenError,
)


def write_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Bytes of an uncompressed ``.npz`` file, in the order of the names, without time stamps.

    :param arrays: numbers, booleans or fixed-width text; no Python objects.
    :raises InvalidInputError: an array of Python objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            value = np.asarray(arrays[name], order="C")
            if value.dtype.hasobject:
                raise InvalidInputError(f"array {name!r} holds Python objects ({value.dtype}); give numbers or text")
            member = io.BytesIO()
            np.lib.format.write_array(member, value, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH), member.getvalue())
    return buffer.getvalue()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, read completely.

    :raises FileFormatError: missing, truncated, no such archive, compressed, or arrays of anything but numbers and
        text; names the file.
    """
    try:
        with path.open("rb") as stream:
            return read_npz_stream(stream, source=path.name)
    except OSError as error:
        raise FileFormatError(f"{path.name}: cannot be read ({error.strerror or error})") from error


def read_npz_stream(stream: IO[bytes], *, source: str) -> dict[str, np.ndarray]:
    """The same of an open file.

    :param stream: seekable.
    :param source: its name in messages.
    :raises FileFormatError: see :func:`read_npz`.
    """
    try:
        size = stream.seek(0, io.SEEK_END)
        with zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_ARRAYS or sum(info.file_size for info in infos) > size:
                raise FileFormatError(f"{source}: {len(infos)} arrays of more bytes than the file has: compressed?")
            if len({info.filename for info in infos}) < len(infos):
                raise FileFormatError(f"{source}: an array appears twice")
            return {info.filename.removesuffix(_SUFFIX): _member(archive, info, source) for info in infos}
    except FileFormatError:
        raise
    except UNREADABLE as error:
        raise FileFormatError(f"{source}: not a readable archive of arrays ({error})") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file.

    :raises FileFormatError: missing, truncated, or anything but numbers and text; names the file.
    """
    try:
        return _array(path.read_bytes(), source=path.name)
    except FileFormatError:
        raise
    except UNREADABLE as error:
        raise FileFormatError(f"{path.name}: not a readable array ({error})") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> np.ndarray:
    name = info.filename
    if not name.endswith(_SUFFIX) or "/" in name or "\\" in name:
        raise FileFormatError(f"{source}: member {name!r} is no array")
    if info.compress_type != zipfile.ZIP_STORED:
        raise FileFormatError(f"{source}: array {name!r} is compressed; write it uncompressed")
    return _array(archive.read(info), source=f"{source}, array {name.removesuffix(_SUFFIX)!r}")


def _array(data: bytes, *, source: str) -> np.ndarray:
    """Writable array of the bytes of a ``.npy`` file."""
    stream = io.BytesIO(data[: _MAX_HEADER + 12])
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=_MAX_HEADER)
    else:
        raise FileFormatError(f"{source}: array format {version} is not supported")
    if dtype.kind not in _KINDS or dtype.itemsize == 0 or dtype.subdtype is not None:
        raise FileFormatError(f"{source}: holds {dtype}; only numbers and text are read")
    if any(length < 0 for length in shape):
        raise FileFormatError(f"{source}: negative shape {shape}")
    body = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != body:
        raise FileFormatError(f"{source}: shape {shape} of {dtype} does not fit into {body} bytes")
    flat = np.frombuffer(bytearray(data[stream.tell() :]), dtype=dtype) if body else np.empty(0, dtype=dtype)
    if dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        raise FileFormatError(f"{source}: truth values other than 0 and 1")
    if dtype.kind == "U" and not _is_text(flat.view(dtype.byteorder.replace("|", "=") + "u4")):
        raise FileFormatError(f"{source}: text with characters that do not exist")
    return flat.reshape(shape, order="F" if fortran else "C")


def _is_text(codes: np.ndarray) -> bool:
    """Whether these are code points of characters: none above the last, no lone surrogates."""
    return bool(((codes < 0xD800) | ((codes > 0xDFFF) & (codes <= 0x10FFFF))).all())
