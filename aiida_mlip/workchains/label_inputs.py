"""What the inputs of a labelling must be, checked before anything is submitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.plugins import CalculationFactory, GroupFactory

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.calculations.options import check_job_options
from aiida_mlip.calculations.pw_bundle import PwBundleCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError, ProtocolError, SpeciesError
from aiida_mlip.kernel.frames import id_hex
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.kernel.labelling import first_rows, isolated_atoms, labelled_ids
from aiida_mlip.protocols.fidelity import Fidelity, QeFidelity, parse_fidelities, settings_hash
from aiida_mlip.protocols.model import deep_merge

DEFAULT_MAX_CONCURRENT: Final[int] = 50
DEFAULT_MAX_FAILED_FRACTION: Final[float] = 0.1
#: Options of jobs for which none are given: one core, no MPI launcher.
DEFAULT_OPTIONS: Final[Mapping[str, Any]] = {
    "resources": {"num_machines": 1, "num_mpiprocs_per_machine": 1},
    "max_wallclock_seconds": 3600,
    "withmpi": False,
}
#: Headers of ultrasoft and PAW files: an attribute in UPF 2, a line of its own in UPF 1.
_AUGMENTED: Final[re.Pattern[str]] = re.compile(
    r'pseudo_type\s*=\s*"\s*(US|USPP|PAW)\s*"|^ *(US|PAW) +[A-Z]', re.MULTILINE
)
_CODES: Final[Mapping[str, str]] = {"qe": "pw", "ase": "ase"}
#: What options of jobs of many frames of pw.x are called.
BUNDLE: Final[str] = "bundle"


def family_of(label: str) -> Any:
    """Pseudopotential family of the profile.

    :raises ProtocolError: there is none of that label.
    """
    query = orm.QueryBuilder().append(GroupFactory("pseudo.family"), filters={"label": label})
    families = query.all(flat=True)
    if not families:
        known = orm.QueryBuilder().append(GroupFactory("pseudo.family"), project="label").all(flat=True)
        raise ProtocolError(f"no pseudopotential family {label!r} in this profile; there are {sorted(known)}")
    return families[0]


def settings_hashes(fidelities: Mapping[str, Any]) -> dict[str, str]:
    """Settings hash per fidelity, with the pseudopotentials that are in the profile now.

    :raises ProtocolError: a fidelity is not valid, or its family is not there.
    """
    result = {}
    for name, spec in parse_fidelities(fidelities).items():
        md5s = {}
        if isinstance(spec, QeFidelity):
            md5s = {upf.element: upf.md5 for upf in family_of(spec.pseudo_family).nodes}
        result[name] = settings_hash(spec, md5s)
    return result


def resolved_fidelities(
    fidelities: Mapping[str, Any], species: list[str], *, protocol: str | None = None
) -> dict[str, Any]:
    """Fidelities with every default of their protocol, and the family's recommended cutoffs, written out.

    :raises ProtocolError: a fidelity is not valid, or states no cutoff and its family recommends none.
    """
    result = {}
    for name, spec in parse_fidelities(fidelities, protocol=protocol).items():
        data = spec.model_dump(mode="json", exclude_none=True)
        if isinstance(spec, QeFidelity):
            data["bundle_size"] = spec.bundle_size  # None says something
        if isinstance(spec, QeFidelity) and spec.ecutwfc_ry is None:
            data |= _recommended(spec, species, f"fidelities.{name}")
        result[name] = data
    return result


def wanted_frames(dataset: DatasetData, hashes: Mapping[str, str], *, isolated: bool) -> dict[str, set[str]]:
    """Settings hash -> ids of the frames that the dataset itself has no label for."""
    frame_id = dataset.column("frame_id")
    ids = id_hex(frame_id[first_rows(frame_id)])
    if isolated:
        ids += isolated_atoms(dataset.column("numbers")).ids()
    result = {}
    for settings in hashes.values():
        own = [name for name, value in dataset.settings.items() if value == settings]
        known = {
            key for name in own for key in id_hex(labelled_ids(dataset.filter(fidelity=name, labelled=True), name))
        }
        result[settings] = set(ids) - known
    return result


def job_options(inputs: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """Options of the jobs of an engine: the defaults with the given ones merged in.

    :param engine: ``qe``, ``ase``, or ``bundle`` for jobs of many frames of pw.x: the options of ``qe`` unless they say
        something of their own.
    """
    return deep_merge(DEFAULT_OPTIONS, _given_options(inputs, engine))


def walltime_is_stated(inputs: Mapping[str, Any], engine: str) -> bool:
    """Whether the walltime of the jobs of an engine was given, and is not the default."""
    return "max_wallclock_seconds" in _given_options(inputs, engine)


def _given_options(inputs: Mapping[str, Any], engine: str) -> dict[str, Any]:
    given = inputs["options"].get_dict() if "options" in inputs else {}
    if not set(given) <= {*_CODES, BUNDLE}:
        given = {"qe": given, "ase": given}
    if engine == BUNDLE:
        return deep_merge(given.get("qe", {}), given.get(BUNDLE, {}))
    return dict(given.get(engine, {}))


def validate_label_inputs(inputs: Mapping[str, Any], namespace: Any) -> str | None:
    """Validator of the ports of the labelling: the first thing that is wrong, or None."""
    try:
        if "dataset" in namespace and "fidelities" in namespace:
            _check(inputs)
        elif "options" in inputs and "fidelities" in inputs:
            # a parent that exposes only some of the ports checks the rest itself
            _check_options(inputs, parse_fidelities(inputs["fidelities"].get_dict()))
    except MlipError as error:
        return str(error)
    return None


def _check(inputs: Mapping[str, Any]) -> None:
    dataset = inputs["dataset"]
    if not dataset.base.attributes.get("n_rows", 0):
        raise MlipError("dataset: an empty dataset, there is nothing to label")
    fidelities = parse_fidelities(inputs["fidelities"].get_dict())
    for name, spec in fidelities.items():
        code = _CODES[spec.engine]
        if code not in inputs.get("codes", {}):
            raise MlipError(f"codes.{code}: missing, but fidelity {name!r} is of the engine {spec.engine}")
        if isinstance(spec, QeFidelity):
            check_pseudos(spec, dataset.species, f"fidelities.{name}")
    _check_options(inputs, fidelities)
    if "max_concurrent" in inputs and inputs["max_concurrent"].value < 1:
        raise MlipError(f"max_concurrent: must be at least 1, got {inputs['max_concurrent'].value}")
    if "max_core_hours" in inputs and not inputs["max_core_hours"].value > 0:
        raise MlipError(f"max_core_hours: must be more than 0, got {inputs['max_core_hours'].value}")
    if "max_failed_fraction" in inputs and not 0 <= inputs["max_failed_fraction"].value <= 1:
        raise MlipError(f"max_failed_fraction: must be from 0 to 1, got {inputs['max_failed_fraction'].value}")
    if not dataset.is_stored or dataset.creator is None:
        # frames that a process made are checked by the workchain itself, which then ends with an exit code
        check_geometries(dataset.frames())


def _check_options(inputs: Mapping[str, Any], fidelities: Mapping[str, Fidelity]) -> None:
    for spec in fidelities.values():
        check_options(job_options(inputs, spec.engine), spec.engine)
        if isinstance(spec, QeFidelity) and spec.bundle_size != 1:
            check_options(job_options(inputs, BUNDLE), BUNDLE)


def check_pseudos(spec: QeFidelity, species: list[str], where: str) -> None:
    """Check that the family has what a level of theory needs.

    :raises MlipError: no pseudopotential for a species, or no cutoff.
    """
    family = family_of(spec.pseudo_family)
    available = {upf.element for upf in family.nodes}
    if missing := [symbol for symbol in species if symbol not in available]:
        raise SpeciesError(
            f"{where}: no pseudopotential for {', '.join(missing)} in family {spec.pseudo_family!r}, "
            f"which has {', '.join(sorted(available))}"
        )
    if spec.ecutwfc_ry is None:
        raise ProtocolError(
            f"{where}.ecutwfc_ry: missing; state it, or use get_builder_from_protocol, "
            "which takes what the family recommends"
        )
    augmented = [upf.element for upf in family.nodes if upf.element in species and _is_augmented(upf)]
    if spec.ecutrho_ry is None and augmented:
        raise ProtocolError(
            f"{where}.ecutrho_ry: missing; the pseudopotential of {', '.join(augmented)} is ultrasoft or PAW, "
            "for which four times ecutwfc_ry is too low: state it (8 to 12 times is usual)"
        )
    if stray := [symbol for symbol in spec.starting_magnetization if symbol not in available]:
        raise ProtocolError(f"{where}.starting_magnetization: {', '.join(stray)} is not in {spec.pseudo_family!r}")


def _is_augmented(upf: Any) -> bool:
    """Whether a pseudopotential is ultrasoft or PAW, by the header of its file (UPF 1 or 2)."""
    content = upf.get_content()
    return bool(_AUGMENTED.search(content if isinstance(content, str) else content.decode(errors="replace")))


def check_options(options: Mapping[str, Any], engine: str) -> None:
    """Check the options of the jobs of an engine.

    :raises ProtocolError: an unknown one, or a value that cannot be, such as text that would be a command.
    """
    jobs = {"qe": CalculationFactory("quantumespresso.pw"), "ase": AseLabelCalculation, BUNDLE: PwBundleCalculation}
    check_job_options(options, jobs[engine], f"options of the engine {engine}")


def _recommended(spec: QeFidelity, species: list[str], where: str) -> dict[str, float]:
    from aiida_pseudo.groups.mixins import RecommendedCutoffMixin

    family = family_of(spec.pseudo_family)
    if not isinstance(family, RecommendedCutoffMixin):
        raise ProtocolError(f"{where}.ecutwfc_ry: missing, and family {spec.pseudo_family!r} recommends no cutoffs")
    try:
        wavefunction, density = family.get_recommended_cutoffs(elements=tuple(species), unit="Ry")
    except ValueError as error:
        raise ProtocolError(f"{where}.ecutwfc_ry: missing, and {error}") from error
    return {"ecutwfc_ry": wavefunction, "ecutrho_ry": density}


def cell_and_pbc(structure: orm.StructureData) -> tuple[np.ndarray, np.ndarray]:
    """Cell (3, 3) in Å and periodicity (3,) of a structure."""
    return np.array(structure.cell), np.array(structure.pbc)
