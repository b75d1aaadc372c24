"""Pair distances under periodic boundary conditions, and the limits that keep atoms apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.cells import boxed
from aiida_mlip.kernel.frames import Frames

#: Fraction of the sum of covalent radii (doi:10.1039/b801115j) below which two atoms overlap, unless told otherwise.
DEFAULT_SCALE: Final[float] = 0.7
_N_ELEMENTS: Final[int] = len(covalent_radii)


def pair_limits(
    min_distance_ang: float | Mapping[str, float] | None,
    *,
    scale: float = DEFAULT_SCALE,
    where: str = "min_distance_ang",
) -> np.ndarray:
    """(119, 119) smallest allowed distance (Å) by atomic numbers, symmetric.

    :param min_distance_ang: one distance for all pairs, or ``{"Si-O": 1.4, ...}``; a pair that is not named, or all
        pairs when None, takes ``scale`` times the sum of the covalent radii.
    :param where: name of the field in messages.
    :raises InvalidInputError: a distance that is not positive, or a key that is not a pair of chemical symbols.
    """
    limits: np.ndarray = scale * (covalent_radii[:, None] + covalent_radii[None, :])
    if min_distance_ang is None:
        return limits
    named = min_distance_ang if isinstance(min_distance_ang, Mapping) else {}
    if not isinstance(min_distance_ang, Mapping):
        limits = np.full_like(limits, _positive(float(min_distance_ang), where))
    for key, value in named.items():
        symbols = key.split("-")
        if len(symbols) != 2 or any(symbol not in atomic_numbers for symbol in symbols):
            raise InvalidInputError(f"{where}: {key!r} is not a pair of chemical symbols such as 'Si-O'")
        i, j = (atomic_numbers[symbol] for symbol in symbols)
        limits[i, j] = limits[j, i] = _positive(float(value), f"{where}.{key}")
    return limits


def closest_pair(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    limits: np.ndarray,
    *,
    reach: float = 1.0,
) -> tuple[float, int, int, float]:
    """Pair of atoms (periodic images included) with the smallest ratio of distance to its limit.

    :param numbers: (a,) atomic numbers.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors.
    :param pbc: (3,) periodicity.
    :param limits: see :func:`pair_limits`.
    :param reach: look for pairs up to this many times their limit.
    :returns: (ratio, i, j, distance in Å); (inf, -1, -1, inf) when no pair is within reach.
    """
    i, j, d, ratio = _pairs(numbers, positions, cell, pbc, limits, reach)
    if len(i) == 0:
        return np.inf, -1, -1, np.inf
    k = int(np.argmin(ratio))
    return float(ratio[k]), int(i[k]), int(j[k]), float(d[k])


def near_pairs(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    limits: np.ndarray,
    *,
    reach: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs nearer than ``reach`` times their limit, both directions: i (p,), j (p,) and distance over limit (p,).

    Parameters as in :func:`closest_pair`.
    """
    i, j, _, ratio = _pairs(numbers, positions, cell, pbc, limits, reach)
    near = ratio < reach
    return i[near], j[near], ratio[near]


def _pairs(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, limits: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs within the reach of the largest limit: i, j, distance (Å), distance over limit."""
    species = np.unique(numbers)
    cutoff = reach * float(limits[np.ix_(species, species)].max())
    # the box only serves the neighbour search, which wants a cell with volume
    moved, box = boxed(positions, cell, pbc, padding=1.0)
    i, j, d = neighbour_list(
        "ijd",
        positions=moved,
        cell=box,
        pbc=np.asarray(pbc, dtype=bool),
        numbers=np.asarray(numbers, dtype=np.int32),
        cutoff=cutoff,
    )
    return i, j, d, d / limits[numbers[i], numbers[j]]


def smallest_distances(frames: Frames, *, cutoff: float) -> np.ndarray:
    """(n,) smallest distance (Å) between two atoms of each row, images included; inf above ``cutoff``."""
    flat = np.full((_N_ELEMENTS, _N_ELEMENTS), float(cutoff))
    return np.array([closest_pair(*geometry(frames, row), flat)[3] for row in range(len(frames))])


def covalent_ratios(frames: Frames, *, reach: float = 3.0) -> np.ndarray:
    """(n,) smallest distance of each row in units of the pair's sum of covalent radii; inf above ``reach``.

    Bonded matter gives 0.8 to 1.2, whatever the elements; noble gases 1.6 and more.
    """
    limits = pair_limits(None, scale=1.0)
    return np.array([closest_pair(*geometry(frames, row), limits, reach=reach)[0] for row in range(len(frames))])


def describe_pair(numbers: np.ndarray, i: int, j: int, distance: float) -> str:
    """Sentence part for messages, e.g. ``Si (atom 0) and Si (atom 3) are 0.400 Å apart``."""
    return (
        f"{chemical_symbols[numbers[i]]} (atom {i}) and {chemical_symbols[numbers[j]]} (atom {j}) are {distance:.3f} Å "
        "apart"
    )


def geometry(frames: Frames, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(numbers, positions, cell, pbc) of a row."""
    part = frames.atom_slice(row)
    return frames.numbers[part], frames.positions[part], frames.cell[row], frames.pbc[row]


def _positive(value: float, where: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise InvalidInputError(f"{where}: a distance must be positive, got {value}")
    return value
