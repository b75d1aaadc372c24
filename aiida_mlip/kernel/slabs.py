"""Large frames in pieces: boxes of atoms with a halo, so that what a local model says of them is what it says of all.

A model of L message-passing layers and cutoff r_c sees atoms up to L·r_c away: features of an atom need the neighbours
of all atoms within (L − 1)·r_c of it. Hence each piece has three zones, in this order: its own atoms (*core*), atoms
within (L − 1)·r_c whose neighbours are needed (*centres*, core included), and atoms within L·r_c that are neighbours
only. A strictly local model has L = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.cells import boxed

#: A piece with this many times the wanted atoms is halved.
_TOO_MANY: Final[float] = 1.5
#: Most cuts along one axis; what is still too large is halved later.
_MAX_CUTS: Final[int] = 40
_ROUNDING: Final[float] = 1e-9


@dataclass(frozen=True)
class Slab:
    """One piece of a frame.

    :param atoms: (m,) atoms of the frame; the first ``n_core`` are those this piece answers for.
    :param positions: (m, 3) Å, periodic images where they are images: no cell is needed.
    :param n_core: own atoms.
    :param n_centres: atoms (own ones included) whose neighbours within the cutoff are all there.
    """

    atoms: Int[np.ndarray, "m"]
    positions: Float[np.ndarray, "m 3"]
    n_core: int
    n_centres: int


class SlabDecomposition:
    """Pieces of a frame that cover each of its atoms once.

    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors; zeros where there is none.
    :param pbc: (3,) periodicity.
    :param cutoff: r_c (Å).
    :param layers: message-passing layers L; 1 for a strictly local model.
    :param max_atoms: atoms of a piece, halo included; pieces have at least one core atom, however wide the halo is.
    :raises InvalidInputError: values that are not positive, positions that are not finite, or a cell without volume.
    """

    def __init__(
        self,
        positions: Float[np.ndarray, "a 3"],
        cell: Float[np.ndarray, "3 3"],
        pbc: Bool[np.ndarray, "3"],
        *,
        cutoff: float,
        layers: int,
        max_atoms: int,
    ) -> None:
        if not (cutoff > 0 and layers >= 1 and max_atoms >= 1):
            raise InvalidInputError(
                f"cutoff, layers and max_atoms must be positive, got {cutoff}, {layers} and {max_atoms}"
            )
        if not np.isfinite(positions).all():
            atom = int(np.argmin(np.isfinite(positions).all(axis=1)))
            raise InvalidInputError(f"the position of atom {atom} is not finite: {positions[atom].tolist()}")
        self._pbc = np.asarray(pbc, dtype=bool)
        moved, self._cell = boxed(positions, cell, pbc, padding=1.0)
        scaled = np.linalg.solve(self._cell.T, moved.T).T
        scaled[:, self._pbc] -= np.floor(scaled[:, self._pbc])
        scaled[:, self._pbc] %= 1.0  # what rounding left at 1
        self._low = np.where(self._pbc, 0.0, scaled.min(axis=0))
        self._high = np.where(self._pbc, 1.0, scaled.max(axis=0) + _ROUNDING)
        self._heights = 1.0 / np.linalg.norm(np.linalg.inv(self._cell), axis=0)
        off_diagonal = self._cell @ self._cell.T * (1.0 - np.eye(3))
        self._orthogonal = bool(np.abs(off_diagonal).max() < _ROUNDING * np.abs(self._cell).max() ** 2)
        self._order = np.argsort(scaled[:, 0], kind="stable")
        self._scaled = scaled[self._order]
        self._inner, self._outer = (layers - 1) * cutoff, layers * cutoff
        self._max_atoms = max_atoms
        self.cuts = self._choose_cuts(len(positions))

    def __len__(self) -> int:
        """Pieces that are planned; empty ones are left out, crowded ones are halved."""
        return int(np.prod(self.cuts))

    def __iter__(self) -> Iterator[Slab]:
        """Pieces in a fixed order."""
        edges = [np.linspace(self._low[k], self._high[k], self.cuts[k] + 1) for k in range(3)]
        for index in product(*(range(n) for n in self.cuts)):
            low = np.array([edges[k][i] for k, i in enumerate(index)])
            high = np.array([edges[k][i + 1] for k, i in enumerate(index)])
            yield from self._pieces(low, high)

    def around(self, atom: int, radius: float) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k 3"]]:
        """Atoms within a radius of one of them, itself first, then by distance; images of an atom count each.

        :param radius: Å.
        :returns: (k,) atoms of the frame, (k, 3) Å from the atom to them.
        """
        centre = self._scaled[np.flatnonzero(self._order == atom)[0]]
        reach = radius / self._heights + _ROUNDING
        index, scaled, _ = self._gather(centre - reach, centre + reach)
        vectors = (scaled - centre) @ self._cell
        distance = np.linalg.norm(vectors, axis=1)
        atoms = self._order[index]
        order = np.lexsort((atoms, distance))
        order = order[distance[order] <= radius]
        return atoms[order], vectors[order]

    def _choose_cuts(self, n: int) -> tuple[int, int, int]:
        """Grid of pieces of at most the wanted size with the least work in halos."""
        extent = np.maximum((self._high - self._low) * self._heights, _ROUNDING)
        density = n / float(np.prod(np.maximum(extent, 1.0)))
        most = [int(np.clip(np.ceil(extent[k] / max(self._outer / 4, 1e-3)), 1, _MAX_CUTS)) for k in range(3)]
        grid = np.stack(np.meshgrid(*(np.arange(1, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
        edge = extent / grid
        open_ends = np.where(self._pbc, 2.0, 2.0 * (grid - 1) / grid)  # no halo beyond a free surface
        size = density * np.prod(np.maximum(edge + open_ends * self._outer, 1.0), axis=1)
        work = np.prod(grid, axis=1) * np.prod(edge + open_ends * self._inner, axis=1)
        fits = size <= self._max_atoms
        best = int(np.lexsort((work, size))[0]) if not fits.any() else int(np.where(fits, work, np.inf).argmin())
        a, b, c = (int(count) for count in grid[best])
        return a, b, c

    def _pieces(self, low: np.ndarray, high: np.ndarray) -> Iterator[Slab]:
        slab = self._piece(low, high)
        if slab is None:
            return
        if len(slab.atoms) <= _TOO_MANY * self._max_atoms or slab.n_core == 1:
            yield slab
            return
        axis = int(((high - low) * self._heights).argmax())
        middle = 0.5 * (low[axis] + high[axis])
        if (high - low)[axis] * self._heights[axis] < 0.5:  # Å: no structure is that crowded; do not cut for ever
            yield slab
            return
        yield from self._pieces(low, np.where(np.arange(3) == axis, middle, high))
        yield from self._pieces(np.where(np.arange(3) == axis, middle, low), high)

    def _piece(self, low: np.ndarray, high: np.ndarray) -> Slab | None:
        if not self._has_core(low, high):
            return None
        reach = self._outer / self._heights + _ROUNDING
        index, scaled, home = self._gather(low - reach, high + reach)
        excess = self._heights * np.maximum(np.maximum(low - scaled, scaled - high), 0.0)
        distance = np.sqrt((excess**2).sum(axis=1)) if self._orthogonal else excess.max(axis=1)
        core = home & (scaled >= low).all(axis=1) & (scaled < high).all(axis=1)
        zone = np.where(core, 0, np.where(distance <= self._inner, 1, 2))
        zone[distance > self._outer + _ROUNDING] = 3
        order = np.argsort(zone, kind="stable")[: int((zone < 3).sum())]
        counts = np.bincount(zone[order], minlength=3)
        return Slab(
            atoms=self._order[index[order]],
            positions=scaled[order] @ self._cell,
            n_core=int(counts[0]),
            n_centres=int(counts[0] + counts[1]),
        )

    def _gather(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Atoms (in sorted order) with an image in a box, the image's scaled position, and whether it is no image."""
        images = [range(int(np.floor(low[k])), int(np.floor(high[k])) + 1) if self._pbc[k] else (0,) for k in range(3)]
        parts = [
            (index, self._scaled[index] + np.array(image), image == (0, 0, 0))
            for image in product(*images)
            if len(index := self._window(low, high, image))
        ]
        index = np.concatenate([part[0] for part in parts])
        scaled = np.concatenate([part[1] for part in parts])
        return index, scaled, np.repeat([part[2] for part in parts], [len(part[0]) for part in parts])

    def _has_core(self, low: np.ndarray, high: np.ndarray) -> bool:
        index = self._window(low, high, (0, 0, 0))
        return bool((self._scaled[index] < high).all(axis=1).any())

    def _window(self, low: np.ndarray, high: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
        """Atoms (in sorted order) whose image lies within a box of scaled coordinates."""
        low, high = low - np.array(image), high - np.array(image)
        first = int(np.searchsorted(self._scaled[:, 0], low[0], side="left"))
        last = int(np.searchsorted(self._scaled[:, 0], high[0], side="right"))
        part = self._scaled[first:last, 1:]
        return first + np.flatnonzero(((part >= low[1:]) & (part <= high[1:])).all(axis=1))
