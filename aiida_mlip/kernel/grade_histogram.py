"""Histogram of novelty grades, per element: what is kept of a frame of millions of atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float, Int

from aiida_mlip.errors import FileFormatError, InvalidInputError

#: γ up to which bins resolve, and their width: thresholds of 1, 1.5 and 4 are edges.
DEFAULT_TOP: Final[float] = 10.0
DEFAULT_WIDTH: Final[float] = 0.05
#: Bins of a histogram that is read back.
_MOST_BINS: Final[int] = 1_000_000


class GradeHistogram:
    """Counts of γ in equal bins from 0, one more for all above, and one for what is no number.

    :param top: γ at which the last bin ends.
    :param width: of a bin.
    :raises InvalidInputError: values that are not positive.
    """

    def __init__(self, *, top: float = DEFAULT_TOP, width: float = DEFAULT_WIDTH) -> None:
        if not 0 < width <= top < np.inf:
            raise InvalidInputError(f"a histogram needs 0 < width <= top, got width {width}, top {top}")
        self._bins = round(top / width)
        self._width = top / self._bins
        self._counts: dict[int, np.ndarray] = {}
        self.largest, self.largest_atom = -np.inf, -1

    def add(
        self,
        novelty: Float[np.ndarray, "n"],
        numbers: Int[np.ndarray, "n"],
        atoms: Int[np.ndarray, "n"] | None = None,
    ) -> None:
        """Count atoms.

        :param numbers: atomic numbers.
        :param atoms: their indices, for the largest of all.
        """
        bad = np.isnan(novelty)
        # an edge belongs to the bin above it, although 0.15 / 0.05 is not 3 in binary
        place = np.floor(np.where(bad | np.isinf(novelty), 0.0, novelty) / self._width + 1e-9)
        index = np.minimum(place, self._bins).astype(np.int64)
        index[np.isinf(novelty)], index[bad] = self._bins, self._bins + 1
        for number in np.unique(numbers):
            found = np.bincount(index[numbers == number], minlength=self._bins + 2)
            self._counts[int(number)] = self._counts.get(int(number), np.zeros(self._bins + 2, dtype=np.int64)) + found
        values = np.where(bad, -np.inf, novelty)
        if len(values) and values.max() > self.largest:
            self.largest = float(values.max())
            row = int(values.argmax())
            self.largest_atom = row if atoms is None else int(atoms[row])

    @property
    def total(self) -> int:
        """Atoms counted."""
        return int(sum(counts.sum() for counts in self._counts.values()))

    def above(self, threshold: float) -> int:
        """Atoms with γ in the bins from ``threshold`` on (rounded to the next edge), or no γ at all."""
        first = int(np.ceil(threshold / self._width - 1e-9))
        return int(sum(counts[min(first, self._bins) :].sum() for counts in self._counts.values()))

    def quantile(self, share: float) -> float | None:
        """Upper edge of the bin below which this share of the atoms lies; None beyond the last edge."""
        summed = np.cumsum(sum(self._counts.values(), np.zeros(self._bins + 2, dtype=np.int64)))
        index = int(np.searchsorted(summed, share * summed[-1] - 1e-9))
        return (index + 1) * self._width if index < self._bins else None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_dict` reads it."""
        return {
            "top": self._bins * self._width,
            "width": self._width,
            "counts": {chemical_symbols[z]: self._counts[z].tolist() for z in sorted(self._counts)},
            "largest": self.largest if np.isfinite(self.largest) else None,
            "largest_atom": self.largest_atom,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GradeHistogram:
        """Histogram of what :meth:`as_dict` gave.

        :raises FileFormatError: something else.
        """
        try:
            if data["top"] / data["width"] > _MOST_BINS:
                raise ValueError(f"more than {_MOST_BINS} bins")
            made = cls(top=data["top"], width=data["width"])
            for symbol, values in data["counts"].items():
                counts = np.array(values, dtype=np.int64)
                if counts.shape != (made._bins + 2,):
                    raise ValueError(f"{counts.shape[0]} counts of {symbol}, expected {made._bins + 2}")
                made._counts[atomic_numbers[symbol]] = counts
            made.largest_atom = int(data["largest_atom"])
            unknown = np.inf if made.largest_atom >= 0 else -np.inf
            made.largest = float(unknown if data["largest"] is None else data["largest"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            raise FileFormatError(f"not a histogram of grades: {error}") from error
        return made
