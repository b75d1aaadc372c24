"""What the parsers of all dynamics programs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from aiida import orm
from aiida.engine import ExitCode
from aiida.parsers import Parser
from pydantic import BaseModel

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FileFormatError, MlipError
from aiida_mlip.io.arrays import read_npz
from aiida_mlip.io.documents import brief, parse_model
from aiida_mlip.io.shards import read_foreign_shard
from aiida_mlip.kernel.frames import id_bytes

Model = TypeVar("Model", bound=BaseModel)


class DynamicsParser(Parser):
    """Base: attaching shards and arrays, and what the scheduler and the program said."""

    def attach_dataset(self, path: Path, output: str) -> str:
        """Attach a shard as dataset, made by this job; returns what is wrong with it, or nothing."""
        if not path.is_file():
            return ""
        try:
            with path.open("rb") as handle:
                frames = read_foreign_shard(handle, source=path.name)
            made_by = np.repeat(id_bytes([self.node.uuid]), len(frames), axis=0)
            self.out(output, DatasetData.from_frames(frames.with_columns(geometry_uuid=made_by)))
        except (MlipError, OSError) as error:
            return brief(error)
        return ""

    def attach_arrays(self, path: Path, output: str) -> str:
        """Attach the arrays of a file; returns what is wrong with it, or nothing."""
        if not path.is_file():
            return ""
        try:
            arrays = read_npz(path)
            self.out(output, arrays_node(arrays, source=path.name))
        except FileFormatError as error:
            return brief(error)
        return ""

    def read_report(self, name: str, kind: type[Model]) -> Model:
        """Report that the program left, as a model.

        :raises FileFormatError: no file, no JSON, or not such a report.
        """
        try:
            data = self.retrieved.base.repository.get_object_content(name, mode="rb")
        except OSError as error:
            raise FileFormatError(f"{name}: cannot be read ({error})") from error
        return parse_model(data, kind, source=name)

    def scheduler_exit_code(self) -> ExitCode | None:
        """What the scheduler already knew (out of walltime, out of memory)."""
        if self.node.exit_status is None:
            return None
        return ExitCode(self.node.exit_status, self.node.exit_message)

    def last_line(self) -> str:
        """Last line that the program printed."""
        name = self.node.get_option("output_filename")
        try:
            data = self.retrieved.base.repository.get_object_content(name, mode="rb")
        except OSError:
            return ""
        lines = data.decode(errors="replace").split("\n")
        return next((brief(line, 300) for line in reversed(lines) if line.strip()), "")


def arrays_node(arrays: Mapping[str, np.ndarray], *, source: str) -> orm.ArrayData:
    """Unstored node of the arrays of a file.

    :param source: name of the file in messages.
    :raises FileFormatError: names that a node does not take.
    """
    try:
        return orm.ArrayData({name: arrays[name] for name in sorted(arrays)})
    except ValueError as error:
        raise FileFormatError(f"{source}: {brief(error)}") from error
