"""Which potentials learned from a row of a dataset, and in which part of the training it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.frame_index import FrameIndex
from aiida_mlip.data.graph import NodeRef, kind_of
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.splits import PART_NAMES

_UNUSED: Final[str] = "unused"
_CREATE: Final[dict[str, str]] = {"type": LinkType.CREATE.value}
_INPUT: Final[dict[str, str]] = {"type": LinkType.INPUT_CALC.value}


@dataclass(frozen=True)
class Training:
    """A potential that was trained on a dataset with the row in it.

    :param potential: the potential with what judges it; as it came out of the training where it was never judged.
    :param training: the calculation that trained it.
    :param dataset: what it was trained on.
    :param row: of that dataset.
    :param part: ``train``, ``val``, ``test``, ``unused``; empty where the training does not say (another engine).
    """

    potential: NodeRef
    training: NodeRef
    dataset: NodeRef
    row: int
    part: str


def trainings_on(rows: Mapping[int, list[int]], index: FrameIndex) -> tuple[Training, ...]:
    """Potentials that were trained on datasets with these rows, in the order of their making.

    :param rows: pk of a dataset -> row numbers.
    """
    return tuple(
        Training(training.judged, training.calculation, training.dataset, number, part)
        for training in _trainings(list(rows))
        for number, part in zip(
            rows[training.dataset.pk], _parts(index, training, rows[training.dataset.pk]), strict=True
        )
    )


def parts_by_potential(rows: Mapping[int, list[int]], index: FrameIndex) -> dict[int, set[str]]:
    """Pk of each potential that was trained on these datasets, fresh or judged -> parts that the rows were in.

    :param rows: pk of a dataset -> row numbers.
    """
    found: dict[int, set[str]] = {}
    for training in _trainings(list(rows)):
        parts = set(_parts(index, training, rows[training.dataset.pk]))
        for potential in (training.fresh, training.judged):
            found.setdefault(potential.pk, set()).update(parts)
    return found


@dataclass(frozen=True)
class _Found:
    """A training as the graph has it."""

    dataset: NodeRef
    calculation: NodeRef
    fresh: NodeRef
    judged: NodeRef
    split: tuple[orm.ArrayData, int] | None


def _trainings(datasets: list[int]) -> list[_Found]:
    if not datasets:
        return []
    query = orm.QueryBuilder()
    query.append(DatasetData, filters={"id": {"in": datasets}}, tag="dataset", project=["id", "uuid", "label"])
    query.append(
        orm.CalculationNode,
        with_incoming="dataset",
        edge_filters=_INPUT,
        tag="training",
        project=["id", "uuid", "node_type", "process_type", "label"],
    )
    query.append(PotentialData, with_incoming="training", edge_filters=_CREATE, project=["id", "uuid", "label"])
    rows = query.all()
    splits = _splits({row[3] for row in rows})
    judged = _judged({row[8] for row in rows})
    found = []
    for row in rows:
        dataset = NodeRef(row[0], row[1], "DatasetData", row[2])
        calculation = NodeRef(row[3], row[4], kind_of(row[5], row[6]), row[7])
        fresh = NodeRef(row[8], row[9], "PotentialData", row[10])
        found.append(_Found(dataset, calculation, fresh, judged.get(fresh.pk, fresh), splits.get(calculation.pk)))
    return sorted(found, key=lambda training: training.calculation.pk)


def _parts(index: FrameIndex, training: _Found, rows: list[int]) -> list[str]:
    """Part of each row; empty where the training does not say."""
    codes = [] if training.split is None else index.parts(*training.split, rows)
    return [PART_NAMES[code] if code >= 0 else _UNUSED for code in codes] or [""] * len(rows)


def _splits(trainings: set[int]) -> dict[int, tuple[orm.ArrayData, int]]:
    """Pk of each training -> its split, and the number of its member."""
    if not trainings:
        return {}
    query = orm.QueryBuilder()
    query.append(orm.CalculationNode, filters={"id": {"in": list(trainings)}}, tag="training", project=["id"])
    query.append(orm.ArrayData, with_outgoing="training", edge_filters={**_INPUT, "label": "split"}, project=["*"])
    query.append(
        orm.Dict,
        with_outgoing="training",
        edge_filters={**_INPUT, "label": "settings"},
        project=["attributes.member"],
    )
    return {pk: (split, int(member or 0)) for pk, split, member in query.all()}


def _judged(potentials: set[int]) -> dict[int, NodeRef]:
    """Pk of a fresh potential -> the same package with errors and grades, the newest there is."""
    if not potentials:
        return {}
    query = orm.QueryBuilder()
    query.append(
        PotentialData, filters={"id": {"in": list(potentials)}}, tag="fresh", project=["id", "attributes.sha256"]
    )
    query.append(orm.CalcFunctionNode, with_incoming="fresh", edge_filters=_INPUT, tag="judge")
    query.append(
        PotentialData,
        with_incoming="judge",
        edge_filters=_CREATE,
        tag="judged",
        project=["id", "uuid", "label", "attributes.sha256"],
    )
    query.order_by({"judged": {"id": "asc"}})
    return {
        fresh: NodeRef(pk, uuid, "PotentialData", label)
        for fresh, sha, pk, uuid, label, same in query.all()
        if sha == same
    }
