"""Calculation functions of trainings on several fidelities: plan, corrected labels, table of all methods."""

from __future__ import annotations

import hashlib

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.methods_plan import plan_of
from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import FileFormatError, MlipError
from aiida_mlip.kernel.fidelities import corrected_frames, mean_prediction, rows_at
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, id_bytes, id_keys
from aiida_mlip.kernel.metrics import Predictions
from aiida_mlip.protocols.train_fidelities import TRAININGS, check_methods, joint_settings

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


@calcfunction
def plan_methods(
    dataset: DatasetData,
    settings: orm.Dict,
    methods: orm.List,
    equal_steps: orm.Bool,
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
            equal_steps=equal_steps.value,
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
