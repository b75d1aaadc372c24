"""Inputs of active learning: what can be known before anything is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiida import orm

from aiida_mlip.calculations.explore import ExploreCalculation
from aiida_mlip.calculations.options import check_job_options
from aiida_mlip.errors import MlipError
from aiida_mlip.protocols.active_learning import ActiveLearningSettings, active_learning_settings
from aiida_mlip.protocols.promote import check_promotion
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.workchains.label_inputs import settings_hashes

#: Ports of one exploration.
EXPLORATION: Final[tuple[str, ...]] = ("structures", "spec", "engine_input", "options")
#: Ports of frames that were explored before.
EXPLORED: Final[tuple[str, ...]] = ("frames", "grades")


def validate_settings(value: orm.Dict | None, _: Any) -> str | None:
    """Check the port ``settings``."""
    try:
        active_learning_settings({} if value is None else value.get_dict())
    except MlipError as error:
        return str(error)
    return None


def validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """Check the ports together."""
    if "settings" not in inputs or validate_settings(inputs["settings"], None) is not None:
        return None  # reported by the port itself
    settings = active_learning_settings(inputs["settings"].get_dict())
    explorations = inputs.get("explorations") or {}
    if not explorations:
        return "explorations: give at least one, with `structures` and `spec`"
    for name, given in explorations.items():
        if not isinstance(given, Mapping) or not {"structures", "spec"} <= set(given):
            return f"explorations.{name}: needs `structures` and `spec`"
        if unknown := sorted(set(given) - set(EXPLORATION)):
            return f"explorations.{name}: unknown {', '.join(unknown)}; known are {', '.join(EXPLORATION)}"
        if not isinstance(given["spec"], orm.Dict) or given["spec"].get_dict().get("watch") is None:
            return f"explorations.{name}.spec.watch: missing, without it nothing would ever be found uncertain"
        if (problem := _options_problem(given.get("options"), f"explorations.{name}.options")) is not None:
            return problem
    if settings.fragment is not None and settings.fragment.get("completion") == "crystal" and not inputs.get("hosts"):
        return "hosts: missing, settings.fragment.completion crystal needs the crystal"
    for name, given in (inputs.get("explored") or {}).items():
        if not isinstance(given, Mapping) or set(given) != set(EXPLORED):
            return f"explored.{name}: needs `frames` and `grades`, nothing else"
        if name not in explorations:
            return f"explored.{name}: no exploration has this name; there are {', '.join(sorted(explorations))}"
    if (problem := _validate_promotion(settings, inputs)) is not None:
        return problem
    for name, potential in (inputs.get("potentials") or {}).items():
        if potential.joint:
            return f"potentials.{name}: a joint one is for joint_potentials.{name}; here give what aiida_mlip.bake made"
        if not potential.has_grades:
            return f"potentials.{name}: it has no grades; leave it out, and the first round begins with training"
    return _validate_dataset(inputs)


def _options_problem(options: orm.Dict | None, where: str) -> str | None:
    """What is wrong with the options of the jobs of an exploration."""
    try:
        check_job_options({} if options is None else options.get_dict(), ExploreCalculation, where)
    except MlipError as error:
        return str(error)
    return None


def _validate_promotion(settings: ActiveLearningSettings, inputs: Mapping[str, Any]) -> str | None:
    """Dear labels are of a fidelity that there is, and that the training learns from beside the others."""
    label, train = inputs.get("label") or {}, inputs.get("train") or {}
    if settings.promote is None or "fidelities" not in label or "settings" not in train:
        return None
    try:
        training = train_settings(train["settings"].get_dict())
        check_promotion(settings.promote, list(label["fidelities"].get_dict()), training, where="settings.promote")
    except MlipError as error:
        return str(error)
    return None


def _validate_dataset(inputs: Mapping[str, Any]) -> str | None:
    """Labels there are, and at settings that new ones can stand beside."""
    if "dataset" not in inputs:
        return None
    dataset, given = inputs["dataset"], inputs.get("label", {}).get("fidelities")
    if not dataset.n_labels:
        return "dataset: has no labels; label it first"
    try:
        wanted = {} if given is None else settings_hashes(given.get_dict())
    except MlipError:
        return None  # reported by the labelling's own port
    for name, exploration in inputs["explorations"].items():
        if unknown := sorted(set(exploration["structures"].species) - set(dataset.species)):
            return (
                f"explorations.{name}.structures: {', '.join(unknown)} not in the dataset, which has "
                f"{', '.join(dataset.species)}; a potential trained on it cannot describe them"
            )
    for name, settings in wanted.items():
        known = dataset.settings.get(name, settings)
        if known != settings:
            return (
                f"dataset: its labels at {name!r} have the settings {known[:12] or 'unknown (imported)'}, new ones "
                f"would have {settings[:12]}; the two cannot be one level of theory. If they are, import the dataset "
                f"with --settings {settings}"
            )
    return None
