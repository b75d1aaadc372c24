"""Which frames pw.x labels together in one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.bundles import bundles_of, guess_core_seconds, slices_of
from aiida_mlip.kernel.label_cost import fit_label_cost
from aiida_mlip.protocols.fidelity import QeFidelity


def bundled_rows(
    dataset: DatasetData,
    rows: np.ndarray,
    spec: QeFidelity,
    settings: str,
    *,
    pseudos: Mapping[str, Any],
    measured: Sequence[orm.Data] = (),
) -> tuple[list[list[int]], list[int]]:
    """Bundles, and frames that get a job of their own.

    With a stated size every bundle has that many frames. Otherwise the cost of each frame is expected: from measured
    labels with the same settings, as a power of the number of atoms; without any, from electrons, volume, mesh and
    cutoff. With a functional of its own (``input_dft``: a hybrid takes a hundred times as long) nothing is expected of
    a frame that was not measured, and it is alone.

    :param dataset: the frames.
    :param rows: (n,) rows to label.
    :param settings: hash of the settings.
    :param pseudos: pseudopotential nodes per chemical symbol.
    :param measured: datasets that may hold labels with these settings.
    :returns: positions in ``rows``: of each bundle of at least two frames, and of the others.
    """
    if spec.bundle_size is not None:
        slices = slices_of(len(rows), spec.bundle_size)
        return [part for part in slices if len(part) > 1], [part[0] for part in slices if len(part) == 1]
    natoms, cost = _measured(measured, settings)
    if len(cost):
        expected = fit_label_cost(natoms, cost).core_seconds(dataset.column("natoms")[rows])
    elif spec.input_dft:
        expected = np.full(len(rows), np.nan)
    else:
        expected = _guessed(dataset, rows, spec, pseudos)
    return bundles_of(expected)


def _measured(datasets: Sequence[orm.Data], settings: str) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and core-seconds (n,) of the labels with these settings whose cost is known, isolated atoms left out."""
    natoms, costs = [np.zeros(0, dtype=int)], [np.zeros(0)]
    for node in datasets:
        names = [name for name, value in node.settings.items() if value == settings] if _is_dataset(node) else []
        for name in names:
            frames = node.filter(fidelity=name, labelled=True)
            known = np.isfinite(frames.cost) & (frames.cost > 0) & (frames.natoms > 1)
            natoms.append(frames.natoms[known].astype(int))
            costs.append(frames.cost[known].astype(float))
    return np.concatenate(natoms), np.concatenate(costs)


def _is_dataset(node: orm.Data) -> bool:
    return isinstance(node, DatasetData)


def _guessed(dataset: DatasetData, rows: np.ndarray, spec: QeFidelity, pseudos: Mapping[str, Any]) -> np.ndarray:
    """Expected core-seconds (n,) of frames of which nothing was measured; NaN where a pseudopotential is missing."""
    from aiida_mlip.data.pw_inputs import frame_structure, mesh_of

    frames = dataset.frames()
    electrons, volume, points = [], [], []
    for row in rows:
        structure = frame_structure(frames.take([int(row)]), spec, isolated=False)
        valence = {symbol: pseudos[symbol].z_valence for symbol in structure.get_symbols_set() if symbol in pseudos}
        electrons.append(sum(valence.get(site.kind_name, np.nan) for site in structure.sites))
        volume.append(structure.get_cell_volume())
        points.append(int(np.prod(mesh_of(structure, spec))))
    return guess_core_seconds(
        np.array(electrons, dtype=float),
        np.array(volume),
        np.array(points),
        ecutwfc_ry=spec.ecutwfc_ry or np.nan,
        spin_polarized=spec.spin == "collinear",
    )


def dataset_with_costs(settings: str) -> DatasetData | None:
    """The newest dataset of the profile that knows what labels with these settings took; None if there is none."""
    query = orm.QueryBuilder().append(DatasetData, project=["id", "attributes.fidelities"])
    query.order_by({DatasetData: {"id": "desc"}})
    for pk, fidelities in query.all():
        if any(entry["settings"] == settings and entry["labelled"] for entry in (fidelities or {}).values()):
            node = orm.load_node(pk)
            if len(_measured([node], settings)[1]):
                return node
    return None
