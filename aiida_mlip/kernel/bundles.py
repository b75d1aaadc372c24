"""Which labels go together into one job."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

#: A label that takes longer (core-seconds) has a job of its own: what the job costs is then a tenth or less of it, and
#: the restarts of its own are worth more.
CHEAP_CORE_SECONDS: Final[float] = 60.0
#: Expected core-seconds of one bundle at most: a quarter of the default walltime on one core.
BUNDLE_CORE_SECONDS: Final[float] = 900.0
#: Labels are not divided into bundles shorter than this: what a job costs is then a twentieth of it.
SHORT_BUNDLE_CORE_SECONDS: Final[float] = 60.0
#: Labels are divided into at most so many bundles while these are not long: they run side by side, and end together.
AT_ONCE: Final[int] = 8
#: Most frames in a bundle whose size nobody stated.
MAX_BUNDLE: Final[int] = 200


def bundles_of(core_seconds: Float[np.ndarray, "n"]) -> tuple[list[list[int]], list[int]]:
    """Frames that go together, in their order, and those that get a job of their own.

    A frame is alone if it is expected to take more than :data:`CHEAP_CORE_SECONDS`, or nothing is expected of it (NaN);
    the others are divided into :data:`AT_ONCE` bundles, fewer where these would be shorter than
    :data:`SHORT_BUNDLE_CORE_SECONDS`, more where they would exceed :data:`BUNDLE_CORE_SECONDS` or :data:`MAX_BUNDLE`.

    :param core_seconds: (n,) expected of each frame.
    :returns: bundles of at least two frames, and the rest, as positions in ``core_seconds``.

    >>> bundles_of(np.array([1.0, 500.0, 2.0, np.nan]))
    ([[0, 2]], [1, 3])
    """
    bundles: list[list[int]] = []
    alone: list[int] = []
    spent = 0.0
    costs = np.asarray(core_seconds, dtype=float)
    cheap = costs[costs <= CHEAP_CORE_SECONDS]
    n_bundles = min(AT_ONCE, math.ceil(cheap.sum() / SHORT_BUNDLE_CORE_SECONDS))
    # any two of them fit together
    longest = min(BUNDLE_CORE_SECONDS, max(cheap.sum() / max(n_bundles, 1), 2 * cheap.max(initial=0.0)) * (1 + 1e-9))
    for i, cost in enumerate(costs):
        if not cost <= CHEAP_CORE_SECONDS:  # NaN too
            alone.append(i)
            continue
        if not bundles or spent + cost > longest or len(bundles[-1]) == MAX_BUNDLE:
            bundles.append([])
            spent = 0.0
        bundles[-1].append(i)
        spent += float(cost)
    alone += [bundle[0] for bundle in bundles if len(bundle) == 1]
    return [bundle for bundle in bundles if len(bundle) > 1], sorted(alone)


def slices_of(n: int, size: int) -> list[list[int]]:
    """``n`` frames, in their order, in bundles of ``size``; the last may be smaller.

    >>> slices_of(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    everything: Sequence[int] = range(n)
    return [list(everything[start : start + size]) for start in range(0, n, size)]
