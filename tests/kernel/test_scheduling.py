"""The order in which labels are begun, and the walltimes that are asked for."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.kernel.scheduling import MARGIN_SECONDS, longest_first, makespan_seconds, walltime_seconds

COSTS = st.lists(st.floats(0.01, 1e5) | st.just(float("nan")), max_size=50)


def list_schedule(costs, workers):
    """End of the last job when each worker takes the next one as soon as it is free."""
    free = [0.0] * workers
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


@given(COSTS)
def test_every_label_once_unknown_ones_before_all_others(costs):
    costs = np.array(costs)
    order = longest_first(costs)
    assert sorted(order) == list(range(len(costs)))
    sorted_costs = costs[order]
    known = np.isfinite(sorted_costs)
    assert not known[: (~known).sum()].any()
    rest = sorted_costs[known]
    assert all(later <= 1.11 * earlier for earlier, later in itertools.pairwise(rest))


def test_equals_stay_in_their_order():
    assert longest_first(np.array([10.0, 10.1, 9.9, 10.05])).tolist() == [0, 1, 2, 3]


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40), st.integers(1, 8))
def test_the_last_job_ends_early(costs, workers):
    """Graham's bound: 4/3 of the least makespan, with the tenth that equals may differ by."""
    costs = np.array(costs)
    least = makespan_seconds(costs, cores=1, at_once=workers)
    assert list_schedule(costs, workers) >= least * (1 - 1e-9)
    ordered = list_schedule(costs[longest_first(costs)], workers)
    in_order = np.sort(costs)[::-1]
    # the optimum is at least the mean load, the longest job, and the two longest that must share a worker
    pair = in_order[workers - 1] + in_order[workers] if len(costs) > workers else 0.0
    assert ordered <= 1.1 * (4 / 3) * max(least, pair) + 1e-9


@given(
    st.lists(st.floats(0.1, 1e4), min_size=1, max_size=60), st.integers(1, 16), st.integers(1, 8), st.floats(1.0, 3.0)
)
def test_a_walltime_covers_what_is_expected_and_more(costs, cores, side_by_side, spread):
    walltime = walltime_seconds(costs, cores=cores, side_by_side=side_by_side, spread=spread)
    assert walltime % 60 == 0
    in_turn = list_schedule([spread * cost / cores for cost in sorted(costs, reverse=True)], side_by_side)
    assert walltime >= in_turn + MARGIN_SECONDS - 1e-6 or walltime >= 3 * max(costs) / cores


def test_nothing_known_no_walltime():
    assert walltime_seconds([10.0, float("nan")], cores=1) is None
    assert walltime_seconds([], cores=1) is None
    assert makespan_seconds([], cores=2, at_once=3) == 0.0
    assert walltime_seconds([100.0], cores=1) == pytest.approx(600)
