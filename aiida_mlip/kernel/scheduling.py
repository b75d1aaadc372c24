"""When labels are computed: the longest first, with a walltime that fits, within hard limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int

#: Costs that differ by less than this factor are equal: an order by noise helps nobody.
_EQUAL: Final[float] = 1.1
#: What a job takes besides its labels at most (s): start of the launcher, copies, a slow disk.
MARGIN_SECONDS: Final[int] = 300
#: A label may take so many times what is expected of it before its job is ended.
SAFETY: Final[float] = 3.0
#: Longest walltime that is asked for where nobody stated one (s).
LONGEST_SECONDS: Final[int] = 86400
_MINUTE: Final[int] = 60


def longest_first(core_seconds: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Order in which labels are begun: unknown ones, then from the dearest to the cheapest, equals as they come.

    The last job to end then is a short one: at most 4/3 of the best makespan (Graham, doi:10.1137/0117039).

    :param core_seconds: (n,) expected, NaN where nothing is known.

    >>> longest_first(np.array([1.0, 50.0, np.nan, 1.04])).tolist()
    [2, 1, 0, 3]
    """
    cost = np.asarray(core_seconds, dtype=float)
    known = np.isfinite(cost)
    level = np.full(len(cost), np.inf)
    level[known] = np.round(np.log(np.maximum(cost[known], 1e-6)) / math.log(_EQUAL))
    return np.argsort(-level, kind="stable")


def walltime_seconds(
    core_seconds: Sequence[float], *, cores: float, side_by_side: int = 1, spread: float = 1.0
) -> int | None:
    """Walltime to ask for: what the labels of a job are expected to take, with room; None where that is not known.

    Each stream of labels side by side may take :data:`SAFETY` times what is expected of its longest label, and the
    others what is expected of them times ``spread``; whole minutes.

    :param core_seconds: expected of each label of the job.
    :param cores: of each label.
    :param side_by_side: labels that run at once.
    :param spread: how many times the expectation a dear label takes.

    >>> walltime_seconds([60.0], cores=1), walltime_seconds([60.0] * 100, cores=2, side_by_side=4)
    (480, 1140)
    """
    seconds = np.asarray(core_seconds, dtype=float) / cores
    if not len(seconds) or not np.isfinite(seconds).all():
        return None
    longest = float(seconds.max())
    others = (float(seconds.sum()) - longest) / min(side_by_side, len(seconds))
    wanted = MARGIN_SECONDS + max(SAFETY, spread) * longest + spread * others
    return math.ceil(wanted / _MINUTE) * _MINUTE


def makespan_seconds(core_seconds: Sequence[float], *, cores: float, at_once: int) -> float:
    """Least time (s) in which jobs of these costs end when so many of them, each on ``cores``, run at once."""
    seconds = np.asarray(core_seconds, dtype=float) / cores
    return float(max(seconds.sum() / at_once, seconds.max())) if len(seconds) else 0.0
