"""MaxVol: volume, interpolation, duplicates, rank, and independence of how the pool is stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.selection.maxvol import VolumeBasis, extrapolation_grade, maxvol, whitening_matrix


def log_volume(rows: np.ndarray) -> float:
    return float(np.linalg.slogdet(rows)[1])


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_every_row_interpolates_and_the_volume_beats_random_subsets():
    pool = normal(2000, 20)
    active = maxvol(pool)
    assert np.abs(pool @ np.linalg.inv(pool[active.rows])).max() <= 1.01
    assert active.largest == pytest.approx(np.abs(pool @ active.inverse).max(), abs=1e-10)
    assert active.log_volume == pytest.approx(log_volume(pool[active.rows]), abs=1e-9)
    rng = np.random.default_rng(1)
    best = max(log_volume(pool[rng.choice(2000, 20, replace=False)]) for _ in range(1000))
    assert active.log_volume >= best


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([1, 7, 50, 1000]))
@settings(max_examples=30)
def test_the_law_holds_for_any_block_size(seed, d, block_rows):
    pool = normal(200, d, seed)
    active = maxvol(pool, block_rows=block_rows)
    assert len(set(active.rows.tolist())) == d
    assert np.abs(pool @ np.linalg.inv(pool[active.rows])).max() <= 1.01 + 1e-9


def test_swaps_grow_the_volume_of_the_start():
    pool = normal(5000, 20, seed=3)
    active, start = maxvol(pool), maxvol(pool, tolerance=1e6)
    assert start.swaps == 0
    assert start.largest > 1.01
    assert active.swaps >= 2
    assert active.log_volume > start.log_volume + np.log(1.01)


def test_rank_one_updates_follow_the_inverse():
    pool = normal(2000, 20)
    basis = VolumeBasis(np.arange(20), pool[:20])
    rng = np.random.default_rng(2)
    while basis.swaps < 200:  # not only steps uphill: the path must not depend on them
        row = int(rng.integers(2000))
        place = int(np.abs(pool[row] @ basis.inverse).argmax())
        if row not in basis.rows:
            basis.swap(place, row, pool[row])
    np.testing.assert_array_equal(basis.values, pool[basis.rows])
    np.testing.assert_allclose(basis.inverse, np.linalg.inv(basis.values), rtol=0, atol=1e-8)


def test_a_row_that_is_there_ten_times_is_taken_once():
    pool = np.repeat(normal(300, 20), 10, axis=0)
    np.random.default_rng(3).shuffle(pool)
    chosen = pool[maxvol(pool, block_rows=500).rows]
    assert len(np.unique(chosen, axis=0)) == 20


def test_dependent_columns_are_left_out():
    pool = normal(500, 6)
    wide = np.concatenate([pool, pool[:, :3] - pool[:, 3:], np.zeros((500, 1))], axis=1)
    assert whitening_matrix(wide).shape == (10, 6)
    active = maxvol(wide)
    assert active.rows.shape == (6,)
    assert active.inverse.shape == (10, 6)
    assert extrapolation_grade(wide, active.inverse).max() <= 1.01
    assert set(active.rows) == set(maxvol(pool).rows)


def test_the_grade_grows_outside_the_pool_and_knows_no_units():
    pool = normal(500, 5)
    active = maxvol(pool)
    assert extrapolation_grade(3.0 * pool[active.rows], active.inverse) == pytest.approx(np.full(5, 3.0))
    mixing = normal(5, 5, 7)
    mixed = maxvol(pool @ mixing)
    assert extrapolation_grade(pool @ mixing, mixed.inverse).max() <= 1.01


def test_single_precision_and_repeated_calls_give_the_same_rows():
    pool = normal(3000, 12).astype(np.float32)
    first, second = maxvol(pool, block_rows=700), maxvol(pool, block_rows=700)
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.rows, maxvol(pool.astype(np.float64), block_rows=700).rows)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (np.zeros((0, 3)), "there are no rows"),
        (np.zeros((5, 3)), "all rows are zero"),
        (np.where(np.arange(15).reshape(5, 3) == 7, np.nan, 1.0), "not all numbers are finite in rows 0 to 4"),
    ],
)
def test_pools_that_span_nothing_are_refused(pool, message):
    with pytest.raises(InvalidInputError, match=message):
        maxvol(pool)


def test_a_search_that_cannot_end_says_so():
    with pytest.raises(InvalidInputError, match="tolerance: must be above 1, got 1"):
        maxvol(normal(10, 2), tolerance=1.0)
    with pytest.raises(InvalidInputError, match="after 0 swaps"):
        maxvol(normal(5000, 20, seed=3), max_swaps=0)
    with pytest.raises(InvalidInputError, match="linearly dependent"):
        VolumeBasis(np.arange(2), np.ones((2, 2)))
