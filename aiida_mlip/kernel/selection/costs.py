"""What labels will cost: core-hours of frames from measured ones or from one figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError

#: DFT of a few hundred atoms grows about with the square of their number.
DEFAULT_EXPONENT: Final[float] = 2.0


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
    exponent: float = DEFAULT_EXPONENT

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


def measured_cost(
    core_seconds: Float[np.ndarray, "n"], natoms: Int[np.ndarray, "n"], *, exponent: float = DEFAULT_EXPONENT
) -> CostModel | None:
    """Model from the cost of labels: the median of cost / N^exponent; None where no cost is known.

    :param core_seconds: what each label took, NaN where not known.
    :param natoms: atoms of each.

    >>> measured_cost(np.array([3600.0, np.nan]), np.array([2, 5])).core_hours
    0.25
    """
    cost, size = np.asarray(core_seconds, dtype=float), np.asarray(natoms, dtype=float)
    known = np.isfinite(cost) & (cost > 0)
    if not known.any():
        return None
    return CostModel(core_hours=float(np.median(cost[known] / size[known] ** exponent)) / 3600.0, exponent=exponent)
