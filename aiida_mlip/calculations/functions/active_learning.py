"""What happens between the stages of active learning: candidates, the plan of a selection, the record of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.calculations.functions.promote import core_hours
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.kernel.frames import Frames, concatenate, id_keys
from aiida_mlip.kernel.rounds import Round, judge, left_for_labels
from aiida_mlip.kernel.selection.costs import measured_cost
from aiida_mlip.kernel.splits import ALWAYS_TRAINED
from aiida_mlip.protocols.active_learning import ActiveLearningSettings, active_learning_settings
from aiida_mlip.protocols.promote import parse_promote, without_dear

#: Array of grades: estimated error of the force on each atom (eV/Å).
ERROR: Final[str] = "error_ev_per_ang"
_HOUR: Final[float] = 3600.0
#: Ends of a run at a frame that the watch has graded.
_WATCHED: Final[frozenset[str]] = frozenset({"novelty", "error"})


@calcfunction
def plan_active_learning(settings: orm.Dict, fidelities: orm.Dict | None = None) -> dict[str, orm.Data] | ExitCode:
    """Settings with all defaults written out, and those of the cutting of fragments where it is wanted.

    :param fidelities: levels of theory, cheap first; needed where some frames are promoted to the dear one.
    :returns: ``settings``; in the mode ``fragments`` ``fragment`` and where it is wanted ``gate``; where frames are
        promoted ``cheap``, the fidelities of all frames. Exit code 200 with the reason.
    """
    try:
        full = active_learning_settings(settings.get_dict())
        outputs: dict[str, orm.Data] = {}
        if full.promote is not None:
            every = {} if fidelities is None else fidelities.get_dict()
            promote = parse_promote(full.promote, list(every), where="settings.promote")
            full = full.model_copy(update={"promote": promote.model_dump(exclude_none=True)})
            outputs["cheap"] = orm.Dict(without_dear(every, promote))
    except MlipError as error:
        return ExitCode(200, str(error))
    outputs["settings"] = orm.Dict(full.model_dump())
    if full.mode == "fragments":
        outputs["fragment"] = orm.Dict(full.fragment)
        if full.gate is not None:
            outputs["gate"] = orm.Dict(full.measurement())
    return outputs


@calcfunction
def gather_candidates(reference: DatasetData | None = None, **sources: orm.Data) -> dict[str, orm.Data]:
    """Frames that several explorations found worth a label, each of them once, and the errors of their atoms.

    Every frame, and every fragment, is a split group of its own from here on; those that are required are always
    trained on. As one group the frames of a run (or the
    fragments of a large frame, whose cores do not overlap) would all end on one side: a round whose labels are all held
    out teaches nothing, and one whose labels are all trained on leaves nothing to calibrate with. The selection takes
    those that are unlike each other.

    The frame at which a run was stopped is required: without its label the next run would stop there again.

    :param reference: what is labelled. A frame that is in it is no candidate again, nor is a fragment around the same
        atom of the same parent: the start of a simulation comes round after round.
    :param sources: ``selected_<name>`` of each exploration, frames or the fragments of them, and as far as there are
        any ``grades_<name>`` of the frames it found and its ``summary_<name>``.
    :returns: ``counts``: ``found`` and ``known``. Where anything is new, ``candidates``, and ``environments``: arrays
        ``required`` (n,), and ``errors`` (a,) where every source has grades with errors; of a fragment those that its
        core and trusted atoms had in the parent.
    """
    names = sorted(name.removeprefix("selected_") for name in sources if name.startswith("selected_"))
    parts = [sources[f"selected_{name}"].frames() for name in names]
    frames = concatenate(parts)
    settings = {key: value for name in names for key, value in sources[f"selected_{name}"].settings.items()}
    distinct = np.zeros(len(frames), dtype=bool)
    distinct[np.unique(id_keys(frames.frame_id), return_index=True)[1]] = True
    known = _known(frames, reference)
    counts = orm.Dict({"found": int(distinct.sum()), "known": int((distinct & known).sum())})
    new = np.flatnonzero(distinct & ~known)
    if not len(new):
        return {"counts": counts}
    required = np.concatenate([_required(part, name, sources) for part, name in zip(parts, names, strict=True)])
    array = orm.ArrayData({"required": required[new]})
    errors = [_errors(part, sources.get(f"grades_{name}")) for part, name in zip(parts, names, strict=True)]
    if all(values is not None for values in errors):
        found = np.concatenate([values for values in errors if values is not None])
        array.set_array("errors", found[np.isin(frames.atom_rows(), new)])
    groups = np.where(required[:, None], ALWAYS_TRAINED, frames.frame_id)
    candidates = frames.with_columns(group_id=groups).take(new)
    return {
        "counts": counts,
        "candidates": DatasetData.from_frames(candidates, settings=settings),
        "environments": array,
    }


@calcfunction
def plan_selection(
    settings: orm.Dict,
    history: orm.Dict | None = None,
    labels_gate: orm.Dict | None = None,
    reference: DatasetData | None = None,
) -> orm.Dict:
    """Specification of the next selection: so many labels, for what is left of the budget.

    :param history: of the rounds before.
    :param labels_gate: summary of labels of this round that measured the embedding error: they are paid for.
    :param reference: labelled rows: where frames are promoted, what the cheap labels among them cost is what the
        selected frames are taken to cost.
    """
    full = _full(settings)
    spec = full.selection(_left(full, history, labels_gate))
    if full.promote is not None and reference is not None and spec.get("cost") is None:
        cheap = reference.column("fidelity") != full.promote["fidelity"]
        cost = measured_cost(reference.column("cost")[cheap], reference.column("natoms")[cheap])
        spec["cost"] = None if cost is None else asdict(cost)
    return orm.Dict(spec)


@calcfunction
def plan_promotion(
    settings: orm.Dict, history: orm.Dict | None = None, labels_gate: orm.Dict | None = None
) -> orm.Dict:
    """Specification of the dear labels of a round, see :mod:`aiida_mlip.protocols.promote`.

    :param history: of the rounds before.
    :param labels_gate: summary of labels of this round that measured the embedding error: they are paid for.
    """
    full = _full(settings)
    return orm.Dict(full.promotion(_left(full, history, labels_gate)))


@calcfunction
def record_round(
    settings: orm.Dict, dataset: DatasetData, history: orm.Dict | None = None, **parts: orm.Data
) -> orm.Dict:
    """Add a round to the history, with its verdict.

    :param dataset: what the potential of this round was trained on.
    :param history: of the rounds before.
    :param parts: ``errors`` and ``training_<i>`` of the training, ``exploration_<name>`` summaries, ``found_<name>``
        frames, ``counts`` of the candidates, ``selection``, ``labels`` and ``labels_gate`` (those of the gate),
        ``allocation`` (of the dear labels), ``embedding`` and ``properties`` (verdict of a validation), as far as the
        round has them.
    :returns: ``rounds`` (see :class:`aiida_mlip.kernel.rounds.Round`), ``verdict`` and ``evidence``.
    """
    full = _full(settings)
    rounds = _rounds(history)
    explored = _exploration(parts)
    labels = _label_counts(parts, "labels")
    of_gate = _label_counts(parts, "labels_gate")
    done = Round(
        number=len(rounds),
        n_frames=len(dataset),
        force_rmse=_held_out(parts["errors"].get_dict()) if "errors" in parts else None,
        **explored,
        n_candidates=_n_candidates(parts),
        n_selected=parts["selection"]["n_selected"] if "selection" in parts else 0,
        n_labelled=sum(entry["frames"] - entry["failed"] - entry["not_run"] for entry in labels),
        n_failed=sum(entry["failed"] for entry in labels),
        n_promoted=parts["allocation"]["n_selected"] if "allocation" in parts else 0,
        n_gate=sum(entry["frames"] - entry["failed"] - entry["not_run"] for entry in of_gate),
        embedding_error=parts["embedding"]["measured_ev_per_ang"] if "embedding" in parts else None,
        missed=tuple(parts["properties"]["missed"]) if "properties" in parts else None,
        dft_core_hours=sum(core_hours(parts[name]) for name in ("labels", "labels_gate") if name in parts),
        training_hours=sum(
            (node["wall_seconds"] or 0) / _HOUR for name, node in parts.items() if name.startswith("training_")
        ),
    )
    verdict, evidence = judge([*rounds, done], full.caps)
    return orm.Dict({"rounds": [asdict(each) for each in (*rounds, done)], "verdict": verdict, "evidence": evidence})


def _full(settings: orm.Dict) -> ActiveLearningSettings:
    return ActiveLearningSettings.model_validate(settings.get_dict())


def _left(full: ActiveLearningSettings, history: orm.Dict | None, labels_gate: orm.Dict | None) -> float | None:
    """Core-hours that the labels of this round may still take; None: no limit."""
    left = left_for_labels(_rounds(history), full.caps)
    if left is None or labels_gate is None:
        return left
    return max(0.0, left - core_hours(labels_gate))


def _rounds(history: orm.Dict | None) -> list[Round]:
    return [] if history is None else [Round(**entry) for entry in history["rounds"]]


def _label_counts(parts: Mapping[str, orm.Data], name: str) -> list[dict[str, Any]]:
    return list(parts[name]["fidelities"].values()) if name in parts else []


def _n_candidates(parts: Mapping[str, orm.Data]) -> int:
    """New frames or fragments to choose from; where no fragment could be cut, the frames they were to be cut from."""
    if "counts" in parts:
        return int(parts["counts"]["found"] - parts["counts"]["known"])
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


def _known(frames: Frames, reference: DatasetData | None) -> np.ndarray:
    """(n,) frames that are labelled, and fragments around an atom of a parent that one is labelled of."""
    if reference is None:
        return np.zeros(len(frames), dtype=bool)
    labelled = reference.filter(labelled=True)
    known = np.isin(id_keys(frames.frame_id), id_keys(labelled.frame_id))
    if frames.region is None or labelled.region is None:
        return np.asarray(known)
    places = set(_places(labelled)) - {None}
    return np.asarray(known | np.array([place in places for place in _places(frames)], dtype=bool))


def _places(frames: Frames) -> list[tuple[bytes, int] | None]:
    """Parent and centre of each fragment; None for a frame that is none."""
    if frames.parent_atom is None:
        return [None] * len(frames)
    centre = frames.parent_atom[frames.offsets[:-1]]
    return [
        (bytes(parent), int(atom)) if atom >= 0 else None
        for parent, atom in zip(np.ascontiguousarray(frames.parent_id), centre, strict=True)
    ]


def _required(frames: Frames, name: str, sources: Mapping[str, orm.Data]) -> np.ndarray:
    """(n,) frames at which a run was stopped, or the first fragment (the worst place) of each such frame."""
    summary, grades = sources.get(f"summary_{name}"), sources.get(f"grades_{name}")
    needed = {"run", "step", "frame_id"}
    if summary is None or grades is None or not needed <= set(grades.get_arraynames()):
        return np.zeros(len(frames), dtype=bool)
    run, step = grades.get_array("run"), grades.get_array("step")
    stops = np.zeros(len(run), dtype=bool)
    for k, report in enumerate(summary["runs"]):
        if report["stopped_by"] in _WATCHED:
            stops |= (run == k) & (step == report["stopped_at"])
    keys = id_keys(np.ascontiguousarray(grades.get_array("frame_id")[stops], dtype=np.uint8))
    if frames.region is None:
        return np.isin(id_keys(frames.frame_id), keys)
    parents = id_keys(frames.parent_id)
    worst = np.zeros(len(frames), dtype=bool)
    worst[np.unique(parents, return_index=True)[1]] = True
    return np.asarray(worst & np.isin(parents, keys))


def _errors(frames: Frames, grades: orm.Data | None) -> np.ndarray | None:
    """(a,) error of every atom; None where nobody says."""
    if grades is None or ERROR not in grades.get_arraynames():
        return None
    values = grades.get_array(ERROR)
    if frames.region is None or frames.parent_atom is None:
        return values if len(values) == frames.n_atoms and np.isfinite(values).all() else None
    keys = id_keys(np.ascontiguousarray(grades.get_array("frame_id"), dtype=np.uint8)).tolist()
    starts = dict(zip(keys, np.cumsum(grades.get_array("natoms")) - grades.get_array("natoms"), strict=True))
    start = np.array([starts[key] for key in id_keys(frames.parent_id).tolist()])[frames.atom_rows()]
    trusted = (frames.region <= Region.TRUST) & (frames.parent_atom >= 0)
    found = np.where(trusted, values[np.where(trusted, start + frames.parent_atom, 0).astype(int)], 0.0)
    return found if np.isfinite(found).all() else None
