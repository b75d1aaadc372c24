"""Duplicates among environments: a hash grid in whitened principal components, O(n) in time."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.metadynamics.whitening import RELATIVE_FLOOR, Whitening
from aiida_mlip.kernel.selection.pool import BLOCK_ROWS, RowSource, blocks

#: Edge of a grid cell, in standard deviations of the whitened components.
DEFAULT_EDGE: Final[float] = 0.05
#: Principal components that tell environments apart.
DEFAULT_COMPONENTS: Final[int] = 8
_PRIME: Final[np.uint64] = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final[np.uint64] = np.uint64(0xBF58476D1CE4E5B9)


def pool_whitening(pool: RowSource, *, components: int | None = None, block_rows: int = BLOCK_ROWS) -> Whitening:
    """Leading principal components of a pool scaled to unit variance, in one pass.

    :param components: how many to keep; None: all that carry information.
    :raises InvalidInputError: an empty pool, or one that is not finite.
    """
    n, d = pool.shape
    if n == 0:
        raise InvalidInputError("pool: there are no rows")
    total, square = np.zeros(d), np.zeros((d, d))
    origin = np.asarray(pool[:1], dtype=np.float64)[0]  # moments about a row of the pool do not cancel
    for _, block in blocks(pool, block_rows):
        moved = block - origin
        total += moved.sum(axis=0)
        square += moved.T @ moved
    covariance = square / n - np.outer(total, total) / n**2
    if not np.isfinite(covariance).all():
        raise InvalidInputError("pool: not all numbers are finite")
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1]
    floor = max(RELATIVE_FLOOR * variances[order[0]], np.finfo(float).eps * float(np.trace(square)) / n)
    keep = [k for k in order[: components or d] if variances[k] > floor]
    axes = vectors[:, keep] * np.sign(vectors[np.abs(vectors[:, keep]).argmax(axis=0), keep])
    return Whitening(mean=origin + total / n, matrix=(axes / np.sqrt(variances[keep])).T)


def duplicates(
    pool: RowSource,
    numbers: np.ndarray,
    *,
    reference: tuple[RowSource, np.ndarray] | None = None,
    edge: float = DEFAULT_EDGE,
    components: int = DEFAULT_COMPONENTS,
    block_rows: int = BLOCK_ROWS,
) -> Bool[np.ndarray, "n"]:
    """Which environments of a pool repeat one of the reference, or an earlier one of the pool.

    The first environment of an element in a cell of a grid stands for those that follow in the same cell; the ones
    that stand are sifted once more on a grid half a cell apart, so that hardly a pair is missed for the boundary
    between them. What is dropped lies within two diagonals of a cell of something that is kept; equal environments are
    always found. Memory: 8 bytes for each environment besides a block.

    :param numbers: (n,) atomic numbers.
    :param reference: features and atomic numbers of what is labelled already.
    :param edge: of a cell, in standard deviations of the pool along each principal component.
    :param components: leading principal components that are compared.
    :raises InvalidInputError: an edge that is not positive, or shapes that do not fit.
    """
    if not 0.0 < edge < np.inf:
        raise InvalidInputError(f"edge: must be positive, got {edge}")
    if numbers.shape != (pool.shape[0],):
        raise InvalidInputError(f"numbers: expected shape {(pool.shape[0],)}, got {numbers.shape}")
    whitening = pool_whitening(pool, components=components, block_rows=block_rows)
    keep = np.ones(pool.shape[0], dtype=bool)
    for shift in (0.0, 0.5):
        keys = np.where(keep, _pool_keys(pool, numbers, whitening, edge, shift, block_rows), 0)
        first = np.zeros(len(keep), dtype=bool)
        standing = np.flatnonzero(keep)
        first[standing[np.unique(keys[standing], return_index=True)[1]]] = True
        if reference is not None:
            first &= ~np.isin(keys, _pool_keys(*reference, whitening, edge, shift, block_rows))
        keep = first
    return ~keep


def _pool_keys(
    pool: RowSource, numbers: np.ndarray, whitening: Whitening, edge: float, shift: float, block_rows: int
) -> np.ndarray:
    keys = np.empty(pool.shape[0], dtype=np.uint64)
    for first, block in blocks(pool, block_rows):
        rows = slice(first, first + len(block))
        keys[rows] = _keys(np.floor(whitening(block) / edge + shift).astype(np.int64), numbers[rows])
    return keys


def _keys(cells: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(n,) 64-bit hashes of (element, cell): two cells share one with a chance of n²/2⁶⁵."""
    key = np.asarray(numbers).astype(np.uint64)
    with np.errstate(over="ignore"):
        for k in range(cells.shape[1]):
            key = (key ^ (cells[:, k].astype(np.uint64) + _PRIME + (key << np.uint64(6)))) * _MIX
            key ^= key >> np.uint64(31)
    return key
