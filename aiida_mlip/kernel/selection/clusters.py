"""LCMD: of the largest cluster around what is chosen, the farthest member (doi:10.48550/arXiv.2203.09410)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from aiida_mlip.kernel.selection.greedy import farthest_points, selection_of
from aiida_mlip.kernel.selection.pool import BLOCK_ROWS, Budget, Candidates, Selection, blocks


def largest_cluster(
    candidates: Candidates,
    budget: Budget,
    *,
    known: Float[np.ndarray, "r d"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Selection:
    """Largest cluster, maximum distance: representative where farthest points are only extreme.

    Every environment belongs to its nearest labelled one; the cluster with the largest sum of weight / cost × squared
    distance gives its farthest member (by the same measure). Each pick reads the whole pool once.

    :param known: (r, d) environments that are labelled already; without them the first pick is that of
        :func:`~aiida_mlip.kernel.selection.greedy.farthest_points`.
    :returns: scores are weight / cost × squared distance.
    """
    weights = candidates.row_weights()
    weights = np.ones(candidates.pool.shape[0]) if weights is None else weights
    closed = np.zeros(candidates.n_groups, dtype=bool)
    clusters = _Clusters(candidates, block_rows)
    picks: list[tuple[int, int, float]] = []
    left = budget.cost
    if known is not None and len(known):
        clusters.add(np.asarray(known, dtype=np.float64))
    else:
        first = farthest_points(candidates, Budget(1, budget.cost), block_rows=block_rows)
        if len(first):
            picks.append((int(first.groups[0]), int(first.rows[0]), float(first.scores[0])))
    while True:
        if picks and not closed[picks[-1][0]]:  # the latest pick becomes centres of clusters
            group = picks[-1][0]
            closed[group] = True
            left -= candidates.cost_of(group)
            clusters.add(np.asarray(candidates.pool[candidates.rows_of(group)], dtype=np.float64))
        if len(picks) == budget.groups or clusters.n_centres == 0:
            break
        row, score = clusters.farthest_of_largest(weights * _open(candidates, closed, left))
        if row < 0:
            break
        picks.append((candidates.group_of(row), row, score))
    return selection_of(candidates, picks)


def _open(candidates: Candidates, closed: np.ndarray, left: float) -> np.ndarray:
    """(n,) 1 for environments whose group is neither labelled nor too dear, else 0."""
    costs = np.ones(candidates.n_groups) if candidates.costs is None else candidates.costs
    usable = (~closed & (costs <= left * (1 + 1e-12))).astype(float)
    return usable if candidates.groups is None else usable[candidates.groups]


class _Clusters:
    """Nearest centre of every row of a pool, and the squared distance to it."""

    def __init__(self, candidates: Candidates, block_rows: int) -> None:
        self._pool, self._block_rows = candidates.pool, block_rows
        n = candidates.pool.shape[0]
        self._squares, self._norms = np.full(n, np.inf), np.empty(n)
        self._nearest = np.zeros(n, dtype=np.int32)
        self.n_centres = 0

    def add(self, centres: np.ndarray) -> None:
        """More centres: rows that are nearer to one of them change over."""
        squares = (centres**2).sum(axis=1)
        for first, block in blocks(self._pool, self._block_rows):
            rows = slice(first, first + len(block))
            if self.n_centres == 0:
                self._norms[rows] = np.einsum("ni,ni->n", block, block)
            distance = squares - 2.0 * (block @ centres.T)
            best = distance.argmin(axis=1)
            found = np.maximum(self._norms[rows] + distance[np.arange(len(block)), best], 0.0)
            nearer = found < self._squares[rows]
            self._nearest[rows][nearer] = self.n_centres + best[nearer]
            self._squares[rows][nearer] = found[nearer]
        self.n_centres += len(centres)

    def farthest_of_largest(self, weights: np.ndarray) -> tuple[int, float]:
        """Row and weighted squared distance; -1 when all weigh nothing."""
        scores = self._squares * weights
        sizes = np.bincount(self._nearest, weights=scores, minlength=self.n_centres)
        largest = int(sizes.argmax())
        if not sizes[largest] > 0.0:
            return -1, 0.0
        row = int(np.where(self._nearest == largest, scores, -1.0).argmax())
        return row, float(scores[row])
