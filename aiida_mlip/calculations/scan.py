"""ScanCalculation: grades of one frame of up to millions of atoms, by ``aiida-mlip-evaluate --scan``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec

from aiida_mlip.calculations.options import validate_options
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.evaluation import ANSWER, MODEL, REQUEST, STATISTICS
from aiida_mlip.io.fragments import HostCrystal
from aiida_mlip.io.scan import CANDIDATES, ENVIRONMENTS, FRAGMENT_NOVELTY, FRAGMENTS, ScanRequest
from aiida_mlip.protocols.model import validate_spec
from aiida_mlip.protocols.scan import ScanSettings


class ScanCalculation(CalcJob):
    """Grade every atom of a large frame; bring back the histogram and the surroundings of the worst atoms."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports and exit codes."""
        super().define(spec)
        spec.input(
            "potential",
            valid_type=PotentialData,
            help="The potential, with its grades. The job executes code of its package.",
        )
        spec.input("frame", valid_type=orm.SinglefileData, required=False, help="The file with the large frame.")
        spec.input(
            "remote",
            valid_type=orm.RemoteData,
            required=False,
            help="A folder on the code's computer that has it; `settings.file` names it. Nothing is copied.",
        )
        spec.input(
            "settings",
            valid_type=orm.Dict,
            required=False,
            validator=_validate_settings,
            help="`frame`, `threshold`, `max_candidates`, `max_atoms`, ...: see aiida_mlip.protocols.scan.",
        )
        spec.input_namespace(
            "hosts",
            dynamic=True,
            valid_type=orm.StructureData,
            required=False,
            help="Crystals that the frame is made of, for `settings.fragments`; tried in the order of their names.",
        )
        spec.inputs.validator = _validate_inputs
        options = spec.inputs["metadata"]["options"]
        options["parser_name"].default = "aiida_mlip.scan"
        options["resources"].default = dict(ONE_CORE)
        options["withmpi"].default = False
        options["output_filename"].default = "scan.out"
        options.validator = validate_options

        spec.output("summary", valid_type=orm.Dict, help="Histogram of the grades, counts, speed and memory.")
        spec.output(
            "candidates",
            valid_type=DatasetData,
            required=False,
            help="Surroundings of the worst atoms, that atom first, with its parent's frame id and atom numbers.",
        )
        spec.output(
            "environments",
            valid_type=orm.ArrayData,
            required=False,
            help="One row per candidate: `atom`, `id`, `number`, `position`, `novelty`, `features`.",
        )
        spec.output(
            "fragments",
            valid_type=DatasetData,
            required=False,
            help="With `settings.fragments`: those that are fit to be labelled, with parent frame id and atoms.",
        )
        spec.output(
            "fragment_grades",
            valid_type=orm.ArrayData,
            required=False,
            help="Of their atoms: `frame_id` (n, 16), `novelty` (a,).",
        )
        spec.default_output_node = "summary"

        spec.exit_code(210, "ERROR_INVALID_INPUT", message="The program refused its input: {message}")
        spec.exit_code(211, "ERROR_SPECIES_NOT_COVERED", message="The potential lacks species: {message}")
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
        spec.exit_code(400, "ERROR_OUT_OF_WALLTIME", message="The job ran out of walltime.", invalidates_cache=True)
        spec.exit_code(
            401, "ERROR_OUT_OF_MEMORY", message="The job ran out of memory, or was killed.", invalidates_cache=True
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request; package, grades and frame go straight to the work directory, or are linked there."""
        potential, settings = self.inputs.potential, settings_of(self.inputs)
        name = file_name(self.inputs, settings)
        request = ScanRequest(
            file=name,
            sha256=potential.sha256,
            species=tuple(potential.species),
            hosts=tuple(_host_crystal(node) for _, node in sorted(self.inputs.get("hosts", {}).items())),
            **settings.model_dump(exclude={"file"}),
        )
        folder.create_file_from_filelike(io.BytesIO(request.model_dump_json(indent=1).encode()), REQUEST, "wb")

        code = CodeInfo()
        code.code_uuid = self.inputs.code.uuid
        code.cmdline_params = ["--scan"]
        code.stdout_name = self.options.output_filename
        code.join_files = True
        info = CalcInfo()
        info.codes_info = [code]
        info.local_copy_list = [
            (potential.uuid, PotentialData.PACKAGE_NAME, MODEL),
            (potential.uuid, PotentialData.STATISTICS_NAME, STATISTICS),
        ]
        if "frame" in self.inputs:
            info.local_copy_list.append((self.inputs.frame.uuid, self.inputs.frame.filename, name))
        else:
            remote = self.inputs.remote
            source = str(PurePosixPath(remote.get_remote_path()) / str(settings.file))
            info.remote_symlink_list = [(remote.computer.uuid, source, name)]
        info.retrieve_list = [ANSWER, self.options.output_filename]
        info.retrieve_temporary_list = [CANDIDATES, ENVIRONMENTS, FRAGMENTS, FRAGMENT_NOVELTY]
        return info


def settings_of(inputs: Mapping[str, Any]) -> ScanSettings:
    """Settings of a scan's inputs, defaults filled in.

    :raises ProtocolError: unknown key or value.
    """
    return validate_spec(ScanSettings, inputs["settings"].get_dict() if "settings" in inputs else {}, where="settings")


def _host_crystal(structure: orm.StructureData) -> HostCrystal:
    atoms = structure.get_ase()
    return HostCrystal(
        numbers=tuple(atoms.numbers.tolist()),
        positions=tuple(atoms.positions.tolist()),
        cell=tuple(atoms.cell.array.tolist()),
    )


def file_name(inputs: Mapping[str, Any], settings: ScanSettings) -> str:
    """Name of the frame in the work directory: it cannot clash with files of the job, its endings tell the format."""
    given = inputs["frame"].filename if "frame" in inputs else str(settings.file)
    return f"frame_{PurePosixPath(given).name}"


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        validate_spec(ScanSettings, value.get_dict(), where="settings")
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    if "potential" not in inputs:  # the port itself says so
        return None
    if ("frame" in inputs) == ("remote" in inputs):
        return "give either `frame`, a file, or `remote`, a folder on the code's computer"
    try:
        inputs["potential"].check_runs()
        settings = settings_of(inputs)
        if "remote" in inputs and settings.file is None:
            return "settings.file: name the file in the remote folder"
        if settings.fragments is not None:
            settings.fragments.limits(where="settings.fragments")
            settings.fragments.acceptance()
            if settings.fragments.completion == "crystal" and not inputs.get("hosts"):
                return "hosts: missing, settings.fragments.completion crystal needs the crystal"
        elif inputs.get("hosts"):
            return "hosts: only fragments are completed to them, and settings.fragments is not given"
        if inputs["potential"].grades() is None:
            return f"potential <{inputs['potential'].uuid}> has no grades: nothing can be told from its features"
        with inputs["potential"].open_package():
            pass
    except MlipError as error:
        return str(error)
    return None
