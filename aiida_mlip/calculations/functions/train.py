"""Calculation functions of a training: the plan (split, settings of each member), changed settings, error table."""

from __future__ import annotations

from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.reference_energies import isolated_energies
from aiida_mlip.kernel.splits import Part, Split
from aiida_mlip.kernel.training import ErrorTable, check_labels, split_for, tabulate_errors, training_fidelity
from aiida_mlip.protocols import train as protocol


@calcfunction
def plan_training(dataset: DatasetData, settings: orm.Dict) -> dict[str, orm.Data] | ExitCode:
    """Split the frames and write out the settings of every member, of the live monitor and of what comes after.

    Outputs ``split``; ``settings_<i>`` and ``member_<i>`` for each member; ``monitor``; ``evaluation`` and
    ``external``, of an evaluation on these frames and on others; ``calibration``; of a joint model also ``fidelity``,
    the one to bake.
    """
    try:
        full = protocol.train_settings(settings.get_dict())
        split = planned_split(dataset, full)
    except MlipError as error:
        return ExitCode(200, str(error))
    plain = full.model_dump(exclude={"calibration_level"})  # no part of a training: another level repeats none
    outputs: dict[str, orm.Data] = {
        "split": split_node(split),
        "monitor": orm.Dict(monitor_of(full)),
        "evaluation": orm.Dict({"device": full.device, "fit_grades": True, "seed": full.seed}),
        "external": orm.Dict({"device": full.device}),
        "calibration": orm.Dict({"level": full.calibration_level, "seed": full.seed}),
    }
    if full.joint:
        outputs["fidelity"] = orm.Str(str(full.target))
    for member in range(full.committee):
        outputs[f"settings_{member}"] = orm.Dict({**plain, "member": member})
        outputs[f"member_{member}"] = orm.Int(member)
    return outputs


def planned_split(dataset: DatasetData, settings: protocol.TrainSettings) -> Split:
    """Split for a training, after a look at whether the dataset has what the training needs.

    :raises InvalidInputError: missing labels at a level of theory, an ambiguous one, too few groups; isolated atoms
        that are asked for and missing; no forces, though the loss weighs them.
    """
    frames = dataset.frames()
    target = training_fidelity(frames, settings.target)
    levels = settings.levels or (target,)
    for name in levels:
        training_fidelity(frames, name)
        if settings.reference == "isolated":
            isolated_energies(dataset.reference_energies.get(name, {}), dataset.species, name)
    split = split_for(
        frames, settings.split.model_dump(), members=settings.committee, fidelity=target, fidelities=levels
    )
    at_target = frames.fidelity == frames.fidelity_index(target)
    for parts in split.parts:
        train, val = frames.take(parts == Part.TRAIN), frames.take((parts == Part.VAL) & at_target)
        check_labels(train, val, settings.loss.model_dump())
    return split


@calcfunction
def lower_learning_rate(settings: orm.Dict) -> orm.Dict | ExitCode:
    """Settings with a lower learning rate."""
    try:
        return orm.Dict(protocol.lower_learning_rate(settings.get_dict()))
    except MlipError as error:
        return ExitCode(200, str(error))


@calcfunction
def reduce_batch_size(settings: orm.Dict) -> orm.Dict | ExitCode:
    """Settings with smaller batches."""
    try:
        return orm.Dict(protocol.reduce_batch_size(settings.get_dict()))
    except MlipError as error:
        return ExitCode(200, str(error))


@calcfunction
def tabulate(**errors: orm.Dict) -> orm.Dict:
    """One table of the errors of all members, given as ``member_<i>`` and ``external_<i>``."""
    table: ErrorTable = tabulate_errors({name: node.get_dict() for name, node in errors.items()})
    return orm.Dict(table)


def split_node(split: Split) -> orm.ArrayData:
    """Unstored node of a split: ``frame_id`` (n, 16), ``group`` (n,), ``member_<i>`` (n,)."""
    node = orm.ArrayData()
    node.set_array("frame_id", np.ascontiguousarray(split.frame_id))
    node.set_array("group", np.ascontiguousarray(split.group))
    for member, parts in enumerate(split.parts):
        node.set_array(f"member_{member}", np.ascontiguousarray(parts))
    node.base.attributes.set("counts", split.counts())
    return node


def monitor_of(settings: protocol.TrainSettings) -> dict[str, Any]:
    """Input ``monitors.divergence`` of a training."""
    return {
        "entry_point": "aiida_mlip.training_diverged",
        "kwargs": {"factor": settings.divergence_factor, "epochs": settings.divergence_epochs},
        "minimum_poll_interval": 10,
    }
