"""Grades: novelty, Laplace variance and extrapolation grade of atoms, from the last-layer features of a potential.

* novelty γ: Mahalanobis distance to the nearest cluster of the element's training environments, over its threshold
  median + 3 · 1.4826 · MAD; γ ≈ 1 is the border of the training set. The gate of this package.
* Laplace variance: zᵀ (Σ_i z_i z_iᵀ + ridge)⁻¹ z, the posterior variance of a linear last layer up to a factor (LLPR,
  doi:10.1088/2632-2153/ad805f).
* extrapolation grade: max_j |z A⁻¹|_j with the D-optimal active set A (doi:10.1016/j.commatsci.2017.08.031). The right
  gate for a *linear* model; on features of a neural network it sees neither error nor novelty well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Integer

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.kernel.uncertainty.elements import ElementGrades, fit_element

#: Of the arrays; a reader refuses others.
VERSION: Final[int] = 1
#: The array by which statistics are known to be grades.
VERSION_KEY: Final[str] = "grades_version"
_NUMBERS_KEY: Final[str] = "grades_numbers"
_FIELDS: Final[tuple[str, ...]] = ("means", "whitening", "threshold", "laplace", "active_inverse", "n_train")


@dataclass(frozen=True)
class Grades:
    """Grades of atoms against the training set of a potential.

    :param elements: statistics by atomic number; all of the same number of features.
    """

    elements: Mapping[int, ElementGrades]

    @property
    def n_features(self) -> int:
        """Features per atom that it was fitted on."""
        return int(next(iter(self.elements.values())).means.shape[1])

    def novelty(self, features: Float[np.ndarray, "a d"], numbers: Integer[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """(a,) γ; infinite for an element that was never seen, NaN where features are.

        :param features: (a, d) last-layer features.
        :param numbers: (a,) atomic numbers.
        :raises InvalidInputError: features of another number, or not one row per atom.
        """
        return self._grade("novelty", features, numbers)

    def laplace_variance(
        self, features: Float[np.ndarray, "a d"], numbers: Integer[np.ndarray, "a"]
    ) -> Float[np.ndarray, "a"]:
        """(a,) zᵀ (Σ_i z_i z_iᵀ + ridge)⁻¹ z, dimensionless; infinite for an element that was never seen.

        :raises InvalidInputError: see :meth:`novelty`.
        """
        return self._grade("laplace_variance", features, numbers)

    def extrapolation_grade(
        self, features: Float[np.ndarray, "a d"], numbers: Integer[np.ndarray, "a"]
    ) -> Float[np.ndarray, "a"]:
        """(a,) max_j |z A⁻¹|_j: <= 1.01 on the training set; infinite for an element that was never seen.

        :raises InvalidInputError: see :meth:`novelty`.
        """
        return self._grade("extrapolation_grade", features, numbers)

    def _grade(self, kind: str, features: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        values, kinds = _checked(features, numbers)
        if values.shape[1] != self.n_features:
            raise InvalidInputError(
                f"features have {values.shape[1]} columns, the grades were fitted on {self.n_features}: "
                "they belong to another potential"
            )
        result = np.full(len(values), np.inf)
        result[~np.isfinite(values).all(axis=1)] = np.nan
        for number, element in self.elements.items():
            mine = np.flatnonzero(kinds == number)
            if len(mine):
                result[mine] = getattr(element, kind)(values[mine])
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, what ``PotentialData`` stores as its statistics; :meth:`from_arrays` reads them."""
        result: dict[str, np.ndarray] = {
            VERSION_KEY: np.array(VERSION),
            _NUMBERS_KEY: np.array(sorted(self.elements), dtype=np.int64),
        }
        for number, element in self.elements.items():
            result.update({f"grades_{number}_{name}": np.asarray(getattr(element, name)) for name in _FIELDS})
        return result

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Grades:
        """Grades of the arrays that :meth:`arrays` gave; other arrays beside them are ignored.

        :raises FileFormatError: arrays that are missing, of wrong shape, not finite or of another version; names them.
        """
        for name in (VERSION_KEY, _NUMBERS_KEY):
            if name not in arrays:
                raise FileFormatError(f"statistics: no array {name!r}, so these are no grades; got {sorted(arrays)}")
        version, numbers = arrays[VERSION_KEY], arrays[_NUMBERS_KEY]
        if version.shape != () or version.dtype.kind not in "iu" or int(version) != VERSION:
            raise FileFormatError(f"statistics: grades of version {version!r}; this program reads version {VERSION}")
        if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu" or len(set(numbers)) < len(numbers):
            raise FileFormatError(f"statistics: {_NUMBERS_KEY!r} must list atomic numbers once each, got {numbers!r}")
        elements = {int(number): _read_element(arrays, int(number)) for number in numbers}
        widths = {number: element.means.shape[1] for number, element in elements.items()}
        if len(set(widths.values())) > 1:
            raise FileFormatError(f"statistics: numbers of features differ between elements: {widths}")
        return cls(elements)


def fit_grades(
    features: Float[np.ndarray, "a d"], numbers: Integer[np.ndarray, "a"], *, seed: int = 0, max_clusters: int = 4
) -> Grades:
    """Grades from the environments of a training set. The order of the atoms does not matter.

    :param features: (a, d) last-layer features of the potential.
    :param numbers: (a,) atomic numbers.
    :param seed: of the k-means starts.
    :param max_clusters: most clusters per element; fewer where there are not ten environments per feature and cluster.
    :raises InvalidInputError: no atoms, features that are not finite, or shapes that do not fit.
    """
    values, kinds = _checked(features, numbers)
    if max_clusters < 1:
        raise InvalidInputError(f"max_clusters must be at least 1, got {max_clusters}")
    if not values.size:
        raise InvalidInputError(f"grades need at least one atom with one feature, got shape {values.shape}")
    if spoiled := int((~np.isfinite(values).all(axis=1)).sum()):
        raise InvalidInputError(f"features of {spoiled} of {len(values)} atoms are not finite; leave those atoms out")
    return Grades(
        {
            int(number): fit_element(values[kinds == number], max_clusters=max_clusters, seed=seed)
            for number in np.unique(kinds)
        }
    )


def _checked(features: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, kinds = np.asarray(features, dtype=np.float64), np.asarray(numbers)
    if values.ndim != 2 or kinds.shape != (len(values),):
        raise InvalidInputError(
            f"features have shape {values.shape}, atomic numbers {kinds.shape}; expected (a, d) and (a,)"
        )
    return values, kinds


def _read_element(arrays: Mapping[str, np.ndarray], number: int) -> ElementGrades:
    names = {name: f"grades_{number}_{name}" for name in _FIELDS}
    if missing := [name for name in names.values() if name not in arrays]:
        raise FileFormatError(f"statistics: arrays {missing} are missing")
    values = {name: arrays[key] for name, key in names.items()}
    for name, value in values.items():
        if value.dtype.kind not in ("iu" if name == "n_train" else "f") or not np.isfinite(value).all():
            raise FileFormatError(f"statistics: {names[name]!r} must hold finite numbers, got {value.dtype}")
    if values["means"].ndim != 2 or 0 in values["means"].shape:
        raise FileFormatError(f"statistics: {names['means']!r} has shape {values['means'].shape}, expected (k, d)")
    k, d = values["means"].shape
    shapes = {"whitening": (k, d, d), "threshold": (), "laplace": (d, d), "active_inverse": (d, d), "n_train": ()}
    for name, shape in shapes.items():
        if values[name].shape != shape:
            raise FileFormatError(f"statistics: {names[name]!r} has shape {values[name].shape}, expected {shape}")
    if values["threshold"] <= 0 or values["n_train"] < 1:
        raise FileFormatError(f"statistics: {names['threshold']!r} and {names['n_train']!r} must be positive")
    for name in ("whitening", "laplace"):
        if (np.diagonal(values[name], axis1=-2, axis2=-1) <= 0).any() or np.triu(values[name], 1).any():
            raise FileFormatError(f"statistics: {names[name]!r} must be lower triangular with a positive diagonal")
    return ElementGrades(
        **{**values, "threshold": float(values["threshold"]), "n_train": int(values["n_train"])}  # type: ignore[arg-type]  # arrays by name
    )
