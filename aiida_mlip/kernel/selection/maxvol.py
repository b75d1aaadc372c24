"""MaxVol: the rows of a tall matrix that span the largest volume, and the extrapolation grade they define.

The chosen d rows A of an (n, d) pool X make every other row an interpolation: all entries of B = X A⁻¹ are at most
``tolerance`` in magnitude, so no single swap grows |det A| by more than that factor. max|B| of a new row is its
extrapolation grade (doi:10.1016/j.commatsci.2017.08.031), the right gate for models that are linear in the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.selection.greedy import PosteriorVariance, choose
from aiida_mlip.kernel.selection.pool import BLOCK_ROWS, Budget, Candidates, Projected, RowSource, blocks

#: No swap may grow the volume by more than this factor when the search ends.
DEFAULT_TOLERANCE: Final[float] = 1.01
#: The inverse is recomputed from the rows after this many rank-1 updates.
RECOMPUTE_EVERY: Final[int] = 100
#: Directions whose singular value is below this fraction of the largest are not directions of the pool.
RANK_TOLERANCE: Final[float] = 1e-6
#: Prior of the start, in squares of the whitened rows: small enough that a direction once taken counts no more.
_START: Final[float] = 1e-9


@dataclass(frozen=True)
class ActiveSet:
    """Rows of (locally) maximal volume.

    :param rows: (r,) numbers of the chosen rows; r is the rank of the pool, d unless columns are dependent.
    :param inverse: (d, r): B = X @ inverse are the coefficients of rows X in terms of the chosen ones. What a row has
        outside the span of the pool is not seen.
    :param log_volume: log |det| of the chosen rows (within the span of the pool).
    :param largest: max |B| over the pool.
    :param swaps: how many swaps it took.
    """

    rows: Int[np.ndarray, "r"]
    inverse: Float[np.ndarray, "d r"]
    log_volume: float
    largest: float
    swaps: int


class VolumeBasis:
    """d rows and the inverse of their matrix, kept through swaps of single rows.

    :param rows: (d,) numbers of the rows in the pool.
    :param values: (d, d) the rows.
    :raises InvalidInputError: rows that are linearly dependent.
    """

    def __init__(self, rows: Int[np.ndarray, "d"], values: Float[np.ndarray, "d d"]) -> None:
        self.rows = np.array(rows, dtype=np.int64)
        self.values = np.array(values, dtype=np.float64)
        self.swaps = 0
        self.recompute()

    def recompute(self) -> None:
        """Invert the rows afresh."""
        try:
            self.inverse: np.ndarray = np.linalg.inv(self.values)
        except np.linalg.LinAlgError as error:
            raise InvalidInputError("the chosen rows are linearly dependent") from error

    def swap(self, place: int, row: int, value: Float[np.ndarray, "d"]) -> None:
        """Put a row of the pool in the place of a chosen one; the inverse follows by a rank-1 update, O(d²).

        A' = A + e_p (x − a_p)ᵀ, hence A'⁻¹ = A⁻¹ − A⁻¹ e_p (c − e_p)ᵀ / c_p with c = x A⁻¹.
        """
        coefficients = value @ self.inverse
        change = coefficients.copy()
        change[place] -= 1.0
        self.inverse -= np.outer(self.inverse[:, place], change / coefficients[place])
        self.rows[place], self.values[place] = row, value
        self.swaps += 1

    @property
    def log_volume(self) -> float:
        """Logarithm of |det| of the rows."""
        return float(np.linalg.slogdet(self.values)[1])


def maxvol(
    pool: RowSource, *, tolerance: float = DEFAULT_TOLERANCE, block_rows: int = BLOCK_ROWS, max_swaps: int = 100_000
) -> ActiveSet:
    """Rows of locally maximal volume of a pool that need not fit into memory (doi:10.1142/9789812836021_0015).

    Stage 1 takes the rows that a QR factorisation with pivoting of the whitened pool takes first, found without forming
    it (:mod:`~aiida_mlip.kernel.selection.greedy`). Stage 2 goes over the pool block by block, swapping in the row with
    the largest |B|, until a full pass finds none above ``tolerance``. Each swap grows the volume by at least that
    factor, so the search ends. The outcome depends on the pool, its order and ``block_rows`` only.

    :param pool: (n, d) rows.
    :param tolerance: above 1.
    :param block_rows: rows held in double precision at once: memory is about 24·d bytes for each.
    :param max_swaps: give up after this many.
    :raises InvalidInputError: a pool that is empty, all zero or not finite, a tolerance not above 1, or more than
        ``max_swaps`` swaps.

    >>> points = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.1, 1.0]])
    >>> sorted(maxvol(points).rows.tolist())
    [0, 2]
    """
    if not tolerance > 1.0:
        raise InvalidInputError(f"tolerance: must be above 1, got {tolerance}")
    white = whitening_matrix(pool, block_rows=block_rows)
    rank = white.shape[1]
    projected = Projected(pool, white)
    start = choose(Candidates(projected), Budget(rank), PosteriorVariance(_START * np.eye(rank)), block_rows=block_rows)
    basis = VolumeBasis(start.rows, projected[start.rows])
    largest = np.inf
    while largest > tolerance:
        basis.recompute()
        largest = 0.0
        for first, block in blocks(projected, block_rows):
            largest = max(largest, _sweep(basis, block, first, tolerance, max_swaps))
    unit = 0.5 * float(np.linalg.slogdet(white.T @ white)[1])
    return ActiveSet(basis.rows, white @ basis.inverse, basis.log_volume - unit, largest, basis.swaps)


def extrapolation_grade(features: Float[np.ndarray, "n d"], inverse: Float[np.ndarray, "d r"]) -> np.ndarray:
    """(n,) max |features · inverse|: at most 1.01 within the pool of the active set, above 1 where one extrapolates."""
    return np.asarray(np.abs(features @ inverse).max(axis=1))


def whitening_matrix(
    pool: RowSource, *, relative: float = RANK_TOLERANCE, block_rows: int = BLOCK_ROWS
) -> Float[np.ndarray, "d r"]:
    """W such that the rows of X W have the second moment 1 along each of the r directions that the pool has.

    :param relative: singular values of the pool below this fraction of the largest count as zero.
    :raises InvalidInputError: an empty pool, or one that is all zero or not finite.
    """
    n, d = pool.shape
    if n == 0 or d == 0:
        raise InvalidInputError(f"pool: there are no rows or no columns, shape {(n, d)}")
    gram = np.zeros((d, d))
    for first, block in blocks(pool, block_rows):
        gram += block.T @ block
        if not np.isfinite(gram).all():
            raise InvalidInputError(f"pool: not all numbers are finite in rows {first} to {first + len(block) - 1}")
    squares, vectors = np.linalg.eigh(gram / n)
    if squares[-1] <= 0.0:
        raise InvalidInputError("pool: all rows are zero")
    keep = squares > squares[-1] * max(relative**2, d * np.finfo(float).eps)
    return np.asarray(vectors[:, keep] / np.sqrt(squares[keep]))


def _sweep(basis: VolumeBasis, block: np.ndarray, first: int, tolerance: float, max_swaps: int) -> float:
    """Swap rows of one block into the basis until none has |B| above the tolerance.

    :returns: largest |B| of the block when it was first looked at (at least ``tolerance`` counts as a swap).
    """
    coefficients = block @ basis.inverse
    seen = 0.0
    while True:
        flat = int(np.abs(coefficients).argmax())
        row, place = divmod(flat, coefficients.shape[1])
        largest = float(abs(coefficients[row, place]))
        seen = max(seen, largest)
        if not largest > tolerance:
            return seen
        if basis.swaps >= max_swaps:
            raise InvalidInputError(f"maxvol: max|B| is {largest:.3f}, above {tolerance}, after {max_swaps} swaps")
        change = coefficients[row].copy()
        change[place] -= 1.0
        scale = coefficients[row, place]
        basis.swap(place, first + row, block[row])
        if basis.swaps % RECOMPUTE_EVERY == 0:
            basis.recompute()
            coefficients = block @ basis.inverse
        else:
            coefficients -= np.outer(coefficients[:, place], change / scale)
