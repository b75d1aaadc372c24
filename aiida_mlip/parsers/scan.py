"""Parser of ScanCalculation: summary and candidates, and what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import jsonable
from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.arrays import read_npz
from aiida_mlip.io.evaluation import ANSWER, read_answer
from aiida_mlip.io.scan import CANDIDATES, ENVIRONMENTS
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.frames import id_bytes
from aiida_mlip.kernel.grade_histogram import GradeHistogram
from aiida_mlip.parsers.evaluate import EvaluateParser


class ScanParser(EvaluateParser):
    """Read the answer and the candidates of ``aiida-mlip-evaluate --scan``."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach what exists, then return the most specific exit code."""
        folder = Path(kwargs.get("retrieved_temporary_folder", "."))
        if ANSWER not in self.retrieved.base.repository.list_object_names():
            return self._interrupted(ANSWER)
        try:
            with self.retrieved.base.repository.as_path(ANSWER) as path:
                answer = read_answer(Path(path))
            if answer["status"] == "failed":
                return self._refused(answer)
            GradeHistogram.from_dict(answer["histogram"])
            n_candidates = int(answer["n_candidates"])
            files = (self._candidates(folder), read_npz(folder / ENVIRONMENTS)) if n_candidates else None
        except KeyError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=f"{ANSWER}: key {error} is missing")
        except (FileFormatError, OSError) as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=str(error))
        self.out("summary", orm.Dict(jsonable(answer)))
        if files is not None:
            self.out("candidates", files[0])
            self.out("environments", orm.ArrayData(files[1]))
        return None

    def _candidates(self, folder: Path) -> DatasetData:
        """Surroundings of the worst atoms, made by this job."""
        with (folder / CANDIDATES).open("rb") as stream:
            frames = read_shard(stream, source=CANDIDATES)
        made = np.tile(id_bytes([self.node.uuid]), (len(frames), 1))
        return DatasetData.from_frames(frames.with_columns(geometry_uuid=made))
