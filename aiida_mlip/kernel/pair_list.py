"""Neighbour list of one system that moves: found once with a skin, filtered exactly at every step (Verlet's list)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of atoms within the cutoff, images included: each pair is listed from both sides.

    :param index: (2, p) centre and neighbour, in ascending order; then by ``shift``.
    :param shift: (p, 3) cell vectors to add to the neighbour's position.
    :param distance: (p,) Å.
    """

    index: Int[np.ndarray, "2 p"]
    shift: Float[np.ndarray, "p 3"]
    distance: Float[np.ndarray, "p"]

    def closest(
        self, numbers: np.ndarray, limits: Float[np.ndarray, "z z"], *, reach: float = 1.0
    ) -> tuple[float, int, int, float]:
        """Pair with the smallest ratio of distance to its limit; see :func:`aiida_mlip.kernel.distances.closest_pair`.

        :param numbers: (a,) atomic numbers.
        :param limits: (119, 119) Å by atomic numbers.
        :param reach: look for pairs up to this many times their limit; what that is must lie within the cutoff.
        :returns: (ratio, i, j, distance in Å); (inf, -1, -1, inf) when no pair is within reach.
        """
        species = np.unique(numbers)
        near = np.flatnonzero(self.distance < reach * float(limits[np.ix_(species, species)].max()))
        if not len(near):
            return np.inf, -1, -1, np.inf
        i, j = self.index[:, near]
        ratio = self.distance[near] / limits[numbers[i], numbers[j]]
        k = int(np.argmin(ratio))
        return float(ratio[k]), int(i[k]), int(j[k]), float(self.distance[near[k]])


class PairList:
    """Pairs within a cutoff, step after step, without searching at every step.

    The search goes to ``cutoff + skin``. With r = r₀·F + u (F: change of the cell, u: what the atoms moved beyond it),
    no pair within the cutoff can be missing while (cutoff + 2·max|u|)·‖F⁻¹‖₂ <= cutoff + skin. So the pairs are
    those that a search would find, always.

    :param cutoff: Å.
    :param skin: Å; 0: search at every step.
    :raises InvalidInputError: a cutoff that is not positive, or a negative skin.
    """

    def __init__(self, cutoff: float, *, skin: float = 0.5) -> None:
        if not cutoff > 0 or not skin >= 0:
            raise InvalidInputError(f"cutoff must be positive and skin not negative, got {cutoff} and {skin}")
        self.cutoff, self.skin = float(cutoff), float(skin)
        #: Searches done so far.
        self.n_searches = 0
        self._positions = np.empty((0, 3))
        self._cell = np.zeros((3, 3))
        self._pbc = np.zeros(3, dtype=bool)
        self._index = np.empty((2, 0), dtype=np.int64)
        self._shift = np.empty((0, 3))

    def pairs(
        self, positions: Float[np.ndarray, "a 3"], cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]
    ) -> Pairs:
        """Pairs within the cutoff.

        :param positions: (a, 3) Å, wrapped or not.
        :param cell: (3, 3) Å, rows are lattice vectors.
        :param pbc: (3,) periodicity.
        """
        if self._must_search(positions, cell, pbc):
            self._search(positions, cell, pbc)
        vectors = positions.take(self._index[1], axis=0)  # take: four times faster than an index in brackets
        vectors -= positions.take(self._index[0], axis=0)
        if self._pbc.any():
            vectors += self._shift @ np.asarray(cell, dtype=float)
        squared = np.einsum("pc,pc->p", vectors, vectors)
        inside = np.flatnonzero(squared < self.cutoff**2)
        index, shift = self._index.take(inside, axis=1), self._shift.take(inside, axis=0)
        return Pairs(index, shift, np.sqrt(squared.take(inside)))

    def _must_search(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if self.skin == 0 or positions.shape != self._positions.shape or (np.asarray(pbc) != self._pbc).any():
            return True
        moved, stretch = positions - self._positions, 1.0
        if (cell != self._cell).any():
            if not self._pbc.all():
                return True
            gradient = np.linalg.solve(self._cell, cell)
            moved = positions - self._positions @ gradient
            stretch = float(np.linalg.norm(np.linalg.inv(gradient), 2))
        farthest = float(np.sqrt(np.einsum("ac,ac->a", moved, moved).max(initial=0.0)))
        return not (self.cutoff + 2 * farthest) * stretch <= self.cutoff + self.skin

    def _search(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        from ase.geometry import complete_cell

        i, j, shift = neighbour_list(
            "ijS",
            positions=np.asarray(positions, dtype=float),
            cell=complete_cell(cell),
            pbc=np.asarray(pbc, dtype=bool),
            cutoff=self.cutoff + self.skin,
        )
        self.n_searches += 1
        self._positions, self._cell = np.array(positions, dtype=float), np.array(cell, dtype=float)
        self._pbc = np.array(pbc, dtype=bool)
        order = np.lexsort([*shift.T, j, i])  # the same geometry has the same list, whenever it was searched
        self._index = np.stack([i[order], j[order]]).astype(np.int64)
        self._shift = shift[order].astype(float)
