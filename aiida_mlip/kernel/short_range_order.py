"""Short-range order: Warren-Cowley parameters of the neighbour shells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Int, UInt8
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError


@dataclass(frozen=True)
class ShortRangeOrder:
    """Warren-Cowley parameters.

    :param species: (s,) chemical symbols, by atomic number.
    :param fractions: (s,) share of the sites.
    :param radii: (k,) mean distance (Å) of each shell.
    :param coordination: (k,) mean number of neighbours.
    :param alpha: (k, s, s) parameters.
    """

    species: tuple[str, ...]
    fractions: Float[np.ndarray, "s"]
    radii: Float[np.ndarray, "k"]
    coordination: Float[np.ndarray, "k"]
    alpha: Float[np.ndarray, "k s s"]

    def between(self, first: str, second: str) -> Float[np.ndarray, "k"]:
        """(k,) parameters of one pair of elements.

        :raises InvalidInputError: an element that is not there.
        """
        for symbol in (first, second):
            if symbol not in self.species:
                raise InvalidInputError(f"species: no {symbol!r} here; there are {list(self.species)}")
        return self.alpha[:, self.species.index(first), self.species.index(second)]


def warren_cowley(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    n_shells: int = 3,
    shell_gap: float = 0.2,
    max_radius: float = 12.0,
) -> ShortRangeOrder:
    """Warren-Cowley parameters α_AB(k) = 1 - P_k(B|A) / c_B of the first shells (doi:10.1103/PhysRev.77.669).

    P_k(B|A) is the share of B among the k-th neighbours of A atoms, c_B the share of B among the sites. 0: random;
    negative: A and B attract; for two elements α_AB >= -c_min/c_max … 1. Shells are told apart by gaps between the
    sorted distances, so a distorted lattice is fine as long as its shells are.

    :param numbers: (a,) atomic numbers of the sites on which the order is measured.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors.
    :param pbc: (3,) periodicity; all three.
    :param n_shells: shells.
    :param shell_gap: a gap (Å) larger than this separates two shells.
    :param max_radius: look for shells up to here (Å).
    :raises InvalidInputError: not periodic in three directions, no such number of shells within ``max_radius``.

    >>> from ase.build import bulk
    >>> cell = bulk("CuAu", "cesiumchloride", a=3.0)
    >>> warren_cowley(cell.numbers, cell.positions, cell.cell.array, cell.pbc, n_shells=2).between("Cu", "Au").tolist()
    [-1.0, 1.0]
    """
    if not np.all(pbc):
        raise InvalidInputError(f"pbc: shells need three periodic directions, got {np.asarray(pbc).tolist()}")
    if n_shells < 1 or shell_gap <= 0:
        raise InvalidInputError(f"n_shells, shell_gap: must be positive, got {n_shells}, {shell_gap}")
    i, j, shell, radii = _shells(positions, cell, n_shells, shell_gap, max_radius)
    species, index, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    fractions = counts / len(numbers)
    pairs = np.zeros((n_shells, len(species), len(species)))
    np.add.at(pairs, (shell, index[i], index[j]), 1.0)
    totals = pairs.sum(axis=2)
    if (totals == 0).any():
        raise InvalidInputError("n_shells: an atom has no neighbour in some shell; lower n_shells or raise shell_gap")
    alpha = 1.0 - pairs / totals[:, :, None] / fractions
    return ShortRangeOrder(
        species=tuple(chemical_symbols[z] for z in species),
        fractions=fractions,
        radii=radii,
        coordination=totals.sum(axis=1) / len(numbers),
        alpha=alpha,
    )


def _shells(
    positions: np.ndarray, cell: np.ndarray, n_shells: int, gap: float, max_radius: float
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Int[np.ndarray, "p"], Float[np.ndarray, "k"]]:
    """Ordered pairs (i, j) of the first shells, the shell of each, and the shells' mean distances."""
    # start small: most of what max_radius holds is not needed
    cutoff = min(max_radius, 1.5 * (abs(np.linalg.det(cell)) / len(positions)) ** (1 / 3) * n_shells ** (1 / 2) + gap)
    while True:
        i, j, d = neighbour_list("ijd", positions=positions, cell=cell, pbc=np.ones(3, dtype=bool), cutoff=cutoff)
        order = np.argsort(d, kind="stable")
        number = np.concatenate([[0], np.cumsum(np.diff(d[order]) > gap)]) if len(d) else np.zeros(0, dtype=int)
        # the last shell counts only when a gap beyond it shows that it is complete
        complete = int(number[-1]) + int(cutoff - d.max() > gap) if len(d) else 0
        if complete >= n_shells:
            break
        if cutoff >= max_radius:
            raise InvalidInputError(
                f"n_shells: {n_shells} shells asked for, {complete} separated by {gap} Å within {max_radius} Å"
            )
        cutoff = min(1.3 * cutoff, max_radius)
    first = order[number < n_shells]
    shell = number[number < n_shells].astype(int)
    radii = np.bincount(shell, weights=d[first]) / np.bincount(shell)
    return i[first], j[first], shell, radii
