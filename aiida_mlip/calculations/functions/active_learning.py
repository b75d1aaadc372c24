"""What happens between the stages of active learning: candidates, the plan of a selection, the record of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.frames import concatenate, id_keys
from aiida_mlip.kernel.rounds import Round, judge, left_for_labels
from aiida_mlip.protocols.active_learning import ActiveLearningSettings, active_learning_settings

#: Array of grades: estimated error of the force on each atom (eV/Å).
ERROR: Final[str] = "error_ev_per_ang"
_HOUR: Final[float] = 3600.0


@calcfunction
def plan_active_learning(settings: orm.Dict) -> dict[str, orm.Data] | ExitCode:
    """Settings with all defaults written out, and those of the cutting of fragments where it is wanted.

    :returns: ``settings`` and, in the mode ``fragments``, ``fragment``; exit code 200 with the reason.
    """
    try:
        full = active_learning_settings(settings.get_dict())
    except MlipError as error:
        return ExitCode(200, str(error))
    outputs: dict[str, orm.Data] = {"settings": orm.Dict(full.model_dump())}
    if full.mode == "fragments":
        outputs["fragment"] = orm.Dict(full.fragment)
    return outputs


@calcfunction
def gather_candidates(**sources: orm.Data) -> dict[str, orm.Data]:
    """Frames that several explorations found worth a label, each of them once, and the errors of their atoms.

    Every frame, or all fragments of one, is a split group of its own from here on. As one group the frames of a run
    would all end on one side: a round whose labels are all held out teaches nothing, and one whose labels are all
    trained on leaves nothing to calibrate with. The selection takes those that are unlike each other.

    :param sources: ``selected_<name>`` and ``grades_<name>`` of each exploration; grades are left out for fragments.
    :returns: ``candidates``, and ``environments`` (array ``errors``) where every source has grades with errors.
    """
    names = sorted(name.removeprefix("selected_") for name in sources if name.startswith("selected_"))
    frames = concatenate([sources[f"selected_{name}"].frames() for name in names])
    settings = {key: value for name in names for key, value in sources[f"selected_{name}"].settings.items()}
    first = np.sort(np.unique(id_keys(frames.frame_id), return_index=True)[1])
    groups = frames.frame_id if frames.region is None else frames.parent_id
    frames = frames.with_columns(group_id=groups)
    outputs: dict[str, orm.Data] = {"candidates": DatasetData.from_frames(frames.take(first), settings=settings)}
    errors = _errors(names, sources)
    if errors is not None:
        array = orm.ArrayData()
        array.set_array("errors", errors[np.isin(frames.atom_rows(), first)])
        outputs["environments"] = array
    return outputs


@calcfunction
def plan_selection(settings: orm.Dict, history: orm.Dict | None = None) -> orm.Dict:
    """Specification of the next selection: so many labels, for what is left of the budget."""
    full = _full(settings)
    rounds = _rounds(history)
    return orm.Dict(full.selection(left_for_labels(rounds, full.caps)))


@calcfunction
def record_round(
    settings: orm.Dict, dataset: DatasetData, history: orm.Dict | None = None, **parts: orm.Data
) -> orm.Dict:
    """Add a round to the history, with its verdict.

    :param dataset: what the potential of this round was trained on.
    :param history: of the rounds before.
    :param parts: ``errors`` and ``training_<i>`` of the training, ``exploration_<name>`` summaries, ``found_<name>``
        frames, ``candidates``, ``selection`` and ``labels``, as far as the round has them.
    :returns: ``rounds`` (see :class:`aiida_mlip.kernel.rounds.Round`), ``verdict`` and ``evidence``.
    """
    full = _full(settings)
    rounds = _rounds(history)
    explored = _exploration(parts)
    labels = parts["labels"]["fidelities"].values() if "labels" in parts else []
    done = Round(
        number=len(rounds),
        n_frames=len(dataset),
        force_rmse=_held_out(parts["errors"].get_dict()) if "errors" in parts else None,
        **explored,
        n_candidates=_n_candidates(parts),
        n_selected=parts["selection"]["n_selected"] if "selection" in parts else 0,
        n_labelled=sum(entry["frames"] - entry["failed"] - entry["not_run"] for entry in labels),
        n_failed=sum(entry["failed"] for entry in labels),
        dft_core_hours=sum(entry["core_seconds"] for entry in labels) / _HOUR,
        training_hours=sum(
            (node["wall_seconds"] or 0) / _HOUR for name, node in parts.items() if name.startswith("training_")
        ),
    )
    verdict, evidence = judge([*rounds, done], full.caps)
    return orm.Dict({"rounds": [asdict(each) for each in (*rounds, done)], "verdict": verdict, "evidence": evidence})


def _full(settings: orm.Dict) -> ActiveLearningSettings:
    return ActiveLearningSettings.model_validate(settings.get_dict())


def _rounds(history: orm.Dict | None) -> list[Round]:
    return [] if history is None else [Round(**entry) for entry in history["rounds"]]


def _n_candidates(parts: Mapping[str, orm.Data]) -> int:
    """Frames or fragments to choose from; where no fragment could be cut, the frames they were to be cut from."""
    if "candidates" in parts:
        return len(parts["candidates"])
    return sum(len(node) for name, node in parts.items() if name.startswith("found_"))


def _exploration(parts: Mapping[str, orm.Data]) -> dict[str, int]:
    """Steps asked, steps trusted and runs stopped, over all explorations."""
    totals = {"steps_asked": 0, "steps_trusted": 0, "stopped": 0}
    for name, node in parts.items():
        if not name.startswith("exploration_"):
            continue
        summary = node.get_dict()
        for run in summary["runs"]:
            totals["steps_asked"] += int(summary["steps_asked"])
            totals["steps_trusted"] += int(run["steps"])
            totals["stopped"] += run["stopped_by"] != "finished"
    return totals


def _held_out(errors: Mapping[str, Any]) -> float | None:
    """Force RMSE (eV/Å) on test frames, on validation frames where there are none."""
    for part in ("test", "val"):
        value = errors.get(part, {}).get("force_rmse_ev_per_ang")
        if value is not None:
            return float(value)
    return None


def _errors(names: list[str], sources: Mapping[str, orm.Data]) -> np.ndarray | None:
    """(a,) error of every atom of all sources; None where one does not say."""
    values = []
    for name in names:
        grades = sources.get(f"grades_{name}")
        if grades is None or ERROR not in grades.get_arraynames():
            return None
        values.append(grades.get_array(ERROR))
    found = np.concatenate(values)
    return found if np.isfinite(found).all() else None
