"""Statistics of the training environments of one element, and the three grades that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.linalg import null_space, solve_triangular

from aiida_mlip.kernel.selection.maxvol import maxvol
from aiida_mlip.kernel.uncertainty.clusters import assign_clusters

#: Σ += 1e-8·tr(Σ)/d·I: directions in which the training set does not vary.
RIDGE: Final[float] = 1e-8
#: Relative precision of features computed in single precision; no direction is known more sharply.
FEATURE_PRECISION: Final[float] = 1e-7
#: Makes a median absolute deviation the standard deviation of a normal distribution.
MAD_TO_SIGMA: Final[float] = 1.4826
#: Length, as a fraction of the size of the features, of an active vector in a direction that no environment has.
ACTIVE_FLOOR: Final[float] = 1e-5
#: |B| of a dominant submatrix.
MAXVOL_TOLERANCE: Final[float] = 1.01
_CHUNK: Final[int] = 16384


@dataclass(frozen=True)
class ElementGrades:
    """What the grades of one element's atoms need. k clusters of d features.

    :param means: (k, d) of the clusters.
    :param whitening: (k, d, d) lower triangular W = L⁻¹ with Σ = L Lᵀ: the distance to cluster c is |W_c (z − μ_c)|.
    :param threshold: distance at which γ = 1.
    :param laplace: (d, d) lower triangular inverse Cholesky factor of Σ_i z_i z_iᵀ + ridge.
    :param active_inverse: (d, d) A⁻¹ of the d rows of the active set.
    :param n_train: environments fitted to.
    """

    means: Float[np.ndarray, "k d"]
    whitening: Float[np.ndarray, "k d d"]
    threshold: float
    laplace: Float[np.ndarray, "d d"]
    active_inverse: Float[np.ndarray, "d d"]
    n_train: int

    def distance(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """Mahalanobis distance to the nearest cluster."""
        result = np.full(len(features), np.inf)
        for start in range(0, len(features), _CHUNK):
            part = slice(start, start + _CHUNK)
            for mean, whitening in zip(self.means, self.whitening, strict=True):
                moved = (features[part] - mean) @ whitening.T
                result[part] = np.minimum(result[part], np.sqrt(np.einsum("nd,nd->n", moved, moved)))
        return result

    def novelty(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """γ = distance / threshold."""
        return self.distance(features) / self.threshold

    def laplace_variance(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """zᵀ (Σ_i z_i z_iᵀ + ridge)⁻¹ z."""
        result = np.empty(len(features))
        for start in range(0, len(features), _CHUNK):
            part = slice(start, start + _CHUNK)
            moved = features[part] @ self.laplace.T
            result[part] = np.einsum("nd,nd->n", moved, moved)
        return result

    def extrapolation_grade(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """max_j |(z A⁻¹)_j|."""
        result = np.empty(len(features))
        for start in range(0, len(features), _CHUNK):
            part = slice(start, start + _CHUNK)
            result[part] = np.abs(features[part] @ self.active_inverse).max(axis=1)
        return result


def fit_element(features: Float[np.ndarray, "n d"], *, max_clusters: int, seed: int) -> ElementGrades:
    """Statistics of n >= 1 environments of one element."""
    size = float(np.sqrt(np.mean(features**2))) or 1.0
    labels = assign_clusters(features, max_clusters=max_clusters, seed=seed)
    means, factors = [], []
    for cluster in range(int(labels.max()) + 1):
        members = features[labels == cluster]
        mean = members.mean(axis=0)
        moved = members - mean
        means.append(mean)
        factors.append(_inverse_cholesky(moved.T @ moved / len(members), floor=(FEATURE_PRECISION * size) ** 2))
    bare = ElementGrades(
        means=np.array(means),
        whitening=np.array(factors),
        threshold=1.0,
        laplace=_inverse_cholesky(features.T @ features, floor=(FEATURE_PRECISION * size) ** 2 * len(features)),
        active_inverse=_active_inverse(features, floor=ACTIVE_FLOOR * size),
        n_train=len(features),
    )
    return ElementGrades(**{**bare.__dict__, "threshold": robust_threshold(bare.distance(features))})


def robust_threshold(distance: Float[np.ndarray, "n"]) -> float:
    """Median + 3 · 1.4826 · MAD; at least 1, the length of a standard deviation, for a sample without spread.

    >>> robust_threshold(np.array([2.0, 2.0, 2.0, 9.0]))
    2.0
    """
    median = float(np.median(distance))
    return max(1.0, median + 3.0 * MAD_TO_SIGMA * float(np.median(np.abs(distance - median))))


def _inverse_cholesky(matrix: np.ndarray, *, floor: float) -> np.ndarray:
    """L⁻¹ of the matrix with its ridge."""
    d = len(matrix)
    ridged = matrix + (RIDGE * np.trace(matrix) / d + floor) * np.eye(d)
    return np.asarray(solve_triangular(np.linalg.cholesky(ridged), np.eye(d), lower=True))


def _active_inverse(features: np.ndarray, *, floor: float) -> np.ndarray:
    """Inverse of the active set; in directions that the features do not have it consists of vectors of length floor."""
    if not features.any():
        return np.eye(features.shape[1]) / floor
    inverse = maxvol(features, tolerance=MAXVOL_TOLERANCE).inverse
    return np.concatenate([inverse, null_space(inverse.T) / floor], axis=1)
