"""Pools: what can be chosen from, in which units it is labelled, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError

#: Rows held in double precision at once.
BLOCK_ROWS: Final[int] = 20_000


class RowSource(Protocol):
    """Rows of features: an array, a memory map, or a file that is read block by block."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Rows by slice or by index array."""


def blocks(pool: RowSource, block_rows: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first row and the rows in double precision, block by block."""
    for first in range(0, pool.shape[0], block_rows):
        yield first, np.asarray(pool[first : first + block_rows], dtype=np.float64)


def pool_mean(pool: RowSource, block_rows: int = BLOCK_ROWS) -> Float[np.ndarray, "d"]:
    """Mean of the rows.

    :raises InvalidInputError: a row that is not finite.
    """
    total = np.zeros(pool.shape[1])
    for first, block in blocks(pool, block_rows):
        total += block.sum(axis=0)
        if not np.isfinite(total).all():
            row = first + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise InvalidInputError(f"pool: row {row} is not finite")
    return total / pool.shape[0]


@dataclass(frozen=True)
class Projected:
    """Rows (x − mean) · matrix of another pool, computed when they are read.

    :param pool: (n, d).
    :param matrix: (d, c).
    :param mean: (d,).
    """

    pool: RowSource
    matrix: Float[np.ndarray, "d c"]
    mean: Float[np.ndarray, "d"] | float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c)."""
        return (self.pool.shape[0], self.matrix.shape[1])

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Rows by slice or by index array."""
        return np.asarray((np.asarray(self.pool[rows], dtype=np.float64) - self.mean) @ self.matrix)


@dataclass(frozen=True)
class Subset:
    """Some rows of another pool.

    :param pool: (n, d).
    :param rows: (m,) their numbers.
    """

    pool: RowSource
    rows: Int[np.ndarray, "m"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, d)."""
        return (len(self.rows), self.pool.shape[1])

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Rows by slice or by index array, counted within the subset."""
        return np.asarray(self.pool[self.rows[rows]])


@dataclass(frozen=True)
class Candidates:
    """Environments that can be chosen, in groups that are labelled together (frames, fragments).

    :param pool: (n, d) features of the environments.
    :param groups: (n,) number of the group each belongs to, from 0; None: each is labelled by itself.
    :param weights: (n,) how much each is wanted, at least 0; None: all alike. A weight of 0 is never chosen, but
        labelled with its group.
    :param costs: (g,) cost of labelling each group, above 0; None: 1 each.
    :raises InvalidInputError: shapes or values that do not fit.
    """

    pool: RowSource
    groups: Int[np.ndarray, "n"] | None = None
    weights: Float[np.ndarray, "n"] | None = None
    costs: Float[np.ndarray, "g"] | None = None
    n_groups: int = field(init=False)
    _order: np.ndarray | None = field(init=False, repr=False, default=None)
    _starts: np.ndarray | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        """Check the shapes and sort the rows by group."""
        n = self.pool.shape[0]
        if len(self.pool.shape) != 2 or n == 0:
            raise InvalidInputError(f"pool: expected (n, d) features with n >= 1, got shape {self.pool.shape}")
        n_groups = n
        if self.groups is not None:
            if self.groups.shape != (n,) or self.groups.min() < 0:
                raise InvalidInputError(f"groups: expected {n} numbers from 0, got shape {self.groups.shape}")
            n_groups = int(self.groups.max()) + 1
            object.__setattr__(self, "_order", np.argsort(self.groups, kind="stable"))
            counts = np.bincount(self.groups, minlength=n_groups)
            object.__setattr__(self, "_starts", np.concatenate([[0], np.cumsum(counts)]))
        object.__setattr__(self, "n_groups", n_groups)
        for name, value, size, least in (("weights", self.weights, n, False), ("costs", self.costs, n_groups, True)):
            if value is None:
                continue
            if value.shape != (size,):
                raise InvalidInputError(f"{name}: expected shape {(size,)}, got {value.shape}")
            if not (np.isfinite(value).all() and (value > 0 if least else value >= 0).all()):
                raise InvalidInputError(f"{name}: must be finite and {'above' if least else 'at least'} 0")

    def group_of(self, row: int) -> int:
        """Group of an environment."""
        return int(row if self.groups is None else self.groups[row])

    def rows_of(self, group: int) -> Int[np.ndarray, "m"]:
        """Environments of a group."""
        if self._order is None or self._starts is None:
            return np.array([group])
        return self._order[self._starts[group] : self._starts[group + 1]]

    def cost_of(self, group: int) -> float:
        """Cost of labelling a group."""
        return 1.0 if self.costs is None else float(self.costs[group])

    def row_weights(self) -> np.ndarray | None:
        """(n,) weight per cost; None when all are alike."""
        if self.costs is None:
            return self.weights
        per_row = self.costs if self.groups is None else self.costs[self.groups]
        return 1.0 / per_row if self.weights is None else self.weights / per_row


@dataclass(frozen=True)
class Budget:
    """When to stop choosing.

    :param groups: largest number of groups.
    :param cost: largest sum of their costs (core-hours); a group that no longer fits is passed over.
    :raises InvalidInputError: a value that is not positive.
    """

    groups: int
    cost: float = np.inf

    def __post_init__(self) -> None:
        """Check the values."""
        if self.groups < 1 or not self.cost > 0:
            raise InvalidInputError(f"budget: must be positive, got {self.groups} groups and a cost of {self.cost}")


@dataclass(frozen=True)
class Selection:
    """What was chosen, in order.

    :param groups: (k,) groups.
    :param rows: (k,) the environment for which each was chosen.
    :param scores: (k,) its score when it was chosen, as the method defines it.
    :param cost: of all of them together.
    """

    groups: Int[np.ndarray, "k"]
    rows: Int[np.ndarray, "k"]
    scores: Float[np.ndarray, "k"]
    cost: float

    def __len__(self) -> int:
        return len(self.groups)
