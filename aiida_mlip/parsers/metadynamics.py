"""Parser of :class:`~aiida_mlip.calculations.metadynamics.MetadynamicsCalculation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from aiida import orm
from aiida.engine import ExitCode

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief
from aiida_mlip.io.metadynamics import (
    BIAS_FOLDER,
    CHECKPOINT_FILE,
    OUTPUT_FILE,
    SERIES_FILE,
    TRAJECTORY_FILE,
    MetadynamicsReport,
)
from aiida_mlip.parsers.dynamics import DynamicsParser

#: Most files of a bias.
_MOST_FILES: Final[int] = 10_000
#: Why the program refused -> exit code.
_REFUSALS: Final[dict[str, str]] = {
    "species_not_covered": "ERROR_SPECIES_NOT_COVERED",
    "model_not_loaded": "ERROR_MODEL_NOT_LOADED",
    "engine_missing": "ERROR_ENGINE_MISSING",
}


class MetadynamicsParser(DynamicsParser):
    """Attach whatever is there, also of a job that was ended; then return the most specific exit code."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach ``trajectory_summary``, ``dataset``, ``series``, ``bias`` and ``checkpoint`` as far as they exist."""
        names = self.retrieved.base.repository.list_object_names()
        if OUTPUT_FILE not in names:
            return self.scheduler_exit_code() or self.exit_codes.ERROR_OUTPUT_MISSING.format(end=self.last_line())
        try:
            report = self.read_report(OUTPUT_FILE, MetadynamicsReport)
        except FileFormatError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        if report.status == "refused":
            name = _REFUSALS.get(report.reason, "ERROR_INVALID_INPUT")
            return self.exit_codes[name].format(message=brief(report.message))
        self.out("trajectory_summary", orm.Dict(report.model_dump(mode="json")))
        problem = self._attach(Path(kwargs["retrieved_temporary_folder"]), report)
        if problem:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=problem)
        return self._judge(report)

    def _attach(self, folder: Path, report: MetadynamicsReport) -> str:
        """Attach the outputs that are files; returns what is wrong with one of them."""
        problem = self.attach_dataset(folder / TRAJECTORY_FILE, "dataset")
        problem = self.attach_arrays(folder / SERIES_FILE, "series") or problem
        if (folder / BIAS_FOLDER).is_dir() and any((folder / BIAS_FOLDER).iterdir()):
            if strange := _strange_entry(folder / BIAS_FOLDER):
                return problem or strange
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
                return self.scheduler_exit_code() or self.exit_codes.ERROR_OUT_OF_WALLTIME
            return self.exit_codes.ERROR_NO_FRAMES.format(message=messages)
        if failed:
            return self.exit_codes.ERROR_FORCES_FAILED.format(failed=len(failed), total=total, message=messages)
        if report.status in ("walltime", "running"):
            return self.exit_codes.ERROR_OUT_OF_WALLTIME
        if stopped:
            return self.exit_codes.ERROR_STOPPED_BY_WALL.format(stopped=len(stopped), total=total, message=messages)
        return None


def _strange_entry(folder: Path) -> str:
    """What should not be in a folder of plain files; empty if nothing: a link would bring in what it points to."""
    for count, path in enumerate(folder.iterdir()):
        if count >= _MOST_FILES:
            return f"{folder.name}: more than {_MOST_FILES} files"
        if path.is_symlink() or not path.is_file():
            return f"{folder.name}: {brief(path.name, 60)!r} is no plain file"
    return ""
