"""CalcJob that labels many frames in one job with an ASE calculator."""

from __future__ import annotations

import io
import json
from typing import Any

from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec

from aiida_mlip.calculations.options import validate_options
from aiida_mlip.data.batches import batch_problem, parse_batch, take_rows
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.io.label_messages import (
    FRAMES_FILE,
    INPUT_FILE,
    LABELS_FILE,
    OUTPUT_FILE,
    LabelRequest,
)
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.labelling import without_labels


class AseLabelCalculation(CalcJob):
    """Label the frames of a batch with ``aiida-mlip-label``: one job, many frames."""

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports, options and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Frames that the rows of the batch refer to.")
        spec.input(
            "batch",
            valid_type=orm.Dict,
            validator=_validate_batch,
            help="`fidelity` (name), `spec` (an ase fidelity), `settings` (its hash) and `rows` (of the dataset).",
        )
        spec.output("dataset", valid_type=DatasetData, help="Rows of the batch with labels, or failure classes.")
        spec.output("report", valid_type=orm.Dict, help="Counts, and what is known about each failure.")
        spec.input("metadata.options.parser_name", valid_type=str, default="aiida_mlip.ase_label")
        spec.input("metadata.options.output_filename", valid_type=str, default="aiida-mlip-label.out")
        spec.input("metadata.options.resources", valid_type=dict, default=lambda: {"num_machines": 1})
        spec.input("metadata.options.withmpi", valid_type=bool, default=False)
        spec.inputs["metadata"]["options"].validator = validate_options
        spec.exit_code(
            300, "ERROR_OUTPUT_MISSING", message="The job left no labels and no report.", invalidates_cache=True
        )
        spec.exit_code(
            301, "ERROR_OUTPUT_TRUNCATED", message="The labels cannot be read: {reason}", invalidates_cache=True
        )
        spec.exit_code(310, "ERROR_CALCULATOR", message="The calculator could not be started: {reason}")
        spec.exit_code(
            400,
            "ERROR_INTERRUPTED",
            invalidates_cache=True,
            message="The job ended after {done} of {total} frames; the finished ones are in the output dataset.",
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the request and the frames."""
        content = self.inputs.batch.get_dict()
        spec: Any = parse_batch(content)
        request = LabelRequest(
            fidelity=content["fidelity"], calculator=spec.calculator, arguments=spec.arguments, labels=spec.labels
        )
        frames = without_labels(take_rows(self.inputs.dataset, content["rows"]))
        folder.create_file_from_filelike(
            io.BytesIO(json.dumps(request.model_dump(mode="json"), indent=1).encode()), INPUT_FILE, mode="wb"
        )
        folder.create_file_from_filelike(io.BytesIO(write_shard(frames)), FRAMES_FILE, mode="wb")
        code = CodeInfo()
        code.code_uuid = self.inputs.code.uuid
        code.stdout_name = self.options.output_filename
        info = CalcInfo()
        info.codes_info = [code]
        info.retrieve_list = [self.options.output_filename, LABELS_FILE, OUTPUT_FILE]
        info.provenance_exclude_list = [FRAMES_FILE]  # those bytes are the dataset's already
        return info


def _validate_batch(node: orm.Dict, _: Any) -> str | None:
    return batch_problem(node, "ase")
