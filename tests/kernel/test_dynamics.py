"""Laws of the small pieces of molecular dynamics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.dynamics import drift, kinetic_energy, maxwell_boltzmann, temperature, verlet_velocity
from aiida_mlip.kernel.units import AMU_ANG2_PER_FS2, BOLTZMANN


@given(n=st.integers(2, 30), kelvin=st.floats(0.0, 5000.0), seed=st.integers(0, 2**32))
def test_velocities_have_the_temperature_and_no_momentum(n, kelvin, seed):
    rng = np.random.default_rng(seed)
    masses = rng.uniform(1.0, 200.0, n)
    velocities = maxwell_boltzmann(masses, kelvin, rng)
    np.testing.assert_allclose((masses[:, None] * velocities).sum(axis=0), 0.0, atol=1e-9)
    assert temperature(kinetic_energy(masses, velocities), n) == pytest.approx(kelvin, rel=1e-9, abs=1e-12)


def test_every_component_is_gaussian_with_the_width_of_its_mass(rng):
    masses = np.array([1.0, 16.0] * 20_000)
    velocities = maxwell_boltzmann(masses, 300.0, rng)
    for mass in (1.0, 16.0):
        sample = velocities[masses == mass].ravel()
        sigma = np.sqrt(BOLTZMANN * 300.0 / (mass * AMU_ANG2_PER_FS2))
        assert sample.std() == pytest.approx(sigma, rel=0.02)
        assert (sample**4).mean() / sample.var() ** 2 == pytest.approx(3.0, abs=0.15)


def test_kinetic_energy_of_one_amu_at_one_angstrom_per_femtosecond():
    # CODATA: 1 amu (Å/fs)² = 103.642696 eV
    assert kinetic_energy(np.array([2.0]), np.array([[1.0, 0.0, 0.0]])) == pytest.approx(103.642696, abs=1e-5)


@pytest.mark.parametrize(
    ("masses", "kelvin", "word"), [([28.0], 300, "2 atoms"), ([28.0, 0.0], 300, "positive"), ([1.0, 1.0], -1, "-1 K")]
)
def test_impossible_velocities_are_refused(masses, kelvin, word, rng):
    with pytest.raises(InvalidInputError, match=word):
        maxwell_boltzmann(np.array(masses), kelvin, rng)


def test_a_verlet_run_taken_up_again_anywhere_is_the_uninterrupted_one(rng):
    masses, h = np.array([10.0, 30.0]), 1.3

    def force(x):
        stretch = x[1] - x[0] - np.array([2.0, 0.0, 0.0])
        return np.array([stretch, -stretch]) * 8.0 - 3.0 * np.sum(stretch**2) * np.array([-stretch, stretch])

    def run(x, v, steps):
        path = [x]
        acceleration = force(x) / (masses[:, None] * AMU_ANG2_PER_FS2)
        path.append(x + h * v + 0.5 * h * h * acceleration)
        for _ in range(steps - 1):
            acceleration = force(path[-1]) / (masses[:, None] * AMU_ANG2_PER_FS2)
            path.append(2 * path[-1] - path[-2] + h * h * acceleration)
        return np.array(path)

    start = np.array([[0.0, 0.0, 0.0], [2.2, 0.1, -0.1]])
    whole = run(start, maxwell_boltzmann(masses, 500.0, rng), 60)
    for k in (1, 17, 40):
        velocity = verlet_velocity(whole[k - 1], whole[k], force(whole[k]), masses, h)
        np.testing.assert_allclose(run(whole[k], velocity, 60 - k), whole[k:], atol=1e-10)


@given(slope=st.floats(-10, 10), offset=st.floats(-1e4, 1e4))
def test_drift_is_the_slope_and_unknown_values_do_not_count(slope, offset):
    times = np.arange(10.0) * 0.3
    values = offset + slope * times
    values[4] = np.nan
    assert drift(times, values) == pytest.approx(slope, abs=1e-8)


def test_drift_of_two_values_is_unknown():
    assert np.isnan(drift(np.arange(2.0), np.arange(2.0)))
