"""EvaluateCalculation: predictions and errors of a potential on a dataset, by ``aiida-mlip-evaluate``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec

from aiida_mlip.calculations.options import validate_options
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.io.evaluation import (
    ANSWER,
    GRADES,
    MODEL,
    PREDICTIONS,
    REQUEST,
    SPLIT,
    STATISTICS,
    EvaluateRequest,
)
from aiida_mlip.kernel.frames import id_keys
from aiida_mlip.kernel.splits import Part
from aiida_mlip.protocols.evaluate import EvaluateSettings
from aiida_mlip.protocols.model import validate_spec

#: Arrays of a split: ``frame_id`` (n, 16) and one ``member_<i>`` (n,) per committee member.
FRAME_ID: Final[str] = "frame_id"
MEMBER: Final[str] = "member_"


class EvaluateCalculation(CalcJob):
    """Evaluate a potential on a dataset: errors per part of the split, and the numbers of a parity plot."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports and exit codes."""
        super().define(spec)
        spec.input("potential", valid_type=PotentialData, help="The potential. The job executes code of its package.")
        spec.input("dataset", valid_type=DatasetData, help="Frames to predict; errors need their labels.")
        spec.input(
            "split",
            valid_type=orm.ArrayData,
            required=False,
            help="Parts by frame id: arrays `frame_id` (n, 16) and `member_<i>` (n,): 0 train, 1 val, 2 test, -1 none.",
        )
        spec.input("member", valid_type=orm.Int, required=False, help="Whose column of the split; the only one if one.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            required=False,
            validator=_validate_settings,
            help="`device`, `mode`, `fidelity`, `fit_grades`, ...: see aiida_mlip.protocols.evaluate.",
        )
        spec.inputs.validator = _validate_inputs
        options = spec.inputs["metadata"]["options"]
        options["parser_name"].default = "aiida_mlip.evaluate"
        options["resources"].default = dict(ONE_CORE)
        options["withmpi"].default = False
        options["output_filename"].default = "evaluate.out"
        options.validator = validate_options

        spec.output("errors", valid_type=orm.Dict, required=False, help="Errors for all frames and per part.")
        spec.output("parity", valid_type=orm.ArrayData, required=False, help="Labels and predictions, row by row.")
        spec.output(
            "grades",
            valid_type=orm.ArrayData,
            required=False,
            help="With `fit_grades`: grades of the training rows, see aiida_mlip.kernel.uncertainty.grades.",
        )
        spec.default_output_node = "errors"

        spec.exit_code(210, "ERROR_INVALID_INPUT", message="The program refused its input: {message}")
        spec.exit_code(211, "ERROR_SPECIES_NOT_COVERED", message="The potential lacks species: {message}")
        spec.exit_code(212, "ERROR_MODEL_NOT_LOADED", message="The model could not be loaded: {message}")
        spec.exit_code(
            300,
            "ERROR_OUTPUT_MISSING",
            invalidates_cache=True,
            message="No {name}: the program was interrupted or crashed. {end}",
        )
        spec.exit_code(
            301, "ERROR_OUTPUT_UNREADABLE", message="The output cannot be used: {message}", invalidates_cache=True
        )
        spec.exit_code(302, "ERROR_ALL_FRAMES_FAILED", message="None of the {n} frames could be predicted.")
        spec.exit_code(400, "ERROR_OUT_OF_WALLTIME", message="The job ran out of walltime.", invalidates_cache=True)
        spec.exit_code(
            401, "ERROR_OUT_OF_MEMORY", message="The job ran out of memory, or was killed.", invalidates_cache=True
        )
        spec.exit_code(
            410, "ERROR_SOME_FRAMES_FAILED", message="{failed} of {n} frames could not be predicted; the others could."
        )
        spec.exit_code(411, "ERROR_GRADES_FAILED", message="All was predicted, but no grades: {message}")

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request and the split; shards and package go from the repository straight to the work directory."""
        potential, dataset = self.inputs.potential, self.inputs.dataset
        shards = {f"frames_{i:04d}.npz": name for i, name in enumerate(dataset.shard_names)}
        split = "split" in self.inputs
        request = request_of(potential, settings_of(self.inputs), frames=tuple(shards), split=SPLIT if split else None)
        folder.create_file_from_filelike(io.BytesIO(request.model_dump_json(indent=1).encode()), REQUEST, "wb")
        if split:
            buffer = io.BytesIO()
            np.save(buffer, parts_of(dataset, self.inputs.split, member_of(self.inputs)), allow_pickle=False)
            folder.create_file_from_filelike(io.BytesIO(buffer.getvalue()), SPLIT, "wb")

        code = CodeInfo()
        code.code_uuid = self.inputs.code.uuid
        code.stdout_name = self.options.output_filename
        code.join_files = True
        info = CalcInfo()
        info.codes_info = [code]
        info.local_copy_list = [
            (potential.uuid, PotentialData.PACKAGE_NAME, MODEL),
            *([(potential.uuid, PotentialData.STATISTICS_NAME, STATISTICS)] if potential.has_grades else []),
            *((dataset.uuid, f"{DatasetData._PREFIX}/{name}", target) for target, name in shards.items()),
        ]
        info.retrieve_list = [ANSWER, self.options.output_filename]
        info.retrieve_temporary_list = [PREDICTIONS, GRADES]
        return info


def settings_of(inputs: Mapping[str, Any]) -> EvaluateSettings:
    """Settings of an evaluation's inputs, defaults filled in.

    :raises ProtocolError: unknown key or value.
    """
    return validate_spec(
        EvaluateSettings, inputs["settings"].get_dict() if "settings" in inputs else {}, where="settings"
    )


def request_of(
    potential: PotentialData, settings: EvaluateSettings, *, frames: tuple[str, ...], split: str | None
) -> EvaluateRequest:
    """What the program is asked: the potential's description and the settings."""
    return EvaluateRequest(
        frames=frames,
        split=split,
        sha256=potential.sha256,
        species=tuple(potential.species),
        fidelities=tuple(potential.fidelities),
        energy_shifts=potential.energy_shifts,
        statistics=STATISTICS if potential.has_grades else None,
        **settings.model_dump(),
    )


def member_of(inputs: Mapping[str, Any]) -> str:
    """Name of the split's array that says which frames a member was trained on.

    :raises InvalidInputError: the split has no such array, or several and none was named.
    """
    split = inputs["split"]
    names = sorted(name for name in split.get_arraynames() if name.startswith(MEMBER))
    if FRAME_ID not in split.get_arraynames() or not names:
        raise InvalidInputError(
            f"split: needs arrays {FRAME_ID!r} and '{MEMBER}<i>', got {sorted(split.get_arraynames())}"
        )
    if "member" not in inputs:
        if len(names) > 1:
            raise InvalidInputError(f"split: has {', '.join(names)}; say which one with the input 'member'")
        return names[0]
    name = f"{MEMBER}{inputs['member'].value}"
    if name not in names:
        raise InvalidInputError(f"member {inputs['member'].value}: the split has only {', '.join(names)}")
    return name


def parts_of(dataset: DatasetData, split: orm.ArrayData, member: str) -> np.ndarray:
    """(n,) int8 part of every row of a dataset, by frame id; -1 for a frame that the split does not know.

    A frame that is in the split at several levels of theory, and used at one of them, has the part it has there.

    :raises InvalidInputError: arrays of unequal length.
    """
    known, codes = id_keys(split.get_array(FRAME_ID)), split.get_array(member)
    if len(known) != len(codes):
        raise InvalidInputError(f"split: {len(known)} frame ids, but {len(codes)} entries in {member!r}")
    rows = id_keys(dataset.column("frame_id"))
    order = np.lexsort((codes == Part.UNUSED, known))
    if len(known) == 0:
        return np.full(len(rows), Part.UNUSED, dtype=np.int8)
    place = order[np.minimum(np.searchsorted(known, rows, sorter=order), len(known) - 1)]
    parts: np.ndarray = np.where(known[place] == rows, codes[place], Part.UNUSED).astype(np.int8)
    return parts


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        validate_spec(EvaluateSettings, value.get_dict(), where="settings")
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(inputs: Mapping[str, Any], _: Any) -> str | None:
    if not {"potential", "dataset"} <= set(inputs):  # the ports themselves say so
        return None
    potential, dataset = inputs["potential"], inputs["dataset"]
    try:
        potential.check_runs()
        potential.check_species(dataset.species)
        settings = settings_of(inputs)
        if settings.fidelity is not None and settings.fidelity not in potential.fidelities:
            return f"settings.fidelity: {settings.fidelity!r} is none of the potential's: {potential.fidelities}"
        if "split" in inputs:
            parts_of(dataset, inputs["split"], member_of(inputs))
        elif "member" in inputs:
            return "member: needs the input 'split' as well"
        with potential.open_package():
            pass
        potential.grades()
    except MlipError as error:
        return str(error)
    return None
