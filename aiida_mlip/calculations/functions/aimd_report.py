"""Reports on molecular dynamics runs: what a person wants to know before trusting the frames. Plain JSON, no NaN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from aiida import orm

from aiida_mlip.data.md_runs import consumer_of, failure_of
from aiida_mlip.kernel.autocorrelation import AutocorrelationTime
from aiida_mlip.kernel.frames import Failure
from aiida_mlip.kernel.ladder import Rung, describe
from aiida_mlip.kernel.trajectory import (
    Analysis,
    Segment,
    Trajectory,
    energy_is_conserved,
    temperature_is_reached,
)
from aiida_mlip.protocols.aimd import AimdSettings


def run_report(
    content: Mapping[str, Any],
    aimd: AimdSettings,
    parts: Sequence[Segment],
    retrieved: Sequence[orm.FolderData | None],
    nodes: Mapping[str, orm.Data],
    trajectory: Trajectory,
    analysis: Analysis,
    kept: np.ndarray,
) -> dict[str, Any]:
    """Report of one run.

    :param content: of the run's Dict.
    :param parts: its segments, ``retrieved`` the files of their jobs, ``nodes`` the inputs of
        :func:`~aiida_mlip.calculations.functions.aimd.collect_aimd`.
    :param kept: steps that became frames.
    """
    rung = Rung(**{**content["rung"], "strain": tuple(content["rung"]["strain"])})
    ends = [
        failure_of(part, files, consumer_of(nodes[f"structure_{s:03d}"]))
        for s, (part, files) in enumerate(zip(parts, retrieved, strict=True))
    ]
    steps_lost = aimd.n_steps - len(trajectory)
    last = ends[-1] if steps_lost > 0 else (Failure.NONE, "")
    return {
        "run": content["index"],
        "description": describe(rung),
        "group_id": content["group"],
        "target_temperature_kelvin": rung.kelvin,
        "steps": len(trajectory),
        "steps_lost": max(steps_lost, 0),
        "steps_repeated": trajectory.repeated,
        "restart_mismatch_ev_per_atom": _finite(trajectory.mismatch),
        "segments": [
            {"steps": len(part), "end": failure.label, "message": message, "uuid": _uuid(files)}
            for part, files, (failure, message) in zip(parts, retrieved, ends, strict=True)
        ],
        "failure": last[0].label,
        "message": last[1],
        "frames": len(kept),
        "mean_temperature_kelvin": _finite(analysis.temperature),
        "temperature_error_kelvin": _finite(analysis.temperature_error),
        "energy_drift_ev_per_atom_per_ps": _finite(analysis.drift),
        "energy_time_fs": _time(analysis.energy_time, aimd.timestep_fs),
        "forces_time_fs": _time(analysis.forces_time, aimd.timestep_fs),
        "stride_steps": analysis.stride,
        "checks": _checks(trajectory, analysis, aimd, rung.kelvin) if len(trajectory) else {},
    }


def summarise(reports: Sequence[Mapping[str, Any]], *, n_frames: int) -> dict[str, Any]:
    """Summary of all runs: totals, what failed, and the runs one by one.

    :param n_frames: labelled frames of all runs, each once.
    """
    return {
        "n_runs": len(reports),
        "n_complete": sum(report["steps_lost"] == 0 for report in reports),
        "n_frames": n_frames,
        "n_steps": sum(report["steps"] for report in reports),
        "steps_lost": sum(report["steps_lost"] for report in reports),
        "failures": dict(Counter(report["failure"] for report in reports if report["failure"] != "none")),
        "checks_failed": [
            f"run {report['run']} ({report['description']}): {name}"
            for report in reports
            for name, passed in report["checks"].items()
            if passed is False
        ],
        "runs": [dict(report) for report in reports],
    }


def _checks(trajectory: Trajectory, analysis: Analysis, aimd: AimdSettings, kelvin: float) -> dict[str, bool]:
    """Checks that apply: of the energy without a thermostat, of the temperature with one, of restarts if there were."""
    limits = aimd.checks
    checks = {}
    if trajectory.repeated:
        checks["restarts_consistent"] = trajectory.mismatch <= limits.restart_mismatch_ev_per_atom
    if aimd.conserves_energy:
        checks["energy_conserved"] = energy_is_conserved(analysis, limits.energy_drift_ev_per_atom_per_ps)
    else:
        checks["temperature_reached"] = temperature_is_reached(analysis, kelvin, limits.temperature_fraction)
    return checks


def _time(value: AutocorrelationTime | None, timestep: float) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "integrated": value.tau * timestep,
        "error": value.error * timestep,
        "decay": value.decay * timestep,
        "trusted": value.trusted,
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _uuid(files: orm.FolderData | None) -> str:
    return "" if files is None else str(files.creator.uuid)
