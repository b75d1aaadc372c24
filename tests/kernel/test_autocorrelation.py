"""Laws of the integrated autocorrelation time: known processes, invariances, decorrelated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.autocorrelation import autocorrelation, decorrelated_rows, integrated_time


def ar1(phi: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """x_t = φ x_{t-1} + ε_t, stationary from the first value: τ = (1 + φ) / (2 (1 - φ)) exactly."""
    noise = rng.normal(size=shape)
    noise[0] /= np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise, axis=0)


@pytest.mark.parametrize("phi", [0.3, 0.8, 0.95])
def test_ar1_has_its_exact_time_within_the_stated_error(phi, rng):
    exact = (1 + phi) / (2 * (1 - phi))
    found = integrated_time(ar1(phi, (200_000,), rng))
    assert found.trusted
    # 4 standard errors, and the bias of the window, e^-5
    assert abs(found.tau - exact) < 4 * found.error + 0.01 * exact
    assert abs(found.decay - (-1 / np.log(phi))) < 0.1 / (1 - phi) + 1


def test_the_stated_error_is_the_spread_over_independent_series(rng):
    results = [integrated_time(ar1(0.8, (5_000,), rng)) for _ in range(200)]
    spread = np.std([r.tau for r in results])
    assert spread == pytest.approx(np.mean([r.error for r in results]), rel=0.25)


def test_white_noise_keeps_all_rows(rng):
    found = integrated_time(rng.normal(size=100_000))
    assert found.tau == pytest.approx(0.5, abs=0.02)
    assert found.stride == 1
    assert len(decorrelated_rows(1000, found.stride)) == 1000


def test_rows_one_stride_apart_are_uncorrelated(rng):
    series = ar1(0.9, (400_000,), rng)
    stride = integrated_time(series).stride
    kept = series[decorrelated_rows(len(series), stride)]
    assert autocorrelation(kept)[1] < 0.2  # e^-2 for 2τ apart
    assert integrated_time(kept).tau < 0.8


def test_an_oscillation_is_not_mistaken_for_noise():
    # its integral vanishes, but neighbouring values are nearly equal
    series = np.cos(2 * np.pi * np.arange(2000) / 40.0)
    assert integrated_time(series).stride >= 7  # cos(2π·7.6/40) = 1/e


def test_vectors_are_invariant_under_rotation_and_permutation(rng):
    series = ar1(0.7, (3000, 4, 3), rng)
    rotated = series[:, rng.permutation(4)] @ Rotation.random(random_state=1).as_matrix().T
    np.testing.assert_allclose(autocorrelation(rotated), autocorrelation(series), atol=1e-10)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_unit_and_origin_do_not_matter(scale, shift, seed):
    series = np.random.default_rng(seed).normal(size=300)
    np.testing.assert_allclose(autocorrelation(scale * (series + shift)), autocorrelation(series), atol=1e-6)


def test_agrees_with_the_plain_sum(rng):
    x = rng.normal(size=(50, 3))
    d = x - x.mean(axis=0)
    plain = np.array([(d[: 50 - t] * d[t:]).sum() for t in range(50)])
    np.testing.assert_allclose(autocorrelation(x), plain / plain[0], atol=1e-12)


def test_a_series_that_never_changes_counts_once():
    found = integrated_time(np.full(30, -7.1))
    assert not found.trusted
    assert len(decorrelated_rows(30, found.stride)) == 1


@given(n=st.integers(1, 500), stride=st.integers(1, 50), start=st.integers(0, 100), most=st.integers(1, 20))
def test_kept_rows_are_in_range_far_enough_apart_and_not_too_many(n, stride, start, most):
    rows = decorrelated_rows(n, stride, start=start, most=most)
    assert len(rows) <= most
    assert (np.diff(rows) >= stride).all()
    assert ((rows >= start) & (rows < n)).all()
    assert len(rows) == min(most, max(0, -(-(n - start) // stride)))


@pytest.mark.parametrize("bad", [np.zeros(1), np.array([1.0, np.nan])])
def test_unusable_series_are_refused(bad):
    with pytest.raises(InvalidInputError):
        autocorrelation(bad)


@pytest.mark.parametrize(("stride", "most"), [(0, None), (1, 0)])
def test_unusable_strides_are_refused(stride, most):
    with pytest.raises(InvalidInputError):
        decorrelated_rows(10, stride, most=most)
