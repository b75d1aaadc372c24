"""Input and output of one frame of a bundle of pw.x, for people."""

from __future__ import annotations

from aiida import orm

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.pw_bundle import (
    INPUTS_FILE,
    RESULTS_FILE,
    FrameFiles,
    frame_name,
    read_frame,
    split_results,
    unpack_input,
)


def frame_input(job: orm.CalcJobNode, row: int) -> str:
    """Input of pw.x of a frame.

    :param job: bundle.
    :param row: of its batch; ``label_row`` of a label.
    :raises FileFormatError: the bundle has no such frame.
    """
    return unpack_input(job.base.repository.get_object_content(INPUTS_FILE, mode="rb"), row)


def frame_output(job: orm.CalcJobNode, row: int) -> FrameFiles:
    """What a frame left.

    :param job: bundle that has ended.
    :param row: of its batch; ``label_row`` of a label.
    :raises FileFormatError: the frame had not ended, or its archive cannot be read.
    """
    repository = job.outputs.retrieved.base.repository
    names = repository.list_object_names()
    single = f"{frame_name(row)}.tar.gz"
    if single in names:
        return read_frame(repository.get_object_content(single, mode="rb"), source=single)
    found: dict[int, bytes] = {}
    if RESULTS_FILE in names:
        found, _ = split_results(repository.get_object_content(RESULTS_FILE, mode="rb"))
    if row not in found:
        raise FileFormatError(f"{job.process_label}<{job.pk}>: frame {row} had not ended")
    return read_frame(found[row], source=single)
