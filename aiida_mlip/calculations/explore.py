"""CalcJob of runs with a potential: structures and a potential or calculator -> frames, by ``aiida-mlip-explore``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec

from aiida_mlip.calculations.dynamics_inputs import (
    check_potential,
    described_potential,
    shard_copies,
    why_no_slope,
)
from aiida_mlip.calculations.options import validate_options
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.explore import (
    CHECKPOINT_FILE,
    ENGINE_INPUT_FILE,
    GRADES_FILE,
    MODEL_FILE,
    OUTPUT_FILE,
    REQUEST_FILE,
    SELECTED_FILE,
    SERIES_FILE,
    STATISTICS_FILE,
    TRAJECTORY_FILE,
    ExploreRequest,
    ExploreSpec,
    Member,
)
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.explore import check_against_structures, parse_explore

#: Part of the walltime after which the program stops by itself and writes everything.
_CLEAN_FRACTION: Final[float] = 0.92


class ExploreCalculation(CalcJob):
    """Dynamics, relaxation or Monte Carlo from each structure."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports, options and exit codes."""
        super().define(spec)
        spec.input("structures", valid_type=DatasetData, help="Structures to start from; labels are not looked at.")
        spec.input("spec", valid_type=orm.Dict, help="What to do: see `aiida_mlip.protocols.explore`.")
        spec.input(
            "potential",
            valid_type=PotentialData,
            required=False,
            help="Potential of the forces, instead of `spec.forces`. The job executes code of its package.",
        )
        spec.input_namespace(
            "committee",
            dynamic=True,
            valid_type=PotentialData,
            required=False,
            help="The other members of the potential's committee, for a watch on its error.",
        )
        spec.input(
            "engine_input",
            valid_type=orm.SinglefileData,
            required=False,
            help="LAMMPS commands of one's own, between set-up and run, for the kind lammps.",
        )
        spec.input(
            "checkpoint",
            valid_type=orm.SinglefileData,
            required=False,
            help="Where an earlier job stopped: runs that are not done go on from there.",
        )
        spec.input(
            "restart",
            valid_type=orm.SinglefileData,
            required=False,
            help="Checkpoint of an earlier job: runs that a watch or limit ended go on as well, each from its last "
            "trusted frame, usually with a better potential.",
        )
        spec.inputs.validator = validate_explore_inputs
        options = spec.inputs["metadata"]["options"]
        options["parser_name"].default = "aiida_mlip.explore"
        options["resources"].default = dict(ONE_CORE)
        options["withmpi"].default = False
        options["output_filename"].default = "aiida-mlip-explore.out"
        options.validator = validate_options

        spec.output("dataset", valid_type=DatasetData, required=False, help="Frames, unlabelled, with their lineage.")
        spec.output("series", valid_type=orm.ArrayData, required=False, help="Step, temperature, energy per frame.")
        spec.output(
            "selected", valid_type=DatasetData, required=False, help="Frames that the watch found worth a label."
        )
        spec.output("grades", valid_type=orm.ArrayData, required=False, help="Per atom of them: novelty and error.")
        spec.output("summary", valid_type=orm.Dict, required=False, help="How each run went, where it stopped and why.")
        spec.output(
            "checkpoint", valid_type=orm.SinglefileData, required=False, help="Last trusted frames, to go on from."
        )

        spec.exit_code(210, "ERROR_INVALID_INPUT", message="The program refused its input: {message}")
        spec.exit_code(211, "ERROR_SPECIES_NOT_COVERED", message="The potential lacks species: {message}")
        spec.exit_code(212, "ERROR_MODEL_NOT_LOADED", message="The model could not be loaded: {message}")
        spec.exit_code(213, "ERROR_ENGINE_MISSING", message="The engine is not installed there: {message}")
        spec.exit_code(300, "ERROR_OUTPUT_MISSING", message="The job left no report. {end}", invalidates_cache=True)
        spec.exit_code(
            301, "ERROR_OUTPUT_UNREADABLE", message="The output cannot be used: {message}", invalidates_cache=True
        )
        spec.exit_code(302, "ERROR_NO_FRAMES", message="Not one frame was recorded: {message}")
        spec.exit_code(
            400,
            "ERROR_OUT_OF_WALLTIME",
            invalidates_cache=True,
            message="The job ended before all steps were done; frames and a checkpoint are in the outputs.",
        )
        spec.exit_code(
            410,
            "ERROR_FORCES_FAILED",
            message="The forces failed in {stopped} of {total} runs ({message}); the frames before are kept.",
        )
        spec.exit_code(
            500,
            "ERROR_STOPPED_BY_LIMIT",
            message="A limit ended {stopped} of {total} runs early ({message}); the frames before are kept.",
        )
        spec.exit_code(
            501,
            "ERROR_STOPPED_BY_WATCH",
            message="{stopped} of {total} runs left what the potential knows ({message}); the frames before are kept.",
        )
        spec.exit_code(
            502, "ERROR_NOT_CONVERGED", message="{stopped} of {total} relaxations did not converge ({message})."
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request; everything else goes from the repository straight to the work directory."""
        inputs = self.inputs
        copies: list[tuple[str, str, str]] = []
        names = shard_copies(inputs.structures, "structures", copies)
        request = _request(inputs, names, self.options.get("max_wallclock_seconds"))
        folder.create_file_from_filelike(io.BytesIO(request.model_dump_json(indent=1).encode()), REQUEST_FILE, "wb")
        if "potential" in inputs:
            copies.append((inputs.potential.uuid, PotentialData.PACKAGE_NAME, MODEL_FILE))
        if request.graded or request.spec.uncertainty is not None:
            copies.append((inputs.potential.uuid, PotentialData.STATISTICS_NAME, STATISTICS_FILE))
        for member, name in zip(request.committee, sorted(inputs.get("committee", {})), strict=True):
            copies.append((inputs.committee[name].uuid, PotentialData.PACKAGE_NAME, member.file))
        if "engine_input" in inputs:
            copies.append((inputs.engine_input.uuid, inputs.engine_input.filename, ENGINE_INPUT_FILE))
        for name in ("checkpoint", "restart"):
            if name in inputs:
                copies.append((inputs[name].uuid, inputs[name].filename, CHECKPOINT_FILE))

        code = CodeInfo()
        code.code_uuid = inputs.code.uuid
        code.stdout_name = self.options.output_filename
        code.join_files = True
        info = CalcInfo()
        info.codes_info = [code]
        info.local_copy_list = copies
        info.retrieve_list = [OUTPUT_FILE, self.options.output_filename]
        info.retrieve_temporary_list = [TRAJECTORY_FILE, SERIES_FILE, SELECTED_FILE, GRADES_FILE, CHECKPOINT_FILE]
        return info


def validate_explore_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What is wrong with the inputs of the calculation or workchain, naming the field; None if nothing is."""
    if not {"structures", "spec"} <= set(inputs):  # the ports themselves say so
        return None
    structures = inputs["structures"]
    try:
        spec = parse_explore(inputs["spec"].get_dict())
        potentials = [*([inputs["potential"]] if "potential" in inputs else []), *_committee(inputs).values()]
        for potential in potentials:
            potential.check_runs()
        if problem := _forces_problem(spec, "potential" in inputs):
            return problem
        text = inputs["engine_input"].get_content() if "engine_input" in inputs else None
        frames = structures.frames()
        check_against_structures(spec, frames, engine_input=text)
        check_geometries(frames, source="structures")
        if {"checkpoint", "restart"} <= set(inputs):
            return "restart: give either this or 'checkpoint', not both"
        if problem := _watch_problem(spec, inputs):
            return problem
        if spec.uncertainty is not None and (why := why_no_slope(inputs["potential"], structures.species)):
            return why
        for potential in potentials:
            if problem := check_potential(potential, spec.fidelity, structures.species):
                return problem
    except (MlipError, UnicodeDecodeError) as error:
        return str(error)
    return None


def _forces_problem(spec: ExploreSpec, has_potential: bool) -> str | None:
    native = spec.lammps is not None and bool(spec.lammps.pair_commands)
    if has_potential and spec.forces is not None:
        return "spec.forces: give either this key or the input 'potential', not both"
    if not has_potential and spec.forces is None and not native:
        return "spec.forces: give either this key or the input 'potential'"
    if native and spec.forces is not None:
        return "spec.forces: spec.lammps.pair_commands give the forces, leave this key out"
    return None


def _watch_problem(spec: ExploreSpec, inputs: Mapping[str, Any]) -> str | None:
    committee, potential = _committee(inputs), inputs.get("potential")
    if spec.watch is None:
        return "committee: only a watch looks at it, and spec.watch is not given" if committee else None
    if potential is None:
        return "spec.watch: only a potential can be watched, give the input 'potential'"
    if spec.watch.needs_novelty and not potential.has_grades:
        return (
            f"spec.watch: the potential <{potential.uuid}> has no grades; take one that aiida_mlip.train has made, or "
            "set novelty_select and novelty_stop to null"
        )
    if committee and potential.calibration() is None:
        return f"committee: the potential <{potential.uuid}> has no calibration, so its error has no scale"
    if committee and spec.watch.error_where == "novel" and not potential.has_grades:
        return "spec.watch.error_where: 'novel' needs a potential with grades; set it to 'always'"
    if spec.watch.error_where == "always" and not committee:
        return "spec.watch.error_where: 'always' needs the other members as inputs 'committee'"
    for name, member in committee.items():
        if list(member.fidelities) != list(potential.fidelities):
            return f"committee.{name}: knows {member.fidelities}, the potential knows {potential.fidelities}"
    return None


def _committee(inputs: Mapping[str, Any]) -> dict[str, PotentialData]:
    """The other members by name, in order."""
    return dict(sorted(inputs.get("committee", {}).items()))


def _request(inputs: Mapping[str, Any], structures: tuple[str, ...], walltime: int | None) -> ExploreRequest:
    spec = parse_explore(inputs["spec"].get_dict())
    described = described_potential(inputs["potential"], spec.fidelity) if "potential" in inputs else {}
    return ExploreRequest(
        spec=spec,
        structures=structures,
        engine_input=ENGINE_INPUT_FILE if "engine_input" in inputs else None,
        restart_stopped="restart" in inputs,
        max_seconds=None if walltime is None else _CLEAN_FRACTION * walltime,
        **described,
        **(_described_watch(inputs) if spec.watch is not None else {}),
    )


def _described_watch(inputs: Mapping[str, Any]) -> dict[str, Any]:
    potential, committee = inputs["potential"], _committee(inputs)
    calibration = potential.calibration()
    return {
        "graded": potential.has_grades,
        "committee": tuple(
            Member(file=f"member_{index}.nequip.zip", sha256=member.sha256)
            for index, member in enumerate(committee.values())
        ),
        "calibration": None if calibration is None else calibration.as_dict(),
    }
