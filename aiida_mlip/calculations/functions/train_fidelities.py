"""Calculation functions of trainings on several fidelities: plan, corrected labels, table of all methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import FileFormatError, InvalidInputError, MlipError
from aiida_mlip.kernel.fidelities import (
    check_labelled,
    check_species,
    common_rows,
    corrected_frames,
    count_labels,
    difference_frames,
    hold_out,
    label_gap,
    mean_prediction,
    rows_at,
    uncorrected_frames,
)
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, id_bytes, id_keys
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.kernel.training import split_for
from aiida_mlip.protocols.train_fidelities import (
    JOINT,
    TRAININGS,
    check_methods,
    difference_name,
    joint_settings,
    settings_of,
)

#: Arrays of a parity node that a correction needs.
_PARITY = ("frame_id", "natoms", "energy_predicted", "forces_predicted", "stress_predicted")
#: Errors of the table.
ERRORS = (
    "n_energies",
    "n_force_components",
    "energy_mae_ev_per_atom",
    "energy_rmse_ev_per_atom",
    "force_mae_ev_per_ang",
    "force_rmse_ev_per_ang",
    "force_rms_ev_per_ang",
)


@dataclass(frozen=True)
class MethodsPlan:
    """What a comparison of methods trains on, and is measured on.

    :param summary: plain numbers and names: ``target``, ``fidelities``, ``methods``, ``low``, ``held_out``, ``labels``,
        ``gap``.
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
) -> MethodsPlan:
    """Plan of a comparison of methods.

    :param frames: labelled at all fidelities of the settings.
    :param spec: settings of a training with ``multi_fidelity``.
    :param methods: the first gives the result.
    :param fine_tune: settings that differ in the second training of ``fine_tune``.
    :param test: rows to measure on, instead of some of ``frames``.
    :raises MlipError: a method cannot work on these rows; says which and why.
    """
    full, fidelities, target = joint_settings(spec)
    check_labelled(frames, fidelities)
    split = full.split.model_dump()
    training, held_out = hold_out(frames, target, split, test=test)
    rest = frames.take(training)
    measured = frames.take(held_out) if test is None else test.take(rows_at(test, target))
    counts = check_labelled(rest, fidelities)
    cheap = [name for name in fidelities if name != target]
    low: dict[str, str] = {}
    difference = uncorrected = None
    check_species(measured, rest, method=methods[0])
    if "fine_tune" in methods:
        low["fine_tune"] = max(cheap, key=counts.__getitem__)
    if "delta" in methods:
        low["delta"] = _low_of_delta(rest, cheap, target)
        difference = difference_frames(rest, low["delta"], target, name=difference_name(low["delta"], target))
        uncorrected = uncorrected_frames(rest, low["delta"], target)
        check_species(uncorrected, difference, method="delta")
        check_species(measured, concatenate([uncorrected, rest.take(rows_at(rest, target))]), method="delta")
    lows = {"pretrain": low.get("fine_tune"), "difference": low.get("delta")}
    settings = {
        name: settings_of(name, spec, low=lows.get(name), fine_tune=fine_tune)
        for method in methods
        for name in TRAININGS[method]
    }
    for name in settings:
        if name != "delta":  # what it trains on is still to be made
            source = difference if name == "difference" and difference is not None else rest
            levels = fidelities if name in JOINT else ()
            _check_split(name, source, split, (settings[name]["fidelity"], levels), members=full.committee)
    labels = {
        "high_only": {target: counts[target]},
        **{method: {name: counts[name] for name in (one, target)} for method, one in low.items()},
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
            "labels": {method: labels.get(method, counts) for method in methods},
            "gap": {name: label_gap(rest, name, target) for name in cheap},
        },
        settings=settings,
        training=training,
        test=held_out,
        difference=difference,
        uncorrected=uncorrected,
    )


@calcfunction
def plan_methods(
    dataset: DatasetData,
    settings: orm.Dict,
    methods: orm.List,
    fine_tune: orm.Dict | None = None,
    test_dataset: DatasetData | None = None,
) -> dict[str, orm.Data] | ExitCode:
    """Hold out what all methods are measured on, and write out what each of them trains on.

    Outputs ``summary`` and ``prediction``; ``settings_<training>``; ``training`` where rows were left out, ``test``
    where they were held out of the dataset; ``difference`` and ``uncorrected`` for ``delta``.
    """
    try:
        plan = plan_of(
            dataset.frames(),
            settings.get_dict(),
            check_methods(methods.get_list()),
            fine_tune=None if fine_tune is None else fine_tune.get_dict(),
            test=None if test_dataset is None else test_dataset.frames(),
        )
        device = joint_settings(settings.get_dict())[0].device
        outputs: dict[str, orm.Data] = {"summary": orm.Dict(plan.summary), "prediction": orm.Dict({"device": device})}
        outputs.update({f"settings_{name}": orm.Dict(value) for name, value in plan.settings.items()})
        frames, known = dataset.frames(), dataset.settings
        if not plan.training.all():
            outputs["training"] = DatasetData.from_frames(frames.take(plan.training), settings=known)
        if plan.test.any():
            outputs["test"] = DatasetData.from_frames(frames.take(plan.test), settings=known)
        if plan.difference is not None and plan.uncorrected is not None:
            outputs["difference"] = DatasetData.from_frames(_labelled_here(plan.difference))
            outputs["uncorrected"] = DatasetData.from_frames(plan.uncorrected, settings=known)
    except MlipError as error:
        return ExitCode(200, str(error))
    return outputs


@calcfunction
def correct_labels(
    plan: orm.Dict, dataset: DatasetData, uncorrected: DatasetData, **parity: orm.ArrayData
) -> DatasetData | ExitCode:
    """Rows at the target, and cheap ones whose labels were corrected by the predicted difference, as labels of it.

    The latter are no labels of the target's code: their ``label_uuid`` is that of this process, and the fidelity has
    another settings hash, so that no labelling takes them for computed ones and no union mixes them with such unseen.
    The attribute ``corrected`` says how many, and from which fidelity.

    :param plan: output ``summary`` of :func:`plan_methods`.
    :param dataset: what the methods may learn from.
    :param uncorrected: rows to be corrected.
    :param parity: ``member_<i>``: predictions of the difference for those rows.
    """
    try:
        target, low = plan["target"], plan["low"]["delta"]
        cheap = uncorrected.frames()
        difference = mean_prediction([_predictions(node, cheap) for _, node in sorted(parity.items())])
        corrected = _labelled_here(corrected_frames(cheap, difference, fidelity=target))
        frames = dataset.frames()
        dear = frames.take(rows_at(frames, target))
        known = f"corrected {low} {dataset.settings.get(low, '')} {dataset.settings.get(target, '')}"
        node = DatasetData.from_frames(
            concatenate([dear, corrected]), settings={target: hashlib.sha256(known.encode()).hexdigest()}
        )
    except MlipError as error:
        return ExitCode(400, str(error))
    node.base.attributes.set("corrected", {target: {"from": low, "rows": len(corrected)}})
    return node


@calcfunction
def tabulate_methods(plan: orm.Dict, **evidence: orm.Data) -> orm.Dict:
    """One table of all methods, measured on the same rows at the target.

    :param plan: output ``summary`` of :func:`plan_methods`.
    :param evidence: ``errors_<method>`` (output ``errors`` of its last training), ``summary_<training>_member_<i>`` and
        ``potential_<method>_member_<i>`` of its trainings.
    :returns: ``methods``: of each that could be measured the errors (eV, Å; mean over the members), ``labels`` per
        fidelity, ``training_seconds`` (wall time, all members and trainings) and ``potentials`` (uuids); ``missing``:
        the others; and all of the plan.
    """
    summary = plan.get_dict()
    table = {}
    for method in summary["methods"]:
        if f"errors_{method}" not in evidence:
            continue
        errors = evidence[f"errors_{method}"]["external"]
        prefix = f"potential_{method}_"
        seconds = [
            node["wall_seconds"]
            for training in TRAININGS[method]
            for name, node in evidence.items()
            if name.startswith(f"summary_{training}_member_")
        ]
        table[method] = {
            **{name: errors[name] for name in ERRORS},
            "labels": summary["labels"][method],
            "training_seconds": sum(seconds) if seconds and None not in seconds else None,
            "potentials": {
                name.removeprefix(prefix): node.uuid for name, node in evidence.items() if name.startswith(prefix)
            },
        }
    missing = [method for method in summary["methods"] if method not in table]
    return orm.Dict(jsonable({**summary, "result": summary["methods"][0], "methods": table, "missing": missing}))


# -- parts -----------------------------------------------------------------------------------------------------


def _low_of_delta(frames: Frames, cheap: list[str], target: str) -> str:
    """The cheap fidelity with most rows that can be corrected, among those that share frames with the target."""
    common = {name: len(common_rows(frames, name, target)[0]) for name in cheap}
    shared = [name for name in cheap if common[name]]
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


def _check_split(
    training: str, frames: Frames, split: Mapping[str, Any], levels: tuple[str, tuple[str, ...]], *, members: int
) -> None:
    """Make sure that the rows of a training can be split.

    :param levels: the fidelity that counts, and all of a training on several.
    :raises InvalidInputError: too few groups, or no labels; names the training.
    """
    fidelity, fidelities = levels
    try:
        split_for(frames, {**split, "test": 0.0}, members=members, fidelity=fidelity, fidelities=fidelities)
    except InvalidInputError as error:
        raise InvalidInputError(f"{training}: {error}") from error


def _labelled_here(frames: Frames) -> Frames:
    """Frames whose labels this process has made."""
    made = id_bytes([Process.current().node.uuid])
    return frames.with_columns(
        label_uuid=np.repeat(made, len(frames), axis=0), label_row=np.arange(len(frames), dtype="<i4")
    )


def _predictions(node: orm.ArrayData, frames: Frames) -> Predictions:
    """Predictions of an evaluation, for these frames.

    :raises FileFormatError: arrays are missing, or the frames are others.
    """
    names = node.get_arraynames()
    if missing := [name for name in _PARITY if name not in names]:
        raise FileFormatError(f"ArrayData<{node.pk}> is no parity data: arrays {missing} are missing")
    values = {name: node.get_array(name) for name in _PARITY}
    if not np.array_equal(id_keys(values["frame_id"]), id_keys(frames.frame_id)):
        raise FileFormatError(f"ArrayData<{node.pk}>: predictions of other frames than those to correct")
    energy = values["energy_predicted"] * values["natoms"]
    return Predictions(
        energy=energy,
        forces=values["forces_predicted"],
        stress=values["stress_predicted"],
        failure=np.where(np.isfinite(energy), Failure.NONE, Failure.CRASHED).astype(np.uint8),
    )
