"""Which potentials learned from a row of a dataset, and in which part of the training it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.frame_index import FrameIndex
from aiida_mlip.data.graph import NodeRef, NodeRow, neighbours, nodes_with
from aiida_mlip.data.roles import BAKING, JOB, LABELS
from aiida_mlip.kernel.splits import PART_NAMES

_UNUSED: Final[str] = "unused"
_CREATE: Final[LinkType] = LinkType.CREATE
_INPUT: Final[LinkType] = LinkType.INPUT_CALC


@dataclass(frozen=True)
class Training:
    """A potential that was trained on a dataset with the row in it.

    :param potential: the potential with what judges it; where it was never judged, as it came out of the training, or
        was baked if it was a joint one.
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
        for training in _trainings(rows)
        for number, part in zip(
            rows[training.dataset.pk], _parts(index, training, rows[training.dataset.pk]), strict=True
        )
    )


def parts_by_potential(rows: Mapping[int, np.ndarray], index: FrameIndex) -> dict[int, set[str]]:
    """Pk of each potential that was trained on these datasets, fresh, baked or judged -> parts that the rows were in.

    :param rows: pk of a dataset -> row numbers.
    """
    found: dict[int, set[str]] = {}
    for training in _trainings(rows):
        codes = _codes(index, training, rows[training.dataset.pk])
        parts = {_name(code) for code in np.unique(codes).tolist()} or {""}
        for potential in training.versions:
            found.setdefault(potential.pk, set()).update(parts)
    return found


@dataclass(frozen=True)
class _Found:
    """A training as the graph has it.

    :param versions: its potential as it came out, what was baked of it, and these judged, in this order.
    :param split: uuid of the split, and the number of its member.
    """

    dataset: NodeRef
    calculation: NodeRef
    versions: tuple[NodeRef, ...]
    split: tuple[str, int] | None

    @property
    def judged(self) -> NodeRef:
        """What is to be used: judged if it was, and baked if it was joint."""
        return self.versions[-1]


def _trainings(datasets: Collection[int]) -> list[_Found]:
    """Step by step along the links: a query over all steps makes the database begin with the links of one kind."""
    used = neighbours(datasets, (_INPUT,), direction="forward", without=LABELS)
    # a function that made a potential only judged or imported it
    jobs = {node.pk for _, _, node in used if node.node_type.startswith(JOB)}
    made = neighbours(jobs, (_CREATE,), direction="forward")
    fresh = {source: node for source, _, node in made if node.role == "potential"}
    names = {node.pk: node.ref for node in nodes_with(datasets)}
    splits = _splits(fresh)
    baked = _baked([node.pk for node in fresh.values()])
    judged = _judged([node.pk for node in (*fresh.values(), *chain.from_iterable(baked.values()))])
    versions = {}
    for calculation, node in fresh.items():
        made_of = [node.ref, *(other.ref for other in baked.get(node.pk, ()))]
        versions[calculation] = (*made_of, *(judged[ref.pk] for ref in made_of if ref.pk in judged))
    found = {
        (dataset, node.pk): _Found(
            dataset=names[dataset],
            calculation=node.ref,
            versions=versions[node.pk],
            split=splits.get(node.pk),
        )
        for dataset, _, node in used
        if node.pk in fresh
    }
    return sorted(found.values(), key=lambda training: training.calculation.pk)


def _parts(index: FrameIndex, training: _Found, rows: list[int]) -> list[str]:
    """Part of each row; empty where the training does not say."""
    return [_name(code) for code in _codes(index, training, np.array(rows)).tolist()] or [""] * len(rows)


def _codes(index: FrameIndex, training: _Found, rows: np.ndarray) -> np.ndarray:
    return np.zeros(0, np.int8) if training.split is None else index.parts(*training.split, rows)


def _name(code: int) -> str:
    return PART_NAMES[code] if code >= 0 else _UNUSED


def _splits(trainings: Collection[int]) -> dict[int, tuple[str, int]]:
    """Pk of each training -> uuid of its split, and the number of its member."""
    inputs = neighbours(trainings, (_INPUT,), direction="backward")
    split = {calculation: node.uuid for calculation, label, node in inputs if label == "split"}
    settings = {calculation: node.pk for calculation, label, node in inputs if label == "settings"}
    members = _attribute(set(settings.values()), "member")
    return {pk: (uuid, int(members.get(settings.get(pk, 0)) or 0)) for pk, uuid in split.items()}


def _baked(potentials: Collection[int]) -> dict[int, list[NodeRow]]:
    """Pk of a joint potential -> ordinary ones made of it."""
    users = neighbours(potentials, (_INPUT,), direction="forward")
    jobs = {node.pk: potential for potential, _, node in users if node.process_type == BAKING}
    found: dict[int, list[NodeRow]] = {}
    for job, _, node in neighbours(jobs, (_CREATE,), direction="forward"):
        if node.role == "potential":
            found.setdefault(jobs[job], []).append(node)
    return found


def _judged(potentials: Collection[int]) -> dict[int, NodeRef]:
    """Pk of a fresh potential -> the same package with errors and grades, the newest there is."""
    users = neighbours(potentials, (_INPUT,), direction="forward")
    sources = {(node.pk, potential) for potential, _, node in users if not node.node_type.startswith(JOB)}
    made = neighbours({function for function, _ in sources}, (_CREATE,), direction="forward")
    results: dict[int, list[NodeRow]] = {}
    for function, _, node in made:
        if node.role == "potential":
            results.setdefault(function, []).append(node)
    packages = _attribute({*potentials, *(node.pk for nodes in results.values() for node in nodes)}, "sha256")
    found: dict[int, NodeRef] = {}
    for function, potential in sorted(sources):
        for node in results.get(function, ()):
            if packages.get(node.pk) == packages.get(potential):
                found[potential] = node.ref
    return found


def _attribute(pks: Collection[int], name: str) -> dict[int, Any]:
    query = orm.QueryBuilder().append(orm.Node, filters={"id": {"in": list(pks)}}, project=["id", f"attributes.{name}"])
    return dict(query.all()) if pks else {}
