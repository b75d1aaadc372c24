"""Plan of a comparison of ways to learn from several fidelities: what each trains on, and what all are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fidelities import (
    check_labelled,
    check_species,
    common_rows,
    count_labels,
    difference_frames,
    hold_out,
    label_gap,
    rows_at,
    uncorrected_frames,
)
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.splits import repetition
from aiida_mlip.kernel.training import split_for, training_counts
from aiida_mlip.protocols.train import TrainSettings
from aiida_mlip.protocols.train_fidelities import (
    JOINT,
    TRAININGS,
    difference_name,
    fidelity_of,
    joint_settings,
    settings_of,
)


@dataclass(frozen=True)
class MethodsPlan:
    """What a comparison of methods trains on, and is measured on.

    :param summary: plain numbers and names: ``target``, ``fidelities``, ``methods``, ``low`` (the cheap fidelity of
        ``fine_tune`` and ``delta``), ``held_out``, ``labels`` per method and fidelity, ``gap`` between the labels,
        ``steps_per_epoch`` and ``epochs`` of each training.
    :param settings: of every training.
    :param training: (n,) rows of the dataset that the methods may learn from.
    :param test: (n,) rows held out; none where a test dataset was given.
    :param difference: labels of the difference, and ``uncorrected``: cheap rows to be corrected; for ``delta``.
    """

    summary: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    training: np.ndarray
    test: np.ndarray
    difference: Frames | None = None
    uncorrected: Frames | None = None


def plan_of(
    frames: Frames,
    spec: Mapping[str, Any],
    methods: tuple[str, ...],
    *,
    fine_tune: Mapping[str, Any] | None = None,
    test: Frames | None = None,
    equal_steps: bool = True,
) -> MethodsPlan:
    """Plan of a comparison of methods.

    :param frames: labelled at all fidelities of the settings.
    :param spec: settings of a training with ``multi_fidelity``.
    :param methods: the first gives the result.
    :param fine_tune: settings that differ in the second training of ``fine_tune``.
    :param test: rows to measure on, instead of some of ``frames``.
    :param equal_steps: a training on fewer rows has as many more epochs, so that all make the same number of steps.
    :raises MlipError: a method cannot work on these rows; says which and why.
    """
    full, fidelities, target = joint_settings(spec)
    check_labelled(frames, fidelities)
    training, held_out = hold_out(frames, target, full.split.model_dump(), test=test)
    rest = frames.take(training)
    measured = frames.take(held_out) if test is None else test.take(rows_at(test, target))
    counts = check_labelled(rest, fidelities)
    check_species(measured, rest, method=methods[0])
    low = _cheap_fidelities(rest, methods, counts, target)
    sources = {name: rest for method in methods for name in TRAININGS[method]}
    uncorrected = None
    if "delta" in methods:
        sources["difference"], uncorrected = _rows_of_delta(rest, measured, low["delta"], target)
    steps = {
        name: ceil(_rows_per_epoch(name, source, full, low, uncorrected) / full.batch_size)
        for name, source in sources.items()
    }
    settings = {
        name: settings_of(
            name,
            spec,
            low=low,
            fine_tune=fine_tune,
            stretch=Fraction(max(steps.values()), count) if equal_steps else Fraction(1),
        )
        for name, count in steps.items()
    }
    return MethodsPlan(
        summary={
            "target": target,
            "fidelities": list(fidelities),
            "methods": list(methods),
            "low": low,
            "held_out": {
                "rows": count_labels(measured, [target])[target],
                "test_dataset": test is not None,
                "left_out": int((~training & ~held_out).sum()),
            },
            "labels": {method: _labels_of(method, counts, low.get(method), target) for method in methods},
            "gap": {name: label_gap(rest, name, target) for name in fidelities if name != target},
            "steps_per_epoch": steps,
            "epochs": {name: value["max_epochs"] for name, value in settings.items()},
        },
        settings=settings,
        training=training,
        test=held_out,
        difference=sources.get("difference"),
        uncorrected=uncorrected,
    )


def _cheap_fidelities(
    frames: Frames, methods: tuple[str, ...], counts: Mapping[str, int], target: str
) -> dict[str, str]:
    """The cheap fidelity of each method that has one: for ``fine_tune`` the one with most labels."""
    cheap = [name for name in counts if name != target]
    found = {}
    if "fine_tune" in methods:
        found["fine_tune"] = max(cheap, key=counts.__getitem__)
    if "delta" in methods:
        found["delta"] = _low_of_delta(frames, cheap, target)
    return found


def _low_of_delta(frames: Frames, cheap: list[str], target: str) -> str:
    """The cheap fidelity with most rows that can be corrected, among those that share frames with the target."""
    shared = [name for name in cheap if len(common_rows(frames, name, target)[0])]
    if not shared:
        raise InvalidInputError(
            f"delta: no frame is labelled both at {target!r} and at {' or '.join(map(repr, cheap))}; a difference is "
            "learned from frames labelled at both"
        )
    rows = {name: len(uncorrected_frames(frames, name, target)) for name in shared}
    low = max(shared, key=rows.__getitem__)
    if not rows[low]:
        raise InvalidInputError(f"delta: every frame labelled at {low!r} is labelled at {target!r}: nothing to correct")
    return low


def _rows_of_delta(frames: Frames, measured: Frames, low: str, target: str) -> tuple[Frames, Frames]:
    """Differences to learn from, and rows to correct.

    :raises SpeciesError: a species that no frame with both labels has, or one that is measured on and not learned from.
    """
    difference = difference_frames(frames, low, target, name=difference_name(low, target))
    uncorrected = uncorrected_frames(frames, low, target)
    check_species(uncorrected, difference, method="delta")
    check_species(measured, concatenate([uncorrected, frames.take(rows_at(frames, target))]), method="delta")
    return difference, uncorrected


def _rows_per_epoch(
    training: str, frames: Frames, full: TrainSettings, low: Mapping[str, str], uncorrected: Frames | None
) -> int:
    """Rows that the first member sees in an epoch.

    :raises InvalidInputError: too few groups for a split, or no labels; names the training.
    """
    wanted, split, target = full.multi_fidelity, full.split.model_dump(), str(full.target)
    fidelity = fidelity_of(training, target, low)
    levels = wanted.fidelities if wanted is not None and training in JOINT else ()
    try:
        parts = split_for(
            frames, {**split, "test": 0.0}, members=full.committee, fidelity=fidelity, fidelities=levels
        ).parts[0]
    except InvalidInputError as error:
        raise InvalidInputError(f"{training}: {error}") from error
    counts = training_counts(frames, parts, levels or (fidelity,))
    if training == "delta" and uncorrected is not None:  # these do not exist yet; a part of them is validated on
        return counts[target] + max(1, round(len(uncorrected) * (1.0 - split["val"])))
    n_target = counts.pop(fidelity)
    n_others = sum(counts.values())
    share = wanted.target_share if wanted is not None and training in JOINT else 0.0
    return n_others + n_target * repetition(n_target, n_others, share)


def _labels_of(method: str, counts: Mapping[str, int], low: str | None, target: str) -> dict[str, int]:
    """Labels that a method has used, per fidelity."""
    if method in JOINT:
        return dict(counts)
    return {name: counts[name] for name in (low, target) if name is not None}
