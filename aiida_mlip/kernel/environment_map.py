"""A map of the environments in a dataset: the two directions in which those of an element differ most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.descriptors import DEFAULT_CUTOFF, atomic_descriptors
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.frames import NONE, Frames


@dataclass(frozen=True)
class EnvironmentMap:
    """Environments of one element on a plane.

    :param symbol: chemical symbol.
    :param coordinates: (n, 2) along the two leading principal axes, dimensionless.
    :param generators: (n,) name of what made the frame of each; empty for imported ones.
    :param explained: share of the variance that the plane shows.
    """

    symbol: str
    coordinates: Float[np.ndarray, "n 2"]
    generators: tuple[str, ...]
    explained: float


def spread_rows(natoms: Int[np.ndarray, "n"], kinds: np.ndarray, *, max_atoms: int) -> Int[np.ndarray, "k"]:
    """Rows to look at: evenly over the dataset and over what made them, with about so many atoms in all.

    :param natoms: (n,) atoms of each row.
    :param kinds: (n,) name of each row's kind; each gets an equal share of the atoms.
    :param max_atoms: at least the first row of every kind is taken, whatever its size.
    :returns: row numbers, growing.

    >>> spread_rows(np.full(6, 10), np.array(["a", "a", "a", "a", "b", "b"]), max_atoms=40).tolist()
    [0, 2, 4, 5]
    """
    if max_atoms < 1:
        raise InvalidInputError(f"max_atoms: must be at least 1, got {max_atoms}")
    names = np.unique(kinds)
    taken = []
    left = float(max_atoms)
    by_size = sorted(names, key=lambda name: int(natoms[kinds == name].sum()))
    for place, name in enumerate(by_size):
        rows = np.flatnonzero(kinds == name)
        share = left / (len(by_size) - place)
        total = float(natoms[rows].sum())
        step = max(1, int(np.ceil(total / share))) if share > 0 else len(rows)
        mine = rows[::step]
        left = max(0.0, left - float(natoms[mine].sum()))
        taken.append(mine)
    return np.sort(np.concatenate(taken)) if taken else np.zeros(0, dtype=int)


def environment_maps(blocks: Iterable[Frames], *, cutoff: float = DEFAULT_CUTOFF) -> list[EnvironmentMap]:
    """One map per element, by atomic number: principal axes of its :func:`atomic_descriptors`.

    :param blocks: frames.
    :param cutoff: of the descriptor (Å).
    """
    values: dict[int, list[np.ndarray]] = {}
    makers: dict[int, list[str]] = {}
    for frames in blocks:
        for row in range(len(frames)):
            part = geometry(frames, row)
            descriptors, name = atomic_descriptors(*part, cutoff=cutoff), _generator(frames, row)
            for z in np.unique(part[0]):
                mine = descriptors[part[0] == z]
                values.setdefault(int(z), []).append(mine)
                makers.setdefault(int(z), []).extend([name] * len(mine))
    return [_map(z, np.concatenate(values[z]), makers[z]) for z in sorted(values)]


def _map(number: int, values: np.ndarray, makers: list[str]) -> EnvironmentMap:
    centred = values - values.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(2)])  # eigh leaves the sign open
    total = float(variances.sum())
    explained = float(variances[-2:].sum()) / total if total > 0 else 1.0
    return EnvironmentMap(str(chemical_symbols[number]), centred @ axes, tuple(makers), explained)


def _generator(frames: Frames, row: int) -> str:
    index = int(frames.generator[row])
    return "" if index == NONE else frames.generators[index]
