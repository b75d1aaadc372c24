"""Cells: giving open directions a box, and seeing where a cell holds vacuum."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from aiida_mlip.errors import InvalidInputError

#: An empty layer thicker than this (Å, between atomic centres) counts as vacuum.
VACUUM_GAP: Final[float] = 6.0
#: Volumes (Å³) and lengths (Å) below this count as zero.
ZERO: Final[float] = 1e-6


def boxed(
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    padding: float,
) -> tuple[Float[np.ndarray, "a 3"], Float[np.ndarray, "3 3"]]:
    """Positions and full cell for a plane-wave code: a box is put around directions that have no cell vector.

    Directions with a cell vector are left alone, periodic or not. The others get a vector orthogonal to the rest, as
    long as the extent of the atoms along it plus twice ``padding``, and the atoms are centred along it.

    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors; zeros where there is none.
    :param pbc: (3,) periodicity.
    :param padding: empty space (Å) on either side of the atoms.
    :returns: positions (a, 3) and cell (3, 3) in Å.
    :raises InvalidInputError: a periodic direction has no cell vector, or the cell has no volume.
    """
    cell = np.array(cell, dtype=float)
    missing = np.linalg.norm(cell, axis=1) < ZERO
    if (missing & np.asarray(pbc)).any():
        raise InvalidInputError(f"a periodic direction has no cell vector: cell {cell.tolist()}, pbc {list(pbc)}")
    moved = np.array(positions, dtype=float)
    if missing.any():
        # unit vectors orthogonal to the vectors that are there (null space by SVD; the axes if none is there)
        present = cell[~missing]
        axes = np.eye(3) if missing.all() else np.array(np.linalg.svd(present)[2][len(present) :])
        cell[missing] = axes
        if np.linalg.det(cell) < 0:
            axes[0] *= -1  # right-handed, whichever way the null space came out
        for direction, axis in zip(np.flatnonzero(missing), axes, strict=True):
            along = moved @ axis
            length = along.max() - along.min() + 2 * padding
            cell[direction] = length * axis
            moved += (length / 2 - (along.max() + along.min()) / 2) * axis
    if abs(np.linalg.det(cell)) < ZERO:
        raise InvalidInputError(f"the cell has no volume: {cell.tolist()}")
    return moved, cell


def has_vacuum(positions: Float[np.ndarray, "a 3"], cell: Float[np.ndarray, "3 3"], *, gap: float = VACUUM_GAP) -> bool:
    """Whether an empty layer thicker than ``gap`` runs through a periodic cell, parallel to two of its vectors.

    The stress of such a cell is a property of the box, not of the material, and is not a label.

    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors, with volume.
    :param gap: thickness in Å, between atomic centres.

    >>> has_vacuum(np.zeros((1, 3)), 4 * np.eye(3)), has_vacuum(np.zeros((1, 3)), 12 * np.eye(3))
    (False, True)
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    scaled = np.sort(np.linalg.solve(np.asarray(cell).T, np.asarray(positions).T).T % 1.0, axis=0)
    gaps = np.diff(scaled, axis=0, append=scaled[:1] + 1.0).max(axis=0)
    return bool((gaps * heights > gap).any())
