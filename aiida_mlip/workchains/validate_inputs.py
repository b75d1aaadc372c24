"""What the inputs of a validation must be, checked before anything is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from aiida_mlip.calculations.dynamics_inputs import check_potential
from aiida_mlip.calculations.property_frames import atoms_of, crystals_of, species_of
from aiida_mlip.calculations.validate_comparison import check_given
from aiida_mlip.calculations.validate_plan import planned, single_fidelity
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.fidelity import QeFidelity
from aiida_mlip.protocols.validate import ValidateSettings, parse_validate
from aiida_mlip.workchains.label_inputs import check_pseudos

structure_species = species_of
_ROLES = ("subject", "reference")
_RUNS = ("vacancy", "surface", "dynamics", "expansion", "order")


def engine_of(inputs: Mapping[str, Any]) -> str:
    """Engine of the one level of theory of a labelling: ``qe`` or ``ase``.

    :raises ProtocolError: not exactly one level of theory.
    """
    return single_fidelity(inputs["fidelities"].get_dict(), where="label").engine


def validate_inputs(inputs: Mapping[str, Any], namespace: Any) -> str | None:
    """The first thing that is wrong with the inputs, or None."""
    if not {"structures", "settings"} <= set(namespace) or not {"structures", "settings"} <= set(inputs):
        return None  # the ports themselves say so, or a parent that exposes some of them
    try:
        return _problem(inputs)
    except MlipError as error:
        return str(error)


def missing_library(settings: ValidateSettings) -> str | None:
    """What to install where a property needs a library that is not there."""
    if settings.phonons is not None and find_spec("phonopy") is None:
        return "settings.phonons: phonopy is not installed here; pip install '.[validation]', or set phonons to null"
    return None


def _problem(inputs: Mapping[str, Any]) -> str | None:
    settings = parse_validate(inputs["settings"].get_dict())
    if problem := missing_library(settings):
        return problem
    potentials, codes = inputs.get("potentials") or {}, inputs.get("codes") or {}
    levels = {name: inputs[name] for name in _ROLES if inputs.get(name)}
    if bool(potentials) == ("subject" in levels):
        return "nothing to validate, or two things: give either `potentials` or `subject`"
    species = species_of(inputs["structures"])
    for name, potential in potentials.items():
        if problem := check_potential(potential, settings.fidelity, species):
            return f"potentials.{name}: {problem}"
    for name, level in levels.items():
        if problem := _level_problem(level, species, name):
            return problem
    planned(settings, {name: levels[name]["fidelities"].get_dict() if name in levels else None for name in _ROLES})
    if problem := _code_problem(settings, potentials, levels, codes):
        return problem
    if "reference_values" in inputs:
        check_given(inputs["reference_values"].get_dict())
    structures = inputs["structures"]
    if not structures.is_stored or structures.creator is None:
        # those that a process made are checked by the workchain itself, which then ends with an exit code
        check_geometries(from_ase(atoms_of(structures)), source="structures")
        crystals_of(structures, settings)
    return None


def _level_problem(level: Mapping[str, Any], species: list[str], where: str) -> str | None:
    fidelity = single_fidelity(level["fidelities"].get_dict(), where=where)
    code = "pw" if isinstance(fidelity, QeFidelity) else "ase"
    if code not in (level.get("codes") or {}):
        return f"{where}.codes.{code}: missing, the level of theory is of the engine {fidelity.engine}"
    if isinstance(fidelity, QeFidelity):
        check_pseudos(fidelity, species, f"{where}.fidelities")
    return None


def _code_problem(
    settings: ValidateSettings, potentials: Mapping[str, Any], levels: Mapping[str, Any], codes: Mapping[str, Any]
) -> str | None:
    if potentials and "evaluate" not in codes:
        return "codes.evaluate: missing, the potential needs it"
    runs = [name for name in _RUNS if getattr(settings, name) is not None]
    movers = bool(potentials) or any(engine_of(level) == "ase" for level in levels.values())
    if runs and movers and "explore" not in codes:
        return f"codes.explore: missing, settings.{runs[0]} needs it"
    return None
