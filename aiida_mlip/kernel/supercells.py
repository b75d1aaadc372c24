"""Supercells: the smallest one whose periodic images keep a distance, and its atoms."""

from __future__ import annotations

from typing import Final

import numpy as np
from ase.build.supercells import lattice_points_in_supercell
from ase.geometry.minkowski_reduction import minkowski_reduce
from jaxtyping import Bool, Float, Int, UInt8

from aiida_mlip.errors import InvalidInputError

#: Rows of lattices (unit shortest vector) that pack well: simple cubic, face-centred, body-centred.
_TARGETS: Final[tuple[np.ndarray, ...]] = (
    np.eye(3),
    np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]) / np.sqrt(2.0),
    np.array([[-1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]) / np.sqrt(3.0),
)
#: Lengths tried, in units of the distance asked for.
_STRETCHES: Final[np.ndarray] = np.linspace(0.9, 1.5, 25)
_TOLERANCE: Final[float] = 1e-6


def shortest_image_distance(cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]) -> float:
    """Smallest distance (Å) between an atom and its own periodic image; inf without a periodic direction.

    The length of the shortest vector of the Minkowski-reduced lattice (doi:10.1145/1597036.1597050).

    :param cell: (3, 3) Å, rows are lattice vectors.
    :param pbc: (3,) periodicity.

    >>> round(shortest_image_distance(np.array([[1.0, 0, 0], [5.0, 1.0, 0], [0, 0, 2.0]]), np.ones(3, bool)), 6)
    1.0
    """
    if not pbc.any():
        return float(np.inf)
    reduced = minkowski_reduce(cell, pbc=pbc)[0]
    return float(np.linalg.norm(reduced[pbc], axis=1).min())


def supercell_matrix(
    cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"], min_image_distance: float
) -> Int[np.ndarray, "3 3"]:
    """Integer matrix M (rows: vectors of the supercell M·cell) of the smallest supercell found that keeps a distance.

    Candidates are the integer lattices closest to cubic, face- and body-centred ones of growing size, and the plain
    repetition along each vector (which always keeps it). Directions without periodicity are not repeated.

    :param cell: (3, 3) Å, rows are lattice vectors.
    :param min_image_distance: smallest allowed distance (Å) between an atom and its image.
    :raises InvalidInputError: the distance is not positive.

    >>> int(round(np.linalg.det(supercell_matrix(4.05 * np.eye(3), np.ones(3, bool), 8.0))))
    8
    """
    if not (np.isfinite(min_image_distance) and min_image_distance > 0):
        raise InvalidInputError(f"min_image_distance_ang: must be positive, got {min_image_distance}")
    best = np.eye(3, dtype=int)
    if shortest_image_distance(cell, pbc) >= min_image_distance - _TOLERANCE:
        return best
    heights = _heights(cell, pbc)
    best[np.diag_indices(3)] = np.where(pbc, np.ceil((min_image_distance - _TOLERANCE) / heights), 1).astype(int)
    if not pbc.all():
        return best
    inverse = np.linalg.inv(cell)
    for stretch in _STRETCHES:
        for target in _TARGETS:
            matrix = np.rint(stretch * min_image_distance * target @ inverse).astype(int)
            size = round(float(np.linalg.det(matrix)))
            if size < 0:
                matrix, size = -matrix, -size
            if not 0 < size < round(float(np.linalg.det(best))):
                continue
            if shortest_image_distance(matrix @ cell, pbc) >= min_image_distance - _TOLERANCE:
                best = matrix
    return best


def repeat(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    matrix: Int[np.ndarray, "3 3"],
) -> tuple[UInt8[np.ndarray, "b"], Float[np.ndarray, "b 3"], Float[np.ndarray, "3 3"]]:
    """Numbers, positions (Å) and cell (Å) of the supercell ``matrix @ cell``; copies of the cell follow one another.

    :raises InvalidInputError: the matrix has no volume.
    """
    if abs(np.linalg.det(matrix)) < 0.5:
        raise InvalidInputError(f"matrix: a supercell needs a volume, got {matrix.tolist()}")
    shifts = lattice_points_in_supercell(matrix) @ (matrix @ cell)
    # the cell's own copy first, so that a supercell of one cell is that cell
    shifts = shifts[np.lexsort((*shifts.T, np.round((shifts**2).sum(axis=1), 6)))]
    moved = (shifts[:, None] + positions[None]).reshape(-1, 3)
    return np.tile(numbers, len(shifts)), moved, np.asarray(matrix @ cell, dtype=float)


def _heights(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """(3,) distance (Å) between the faces of the cell, in the subspace of the periodic vectors; inf elsewhere."""
    heights = np.full(3, np.inf)
    heights[pbc] = 1.0 / np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0)
    return heights
