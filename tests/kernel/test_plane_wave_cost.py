"""Costs of plane-wave labels: the guess grows as such a code does, and what was measured corrects it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.plane_wave_cost import MOST_LABELS, POWERS, guess_core_seconds, learn_cost


def test_guess_grows_as_a_plane_wave_code_does():
    base = {"n_electrons": np.array([32.0]), "volume": np.array([160.0]), "n_kpoints": np.array([8])}
    one = guess_core_seconds(**base, ecutwfc_ry=30)[0]
    assert one == pytest.approx(3.0)
    assert guess_core_seconds(**base, ecutwfc_ry=120)[0] == pytest.approx(8 * one)
    assert guess_core_seconds(**base, ecutwfc_ry=30, spin_polarized=True)[0] == pytest.approx(2 * one)
    # a supercell twice as large, with half of the k-points
    twice = {"n_electrons": np.array([64.0]), "volume": np.array([320.0]), "n_kpoints": np.array([4])}
    assert guess_core_seconds(**twice, ecutwfc_ry=30)[0] == pytest.approx(4 * one)


@given(st.floats(*POWERS), st.floats(1e-3, 1e3), st.lists(st.floats(0.1, 1e4), min_size=3, max_size=40))
def test_a_power_law_is_found(power, factor, guess):
    guess = np.array([*guess, 0.1, 10.0, 1e4])
    cost = learn_cost(guess, factor * guess**power)
    assert cost.power == pytest.approx(power, abs=1e-6)
    np.testing.assert_allclose(cost.core_seconds(guess), factor * guess**power, rtol=1e-6)
    assert cost.spread == pytest.approx(1.0)
    assert cost.n_labels == len(guess)


@given(st.floats(0.01, 100.0), st.lists(st.floats(1.0, 3.9), min_size=1, max_size=20))
def test_labels_of_about_one_size_say_nothing_of_the_power(factor, guess):
    cost = learn_cost(np.array(guess), factor * np.array(guess))
    assert cost.power == 1.0
    assert cost.core_seconds(np.array([1000.0]))[0] == pytest.approx(1000 * factor)


def test_outliers_noise_and_unknown_costs():
    rng = np.random.default_rng(0)
    guess = rng.uniform(1, 200, 3 * MOST_LABELS)
    taken = 0.7 * guess**0.9 * rng.lognormal(0, 0.2, len(guess))
    taken[::20] *= 30  # jobs that waited for a disk
    taken[1::50] = np.nan
    cost = learn_cost(guess, taken)
    assert cost.power == pytest.approx(0.9, abs=0.1)
    assert cost.core_seconds(np.array([100.0]))[0] == pytest.approx(0.7 * 100**0.9, rel=0.15)
    assert 1.2 < cost.spread < 60
    assert cost.n_labels == np.isfinite(taken).sum()
    with pytest.raises(InvalidInputError, match="no measured label"):
        learn_cost(np.array([4.0]), np.array([np.nan]))
