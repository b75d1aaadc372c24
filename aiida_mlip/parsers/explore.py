"""Parser of ``aiida-mlip-explore``: frames, numbers and grades become nodes, stops become exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from aiida import orm
from aiida.engine import ExitCode

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief
from aiida_mlip.io.explore import (
    CHECKPOINT_FILE,
    GRADES_FILE,
    OUTPUT_FILE,
    SELECTED_FILE,
    SERIES_FILE,
    TRAJECTORY_FILE,
    ExploreReport,
)
from aiida_mlip.parsers.dynamics import DynamicsParser

#: Why the program refused -> exit code.
_REFUSALS: Final[dict[str, str]] = {
    "species_not_covered": "ERROR_SPECIES_NOT_COVERED",
    "model_not_loaded": "ERROR_MODEL_NOT_LOADED",
    "engine_missing": "ERROR_ENGINE_MISSING",
}
#: Ends of a run -> exit code, the most serious first; being out of walltime comes after the first.
STOPS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    ("ERROR_FORCES_FAILED", frozenset({"forces_failed"})),
    ("ERROR_STOPPED_BY_LIMIT", frozenset({"temperature", "pair_distance"})),
    ("ERROR_STOPPED_BY_WATCH", frozenset({"novelty", "error"})),
    ("ERROR_NOT_CONVERGED", frozenset({"not_converged"})),
)


class ExploreParser(DynamicsParser):
    """Attach whatever is there, also of a job that was ended; then return the most specific exit code."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach ``summary``, ``dataset``, ``series``, ``selected``, ``grades`` and ``checkpoint``."""
        names = self.retrieved.base.repository.list_object_names()
        if OUTPUT_FILE not in names:
            return self.scheduler_exit_code() or self.exit_codes.ERROR_OUTPUT_MISSING.format(end=self.last_line())
        try:
            report = self.read_report(OUTPUT_FILE, ExploreReport)
        except FileFormatError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        if report.status == "refused":
            name = _REFUSALS.get(report.reason, "ERROR_INVALID_INPUT")
            return self.exit_codes[name].format(message=brief(report.message))
        self.out("summary", orm.Dict(report.model_dump(mode="json")))
        problem = self._attach(Path(kwargs["retrieved_temporary_folder"]))
        if problem:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=problem)
        return self._judge(report)

    def _attach(self, folder: Path) -> str:
        """Attach the outputs that are files; returns what is wrong with one of them."""
        problems = [
            self.attach_dataset(folder / TRAJECTORY_FILE, "dataset"),
            self.attach_arrays(folder / SERIES_FILE, "series"),
            self.attach_dataset(folder / SELECTED_FILE, "selected"),
            self.attach_arrays(folder / GRADES_FILE, "grades"),
        ]
        if (folder / CHECKPOINT_FILE).is_file():
            self.out("checkpoint", orm.SinglefileData(folder / CHECKPOINT_FILE))
        return next((problem for problem in problems if problem), "")

    def _judge(self, report: ExploreReport) -> ExitCode | None:
        if report.status in ("walltime", "running"):
            if "dataset" not in self.outputs and (known := self.scheduler_exit_code()):
                return known
            return self.exit_codes.ERROR_OUT_OF_WALLTIME
        found = judged(report.model_dump()["runs"])
        if not any(run.frames + run.selected for run in report.runs):
            return self.exit_codes.ERROR_NO_FRAMES.format(message=found[1]["message"] if found else "")
        return self.exit_codes[found[0]].format(**found[1]) if found else None


def judged(runs: list[dict[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """Name of the most serious exit code of some runs, and what fills its message; None if all went well."""
    for name, reasons in STOPS:
        stopped = [run for run in runs if run["stopped_by"] in reasons]
        if stopped:
            messages = "; ".join(dict.fromkeys(run["message"] for run in stopped if run["message"]))[:500]
            return name, {"stopped": len(stopped), "total": len(runs), "message": messages}
    return None
