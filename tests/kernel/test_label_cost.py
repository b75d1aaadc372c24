"""Costs of labels: powers that are there are found, and what cannot be known is assumed, not invented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.label_cost import POWERS, fit_label_cost


@given(st.floats(1.0, 4.0), st.floats(1e-3, 1e3), st.sets(st.integers(1, 500), min_size=3, max_size=8))
def test_a_power_law_is_found(power, factor, sizes):
    natoms = np.repeat(sorted(sizes), 3)
    model = fit_label_cost(natoms, factor * natoms.astype(float) ** power)
    assert model.fitted
    assert model.power == pytest.approx(power, abs=1e-6)
    assert model.core_seconds(np.array([1000]))[0] == pytest.approx(factor * 1000**power, rel=1e-3)
    assert (model.n_labels, model.sizes) == (len(natoms), (min(sizes), max(sizes)))


@given(st.floats(0.1, 100.0), st.integers(1, 100), st.integers(1, 100))
def test_two_sizes_are_no_power(factor, first, second):
    natoms = np.array([first, second, second])
    model = fit_label_cost(natoms, factor * natoms.astype(float) ** 2)
    assert not model.fitted
    assert model.core_seconds(np.array([7]))[0] == pytest.approx(factor * 49, rel=1e-6)


def test_noise_outliers_and_unknown_costs():
    rng = np.random.default_rng(0)
    natoms = rng.choice([2, 8, 16, 64], 400)
    cost = 0.3 * natoms**2.4 * rng.lognormal(0, 0.3, 400)
    cost[:20] *= 50  # jobs that waited for a disk
    cost[20:40] = np.nan
    model = fit_label_cost(natoms, cost)
    assert model.power == pytest.approx(2.4, abs=0.15)
    assert model.n_labels == 380
    flat = fit_label_cost(np.array([1, 2, 4, 8]), np.full(4, 10.0))  # nothing but start-up
    assert flat.power == POWERS[0]
    with pytest.raises(InvalidInputError, match="no measured label"):
        fit_label_cost(np.array([4]), np.array([np.nan]))
