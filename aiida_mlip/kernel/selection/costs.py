"""What labels will cost: core-hours of frames from measured ones or from one figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.label_cost import DEFAULT_POWER, fit_label_cost


@dataclass(frozen=True)
class CostModel:
    """Core-hours of a label: ``core_hours`` · (N / ``natoms``)^``exponent``.

    :param core_hours: of a frame of ``natoms`` atoms.
    :param natoms: atoms of that frame.
    :param exponent: how the cost grows with the number of atoms.
    :raises InvalidInputError: a value that is not positive.
    """

    core_hours: float
    natoms: int = 1
    exponent: float = DEFAULT_POWER

    def __post_init__(self) -> None:
        """Check the values."""
        if not (self.core_hours > 0 and self.natoms > 0 and self.exponent >= 0):
            raise InvalidInputError(
                f"cost: core_hours and natoms must be positive, exponent not negative, got {self.core_hours}, "
                f"{self.natoms}, {self.exponent}"
            )

    def __call__(self, natoms: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """(n,) core-hours of frames with these numbers of atoms."""
        return np.asarray(self.core_hours * (np.asarray(natoms, dtype=float) / self.natoms) ** self.exponent)


def measured_cost(core_seconds: Float[np.ndarray, "n"], natoms: Int[np.ndarray, "n"]) -> CostModel | None:
    """Model fitted to the cost of labels, see :func:`~aiida_mlip.kernel.label_cost.fit_label_cost`.

    :param core_seconds: what each label took, NaN where not known.
    :param natoms: atoms of each.
    :returns: None where no cost is known.

    >>> measured_cost(np.array([3600.0, np.nan]), np.array([2, 5])).core_hours
    0.25
    """
    if not (np.isfinite(core_seconds) & (np.asarray(core_seconds) > 0)).any():
        return None
    fitted = fit_label_cost(natoms, core_seconds)
    return CostModel(core_hours=fitted.factor / 3600.0, exponent=fitted.power)
