"""Values of potential and reference side by side: error bars, differences, thresholds, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from aiida_mlip.errors import InvalidInputError

Value: TypeAlias = float | list[float] | None
#: What thresholds are given for.
FAMILIES: Final[tuple[str, ...]] = (
    "a0",
    "volume",
    "bulk_modulus",
    "bulk_modulus_derivative",
    "elastic_constants",
    "moduli",
    "elastic_stability",
    "phonons",
    "lowest_frequency",
    "vacancy",
    "surface",
    "dimer",
    "nve_drift",
    "stability",
    "pair_distribution",
    "diffusion",
    "expansion",
    "order",
)
Verdict = Literal["passed", "failed", "not_judged"]


@dataclass(frozen=True)
class Judgement:
    """One property of one structure, judged.

    :param value: of the potential: mean over the committee.
    :param error_bar: standard deviation over the committee; None for fewer than two members.
    :param reference: what it should be; None if not known.
    :param difference: value - reference; of several numbers the one that is furthest off.
    :param passed: None: not judged, for want of a threshold or of a reference.
    :param reason: why it did not pass, or was not judged.
    """

    name: str
    family: str
    structure: int
    value: Value
    unit: str
    error_bar: Value
    reference: Value
    difference: float | None
    threshold: dict[str, float] | None
    passed: bool | None
    reason: str
    definition: str


def judge(
    members: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None, threshold: Mapping[str, float] | None
) -> Judgement:
    """Judge one property.

    :param members: of each committee member: ``name``, ``family``, ``structure``, ``value`` (a number, some, or None),
        ``unit``, ``definition``, ``reason``.
    :param reference: the same of the reference, or None.
    :param threshold: ``absolute``, ``relative``, ``at_least``, ``at_most``, as far as given.
    :raises InvalidInputError: no member, or members with different numbers of values.
    """
    if not members:
        raise InvalidInputError("members: at least one is needed")
    first = members[0]
    value, bar, trouble = _mean(members)
    expected = None if reference is None else reference["value"]
    difference, relative = _difference(value, expected)
    passed, reason = _decide(value, difference, relative, threshold)
    if value is None:
        reason = trouble if passed is None else f"not computed: {trouble}"
    elif difference is None and reference is not None and (why := reference.get("reason")):
        reason = f"{reason}; the reference has no value: {why}".removeprefix("; ")
    return Judgement(
        name=first["name"],
        family=first["family"],
        structure=int(first["structure"]),
        value=value,
        unit=first["unit"],
        error_bar=bar,
        reference=expected,
        difference=difference,
        threshold=None if threshold is None else dict(threshold),
        passed=passed,
        reason=reason,
        definition=next((entry["definition"] for entry in members if entry["definition"]), ""),
    )


def verdict(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """``verdict`` (passed, failed, not_judged), counts, and what was missed in words."""
    missed = [entry for entry in judgements if entry.passed is False]
    passed = sum(entry.passed is True for entry in judgements)
    word: Verdict = "failed" if missed else "passed" if passed else "not_judged"
    return {
        "verdict": word,
        "n_passed": passed,
        "n_failed": len(missed),
        "n_not_judged": len(judgements) - passed - len(missed),
        "missed": [f"structure {entry.structure}: {entry.name}: {entry.reason}" for entry in missed],
    }


def _mean(members: Sequence[Mapping[str, Any]]) -> tuple[Value, Value, str]:
    """Mean, standard deviation, and why there is none. A property that one member cannot give has no value."""
    for number, entry in enumerate(members):
        if entry["value"] is None:
            prefix = f"member {number}: " if len(members) > 1 else ""
            return None, None, prefix + (entry["reason"] or "no value")
    values = [np.atleast_1d(np.asarray(entry["value"], dtype=float)) for entry in members]
    if len({len(value) for value in values}) > 1:
        raise InvalidInputError(f"{members[0]['name']}: members give {[len(value) for value in values]} numbers")
    stack = np.array(values)
    bar = stack.std(axis=0, ddof=1) if len(stack) > 1 else None
    scalar = not isinstance(members[0]["value"], list | tuple)
    return _plain(stack.mean(axis=0), scalar=scalar), None if bar is None else _plain(bar, scalar=scalar), ""


def _plain(values: np.ndarray, *, scalar: bool) -> Value:
    return float(values[0]) if scalar else [float(value) for value in values]


def _difference(value: Value, expected: Value) -> tuple[float | None, float | None]:
    """Value - reference where it is largest in size, and the largest part of the reference."""
    if value is None or expected is None:
        return None, None
    ours, theirs = (np.atleast_1d(np.asarray(side, dtype=float)) for side in (value, expected))
    if ours.shape != theirs.shape:
        return None, None
    away = ours - theirs
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = np.where(away == 0, 0.0, np.abs(away) / np.abs(theirs))
    return float(away[np.argmax(np.abs(away))]), float(relative.max())


def _decide(
    value: Value, difference: float | None, relative: float | None, threshold: Mapping[str, float] | None
) -> tuple[bool | None, str]:
    """Whether every bound of the threshold holds; bounds on the difference need a reference."""
    if threshold is None:
        return None, "no threshold"
    if value is None:
        return False, ""
    complaints, judged = [], False
    numbers = np.atleast_1d(np.asarray(value, dtype=float))
    if (bound := threshold.get("at_least")) is not None:
        judged = True
        if numbers.min() < bound:
            complaints.append(f"{numbers.min():.4g} is below {bound:g}")
    if (bound := threshold.get("at_most")) is not None:
        judged = True
        if numbers.max() > bound:
            complaints.append(f"{numbers.max():.4g} is above {bound:g}")
    for name, away in (("absolute", difference), ("relative", relative)):
        bound = threshold.get(name)
        if bound is None or away is None:
            continue
        judged = True
        if not abs(away) <= bound:
            unit = "" if name == "absolute" else " of the reference"
            complaints.append(f"off by {abs(away):.4g}{unit}, allowed are {bound:g}")
    if not judged:
        return None, "no reference"
    return not complaints, "; ".join(complaints)
