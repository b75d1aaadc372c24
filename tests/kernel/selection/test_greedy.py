"""Greedy choices: pivoted Cholesky order, groups, weights, budgets, known environments, duplicates, storage."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.selection.clusters import largest_cluster
from aiida_mlip.kernel.selection.duplicates import duplicates
from aiida_mlip.kernel.selection.greedy import farthest_points, greedy_maxdet, known_precision
from aiida_mlip.kernel.selection.pool import Budget, Candidates, Projected, Subset

METHODS = [greedy_maxdet, farthest_points, largest_cluster]


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@given(st.integers(0, 1000), st.sampled_from([1, 30, 20_000]))
@settings(max_examples=15)
def test_maxdet_is_pivoted_cholesky(seed, block_rows):
    pool, precision = normal(80, 6, seed), known_precision(normal(9, 6, seed + 1))
    kernel = np.eye(80) + pool @ np.linalg.inv(precision) @ pool.T
    _, pivots, _, info = scipy.linalg.lapack.dpstrf(kernel, lower=1)
    assert info == 0
    chosen = greedy_maxdet(Candidates(pool), Budget(40), precision=precision, block_rows=block_rows)
    np.testing.assert_array_equal(chosen.rows, pivots[:40] - 1)


def test_lazy_scores_choose_what_exhaustive_ones_would():
    """Far more rows than are refreshed at once, groups and weights: the same as scoring everything anew."""
    rng = np.random.default_rng(1)
    pool, groups, weights = normal(9000, 5, 4), rng.integers(0, 900, 9000), rng.uniform(0, 3, 9000)
    precision, expected = known_precision(pool[:4]), []
    covariance = np.linalg.inv(precision)
    open_rows = np.ones(9000, dtype=bool)
    for _ in range(12):
        scores = np.where(open_rows, weights * np.einsum("ni,ij,nj->n", pool, covariance, pool), -1.0)
        expected.append(groups[scores.argmax()])
        mine = pool[groups == expected[-1]]
        covariance = np.linalg.inv(np.linalg.inv(covariance) + mine.T @ mine)
        open_rows &= groups != expected[-1]
    found = greedy_maxdet(Candidates(pool, groups=groups, weights=weights), Budget(12), precision=precision)
    np.testing.assert_array_equal(found.groups, expected)


def test_maxdet_downdates_with_all_environments_of_a_group():
    """The second environment of the first group is the next best by itself: labelled already, it is not wanted."""
    pool = np.array([[10.0, 0, 0], [0, 9.0, 0], [0, 8.5, 0], [0, 0, 1.0]])
    by_row = greedy_maxdet(Candidates(pool), Budget(3), precision=np.eye(3))
    assert by_row.rows.tolist() == [0, 1, 2] or by_row.rows.tolist()[:2] == [0, 1]
    grouped = greedy_maxdet(Candidates(pool, groups=np.array([0, 0, 1, 2])), Budget(2), precision=np.eye(3) * 1e-3)
    assert grouped.rows.tolist() == [0, 3]


def test_what_the_training_set_knows_is_not_chosen():
    pool = np.array([[5.0, 0.0], [0.0, 1.0]])
    known = np.array([[6.0, 0.0]] * 3)
    assert greedy_maxdet(Candidates(pool), Budget(1)).rows.tolist() == [0]
    assert greedy_maxdet(Candidates(pool), Budget(1), precision=known_precision(known)).rows.tolist() == [1]
    assert farthest_points(Candidates(pool), Budget(1), known=np.array([[5.0, 0.1]])).rows.tolist() == [1]
    assert largest_cluster(Candidates(pool), Budget(1), known=np.array([[5.0, 0.1]])).rows.tolist() == [1]


def test_farthest_points_follow_the_definition():
    pool = normal(300, 3)
    found = farthest_points(Candidates(pool), Budget(20)).rows
    assert found[0] == ((pool - pool.mean(axis=0)) ** 2).sum(axis=1).argmax()
    for k in range(1, 20):
        nearest = ((pool[:, None] - pool[found[:k]]) ** 2).sum(axis=2).min(axis=1)
        assert found[k] == nearest.argmax()


def test_largest_cluster_follows_the_definition():
    pool = np.concatenate([normal(200, 3), 0.2 * normal(100, 3, 1) + 6.0])
    found = largest_cluster(Candidates(pool), Budget(15)).rows
    for k in range(1, 15):
        squares = ((pool[:, None] - pool[found[:k]]) ** 2).sum(axis=2)
        nearest = squares.argmin(axis=1)
        largest = np.bincount(nearest, weights=squares.min(axis=1), minlength=k).argmax()
        assert found[k] == np.where(nearest == largest, squares.min(axis=1), -1).argmax()


@pytest.mark.parametrize("method", METHODS)
def test_no_environment_twice(method):
    pool = np.repeat(normal(40, 6), 10, axis=0)
    np.random.default_rng(2).shuffle(pool)
    # noisy labels are worth repeating to MaxDet: the duplicates go before it
    weights = 1.0 - duplicates(pool, np.full(400, 29)) if method is greedy_maxdet else None
    chosen = pool[method(Candidates(pool, weights=weights), Budget(20)).rows]
    assert len(np.unique(chosen, axis=0)) == 20


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_and_independent_of_the_storage(method, tmp_path):
    pool = normal(3000, 6).astype(np.float32)
    np.save(tmp_path / "pool.npy", pool)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    first = method(Candidates(pool), Budget(30))
    for other in (pool, mapped, Subset(pool, np.arange(3000)), Projected(pool, np.eye(6))):
        np.testing.assert_array_equal(first.rows, method(Candidates(other), Budget(30), block_rows=701).rows)


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_holds_and_weights_count_per_cost(method):
    pool, costs = normal(400, 4), np.random.default_rng(5).uniform(0.5, 4.0, 40)
    groups = np.arange(400) // 10
    weights = np.where(groups == 7, 0.0, 1.0)
    chosen = method(Candidates(pool, groups=groups, weights=weights, costs=costs), Budget(40, cost=20.0))
    assert 7 not in chosen.groups
    assert len(set(chosen.groups.tolist())) == len(chosen) > 3
    assert chosen.cost == pytest.approx(costs[chosen.groups].sum())
    assert 20.0 - min(set(costs) - set(costs[chosen.groups]) - {costs[7]}) < chosen.cost <= 20.0
    dear = costs.copy()
    dear[chosen.groups[0]] *= 1e6
    assert chosen.groups[0] not in method(Candidates(pool, groups, weights, dear), Budget(5)).groups


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_chosen_when_there_is_room(method):
    pool = normal(12, 4)
    chosen = method(Candidates(pool, groups=np.arange(12) // 3), Budget(50))
    assert sorted(chosen.groups.tolist()) == [0, 1, 2, 3]
    none = method(Candidates(pool, weights=np.zeros(12)), Budget(50))
    assert len(none) == 0
    assert none.cost == 0.0


def test_what_does_not_fit_is_refused():
    pool = normal(5, 2)
    cases = [
        (lambda: Candidates(pool[:0]), "n >= 1"),
        (lambda: Candidates(pool, groups=np.array([0, 1])), "groups: expected 5"),
        (lambda: Candidates(pool, weights=np.full(5, np.nan)), "weights: must be finite and at least 0"),
        (lambda: Candidates(pool, costs=np.zeros(5)), "costs: must be finite and above 0"),
        (lambda: Budget(0), "must be positive, got 0 groups"),
        (lambda: greedy_maxdet(Candidates(pool), Budget(1), precision=np.eye(3)), "expected shape"),
        (lambda: greedy_maxdet(Candidates(pool), Budget(1), precision=-np.eye(2)), "positive definite"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()
    broken = np.where(np.arange(10).reshape(5, 2) == 7, np.nan, pool)
    for method in METHODS:
        with pytest.raises(InvalidInputError, match="row 3"):
            method(Candidates(broken), Budget(2), **({"precision": np.eye(2)} if method is greedy_maxdet else {}))


def test_bounds_never_rise():
    """What makes the lazy choice exact."""
    from aiida_mlip.kernel.selection.greedy import PosteriorVariance, SquaredDistance

    pool = normal(100, 4)
    for criterion in (PosteriorVariance(np.eye(4)), SquaredDistance(pool[:1], pool[0])):
        scores = [criterion.score(pool)]
        for k in range(1, 6):
            criterion.add(pool[10 * k : 10 * k + 3])
            scores.append(criterion.score(pool))
        assert all((b <= a + 1e-12).all() for a, b in itertools.pairwise(scores))
