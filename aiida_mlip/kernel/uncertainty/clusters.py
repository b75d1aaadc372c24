"""k-means clusters of feature vectors, deterministic for a seed and independent of the order of the rows."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int

#: Rows per dimension that a cluster needs, or its covariance is mostly noise.
ROWS_PER_DIMENSION: Final[int] = 10
#: Centres are found on at most this many of the points.
SAMPLE: Final[int] = 20_000
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
    moved = points - points.mean(axis=0)
    sample = moved[np.lexsort(points.T[::-1])]  # the same points in another order give the same clusters
    if n > SAMPLE:
        sample = sample[np.sort(np.random.default_rng(seed).choice(n, SAMPLE, replace=False))]
    for k in range(min(max_clusters, n // enough), 1, -1):
        rng = np.random.default_rng(seed)
        _, centres = min((_lloyd(sample, k, rng) for _ in range(_RESTARTS)), key=lambda found: found[0])
        labels, _ = _nearest(moved, centres)
        if np.bincount(labels, minlength=k).min() >= enough:
            return labels
    return np.zeros(n, dtype=np.int64)


def _lloyd(points: np.ndarray, k: int, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Inertia (less a constant) and centres where Lloyd's iteration ends, or after :data:`_SWEEPS` sweeps."""
    centres = _plus_plus(points, k, rng)
    labels, inertia = np.full(len(points), -1), 0.0
    for _ in range(_SWEEPS):
        found, inertia = _nearest(points, centres)
        if np.array_equal(found, labels):
            break
        labels = found
        members = np.eye(k)[labels]
        counts = members.sum(axis=0)[:, None]
        centres = np.where(counts > 0, members.T @ points / np.maximum(counts, 1), centres)
    return inertia, centres


def _nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Number of the nearest centre of each point, and Σ |x − c|² less Σ |x|², the same for all centres."""
    squared = (centres**2).sum(axis=1) - 2 * points @ centres.T
    labels = squared.argmin(axis=1)
    return labels, float(squared[np.arange(len(points)), labels].sum())


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
