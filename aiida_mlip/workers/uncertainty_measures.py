"""Smooth uncertainties of atoms in torch: functions of last-layer features that can be differentiated everywhere.

Of the grades of a potential (:class:`aiida_mlip.kernel.uncertainty.grades.Grades`), per element:

* ``novelty``: s² = −2 log (1/k) Σ_c exp(−d_c²/2) of the Mahalanobis distances d_c to the k clusters, the nearest one
  where they are apart, smooth where they meet; u = s / threshold, so that u ≈ γ.
* ``laplace``: u = sqrt(zᵀ (Σ z zᵀ)⁻¹ z · n/d), the width of the posterior of a linear readout in units of its root mean
  square over the training set.

Both are bounded: u → L·tanh(u/L), so that nothing is pushed further than about L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.uncertainty.elements import ElementGrades
from aiida_mlip.kernel.uncertainty.grades import Grades

Measure = Literal["novelty", "laplace"]
#: Rounds off the root at u = 0.
_ROUNDING: Final[float] = 1e-3


class UncertaintyMeasure:
    """Uncertainty of every atom, with gradients.

    :param grades: of the potential's training set.
    :param type_names: chemical symbols in the order of the model's types.
    :param device: ``torch.device``.
    :param measure: ``novelty`` or ``laplace``.
    :param saturation: L, in units of the measure.
    :raises InvalidInputError: another measure, or a saturation that is not positive.
    """

    def __init__(
        self, grades: Grades, type_names: Sequence[str], device: Any, *, measure: Measure, saturation: float
    ) -> None:
        import torch
        from ase.data import atomic_numbers

        if measure not in ("novelty", "laplace"):
            raise InvalidInputError(f"unknown measure {measure!r}; allowed are novelty, laplace")
        if not saturation > 0:
            raise InvalidInputError(f"saturation must be positive, got {saturation}")
        self._torch, self._measure, self._saturation = torch, measure, saturation
        self._names = tuple(type_names)
        self._n_features = grades.n_features
        self._elements: dict[int, tuple[Any, ...]] = {}
        for kind, name in enumerate(type_names):
            element = grades.elements.get(atomic_numbers.get(name, -1))
            if element is not None:
                values = _novelty_arrays(element) if measure == "novelty" else _laplace_arrays(element)
                self._elements[kind] = tuple(torch.as_tensor(value, device=device) for value in values)

    def __call__(self, features: Any, types: Any) -> Any:
        """(a,) tensor of u, float64, >= 0.

        :param features: (a, d) tensor.
        :param types: (a,) tensor of the model's type indices.
        :raises InvalidInputError: an element without training environments, or features of another potential.
        """
        if features.ndim != 2 or features.shape[1] != self._n_features:
            raise InvalidInputError(
                f"features have shape {tuple(features.shape)}, the grades were fitted on {self._n_features} columns: "
                "they belong to another potential"
            )
        values = features.double()
        result = values.new_zeros(len(values))
        for kind in types.unique().tolist():
            if kind not in self._elements:
                raise InvalidInputError(
                    f"the potential was never trained on {self._names[kind]}: its uncertainty has no slope to follow"
                )
            mine = (types == kind).nonzero().view(-1)
            found = (self._novelty if self._measure == "novelty" else self._laplace)(
                values[mine], *self._elements[kind]
            )
            result = result.index_copy(0, mine, found)
        return self._saturation * self._torch.tanh(result / self._saturation)

    def _novelty(self, values: Any, weight: Any, offset: Any, threshold: Any) -> Any:
        moved = self._torch.addmm(offset, values, weight, beta=-1)
        squared = (moved * moved).view(len(values), -1, self._n_features).sum(dim=2)
        soft = -2 * (self._torch.logsumexp(-squared / 2, dim=1) - float(np.log(squared.shape[1])))
        return (soft.clamp(min=0) / threshold**2 + _ROUNDING**2).sqrt()

    def _laplace(self, values: Any, weight: Any) -> Any:
        return ((values @ weight).square().sum(dim=1) + _ROUNDING**2).sqrt()


def _novelty_arrays(element: ElementGrades) -> tuple[np.ndarray, ...]:
    """Weight and offset that give W_c (z − μ_c) of all clusters side by side, and the threshold."""
    k, d, _ = element.whitening.shape
    offset = (element.whitening @ element.means[:, :, None]).reshape(k * d)
    return element.whitening.reshape(k * d, d).T.copy(), offset, np.array(element.threshold)


def _laplace_arrays(element: ElementGrades) -> tuple[np.ndarray, ...]:
    d = len(element.laplace)
    return (element.laplace.T * np.sqrt(element.n_train / d),)
