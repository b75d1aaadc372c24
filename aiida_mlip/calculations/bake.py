"""BakeCalculation: one level of theory of a joint potential as an ordinary one, by ``aiida-mlip-evaluate --bake``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec

from aiida_mlip.calculations.options import validate_options
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.io.bake import BAKED, BakeRequest
from aiida_mlip.io.evaluation import ANSWER, MODEL, REQUEST


class BakeCalculation(CalcJob):
    """Bake a level of theory into a joint potential.

    Entry point ``aiida_mlip.bake``. What comes out predicts what the joint potential does at that level, with its
    reference energies, needs not be told the level, and runs wherever an ordinary potential does.
    """

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports and exit codes."""
        super().define(spec)
        spec.input(
            "potential",
            valid_type=PotentialData,
            help="A joint potential, with reference energies. The job executes code of its package.",
        )
        spec.input(
            "fidelity", valid_type=orm.Str, serializer=orm.to_aiida_type, help="One of the potential's fidelities."
        )
        spec.inputs.validator = _validate_inputs
        options = spec.inputs["metadata"]["options"]
        options["parser_name"].default = "aiida_mlip.bake"
        options["resources"].default = dict(ONE_CORE)
        options["withmpi"].default = False
        options["output_filename"].default = "bake.out"
        options.validator = validate_options

        spec.output("potential", valid_type=PotentialData, required=False, help="Ordinary potential of that fidelity.")

        spec.exit_code(210, "ERROR_INVALID_INPUT", message="The program refused its input: {message}")
        spec.exit_code(212, "ERROR_MODEL_NOT_LOADED", message="The model could not be loaded: {message}")
        spec.exit_code(
            300,
            "ERROR_OUTPUT_MISSING",
            message="No {name}: the program was interrupted or crashed. {end}",
            invalidates_cache=True,
        )
        spec.exit_code(
            301, "ERROR_OUTPUT_UNREADABLE", message="The output cannot be used: {message}", invalidates_cache=True
        )
        spec.exit_code(310, "ERROR_NOT_EXACT", message="The baked model is not the joint one: {message}")
        spec.exit_code(400, "ERROR_OUT_OF_WALLTIME", message="The job ran out of walltime.", invalidates_cache=True)
        spec.exit_code(
            401, "ERROR_OUT_OF_MEMORY", message="The job ran out of memory, or was killed.", invalidates_cache=True
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request; the package goes from the repository straight to the work directory."""
        request = request_of(self.inputs.potential, self.inputs.fidelity.value)
        folder.create_file_from_filelike(io.BytesIO(request.model_dump_json(indent=1).encode()), REQUEST, "wb")

        code = CodeInfo()
        code.code_uuid = self.inputs.code.uuid
        code.cmdline_params = ["--bake"]
        code.stdout_name = self.options.output_filename
        code.join_files = True
        info = CalcInfo()
        info.codes_info = [code]
        info.local_copy_list = [(self.inputs.potential.uuid, PotentialData.PACKAGE_NAME, MODEL)]
        info.retrieve_list = [ANSWER, self.options.output_filename]
        info.retrieve_temporary_list = [BAKED]
        return info


def request_of(potential: PotentialData, fidelity: str) -> BakeRequest:
    """What the program is asked.

    :raises InvalidInputError: not a joint potential, none of its fidelities, or no reference energy of an element.
    """
    if not potential.joint:
        raise InvalidInputError(f"the potential <{potential.uuid}> is not joint: it runs as it is, nothing is to bake")
    if fidelity not in potential.fidelities:
        raise InvalidInputError(f"fidelity: {fidelity!r} is none of the potential's: {potential.fidelities}")
    energies = potential.reference_energies.get(fidelity, {})
    if missing := [symbol for symbol in potential.species if energies.get(symbol) is None]:
        raise InvalidInputError(
            f"the potential <{potential.uuid}> has no reference energy of {', '.join(missing)} at {fidelity}"
        )
    return BakeRequest(
        sha256=potential.sha256,
        fidelity=fidelity,
        index=potential.fidelities.index(fidelity),
        shifts={symbol: float(energies[symbol]) for symbol in potential.species},
        change=potential.energy_shifts.get(fidelity, {}),
    )


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    if not {"potential", "fidelity"} <= set(inputs):  # the ports themselves say so
        return None
    try:
        request_of(inputs["potential"], inputs["fidelity"].value)
        with inputs["potential"].open_package():
            pass
    except MlipError as error:
        return str(error)
    return None
