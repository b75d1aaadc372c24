"""Whitening: descriptors of one element's environments as few coordinates of unit variance over a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError

#: Directions whose variance is below this fraction of the largest carry no information.
RELATIVE_FLOOR: Final[float] = 1e-8


@dataclass(frozen=True)
class Whitening:
    """s = W (G − mean): principal components of the standardised descriptor, scaled to unit variance.

    :param mean: (f,) mean descriptor.
    :param matrix: (d, f) W.
    """

    mean: Float[np.ndarray, "f"]
    matrix: Float[np.ndarray, "d f"]

    @property
    def n_dim(self) -> int:
        """Coordinates kept."""
        return len(self.matrix)

    def __call__(self, values: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n d"]:
        """Whitened coordinates of descriptors."""
        return (values - self.mean) @ self.matrix.T


def fit_whitening(values: Float[np.ndarray, "n f"], *, components: int, where: str = "reference") -> Whitening:
    """Whitening from a sample of descriptors.

    Each descriptor component is first standardised, so that none dominates for its unit.

    :param values: (n, f) descriptors of reference environments of one element.
    :param components: coordinates to keep; fewer where the sample has fewer independent ones.
    :param where: what to call the sample in messages.
    :raises InvalidInputError: fewer than 8 environments, all equal, or not finite.
    """
    if len(values) < 8 or not np.isfinite(values).all():
        raise InvalidInputError(f"{where}: needs at least 8 environments with finite descriptors, got {len(values)}")
    mean, spread = values.mean(axis=0), values.std(axis=0)
    floor = 1e-6 * max(float(np.abs(values).max()), 1e-12)
    if spread.max() <= floor:
        raise InvalidInputError(f"{where}: all environments are equal; give rattled or thermal frames")
    scale = np.where(spread > floor, spread, np.inf)
    _, singular, axes = np.linalg.svd((values - mean) / scale, full_matrices=False)
    variance = singular**2 / len(values)
    keep = min(components, int((variance > RELATIVE_FLOOR * variance[0]).sum()))
    # the sign of a singular vector is arbitrary: the largest entry is made positive
    axes = axes[:keep] * np.sign(axes[np.arange(keep), np.abs(axes[:keep]).argmax(axis=1)])[:, None]
    return Whitening(mean=mean, matrix=axes / scale / np.sqrt(variance[:keep])[:, None])


def explored_volume(points: Float[np.ndarray, "n d"], *, edge: float) -> int:
    """Number of cubes of this edge that the points visit: a volume that needs no convexity.

    :param edge: in units of the space.

    >>> explored_volume(np.array([[0.1], [0.2], [1.7]]), edge=1.0)
    2
    """
    return len(np.unique(np.floor(np.asarray(points) / edge).astype(np.int64), axis=0))
