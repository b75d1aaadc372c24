"""Joining the runs of one biased dynamics that was interrupted and went on."""

from __future__ import annotations

import numpy as np
from aiida import orm
from aiida.engine import calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import concatenate

#: What a later run knows better than an earlier one, per trajectory; frames add up, extremes are kept.
_LATEST = ("steps", "stopped_by", "message")
_IN_AN_EARLIER_JOB = "in an earlier job"


@calcfunction
def join_runs(**runs: orm.Data) -> dict[str, orm.Data]:
    """Frames, series and summary of all runs, in order.

    :param runs: ``dataset_<i>``, ``series_<i>`` and ``summary_<i>`` of the i-th run; a run without frames has no
        dataset and no series.
    :returns: ``dataset`` and ``series`` (where there is any frame), ``trajectory_summary``.
    """
    outputs: dict[str, orm.Data] = {}
    if datasets := _ordered(runs, "dataset"):
        outputs["dataset"] = DatasetData.from_frames(concatenate([node.frames() for node in datasets]))
    if series := _ordered(runs, "series"):
        joined = {
            name: np.concatenate([node.get_array(name) for node in series]) for name in series[0].get_arraynames()
        }
        outputs["series"] = orm.ArrayData(joined)
    outputs["trajectory_summary"] = orm.Dict(join_summaries([node.get_dict() for node in _ordered(runs, "summary")]))
    return outputs


def join_summaries(summaries: list[dict]) -> dict:
    """One summary of several runs of the same trajectories, in order."""
    result = dict(summaries[-1])
    result["seconds"] = round(sum(summary["seconds"] for summary in summaries), 3)
    result["trajectories"] = [dict(entry) for entry in summaries[0]["trajectories"]]
    for summary in summaries[1:]:
        for entry, later in zip(result["trajectories"], summary["trajectories"], strict=True):
            if later["stopped_by"] == "not_started" or later["message"] == _IN_AN_EARLIER_JOB:
                continue
            _join_trajectory(entry, later)
    return result


def _join_trajectory(entry: dict, later: dict) -> None:
    before, new = entry["frames"], later["frames"]
    temperatures = [(entry["mean_temperature_k"], before), (later["mean_temperature_k"], new)]
    known = [(value, count) for value, count in temperatures if value is not None]
    if known:
        total = sum(count for _, count in known)
        entry["mean_temperature_k"] = sum(value * count for value, count in known) / total
    for name, choose in (("smallest_distance_ang", min), ("largest_bias_ev", max)):
        values = [run[name] for run in (entry, later) if run[name] is not None]
        entry[name] = choose(values) if values else None
    entry["frames"] = before + new
    entry.update({name: later[name] for name in _LATEST})


def _ordered(runs: dict, kind: str) -> list:
    names = sorted(name for name in runs if name.startswith(f"{kind}_"))
    return [runs[name] for name in names]
