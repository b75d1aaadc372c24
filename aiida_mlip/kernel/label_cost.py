"""What labels will cost, from what labels did cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError

#: Sizes that must differ before a power is fitted.
MIN_SIZES: Final[int] = 3
#: Power without a fit: N³ per k-point, and at one distance between k-points their number falls as 1/N.
DEFAULT_POWER: Final[float] = 2.0
#: A fit outside is taken for noise: start-up of small cells, or a change of machine.
POWERS: Final[tuple[float, float]] = (1.0, 4.0)


@dataclass(frozen=True)
class LabelCost:
    """Cost of a label as ``factor · N**power`` core-seconds.

    :param factor: core-seconds of one atom.
    :param power: of the number of atoms.
    :param fitted: whether the power comes from the labels; else it is :data:`DEFAULT_POWER`.
    :param n_labels: measured labels.
    :param sizes: smallest and largest number of atoms among them.
    """

    factor: float
    power: float
    fitted: bool
    n_labels: int
    sizes: tuple[int, int]

    def core_seconds(self, natoms: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """(n,) core-seconds of labels of so many atoms."""
        return np.asarray(self.factor * np.asarray(natoms, dtype=float) ** self.power)


def fit_label_cost(natoms: Int[np.ndarray, "n"], core_seconds: Float[np.ndarray, "n"]) -> LabelCost:
    r"""Fit :math:`c = a N^p` to measured labels: a line through the logarithms of the medians of each size.

    With fewer than :data:`MIN_SIZES` sizes the power is :data:`DEFAULT_POWER`, and the factor the median of
    :math:`c / N^2`; a fitted power is held within :data:`POWERS`.

    :param natoms: (n,) atoms of each labelled frame.
    :param core_seconds: (n,) what its label took; entries that are not finite and positive are not looked at.
    :raises InvalidInputError: no measured label.

    >>> import numpy as np
    >>> cost = fit_label_cost(np.array([2, 4, 8]), np.array([4.0, 32.0, 256.0]))
    >>> cost.fitted, round(cost.power, 6), round(float(cost.core_seconds(np.array([16]))[0]), 3)
    (True, 3.0, 2048.0)
    """
    size, cost = np.asarray(natoms, dtype=float), np.asarray(core_seconds, dtype=float)
    known = np.isfinite(cost) & (cost > 0)
    size, cost = size[known], cost[known]
    if not len(cost):
        raise InvalidInputError("no measured label: the cost of none is known")
    sizes = np.unique(size)
    fitted = len(sizes) >= MIN_SIZES
    power = DEFAULT_POWER
    if fitted:
        medians = np.array([np.median(cost[size == n]) for n in sizes])
        power = float(np.clip(np.polyfit(np.log(sizes), np.log(medians), 1)[0], *POWERS))
    factor = float(np.median(cost / size**power))
    return LabelCost(factor, power, fitted, len(cost), (int(sizes[0]), int(sizes[-1])))
