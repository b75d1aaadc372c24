"""Parser of :class:`~aiida_mlip.calculations.ase_label.AseLabelCalculation`."""

from __future__ import annotations

from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode
from aiida.parsers import Parser

from aiida_mlip.data.batches import job_texts, take_rows
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.outcomes import UNFINISHED
from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief, parse_model
from aiida_mlip.io.label_messages import LABELS_FILE, OUTPUT_FILE, LabelReport
from aiida_mlip.io.shards import read_foreign_shard
from aiida_mlip.kernel.failures import classify_unfinished, summary_line
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, id_bytes
from aiida_mlip.kernel.labelling import without_labels


class AseLabelParser(Parser):
    """Labels of the frames that were finished; the others become failed rows with the class of what ended the job."""

    def parse(self, **_: Any) -> ExitCode | None:
        """Attach ``dataset`` and ``report``, whatever happened, and return the most specific exit code."""
        content = self.node.inputs.batch.get_dict()
        asked = without_labels(take_rows(self.node.inputs.dataset, content["rows"]))
        report, labels, problem = self._read(len(asked))
        done = self._checked(labels, asked, content["fidelity"])
        texts = job_texts(self.node)
        why = classify_unfinished(self.node.exit_status, *texts, damaged=bool(problem))
        if report is not None and report.error:
            why = Failure.CRASHED
        missing = self._failed(asked.take(np.arange(len(done), len(asked))), content["fidelity"], why)
        rows = concatenate([part for part in (done, missing) if len(part)])
        rows = rows.with_columns(
            label_uuid=np.repeat(id_bytes([self.node.uuid]), len(rows), axis=0),
            label_row=np.arange(len(rows), dtype="<i4"),
        )
        self.out("dataset", DatasetData.from_frames(rows, settings={content["fidelity"]: content["settings"]}))
        reason = (report.error if report is not None else "") or problem or summary_line(*texts) or UNFINISHED
        self.out("report", self._report(content["fidelity"], rows, report, reason))
        return self._exit_code(report, len(done), len(asked), problem)

    def _read(self, n_asked: int) -> tuple[LabelReport | None, Frames | None, str]:
        """Report and labels as far as they are there and readable, and what is wrong with them."""
        names = self.retrieved.base.repository.list_object_names()
        report: LabelReport | None = None
        labels: Frames | None = None
        problem = ""
        if OUTPUT_FILE in names:
            try:
                data = self.retrieved.base.repository.get_object_content(OUTPUT_FILE, mode="rb")
                report = parse_model(data, LabelReport, source=OUTPUT_FILE)
            except (FileFormatError, OSError) as error:
                problem = brief(error)
        if LABELS_FILE in names:
            try:
                with self.retrieved.base.repository.open(LABELS_FILE, "rb") as handle:
                    labels = read_foreign_shard(handle, source=LABELS_FILE)
            except (FileFormatError, OSError) as error:
                problem = brief(error)
        if labels is not None and len(labels) > n_asked:
            problem = f"{LABELS_FILE} has {len(labels)} rows, {n_asked} were asked for"
            labels = None
        return report, labels, problem

    @staticmethod
    def _checked(labels: Frames | None, asked: Frames, fidelity: str) -> Frames:
        """Finished rows, none if they are not the frames that were asked for; their lineage is the one they had."""
        if labels is None or not np.array_equal(labels.frame_id, asked.frame_id[: len(labels)]):
            return asked.take([])
        rows = asked.take(np.arange(len(labels)))
        return rows.with_columns(
            **{name: getattr(labels, name) for name in ("energy", "forces", "stress", "cost")},
            failure=np.where(labels.labelled | (labels.failure > 0), labels.failure, Failure.PARSE).astype("|u1"),
            fidelity=np.zeros(len(rows), dtype="<i2"),
            fidelities=(fidelity,),
        )

    @staticmethod
    def _failed(frames: Frames, fidelity: str, why: Failure) -> Frames:
        n = len(frames)
        return frames.with_columns(
            failure=np.full(n, int(why), dtype="|u1"), fidelity=np.zeros(n, dtype="<i2"), fidelities=(fidelity,)
        )

    def _report(self, fidelity: str, rows: Frames, report: LabelReport | None, reason: str) -> orm.Dict:
        messages = {} if report is None else report.messages
        failures = [
            {
                "frame_id": frame_id,
                "class": Failure(int(failure)).label,
                "uuid": self.node.uuid,
                "message": brief(messages.get(row, reason)),
            }
            for row, (frame_id, failure) in enumerate(zip(rows.ids(), rows.failure, strict=True))
            if failure
        ]
        return orm.Dict({"fidelity": fidelity, "reused": 0, "failures": failures})

    def _exit_code(self, report: LabelReport | None, done: int, asked: int, problem: str) -> ExitCode | None:
        if report is not None and report.error:
            return self.exit_codes.ERROR_CALCULATOR.format(reason=brief(report.error))
        if problem:
            return self.exit_codes.ERROR_OUTPUT_TRUNCATED.format(reason=problem)
        if done == asked:
            return None
        if self.node.exit_status is not None:
            # the scheduler knew: out of walltime, out of memory
            return ExitCode(self.node.exit_status, self.node.exit_message)
        if done == 0 and report is None:
            return self.exit_codes.ERROR_OUTPUT_MISSING
        return self.exit_codes.ERROR_INTERRUPTED.format(done=done, total=asked)
