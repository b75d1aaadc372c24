"""Molecular completion: whole molecules, and caps where a bond of an endless network is cut."""

from __future__ import annotations

from typing import Final

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int
from matscipy.neighbours import neighbour_list
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from aiida_mlip.kernel.fragments.neighbourhood import Neighbourhood

#: Atoms are bonded when nearer than this many times the sum of their covalent radii (doi:10.1039/b801115j).
BOND_SCALE: Final[float] = 1.2
#: Caps are hydrogen.
CAP_NUMBER: Final[int] = 1


def bonds(around: Neighbourhood) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Pairs of bonded rows, both directions."""
    radii = covalent_radii[around.numbers]
    cutoff = 2 * BOND_SCALE * float(radii.max())
    extent = np.ptp(around.vectors, axis=0) + 2 * cutoff
    i, j, d = neighbour_list(
        "ijd",
        positions=around.vectors - around.vectors.min(axis=0) + cutoff,
        cell=np.diag(extent),
        pbc=np.zeros(3, dtype=bool),
        numbers=around.numbers.astype(np.int32),
        cutoff=cutoff,
    )
    keep = d <= BOND_SCALE * (radii[i] + radii[j])
    return i[keep], j[keep]


def complete_molecules(
    around: Neighbourhood, *, radius: float, reach: float, max_molecule: int
) -> tuple[Bool[np.ndarray, "k"], Float[np.ndarray, "c 3"]]:
    """Which atoms belong to the fragment, and where its caps stand.

    Molecules with an atom within ``radius`` are taken whole. A network that is larger than ``max_molecule`` atoms, or
    does not end within ``reach``, is cut at ``radius``: an outer atom bound to two inner ones is taken too, every
    other cut bond ends in a hydrogen at the sum of the covalent radii along the bond.

    :param around: atoms around the centre, to ``reach``.
    :returns: (k,) mask of rows of ``around``, and (c, 3) caps in Å from the centre.
    """
    i, j = bonds(around)
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(around), len(around)))
    _, molecule = connected_components(graph, directed=False)
    distance = np.linalg.norm(around.vectors, axis=1)
    longest = 2 * BOND_SCALE * float(covalent_radii[around.numbers].max())
    endless = np.zeros(molecule.max() + 1, dtype=bool)
    endless[np.unique(molecule[distance > reach - longest])] = True
    endless |= np.bincount(molecule) > max_molecule
    inside = distance <= radius
    touched = np.zeros(len(endless), dtype=bool)
    touched[np.unique(molecule[inside])] = True
    taken = np.where(endless[molecule], inside, touched[molecule])
    while True:  # an atom between two that are taken: two caps would stand in each other's way
        bound = np.bincount(j[taken[i] & ~taken[j]], minlength=len(around))
        more = bound >= 2
        if not more.any():
            break
        taken = taken | more
    cut = taken[i] & ~taken[j]
    along = around.vectors[j[cut]] - around.vectors[i[cut]]
    length = covalent_radii[around.numbers[i[cut]]] + covalent_radii[CAP_NUMBER]
    caps = around.vectors[i[cut]] + along * (length / np.linalg.norm(along, axis=1))[:, None]
    return taken, caps
