"""Bookkeeping of a training: the split that its settings ask for, and one table of the errors of a committee."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeAlias

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import NONE, Frames
from aiida_mlip.kernel.splits import PART_NAMES, Split, split_frames

ErrorTable: TypeAlias = dict[str, Any]


def training_fidelity(frames: Frames, wanted: str | None = None) -> str:
    """Level of theory to train on: the one asked for, else the only one that rows are labelled at.

    :raises InvalidInputError: nothing is labelled, several levels and none was chosen, or no rows at that one.
    """
    index = frames.fidelity[frames.labelled & (frames.fidelity != NONE)]
    names = sorted({frames.fidelities[i] for i in index})
    if not names:
        raise InvalidInputError(
            f"missing labels: none of the {len(frames)} rows carries an energy or forces at a named fidelity; "
            "label them first"
        )
    if wanted is None:
        if len(names) > 1:
            raise InvalidInputError(
                f"rows are labelled at several fidelities ({', '.join(names)}); say which one to train on: 'fidelity'"
            )
        return names[0]
    if wanted not in names:
        raise InvalidInputError(f"no row is labelled at fidelity {wanted!r}; there are labels at {', '.join(names)}")
    return wanted


def split_for(frames: Frames, split: Mapping[str, Any], *, members: int, fidelity: str | None) -> Split:
    """Split of the rows labelled at the training fidelity.

    :param split: ``seed``, ``test``, ``val``, ``group_by``, ``bag``, see :func:`aiida_mlip.kernel.splits.split_frames`.
    :raises InvalidInputError: missing labels, an ambiguous fidelity, too few groups.
    """
    return split_frames(frames, members=members, fidelity=training_fidelity(frames, fidelity), **split)


def tabulate_errors(reports: Mapping[str, Mapping[str, Any]]) -> ErrorTable:
    """Errors per part, mean over the members; each member's own below ``members``.

    :param reports: ``member_<i>`` -> part -> errors of the rows of that part, and ``external_<i>`` -> errors on a
        separate test set (its part ``all``).

    >>> tabulate_errors({"member_0": {"test": {"force_rmse": 1.0}}, "member_1": {"test": {"force_rmse": 3.0}}})["test"]
    {'force_rmse': 2.0}
    """
    members: dict[str, dict[str, Any]] = {}
    for name, parts in sorted(reports.items()):
        kind, _, index = name.rpartition("_")
        entry = members.setdefault(f"member_{index}", {})
        if kind == "external":
            entry["external"] = parts["all"]
        else:
            entry.update({part: parts[part] for part in PART_NAMES if part in parts})
    table: ErrorTable = {"n_members": len(members), "members": members}
    for part in (*PART_NAMES, "external"):
        found = [entry[part] for entry in members.values() if part in entry]
        if found:
            table[part] = _mean(found)
    return table


def _mean(values: list[Any]) -> Any:
    """Mean of numbers, key by key of mappings; ``None`` where one of them lacks it."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([value.get(key) for value in values]) for key in first}
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        mean = sum(values) / len(values)
        return int(mean) if all(isinstance(value, int) for value in values) and mean == int(mean) else mean
    return first if all(value == first for value in values) else None
