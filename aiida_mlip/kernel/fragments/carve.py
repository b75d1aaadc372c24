"""Carving: from a large frame and a centre to a fragment: keep, complete, repair, balance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fragments.crystal import complete_crystal, completion_cell, outer_radius
from aiida_mlip.kernel.fragments.fragment import (
    NO_PARENT,
    Completion,
    Fragment,
    FragmentLimits,
    FrameTooSmallError,
    NoFragmentError,
    Region,
)
from aiida_mlip.kernel.fragments.host import Host, HostFit, fit_host
from aiida_mlip.kernel.fragments.molecules import CAP_NUMBER, complete_molecules
from aiida_mlip.kernel.fragments.neighbourhood import Neighbourhood, neighbourhood
from aiida_mlip.kernel.fragments.repair import balance, remove_overlaps
from aiida_mlip.kernel.supercells import shortest_image_distance

#: Atoms so much (Å) farther out than the core are copied with it.
_MARGIN: Final[float] = 0.5
#: A whole molecule may reach so far (Å) beyond the buffer.
_MOLECULE_REACH: Final[float] = 10.0
#: Atoms within a radius of the centre.
Around: TypeAlias = Callable[[float], Neighbourhood]
_NEAREST: Final[np.ndarray] = np.array([v for v in product((-1, 0, 1), repeat=3) if any(v)])


def carve(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    centre: int,
    limits: FragmentLimits,
    *,
    completion: Completion,
    host: Host | None = None,
) -> Fragment:
    """Cut the surroundings of an atom out of a frame and complete them.

    :param numbers: (a,) atomic numbers of the frame.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors.
    :param pbc: (3,) periodicity.
    :param centre: index of the atom.
    :param limits: radii, size, distances, charges.
    :param completion: ``crystal`` (needs ``host``): a supercell of the host as it lies there, strained and rotated,
        every site taken by the atom that is there; ``disordered``: a cube of the frame; ``molecular``: whole molecules,
        caps at cut bonds, no periodicity.
    :returns: the fragment, its centre first and at the origin.
    :raises InvalidInputError: no such atom, no host.
    :raises FrameTooSmallError: a frame smaller than the fragment.
    :raises NoFragmentError: nothing like the host is there, the fragment is too large, overlapping or charged.
    """
    if not 0 <= centre < len(numbers):
        raise InvalidInputError(f"centre: the frame has atoms 0 to {len(numbers) - 1}, got {centre}")
    point = positions[centre]

    def around(radius: float) -> Neighbourhood:
        return neighbourhood(numbers, positions, cell, pbc, point, radius)

    period = shortest_image_distance(cell, pbc)
    if completion == "crystal":
        if host is None:
            raise InvalidInputError("host: missing, completion to a crystal needs the crystal")
        fragment = _crystal(around, limits, host, period)
    elif completion == "disordered":
        fragment = _cube(around, limits, period)
    else:
        fragment = _molecular(around, limits, period)
    fragment = remove_overlaps(fragment, limits.min_distance_ang)
    fragment = balance(fragment, limits.oxidation_states)
    if len(fragment) > limits.max_atoms:
        raise NoFragmentError(f"it has {len(fragment)} atoms, more than max_atoms, {limits.max_atoms}")
    return fragment


def _crystal(around: Around, limits: FragmentLimits, host: Host, period: float) -> Fragment:
    fit = _fitted(around, limits, host)
    try:
        matrix, box = completion_cell(host, fit, in_radius=limits.in_radius, max_atoms=limits.max_atoms)
    except InvalidInputError as error:
        raise NoFragmentError(str(error)) from error
    reach = outer_radius(box) + 2 * host.nearest_neighbour_distance
    _check_size(shortest_image_distance(box, np.ones(3, dtype=bool)), period)
    near = around(reach)
    rows = complete_crystal(near, host, fit, matrix)
    core = np.flatnonzero(np.linalg.norm(near.vectors, axis=1) <= limits.core_radius + _MARGIN)
    return _assemble(near.take(np.union1d(rows, core)), box, limits, "crystal")


def _fitted(around: Around, limits: FragmentLimits, host: Host) -> HostFit:
    unit = host.nearest_neighbour_distance
    radius = limits.in_radius + unit
    fit = fit_host(around(radius + unit), host, radius=radius)
    if fit is None:
        raise NoFragmentError(
            "no host found: no atom near the centre has the surroundings of a site of the host crystal; is it "
            "another phase, or disordered?"
        )
    return fit


def _cube(around: Around, limits: FragmentLimits, period: float) -> Fragment:
    edge = 2 * limits.in_radius
    _check_size(edge, period)
    near = around(np.sqrt(3) / 2 * edge)
    inside = np.flatnonzero(((near.vectors >= -edge / 2) & (near.vectors < edge / 2)).all(axis=1))
    return _assemble(near.take(inside), edge * np.eye(3), limits, "disordered")


def _molecular(around: Around, limits: FragmentLimits, period: float) -> Fragment:
    _check_size(2 * limits.in_radius, period)
    reach = limits.in_radius + _MOLECULE_REACH
    near = around(reach)
    taken, caps = complete_molecules(near, radius=limits.in_radius, reach=reach, max_molecule=limits.max_atoms)
    near = near.take(taken)
    if len(np.unique(near.atoms)) < len(near):
        raise FrameTooSmallError("the frame is smaller than the fragment: an atom and its image are both in it")
    fragment = _assemble(near, np.zeros((3, 3)), limits, "molecular")
    return replace(
        fragment,
        numbers=np.concatenate([fragment.numbers, np.full(len(caps), CAP_NUMBER, dtype=np.uint8)]),
        positions=np.concatenate([fragment.positions, caps]),
        region=np.concatenate([fragment.region, np.full(len(caps), Region.CAP, dtype=np.uint8)]),
        parent_atom=np.concatenate([fragment.parent_atom, np.full(len(caps), NO_PARENT)]),
    )


def _check_size(wanted: float, period: float) -> None:
    """A frame that repeats within the fragment has no surroundings to cut out of it."""
    if period < wanted - 1e-3:
        raise FrameTooSmallError(
            f"the frame is smaller than the fragment: it repeats after {period:.2f} Å, the fragment after "
            f"{wanted:.2f} Å; label the whole frame, or ask for a smaller core or buffer"
        )


def _assemble(near: Neighbourhood, box: np.ndarray, limits: FragmentLimits, completion: Completion) -> Fragment:
    """Fragment of the atoms of a neighbourhood, each with its region."""
    distance = np.linalg.norm(near.vectors, axis=1)
    region = np.full(len(near), Region.BUFFER, dtype=np.uint8)
    region[_depth(near.vectors, box, limits.in_radius) >= limits.trust_depth] = Region.TRUST
    region[distance <= limits.core_radius + _MARGIN] = Region.CORE
    periodic = np.full(3, completion != "molecular")
    return Fragment(near.numbers, near.vectors, box, periodic, region, near.atoms, completion)


def _depth(vectors: np.ndarray, box: np.ndarray, radius: float) -> np.ndarray:
    """(k,) Å from each atom to the nearest cut: a face of the Wigner-Seitz cell, or the sphere of a cluster."""
    if not box.any():
        return np.asarray(radius - np.linalg.norm(vectors, axis=1))
    from ase.geometry.minkowski_reduction import minkowski_reduce

    lattice = _NEAREST @ minkowski_reduce(box)[0]
    length = np.linalg.norm(lattice, axis=1)
    return np.asarray((length / 2 - vectors @ (lattice / length[:, None]).T).min(axis=1))
