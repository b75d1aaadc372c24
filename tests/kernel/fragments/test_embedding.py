"""The decay of the embedding error is found where there is one, and the smallest good buffer is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fragments.embedding import embedding_error


def forces(buffers, amplitude, length):
    """Core forces that approach their limit exponentially."""
    rng = np.random.default_rng(0)
    limit = rng.normal(size=(2, 20, 3))
    direction = rng.normal(size=limit.shape)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return limit + amplitude * np.exp(-np.asarray(buffers) / length)[:, None, None, None] * direction


@given(length=st.floats(0.5, 5), amplitude=st.floats(0.1, 10))
def test_an_exponential_is_recovered(length, amplitude):
    buffers = [1.0, 2.0, 3.0, 4.5]
    found = embedding_error(np.array(buffers), forces(buffers, amplitude, length))
    assert found.decay_length == pytest.approx(length, rel=1e-3)
    assert found.amplitude == pytest.approx(amplitude, rel=1e-3)
    assert found.predicted(3.0) == pytest.approx(amplitude * np.exp(-3 / length), rel=2e-3)


def test_the_smallest_good_buffer_is_chosen():
    buffers = np.array([1.0, 2.0, 3.0, 6.0])
    core = forces(buffers, 5.0, 1.0)  # errors 1.83, 0.66, 0.24 of a rms force of about 1.7
    strict = embedding_error(buffers, core)
    assert strict.chosen == 6.0
    assert strict.measured < strict.tolerance
    assert embedding_error(buffers, core, validation_rmse=0.2).chosen == 3.0
    assert embedding_error(buffers, core, validation_rmse=2.0).chosen == 1.0


def test_an_error_that_does_not_fall_is_not_called_good():
    core = np.random.default_rng(1).normal(size=(4, 2, 20, 3))
    found = embedding_error(np.array([1.0, 2.0, 3.0, 4.0]), core)
    assert found.chosen is None
    assert found.measured > found.tolerance


def test_missing_forces_are_left_out():
    buffers = np.array([1.0, 2.0, 3.0, 4.5])
    core = forces(buffers, 2.0, 1.0)
    some = core.copy()
    some[:, 0, 3] = np.nan
    assert embedding_error(buffers, some).decay_length == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("buffers", "shape", "message"),
    [
        ([1.0, 2.0], (2, 1, 4, 3), "at least 3"),
        ([1.0, 3.0, 2.0], (3, 1, 4, 3), "must grow"),
        ([1.0, 2.0, 3.0], (2, 1, 4, 3), r"expected \(3, f, a, 3\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(buffers, shape, message):
    with pytest.raises(InvalidInputError, match=message):
        embedding_error(np.array(buffers), np.ones(shape))
