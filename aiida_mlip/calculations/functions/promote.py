"""Labels at several levels of theory: which fidelity is for all frames, how many get the dear one, what it all cost."""

from __future__ import annotations

import math

import numpy as np
from aiida import orm
from aiida.engine import calcfunction

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.labelling import contained, labelled_ids
from aiida_mlip.protocols.promote import parse_promote, without_dear

_HOUR = 3600.0


@calcfunction
def divide_fidelities(fidelities: orm.Dict, promote: orm.Dict) -> dict[str, orm.Data]:
    """Levels of theory for all frames, and the one for the few.

    :param fidelities: all of them, cheap first, see :mod:`aiida_mlip.protocols.fidelity`.
    :param promote: see :mod:`aiida_mlip.protocols.promote`.
    :returns: ``cheap`` and ``dear``, each as ``fidelities``.
    """
    every = fidelities.get_dict()
    settings = parse_promote(promote.get_dict(), list(every))
    return {
        "cheap": orm.Dict(without_dear(every, settings)),
        "dear": orm.Dict({settings.fidelity: every[settings.fidelity]}),
    }


@calcfunction
def plan_dear_labels(
    promote: orm.Dict, fidelities: orm.Dict, labelled: DatasetData, summary: orm.Dict, known: DatasetData | None = None
) -> dict[str, orm.Data]:
    """Specification of an allocation: so many dear labels, for what the cheap ones have left of the budget.

    :param promote: see :mod:`aiida_mlip.protocols.promote`; its ``core_hours`` are those of all labels together.
    :param fidelities: all levels of theory, cheap first.
    :param labelled: the frames with their cheap labels.
    :param summary: of these labels.
    :param known: labels there were before: the fraction is one of all frames, these among them.
    :returns: ``spec``, see :mod:`aiida_mlip.protocols.allocate`; nothing where no dear label is wanted any more.
    """
    every = fidelities.get_dict()
    settings = parse_promote(promote.get_dict(), list(every))
    cheap = next(iter(without_dear(every, settings)))
    parts = [labelled] if known is None else [known, labelled]
    n_cheap, n_dear = (_n_frames(parts, name) for name in (cheap, settings.fidelity))
    candidates = _ids([labelled], cheap)
    fresh = int((~contained(candidates, _ids(parts, settings.fidelity))).sum())
    wanted = min(math.ceil(settings.fraction * n_cheap - 1e-9) - n_dear, fresh)
    left = None
    if settings.core_hours is not None:
        left = settings.core_hours - core_hours(summary)
    if wanted < 1 or (left is not None and left <= 0.0):
        return {}
    spec = {"target": settings.fidelity, "cheap": cheap, "n_frames": wanted, "core_hours": left}
    how = settings.model_dump(include={"method", "seed", "cost"}, exclude_none=True)
    return {"spec": orm.Dict({**spec, **how})}


@calcfunction
def join_summaries(**summaries: orm.Dict) -> orm.Dict:
    """One summary of labels out of several, each of other levels of theory."""
    joined = {}
    for name in sorted(summaries):
        joined.update(summaries[name]["fidelities"])
    return orm.Dict({"fidelities": joined})


def core_hours(summary: orm.Dict) -> float:
    """What the labels of a summary have cost."""
    return float(sum(entry["core_seconds"] for entry in summary["fidelities"].values()) / _HOUR)


def _ids(datasets: list[DatasetData], fidelity: str) -> np.ndarray:
    """(k, 16) distinct frames, isolated atoms apart, that are labelled at a fidelity."""
    found = [np.zeros((0, 16), dtype=np.uint8)]
    for node in datasets:
        if fidelity in node.fidelities:
            frames = node.filter(fidelity=fidelity, labelled=True)
            found.append(labelled_ids(frames.take(~frames.isolated), fidelity))
    return np.unique(np.concatenate(found), axis=0)


def _n_frames(datasets: list[DatasetData], fidelity: str) -> int:
    return len(_ids(datasets, fidelity))
