"""Types of a model: one for each element, or one for each element and level of theory (``Cu0 Pt0 Cu1 Pt1`` of two).

Allegro models cannot be told the level of theory of a frame; that a copper atom of the second level has another type
than one of the first they can learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from aiida_mlip.errors import SpeciesError


def level_types(species: Sequence[str], n_levels: int) -> tuple[str, ...]:
    """Names of the types, level after level.

    >>> level_types(["Cu", "Pt"], 2)
    ('Cu0', 'Pt0', 'Cu1', 'Pt1')
    """
    return tuple(f"{symbol}{level}" for level in range(n_levels) for symbol in species)


def species_of_types(type_names: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Chemical symbols in the order of the types, and how many levels of theory each has a type of its own for.

    Names that are not those of :func:`level_types` are returned as they are, with one level.

    >>> species_of_types(["Cu0", "Pt0", "Cu1", "Pt1"])
    (('Cu', 'Pt'), 2)
    >>> species_of_types(["Cu", "Pt"])
    (('Cu', 'Pt'), 1)
    """
    first = tuple(name[:-1] for name in type_names if name.endswith("0") and name[:-1] in atomic_numbers)
    n_levels = len(type_names) // len(first) if first else 1
    if n_levels > 1 and level_types(first, n_levels) == tuple(type_names):
        return first, n_levels
    return tuple(type_names), 1


def type_indices(type_names: Sequence[str], numbers: np.ndarray, level: int | np.ndarray = 0) -> np.ndarray:
    """(a,) the model's type of each atom.

    :param type_names: chemical symbols in the order of the model's types, those of the first level of theory.
    :param numbers: (a,) atomic numbers.
    :param level: index of the level of theory, of all atoms or (a,) of each, where levels have types of their own.
    :raises SpeciesError: an element that the model does not cover.

    >>> type_indices(["Si", "C"], np.array([6, 14, 14])).tolist()
    [1, 0, 0]
    >>> type_indices(["Si", "C"], np.array([6, 14, 14]), level=1).tolist()
    [3, 2, 2]
    """
    table = np.full(len(chemical_symbols), -1, dtype=np.int64)
    for index, name in enumerate(type_names):
        if name in atomic_numbers:
            table[atomic_numbers[name]] = index
    types = table[numbers]
    if (types < 0).any():
        missing = sorted({chemical_symbols[number] for number in numbers[types < 0]})
        raise SpeciesError(f"the model does not cover {', '.join(missing)}; it covers {', '.join(type_names)}")
    return types + level * len(type_names)
