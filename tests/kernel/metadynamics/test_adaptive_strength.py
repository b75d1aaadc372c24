"""The strength of a bias follows the forces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.metadynamics.adaptive_strength import AdaptiveStrength


@given(strength=st.floats(0.01, 2.0), force=st.floats(0.01, 50.0), slope=st.floats(1e-3, 1e3))
def test_the_bias_pushes_with_the_wanted_fraction_of_the_forces(strength, force, slope):
    rng = np.random.default_rng(0)
    adaptive = AdaptiveStrength(strength=strength, memory=10, ramp=0)
    forces, gradient = force * rng.normal(size=(2, 20, 3))[0], slope * rng.normal(size=(2, 20, 3))[1]
    tau = adaptive.update(forces, gradient)
    assert np.sqrt(np.mean((tau * gradient) ** 2)) == pytest.approx(strength * np.sqrt(np.mean(forces**2)), rel=1e-9)


def test_it_rises_over_the_ramp_and_stays_below_its_limit():
    adaptive = AdaptiveStrength(strength=1.0, memory=5, ramp=4, most_ev=0.9)
    unit = np.ones((3, 3))
    assert [adaptive.update(unit, unit) for _ in range(6)] == pytest.approx([0.25, 0.5, 0.75, 0.9, 0.9, 0.9])


def test_it_forgets_at_the_pace_of_its_memory():
    adaptive = AdaptiveStrength(strength=1.0, memory=10, ramp=0)
    unit = np.ones((3, 3))
    for _ in range(10):
        adaptive.update(unit, unit)
    for _ in range(10):
        after = adaptive.update(3 * unit, unit)
    # squares: 9 - 8·(1 - 1/10)^10
    assert after == pytest.approx(np.sqrt(9 - 8 * 0.9**10), rel=1e-12)
    for _ in range(200):
        after = adaptive.update(3 * unit, unit)
    assert after == pytest.approx(3.0, rel=1e-6)


def test_a_restored_one_goes_on_exactly():
    rng = np.random.default_rng(1)
    steps = [(rng.normal(size=(4, 3)), rng.normal(size=(4, 3))) for _ in range(12)]
    whole, first = (AdaptiveStrength(strength=0.3, memory=4, ramp=6) for _ in range(2))
    values = [whole.update(*step) for step in steps]
    for step in steps[:5]:
        first.update(*step)
    second = AdaptiveStrength(strength=0.3, memory=4, ramp=6)
    second.restore(first.arrays())
    assert second.tau_ev == values[4]
    assert [second.update(*step) for step in steps[5:]] == values[5:]


def test_without_slope_the_strength_stays():
    adaptive = AdaptiveStrength(strength=0.3)
    assert adaptive.update(np.ones((2, 3)), np.zeros((2, 3))) == 0.0


def test_refusals():
    for keys in ({"strength": 0.0}, {"strength": 1.0, "memory": 0.5}, {"strength": 1.0, "most_ev": 0.0}):
        with pytest.raises(InvalidInputError, match="must be positive"):
            AdaptiveStrength(**keys)
    arrays = AdaptiveStrength(strength=1.0).arrays()
    for broken in ({}, {**arrays, "tau_ev": np.array(np.nan)}, {**arrays, "updates": np.arange(3)}):
        with pytest.raises(InvalidInputError, match="one number that is not negative"):
            AdaptiveStrength(strength=1.0).restore(broken)
