"""Trainings already in the provenance graph: their configuration, and those they continue."""

from __future__ import annotations

from typing import Any

import yaml
from aiida import orm

from aiida_mlip.io.nequip_config import CONFIG_FILE, time_limit_of


def continued_jobs(folder: orm.RemoteData) -> list[orm.CalcJobNode]:
    """The training that left this folder, and those it continued, newest first."""
    jobs: list[orm.CalcJobNode] = []
    job = folder.creator
    while isinstance(job, orm.CalcJobNode):
        jobs.append(job)
        job = job.inputs.restart_folder.creator if "restart_folder" in job.inputs else None
    return jobs


def config_of(job: orm.CalcJobNode) -> dict[str, Any]:
    """Configuration that a training was given."""
    config: dict[str, Any] = yaml.safe_load(job.base.repository.get_object_content(CONFIG_FILE))
    return config


def time_budget_of(job: orm.CalcJobNode) -> int:
    """Seconds of training after which a training stops itself, those it continued included; 0: no limit."""
    return time_limit_of(config_of(job))


def reference_energies_of(job: orm.CalcJobNode, fidelity: str) -> dict[str, float]:
    """Energy shifts (eV per atom) of the model that a training started from; empty when not known."""
    shifts = config_of(job)["training_module"]["model"].get("per_type_energy_shifts")
    if isinstance(shifts, dict):
        return {str(symbol): float(value) for symbol, value in shifts.items()}
    if "initial_potential" in job.inputs:
        return dict(job.inputs.initial_potential.reference_energies.get(fidelity, {}))
    if "initial_folder" in job.inputs and isinstance(job.inputs.initial_folder.creator, orm.CalcJobNode):
        return reference_energies_of(job.inputs.initial_folder.creator, fidelity)
    return {}
