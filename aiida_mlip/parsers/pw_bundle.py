"""Parser of :class:`~aiida_mlip.calculations.pw_bundle.PwBundleCalculation`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from aiida import orm
from aiida.engine import ExitCode
from aiida.parsers import Parser
from aiida.repository import FileType

from aiida_mlip.data.batches import job_texts, parse_batch, take_rows
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.outcomes import UNFINISHED, Outcome, with_outcomes
from aiida_mlip.data.pw_outcomes import frame_outcome, unreadable_outcome
from aiida_mlip.data.pw_slots import slots_of
from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.documents import brief
from aiida_mlip.io.pw_bundle import BEGUN_FILE, RESULTS_FILE, begun_frames, index_of, read_frame, split_results
from aiida_mlip.kernel.failures import classify_unfinished, summary_line
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.protocols.fidelity import QeFidelity


class PwBundleParser(Parser):
    """Labels of the frames that have ended; the others become failed rows with the class of what ended the job."""

    def parse(self, **_: Any) -> ExitCode | None:
        """Attach ``dataset`` and ``report``, whatever happened, and return the most specific exit code."""
        content = self.node.inputs.batch.get_dict()
        asked = take_rows(self.node.inputs.dataset, content["rows"])
        archives, problem = self._archives(len(asked))
        outcomes: list[Outcome] = []
        again: list[int] = []
        texts = job_texts(self.node)
        failure = classify_unfinished(self.node.exit_status, *texts, damaged=bool(problem))
        why = Outcome(failure=failure, message=brief(problem or summary_line(*texts) or UNFINISHED))
        labelled = _Labelled(content, asked, slots_of(self.node, len(asked)).cores)
        for index in range(len(asked)):
            outcome, curable = labelled.outcome(index, archives[index]) if index in archives else (why, False)
            outcomes.append(replace(outcome, uuid=self.node.uuid))
            again += [index] * curable
        rows = with_outcomes(asked, content["fidelity"], outcomes)
        rows = rows.with_columns(label_row=np.arange(len(rows), dtype="<i4"))
        self.out("dataset", DatasetData.from_frames(rows, settings={content["fidelity"]: content["settings"]}))
        begun = [index for index in sorted(set(self._begun())) if index < len(asked) and index not in archives]
        self.out("report", self._report(content["fidelity"], rows, outcomes, again, begun))
        return self._exit_code(len(archives), len(asked), problem)

    def _archives(self, n_asked: int) -> tuple[dict[int, bytes], str]:
        """Archive of each frame that has ended, and what is wrong with what was retrieved."""
        repository = self.retrieved.base.repository
        names = self._files()
        found: dict[int, bytes] = {}
        problem = ""
        if RESULTS_FILE in names:
            found, problem = split_results(repository.get_object_content(RESULTS_FILE, mode="rb"))
        for name in names:
            if (index := index_of(name)) is not None and index not in found:
                found[index] = repository.get_object_content(name, mode="rb")
        return {index: content for index, content in found.items() if index < n_asked}, problem

    def _begun(self) -> list[int]:
        if BEGUN_FILE not in self._files():
            return []
        content = self.retrieved.base.repository.get_object_content(BEGUN_FILE, mode="rb")
        return begun_frames(content.decode(errors="replace"))

    def _files(self) -> list[str]:
        """Names of what was retrieved, without folders."""
        found = self.retrieved.base.repository.list_objects()
        return [each.name for each in found if each.file_type is FileType.FILE]

    def _report(
        self, fidelity: str, rows: Frames, outcomes: list[Outcome], again: list[int], begun: list[int]
    ) -> orm.Dict:
        failures = [
            {"frame_id": name, "class": o.failure.label, "uuid": o.uuid, "message": o.message}
            for name, o in zip(rows.ids(), outcomes, strict=True)
            if o.failure
        ]
        return orm.Dict({"fidelity": fidelity, "reused": 0, "failures": failures, "again": again, "begun": begun})

    def _exit_code(self, done: int, asked: int, problem: str) -> ExitCode | None:
        if problem and done < asked:
            return self.exit_codes.ERROR_OUTPUT_TRUNCATED.format(reason=brief(problem))
        if done == asked:
            return None
        if self.node.exit_status is not None:
            # the scheduler knew: out of walltime, out of memory
            return ExitCode(self.node.exit_status, self.node.exit_message)
        if done == 0:
            return self.exit_codes.ERROR_OUTPUT_MISSING
        return self.exit_codes.ERROR_INTERRUPTED.format(done=done, total=asked)


class _Labelled:
    """Outcomes of the frames of one batch."""

    def __init__(self, content: dict[str, Any], frames: Frames, cores: float) -> None:
        self.spec = cast(QeFidelity, parse_batch(content))
        self.isolated = content.get("source") == "isolated"
        self.frames = frames
        self.cores = cores

    def outcome(self, index: int, archive: bytes) -> tuple[Outcome, bool]:
        """Outcome of a frame from its archive, and whether a job of its own may cure it."""
        try:
            files = read_frame(archive, source=f"archive of frame {index}")
        except FileFormatError as error:
            return unreadable_outcome(str(error)), True
        frame = self.frames.take([index])
        symbols = sorted(set(frame.to_ase(0).get_chemical_symbols()))
        parameters = self.spec.namelists(symbols, frame.n_atoms, isolated=self.isolated)
        return frame_outcome(files, frame, self.spec, parameters, cores=self.cores)
