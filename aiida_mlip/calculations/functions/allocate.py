"""Allot dear labels: the calcfunctions around :mod:`aiida_mlip.kernel.allocation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FileFormatError, InvalidInputError, MlipError
from aiida_mlip.kernel.allocation import (
    Allocation,
    allocate,
    compare_with_forecast,
    difference_deviation,
    find_candidates,
)
from aiida_mlip.kernel.frames import NONE, Frames, concatenate, id_hex, id_keys
from aiida_mlip.kernel.selection.costs import CostModel, measured_cost
from aiida_mlip.protocols.allocate import AllocateSpec, allocate_spec

#: Predictions of a member of a committee at the two levels of theory: ``<level>_<member>``.
DEAR: Final[str] = "target_"
CHEAP: Final[str] = "cheap_"
#: Fewest members that can differ.
MIN_MEMBERS: Final[int] = 2
#: More atoms than this do not belong into a node.
MAX_ATOMS: Final[int] = 1_000_000
_HOUR: Final[float] = 3600.0


@calcfunction
def plan_allocation(dataset: DatasetData, settings: orm.Dict) -> dict[str, orm.Data] | ExitCode:
    """The frames that could be given the dear label, for a committee to look at.

    :param dataset: frames with labels at the cheap level of theory, some of them with the dear one too.
    :param settings: see :mod:`aiida_mlip.protocols.allocate`.
    :returns: ``candidates``, and the names ``target`` and ``cheap`` of the levels of theory; exit code 313 for input
        that does not fit, 314 when there is no candidate, with the reasons.
    """
    try:
        spec, frames = _read(dataset, settings)
        found = find_candidates(frames, target=spec.target, cheap=spec.cheap)
    except (MlipError, FileFormatError) as error:
        return ExitCode(313, f"dear labels cannot be allotted: {error}")
    if not len(found.rows):
        return ExitCode(314, _nothing_left(found.excluded))
    return {
        "candidates": DatasetData.from_frames(frames.take(found.rows), settings=dataset.settings),
        "target": orm.Str(spec.target),
        "cheap": orm.Str(spec.cheap),
    }


@calcfunction
def allocate_labels(
    dataset: DatasetData, settings: orm.Dict, measured: DatasetData | None = None, **predictions: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Choose the frames of a dataset that get the dear label.

    :param dataset: frames with labels at the cheap level of theory, some of them with the dear one too.
    :param settings: see :mod:`aiida_mlip.protocols.allocate`.
    :param measured: further labels: frames with the dear one are not chosen again, nor what is like them, and measured
        costs say what others will cost.
    :param predictions: ``target_<member>`` and ``cheap_<member>`` for each member of a committee of joint models:
        ``parity`` of an :class:`~aiida_mlip.calculations.evaluate.EvaluateCalculation` of the member baked at the one
        and at the other level of theory, on frames among which the candidates are. With fewer than two members
        ``difference`` becomes ``diversity``, and the report says so.
    :returns: ``frames``, in order of choice, with the labels they have, and ``report``; exit code 313 for input that
        does not fit, 314 when no frame is left, with the reasons.
    """
    try:
        spec, frames = _read(dataset, settings)
        costs = _costs([dataset, *([] if measured is None else [measured])], spec)
        found = find_candidates(frames, target=spec.target, cheap=spec.cheap)
        rows, deviation = _predicted(frames, found.rows, _members(predictions))
        candidates = frames.take(rows)
        dear = _dear(frames, measured, spec.target)
        allocation = allocate(candidates, spec.settings(costs[spec.target].model), dear=dear, deviation=deviation)
    except (MlipError, FileFormatError) as error:
        return ExitCode(313, f"dear labels cannot be allotted: {error}")
    left_out = {**found.excluded, "not_predicted": len(found.rows) - len(rows), **allocation.dropped}
    if not len(allocation.rows):
        return ExitCode(314, _nothing_left(left_out))
    report = allocation_report(spec, candidates, allocation) | {"left_out": left_out, "costs": _as_dict(costs)}
    return {
        "frames": DatasetData.from_frames(candidates.take(allocation.rows), settings=dataset.settings),
        "report": orm.Dict(report),
    }


@calcfunction
def account_for_labels(report: orm.Dict, labels: DatasetData, summary: orm.Dict | None = None) -> orm.Dict:
    """What the dear labels cost, against the forecast of their allocation.

    :param report: of :func:`allocate_labels`.
    :param labels: ``dataset`` of the LabelWorkChain that labelled the chosen frames.
    :param summary: of that workchain: how many labels were reused; their cost was spent before.
    :returns: ``core_hours``, ``forecast_core_hours`` of the labels that ran, their ``ratio``, and counts.
    """
    content = report.get_dict()
    rows = labels.filter(fidelity=content["target"])
    place = {key: row for row, key in enumerate(rows.ids())}
    chosen = content["selected"]
    cost = np.array([rows.cost[place[entry["frame_id"]]] if entry["frame_id"] in place else np.nan for entry in chosen])
    forecast = np.array([np.nan if entry["core_hours"] is None else entry["core_hours"] for entry in chosen])
    labelled = set(id_hex(rows.frame_id[rows.labelled]))
    counts = {} if summary is None else summary["fidelities"].get(content["target"], {})
    return orm.Dict(
        {
            "target": content["target"],
            **asdict(compare_with_forecast(forecast, cost)),
            "frames": len(chosen),
            "with_cost": int(np.isfinite(cost).sum()),
            "labelled": sum(entry["frame_id"] in labelled for entry in chosen),
            "reused": counts.get("reused"),
        }
    )


def allocation_report(spec: AllocateSpec, candidates: Frames, allocation: Allocation) -> dict[str, Any]:
    """Plain JSON of what was chosen, why, and what it will cost.

    :param candidates: frames that were chosen from.
    """
    ids = candidates.ids()
    known = allocation.deviation[np.isfinite(allocation.deviation)]
    quantiles = np.quantile(known, [0.5, 0.9, 1.0]).tolist() if len(known) else [None] * 3
    return {
        "target": spec.target,
        "cheap": spec.cheap,
        "asked": spec.method,
        "method": allocation.method,
        "notes": _notes(spec, allocation),
        "n_candidates": len(candidates),
        "n_selected": len(allocation.rows),
        "n_frames_budget": spec.n_frames,
        "core_hours_budget": spec.core_hours,
        "core_hours": allocation.forecast,
        "deviation_ev_per_ang": dict(zip(("median", "quantile_90", "largest"), quantiles, strict=True)),
        "selected": [
            {
                "frame_id": ids[row],
                "atom": int(atom),
                "score": float(score),
                "deviation_ev_per_ang": _number(allocation.deviation[row]),
                "core_hours": _number(cost),
            }
            for row, atom, score, cost in zip(
                allocation.rows, allocation.atoms, allocation.scores, allocation.core_hours, strict=True
            )
        ],
    }


def _read(dataset: DatasetData, settings: orm.Dict) -> tuple[AllocateSpec, Frames]:
    if (n_atoms := dataset.base.attributes.get("n_atoms")) > MAX_ATOMS:
        raise InvalidInputError(f"dataset: has {n_atoms} atoms, more than {MAX_ATOMS}; select among them first")
    return allocate_spec(settings.get_dict()), dataset.frames()


def _dear(frames: Frames, measured: DatasetData | None, target: str) -> Frames:
    """All rows with the dear label."""
    here = frames.fidelity == (frames.fidelities.index(target) if target in frames.fidelities else NONE - 1)
    parts = [frames.take(here & frames.labelled)]
    if measured is not None and target in measured.fidelities:
        parts.append(measured.filter(fidelity=target, labelled=True))
    return concatenate(parts)


def _members(predictions: Mapping[str, orm.Data]) -> list[tuple[orm.ArrayData, orm.ArrayData]]:
    """Predictions of each member at the dear and at the cheap level.

    :raises InvalidInputError: a name that is none, or a member at one level only.
    """
    parts: dict[str, dict[str, orm.ArrayData]] = {DEAR: {}, CHEAP: {}}
    for name, node in predictions.items():
        level = next((level for level in parts if name.startswith(level)), None)
        if level is None or not isinstance(node, orm.ArrayData):
            raise InvalidInputError(f"predictions: expected arrays {DEAR}<member> and {CHEAP}<member>, got {name!r}")
        parts[level][name.removeprefix(level)] = node
    if odd := sorted(set(parts[DEAR]) ^ set(parts[CHEAP])):
        raise InvalidInputError(f"predictions: {', '.join(odd)} at one level of theory only")
    return [(parts[DEAR][member], parts[CHEAP][member]) for member in sorted(parts[DEAR])]


def _predicted(
    frames: Frames, rows: np.ndarray, members: Sequence[tuple[orm.ArrayData, orm.ArrayData]]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Candidates that all members could predict, and the deviation of their atoms; all of them and None without."""
    if len(members) < MIN_MEMBERS:
        return rows, None
    candidates = frames.take(rows)
    dear, cheap = (np.array([_forces_of(candidates, pair[level]) for pair in members]) for level in (0, 1))
    known = np.isfinite(dear).all(axis=(0, 2)) & np.isfinite(cheap).all(axis=(0, 2))
    whole = np.bincount(candidates.atom_rows()[~known], minlength=len(rows)) == 0
    atoms = whole[candidates.atom_rows()]
    return rows[whole], difference_deviation(dear[:, atoms], cheap[:, atoms])


def _forces_of(frames: Frames, parity: orm.ArrayData) -> np.ndarray:
    """(a, 3) predicted forces of frames, found by frame id.

    :raises InvalidInputError: a frame that was not predicted, or arrays that are none of an evaluation.
    """
    names = {"frame_id", "natoms", "forces_predicted"}
    if missing := sorted(names - set(parity.get_arraynames())):
        raise InvalidInputError(f"predictions: ArrayData<{parity.pk}> lacks {', '.join(missing)}")
    keys, natoms, forces = (parity.get_array(name) for name in ("frame_id", "natoms", "forces_predicted"))
    order = {key: row for row, key in reversed(list(enumerate(id_keys(keys).tolist())))}
    wanted = id_keys(frames.frame_id).tolist()
    if lacking := [i for i, key in enumerate(wanted) if key not in order]:
        name = frames.ids()[lacking[0]]
        raise InvalidInputError(f"predictions: ArrayData<{parity.pk}> has no frame {name} ({len(lacking)} are missing)")
    starts = np.cumsum(natoms) - natoms
    parts = [slice(starts[order[key]], starts[order[key]] + natoms[order[key]]) for key in wanted]
    return np.concatenate([np.zeros((0, 3)), *(forces[part] for part in parts)])


# -- costs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FidelityCost:
    """What labels at one level of theory have cost.

    :param n_labels: labels whose cost is known.
    :param core_hours: of one of them, on the average; None where there is none.
    :param model: forecast for others; None where there is none.
    """

    n_labels: int
    core_hours: float | None
    model: CostModel | None


def _costs(datasets: Sequence[DatasetData], spec: AllocateSpec) -> dict[str, FidelityCost]:
    """What labels at the two levels of theory have cost.

    :raises InvalidInputError: the datasets mean different settings by one name.
    """
    result = {}
    for name in (spec.target, spec.cheap):
        settings = {node.settings[name] for node in datasets if node.settings.get(name)}
        if len(settings) > 1:
            raise InvalidInputError(f"measured: its labels at {name!r} were computed with other settings")
        mine = [node.column("fidelity") == name for node in datasets]
        cost, natoms = (
            np.concatenate([node.column(column)[rows] for node, rows in zip(datasets, mine, strict=True)]).astype(float)
            for column in ("cost", "natoms")
        )
        known = np.isfinite(cost) & (cost > 0)
        mean = float(cost[known].mean()) / _HOUR if known.any() else None
        result[name] = FidelityCost(int(known.sum()), mean, measured_cost(cost, natoms.astype(int)))
    return result


def _as_dict(costs: Mapping[str, FidelityCost]) -> dict[str, Any]:
    return {name: asdict(cost) for name, cost in costs.items()}


# -- words -----------------------------------------------------------------------------------------------------


def _notes(spec: AllocateSpec, allocation: Allocation) -> list[str]:
    """What a reader of the report should know."""
    notes = []
    if allocation.method != spec.method:
        notes.append(
            f"no committee of joint models has looked at the candidates: chosen by {allocation.method} alone, "
            f"not by the {spec.method}"
        )
    if allocation.forecast is None:
        notes.append(f"what a label at {spec.target} costs is not known: there is no forecast")
    return notes


def _nothing_left(left_out: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return f"no frame is left for a dear label: {reasons or 'there are no frames'}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
