"""Repair of a fragment: no two atoms too close where its sides meet, and no net charge."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Final

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, describe_pair, pair_limits
from aiida_mlip.kernel.fragments.fragment import Fragment, NoFragmentError

#: Most atoms of one element that are taken away for the sake of the charge.
_MOST_REMOVED: Final[int] = 20


def remove_overlaps(fragment: Fragment, min_distance_ang: float | Mapping[str, float] | None) -> Fragment:
    """Of each pair that is too close take the atom farther from the centre away, never one of the core.

    :raises NoFragmentError: two atoms of the core are too close: the parent itself is unphysical there.
    """
    limits = pair_limits(min_distance_ang)
    while True:
        ratio, i, j, distance = closest_pair(fragment.numbers, fragment.positions, fragment.cell, fragment.pbc, limits)
        if ratio >= 1:
            return fragment
        far = np.linalg.norm(fragment.positions, axis=1)
        candidates = sorted((k for k in {i, j} if not fragment.frozen[k]), key=lambda k: (-far[k], -k))
        if not candidates:
            raise NoFragmentError(f"in the core {describe_pair(fragment.numbers, i, j, distance)}")
        fragment = fragment.take(np.delete(np.arange(len(fragment)), candidates[0]), removed=1)


def charge(numbers: np.ndarray, oxidation_states: Mapping[str, int]) -> int:
    """Sum of the oxidation states of atoms.

    :raises InvalidInputError: an element without an oxidation state; names it.
    """
    table = {atomic_numbers[symbol]: int(state) for symbol, state in oxidation_states.items()}
    if missing := sorted({chemical_symbols[number] for number in set(numbers.tolist()) - set(table)}):
        raise InvalidInputError(f"oxidation_states: none for {', '.join(missing)}")
    return sum(table[number] for number in numbers.tolist())


def balance(fragment: Fragment, oxidation_states: Mapping[str, int]) -> Fragment:
    """Take the fewest atoms away that make the fragment neutral: the outermost ones, never one of the core.

    :raises NoFragmentError: no such atoms.
    :raises InvalidInputError: an element without an oxidation state.
    """
    if not oxidation_states:
        return fragment
    excess = charge(fragment.numbers, oxidation_states)
    if excess == 0:
        return fragment
    far = np.linalg.norm(fragment.positions, axis=1)
    outermost_first = [k for k in np.lexsort((np.arange(len(far)), -np.round(far, 6))) if not fragment.frozen[k]]
    by_element = {
        symbol: [k for k in outermost_first if chemical_symbols[fragment.numbers[k]] == symbol]
        for symbol in sorted(oxidation_states)
    }
    counts = [range(min(len(rows), _MOST_REMOVED) + 1) for rows in by_element.values()]
    states = [int(oxidation_states[symbol]) for symbol in by_element]
    options = [
        picked for picked in product(*counts) if sum(n * q for n, q in zip(picked, states, strict=True)) == excess
    ]
    if not options:
        raise NoFragmentError(f"its charge is {excess:+d}, and no few atoms of the buffer add up to that")
    fewest = min(options, key=lambda picked: (sum(picked), picked))
    gone = [k for n, rows in zip(fewest, by_element.values(), strict=True) for k in rows[:n]]
    return fragment.take(np.delete(np.arange(len(fragment)), gone), removed=len(gone))
