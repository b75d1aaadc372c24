"""Validated models of user specifications, and the protocols (``fast``, ``moderate``, ``precise``) behind them.

Every specification a person writes (YAML file, ``Dict`` node, builder argument) is read by a :class:`SpecModel`. An
unknown key, a missing one or a value of the wrong kind raises :class:`~aiida_mlip.errors.ProtocolError` naming its
path and, for a key, the nearest valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from aiida_mlip.errors import ProtocolError
from aiida_mlip.io.documents import brief

PROTOCOLS: Final[tuple[str, ...]] = ("fast", "moderate", "precise")
DEFAULT_PROTOCOL: Final[str] = "moderate"
#: Problems of a document that are told.
_MOST_PROBLEMS: Final[int] = 20


class SpecModel(BaseModel):
    """Base of all specification models: frozen, no unknown keys, no silent coercion of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def validate_spec(model: type[Model], data: Any, *, where: str) -> Model:
    """Read ``data`` (plain mappings, lists, scalars) as a model.

    :param where: what the data is called in messages, e.g. ``"fidelities.pbe"``.
    :raises ProtocolError: all problems at once, one line each, with path and nearest valid key.
    """
    if not isinstance(data, Mapping):
        raise ProtocolError(f"{where}: expected a mapping of keys, got {type(data).__name__}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problems = error.errors()
        lines = [_explain(model, problem, where) for problem in problems[:_MOST_PROBLEMS]]
        if len(problems) > len(lines):
            lines.append(f"{where}: and {len(problems) - len(lines)} more")
        raise ProtocolError("\n".join(lines)) from error


def from_protocol(
    model: type[Model], stage: str, protocol: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Model:
    """Model of a stage (``train``, ``fidelity``, ...) from its protocol file, with overrides merged in.

    :raises ProtocolError: unknown protocol or key.
    """
    return validate_spec(model, merged_protocol(stage, protocol, overrides), where=stage)


def merged_protocol(
    stage: str, protocol: str | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Plain values of a protocol of ``protocols/<stage>.yaml`` with overrides merged key by key.

    :raises ProtocolError: unknown protocol.
    """
    name = protocol or DEFAULT_PROTOCOL
    table = _load(stage)
    if name not in table["protocols"]:
        raise ProtocolError(f"{stage}: unknown protocol {name!r}{_nearest(name, list(table['protocols']))}")
    return deep_merge(deep_merge(table.get("base", {}), table["protocols"][name] or {}), overrides or {})


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` merged in; mappings merge key by key, anything else replaces. Inputs are not changed."""
    result: dict[str, Any] = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def check_name(kind: str, name: str, valid: list[str], *, where: str) -> str:
    """``name`` if it is valid.

    :raises ProtocolError: it is not; the message names the nearest valid one.
    """
    if name not in valid:
        raise ProtocolError(f"{where}: unknown {kind} {name!r}{_nearest(name, valid)}")
    return name


@cache
def _load(stage: str) -> dict[str, Any]:
    text = resources.files("aiida_mlip.protocols").joinpath(f"{stage}.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    close = close or [other for other in valid if name and other.startswith(name)]
    listing = f"; valid are {', '.join(sorted(valid))}"
    return f" (did you mean {close[0]!r}?){listing}" if close else listing


def _explain(model: type[BaseModel], problem: Mapping[str, Any], where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join([where, *location])
    if problem["type"] == "extra_forbidden":
        keys = _keys_at(model, problem["loc"][:-1])
        return f"{path}: unknown key {location[-1]!r}{_nearest(location[-1], keys)}"
    if problem["type"] == "missing":
        return f"{path}: missing"
    if problem["type"] == "value_error" and isinstance(problem.get("input"), Mapping):
        return f"{path}: {str(problem['msg']).removeprefix('Value error, ')}"  # keys that do not go together
    return f"{path}: {problem['msg']}, got {brief(repr(problem.get('input')))}"


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Valid keys of the (sub)model at a location of a pydantic error."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None:
            return []
        entry = current.model_fields.get(str(part))
        if entry is None:
            continue  # index of a list, key of a mapping, tag of a union
        current = _submodel(entry.annotation)
    return list(current.model_fields) if current is not None else []


def _submodel(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _submodel(argument)) is not None:
            return found
    return None
