"""What damage and malice do to files: mutations of bytes, texts, archives and documents from one random source."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

#: Words that readers stumble over.
WORDS = (
    b"nan", b"-nan", b"inf", b"-inf", b"1e400", b"-1", b"0", b"1e-400", b"9" * 30, b"9" * 5000, b"1_0", b"0x10",
    b"True",
    b"None", b"\xc2\xb2", b"\xd9\xa3", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN",
    b"Infinity",
    b"-Infinity", b"null", b"[]", b"{}", b'""', b"[" * 3000, b'{"a":' * 3000, b"&a [*a]",
    b"!!python/object:os.system x",
    b"!!bool x", b"!!int ''", b"!!timestamp x", b"../../etc/passwd", b"/etc/passwd", b"$(touch x)",
    b"`touch x`", b"'\"",
    b"\r", b"\n\n", b"\t", b"=", b"{", b"}", b'"', b",", b":", b"#", b"1e308", b"-2147483649", b"18446744073709551616",
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x" * 5000, "\ud800",
    "\x00", "²", [],
    {}, [[]], [None] * 50, {"": None}, {"a": {"b": []}}, "$(touch x)", "<script>", -(10**30), [1e400],
    {"x": float("nan")},
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)

Mutation = Callable[[random.Random, bytes], bytes]


def mutated(rng: random.Random, seeds: Sequence[bytes], *, archive: bool = False, document: bool = False) -> bytes:
    """A seed with some damage.

    :param archive: the seeds are zip files: half of the time members are changed and the archive is made anew.
    :param document: the seeds are JSON: half of the time values are changed.
    """
    data = rng.choice(seeds)
    if archive and rng.random() < 0.6:
        return _archive(rng, data)
    if document and rng.random() < 0.6:
        return _document(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        data = rng.choice(BYTES)(rng, data)
        if rng.random() < 0.05:
            data = _splice(rng, data, rng.choice(seeds))
    return data


def _place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1024)))


def _flip(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\x00"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 100)) + data[end:]


def _noise(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[rng.choice((start, end)) :]


def _word(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.choice(WORDS) + data[rng.choice((start, end)) :]


def _number(rng: random.Random, data: bytes) -> bytes:
    """Overwrite a binary number."""
    kind = rng.choice(("<B", "<H", "<I", "<Q", ">I", ">Q"))
    size = struct.calcsize(kind)
    start = _place(rng, data)
    return data[:start] + struct.pack(kind, rng.choice(NUMBERS) % 256**size) + data[start + size :]


def _token(rng: random.Random, data: bytes) -> bytes:
    """Replace one word of a text."""
    parts = data.split(b" ")
    parts[rng.randrange(len(parts))] = rng.choice(WORDS)
    return b" ".join(parts)


def _lines(rng: random.Random, data: bytes) -> bytes:
    """Drop, repeat or exchange lines."""
    lines = data.split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(3)
    if what == 0:
        del lines[first]
    elif what == 1:
        lines.insert(first, lines[second])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


BYTES: tuple[Mutation, ...] = (_flip, _cut, _remove, _repeat, _noise, _word, _number, _token, _lines)

_DTYPES_AND_SHAPES = (
    ("'<f8'", "(10**12,)"), ("'|O'", "(1,)"), ("'<f8'", "(1000000000000,)"), ("'<f8'", "(-1,)"),
    ("'<U0'", "(99999999999,)"), ("'|V0'", "(99999999999,)"), ("[('a', '<f8')]", "()"), ("'<M8[s]'", "(1,)"),
    ("'>i4'", "(2, 2)"), ("'<f8'", "(2**63,)"), ("'<U1'", "(2,)"), ("'|b1'", "(8,)"), ("'<f8'", "(True,)"),
)  # fmt: skip
NPY_HEADERS = (
    *(f"{{'descr': {d}, 'fortran_order': False, 'shape': {s}, }}" for d, s in _DTYPES_AND_SHAPES),
    "{'descr': '>i4', 'fortran_order': True, 'shape': (2, 2), }",
    "((((((",
    "",
)
NAMES = (
    "/etc/passwd", "../../x.npy", "..\\x.npy", "a/b.npy", "x", "", "natoms.npy", "energy.npy", "header.json",
    "é.npy", "\x00.npy",
    "C:/x.npy", "." * 300 + ".npy", "a b.npy", "report.npy", "part.npy",
)  # fmt: skip


def _archive(rng: random.Random, data: bytes) -> bytes:
    """The archive made anew, checksums right: members changed, renamed, repeated, packed, linked or left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info), 0o644 << 16, zipfile.ZIP_STORED) for info in old.infolist()]
    for _ in range(rng.choice((1, 1, 2, 4)) if members else 0):
        where = rng.randrange(len(members))
        name, body, mode, packed = members[where]
        what = rng.randrange(8)
        if what == 0:
            body = mutated(rng, [body])
        elif what == 1:
            body = _npy(rng, body)
        elif what == 2:
            name = rng.choice(NAMES) if rng.random() < 0.5 else mutated(rng, [name.encode()]).decode("latin-1")
        elif what == 3:
            mode = rng.choice((0o120777, 0o040755, 0o010644, 0o777)) << 16
        elif what == 4:
            packed = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        elif what == 5:
            body, packed = bytes(rng.choice((10**5, 3 * 10**6))), zipfile.ZIP_DEFLATED
        elif what == 6:
            members.insert(rng.randrange(len(members)), (name, body, mode, packed))
        elif len(members) > 1:
            del members[where]
            continue
        where = min(where, len(members) - 1)
        members[where] = (name, body, mode, packed)
    return _zipped(members)


def _zipped(members: Sequence[tuple[str, bytes, int, int]]) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # names that repeat
        for name, body, mode, packed in members:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode
            info.compress_type = packed
            archive.writestr(info, body)
    return buffer.getvalue()


def _npy(rng: random.Random, body: bytes) -> bytes:
    """Another header on the same numbers, or extreme numbers behind the same header."""
    if rng.random() < 0.5 or len(body) < 136:
        text = rng.choice(NPY_HEADERS).encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body[-rng.choice((0, 8, 16, 64)) :]
    start = rng.randrange(128, len(body))
    extreme = rng.choice((b"\x00" * 8, b"\xff" * 8, struct.pack("<d", float("nan")), struct.pack("<d", float("inf"))))
    start -= (start - 128) % rng.choice((1, 2, 4, 8))
    return (body[:start] + extreme)[: len(body)] + body[start + 8 :]


def _document(rng: random.Random, data: bytes) -> bytes:
    """A JSON document with values replaced, removed, repeated or wrapped."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(rng, value)
    try:
        text = json.dumps(value)
    except RecursionError:  # nested deeper than can be written
        text = "[" * 5000
    return text.encode("utf-8", errors="surrogatepass")


def _changed(rng: random.Random, value: Any) -> Any:
    """One place of a tree changed, found by walking down."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if (what := rng.random()) < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.2:
            return {**value, rng.choice(("extra", "", "\ud800", key + "x")): rng.choice(HOSTILE)}
        return {**value, key: _changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        where = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:where] + value[where + 1 :]
        return [*value[:where], _changed(rng, value[where]), *value[where + 1 :]]
    if rng.random() < 0.1:
        for _ in range(rng.choice((1, 70, 900))):
            value = [value]
        return value
    return rng.choice(HOSTILE)


def gzipped(data: bytes) -> bytes:
    """The same packed."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()
