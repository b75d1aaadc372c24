"""Joining the jobs of one exploration that was interrupted and went on."""

from __future__ import annotations

import numpy as np
from aiida import orm
from aiida.engine import calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import concatenate

#: Outputs of a job that are frames, each with the arrays that hold one value per frame.
_PAIRS = (("dataset", "series"), ("selected", "grades"))
#: Arrays of ``grades`` with one value per atom.
_PER_ATOM = ("novelty", "error_ev_per_ang")


@calcfunction
def join_explorations(**jobs: orm.Data) -> dict[str, orm.Data]:
    """Frames and their numbers of all jobs, in order; a frame that two jobs recorded is taken once.

    :param jobs: ``dataset_<i>``, ``series_<i>``, ``selected_<i>``, ``grades_<i>`` of the i-th job, as far as it has
        them.
    :returns: ``dataset``, ``series``, ``selected`` and ``grades``, as far as there is any.
    """
    outputs: dict[str, orm.Data] = {}
    for frames_name, arrays_name in _PAIRS:
        frames, tables = _ordered(jobs, frames_name), _ordered(jobs, arrays_name)
        if not frames:
            continue
        joined = concatenate([node.frames() for node in frames])
        arrays = {
            name: np.concatenate([node.get_array(name) for node in tables]) for name in tables[0].get_arraynames()
        }
        rows = first_of_each(arrays["run"], arrays["step"])
        atoms = np.isin(joined.atom_rows(), rows)
        outputs[frames_name] = DatasetData.from_frames(joined.take(rows))
        outputs[arrays_name] = orm.ArrayData(
            {name: value[atoms] if name in _PER_ATOM else value[rows] for name, value in arrays.items()}
        )
    return outputs


def first_of_each(run: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Rows that hold a (run, step) for the first time, in order.

    >>> first_of_each(np.array([0, 0, 0, 1]), np.array([10, 20, 20, 20])).tolist()
    [0, 1, 3]
    """
    _, first = np.unique(np.stack([run, step], axis=1), axis=0, return_index=True)
    return np.sort(first)


def _ordered(jobs: dict, kind: str) -> list:
    names = sorted(name for name in jobs if name.startswith(f"{kind}_"))
    return [jobs[name] for name in names]
