"""Parser of ``aiida-mlip-fragment``: accepted fragments with their grades, and what became of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode

from aiida_mlip.data.atom_grades import grades_node
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FileFormatError, MlipError
from aiida_mlip.io.arrays import read_npy
from aiida_mlip.io.documents import brief
from aiida_mlip.io.fragments import ACCEPTED_FILE, NOVELTY_FILE, OUTPUT_FILE, RelaxReport
from aiida_mlip.io.shards import read_foreign_shard
from aiida_mlip.kernel.frames import Frames, id_bytes
from aiida_mlip.parsers.dynamics import DynamicsParser

#: Why the program refused -> exit code.
_REFUSALS: Final[dict[str, str]] = {
    "species_not_covered": "ERROR_SPECIES_NOT_COVERED",
    "model_not_loaded": "ERROR_MODEL_NOT_LOADED",
}


class RelaxFragmentsParser(DynamicsParser):
    """Attach whatever is there, also of a job that was ended; then return the most specific exit code."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach ``summary``, ``fragments`` and ``grades``."""
        if OUTPUT_FILE not in self.retrieved.base.repository.list_object_names():
            return self.scheduler_exit_code() or self.exit_codes.ERROR_OUTPUT_MISSING.format(end=self.last_line())
        try:
            report = self.read_report(OUTPUT_FILE, RelaxReport)
        except FileFormatError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        if report.status == "refused":
            name = _REFUSALS.get(report.reason, "ERROR_INVALID_INPUT")
            return self.exit_codes[name].format(message=brief(report.message))
        try:
            self._attach_accepted(Path(kwargs["retrieved_temporary_folder"]), report)
        except (MlipError, OSError) as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        self.out("summary", orm.Dict(summary_of(report)))
        if report.status != "finished":
            return self.exit_codes.ERROR_OUT_OF_WALLTIME.format(done=len(report.fragments), total=report.n_fragments)
        return None

    def _attach_accepted(self, folder: Path, report: RelaxReport) -> None:
        """Attach the accepted fragments and the grades of their atoms.

        :raises FileFormatError: files that are missing or broken, or not those of the report.
        """
        accepted = [record for record in report.fragments if record.accepted]
        if not accepted:
            return
        with (folder / ACCEPTED_FILE).open("rb") as handle:
            frames = read_foreign_shard(handle, source=ACCEPTED_FILE)
        novelty = read_npy(folder / NOVELTY_FILE)
        # a program that was killed may have written more of these than of its report
        if frames.ids()[: len(accepted)] != [record.frame_id for record in accepted]:
            raise FileFormatError(f"{ACCEPTED_FILE}: these are not the fragments that {OUTPUT_FILE} names")
        frames = frames.take(np.arange(len(accepted)))
        if novelty.ndim != 1 or len(novelty) < frames.n_atoms or novelty.dtype.kind != "f":
            raise FileFormatError(f"{NOVELTY_FILE}: {novelty.dtype} {novelty.shape} for {frames.n_atoms} atoms")
        novelty = novelty[: frames.n_atoms]
        node = DatasetData.from_frames(
            made_by_job(frames, [record.carved_id for record in accepted], self.node.uuid),
            settings=self.node.inputs.fragments.settings,
        )
        self.out("fragments", node)
        self.out("grades", grades_node(frames.frame_id, novelty))


def made_by_job(frames: Frames, carved: list[str], uuid: str) -> Frames:
    """Fragments of which a job made the geometry where it moved atoms; one that it only judged keeps its maker.

    :param carved: frame id of each before the job.
    """
    moved = (frames.frame_id != id_bytes(carved)).any(axis=1)
    return frames.with_columns(geometry_uuid=np.where(moved[:, None], id_bytes([uuid]), frames.geometry_uuid))


def summary_of(report: RelaxReport) -> dict[str, Any]:
    """Attributes of the ``summary`` node."""
    return {
        "n_fragments": report.n_fragments,
        "n_accepted": sum(record.accepted for record in report.fragments),
        "n_relaxed": sum(record.steps > 0 for record in report.fragments),
        "fragments": [record.model_dump(mode="json") for record in report.fragments],
        "seconds": report.seconds,
    }
