"""Grades of atoms as a node: ``frame_id`` (n, 16) of the frames, and numbers per atom, frame by frame in that order."""

from __future__ import annotations

from typing import Final

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import id_keys

#: Names of the arrays: which frame each block of atoms belongs to, and γ of every atom.
FRAME_ID: Final[str] = "frame_id"
NOVELTY: Final[str] = "novelty"


def grades_node(frame_id: np.ndarray, novelty: np.ndarray) -> orm.ArrayData:
    """Unstored node of grades.

    :param frame_id: (n, 16).
    :param novelty: (a,) γ, frame by frame.
    """
    return orm.ArrayData({FRAME_ID: np.asarray(frame_id, dtype=np.uint8), NOVELTY: np.asarray(novelty, dtype=float)})


def grades_of_frames(frames: DatasetData, grades: orm.ArrayData) -> list[np.ndarray]:
    """γ of every frame's atoms, in the order of the frames.

    :raises InvalidInputError: arrays that are missing, or do not cover the frames.
    """
    if missing := sorted({FRAME_ID, NOVELTY} - set(grades.get_arraynames())):
        raise InvalidInputError(f"grades: no array {', '.join(missing)}")
    ids, values = grades.get_array(FRAME_ID), grades.get_array(NOVELTY)
    if ids.ndim != 2 or ids.shape[1] != 16:
        raise InvalidInputError(f"grades: frame_id has shape {ids.shape}, expected (n, 16)")
    natoms = dict(zip(id_keys(frames.column("frame_id")).tolist(), frames.column("natoms").tolist(), strict=True))
    keys = id_keys(np.ascontiguousarray(ids, dtype=np.uint8)).tolist()
    if unknown := [key for key in keys if key not in natoms]:
        raise InvalidInputError(f"grades: {len(unknown)} frames are not in the dataset")
    ends = np.cumsum([natoms[key] for key in keys])
    if len(ends) and ends[-1] != len(values):
        raise InvalidInputError(f"grades: {len(values)} numbers for {ends[-1]} atoms")
    found = dict(zip(keys, np.split(values, ends[:-1]), strict=True)) if keys else {}
    if lacking := [row for row, key in enumerate(natoms) if key not in found]:
        raise InvalidInputError(f"grades: none for frame {lacking[0]} of the dataset")
    return [np.asarray(found[key], dtype=float) for key in id_keys(frames.column("frame_id")).tolist()]
