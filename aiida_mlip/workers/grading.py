"""Novelty grade γ in torch: where the features are, so that grading every step costs next to nothing.

The numbers are those of :class:`aiida_mlip.kernel.uncertainty.grades.Grades`; the features can carry gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.uncertainty.grades import Grades


class TorchGrades:
    """Grades of a potential on its device, in double precision.

    :param grades: of the training set.
    :param type_names: chemical symbols in the order of the model's types.
    :param device: ``torch.device``.
    """

    def __init__(self, grades: Grades, type_names: Sequence[str], device: Any) -> None:
        import torch
        from ase.data import atomic_numbers

        self.n_features = grades.n_features
        self._torch = torch
        self._elements: dict[int, tuple[Any, Any]] = {}
        for kind, name in enumerate(type_names):
            element = grades.elements.get(atomic_numbers.get(name, -1))
            if element is None:
                continue
            # |W (z − μ)| with the clusters side by side: one product of matrices for all of them
            k, d, _ = element.whitening.shape
            scaled = element.whitening / element.threshold
            offset = (scaled @ element.means[:, :, None]).reshape(k * d)
            weight = scaled.reshape(k * d, d).T
            self._elements[kind] = tuple(torch.as_tensor(x.copy(), device=device) for x in (weight, offset))

    def novelty(self, features: Any, types: Any) -> Any:
        """(a,) tensor of γ, float64; infinite for an element that was never seen, NaN where features are.

        :param features: (a, d) tensor.
        :param types: (a,) tensor of the model's type indices.
        :raises InvalidInputError: features of another number than the grades were fitted on.
        """
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise InvalidInputError(
                f"features have shape {tuple(features.shape)}, the grades were fitted on {self.n_features} columns: "
                "they belong to another potential"
            )
        values = features.double()
        if len(self._elements) == 1 and bool((types == next(iter(self._elements))).all()):
            return self._distance(values, *next(iter(self._elements.values())))
        result = self._torch.full((len(values),), float("inf"), dtype=values.dtype, device=values.device)
        result = self._torch.where(values.isfinite().all(dim=1), result, float("nan"))
        for kind, (weight, offset) in self._elements.items():
            mine = (types == kind).nonzero().view(-1)
            result = result.index_copy(0, mine, self._distance(values[mine], weight, offset))
        return result

    def _distance(self, values: Any, weight: Any, offset: Any) -> Any:
        """(n,) smallest distance to a cluster in units of the threshold."""
        moved = self._torch.addmm(offset, values, weight, beta=-1)
        squared = (moved * moved).view(len(values), len(offset) // self.n_features, self.n_features).sum(dim=2)
        return squared.amin(dim=1).sqrt()
