"""Cut fragments out of graded frames: the calcfunction around :mod:`aiida_mlip.kernel.fragments`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.kernel.fragments.frame import fragments_of_frame
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.frames import Frames, concatenate, id_bytes, id_hex, id_keys
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.model import validate_spec

#: Arrays of grades: which frame each block of atoms belongs to, and one number per atom.
FRAME_ID: Final[str] = "frame_id"
NOVELTY: Final[str] = "novelty"


@calcfunction
def carve_fragments(
    frames: DatasetData, grades: orm.ArrayData, settings: orm.Dict, **hosts: orm.StructureData
) -> dict[str, orm.Data] | ExitCode:
    """Cut the surroundings of the worst atoms out of frames, as small periodic frames that DFT can compute.

    :param frames: large frames.
    :param grades: arrays ``frame_id`` (n, 16) and ``novelty`` (a,), frame by frame in that order.
    :param settings: see :mod:`aiida_mlip.protocols.fragment`.
    :param hosts: crystals that the frames are made of, tried in the order of their names.
    :returns: ``fragments`` (left out when there are none: nothing was above the threshold, or all were refused) and
        ``summary``: how many of which kind, and the reason for each centre that has none. Exit code 310 with the reason
        where the input is wrong.
    """
    try:
        spec = validate_spec(FragmentSettings, settings.get_dict(), where="settings")
        crystals = [_host(hosts[name]) for name in sorted(hosts)]
        rows, table = _carve_all(frames.frames(), _grades_by_frame(frames, grades), spec, crystals)
    except MlipError as error:
        return ExitCode(310, f"fragments could not be cut: {error}")
    outputs: dict[str, orm.Data] = {"summary": orm.Dict(table)}
    if rows:
        outputs["fragments"] = DatasetData.from_frames(concatenate(rows), settings=frames.settings)
    return outputs


def _carve_all(
    frames: Frames, grades: list[np.ndarray], spec: FragmentSettings, hosts: list[Host]
) -> tuple[list[Frames], dict[str, Any]]:
    made_by = id_bytes([Process.current().node.uuid])
    rows: list[Frames] = []
    refused: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for row, of_frame in enumerate(grades):
        parent = frames.frame_id[row]
        name = id_hex(parent[None])[0]
        try:
            made, without = fragments_of_frame(
                frames,
                row,
                of_frame,
                spec.limits(),
                threshold=spec.threshold,
                most=spec.max_fragments,
                completion=spec.completion,
                hosts=hosts,
            )
        except InvalidInputError as error:
            raise InvalidInputError(f"frame {row} ({name[:8]}): {error}") from error
        refused += [{"frame_id": name, **asdict(refusal)} for refusal in without]
        # the fragments of one frame look alike: they stay on one side of a split
        group = frames.group_id[row] if frames.group_id[row].any() else parent
        for fragment in made:
            counts[fragment.completion] = counts.get(fragment.completion, 0) + 1
            lineage = {"geometry_uuid": made_by, "group_id": group[None]}
            rows.append(fragment.to_frames(parent).with_columns(**lineage))
    table = {
        "n_frames": len(frames),
        "n_fragments": len(rows),
        "completion": counts,
        "natoms": [int(part.natoms[0]) for part in rows],
        "refused": refused,
    }
    return rows, table


def _grades_by_frame(frames: DatasetData, grades: orm.ArrayData) -> list[np.ndarray]:
    """Grades of every frame's atoms, in the order of the frames.

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


def _host(structure: orm.StructureData) -> Host:
    atoms = structure.get_ase()
    return Host(atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array)
