"""Files of a program that runs for long: shards in, frames and numbers out, replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase


def read_frames(folder: Path, names: Sequence[str]) -> Frames:
    """Frames of all shards, in order.

    :raises FileFormatError: a shard that is truncated or none.
    """
    parts = []
    for name in names:
        with (folder / name).open("rb") as handle:
            parts.append(read_shard(handle, source=name))
    return concatenate(parts)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old bytes or the new ones."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    os.replace(draft, path)  # noqa: PTH105 - the atomic call is the point


@dataclass
class Recorder:
    """Frames and numbers recorded so far.

    :param parents: structures that the frames come from.
    :param columns: names of the numbers, one of each per frame.
    """

    parents: Frames
    columns: tuple[str, ...]
    frames: list[Frames] = field(default_factory=list)
    series: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, atoms: Atoms, *, structure: int, generator: str, group: str, values: tuple[float, ...]) -> Frames:
        """Record one frame: a child of its starting structure, in the split group of its run."""
        bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        frame = from_ase([bare], generator=generator, group=group)
        frame = frame.with_columns(parent_id=self.parents.frame_id[structure : structure + 1])
        self.frames.append(frame)
        self.series.append(values)
        return frame

    def write(self, shard: Path, series: Path | None) -> None:
        """Write both files, each in one step; nothing where no frame was recorded."""
        if not self.frames:
            return
        replace_file(shard, write_shard(concatenate(self.frames)))
        if series is not None:
            replace_file(series, write_npz(self.arrays()))

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers by column, (n,) each."""
        table = np.array(self.series, dtype=float).reshape(-1, len(self.columns))
        return {name: table[:, k] for k, name in enumerate(self.columns)}
