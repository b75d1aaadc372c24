"""A model's input: geometries as the dictionaries of tensors that the NequIP framework calls graphs.

The same as NequIP's own transforms make, order of the edges included. Made here, because importing NequIP takes longer
than a small job: a packaged model brings the code that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Names of tensors -> tensors.
Graph = dict[str, Any]  # Any: torch.Tensor, torch is not imported here


def pair_cutoffs(metadata: Mapping[str, Any], type_names: Sequence[str]) -> np.ndarray | None:
    """(t, t) cutoff (Å) by the types of centre and neighbour; None: one cutoff for all.

    :param metadata: of the model, as a package (text) or a compiled file (nested dictionaries) gives it.
    """
    given = metadata.get("per_edge_type_cutoff")
    if not given:
        return None
    if isinstance(given, str):
        return np.array(given.split(), dtype=float).reshape(len(type_names), len(type_names))
    return np.array([[float(given[centre][other]) for other in type_names] for centre in type_names])


def shortened(types: np.ndarray, index: np.ndarray, distance: np.ndarray, cutoffs: np.ndarray) -> np.ndarray:
    """(p,) whether a pair is within the cutoff of its own two types.

    :param types: (a,) type indices.
    :param index: (2, p) centre and neighbour.
    :param distance: (p,) Å.
    :param cutoffs: (t, t) Å.
    """
    return np.asarray(distance <= cutoffs[types[index[0]], types[index[1]]])


def graph(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    *,
    types: np.ndarray,
    cutoff_ang: float,
    cutoffs: np.ndarray | None = None,
    fidelity: int | None = None,
) -> Graph:
    """One geometry, on the CPU, in double precision.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors; zeros where there is none.
    :param pbc: (3,) periodicity.
    :param types: (a,) see :meth:`aiida_mlip.workers.model_loading.LoadedModel.types_of`.
    :param cutoff_ang: largest cutoff of the model.
    :param cutoffs: see :func:`pair_cutoffs`.
    :param fidelity: index of the level of theory, for a model that is told it.
    """
    import torch
    from ase.geometry import complete_cell
    from matscipy.neighbours import neighbour_list

    i, j, distance, shift = neighbour_list(
        "ijdS", pbc=pbc, cell=complete_cell(cell), positions=positions, cutoff=float(cutoff_ang)
    )
    index = np.stack([i, j]).astype(np.int64)
    if cutoffs is not None:
        near = shortened(types, index, distance, cutoffs)
        index, shift = index.compress(near, axis=1), shift.compress(near, axis=0)
    data = {
        "pos": torch.tensor(positions, dtype=torch.float64),
        "cell": torch.tensor(cell, dtype=torch.float64).view(1, 3, 3),
        "pbc": torch.tensor(pbc, dtype=torch.bool).view(1, 3),
        "atomic_numbers": torch.tensor(numbers, dtype=torch.int64),
        "atom_types": torch.as_tensor(types),
        "edge_index": torch.as_tensor(index),
        "edge_cell_shift": torch.as_tensor(shift, dtype=torch.float64),
    }
    if fidelity is not None:
        data["dataset"] = torch.tensor([[fidelity]])
    return data


def batched(graphs: Sequence[Graph]) -> Graph:
    """Graphs of single geometries, with the same keys, as one of many."""
    import torch

    sizes = torch.tensor([len(data["pos"]) for data in graphs])
    starts = (sizes.cumsum(0) - sizes).tolist()
    batch = {
        name: torch.cat([data[name] for data in graphs])
        for name in graphs[0]
        if name != "edge_index"  # counts atoms from the first of the batch
    }
    batch["edge_index"] = torch.cat(
        [data["edge_index"] + start for data, start in zip(graphs, starts, strict=True)], dim=1
    )
    batch["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    batch["num_atoms"] = sizes
    return batch


def on_device(data: Graph, device: Any) -> Graph:
    """The same tensors on a ``torch.device``."""
    return {name: value.to(device=device) for name, value in data.items()}
