"""Trainings already in the provenance graph: their configuration, and those they continue."""

from __future__ import annotations

from typing import Any

import yaml
from aiida import orm

from aiida_mlip.io.level_types import species_of_types
from aiida_mlip.io.nequip_config import CONFIG_FILE, time_limit_of
from aiida_mlip.io.training_levels import LEVELS_FILE, TrainingLevels


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


def levels_of(job: orm.CalcJobNode) -> TrainingLevels | None:
    """Levels of theory of a training on several; None where it was on one.

    :raises FileFormatError: the job's record of them was damaged.
    """
    if LEVELS_FILE not in job.base.repository.list_object_names():
        return None
    text = job.base.repository.get_object_content(LEVELS_FILE)
    return TrainingLevels.from_text(text, source=f"{LEVELS_FILE} of {job.process_label}<{job.pk}>")


def joint_method_of(job: orm.CalcJobNode) -> str | None:
    """How a training on several levels of theory told them apart, see ``multi_fidelity.method``; None: on one."""
    if (levels := levels_of(job)) is None:
        return None
    _, n_levels = species_of_types(config_of(job)["model_type_names"])
    return "types" if n_levels > 1 else "embedding" if levels.joint else "pooled"


def engine_of(job: orm.CalcJobNode) -> str:
    """What a training's model is a model of: ``nequip`` or ``allegro``; earlier weights bring their own."""
    if "initial_potential" in job.inputs:
        return str(job.inputs.initial_potential.engine)
    if "initial_folder" in job.inputs and isinstance(job.inputs.initial_folder.creator, orm.CalcJobNode):
        return engine_of(job.inputs.initial_folder.creator)
    target = str(config_of(job)["training_module"]["model"].get("_target_", ""))
    return "allegro" if target.startswith("allegro.") else "nequip"


def time_budget_of(job: orm.CalcJobNode) -> int:
    """Seconds of training after which a training stops itself, those it continued included; 0: no limit."""
    return time_limit_of(config_of(job))


def reference_energies_of(job: orm.CalcJobNode, fidelity: str) -> dict[str, float]:
    """Energy shifts (eV per atom) of the model that a training started from; empty when not known."""
    model = config_of(job)["training_module"]["model"]
    changed = model.get("modifiers", [{}])[0]  # shifts of a package, replaced for another level of theory
    shifts = changed.get("shifts", model.get("per_type_energy_shifts"))
    if isinstance(shifts, dict):
        return {str(symbol): float(value) for symbol, value in shifts.items()}
    if "initial_potential" in job.inputs:
        return dict(job.inputs.initial_potential.reference_energies.get(fidelity, {}))
    if "initial_folder" in job.inputs and isinstance(job.inputs.initial_folder.creator, orm.CalcJobNode):
        return reference_energies_of(job.inputs.initial_folder.creator, fidelity)
    return {}
