"""Measured costs of labels in the profile, by level of theory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData

#: Datasets looked into, the largest first, until one has costs.
_MOST_DATASETS: Final[int] = 20


@dataclass(frozen=True)
class MeasuredLabels:
    """Labels of one level of theory whose costs are known, in one dataset.

    :param fidelity: its name there.
    :param settings: its settings hash; empty for labels from elsewhere.
    :param pk: of the dataset.
    :param species: chemical symbols in the dataset.
    :param natoms: (n,) atoms of each.
    :param periodic: (n,) whether the frame has any periodic direction.
    :param core_seconds: (n,) what each label took.
    """

    fidelity: str
    settings: str
    pk: int
    species: tuple[str, ...]
    natoms: np.ndarray
    periodic: np.ndarray
    core_seconds: np.ndarray


def measured_labels(datasets: Iterable[DatasetData] | None = None) -> list[MeasuredLabels]:
    """For each level of theory the dataset with the most labels of known cost, by name.

    :param datasets: where to look; None: everywhere in the profile.
    """
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for pk, fidelities in _fidelities(datasets):
        for name, entry in (fidelities or {}).items():
            if entry["labelled"]:
                found.setdefault((name, entry["settings"]), []).append((entry["labelled"], pk))
    result = []
    for (name, settings), places in sorted(found.items()):
        for _, pk in sorted(places, reverse=True)[:_MOST_DATASETS]:
            labels = _read(orm.load_node(pk), name, settings)
            if len(labels.core_seconds):
                result.append(labels)
                break
    return result


def _fidelities(datasets: Iterable[DatasetData] | None) -> list[tuple[int, dict[str, Any]]]:
    if datasets is not None:
        return [(node.pk, node.base.attributes.get("fidelities")) for node in datasets]
    query = orm.QueryBuilder().append(DatasetData, project=["id", "attributes.fidelities"])
    return [(pk, fidelities) for pk, fidelities in query.all()]


def _read(node: DatasetData, name: str, settings: str) -> MeasuredLabels:
    frames = node.filter(fidelity=name, labelled=True)
    cost = frames.cost.astype(float)
    known = np.isfinite(cost) & (cost > 0)
    return MeasuredLabels(
        fidelity=name,
        settings=settings,
        pk=node.pk,
        species=tuple(node.species),
        natoms=frames.natoms[known].astype(int),
        periodic=np.asarray(frames.pbc.any(axis=1))[known],
        core_seconds=cost[known],
    )


def job_core_seconds(job: orm.CalcJobNode) -> float:
    """Wall time that pw.x printed times the cores of its job; NaN where it printed none."""
    if "output_parameters" not in job.outputs:
        return np.nan
    wall = job.outputs.output_parameters.get_dict().get("wall_time_seconds")
    if wall is None:
        return np.nan
    processes, threads = processes_and_threads(job.get_option("resources") or {})
    return float(wall) * processes * threads


def processes_and_threads(resources: Mapping[str, Any]) -> tuple[int, int]:
    """MPI processes of a job, and cores of each, by its option ``resources``, as far as that says."""
    per_machine = resources.get("num_mpiprocs_per_machine") or 1
    processes = resources.get("tot_num_mpiprocs") or (resources.get("num_machines") or 1) * per_machine
    return int(processes), int(resources.get("num_cores_per_mpiproc") or 1)
