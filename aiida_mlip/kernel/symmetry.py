"""Symmetry operations of crystals: does a structure have them, and the primitive cell of a centred lattice."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree

from aiida_mlip.errors import InvalidInputError

#: Rows: vectors of a primitive cell in units of the conventional one (R: obverse, hexagonal axes;
#: doi:10.1107/97809553602060000114).
_PRIMITIVE: Final[dict[str, np.ndarray]] = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]]),
    "B": np.array([[0.5, 0, -0.5], [0, 1, 0], [0.5, 0, 0.5]]),
    "C": np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3.0,
}


def has_operations(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    rotations: Float[np.ndarray, "m 3 3"],
    translations: Float[np.ndarray, "m 3"],
    tolerance: float,
) -> bool:
    """Whether every operation x → W x + w maps a crystal onto itself.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors.
    :param rotations: (m, 3, 3) W in fractional coordinates.
    :param translations: (m, 3) w in fractional coordinates.
    :param tolerance: largest distance (Å) of an atom from the place it should be at.
    """
    metric = cell @ cell.T
    if not all(np.allclose(w.T @ metric @ w, metric, atol=tolerance * np.sqrt(metric.max())) for w in rotations):
        return False
    scaled = positions @ np.linalg.inv(cell) % 1.0 % 1.0
    for z in np.unique(numbers):
        own = scaled[numbers == z]
        tree = cKDTree(own, boxsize=1.0)
        images = np.einsum("mij,aj->mai", rotations, own) + translations[:, None]
        images = images.reshape(-1, 3) % 1.0 % 1.0
        _, nearest = tree.query(images)
        offset = images - own[nearest]
        offset -= np.rint(offset)
        if np.linalg.norm(offset @ cell, axis=1).max() > tolerance:
            return False
    return True


def primitive_of_centring(
    cell: Float[np.ndarray, "3 3"],
    scaled: Float[np.ndarray, "a 3"],
    numbers: UInt8[np.ndarray, "a"],
    letter: str,
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "b 3"], UInt8[np.ndarray, "b"]]:
    """Primitive cell of a crystal in the conventional cell of a centred lattice (only the centring is removed).

    :param cell: (3, 3) Å, rows are lattice vectors.
    :param scaled: (a, 3) fractional coordinates, with all atoms that the centring makes.
    :param letter: P, A, B, C, I, F or R (obverse, hexagonal axes).
    :returns: cell (Å), fractional coordinates in 0..1 and numbers.
    :raises InvalidInputError: unknown letter.
    """
    if letter not in _PRIMITIVE:
        raise InvalidInputError(f"letter: unknown centring {letter!r}; there are {sorted(_PRIMITIVE)}")
    matrix = _PRIMITIVE[letter]
    inner = scaled @ np.linalg.inv(matrix)
    inner -= np.floor(inner + 1e-6)
    kept: list[int] = []
    for k in range(len(inner)):
        near = inner[kept] - inner[k]
        near -= np.rint(near)
        if not kept or not ((np.abs(near) < 1e-4).all(axis=1) & (numbers[kept] == numbers[k])).any():
            kept.append(k)
    return matrix @ cell, inner[kept], numbers[kept]
