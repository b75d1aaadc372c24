"""Cut fragments out of graded frames: the calcfunction around :mod:`aiida_mlip.kernel.fragments`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.data.atom_grades import grades_node, grades_of_frames
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.kernel.fragments.fragment import FrameTooSmallError
from aiida_mlip.kernel.fragments.frame import describe_fragment, fragment_row, fragments_of_frame
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.frames import Frames, concatenate, id_bytes, id_hex
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.model import validate_spec


@calcfunction
def carve_fragments(
    frames: DatasetData, grades: orm.ArrayData, settings: orm.Dict, **hosts: orm.StructureData
) -> dict[str, orm.Data] | ExitCode:
    """Cut the surroundings of the worst atoms out of frames, as small periodic frames that DFT can compute.

    :param frames: large frames.
    :param grades: arrays ``frame_id`` (n, 16) and ``novelty`` (a,), frame by frame in that order.
    :param settings: see :mod:`aiida_mlip.protocols.fragment`.
    :param hosts: crystals that the frames are made of, tried in the order of their names.
    :returns: ``fragments`` and ``grades`` (left out when there are none: nothing was above the threshold, or all were
        refused) and ``summary``. Each fragment's centre is its first atom; its grades are those of its atoms in the
        parent, NaN for caps. The summary says which fragments there are, and why a centre, or all of a frame, has none.
        Exit code 310 with the reason where the input is wrong, or every frame is smaller than a fragment.
    """
    try:
        spec = validate_spec(FragmentSettings, settings.get_dict(), where="settings")
        crystals = [host_of(hosts[name]) for name in sorted(hosts)]
        rows, novelty, table = _carve_all(frames.frames(), grades_of_frames(frames, grades), spec, crystals)
    except MlipError as error:
        return ExitCode(310, f"fragments could not be cut: {error}")
    outputs: dict[str, orm.Data] = {"summary": orm.Dict(table)}
    if rows:
        fragments = concatenate(rows)
        outputs["fragments"] = DatasetData.from_frames(fragments, settings=frames.settings)
        outputs["grades"] = grades_node(fragments.frame_id, np.concatenate(novelty))
    return outputs


def _carve_all(
    frames: Frames, grades: list[np.ndarray], spec: FragmentSettings, hosts: list[Host]
) -> tuple[list[Frames], list[np.ndarray], dict[str, Any]]:
    """Rows of the fragments, γ of their atoms in the parent, and the summary.

    :raises InvalidInputError: wrong input, or not one frame that is large enough.
    """
    made_by = id_bytes([Process.current().node.uuid])
    rows: list[Frames] = []
    novelty: list[np.ndarray] = []
    made: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    too_small: list[str] = []
    for row, of_frame in enumerate(grades):
        name = id_hex(frames.frame_id[row : row + 1])[0]
        try:
            cut, without = fragments_of_frame(
                frames,
                row,
                of_frame,
                spec.limits(),
                threshold=spec.threshold,
                most=spec.max_fragments,
                completion=spec.completion,
                hosts=hosts,
            )
        except FrameTooSmallError as error:
            too_small.append(f"frame {row} ({name[:8]}): {error}")
            refused.append({"frame_id": name, "atom": None, "grade": None, "reason": str(error)})
            continue
        except InvalidInputError as error:
            raise InvalidInputError(f"frame {row} ({name[:8]}): {error}") from error
        refused += [{"frame_id": name, **asdict(refusal)} for refusal in without]
        for fragment in cut:
            part = fragment_row(fragment, frames, row).with_columns(geometry_uuid=made_by)
            rows.append(part)
            novelty.append(fragment.parent_values(of_frame))
            made.append(describe_fragment(fragment, part, of_frame))
    if len(too_small) == len(grades) and too_small:
        raise InvalidInputError(too_small[0])
    table = {
        "n_frames": len(frames),
        "n_fragments": len(rows),
        "completion": dict(Counter(entry["completion"] for entry in made)),
        "natoms": [entry["natoms"] for entry in made],
        "fragments": made,
        "refused": refused,
    }
    return rows, novelty, table


def host_of(structure: orm.StructureData) -> Host:
    """Crystal of a structure."""
    atoms = structure.get_ase()
    return Host(atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array)
