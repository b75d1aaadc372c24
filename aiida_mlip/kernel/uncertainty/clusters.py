"""k-means clusters of feature vectors, deterministic for a seed and independent of the order of the rows."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import vq

#: Rows per dimension that a cluster needs, or its covariance is mostly noise.
ROWS_PER_DIMENSION: Final[int] = 10
_RESTARTS: Final[int] = 4
_SWEEPS: Final[int] = 100


def assign_clusters(
    points: Float[np.ndarray, "n d"],
    *,
    max_clusters: int = 4,
    seed: int = 0,
    rows_per_dimension: int = ROWS_PER_DIMENSION,
) -> Int[np.ndarray, "n"]:
    """Number of the cluster of each point: Lloyd's iteration from k-means++ starts, best of four.

    k is the largest number up to ``max_clusters`` for which every cluster keeps ``rows_per_dimension · d`` points; a
    sample too small for that is one cluster.

    :param points: (n, d), any unit.
    :param seed: of the starts.
    :returns: (n,) 0 .. k − 1, all of them in use.

    >>> blobs = np.concatenate([np.zeros((50, 1)), np.ones((50, 1))]) + np.linspace(0, 0.1, 100)[:, None]
    >>> assign_clusters(blobs, max_clusters=2)[[0, 99]].tolist() in ([0, 1], [1, 0])
    True
    """
    n, d = points.shape
    enough = rows_per_dimension * d
    order = np.lexsort(points.T[::-1])  # the same sample in another order gives the same clusters
    for k in range(min(max_clusters, n // enough), 1, -1):
        rng = np.random.default_rng(seed)
        _, labels = min((_lloyd(points[order], k, rng) for _ in range(_RESTARTS)), key=lambda found: found[0])
        if np.bincount(labels, minlength=k).min() >= enough:
            result = np.empty(n, dtype=np.int64)
            result[order] = labels
            return result
    return np.zeros(n, dtype=np.int64)


def _lloyd(points: np.ndarray, k: int, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Inertia and labels where Lloyd's iteration ends, or after :data:`_SWEEPS` sweeps."""
    centres = _plus_plus(points, k, rng)
    labels = np.full(len(points), -1)
    distance = np.zeros(len(points))
    for _ in range(_SWEEPS):
        found, distance = vq(points, centres)
        if np.array_equal(found, labels):
            break
        labels = found.astype(np.int64)
        counts = np.bincount(labels, minlength=k)
        sums = np.stack([np.bincount(labels, weights=column, minlength=k) for column in points.T], axis=1)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return float((distance**2).sum()), labels


def _plus_plus(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Starting centres, each drawn with a probability ∝ its squared distance to those before."""
    centres = [points[rng.integers(len(points))]]
    squared = np.full(len(points), np.inf)
    for _ in range(k - 1):
        squared = np.minimum(squared, ((points - centres[-1]) ** 2).sum(axis=1))
        total = squared.sum()
        row = rng.choice(len(points), p=squared / total) if total > 0 else rng.integers(len(points))
        centres.append(points[row])
    return np.array(centres)
