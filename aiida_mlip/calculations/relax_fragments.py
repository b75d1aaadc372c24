"""CalcJob of fragments before they are labelled: buffers relaxed, fragments judged, by ``aiida-mlip-fragment``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec

from aiida_mlip.calculations.dynamics_inputs import shard_copies
from aiida_mlip.calculations.options import validate_options
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.atom_grades import grades_of_frames
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.fragments import (
    ACCEPTED_FILE,
    MODEL_FILE,
    NOVELTY_FILE,
    OUTPUT_FILE,
    PARENT_NOVELTY_FILE,
    REQUEST_FILE,
    STATISTICS_FILE,
    RelaxRequest,
)
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.model import validate_spec

#: Part of the walltime after which the program begins no further fragment.
_CLEAN_FRACTION: Final[float] = 0.9


class RelaxFragmentsCalculation(CalcJob):
    """Relax the buffer of each fragment where something asks for it; accept it, or say why not."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports and exit codes."""
        super().define(spec)
        spec.input("fragments", valid_type=DatasetData, help="Fragments of `carve_fragments`, centre first.")
        spec.input(
            "grades",
            valid_type=orm.ArrayData,
            help="Of their atoms in the parent: `frame_id` (n, 16) of the fragments, `novelty` (a,).",
        )
        spec.input(
            "potential",
            valid_type=PotentialData,
            help="The potential that graded the parents. The job executes code of its package.",
        )
        spec.input(
            "settings",
            valid_type=orm.Dict,
            validator=_validate_settings,
            help="Those of `carve_fragments`: see aiida_mlip.protocols.fragment.",
        )
        spec.inputs.validator = _validate_inputs
        options = spec.inputs["metadata"]["options"]
        options["parser_name"].default = "aiida_mlip.relax_fragments"
        options["resources"].default = dict(ONE_CORE)
        options["withmpi"].default = False
        options["output_filename"].default = "aiida-mlip-fragment.out"
        options.validator = validate_options

        spec.output(
            "fragments", valid_type=DatasetData, required=False, help="Those that were accepted, if any; in order."
        )
        spec.output(
            "grades",
            valid_type=orm.ArrayData,
            required=False,
            help="Of their atoms as they are now: `frame_id` (n, 16), `novelty` (a,).",
        )
        spec.output("summary", valid_type=orm.Dict, required=False, help="What became of each fragment, and why.")
        spec.default_output_node = "summary"

        spec.exit_code(210, "ERROR_INVALID_INPUT", message="The program refused its input: {message}")
        spec.exit_code(211, "ERROR_SPECIES_NOT_COVERED", message="The potential lacks species: {message}")
        spec.exit_code(212, "ERROR_MODEL_NOT_LOADED", message="The model could not be loaded: {message}")
        spec.exit_code(300, "ERROR_OUTPUT_MISSING", message="The job left no report. {end}")
        spec.exit_code(301, "ERROR_OUTPUT_UNREADABLE", message="The output cannot be used: {message}")
        spec.exit_code(
            400,
            "ERROR_OUT_OF_WALLTIME",
            invalidates_cache=True,
            message="The job ended after {done} of {total} fragments; those are in the outputs.",
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request and the grades; shards and package go from the repository to the work directory."""
        inputs = self.inputs
        potential: PotentialData = inputs.potential
        copies = [
            (potential.uuid, PotentialData.PACKAGE_NAME, MODEL_FILE),
            (potential.uuid, PotentialData.STATISTICS_NAME, STATISTICS_FILE),
        ]
        walltime = self.options.get("max_wallclock_seconds")
        request = RelaxRequest(
            fragments=shard_copies(inputs.fragments, "carved", copies),
            settings=_settings(inputs),
            sha256=potential.sha256,
            species=tuple(potential.species),
            fidelities=tuple(potential.fidelities),
            max_seconds=None if walltime is None else _CLEAN_FRACTION * walltime,
        )
        folder.create_file_from_filelike(io.BytesIO(request.model_dump_json(indent=1).encode()), REQUEST_FILE, "wb")
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(grades_of_frames(inputs.fragments, inputs.grades)), allow_pickle=False)
        folder.create_file_from_filelike(io.BytesIO(buffer.getvalue()), PARENT_NOVELTY_FILE, "wb")

        code = CodeInfo()
        code.code_uuid = inputs.code.uuid
        code.stdout_name = self.options.output_filename
        code.join_files = True
        info = CalcInfo()
        info.codes_info = [code]
        info.local_copy_list = copies
        info.retrieve_list = [OUTPUT_FILE, self.options.output_filename]
        info.retrieve_temporary_list = [ACCEPTED_FILE, NOVELTY_FILE]
        return info


def _settings(inputs: Mapping[str, Any]) -> FragmentSettings:
    return validate_spec(FragmentSettings, inputs["settings"].get_dict(), where="settings")


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        spec = validate_spec(FragmentSettings, value.get_dict(), where="settings")
        spec.limits()
        spec.acceptance()
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    """What can be known before anything is submitted; an element that one fragment lacks is told by the program."""
    if not {"fragments", "grades", "potential", "settings"} <= set(inputs):  # the ports themselves say so
        return None
    potential: PotentialData = inputs["potential"]
    try:
        potential.check_runs()
        if not potential.has_grades:
            return f"potential <{potential.uuid}> has no grades: nothing can be told from its features"
        settings, names = _settings(inputs), list(potential.fidelities)
        if settings.fidelity is not None and settings.fidelity not in names:
            return f"settings.fidelity: {settings.fidelity!r} is none of the potential's: {names}"
        if settings.fidelity is None and len(names) > 1:
            return f"settings.fidelity: missing, the potential knows several: {names}"
        grades_of_frames(inputs["fragments"], inputs["grades"])
        if (inputs["fragments"].frames().region) is None:
            return f"fragments <{inputs['fragments'].uuid}>: these are no fragments, they have no regions"
        with potential.open_package():
            return None
    except MlipError as error:
        return str(error)
