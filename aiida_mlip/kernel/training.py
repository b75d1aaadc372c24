"""Bookkeeping of a training: the split that its settings ask for, and one table of the errors of a committee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final, TypeAlias

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import NONE, Frames
from aiida_mlip.kernel.splits import PART_NAMES, Part, Split, repetition, split_frames

ErrorTable: TypeAlias = dict[str, Any]
#: Labels that a training can use: columns of frames, and keys of the weights of the loss.
LABELS: Final[tuple[str, ...]] = ("energy", "forces", "stress")


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


def split_for(
    frames: Frames,
    split: Mapping[str, Any],
    *,
    members: int,
    fidelity: str | None,
    fidelities: Sequence[str] = (),
) -> Split:
    """Split of the rows labelled at the training fidelity, and of those at further ones.

    :param split: ``seed``, ``test``, ``val``, ``group_by``, ``bag``, see :func:`aiida_mlip.kernel.splits.split_frames`.
    :param fidelities: all levels of theory of a training on several, ``fidelity`` among them.
    :raises InvalidInputError: missing labels, an ambiguous fidelity, too few groups; a level that a member has no
        rows of to train on.
    """
    target = training_fidelity(frames, fidelity)
    others = [training_fidelity(frames, name) for name in fidelities if name != target]
    found = split_frames(frames, members=members, fidelity=target, others=others, **split)
    for member in range(members) if others else ():
        for name, count in training_counts(frames, found.parts[member], fidelities).items():
            if count == 0:
                raise InvalidInputError(
                    f"member {member} has no row at fidelity {name!r} to train on: all share their frames or groups "
                    f"with rows at {target!r} that are tested or validated on; label further frames at {name!r}"
                )
    return found


def training_counts(frames: Frames, parts: np.ndarray, fidelities: Sequence[str]) -> dict[str, int]:
    """Rows to train on at each level of theory.

    :param parts: (n,) :class:`~aiida_mlip.kernel.splits.Part` of every row for one member.
    """
    names = np.array([*frames.fidelities, ""], dtype=object)[frames.fidelity]
    return {name: int(((parts == Part.TRAIN) & (names == name)).sum()) for name in fidelities}


def joint_parts(
    frames: Frames, parts: np.ndarray, *, target: str, fidelities: Sequence[str], share: float
) -> tuple[Frames, Frames, int]:
    """What a training on several levels of theory sees: training rows, validation rows, and their repetition.

    :param parts: (n,) part of every row for one member.
    :param target: level whose rows are repeated and validated on.
    :param fidelities: all levels.
    :param share: see :func:`aiida_mlip.kernel.splits.repetition`.
    :returns: rows to train on at any level, each once; rows at the target to validate on; how often each training row
        at the target is seen in an epoch.
    :raises InvalidInputError: rows at a level that is not named.
    """
    train, val = (frames.take(parts == part) for part in (Part.TRAIN, Part.VAL))
    if unknown := {frames.fidelities[i] if i >= 0 else None for i in np.unique(train.fidelity)} - set(fidelities):
        raise InvalidInputError(
            f"the split trains on rows at {sorted(map(str, unknown))}, which is none of {fidelities}"
        )
    val = val.take(val.fidelity == val.fidelity_index(target))
    n_target = int((train.fidelity == train.fidelity_index(target)).sum())
    return train, val, repetition(n_target, len(train) - n_target, share)


def repeated(frames: Frames, target: str, times: int) -> Frames:
    """Rows with those at one level of theory ``times`` times, one after the other."""
    at = frames.fidelity == frames.fidelity_index(target)
    return frames.take(np.repeat(np.arange(len(frames)), np.where(at, times, 1)))


def labels_of(frames: Frames) -> frozenset[str]:
    """Names of the labels that any of the rows carries: ``energy``, ``forces``, ``stress``."""
    return frozenset(name for name in LABELS if np.isfinite(getattr(frames, name)).any())


def check_labels(train: Frames, val: Frames, loss: Mapping[str, float]) -> None:
    """Make sure that there is something to learn, and to judge what was learned by.

    :param train: all rows to train on.
    :param val: rows to validate on.
    :param loss: weight of each label.
    :raises InvalidInputError: forces are wanted and no training row has any; nothing wanted is known of the validation
        rows.
    """
    if loss["forces"] > 0.0 and "forces" not in labels_of(train):
        raise InvalidInputError(
            f"none of the {len(train)} training rows has forces, but the loss weighs them with {loss['forces']:g}: "
            "energies alone hardly decide the forces of a potential; label forces at one fidelity at least, or say "
            "'loss: {forces: 0}' to train on energies alone"
        )
    wanted = {name for name, weight in loss.items() if weight > 0.0}
    for rows, part in ((train, "training"), (val, "validation")):
        if not wanted & labels_of(rows):
            raise InvalidInputError(
                f"the {len(rows)} {part} rows lack every label that the loss {dict(loss)} asks for; they have "
                f"{', '.join(sorted(labels_of(rows))) or 'none'}"
            )


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
