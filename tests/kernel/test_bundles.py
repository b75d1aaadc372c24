"""Which frames go together: all of them somewhere, once, in order; dear ones alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.kernel.bundles import (
    BUNDLE_CORE_SECONDS,
    CHEAP_CORE_SECONDS,
    MAX_BUNDLE,
    bundles_of,
    guess_core_seconds,
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


def test_guess_grows_as_a_plane_wave_code_does():
    base = {"n_electrons": np.array([32.0]), "volume": np.array([160.0]), "n_kpoints": np.array([8])}
    one = guess_core_seconds(**base, ecutwfc_ry=30)[0]
    assert one == pytest.approx(3.0)
    assert guess_core_seconds(**base, ecutwfc_ry=120)[0] == pytest.approx(8 * one)
    assert guess_core_seconds(**base, ecutwfc_ry=30, spin_polarized=True)[0] == pytest.approx(2 * one)
    # a supercell twice as large, with half of the k-points
    twice = {"n_electrons": np.array([64.0]), "volume": np.array([320.0]), "n_kpoints": np.array([4])}
    assert guess_core_seconds(**twice, ecutwfc_ry=30)[0] == pytest.approx(4 * one)
