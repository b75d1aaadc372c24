"""Structural fingerprints: which frames are the same structure, whatever their order, orientation, origin and cell."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.descriptors import DEFAULT_CUTOFF, atomic_descriptors
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.frames import Frames

#: Largest distance of two fingerprints that counts as equal. Displacing all atoms by u (Å, rms) moves a fingerprint by
#: 0.5 u to 5 u, straining the cell by ε by 20 ε to 40 ε (measured on perfect and rattled Si8, Cu32, Na4Cl4), so frames
#: that differ by 0.01 Å or by a strain of 0.0003 are told apart.
DEFAULT_TOLERANCE: Final[float] = 5e-3
#: Directions of the hash grid: enough to separate, few enough to look at all neighbouring cells.
_PROJECTIONS: Final[int] = 3


def fingerprint(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    cutoff: float = DEFAULT_CUTOFF,
) -> Float[np.ndarray, "f"]:
    """Fingerprint of a structure, O(a).

    Per species (by atomic number): share of the atoms, and mean and standard deviation over its atoms of
    :func:`~aiida_mlip.kernel.descriptors.atomic_descriptors`. Hence equal for any order of atoms, rotation, mirror
    image, translation, and choice of (super)cell. Structures that differ only beyond ``cutoff``, or in how equal
    environments are arranged, are not told apart; what one atom among many does is diluted by the square root of their
    number.

    :param cutoff: Å.
    :returns: (species · (2 · SIZE + 1),), dimensionless.
    """
    values = atomic_descriptors(numbers, positions, cell, pbc, cutoff=cutoff)
    parts = []
    for z in np.unique(numbers):
        own = values[numbers == z]
        parts.append(np.concatenate([[len(own) / len(numbers)], own.mean(axis=0), own.std(axis=0)]))
    return np.concatenate(parts)


def equal_structures(
    frames: Frames,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    cutoff: float = DEFAULT_CUTOFF,
    ignore_size: bool = True,
) -> Int[np.ndarray, "n"]:
    """For each row, the first row with the same structure (itself when there is no earlier one), O(n).

    Two structures are equal when they have the same species, the same number of periodic directions (and, unless
    ``ignore_size``, of atoms) and the Euclidean distance of their fingerprints is at most ``tolerance``. Candidates
    come from a hash grid over a few fixed projections, so there is no loop over pairs of rows.

    :param tolerance: see :data:`DEFAULT_TOLERANCE`; 0 compares exactly.
    :param cutoff: Å.
    :param ignore_size: a supercell equals its cell. Only what has periodic directions can; molecules are told apart
        by their number of atoms anyway.
    :raises InvalidInputError: a tolerance that is negative.
    """
    if not 0.0 <= tolerance < np.inf:
        raise InvalidInputError(f"tolerance: must not be negative, got {tolerance}")
    finder = DuplicateFinder(tolerance=tolerance, cutoff=cutoff, ignore_size=ignore_size)
    return finder.add(frames)


class DuplicateFinder:
    """Streaming form of :func:`equal_structures`: remembers the fingerprints of all rows it has seen, nothing else.

    :param tolerance: as in :func:`equal_structures`.
    :param cutoff: Å.
    :param ignore_size: as in :func:`equal_structures`.
    """

    def __init__(
        self, *, tolerance: float = DEFAULT_TOLERANCE, cutoff: float = DEFAULT_CUTOFF, ignore_size: bool = True
    ) -> None:
        self._tolerance = tolerance
        self._cutoff = cutoff
        self._ignore_size = ignore_size
        self._rows = 0
        self._buckets: dict[tuple[object, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)

    def add(self, frames: Frames) -> Int[np.ndarray, "n"]:
        """For each of these rows, the number of the first equal row, counted over all calls."""
        first = np.empty(len(frames), dtype=np.int64)
        for row in range(len(frames)):
            first[row] = self._add_one(*geometry(frames, row))
            self._rows += 1
        return first

    def _add_one(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> int:
        # half the memory; the rounding is a thousandth of the default tolerance
        value = fingerprint(numbers, positions, cell, pbc, cutoff=self._cutoff).astype(np.float32).astype(float)
        size = len(numbers) if not (self._ignore_size and pbc.any()) else 0
        kind = (tuple(np.unique(numbers).tolist()), int(pbc.sum()), size)
        tolerance = max(self._tolerance, 1e-9)
        place = _projections(value) / (2.0 * tolerance)
        # what is within the tolerance (half a cell) lies in the same cell or in the next one on the nearer side
        corner = np.floor(place).astype(int)
        near = np.where(place - corner < 0.5, -1, 1)
        for side in product((0, 1), repeat=_PROJECTIONS):
            for row, other in self._buckets.get((*kind, *(corner + np.array(side) * near)), ()):
                if np.linalg.norm(value - other) <= tolerance:
                    return row
        self._buckets[(*kind, *corner)].append((self._rows, value.astype(np.float32)))
        return self._rows


def _projections(value: np.ndarray) -> np.ndarray:
    """(3,) components of a fingerprint along fixed unit vectors (a quasi-random sequence, equal everywhere)."""
    steps = np.arange(1, len(value) * _PROJECTIONS + 1).reshape(_PROJECTIONS, -1)
    directions = np.sin(steps * np.sqrt(2.0) * np.pi + np.arange(_PROJECTIONS)[:, None])
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True) @ value)
