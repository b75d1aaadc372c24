"""Walltimes of labelling jobs, and the core-hours that a labelling may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.common.links import LinkType

from aiida_mlip.data.label_costs import job_core_seconds, processes_and_threads
from aiida_mlip.kernel.scheduling import LONGEST_SECONDS, makespan_seconds, walltime_seconds

#: A job that may not take so long (s) is not begun.
LEAST_SECONDS: Final[int] = 60


@dataclass(frozen=True)
class JobShape:
    """Cores of a job.

    :param cores: of the job.
    :param per_label: of each label.
    :param side_by_side: labels that run at once.
    """

    cores: int
    per_label: float
    side_by_side: int


def job_shape(options: Mapping[str, Any], n_labels: int = 1, *, shared: bool = False) -> JobShape:
    """Cores of a job by its options, as far as they say.

    :param n_labels: in the job.
    :param shared: whether labels may run side by side (jobs of many frames of pw.x).
    """
    processes, threads = processes_and_threads(options.get("resources", {}))
    cores = processes * threads
    at_once = 1
    if shared:
        at_once = min(n_labels, int(options.get("side_by_side") or (1 if options.get("withmpi") else processes)))
    return JobShape(cores, cores / at_once, at_once)


def job_walltime(
    options: Mapping[str, Any], expected: Sequence[float | None], shape: JobShape, *, stated: bool, spread: float | None
) -> int:
    """Walltime (s) of a job.

    What the user stated is never exceeded; less is asked for where enough labels were measured. Where nothing was
    stated, the default is exceeded for labels that are expected to take longer.

    :param options: of the job, with ``max_wallclock_seconds``.
    :param expected: core-seconds of each label, None where nothing is expected.
    :param stated: whether the walltime is the user's.
    :param spread: how many times the expectation a dear label takes; None: not known, nothing shorter is asked for.
    """
    given = int(options["max_wallclock_seconds"])
    wanted = walltime_seconds(
        _numbers(expected), cores=shape.per_label, side_by_side=shape.side_by_side, spread=spread or 1.0
    )
    if wanted is None:
        return given
    if stated:
        return given if spread is None else min(given, wanted)
    return min(max(given, wanted), max(given, LONGEST_SECONDS))


def affordable_walltime(
    walltime: int, expected: Sequence[float | None], shape: JobShape, *, left: float, attempts: int
) -> int | None:
    """Walltime (s) of a job that takes no more than what is left; None if that is not enough to begin it.

    :param walltime: that it would have.
    :param expected: core-seconds of each label, None where nothing is expected.
    :param left: core-seconds that are neither spent nor reserved.
    :param attempts: runs that the job may be.

    >>> affordable_walltime(3600, [120.0], JobShape(2, 2.0, 1), left=5000.0, attempts=5)
    500
    >>> affordable_walltime(3600, [1200.0], JobShape(2, 2.0, 1), left=5000.0, attempts=5) is None
    True
    """
    allowed = min(walltime, int(left / (shape.cores * attempts)))
    known = [cost for cost in expected if cost is not None]
    least = makespan_seconds(known, cores=shape.per_label, at_once=shape.side_by_side)
    return allowed if allowed >= max(LEAST_SECONDS, least) else None


def spent_core_seconds(node: orm.ProcessNode, reserved: float) -> float:
    """Core-seconds that an ended label process took; what was reserved for it where it does not say.

    :param node: a job of many frames, or the workchain of one.
    :param reserved: core-seconds that were held for it.
    """
    if isinstance(node, orm.CalcJobNode):
        if node.is_finished_ok and "dataset" in node.outputs:
            return float(np.nansum(node.outputs.dataset.column("cost")))
        return reserved
    jobs = node.base.links.get_outgoing(node_class=orm.CalcJobNode, link_type=LinkType.CALL_CALC).all_nodes()
    costs = [job_core_seconds(job) for job in jobs]
    return min(reserved, float(np.sum(costs))) if np.isfinite(costs).all() else reserved


def _numbers(expected: Sequence[float | None]) -> list[float]:
    return [np.nan if cost is None else cost for cost in expected]
