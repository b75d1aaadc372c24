"""Putting geometries of different sizes together as frames with their lineage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, describe_pair
from aiida_mlip.kernel.distances import geometry as geometry_of
from aiida_mlip.kernel.fingerprints import equal_structures
from aiida_mlip.kernel.frames import Frames, frame_ids, from_arrays, id_hex
from aiida_mlip.kernel.supercells import repeat, supercell_matrix


class Geometry(NamedTuple):
    """One configuration: numbers (a,), positions (a, 3) Å, cell (3, 3) Å, pbc (3,)."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


def geometry(frames: Frames, row: int) -> Geometry:
    """Geometry of a row."""
    return Geometry(*geometry_of(frames, row))


def name_of(frames: Frames, row: int) -> str:
    """First eight digits of a row's frame id, for messages."""
    return id_hex(frames.frame_id[row : row + 1])[0][:8]


def assemble(
    geometries: Sequence[Geometry],
    *,
    parents: Frames | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    by_structure: bool = False,
) -> Frames:
    """Frames of these geometries.

    :param parents: frames that ``rows`` (one per geometry) refers to; their ids become ``parent_id``.
    :param by_structure: the same structure made twice (equivalent sites) is one split group; else each is its own.
    """
    frames = from_arrays(
        natoms=np.array([len(part.numbers) for part in geometries]),
        numbers=np.concatenate([part.numbers for part in geometries]),
        positions=np.concatenate([part.positions for part in geometries]),
        cell=np.array([part.cell for part in geometries]),
        pbc=np.array([part.pbc for part in geometries], dtype=bool),
        parent_id=None if parents is None or rows is None else parents.frame_id[np.asarray(rows)],
    )
    groups = frame_ids(frames)
    return frames.with_columns(group_id=groups[equal_structures(frames)] if by_structure else groups)


def enlarged(part: Geometry, min_image_distance: float | None) -> Geometry:
    """Smallest supercell that keeps ``min_image_distance`` (Å); the geometry itself for None."""
    if min_image_distance is None or not part.pbc.any():
        return part
    matrix = supercell_matrix(part.cell, part.pbc, min_image_distance)
    if (matrix == np.eye(3, dtype=int)).all():
        return part
    return Geometry(*repeat(part.numbers, part.positions, part.cell, matrix), part.pbc)


def check_apart(part: Geometry, limits: np.ndarray, what: str) -> None:
    """Refuse a geometry with a pair below its limit.

    :raises InvalidInputError: naming the pair.
    """
    ratio, i, j, distance = closest_pair(*part, limits)
    if ratio < 1.0:
        allowed = limits[part.numbers[i], part.numbers[j]]
        raise InvalidInputError(
            f"{what}: {describe_pair(part.numbers, i, j, distance)}, min_distance_ang allows {allowed:.3f} Å"
        )


def is_apart(part: Geometry, limits: np.ndarray) -> bool:
    """Whether all pairs keep their limits."""
    return closest_pair(*part, limits)[0] >= 1.0


def atomic_number(symbol: str, where: str) -> int:
    """Atomic number of a chemical symbol.

    :raises InvalidInputError: not a chemical symbol; the message names the field ``where``.
    """
    from ase.data import atomic_numbers

    if symbol not in atomic_numbers or symbol == "X":
        raise InvalidInputError(f"{where}: {symbol!r} is no chemical symbol")
    return int(atomic_numbers[symbol])


def sites_of(part: Geometry, species: Sequence[str] | None, where: str) -> np.ndarray:
    """Indices of the atoms of some species; all atoms for None.

    :raises InvalidInputError: there are none; the message names the field ``where``.
    """
    if species is None:
        return np.arange(len(part.numbers))
    wanted = [atomic_number(symbol, where) for symbol in species]
    found = np.flatnonzero(np.isin(part.numbers, wanted))
    if len(found) == 0:
        raise InvalidInputError(f"{where}: no atom of {list(species)} in a parent of {formula(part.numbers)}")
    return found


def formula(numbers: np.ndarray) -> str:
    """Formula of atomic numbers, by atomic number: ``O8Si4``."""
    from ase.data import chemical_symbols

    values, counts = np.unique(numbers, return_counts=True)
    return "".join(f"{chemical_symbols[z]}{n if n > 1 else ''}" for z, n in zip(values, counts, strict=True))
