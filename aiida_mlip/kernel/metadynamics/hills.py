"""Hills on a hash grid: a sum of Gaussians whose cost per evaluation does not grow with the number of hills.

A hill is put on the nearest point of a grid as fine as its width, where heights add up. A point feels only the grid
points within the reach of a hill, found by hashing, so the cost is bounded by the number of grid points within reach,
however many hills were laid (doi:10.1038/s41524-021-00595-5 does the same with a table).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError

#: A hill ends (smoothly) at this many widths.
REACH: Final[float] = 3.0
#: Grid spacing in units of the width: equal heights on all grid points are then flat to 3e-3 (tested).
SPACING: Final[float] = 1.0
#: More dimensions have more neighbouring grid points than a step can visit.
MAX_DIMENSIONS: Final[int] = 4
_EMPTY: Final[int] = -1
_GOLDEN: Final[np.uint64] = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class HillGrid:
    """Sum of hills V(s) in a space of few dimensions.

    One hill of height h at c is h·φ(|s−c|²/σ²), φ(q) = exp(−q/2) − e(1 + (q_c − q)/2), with q_c = REACH² and
    e = exp(−q_c/2): a Gaussian that reaches zero at 3σ with zero slope.

    :param n_dim: dimensions, 1 to 4.
    :param width: σ, in the units of the space.

    >>> grid = HillGrid(n_dim=1, width=1.0)
    >>> grid.deposit(np.zeros((1, 1)), np.array([2.0]))
    >>> round(float(grid.evaluate(np.zeros((1, 1)))[0][0]), 6)
    2.0
    """

    n_dim: int
    width: float
    _slots: np.ndarray = field(init=False, repr=False)
    _heights: np.ndarray = field(init=False, repr=False)
    _count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Check the parameters and make an empty table.

        :raises InvalidInputError: a dimension outside 1..4 or a width that is not positive.
        """
        if not 1 <= self.n_dim <= MAX_DIMENSIONS:
            raise InvalidInputError(f"a hill grid has 1 to {MAX_DIMENSIONS} dimensions, got {self.n_dim}")
        if not (np.isfinite(self.width) and self.width > 0):
            raise InvalidInputError(f"the width of a hill must be positive, got {self.width}")
        self._bits = 62 // self.n_dim
        self._offsets = _within_reach(self.n_dim)
        self._clear(1024)

    def __len__(self) -> int:
        """Grid points that carry a hill."""
        return self._count

    def deposit(self, points: Float[np.ndarray, "n d"], heights: Float[np.ndarray, "n"]) -> None:
        """Add one hill at the grid point nearest to each of ``points``.

        :raises InvalidInputError: a point that is not finite or absurdly far away.
        """
        self._add(self._keys(self._nearest(points)), np.asarray(heights, dtype=float))

    def evaluate(self, points: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n d"]]:
        """V and ∂V/∂s at each point.

        :returns: (n,) in the unit of the heights, (n, d) in that unit per unit of the space.
        """
        cells = self._nearest(points)[:, None, :] + self._offsets
        shift = points[:, None, :] / self.width - cells * SPACING
        q = (shift**2).sum(axis=2)
        inside = q < REACH**2
        height = np.zeros(q.shape)
        height[inside] = self._lookup(self._keys(cells[inside]))
        end = np.exp(-0.5 * REACH**2)
        bell = np.exp(-0.5 * q)
        value = (height * (bell - end * (1 + 0.5 * (REACH**2 - q)))).sum(axis=1) / _PEAK
        slope = height * (end - bell)
        return value, np.einsum("no,nod->nd", slope, shift) / (self.width * _PEAK)

    def export(self) -> tuple[Int[np.ndarray, "m d"], Float[np.ndarray, "m"]]:
        """Grid coordinates and heights, in ascending order of the coordinates: equal biases give equal arrays."""
        used = self._slots != _EMPTY
        coordinates = self._coordinates(self._slots[used])
        order = np.lexsort(coordinates.T[::-1])
        return coordinates[order], self._heights[used][order]

    def load(self, coordinates: Int[np.ndarray, "m d"], heights: Float[np.ndarray, "m"]) -> None:
        """Add what :meth:`export` gave.

        :raises InvalidInputError: arrays of another shape.
        """
        coordinates = np.asarray(coordinates)
        if coordinates.ndim != 2 or coordinates.shape[1] != self.n_dim or heights.shape != (len(coordinates),):
            raise InvalidInputError(
                f"hills of shape {coordinates.shape} and heights {np.shape(heights)} do not fit {self.n_dim} dimensions"
            )
        self._add(self._keys(coordinates.astype(np.int64)), np.asarray(heights, dtype=float))

    # -- the table: open addressing, linear probing, all look-ups at once ----------------------------------------

    def _clear(self, size: int) -> None:
        self._slots = np.full(size, _EMPTY, dtype=np.int64)
        self._heights = np.zeros(size)
        self._count = 0

    def _add(self, keys: np.ndarray, heights: np.ndarray) -> None:
        unique, inverse = np.unique(keys, return_inverse=True)
        summed = np.bincount(inverse, heights, len(unique))
        while 2 * (self._count + len(unique)) > len(self._slots):
            old, values = self._slots, self._heights
            self._clear(4 * len(old))
            used = old != _EMPTY
            self._insert(old[used], values[used])
        self._insert(unique, summed)

    def _insert(self, keys: np.ndarray, heights: np.ndarray) -> None:
        """Add heights to distinct keys; new keys claim a free slot, ties are settled by trying again."""
        slot = self._home(keys)
        todo = np.arange(len(keys))
        while len(todo):
            at = slot[todo]
            free = self._slots[at] == _EMPTY
            self._slots[at[free]] = keys[todo[free]]
            mine = self._slots[at] == keys[todo]
            self._heights[at[mine]] += heights[todo[mine]]
            self._count += int((mine & free).sum())
            todo = todo[~mine]
            slot[todo] = (slot[todo] + 1) & (len(self._slots) - 1)

    def _lookup(self, keys: np.ndarray) -> np.ndarray:
        slot = self._home(keys)
        result = np.zeros(len(keys))
        todo = np.arange(len(keys))
        while len(todo):
            found = self._slots[slot]
            hit = found == keys[todo]
            result[todo[hit]] = self._heights[slot[hit]]
            go_on = ~hit & (found != _EMPTY)
            todo = todo[go_on]
            slot = (slot[go_on] + 1) & (len(self._slots) - 1)
        return result

    def _home(self, keys: np.ndarray) -> np.ndarray:
        mixed = (keys.astype(np.uint64) * _GOLDEN) >> np.uint64(64 - int(np.log2(len(self._slots))))
        return mixed.astype(np.int64)

    def _nearest(self, points: np.ndarray) -> np.ndarray:
        scaled = np.asarray(points, dtype=float) / (self.width * SPACING)
        limit = 2 ** (self._bits - 1) - 8
        if not (np.abs(scaled) < limit).all():
            raise InvalidInputError("a descriptor is not finite, or too far from its reference for the hill grid")
        return np.rint(scaled).astype(np.int64)

    def _keys(self, coordinates: np.ndarray) -> np.ndarray:
        shifted = coordinates + 2 ** (self._bits - 1)
        keys = np.zeros(coordinates.shape[:-1], dtype=np.int64)
        for k in range(self.n_dim):
            keys = (keys << self._bits) | shifted[..., k]
        return keys

    def _coordinates(self, keys: np.ndarray) -> np.ndarray:
        shifts = self._bits * np.arange(self.n_dim - 1, -1, -1)
        return ((keys[:, None] >> shifts) & (2**self._bits - 1)) - 2 ** (self._bits - 1)


def well_tempered(
    height: float, bias: Float[np.ndarray, "n"], *, boltzmann_temperature: float, bias_factor: float | None
) -> Float[np.ndarray, "n"]:
    """Heights of new hills where the bias is V: h·exp(−V / (k_B T (γ − 1))), or h without a bias factor.

    doi:10.1103/PhysRevLett.100.020603

    :param height: h in eV.
    :param bias: (n,) V in eV.
    :param boltzmann_temperature: k_B·T in eV.
    :param bias_factor: γ > 1; None for plain metadynamics.
    :raises InvalidInputError: γ not above 1.
    """
    if bias_factor is None:
        return np.full(len(bias), height)
    if bias_factor <= 1:
        raise InvalidInputError(f"bias_factor must be above 1, got {bias_factor}")
    return height * np.exp(-np.asarray(bias) / (boltzmann_temperature * (bias_factor - 1)))


def _within_reach(n_dim: int) -> np.ndarray:
    """(o, d) grid offsets that any point can feel whose nearest grid point is the origin."""
    side = int(np.ceil(REACH / SPACING + 0.5))
    offsets = np.array(list(product(range(-side, side + 1), repeat=n_dim)), dtype=np.int64)
    nearest = np.maximum(np.abs(offsets) - 0.5, 0.0) * SPACING
    return offsets[(nearest**2).sum(axis=1) < REACH**2]


#: φ(0): hills are normalised to their height.
_PEAK: Final[float] = float(1 - np.exp(-0.5 * REACH**2) * (1 + 0.5 * REACH**2))
