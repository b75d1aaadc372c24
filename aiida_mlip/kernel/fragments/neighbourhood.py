"""The atoms around a point of a large periodic frame, images included."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from aiida_mlip.errors import InvalidInputError

#: Atoms looked at together: bounds the memory that a frame of millions of atoms takes.
_CHUNK: Final[int] = 500_000
#: Decimals of vectors (Å) that put atoms into an order no permutation or translation of the frame changes.
_DECIMALS: Final[int] = 6


@dataclass(frozen=True)
class Neighbourhood:
    """Atoms within a radius of a point, nearest first.

    :param numbers: (k,) atomic numbers.
    :param vectors: (k, 3) Å from the point to the atom.
    :param atoms: (k,) index of the atom in the frame; images of one atom share it.
    """

    numbers: UInt8[np.ndarray, "k"]
    vectors: Float[np.ndarray, "k 3"]
    atoms: Int[np.ndarray, "k"]

    def __len__(self) -> int:
        """Atoms, images included."""
        return len(self.atoms)

    def take(self, which: np.ndarray) -> Neighbourhood:
        """Those of an index or a mask."""
        return Neighbourhood(self.numbers[which], self.vectors[which], self.atoms[which])


def neighbourhood(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    point: Float[np.ndarray, "3"],
    radius: float,
) -> Neighbourhood:
    """All atoms and images within ``radius`` (Å) of ``point``, by distance (ties: by vector, to 1e-6 Å).

    Works through the frame in pieces: memory beyond the frame itself is bounded.

    :raises InvalidInputError: a radius that is not positive, or a periodic direction without a cell vector.
    """
    if not (np.isfinite(radius) and radius > 0):
        raise InvalidInputError(f"radius: must be positive, got {radius}")
    periodic = np.flatnonzero(pbc)
    if (np.linalg.norm(cell[periodic], axis=1) < 1e-9).any():
        raise InvalidInputError("a periodic direction has no cell vector")
    # coordinates along the periodic vectors; the rest of the vector, if any, is left as it is
    inverse = np.linalg.pinv(cell[periodic]) if len(periodic) else np.zeros((3, 0))
    heights = 1 / np.linalg.norm(inverse, axis=0)
    # wrapped to [-1/2, 1/2], an atom's images within the radius are at most so many cells away
    reach = [range(-n, n + 1) for n in np.floor(radius / heights + 0.5 + 1e-9).astype(int)]
    images = list(product(*reach))
    shifts = np.array(images, dtype=float).reshape(len(images), len(periodic)) @ cell[periodic]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(positions), _CHUNK):
        vectors = positions[start : start + _CHUNK] - point
        scaled = vectors @ inverse
        vectors = vectors - np.floor(scaled + 0.5) @ cell[periodic]
        for shift in shifts:
            moved = vectors + shift
            inside = np.flatnonzero(np.einsum("ij,ij->i", moved, moved) <= radius**2)
            if len(inside):
                found.append((inside + start, moved[inside]))
    if not found:
        return Neighbourhood(numbers[:0], np.zeros((0, 3)), np.zeros(0, dtype=int))
    atoms = np.concatenate([part for part, _ in found])
    vectors = np.concatenate([part for _, part in found])
    rounded = np.round(vectors, _DECIMALS)
    distance = np.round(np.linalg.norm(vectors, axis=1), _DECIMALS)
    order = np.lexsort((rounded[:, 2], rounded[:, 1], rounded[:, 0], distance))
    return Neighbourhood(numbers[atoms[order]], vectors[order], atoms[order])
