"""Greedy choice with a score that only falls as more is chosen: evaluated where it can still win, nowhere else.

Posterior variances and distances to what is already chosen never grow. An old score is therefore an upper bound, and
the best row is found by refreshing only the rows with the largest bounds (doi:10.1007/BFb0006528): the same choice as
by scoring the whole pool after every pick, at the cost of a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import scipy.linalg
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.selection.pool import BLOCK_ROWS, Budget, Candidates, RowSource, Selection, blocks, pool_mean

#: Rows refreshed at first; four times as many each time that does not decide.
_REFRESH: Final[int] = 1024
#: Ridge on the precision of what is known, relative to its mean eigenvalue.
RIDGE: Final[float] = 1e-8


class Criterion(Protocol):
    """Score of rows, given what was chosen so far."""

    def score(self, values: np.ndarray) -> np.ndarray:
        """(m,) current scores of (m, d) rows; never larger than before."""

    def add(self, values: np.ndarray) -> None:
        """Rows (m, d) that will be labelled."""


class PosteriorVariance:
    """z Σ zᵀ of a Bayesian linear readout with unit noise, Σ⁻¹ = P + Σ_labelled z zᵀ.

    Taking the largest is greedy maximisation of det(1 + Z P⁻¹ Zᵀ): pivoted Cholesky of that matrix.

    :param precision: (d, d) P: what is known before, see :func:`known_precision`.
    :raises InvalidInputError: a matrix that is not positive definite.
    """

    def __init__(self, precision: Float[np.ndarray, "d d"]) -> None:
        self._precision = np.array(precision, dtype=np.float64)
        self._factorise()

    def _factorise(self) -> None:
        try:
            lower = np.linalg.cholesky(self._precision)
        except np.linalg.LinAlgError as error:
            raise InvalidInputError("precision: not a positive definite matrix") from error
        self._root = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True).T

    def score(self, values: np.ndarray) -> np.ndarray:
        """(m,) posterior variances, in units of the noise."""
        return np.asarray(((values @ self._root) ** 2).sum(axis=1))

    def add(self, values: np.ndarray) -> None:
        """Downdate the covariance with rows that will be labelled."""
        self._precision += values.T @ values
        self._factorise()


class SquaredDistance:
    """Smallest squared distance to what is known or chosen; before there is anything, to the mean of the pool.

    :param known: (r, d) rows that are labelled already.
    :param start: (d,) stands for them when there are none, until the first is chosen.
    """

    def __init__(self, known: Float[np.ndarray, "r d"], start: Float[np.ndarray, "d"]) -> None:
        self._centres = np.array(known if len(known) else start[None], dtype=np.float64)
        self._placeholder = len(known) == 0

    def score(self, values: np.ndarray) -> np.ndarray:
        """(m,) squared distances to the nearest centre."""
        best = np.full(len(values), np.inf)
        squares = (values**2).sum(axis=1)
        for first in range(0, len(self._centres), 1000):
            part = self._centres[first : first + 1000]
            found = (squares[:, None] - 2.0 * values @ part.T + (part**2).sum(axis=1)).min(axis=1)
            np.minimum(best, found, out=best)
        return np.maximum(best, 0.0)

    def add(self, values: np.ndarray) -> None:
        """New centres."""
        self._centres = values.copy() if self._placeholder else np.concatenate([self._centres, values])
        self._placeholder = False


def greedy_maxdet(
    candidates: Candidates,
    budget: Budget,
    *,
    precision: Float[np.ndarray, "d d"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Selection:
    """Groups whose environments a linear readout knows least about, one after another.

    The environment with the largest weight / cost × posterior variance is chosen; its whole group counts as labelled:
    the covariance is downdated with **all** its environments, so that no two groups are taken for the same reason.

    :param precision: (d, d) of the training set, see :func:`known_precision`; None: nothing is known but the scale.
    :returns: scores are weight / cost × variance.
    :raises InvalidInputError: not finite numbers, or a precision that does not fit.
    """
    d = candidates.pool.shape[1]
    if precision is None:
        pool_mean(candidates.pool, block_rows)  # names a row that is not finite
        trace = sum(float((block**2).sum()) for _, block in blocks(candidates.pool, block_rows))
        precision = np.eye(d) * max(trace / candidates.pool.shape[0] / d, np.finfo(float).tiny)
    if precision.shape != (d, d):
        raise InvalidInputError(f"precision: expected shape {(d, d)}, got {precision.shape}")
    return choose(candidates, budget, PosteriorVariance(precision), block_rows=block_rows)


def farthest_points(
    candidates: Candidates,
    budget: Budget,
    *,
    known: Float[np.ndarray, "r d"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Selection:
    """Farthest point sampling: each next environment is the one farthest from all that are labelled.

    The distance is Euclidean: give whitened features. Without ``known`` the first is the one farthest from the mean.

    :param known: (r, d) environments that are labelled already; the time grows with their number.
    :returns: scores are weight / cost × squared distance.
    """
    if known is None or len(known) == 0:
        mean = pool_mean(candidates.pool, block_rows)
        criterion = SquaredDistance(np.zeros((0, len(mean))), mean)
        # farther from the mean than from the first pick is possible: the bound of the start would not hold
        first = choose(candidates, Budget(1, budget.cost), criterion, block_rows=block_rows)
        rest = Budget(budget.groups - 1, budget.cost - first.cost) if len(first) and budget.groups > 1 else None
        if rest is None or not rest.cost > 0:
            return first
        more = choose(candidates, rest, criterion, taken=first.groups, block_rows=block_rows)
        return _join(first, more)
    return choose(candidates, budget, SquaredDistance(known, known[0]), block_rows=block_rows)


def known_precision(features: RowSource, *, ridge: float = RIDGE, block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """(d, d) precision Z Zᵀ + ridge · tr/d of a linear readout that was fitted to these environments."""
    d = features.shape[1]
    gram = sum((block.T @ block for _, block in blocks(features, block_rows)), np.zeros((d, d)))
    return np.asarray(gram + np.eye(d) * max(ridge * float(np.trace(gram)) / d, np.finfo(float).tiny))


def choose(
    candidates: Candidates,
    budget: Budget,
    criterion: Criterion,
    *,
    taken: np.ndarray | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Selection:
    """Greedy choice by any criterion whose scores do not grow.

    Of equal scores the row with the smallest number wins. A row whose score is zero is not chosen.

    :param taken: groups that are out of the question.
    :raises InvalidInputError: scores that are not finite.
    """
    weights = candidates.row_weights()
    bounds = _score_all(candidates.pool, criterion, weights, block_rows)
    left = budget.cost
    picks: list[tuple[int, int, float]] = []
    closed = np.zeros(candidates.n_groups, dtype=bool)
    for group in [] if taken is None else taken:
        closed[group] = True
        bounds[candidates.rows_of(int(group))] = -1.0
    while len(picks) < budget.groups:
        _close_unaffordable(candidates, bounds, closed, left)
        row, score = _best(candidates.pool, bounds, weights, criterion)
        if row < 0:
            break
        group = candidates.group_of(row)
        members = candidates.rows_of(group)
        criterion.add(np.asarray(candidates.pool[members], dtype=np.float64))
        bounds[members] = -1.0
        closed[group] = True
        left -= candidates.cost_of(group)
        picks.append((group, row, score))
    return selection_of(candidates, picks)


def selection_of(candidates: Candidates, picks: Sequence[tuple[int, int, float]]) -> Selection:
    """Selection of (group, row, score) in order."""
    return Selection(
        groups=np.array([group for group, _, _ in picks], dtype=np.int64),
        rows=np.array([row for _, row, _ in picks], dtype=np.int64),
        scores=np.array([score for _, _, score in picks], dtype=np.float64),
        cost=float(sum(candidates.cost_of(group) for group, _, _ in picks)),
    )


def _score_all(
    pool: RowSource, criterion: Criterion, weights: np.ndarray | None, block_rows: int
) -> Float[np.ndarray, "n"]:
    bounds = np.empty(pool.shape[0])
    for first, block in blocks(pool, block_rows):
        bounds[first : first + len(block)] = criterion.score(block)
    if not np.isfinite(bounds).all():
        row = int(np.argmin(np.isfinite(bounds)))
        raise InvalidInputError(f"pool: row {row} is not finite")
    return bounds if weights is None else bounds * weights


def _close_unaffordable(candidates: Candidates, bounds: np.ndarray, closed: np.ndarray, left: float) -> None:
    """Take the groups out that cost more than what is left."""
    if candidates.costs is None:
        if left < 1.0:
            bounds[:] = -1.0
        return
    dear = (candidates.costs > left * (1 + 1e-12)) & ~closed
    if dear.any():
        closed |= dear
        bounds[dear if candidates.groups is None else dear[candidates.groups]] = -1.0


def _best(pool: RowSource, bounds: np.ndarray, weights: np.ndarray | None, criterion: Criterion) -> tuple[int, float]:
    """Row with the largest current score and that score; -1 when none is above zero. Refreshes ``bounds``."""
    n, size = len(bounds), min(_REFRESH, len(bounds))
    fresh = np.zeros(n, dtype=bool)
    while True:
        top = np.argpartition(bounds, n - size)[n - size :]
        stale = np.sort(top[~fresh[top] & (bounds[top] > 0.0)])
        for first in range(0, len(stale), BLOCK_ROWS):
            rows = stale[first : first + BLOCK_ROWS]
            found = criterion.score(np.asarray(pool[rows], dtype=np.float64))
            bounds[rows] = found if weights is None else found * weights[rows]
        fresh[stale] = True
        best = float(bounds[top].max())
        if best <= 0.0 and (size == n or not (bounds > 0.0).any()):
            return -1, 0.0
        open_rows = ~fresh & (bounds >= best)
        if best > 0.0 and not open_rows.any():
            return int(np.flatnonzero(fresh & (bounds == best))[0]), best
        size = min(4 * size, n)


def _join(first: Selection, second: Selection) -> Selection:
    return Selection(
        groups=np.concatenate([first.groups, second.groups]),
        rows=np.concatenate([first.rows, second.rows]),
        scores=np.concatenate([first.scores, second.scores]),
        cost=first.cost + second.cost,
    )
