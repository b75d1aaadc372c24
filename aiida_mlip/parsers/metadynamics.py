"""Parser of :class:`~aiida_mlip.calculations.metadynamics.MetadynamicsCalculation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode
from aiida.parsers import Parser
from pydantic import ValidationError

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.metadynamics import (
    BIAS_FOLDER,
    CHECKPOINT_FILE,
    OUTPUT_FILE,
    SERIES_FILE,
    TRAJECTORY_FILE,
    MetadynamicsReport,
)
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.frames import id_bytes

#: Why the program refused -> exit code.
_REFUSALS: Final[dict[str, str]] = {
    "species_not_covered": "ERROR_SPECIES_NOT_COVERED",
    "model_not_loaded": "ERROR_MODEL_NOT_LOADED",
    "engine_missing": "ERROR_ENGINE_MISSING",
}


class MetadynamicsParser(Parser):
    """Attach whatever is there, also of a job that was ended; then return the most specific exit code."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach ``trajectory_summary``, ``dataset``, ``series``, ``bias`` and ``checkpoint`` as far as they exist."""
        names = self.retrieved.base.repository.list_object_names()
        if OUTPUT_FILE not in names:
            return self._scheduler() or self.exit_codes.ERROR_OUTPUT_MISSING.format(end=self._last_line())
        try:
            text = self.retrieved.base.repository.get_object_content(OUTPUT_FILE, mode="r")
            report = MetadynamicsReport.model_validate_json(text)
        except (ValidationError, UnicodeDecodeError) as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=f"{OUTPUT_FILE}: {error}")
        if report.status == "refused":
            name = _REFUSALS.get(report.reason, "ERROR_INVALID_INPUT")
            return self.exit_codes[name].format(message=report.message)
        self.out("trajectory_summary", orm.Dict(report.model_dump(mode="json")))
        problem = self._attach(Path(kwargs["retrieved_temporary_folder"]), report)
        if problem:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=problem)
        return self._judge(report)

    def _attach(self, folder: Path, report: MetadynamicsReport) -> str:
        """Attach the outputs that are files; returns what is wrong with one of them."""
        problem = ""
        if (folder / TRAJECTORY_FILE).is_file():
            try:
                with (folder / TRAJECTORY_FILE).open("rb") as handle:
                    frames = read_shard(handle, source=TRAJECTORY_FILE)
                made_by = np.repeat(id_bytes([self.node.uuid]), len(frames), axis=0)
                self.out("dataset", DatasetData.from_frames(frames.with_columns(geometry_uuid=made_by)))
            except MlipError as error:
                problem = str(error)
        if (folder / SERIES_FILE).is_file():
            try:
                with np.load(folder / SERIES_FILE, allow_pickle=False) as arrays:
                    series = orm.ArrayData({name: arrays[name] for name in sorted(arrays.files)})
                self.out("series", series)
            except (OSError, ValueError) as error:
                problem = problem or f"{SERIES_FILE}: {error}"
        if (folder / BIAS_FOLDER).is_dir() and any((folder / BIAS_FOLDER).iterdir()):
            self.out("bias", orm.FolderData(tree=str(folder / BIAS_FOLDER)))
        if report.status != "finished" and (folder / CHECKPOINT_FILE).is_file():
            self.out("checkpoint", orm.SinglefileData(folder / CHECKPOINT_FILE))
        return problem

    def _judge(self, report: MetadynamicsReport) -> ExitCode | None:
        total = len(report.trajectories)
        stopped = [t for t in report.trajectories if t.stopped_by in ("temperature", "pair_distance")]
        failed = [t for t in report.trajectories if t.stopped_by == "forces_failed"]
        messages = "; ".join(dict.fromkeys(t.message for t in (failed or stopped)))[:500]
        if "dataset" not in self.outputs:
            if report.status in ("walltime", "running"):
                return self._scheduler() or self.exit_codes.ERROR_OUT_OF_WALLTIME
            return self.exit_codes.ERROR_NO_FRAMES.format(message=messages)
        if failed:
            return self.exit_codes.ERROR_FORCES_FAILED.format(failed=len(failed), total=total, message=messages)
        if report.status in ("walltime", "running"):
            return self.exit_codes.ERROR_OUT_OF_WALLTIME
        if stopped:
            return self.exit_codes.ERROR_STOPPED_BY_WALL.format(stopped=len(stopped), total=total, message=messages)
        return None

    def _scheduler(self) -> ExitCode | None:
        """What the scheduler already knew (out of walltime, out of memory)."""
        if self.node.exit_status is None:
            return None
        return ExitCode(self.node.exit_status, self.node.exit_message)

    def _last_line(self) -> str:
        name = self.node.get_option("output_filename")
        if name not in self.retrieved.base.repository.list_object_names():
            return ""
        lines = self.retrieved.base.repository.get_object_content(name, mode="rb").decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
