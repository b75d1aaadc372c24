"""All properties of a validation side by side with their reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from aiida import orm

from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.properties.comparison import Judgement, judge, verdict
from aiida_mlip.kernel.properties.dynamics import distribution_difference
from aiida_mlip.protocols.validate import ValidateSettings

_RDF: Final[str] = "_rdf_"
_RADIUS: Final[str] = "_rdf_radius_ang_"


def comparison(
    settings: ValidateSettings, sources: Mapping[str, orm.Data], given: Mapping[str, Any], given_uuid: str | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Entries of the properties, and the verdict.

    :param sources: ``subject_<i>``, ``curves_<i>``, ``reference``, ``curves_reference``.
    :param given: reference values by name, or ``<structure>:<name>``.
    :raises InvalidInputError: a given value that is no number, or no list of them.
    """
    members = [sources[name].get_dict()["entries"] for name in sorted(sources) if name.startswith("subject_")]
    computed = _by_key(sources["reference"].get_dict()["entries"]) if "reference" in sources else {}
    columns = [_by_key(entries) for entries in members]
    used: set[str] = set()
    judged: list[tuple[Judgement, list[str]]] = []
    for key in dict.fromkeys(key for column in columns for key in column):
        entries = [column.get(key) or _absent(columns, key) for column in columns]
        reference, uuids = _reference(key, computed, given, given_uuid, used)
        judgement = judge(entries, reference, _threshold(settings, entries[0]["family"]))
        uuids = [uuid for entry in entries for uuid in entry["uuids"]] + uuids
        judged.append((judgement, list(dict.fromkeys(uuids))))
    judged += _distributions(settings, sources)
    plain = [jsonable({**asdict(judgement), "uuids": uuids}) for judgement, uuids in judged]
    summary = verdict([judgement for judgement, _ in judged])
    summary["unused_reference_values"] = sorted(set(given) - used)
    return plain, summary


def check_given(given: Mapping[str, Any]) -> None:
    """Refuse reference values that are no numbers.

    :raises InvalidInputError: names the key.
    """
    for key, value in given.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
            raise InvalidInputError(f"reference_values.{key}: expected a number or a list of numbers, got {value!r}")
        structure, _, name = key.rpartition(":")
        if not name or (structure and not structure.lstrip("-").isdigit()):
            raise InvalidInputError(f"reference_values.{key}: expected '<name>' or '<structure>:<name>'")


def _by_key(entries: list[dict[str, Any]]) -> dict[tuple[int, str], dict[str, Any]]:
    return {(entry["structure"], entry["name"]): entry for entry in entries}


def _absent(columns: list[dict[tuple[int, str], dict[str, Any]]], key: tuple[int, str]) -> dict[str, Any]:
    """An entry of a member that lacks a property which others have."""
    known = next(column[key] for column in columns if key in column)
    return {**known, "value": None, "uuids": [], "reason": "this member does not have it"}


def _threshold(settings: ValidateSettings, family: str) -> dict[str, float] | None:
    found = settings.thresholds.get(family)
    return None if found is None else found.model_dump(exclude_none=True)


def _reference(
    key: tuple[int, str],
    computed: Mapping[tuple[int, str], dict[str, Any]],
    given: Mapping[str, Any],
    given_uuid: str | None,
    used: set[str],
) -> tuple[dict[str, Any] | None, list[str]]:
    structure, name = key
    for label in (f"{structure}:{name}", name):
        if label in given:
            used.add(label)
            return {"value": given[label]}, [] if given_uuid is None else [given_uuid]
    entry = computed.get(key)
    return entry, [] if entry is None else entry["uuids"]


def _distributions(settings: ValidateSettings, sources: Mapping[str, orm.Data]) -> list[tuple[Judgement, list[str]]]:
    """Differences of pair distributions, where both have run."""
    ours, theirs = sources.get("curves_00"), sources.get("curves_reference")
    if ours is None or theirs is None:
        return []
    found = []
    for name in sorted(set(ours.get_arraynames()) & set(theirs.get_arraynames())):
        if _RDF not in name or _RADIUS in name:
            continue
        structure, _, label = name.partition(_RDF)
        radius = f"{structure}{_RADIUS}{label}"
        value = distribution_difference(*(node.get_array(key) for node in (ours, theirs) for key in (radius, name)))
        entry = {
            "name": f"pair_distribution_difference_{label}",
            "family": "pair_distribution",
            "structure": int(structure[1:]),
            "value": value,
            "unit": "1",
            "definition": "integral of |g(r) - g_ref(r)| over that of g_ref(r)",
            "reason": "",
        }
        judgement = judge([entry], None, _threshold(settings, "pair_distribution"))
        found.append((judgement, [ours.uuid, theirs.uuid]))
    return found
