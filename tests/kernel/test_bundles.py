"""Which frames go together: all of them somewhere, once, in order; dear ones alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.kernel.bundles import (
    AT_ONCE,
    BUNDLE_CORE_SECONDS,
    CHEAP_CORE_SECONDS,
    MAX_BUNDLE,
    bundles_of,
    slices_of,
)

COSTS = st.lists(st.floats(0.01, 200) | st.just(float("nan")), max_size=60)


@given(COSTS)
def test_every_frame_is_somewhere_once(costs):
    bundles, alone = bundles_of(np.array(costs))
    assert sorted([i for bundle in bundles for i in bundle] + alone) == list(range(len(costs)))
    assert all(costs[i] <= CHEAP_CORE_SECONDS for bundle in bundles for i in bundle)
    assert all(bundle == sorted(bundle) for bundle in bundles)
    assert all(len(bundle) > 1 for bundle in bundles)
    assert all(sum(costs[i] for i in bundle) <= BUNDLE_CORE_SECONDS for bundle in bundles)
    lonely = [i for i in alone if costs[i] <= CHEAP_CORE_SECONDS]
    assert len(lonely) <= 1 + len(bundles), "a cheap frame is alone only where no other fits with it"


def test_size_is_bounded():
    bundles, alone = bundles_of(np.full(2 * MAX_BUNDLE + 1, 0.1))
    assert [len(bundle) for bundle in bundles] == [MAX_BUNDLE, MAX_BUNDLE]
    assert alone == [2 * MAX_BUNDLE]


@given(st.integers(0, 50), st.integers(1, 20))
def test_slices(n, size):
    slices = slices_of(n, size)
    assert [i for part in slices for i in part] == list(range(n))
    assert all(len(part) == size for part in slices[:-1])


def test_bundles_run_side_by_side():
    bundles, _ = bundles_of(np.full(900, 2.0))
    assert AT_ONCE <= len(bundles) <= AT_ONCE + 1
    assert bundles_of(np.full(40, 1.0)) == ([list(range(40))], []), "short ones stay together"
    assert [len(bundle) for bundle in bundles_of(np.full(80, 1.0))[0]] == [40, 40]
