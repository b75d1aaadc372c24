"""Deviations of a committee: laws, and the atom that must not be diluted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import special_ortho_group

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.committee import energy_deviation, force_deviation, largest_per_frame, stress_deviation


@given(seed=st.integers(0, 10**6), members=st.integers(2, 6))
@settings(max_examples=30)
def test_force_deviation_is_that_of_vectors(seed: int, members: int) -> None:
    """Its square is the sum of the components' variances; rotation, order and a common force leave it alone."""
    rng = np.random.default_rng(seed)
    forces = rng.normal(size=(members, 20, 3))
    found = force_deviation(forces)
    np.testing.assert_allclose(found**2, forces.var(axis=0, ddof=1).sum(axis=1), rtol=1e-10)
    rotation = special_ortho_group.rvs(3, random_state=seed)
    np.testing.assert_allclose(force_deviation(forces @ rotation.T), found, rtol=1e-10)
    np.testing.assert_allclose(force_deviation(forces[rng.permutation(members)] + rng.normal(size=3)), found, rtol=1e-9)
    order = rng.permutation(20)
    np.testing.assert_allclose(force_deviation(forces[:, order]), found[order], rtol=1e-10)


def test_deviation_of_equal_members_is_zero_and_of_missing_forces_nan() -> None:
    forces = np.tile(np.random.default_rng(0).normal(size=(1, 5, 3)), (4, 1, 1))
    np.testing.assert_allclose(force_deviation(forces), 0.0, atol=1e-15)
    forces[2, 3] = np.nan
    np.testing.assert_array_equal(np.isnan(force_deviation(forces)), [False, False, False, True, False])


def test_one_atom_far_off_in_one_member_stands_out_in_any_system() -> None:
    """5 eV/Å in one of four members: the largest û crosses the stop threshold whatever the number of atoms."""
    rng = np.random.default_rng(1)
    noise = 0.05  # eV/Å, disagreement and error of a decent potential
    truth = np.zeros((4000, 3))
    members = truth + noise * rng.normal(size=(4, 4000, 3))
    calibration = calibrate(force_deviation(members), members[0] - truth, np.full(4000, 29))
    stop = 5 * calibration.force_rmse_validation
    for n in (50, 500, 5000, 100_000):
        forces = rng.normal(size=(n, 3)) + noise * rng.normal(size=(4, n, 3))
        numbers = np.full(n, 29)
        calm = calibration.bound(force_deviation(forces), numbers)
        assert largest_per_frame(calm, np.array([n]))[0] < stop, n
        atom = int(rng.integers(n))
        forces[2, atom] += 5.0 * np.array([0.6, 0.0, 0.8])
        bound = calibration.bound(force_deviation(forces), numbers)
        assert largest_per_frame(bound, np.array([n]))[0] > stop, n
        assert np.flatnonzero(bound > stop).tolist() == [atom], n


def test_energy_and_stress_deviation() -> None:
    rng = np.random.default_rng(2)
    energy, natoms = rng.normal(size=(3, 6)), np.array([1, 2, 4, 8, 16, 32])
    np.testing.assert_allclose(energy_deviation(energy, natoms), np.std(energy, axis=0, ddof=1) / natoms)
    stress = rng.normal(size=(3, 6, 3, 3))
    expected = np.sqrt(stress.var(axis=0, ddof=1).sum(axis=(1, 2)))
    np.testing.assert_allclose(stress_deviation(stress), expected)
    rotation = special_ortho_group.rvs(3, random_state=0)
    np.testing.assert_allclose(stress_deviation(rotation @ stress @ rotation.T), expected)


def test_largest_per_frame() -> None:
    values = np.array([0.1, 9.0, 0.2, 0.3, np.nan, 5.0])
    np.testing.assert_array_equal(largest_per_frame(values, np.array([2, 2, 2])), [9.0, 0.3, np.nan])
    assert largest_per_frame(values[:0], np.zeros(0, dtype=int)).shape == (0,)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"shape \(1, 5, 3\), expected \(M >= 2, n, 3\)"):
        force_deviation(np.zeros((1, 5, 3)))
    with pytest.raises(InvalidInputError, match="forces of a committee"):
        force_deviation(np.zeros((5, 3)))
    with pytest.raises(InvalidInputError, match="numbers of atoms"):
        energy_deviation(np.zeros((2, 3)), np.ones(2))
    with pytest.raises(InvalidInputError, match="stresses of a committee"):
        stress_deviation(np.zeros((2, 3, 6)))
    with pytest.raises(InvalidInputError, match="5 values for frames of 4 atoms"):
        largest_per_frame(np.zeros(5), np.array([4]))
