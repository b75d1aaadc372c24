"""Parser of ScanCalculation: summary and candidates, and what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode

from aiida_mlip.data.atom_grades import grades_node
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import FileFormatError, MlipError
from aiida_mlip.io.arrays import read_npy, read_npz
from aiida_mlip.io.documents import brief
from aiida_mlip.io.evaluation import ANSWER
from aiida_mlip.io.scan import CANDIDATES, ENVIRONMENTS, FRAGMENT_NOVELTY, FRAGMENTS
from aiida_mlip.io.shards import read_foreign_shard
from aiida_mlip.kernel.frames import id_bytes
from aiida_mlip.kernel.grade_histogram import GradeHistogram
from aiida_mlip.parsers.dynamics import arrays_node
from aiida_mlip.parsers.evaluate import EvaluateParser


class ScanParser(EvaluateParser):
    """Read the answer and the candidates of ``aiida-mlip-evaluate --scan``."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach what exists, then return the most specific exit code."""
        folder = Path(kwargs.get("retrieved_temporary_folder", "."))
        if ANSWER not in self.retrieved.base.repository.list_object_names():
            return self._interrupted(ANSWER)
        try:
            answer = self._answer()
            if answer["status"] == "failed":
                return self._refused(answer)
            GradeHistogram.from_dict(answer["histogram"])
            n_candidates = answer["n_candidates"]
            if not isinstance(n_candidates, int):
                raise FileFormatError(f"{ANSWER}: n_candidates is {brief(repr(n_candidates))}")
            files = None
            if n_candidates:
                environments = arrays_node(read_npz(folder / ENVIRONMENTS), source=ENVIRONMENTS)
                files = (self._candidates(folder), environments)
            cut = self._fragments(folder, answer)
        except KeyError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=f"{ANSWER}: key {error} is missing")
        except (MlipError, OSError) as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        self.out("summary", orm.Dict(jsonable(answer)))
        if files is not None:
            self.out("candidates", files[0])
            self.out("environments", files[1])
        if cut is not None:
            self.out("fragments", cut[0])
            self.out("fragment_grades", cut[1])
        return None

    def _fragments(self, folder: Path, answer: dict[str, Any]) -> tuple[DatasetData, orm.ArrayData] | None:
        """Fragments that were accepted, made by this job, and the grades of their atoms; None where there are none."""
        if not (answer.get("fragments") or {}).get("n_accepted"):
            return None
        with (folder / FRAGMENTS).open("rb") as stream:
            frames = read_foreign_shard(stream, source=FRAGMENTS)
        novelty = read_npy(folder / FRAGMENT_NOVELTY)
        fits = novelty.shape == (frames.n_atoms,) and novelty.dtype.kind == "f"
        if len(frames) != answer["fragments"]["n_accepted"] or not fits:
            raise FileFormatError(f"{FRAGMENTS}: {len(frames)} fragments and {novelty.shape} grades of their atoms")
        made = np.tile(id_bytes([self.node.uuid]), (len(frames), 1))
        return DatasetData.from_frames(frames.with_columns(geometry_uuid=made)), grades_node(frames.frame_id, novelty)

    def _candidates(self, folder: Path) -> DatasetData:
        """Surroundings of the worst atoms, made by this job."""
        with (folder / CANDIDATES).open("rb") as stream:
            frames = read_foreign_shard(stream, source=CANDIDATES)
        made = np.tile(id_bytes([self.node.uuid]), (len(frames), 1))
        return DatasetData.from_frames(frames.with_columns(geometry_uuid=made))
