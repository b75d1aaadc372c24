"""k-point meshes from a density that means the same in every cell."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from aiida_mlip.errors import InvalidInputError


def mesh_from_distance(
    cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"], distance: float
) -> tuple[int, int, int]:
    r"""Smallest Monkhorst-Pack mesh whose neighbouring points are at most ``distance`` apart.

    :math:`n_i = \lceil |b_i| / d \rceil` with :math:`b_i = 2\pi (A^+)_i`, the reciprocal vectors of the lattice
    spanned by the *periodic* cell vectors only, so that the amount of vacuum does not matter; 1 along
    non-periodic directions.

    :param cell: (3, 3) Å, rows are lattice vectors; those of non-periodic directions are not looked at.
    :param pbc: (3,) periodicity.
    :param distance: largest distance between neighbouring points in 1/Å, 2π included (the convention of AiiDA's
        ``kpoints_distance``).
    :returns: points along the three reciprocal vectors, each at least 1.
    :raises InvalidInputError: the distance is not positive, or the periodic vectors are linearly dependent.

    Reference: H. J. Monkhorst, J. D. Pack, doi:10.1103/PhysRevB.13.5188.

    >>> mesh_from_distance(5.43 * np.eye(3), np.array([True, True, False]), 0.3)
    (4, 4, 1)
    """
    if not np.isfinite(distance) or distance <= 0:
        raise InvalidInputError(f"the distance between k-points must be positive, got {distance} 1/Å")
    periodic = np.flatnonzero(pbc)
    mesh = [1, 1, 1]
    if len(periodic):
        vectors = np.asarray(cell, dtype=float)[periodic]
        if np.linalg.matrix_rank(vectors) < len(periodic):
            raise InvalidInputError(f"the periodic cell vectors are linearly dependent: {vectors.tolist()}")
        reciprocal = 2 * np.pi * np.linalg.pinv(vectors).T
        # the small term keeps a length that is a whole multiple of the distance from being rounded up
        counts = np.ceil(np.linalg.norm(reciprocal, axis=1) / distance - 1e-9).astype(int)
        for direction, count in zip(periodic, counts, strict=True):
            mesh[direction] = max(1, int(count))
    return mesh[0], mesh[1], mesh[2]
