"""Centres of fragments: the worst atoms of a frame, none of them within another's core."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fragments.neighbourhood import neighbourhood


def choose_centres(
    grades: Float[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    threshold: float,
    separation: float,
    limit: int | None = None,
) -> Int[np.ndarray, "k"]:
    """Atoms above a threshold, worst first, no two of them closer than ``separation`` (greedy non-maximum suppression).

    :param grades: (a,) novelty grade γ or calibrated force error of each atom; NaN and inf count as worst of all.
    :param separation: Å, usually twice the core radius: cores do not overlap.
    :param limit: at most so many.
    :returns: indices of atoms; empty when none is above the threshold, which is good news.
    :raises InvalidInputError: shapes that do not fit, or a separation that is not positive.
    """
    found = iterate_centres(grades, positions, cell, pbc, threshold=threshold, separation=separation)
    return np.array(list(islice(found, limit)), dtype=int)


def iterate_centres(
    grades: Float[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    threshold: float,
    separation: float,
) -> Iterator[int]:
    """Atoms of :func:`choose_centres` one by one: in a frame of millions each costs a look at all above the threshold.

    :raises InvalidInputError: shapes that do not fit, or a separation that is not positive.
    """
    if len(grades) != len(positions):
        raise InvalidInputError(f"grades: one for each of {len(positions)} atoms, got {len(grades)}")
    if not separation > 0:
        raise InvalidInputError(f"separation: must be positive, got {separation}")
    worst_first = np.where(np.isfinite(grades), grades, np.inf)
    candidates = np.flatnonzero(worst_first > threshold)
    candidates = candidates[np.lexsort((candidates, -worst_first[candidates]))]
    open_for = np.ones(len(candidates), dtype=bool)
    for rank, atom in enumerate(candidates):
        if not open_for[rank]:
            continue
        yield int(atom)
        rest = np.flatnonzero(open_for)
        near = _within(positions[candidates[rest]], cell, pbc, positions[atom], separation)
        open_for[rest[near]] = False


def _within(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, point: np.ndarray, radius: float) -> np.ndarray:
    numbers = np.zeros(len(positions), dtype=np.uint8)
    return np.unique(neighbourhood(numbers, positions, cell, pbc, point, radius).atoms)
