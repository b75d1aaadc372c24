"""CalcJob that labels many frames in one job with pw.x."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from aiida import orm
from aiida.common.datastructures import CalcInfo
from aiida.common.escaping import escape_for_bash
from aiida.common.exceptions import InputValidationError
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec
from aiida.plugins import DataFactory

from aiida_mlip.calculations.options import validate_options
from aiida_mlip.data.batches import batch_problem, parse_batch, take_rows
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.pw_inputs import MAX_SECONDS_FACTOR, pw_input
from aiida_mlip.data.pw_slots import Slots, slots_of
from aiida_mlip.errors import MlipError
from aiida_mlip.io.pw_bundle import (
    BEGUN_FILE,
    DONE_FOLDER,
    INPUTS_FILE,
    PW_INPUT,
    RESULTS_FILE,
    SCRIPT_FILE,
    bundle_script,
    pack_inputs,
)
from aiida_mlip.protocols.fidelity import QeFidelity

#: OpenMPI's pw.x without launcher starts a daemon of its own, which outlives a kill of pw.x and fills the memory.
ALONE: Final[Mapping[str, str]] = {"OMPI_MCA_ess_singleton_isolated": "1"}
#: So that programs started side by side by several launchers are not bound to the same core, whichever the launcher.
UNBOUND: Final[Mapping[str, str]] = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "I_MPI_PIN": "0",
    "SLURM_CPU_BIND": "none",
    "SLURM_EXACT": "1",
}


class PwBundleCalculation(CalcJob):
    """Label the frames of a batch with pw.x: one job, many frames, several of them side by side.

    Each frame runs with the very input it would have in a job of its own.
    """

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:
        """Ports, options and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Frames that the rows of the batch refer to.")
        spec.input(
            "batch",
            valid_type=orm.Dict,
            validator=_validate_batch,
            help="`fidelity` (name), `spec` (a qe fidelity), `settings` (its hash) and `rows` (of the dataset).",
        )
        spec.input_namespace(
            "pseudos",
            valid_type=DataFactory("pseudo.upf"),
            dynamic=True,
            help="Pseudopotential per chemical symbol of the frames.",
        )
        spec.output("dataset", valid_type=DatasetData, help="Rows of the batch with labels, or failure classes.")
        spec.output(
            "report",
            valid_type=orm.Dict,
            help="What is known about each failure; `again`: frames that a job of their own may cure; `begun`: frames "
            "that were begun and cut off.",
        )
        spec.input("metadata.options.parser_name", valid_type=str, default="aiida_mlip.pw_bundle")
        spec.input("metadata.options.resources", valid_type=dict, default=lambda: {"num_machines": 1})
        spec.input("metadata.options.withmpi", valid_type=bool, default=False)
        spec.inputs["metadata"]["options"].validator = validate_options
        spec.input(
            "metadata.options.side_by_side",
            valid_type=int,
            required=False,
            validator=lambda value, _: None if value is None or value >= 1 else f"must be at least 1, got {value}",
            help="Frames that run at once and share the cores of the job. Default: without MPI as many as the job has "
            "processes; with MPI one after another, each on all of them.",
        )
        spec.exit_code(
            300, "ERROR_OUTPUT_MISSING", message="The job left not one finished frame.", invalidates_cache=True
        )
        spec.exit_code(
            301, "ERROR_OUTPUT_TRUNCATED", message="The results cannot be read: {reason}", invalidates_cache=True
        )
        spec.exit_code(
            400,
            "ERROR_INTERRUPTED",
            invalidates_cache=True,
            message="The job ended after {done} of {total} frames; the finished ones are in the output dataset.",
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the inputs of all frames and the script that runs them."""
        content = self.inputs.batch.get_dict()
        if isinstance(self.inputs.code, orm.PortableCode):
            raise InputValidationError(f"code {self.inputs.code.full_label}: pw.x must be installed on the computer")
        texts, pseudos = self._inputs(content)
        try:
            slots = slots_of(self.node, len(texts))
        except MlipError as error:
            raise InputValidationError(str(error)) from error
        walltime = self.options.get("max_wallclock_seconds", None)
        script = bundle_script(
            self._run_line(slots),
            side_by_side=slots.side_by_side,
            environment={**ALONE, **(UNBOUND if slots.side_by_side > 1 else {})},
            max_seconds=None if walltime is None else int(MAX_SECONDS_FACTOR * walltime),
        )
        folder.create_file_from_filelike(io.BytesIO(pack_inputs(texts)), INPUTS_FILE, mode="wb")
        folder.create_file_from_filelike(io.BytesIO(script.encode()), SCRIPT_FILE, mode="wb")
        folder.get_subfolder("pseudo", create=True)
        info = CalcInfo()
        info.codes_info = []  # the script runs the code, once per frame
        info.append_text = f". ./{SCRIPT_FILE}"
        info.local_copy_list = [(uuid, name, path) for path, (uuid, name) in sorted(pseudos.items())]
        info.retrieve_list = [RESULTS_FILE, [f"{DONE_FOLDER}/*.tar.gz", ".", 1], BEGUN_FILE]
        return info

    def _inputs(self, content: Mapping[str, Any]) -> tuple[list[str], dict[str, tuple[str, str]]]:
        """Input of each frame, and path -> (uuid, name) of the pseudopotentials."""
        spec = parse_batch(content)
        assert isinstance(spec, QeFidelity)  # noqa: S101  # the validator of the port has checked it
        frames = take_rows(self.inputs.dataset, content["rows"])
        texts: list[str] = []
        pseudos: dict[str, tuple[str, str]] = {}
        for i in range(len(frames)):
            try:
                text, files = pw_input(
                    frames.take([i]),
                    spec,
                    self.inputs.pseudos,
                    isolated=content.get("source") == "isolated",
                    max_wallclock_seconds=self.options.get("max_wallclock_seconds", None),
                )
            except (KeyError, MlipError) as error:
                raise InputValidationError(f"frame {i} of the batch: {error}") from error
            texts.append(text)
            for uuid, name, path in files:
                if pseudos.setdefault(path, (uuid, name)) != (uuid, name):
                    raise InputValidationError(f"two pseudopotentials have the file name {name}")
        return texts, pseudos

    def _run_line(self, slots: Slots) -> str:
        """Command that runs one frame, quoted as AiiDA quotes it."""
        computer, code = self.node.computer, self.inputs.code
        launcher: list[str] = []
        if slots.with_mpi:
            launcher = [word.format(**slots.launcher) for word in computer.get_mpirun_command()]
        extra = list(self.options.get("mpirun_extra_params", None) or []) if launcher else []
        before = code.get_prepend_cmdline_params(launcher or None, extra or None)
        command = code.get_executable_cmdline_params(["-in", PW_INPUT])
        outer = [escape_for_bash(word, use_double_quotes=computer.get_use_double_quotes()) for word in before]
        inner = " ".join(escape_for_bash(word, use_double_quotes=code.use_double_quotes) for word in command)
        if code.wrap_cmdline_params:
            inner = escape_for_bash(inner, use_double_quotes=True)
        return " ".join([*outer, inner])


def _validate_batch(node: orm.Dict, _: Any) -> str | None:
    return batch_problem(node, "qe")
