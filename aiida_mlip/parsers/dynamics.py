"""What the parsers of all dynamics programs have in common."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from aiida import orm
from aiida.engine import ExitCode
from aiida.parsers import Parser

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.frames import id_bytes


class DynamicsParser(Parser):
    """Base: attaching shards and arrays, and what the scheduler and the program said."""

    def attach_dataset(self, path: Path, output: str) -> str:
        """Attach a shard as dataset, made by this job; returns what is wrong with it, or nothing."""
        if not path.is_file():
            return ""
        try:
            with path.open("rb") as handle:
                frames = read_shard(handle, source=path.name)
            made_by = np.repeat(id_bytes([self.node.uuid]), len(frames), axis=0)
            self.out(output, DatasetData.from_frames(frames.with_columns(geometry_uuid=made_by)))
        except MlipError as error:
            return str(error)
        return ""

    def attach_arrays(self, path: Path, output: str) -> str:
        """Attach the arrays of a file; returns what is wrong with it, or nothing."""
        if not path.is_file():
            return ""
        try:
            # opened here, because numpy leaves the file open when it is no archive
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                self.out(output, orm.ArrayData({name: arrays[name] for name in sorted(arrays.files)}))
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            return f"{path.name}: {error}"
        return ""

    def scheduler_exit_code(self) -> ExitCode | None:
        """What the scheduler already knew (out of walltime, out of memory)."""
        if self.node.exit_status is None:
            return None
        return ExitCode(self.node.exit_status, self.node.exit_message)

    def last_line(self) -> str:
        """Last line that the program printed."""
        name = self.node.get_option("output_filename")
        if name not in self.retrieved.base.repository.list_object_names():
            return ""
        lines = self.retrieved.base.repository.get_object_content(name, mode="rb").decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
