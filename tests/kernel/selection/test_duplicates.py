"""Duplicates of environments: exact ones always, near ones nearly always, distant ones never."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.selection.duplicates import duplicates, pool_whitening

COPPER = 29


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def kinds(n: int) -> np.ndarray:
    return np.full(n, COPPER, dtype=np.uint8)


@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([1, 37, 20_000]))
@settings(max_examples=20)
def test_of_equal_environments_the_first_stays(seed, d, block_rows):
    pool = normal(40, d, seed)
    order = np.random.default_rng(seed).integers(0, 40, 300)
    found = duplicates(pool[order], kinds(300), edge=1e-6, block_rows=block_rows)
    np.testing.assert_array_equal(np.flatnonzero(~found), np.sort(np.unique(order, return_index=True)[1]))


def test_near_ones_are_found_and_distant_ones_are_not():
    pool = normal(2000, 8)
    scale = np.geomspace(1.0, 1e-3, 8)
    white = pool_whitening(pool, components=8)
    near = pool + normal(2000, 8, 1) * 1e-4
    both = np.concatenate([pool, near]) * scale  # units do not matter
    found = duplicates(both, kinds(4000), edge=0.05)
    assert found[2000:].mean() > 0.99
    kept, dropped = white(both[~found] / scale), white(both[found] / scale)
    distances = np.sqrt(((dropped[:, None] - kept) ** 2).sum(axis=2).min(axis=1))
    assert distances.max() <= 2 * 0.05 * np.sqrt(8)


def test_a_slow_trajectory_does_not_collapse_into_its_first_frame():
    """Each environment is near the one before it, the last far from the first."""
    path = np.linspace(0, 10, 5001)[:, None] * np.ones(3) + 1e-9 * normal(5001, 3)
    kept = path[~duplicates(path, kinds(5001), edge=0.1, components=1)]
    white = pool_whitening(path, components=1)
    assert np.abs(np.diff(white(kept), axis=0)).max() < 0.2
    assert 15 < len(kept) < 60


def test_elements_are_kept_apart_and_the_reference_counts():
    pool = np.repeat(normal(50, 4), 2, axis=0)
    numbers = np.tile([29, 79], 50).astype(np.uint8)
    assert not duplicates(pool, numbers).any()
    seen = duplicates(pool, numbers, reference=(pool[:20], numbers[:20]))
    assert seen[:20].all()
    assert not seen[20:].any()
    other = duplicates(pool, numbers, reference=(pool[:20], np.full(20, 6, dtype=np.uint8)))
    assert not other.any()


def test_constant_and_dependent_features_are_ignored():
    pool = np.concatenate([normal(100, 3), np.full((100, 1), 7.0)], axis=1)
    pool = np.concatenate([pool, pool[:, :1] * 2], axis=1)
    assert pool_whitening(pool).n_dim == 3
    assert np.cov(pool_whitening(pool)(pool).T, bias=True) == pytest.approx(np.eye(3), abs=1e-9)
    assert duplicates(np.full((6, 2), 3.0), kinds(6)).tolist() == [False, *[True] * 5]


def test_bad_input_is_refused():
    with pytest.raises(InvalidInputError, match="edge: must be positive"):
        duplicates(normal(3, 2), kinds(3), edge=0.0)
    with pytest.raises(InvalidInputError, match="numbers: expected shape"):
        duplicates(normal(3, 2), kinds(4))
    with pytest.raises(InvalidInputError, match="there are no rows"):
        duplicates(np.zeros((0, 2)), kinds(0))
    with pytest.raises(InvalidInputError, match="not all numbers are finite"):
        duplicates(np.full((3, 2), np.nan), kinds(3))
