"""Looking inside a packaged model (``.nequip.zip``) without running or unpickling any of it.

A package made by ``nequip-package build`` is a zip that holds pickled modules, the Python source they need, and plain
text: ``model/package_metadata.txt`` (type names, versions) and ``model/config.yaml`` (the training configuration).
Loading the model executes that code; this module only checks the archive and reads the two text members.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Final

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief, load_yaml, plain_text

#: File name extension that NequIP insists on.
EXTENSION: Final[str] = ".nequip.zip"
#: Largest archive accepted, and largest sum of its members once inflated (bytes).
MAX_BYTES: Final[int] = 8 * 1024**3
#: Largest ratio of inflated to stored bytes of one member; NequIP itself stores without compression (ratio 1).
MAX_RATIO: Final[int] = 100
#: Most members of an archive: a large model has about two thousand.
MAX_MEMBERS: Final[int] = 100_000
#: Largest text member that is read (bytes).
MAX_TEXT: Final[int] = 1024**2
#: Longest name of a type, version or variant.
_MAX_WORD: Final[int] = 200

_METADATA: Final[str] = "package_metadata.txt"
_CONFIG: Final[str] = "config.yaml"
_MODEL: Final[str] = "eager_model.pkl"
_CHUNK: Final[int] = 1 << 20
#: Everything that :mod:`zipfile` raises for damaged archives (found by flipping bits: see the tests).
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    IndexError,
)
#: No cutoff is longer (Å); integers of any size are numbers in YAML.
_FAR: Final[float] = 1e6
_LINK: Final[int] = 0o120000
_TYPE_BITS: Final[int] = 0o170000


@dataclass(frozen=True)
class ModelPackage:
    """What a package says about itself in plain text.

    :param sha256: hexadecimal SHA-256 of the file.
    :param size_bytes: size of the file.
    :param type_names: atom types in the order of the model's type index; usually chemical symbols.
    :param cutoff_ang: largest radial cutoff (Å), ``None`` where the training configuration does not say.
    :param model_dtype: ``"float32"`` or ``"float64"``, ``None`` where the configuration does not say.
    :param versions: of the packages it was made with, e.g. ``{"nequip": "0.19.1", "torch": "2.13.0"}``.
    :param available_models: variants inside (``eager``, ``compile``).
    :param format_version: of NequIP's archive format.
    """

    sha256: str
    size_bytes: int
    type_names: tuple[str, ...]
    cutoff_ang: float | None
    model_dtype: str | None
    versions: Mapping[str, str]
    available_models: tuple[str, ...]
    format_version: int


def sha256_of(stream: IO[bytes]) -> str:
    """Hexadecimal SHA-256 of a stream, from its current position to its end, in bounded memory."""
    sha = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        sha.update(chunk)
    return sha.hexdigest()


def read_package(stream: IO[bytes], *, source: str) -> ModelPackage:
    """Check a ``.nequip.zip`` archive completely (every checksum) and read what it says in plain text.

    :param stream: seekable, at its beginning; it is left at its beginning.
    :param source: name of the file or node for messages.
    :raises FileFormatError: not a zip, truncated, a wrong checksum, unsafe member names, links, encrypted or
        absurdly compressed members, or not a NequIP package.
    """
    try:
        stream.seek(0)
        digest, size = sha256_of(stream), stream.tell()
        stream.seek(0)
        if size > MAX_BYTES:
            raise FileFormatError(f"{source}: {size} bytes, larger than the limit of {MAX_BYTES}")
        with zipfile.ZipFile(stream) as archive:
            members = _checked_members(archive, source)
            _check_content(archive, source)
            metadata = _read_yaml(archive, members, _METADATA, source)
            config = _read_yaml(archive, members, _CONFIG, source) if _CONFIG in members else {}
    except FileFormatError:
        raise
    except _UNREADABLE as error:
        raise FileFormatError(
            f"{source}: not a readable model package, truncated or changed ({brief(error)})"
        ) from error
    except OSError as error:
        raise FileFormatError(f"{source}: cannot be read ({error})") from error
    finally:
        if not stream.closed:
            stream.seek(0)
    if _MODEL not in members:
        raise FileFormatError(f"{source}: holds no model ('model/{_MODEL}'); was it made by 'nequip-package build'?")
    return _describe(metadata, config, digest, size, source)


def _checked_members(archive: zipfile.ZipFile, source: str) -> dict[str, zipfile.ZipInfo]:
    """Members of the ``model`` folder by name, after every member of the archive was found harmless."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise FileFormatError(f"{source}: {len(infos)} members, more than {MAX_MEMBERS}")
    seen: set[str] = set()
    model: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name, parts = info.filename, PurePosixPath(info.filename).parts
        if name.startswith("/") or "\\" in name or ".." in parts or (parts and ":" in parts[0]):
            raise FileFormatError(f"{source}: unsafe member name {name!r}")
        if name in seen:
            raise FileFormatError(f"{source}: member {name!r} appears twice")
        seen.add(name)
        if (info.external_attr >> 16) & _TYPE_BITS == _LINK:
            raise FileFormatError(f"{source}: member {name!r} is a link")
        if info.flag_bits & 0x1:
            raise FileFormatError(f"{source}: member {name!r} is encrypted")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise FileFormatError(
                f"{source}: member {name!r} inflates {info.compress_size} to {info.file_size} bytes, "
                f"more than {MAX_RATIO} times"
            )
        if len(parts) == 3 and parts[1] == "model":
            model[parts[2]] = info
    if (total := sum(info.file_size for info in infos)) > MAX_BYTES:
        raise FileFormatError(f"{source}: inflates to {total} bytes, more than the limit of {MAX_BYTES}")
    roots = {PurePosixPath(name).parts[0] for name in seen if PurePosixPath(name).parts}
    if len(roots) != 1 or _METADATA not in model:
        raise FileFormatError(
            f"{source}: not a NequIP package (no 'model/{_METADATA}' in a single top folder); "
            "make one with 'nequip-package build best.ckpt model.nequip.zip'"
        )
    return model


def _check_content(archive: zipfile.ZipFile, source: str) -> None:
    """Inflate every member in bounded memory, which checks its size and checksum."""
    for info in archive.infolist():
        length = 0
        with archive.open(info) as handle:
            while chunk := handle.read(_CHUNK):
                length += len(chunk)
        if length != info.file_size:
            raise FileFormatError(f"{source}: member {info.filename!r} has {length} bytes, expected {info.file_size}")


def _read_yaml(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, source: str
) -> dict[str, Any]:
    info = members[name]
    if info.file_size > MAX_TEXT:
        raise FileFormatError(f"{source}: 'model/{name}' has {info.file_size} bytes, more than {MAX_TEXT}")
    data = load_yaml(archive.read(info), source=f"{source}: 'model/{name}'")
    if not isinstance(data, dict):
        raise FileFormatError(f"{source}: 'model/{name}' is not a mapping")
    return data


def _describe(
    metadata: Mapping[str, Any], config: Mapping[str, Any], digest: str, size: int, source: str
) -> ModelPackage:
    types = metadata.get("atom_types")
    if not isinstance(types, dict) or not types or {type(key) for key in types} != {int}:
        raise FileFormatError(f"{source}: 'model/{_METADATA}' names no atom types (key 'atom_types')")
    if set(types) != set(range(len(types))) or len(_words(types)) < len(types):
        raise FileFormatError(f"{source}: 'model/{_METADATA}' names no atom types for 0, 1, ... (key 'atom_types')")
    module = config.get("training_module")
    model = module.get("model", {}) if isinstance(module, dict) else {}
    # a fine-tuned model's own section names only its origin; its transforms were made for the same cutoff
    cutoffs = _numbers(model, "r_max") or _numbers(config.get("data"), "r_max")
    dtypes = [value for value in _values(model, "model_dtype") if value in ("float32", "float64")]
    available = metadata.get("available_models")
    version = metadata.get("package_version_id")
    return ModelPackage(
        sha256=digest,
        size_bytes=size,
        type_names=tuple(_words(types)[str(index)] for index in range(len(types))),
        cutoff_ang=max(cutoffs) if cutoffs else None,
        model_dtype=dtypes[0] if dtypes else None,
        versions=_words(metadata.get("versions")),
        available_models=tuple(_words(dict(enumerate(available))).values()) if isinstance(available, list) else (),
        format_version=version if isinstance(version, int) and 0 <= version < _FAR else 0,
    )


def _words(tree: Any) -> dict[str, str]:
    """Short words and numbers of a mapping as text; whatever else is in it (an alias may make it endless) is left."""
    if not isinstance(tree, dict):
        return {}
    pairs = ((_word(key), _word(value)) for key, value in tree.items())
    return {key: value for key, value in pairs if key is not None and value is not None}


def _word(value: Any) -> str | None:
    if isinstance(value, int | float) and abs(value) < _FAR:
        return str(value)
    return plain_text(value) if isinstance(value, str) and len(value) <= _MAX_WORD else None


def _numbers(tree: Any, key: str) -> list[float]:
    """Positive finite numbers under a key, anywhere in a tree of mappings and lists."""
    values = (v for v in _values(tree, key) if isinstance(v, int | float) and not isinstance(v, bool))
    found = [float(v) for v in values if abs(v) < _FAR]
    return [value for value in found if math.isfinite(value) and value > 0]


def _values(tree: Any, key: str) -> Iterator[Any]:
    """Values under a key, anywhere in a tree; a node that YAML aliases repeat is visited once."""
    todo, seen = [tree], set()
    while todo:
        node = todo.pop()
        if not isinstance(node, dict | list) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            if key in node:
                yield node[key]
            todo.extend(node.values())
        else:
            todo.extend(node)
