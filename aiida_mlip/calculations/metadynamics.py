"""CalcJob of biased dynamics: structures and a potential or calculator -> frames, by ``aiida-mlip-metadynamics``."""

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
from aiida_mlip.io.metadynamics import (
    BIAS_FOLDER,
    CHECKPOINT_FILE,
    ENGINE_INPUT_FILE,
    MODEL_FILE,
    OUTPUT_FILE,
    REQUEST_FILE,
    SERIES_FILE,
    STATISTICS_FILE,
    TRAJECTORY_FILE,
    MetadynamicsRequest,
)
from aiida_mlip.kernel.geometry_checks import check_geometries
from aiida_mlip.protocols.metadynamics import check_against_structures, parse_metadynamics

#: Part of the walltime after which the program stops by itself and writes everything.
_CLEAN_FRACTION: Final[float] = 0.92


class MetadynamicsCalculation(CalcJob):
    """Biased dynamics from each structure, under one growing bias."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports, options and exit codes."""
        super().define(spec)
        spec.input("structures", valid_type=DatasetData, help="Structures to start from; labels are not looked at.")
        spec.input("spec", valid_type=orm.Dict, help="What to do: see `aiida_mlip.protocols.metadynamics`.")
        spec.input(
            "potential",
            valid_type=PotentialData,
            required=False,
            help="Potential of the forces, instead of `spec.forces`. The job executes code of its package.",
        )
        spec.input(
            "reference",
            valid_type=DatasetData,
            required=False,
            help="Frames that environment space is whitened on; left out: unbiased dynamics at the start.",
        )
        spec.input(
            "engine_input",
            valid_type=orm.SinglefileData,
            required=False,
            help="Input of COLVARS of one's own, or a plumed.dat.",
        )
        spec.input(
            "bias", valid_type=orm.FolderData, required=False, help="Bias of an earlier run, to start with or go on."
        )
        spec.input(
            "checkpoint",
            valid_type=orm.SinglefileData,
            required=False,
            help="Where an earlier run stopped: go on from there; needs its `bias` as well.",
        )
        spec.inputs.validator = validate_metadynamics_inputs
        options = spec.inputs["metadata"]["options"]
        options["parser_name"].default = "aiida_mlip.metadynamics"
        options["resources"].default = dict(ONE_CORE)
        options["withmpi"].default = False
        options["output_filename"].default = "aiida-mlip-metadynamics.out"
        options.validator = validate_options

        spec.output("dataset", valid_type=DatasetData, required=False, help="Frames, unlabelled, with their lineage.")
        spec.output("bias", valid_type=orm.FolderData, required=False, help="The bias: hills, state, free energy.")
        spec.output("series", valid_type=orm.ArrayData, required=False, help="Step, temperature, energies per frame.")
        spec.output("trajectory_summary", valid_type=orm.Dict, required=False, help="How each trajectory went.")
        spec.output("checkpoint", valid_type=orm.SinglefileData, required=False, help="Where to go on, if unfinished.")

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
            message="The job ended before all steps were done; frames, bias and a checkpoint are in the outputs.",
        )
        spec.exit_code(
            410,
            "ERROR_FORCES_FAILED",
            message="The forces failed in {failed} of {total} trajectories ({message}); the frames before are kept.",
        )
        spec.exit_code(
            500,
            "ERROR_STOPPED_BY_WALL",
            message="A wall ended {stopped} of {total} trajectories early ({message}); the frames before are kept.",
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request; everything else goes from the repository straight to the work directory."""
        inputs = self.inputs
        copies: list[tuple[str, str, str]] = []
        names = shard_copies(inputs.structures, "structures", copies)
        reference = shard_copies(inputs.reference, "reference", copies) if "reference" in inputs else ()
        request = _request(inputs, names, reference, self.options.get("max_wallclock_seconds"))
        folder.create_file_from_filelike(io.BytesIO(request.model_dump_json(indent=1).encode()), REQUEST_FILE, "wb")
        if "potential" in inputs:
            copies.append((inputs.potential.uuid, PotentialData.PACKAGE_NAME, MODEL_FILE))
            if request.spec.uncertainty is not None:
                copies.append((inputs.potential.uuid, PotentialData.STATISTICS_NAME, STATISTICS_FILE))
        if "engine_input" in inputs:
            copies.append((inputs.engine_input.uuid, inputs.engine_input.filename, ENGINE_INPUT_FILE))
        if "checkpoint" in inputs:
            copies.append((inputs.checkpoint.uuid, inputs.checkpoint.filename, CHECKPOINT_FILE))
        if "bias" in inputs:
            copies.append((inputs.bias.uuid, ".", BIAS_FOLDER))

        code = CodeInfo()
        code.code_uuid = inputs.code.uuid
        code.stdout_name = self.options.output_filename
        code.join_files = True
        info = CalcInfo()
        info.codes_info = [code]
        info.local_copy_list = copies
        info.retrieve_list = [OUTPUT_FILE, self.options.output_filename]
        info.retrieve_temporary_list = [TRAJECTORY_FILE, SERIES_FILE, CHECKPOINT_FILE, BIAS_FOLDER]
        return info


def validate_metadynamics_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What is wrong with the inputs of the calculation or workchain, naming the field; None if nothing is."""
    if not {"structures", "spec"} <= set(inputs):  # the ports themselves say so
        return None
    structures = inputs["structures"]
    try:
        spec = parse_metadynamics(inputs["spec"].get_dict())
        if spec.uncertainty is not None and "potential" not in inputs:
            return "potential: missing, the engine uncertainty needs one that has grades"
        if ("potential" in inputs) == (spec.forces is not None):
            return "spec.forces: give either this key or the input 'potential', not both and not none"
        text = inputs["engine_input"].get_content() if "engine_input" in inputs else None
        check_against_structures(spec, structures.column("natoms").tolist(), engine_input=text)
        check_geometries(structures.frames(), source="structures")
        if "potential" in inputs:
            inputs["potential"].check_runs()
        if "checkpoint" in inputs and "bias" not in inputs:
            return "checkpoint: needs the 'bias' of the same run as well"
        if "reference" in inputs:
            if spec.engine != "environment":
                return f"reference: only the engine environment takes one, this one is {spec.engine}"
            if missing := sorted(set(structures.species) - set(inputs["reference"].species)):
                return f"reference: has no environments of {', '.join(missing)}"
        if spec.uncertainty is not None and (why := why_no_slope(inputs["potential"], structures.species)):
            return why
        if "potential" in inputs:
            return check_potential(inputs["potential"], spec.fidelity, structures.species)
    except (MlipError, UnicodeDecodeError) as error:
        return str(error)
    return None


def _request(
    inputs: Mapping[str, Any], structures: tuple[str, ...], reference: tuple[str, ...], walltime: int | None
) -> MetadynamicsRequest:
    spec = parse_metadynamics(inputs["spec"].get_dict())
    described = described_potential(inputs["potential"], spec.fidelity) if "potential" in inputs else {}
    return MetadynamicsRequest(
        spec=spec,
        structures=structures,
        reference=reference,
        engine_input="engine_input" in inputs,
        max_seconds=None if walltime is None else _CLEAN_FRACTION * walltime,
        **described,
    )
