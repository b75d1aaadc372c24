"""Datasets from finished pw.x calculations, and unions of datasets, with their provenance."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from aiida import orm
from aiida.engine import ExitCode, calcfunction

from aiida_mlip.calculations.functions.qe_labels import outcome_of
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FrameError, InvalidInputError
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase, id_bytes
from aiida_mlip.kernel.plausibility import check_labels

#: Labels taken from a pw.x calculation, where it has them.
_LABELS = ("energy", "forces", "stress")


@calcfunction
def import_calculations(
    fidelity: orm.Str, accept_implausible: orm.Bool, settings: orm.Str | None = None, **nodes: orm.Data
) -> dict[str, orm.Data] | ExitCode:
    """Collect finished single-point pw.x calculations as labelled rows.

    :param fidelity: name of their level of theory; all of them must share it.
    :param accept_implausible: import labels that look wrong, and keep the findings as an attribute.
    :param settings: hash of the fidelity's settings, if known; labels are only reused where it agrees.
    :param nodes: ``structure_<i>``, ``parameters_<i>`` and ``trajectory_<i>`` of the i-th calculation.
    :returns: ``dataset``, or exit code 311 with the frame and reason.
    """
    rows = []
    for index in range(sum(name.startswith("structure_") for name in nodes)):
        structure = nodes[f"structure_{index:04d}"]
        frame = from_ase([structure.get_ase()])
        outcome = outcome_of(nodes, index, frame, _LABELS, batch=fidelity)
        columns = {"energy": np.array([outcome.energy]), "forces": outcome.forces, "stress": outcome.stress}
        if outcome.stress is not None:
            columns["stress"] = outcome.stress[None]
        given = {name: value for name, value in columns.items() if value is not None}
        rows.append(
            frame.with_columns(
                **given,
                fidelity=np.zeros(1, dtype="<i2"),
                fidelities=(fidelity.value,),
                failure=np.array([outcome.failure], dtype=np.uint8),
                cost=np.array([outcome.cost], dtype="<f4"),
                label_uuid=id_bytes([outcome.uuid]),
                geometry_uuid=_maker(structure),
            )
        )
    frames = concatenate(rows)
    try:
        dataset = checked_dataset(
            frames,
            settings={fidelity.value: settings.value} if settings is not None else {},
            accept_implausible=accept_implausible.value,
            source="calculations",
        )
    except InvalidInputError as error:
        return ExitCode(311, f"labels are implausible: {error}")
    return {"dataset": dataset}


@calcfunction
def merge_datasets(embedding: orm.Dict | None = None, **datasets: DatasetData) -> dict[str, DatasetData] | ExitCode:
    """Union of datasets in the order of their names; see :meth:`DatasetData.merge`.

    :param embedding: measured embedding error of fragments among them, see
        :func:`~aiida_mlip.calculations.functions.embedding.measure_embedding`: stored with the union, beside those that
        the datasets have, as :attr:`DatasetData.embedding`.
    """
    parts = [datasets[name] for name in sorted(datasets)]
    try:
        union = DatasetData.merge(parts)
    except InvalidInputError as error:
        return ExitCode(312, f"datasets cannot be merged: {error}")
    measured = {entry["uuid"]: entry for part in parts for entry in part.embedding}
    if embedding is not None:
        measured[embedding.uuid] = {
            "uuid": embedding.uuid,
            "error_ev_per_ang": embedding["measured_ev_per_ang"],
            "buffer_ang": embedding.get_dict().get("chosen_ang"),
        }
    if measured:
        union.base.attributes.set("embedding", list(measured.values()))
    return {"dataset": union}


def calculation_inputs(calculations: Iterable[orm.CalcJobNode]) -> dict[str, orm.Data]:
    """Nodes of finished single-point pw.x calculations as :func:`import_calculations` takes them.

    :raises FrameError: a calculation of another kind, unfinished, or without the outputs needed.
    """
    nodes: dict[str, orm.Data] = {}
    for index, node in enumerate(calculations):
        where = f"calculation {node.pk}"
        if not node.is_finished_ok:
            raise FrameError(index, f"{where} did not finish well (exit status {node.exit_status})")
        kind = node.inputs.parameters.get_dict().get("CONTROL", {}).get("calculation", "scf")
        if kind != "scf":
            raise FrameError(index, f"{where} is a {kind!r} calculation; only 'scf' is imported frame by frame")
        for name, source in (("parameters", "output_parameters"), ("trajectory", "output_trajectory")):
            if source not in node.outputs:
                raise FrameError(index, f"{where} has no {source}")
            nodes[f"{name}_{index:04d}"] = node.outputs[source]
        nodes[f"structure_{index:04d}"] = node.inputs.structure
    if not nodes:
        raise InvalidInputError("no calculations to import")
    return nodes


def checked_dataset(frames: Frames, *, settings: dict[str, str], accept_implausible: bool, source: str) -> DatasetData:
    """Unstored dataset of labels that were looked at; the attribute ``plausibility`` says what was found.

    :raises FrameError: labels are implausible and not accepted.
    """
    verdict = check_labels(frames)
    if not accept_implausible:
        verdict.refuse(source=source)
    dataset = DatasetData.from_frames(frames, settings=settings)
    dataset.base.attributes.set(
        "plausibility",
        {
            "findings": [
                {"frame": finding.frame, "check": finding.check, "reason": finding.reason}
                for finding in verdict.findings
            ],
            "measures": verdict.measures,
            "untested": list(verdict.untested),
        },
    )
    return dataset


def _maker(structure: orm.StructureData) -> np.ndarray:
    """Process that made a structure; zeros for one given by a person."""
    return id_bytes([structure.creator.uuid]) if structure.creator is not None else np.zeros((1, 16), dtype=np.uint8)
