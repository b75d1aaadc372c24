"""Commensurate completion: a periodic fragment of a crystal, each of its sites taken by the atom that is there."""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fragments.host import Host, HostFit
from aiida_mlip.kernel.fragments.neighbourhood import Neighbourhood
from aiida_mlip.kernel.supercells import shortest_image_distance, supercell_matrix

#: Distances (Å) that differ by less are equal: which image of a site is nearest is then decided by its cell.
_EQUAL: Final[float] = 1e-4
#: Part of the in-radius that must be reached: what a fit to moving atoms makes of the lattice must not double the cell.
_NEARLY: Final[float] = 0.99
_PERIODIC: Final[np.ndarray] = np.ones(3, dtype=bool)


def completion_cell(
    host: Host, fit: HostFit, *, in_radius: float, max_atoms: int
) -> tuple[Int[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]]:
    """Smallest supercell of the fitted host whose images are twice ``in_radius`` (Å) apart, to 1 %.

    :returns: integer matrix on the host's cell, and the cell (3, 3) Å as it lies in the frame.
    :raises InvalidInputError: it would have more than ``max_atoms`` sites; names the radius that fits.
    """
    strained = host.cell @ fit.deformation
    # asked of the host as given, so that neither a rotation nor a small strain changes the shape
    request = _NEARLY * 2 * in_radius / float(np.linalg.det(fit.deformation) ** (1 / 3))
    matrix = supercell_matrix(host.cell, _PERIODIC, request)
    while shortest_image_distance(matrix @ strained, _PERIODIC) < _NEARLY * 2 * in_radius:
        request *= 1.01
        matrix = supercell_matrix(host.cell, _PERIODIC, request)
    n_sites = round(abs(float(np.linalg.det(matrix)))) * len(host.numbers)
    if n_sites > max_atoms:
        fits = in_radius * (max_atoms / n_sites) ** (1 / 3)
        raise InvalidInputError(
            f"max_atoms: a fragment of in-radius {in_radius:.2f} Å has {n_sites} sites, more than {max_atoms}; "
            f"about {fits:.1f} Å would fit"
        )
    return matrix, matrix @ strained


def complete_crystal(
    around: Neighbourhood, host: Host, fit: HostFit, matrix: Int[np.ndarray, "3 3"]
) -> Int[np.ndarray, "k"]:
    """Atoms of the periodic fragment: those that stand on the supercell's sites.

    Of the images of each site the one nearest to the centre is taken (its Wigner-Seitz cell), together with the atom,
    or atoms, nearer to it than to any other site. A site without one stays empty: vacancies, voids and free surfaces
    are real. Two atoms at one site (a split interstitial) both stay.

    :param around: atoms around the centre, to the circumradius of the supercell and a neighbour distance more.
    :returns: (k,) rows of ``around``, in its order (nearest to the centre first).
    """
    unit = host.nearest_neighbour_distance
    supercell = matrix @ host.cell
    centre = host.positions[fit.site[0]] + np.array(fit.site[1:]) @ host.cell
    circumradius = outer_radius(supercell @ fit.deformation) + unit
    stretch = float(np.linalg.norm(np.linalg.inv(fit.deformation), ord=2))
    kind, cells, sites = host.sites(centre, (circumradius + 2 * unit) * stretch)
    offset = (sites - centre) @ fit.deformation
    # each class of sites that the supercell makes one is represented by the member nearest to the centre
    relative = cells - np.array(fit.site[1:])
    classes = _classes(kind, relative, matrix)
    distance = np.round(np.linalg.norm(offset, axis=1) / _EQUAL).astype(int)
    order = np.lexsort((relative[:, 2], relative[:, 1], relative[:, 0], kind, distance, classes))
    first = order[np.concatenate([[True], np.diff(classes[order]) != 0])]
    chosen = np.zeros(len(sites), dtype=bool)
    chosen[first] = True
    shift = centre @ fit.deformation + fit.origin  # from the point to its site
    gap, site_of_atom = cKDTree(offset + shift).query(around.vectors)
    here = chosen[np.minimum(site_of_atom, len(sites) - 1)] & (gap < 2 * unit)
    return np.flatnonzero(here)


def _classes(kind: np.ndarray, cells: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(s,) number shared by sites that differ by a vector of the superlattice."""
    inverse = np.linalg.inv(matrix)
    size = round(abs(float(np.linalg.det(matrix))))
    # multiples of 1/size, so rounding is exact
    scaled = np.rint((cells @ inverse) * size).astype(int) % size
    return np.unique(np.column_stack([kind, scaled]), axis=0, return_inverse=True)[1].ravel()


def outer_radius(cell: Float[np.ndarray, "3 3"]) -> float:
    """Radius (Å) of a sphere around the Wigner-Seitz cell: half the longest diagonal of the reduced cell (3, 3) Å."""
    from ase.geometry.minkowski_reduction import minkowski_reduce

    reduced = minkowski_reduce(cell)[0]
    corners = np.array(list(product((-0.5, 0.5), repeat=3))) @ reduced
    return float(np.linalg.norm(corners, axis=1).max())
