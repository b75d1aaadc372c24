"""The embedding gate: fragments at growing buffers, and what their labels say about the buffer to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, Process, calcfunction

from aiida_mlip.calculations.functions.fragment import host_of
from aiida_mlip.data.atom_grades import grades_node, grades_of_frames
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError, MlipError
from aiida_mlip.kernel.fragments.embedding import FEWEST_BUFFERS, EmbeddingError, embedding_error
from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.kernel.fragments.frame import describe_fragment, fragment_row
from aiida_mlip.kernel.fragments.ladder import buffer_ladder
from aiida_mlip.kernel.frames import Frames, concatenate, id_bytes, id_hex
from aiida_mlip.kernel.selection.costs import CostModel, measured_cost
from aiida_mlip.protocols.fragment import FragmentSettings
from aiida_mlip.protocols.gate import GateSettings, gate_settings
from aiida_mlip.protocols.model import validate_spec


@calcfunction
def carve_ladder(
    frames: DatasetData,
    grades: orm.ArrayData,
    settings: orm.Dict,
    gate: orm.Dict,
    reference: DatasetData | None = None,
    **hosts: orm.StructureData,
) -> dict[str, orm.Data] | ExitCode:
    """Cut the worst surroundings out of frames at growing buffers, to see how large a buffer must be.

    :param frames: large frames.
    :param grades: arrays ``frame_id`` (n, 16) and ``novelty`` (a,).
    :param settings: see :mod:`aiida_mlip.protocols.fragment`; the buffer in it is not used.
    :param gate: see :mod:`aiida_mlip.protocols.gate`.
    :param reference: labelled frames, whose costs forecast those of the ladder where the gate has a limit.
    :param hosts: crystals that the frames are made of.
    :returns: ``summary``: ``ladder``, rows of frame id, parent, centre, buffer; and, where there are any, ``fragments``
        and their ``grades`` as :func:`~aiida_mlip.calculations.functions.fragment.carve_fragments` gives them. Exit
        code 310 with the reason where the input is wrong.
    """
    try:
        spec = validate_spec(FragmentSettings, settings.get_dict(), where="settings")
        wanted = gate_settings(gate.get_dict())
        cost = _cost(wanted, reference)
        crystals = [host_of(hosts[name]) for name in sorted(hosts)]
        loaded = frames.frames()
        novelty = grades_of_frames(frames, grades)
        rows: list[Frames] = []
        values: list[np.ndarray] = []
        table: list[dict[str, Any]] = []
        made_by = id_bytes([Process.current().node.uuid])
        for row, atom in _worst_atoms(novelty, spec.threshold, wanted.n_fragments):
            ladder = buffer_ladder(
                loaded, row, atom, spec.limits(), wanted.buffers_ang, completion=spec.completion, hosts=crystals
            )
            for buffer, fragment in ladder.items():
                frame = fragment_row(fragment, loaded, row).with_columns(geometry_uuid=made_by)
                rows.append(frame)
                values.append(fragment.parent_values(novelty[row]))
                table.append(describe_fragment(fragment, frame, novelty[row]) | {"buffer_ang": buffer})
    except MlipError as error:
        return ExitCode(310, f"fragments could not be cut: {error}")
    kept = _affordable([entry["natoms"] for entry in table], wanted.core_hours, cost)
    summary = {"ladder": [table[i] for i in kept], "too_dear": [table[i] for i in range(len(table)) if i not in kept]}
    outputs: dict[str, orm.Data] = {"summary": orm.Dict(summary)}
    rows, values = [rows[i] for i in kept], [values[i] for i in kept]
    if rows:
        joined = concatenate(rows)
        outputs["fragments"] = DatasetData.from_frames(joined, settings=frames.settings)
        outputs["grades"] = grades_node(joined.frame_id, np.concatenate(values))
    return outputs


@calcfunction
def measure_embedding(
    settings: orm.Dict,
    ladder: orm.Dict,
    labelled: DatasetData,
    relaxed: orm.Dict | None = None,
    errors: orm.Dict | None = None,
) -> dict[str, orm.Data]:
    """Read the embedding error off the labels of a ladder of fragments, and choose the buffer.

    :param settings: of the fragments.
    :param ladder: summary of :func:`carve_ladder`.
    :param labelled: its fragments with their labels; of several fidelities, the one with the most labels counts.
    :param relaxed: summary of the relaxation of their buffers, where there was one.
    :param errors: of the potential, as a training gives them: its validation error is part of the tolerance.
    :returns: ``embedding``: the errors (eV/Å), the fit, the tolerance, the buffer chosen, or ``reason``: why it could
        not be measured; ``settings``: as given, with the chosen buffer.
    """
    names = _accepted(ladder["ladder"], relaxed)
    frames = _best_labels(labelled)
    buffers, forces, sizes = _core_forces(names, frames)
    plain = dict(settings.get_dict())
    table: dict[str, Any] = {
        "buffers_ang": buffers,
        "natoms": sizes,
        "n_fragments": 0 if forces is None else int(forces.shape[1]),
        "measured_ev_per_ang": None,
        "labels_uuid": labelled.uuid,
    }
    if forces is None or len(buffers) < FEWEST_BUFFERS:
        table["reason"] = f"fragments with labels at {len(buffers)} buffers, {FEWEST_BUFFERS} are needed to see a decay"
        return {"embedding": orm.Dict(table), "settings": orm.Dict(plain)}
    validation = None if errors is None else errors.get_dict().get("val", {}).get("force_rmse_ev_per_ang")
    found = embedding_error(np.array(buffers), forces, validation_rmse=validation or 0.0)
    table |= _told(found)
    plain["buffer_ang"] = found.chosen if found.chosen is not None else buffers[-1]
    return {"embedding": orm.Dict(table), "settings": orm.Dict(plain)}


def _told(found: EmbeddingError) -> dict[str, Any]:
    length = found.decay_length
    return {
        "errors_ev_per_ang": [float(value) for value in found.errors],
        "amplitude_ev_per_ang": float(found.amplitude),
        "decay_length_ang": float(length) if np.isfinite(length) else None,
        "tolerance_ev_per_ang": float(found.tolerance),
        "chosen_ang": found.chosen,
        "measured_ev_per_ang": float(found.measured),
        "reason": "" if found.chosen is not None else "no buffer is good enough; the largest is taken",
    }


def _cost(gate: GateSettings, reference: DatasetData | None) -> CostModel | None:
    """What a label costs, where that matters.

    :raises InvalidInputError: a limit, and nothing that says what a label costs.
    """
    if gate.core_hours is None:
        return None
    if gate.cost is not None:
        return CostModel(**gate.cost.model_dump())
    cost = None if reference is None else measured_cost(reference.column("cost"), reference.column("natoms"))
    if cost is None:
        raise InvalidInputError(
            "gate.core_hours: nothing says what a label costs; give gate.cost, or a reference that has costs"
        )
    return cost


def _affordable(natoms: list[int], core_hours: float | None, cost: CostModel | None) -> list[int]:
    """Fragments that the limit allows: the largest are left out first."""
    kept = list(range(len(natoms)))
    if core_hours is None or cost is None:
        return kept
    expected = cost(np.array(natoms, dtype=float)) if natoms else np.zeros(0)
    while kept and float(expected[kept].sum()) > core_hours:
        kept.remove(max(kept, key=lambda i: natoms[i]))
    return kept


def _worst_atoms(novelty: list[np.ndarray], threshold: float, most: int) -> list[tuple[int, int]]:
    """Frame and atom of the worst places: one of each frame first, then the second of each, all above the threshold."""
    found = []
    for row, values in enumerate(novelty):
        order = np.argsort(-values, kind="stable")[:most]
        found += [(rank, -float(values[atom]), row, int(atom)) for rank, atom in enumerate(order)
                  if values[atom] > threshold]  # fmt: skip
    return [(row, atom) for _, _, row, atom in sorted(found)[:most]]


def _accepted(ladder: list[dict[str, Any]], relaxed: orm.Dict | None) -> list[dict[str, Any]]:
    """Rows of the ladder with the frame ids that were labelled; without those that were not accepted."""
    if relaxed is None:
        return ladder
    became = {entry["carved_id"]: entry["frame_id"] for entry in relaxed["fragments"] if entry["accepted"]}
    return [entry | {"frame_id": became[entry["frame_id"]]} for entry in ladder if entry["frame_id"] in became]


def _best_labels(labelled: DatasetData) -> Frames:
    frames = labelled.frames()
    done = frames.take(np.flatnonzero(frames.labelled))
    if len(done) == 0:
        return done
    return done.take(np.flatnonzero(done.fidelity == np.bincount(done.fidelity).argmax()))


def _core_forces(
    ladder: list[dict[str, Any]], frames: Frames
) -> tuple[list[float], np.ndarray | None, list[list[int]]]:
    """Buffers at which every centre has a label, (b, f, a, 3) forces of the cores' atoms, and sizes by buffer."""
    rows = {name: row for row, name in enumerate(id_hex(frames.frame_id))} if len(frames) else {}
    centres: dict[tuple[str, int], dict[float, int]] = {}
    for entry in ladder:
        if entry["frame_id"] in rows:
            of_centre = centres.setdefault((entry["parent_id"], entry["centre"]), {})
            of_centre[entry["buffer_ang"]] = rows[entry["frame_id"]]
    usable = [levels for levels in centres.values() if len(levels) >= FEWEST_BUFFERS]
    if not usable:
        return sorted({buffer for levels in centres.values() for buffer in levels}), None, []
    buffers = sorted(set.intersection(*map(set, usable)))
    if len(buffers) < FEWEST_BUFFERS:  # centres that complete differently: the one with the most levels tells
        usable = [max(usable, key=len)]
        buffers = sorted(usable[0])
    sizes = [[int(frames.natoms[levels[buffer]]) for levels in usable] for buffer in buffers]
    blocks = [_cores([levels[buffer] for buffer in buffers], frames) for levels in usable]
    widest = max(block.shape[1] for block in blocks)
    forces = np.full((len(buffers), len(blocks), widest, 3), np.nan)
    for k, block in enumerate(blocks):
        forces[:, k, : block.shape[1]] = block
    return buffers, forces, sizes


def _cores(rows: list[int], frames: Frames) -> np.ndarray:
    """(b, a, 3) forces of the core atoms that all rows share, in one order."""
    if frames.region is None or frames.parent_atom is None:
        return np.zeros((len(rows), 0, 3))
    found: list[Mapping[int, np.ndarray]] = []
    for row in rows:
        part = frames.atom_slice(row)
        core = np.flatnonzero(frames.region[part] == Region.CORE)
        found.append({int(frames.parent_atom[part][i]): frames.forces[part][i] for i in core})
    shared = sorted(set.intersection(*map(set, found)))
    return np.array([[forces[atom] for atom in shared] for forces in found])
