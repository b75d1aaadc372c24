"""JSON and YAML from elsewhere: bounded, plain data that a database can hold, and errors that name the file.

A document is refused when it is too long, nested too deep, expands to too much (YAML aliases), or is not UTF-8. What no
database stores becomes what it can: lone surrogates and the null character are replaced in texts.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from aiida_mlip.errors import FileFormatError

#: Longest document that is read (bytes).
MAX_BYTES: Final[int] = 64 * 1024**2
#: YAML is read a hundred times more slowly than JSON.
MAX_YAML_BYTES: Final[int] = 1024**2
#: Deepest nesting; what walks through plain data by recursion stays far from the interpreter's limit.
MAX_DEPTH: Final[int] = 60
#: Most values, those that aliases repeat counted every time; YAML is what people write.
MAX_VALUES: Final[int] = 5_000_000
MAX_YAML_VALUES: Final[int] = 200_000
#: Largest integer: what databases and numpy hold.
MAX_INTEGER: Final[int] = 2**63 - 1
_UNSTORABLE: Final[re.Pattern[str]] = re.compile("[\x00\ud800-\udfff]")
_REPLACEMENT: Final[str] = "\N{REPLACEMENT CHARACTER}"
#: What PyYAML raises for malformed documents, the constructors of its tags included.
_NOT_YAML: Final[tuple[type[Exception], ...]] = (
    yaml.YAMLError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
)

Model = TypeVar("Model", bound=BaseModel)


def parse_json(data: bytes | str, *, source: str, finite: bool = True, what: str = "JSON document") -> Any:
    """Plain data of a JSON document.

    :param source: what to call the document in messages.
    :param finite: refuse NaN and infinite numbers; else they are kept.
    :param what: what it should be, in messages.
    :raises FileFormatError: see the text of the module; names the source.
    """
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{source}: {len(data)} bytes, more than {MAX_BYTES}")
    try:
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source}: not a readable {what} ({brief(error)})") from error
    return _storable(value, source, finite, 0, _Budget(MAX_VALUES))


def parse_yaml(data: bytes | str, *, source: str) -> Any:
    """Plain data of a YAML document, made without running any of its tags.

    :param source: what to call the document in messages.
    :raises FileFormatError: see the text of the module; names the source.
    """
    value = load_yaml(data, source=source)
    return _storable(value, source, False, 0, _Budget(MAX_YAML_VALUES))


def load_yaml(data: bytes | str, *, source: str) -> Any:
    """The same without a look at the values: aliases may make it endless.

    :raises FileFormatError: too long, not UTF-8, or no YAML; names the source.
    """
    if len(data) > MAX_YAML_BYTES:
        raise FileFormatError(f"{source}: {len(data)} bytes, more than {MAX_YAML_BYTES}")
    try:
        return yaml.safe_load(data if isinstance(data, str) else data.decode("utf-8"))
    except _NOT_YAML as error:
        raise FileFormatError(f"{source}: not readable YAML ({brief(error)})") from error


def parse_model(data: bytes | str, kind: type[Model], *, source: str) -> Model:
    """JSON document as a model.

    :raises FileFormatError: no JSON, or keys and values that the model does not have; names the first ones.
    """
    value = parse_json(data, source=source)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()[:3]]
        raise FileFormatError(f"{source}: {brief('; '.join(found))}") from error


def plain_text(text: str) -> str:
    """Text without what databases do not hold: the null character and lone surrogates are replaced."""
    return _UNSTORABLE.sub(_REPLACEMENT, text)


def brief(message: object, limit: int = 500) -> str:
    """Beginning of a message, fit for an exit code: what a file says can be megabytes long."""
    text = plain_text(str(message)).strip()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def clipped_lines(text: str, width: int = 2000) -> str:
    """Text with its lines cut to a length: searching a line for patterns may cost the square of its length."""
    if len(text) <= width:
        return text
    return "\n".join(line if len(line) <= width else line[:width] for line in text.split("\n"))


@dataclass
class _Budget:
    """How many values a document may have."""

    most: int
    spent: int = 0


def _storable(value: Any, source: str, finite: bool, depth: int, budget: _Budget) -> Any:
    """A copy of plain data that a database can hold."""
    budget.spent += 1
    if budget.spent > budget.most:
        raise FileFormatError(f"{source}: more than {budget.most} values")
    if isinstance(value, str):
        return plain_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise FileFormatError(f"{source}: an integer of {value.bit_length()} bits, more than 64")
        return value
    if isinstance(value, float):
        if finite and not math.isfinite(value):
            raise FileFormatError(f"{source}: a number that is not finite")
        return value
    if depth >= MAX_DEPTH:
        raise FileFormatError(f"{source}: nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [_storable(item, source, finite, depth + 1, budget) for item in value]
    if isinstance(value, dict):
        return {_key(key, source): _storable(item, source, finite, depth + 1, budget) for key, item in value.items()}
    raise FileFormatError(f"{source}: a value of the type {type(value).__name__}, which JSON does not have")


def _key(key: Any, source: str) -> Any:
    if isinstance(key, str):
        return plain_text(key)
    if key is None or isinstance(key, bool | float) or (isinstance(key, int) and abs(key) <= MAX_INTEGER):
        return key
    raise FileFormatError(f"{source}: a key of the type {type(key).__name__}")
