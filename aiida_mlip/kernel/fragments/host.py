"""The host crystal around a point: which lattice, how it lies and how it is strained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, islice, product
from typing import Final

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial import cKDTree

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fragments.neighbourhood import Neighbourhood

#: First shell of a site: up to this many nearest-neighbour distances (both shells of bcc, the first of all others).
_FIRST_SHELL: Final[float] = 1.3
#: Environment a seed is recognised by, and a fit begins with.
_ENVIRONMENT: Final[float] = 2.1
#: Two vectors are alike when they differ by less than this many nearest-neighbour distances.
_TOLERANCE: Final[float] = 0.3
#: Part of a seed's environment that must be found, and most orientations of a seed that are refined.
_FOUND: Final[float] = 0.8
_MOST_REFINED: Final[int] = 200
#: Strain that the motion of the atoms feigns in the environment of one.
_NOISE: Final[float] = 0.1
#: A fit that occupies so many of its sites is not tried to be bettered from another seed.
_FULL: Final[float] = 0.9
#: Digits of a deformation that decide between orientations which symmetry makes equal.
_DECIMALS: Final[int] = 5


@dataclass(frozen=True)
class Host:
    """A crystal that a frame is made of.

    :param numbers: (b,) atomic numbers of the cell's atoms.
    :param positions: (b, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors.
    """

    numbers: UInt8[np.ndarray, "b"]
    positions: Float[np.ndarray, "b 3"]
    cell: Float[np.ndarray, "3 3"]

    def __post_init__(self) -> None:
        """Check that it is a crystal.

        :raises InvalidInputError: no atoms, or a cell without volume.
        """
        if not len(self.numbers) or self.positions.shape != (len(self.numbers), 3):
            raise InvalidInputError(f"host: {len(self.numbers)} atoms, positions {self.positions.shape}")
        if not abs(np.linalg.det(self.cell)) > 1e-6:
            raise InvalidInputError(f"host: the cell has no volume: {self.cell.tolist()}")

    def sites(self, around: Float[np.ndarray, "3"], radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sites within a radius (Å) of a point: basis index (s,), integer cell (s, 3), position (s, 3) Å."""
        heights = 1 / np.linalg.norm(np.linalg.inv(self.cell), axis=0)
        middle = around @ np.linalg.inv(self.cell)
        low, high = np.floor(middle - radius / heights) - 1, np.ceil(middle + radius / heights) + 1
        ranges = [np.arange(first, last + 1) for first, last in zip(low, high, strict=True)]
        cells = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
        where = (cells @ self.cell)[:, None] + self.positions[None]
        near = np.linalg.norm(where - around, axis=2) <= radius
        cell_index, basis = np.nonzero(near)
        return basis, cells[cell_index].astype(int), where[near]

    @property
    def nearest_neighbour_distance(self) -> float:
        """Å."""
        radius = float(np.linalg.norm(self.cell, axis=1).min()) + 1e-6
        return float(min(np.sort(self._distances(b, radius))[0] for b in range(len(self.numbers))))

    def _distances(self, basis: int, radius: float) -> np.ndarray:
        distances = np.linalg.norm(self.sites(self.positions[basis], radius)[2] - self.positions[basis], axis=1)
        return distances[distances > 1e-6]


@dataclass(frozen=True)
class HostFit:
    """How a host lies around a point: a site at x (Å) of the host is found at ``x @ deformation + origin``.

    :param deformation: (3, 3) rotation and strain.
    :param origin: (3,) Å from the point to the host's origin.
    :param rms: root mean square distance (Å) of the atoms from their sites.
    :param occupied: fraction of the sites within the radius of the fit that have an atom.
    :param site: (basis index, three integers of the cell) of the site nearest to the point.
    """

    deformation: Float[np.ndarray, "3 3"]
    origin: Float[np.ndarray, "3"]
    rms: float
    occupied: float
    site: tuple[int, int, int, int]

    @property
    def strain(self) -> Float[np.ndarray, "3 3"]:
        """Green-Lagrange strain of the host."""
        return (self.deformation @ self.deformation.T - np.eye(3)) / 2


@dataclass(frozen=True)
class _Affine:
    """Map of the host into the frame, and how well it holds: fraction of the sites found, rms distance (Å)."""

    deformation: np.ndarray
    origin: np.ndarray
    found: float
    rms: float

    @property
    def point(self) -> np.ndarray:
        """(3,) Å: where the host has the point that all vectors are counted from."""
        return np.asarray(-self.origin @ np.linalg.inv(self.deformation))

    @property
    def strain(self) -> float:
        """Largest component of the Green-Lagrange strain."""
        return float(np.abs(self.deformation @ self.deformation.T - np.eye(3)).max() / 2)

    def better_than(self, other: _Affine) -> bool:
        """Fuller, closer; last of all by its numbers alone, for orientations that symmetry makes equal."""
        for new, old, least in ((self.found, other.found, 1e-9), (-self.rms, -other.rms, 1e-7)):
            if abs(new - old) > least:
                return bool(new > old)
        difference = np.round(self.deformation, _DECIMALS).ravel() - np.round(other.deformation, _DECIMALS).ravel()
        different = np.flatnonzero(difference)
        return bool(len(different) and difference[different[0]] > 0)


def fit_host(
    around: Neighbourhood, host: Host, *, radius: float, max_strain: float = 0.12, max_seeds: int = 20
) -> HostFit | None:
    """Find the host around a point from the atoms near it.

    An atom whose neighbours stand as in the host, rotated and strained in any way, is the seed; the affine map from
    host to frame is then fitted by least squares to more and more atoms around it. Of the orientations that symmetry
    makes equal always the same one is taken, whatever the order of the atoms.

    :param around: atoms around the point, to ``radius`` at least.
    :param radius: Å; the fit takes in the atoms within it.
    :param max_strain: largest component of the strain that is believed.
    :param max_seeds: atoms tried, nearest to the point first.
    :returns: None when no atom has the surroundings of a host site.
    """
    unit = host.nearest_neighbour_distance
    if not len(around):
        return None
    tree = cKDTree(around.vectors)
    near = np.flatnonzero(np.linalg.norm(around.vectors, axis=1) <= radius)[:max_seeds]
    best: HostFit | None = None
    for seed in near:
        start = _best_start(around, tree, host, int(seed), unit, max_strain)
        fit = None if start is None else _grow(around, tree, host, start, unit, radius)
        if fit is None or np.abs(fit.strain).max() > max_strain:
            continue
        if best is None or fit.occupied > best.occupied:
            best = fit
        if best.occupied > _FULL:
            break  # a further seed would find the same
    return best


def _best_start(
    around: Neighbourhood, tree: cKDTree, host: Host, seed: int, unit: float, max_strain: float
) -> _Affine | None:
    """How the host lies around one atom, from its environment alone."""
    centre = around.vectors[seed]
    near = np.array(sorted(set(tree.query_ball_point(centre, 1.2 * _FIRST_SHELL * unit)) - {seed}), dtype=int)
    best: _Affine | None = None
    for basis in np.flatnonzero(host.numbers == around.numbers[seed]):
        start = host.positions[basis]
        kind, _, sites = host.sites(start, _ENVIRONMENT * unit)
        ideal, numbers = sites - start, host.numbers[kind]
        length = np.linalg.norm(ideal, axis=1)
        shell = (length > 1e-6) & (length <= _FIRST_SHELL * unit)
        shells = (ideal[shell], numbers[shell], around.vectors[near] - centre, around.numbers[near])
        for first in islice(_orientations(*shells), _MOST_REFINED):
            found = _refine(around, tree, ideal, numbers, _Affine(first, centre, 0.0, 0.0), unit, rounds=3)
            if found is None or found.found < _FOUND or found.strain > _NOISE + max_strain:
                continue  # a lattice sheared onto itself is not the host as it lies
            found = replace(found, origin=found.origin - start @ found.deformation)
            if best is None or found.better_than(best):
                best = found
    return best


def _orientations(
    ideal: np.ndarray, ideal_numbers: np.ndarray, actual: np.ndarray, actual_numbers: np.ndarray
) -> Iterator[np.ndarray]:
    """Deformations that take three vectors of the ideal shell to three neighbours, likeliest first."""
    if len(ideal) < 3 or len(actual) < 3:
        return
    triples = list(combinations(range(len(ideal)), 3))
    volumes = [abs(np.linalg.det(ideal[list(t)])) for t in triples]
    triple = list(triples[int(np.argmax(np.round(volumes, 6)))])
    frame, numbers = ideal[triple], ideal_numbers[triple]
    scale = float((frame**2).sum(axis=1).mean())
    options = [np.flatnonzero(actual_numbers == number) for number in numbers]
    picks = np.array([p for p in product(*options) if len(set(p)) == 3], dtype=int).reshape(-1, 3)
    chosen = actual[picks]
    mismatch = np.abs(chosen @ chosen.transpose(0, 2, 1) - frame @ frame.T).max(axis=(1, 2)) / scale
    keep = (mismatch < 0.45) & (np.linalg.det(chosen) * np.linalg.det(frame) > 0)
    inverse = np.linalg.inv(frame)
    for index in np.flatnonzero(keep)[np.argsort(mismatch[keep], kind="stable")]:
        yield inverse @ chosen[index]


def _refine(
    around: Neighbourhood,
    tree: cKDTree,
    ideal: np.ndarray,
    numbers: np.ndarray,
    affine: _Affine,
    unit: float,
    *,
    rounds: int,
) -> _Affine | None:
    """Least-squares map of ideal sites to the atoms nearest to them."""
    for _ in range(rounds):
        where = ideal @ affine.deformation + affine.origin
        distance, atom = tree.query(where, distance_upper_bound=_TOLERANCE * unit)
        sites = np.flatnonzero(np.isfinite(distance))
        sites = sites[around.numbers[atom[sites]] == numbers[sites]]
        if len(sites) < 5:
            return None
        known, actual = np.column_stack([ideal[sites], np.ones(len(sites))]), around.vectors[atom[sites]]
        solution, _, rank, _ = np.linalg.lstsq(known, actual, rcond=None)
        if rank < 4 or np.linalg.det(solution[:3]) <= 0:
            return None
        rms = float(np.sqrt(((known @ solution - actual) ** 2).sum(axis=1).mean()))
        affine = _Affine(solution[:3], solution[3], len(sites) / len(ideal), rms)
    return affine


def _grow(
    around: Neighbourhood, tree: cKDTree, host: Host, start: _Affine, unit: float, radius: float
) -> HostFit | None:
    """Extend a fit from the seed's environment to all sites within ``radius`` of the point."""
    affine: _Affine | None = start
    for reach in (*np.arange(_ENVIRONMENT * unit, radius, 0.8 * unit), radius, radius):
        if affine is None:
            return None
        kind, _, sites = host.sites(affine.point, reach)
        affine = _refine(around, tree, sites, host.numbers[kind], affine, unit, rounds=2)
    if affine is None:
        return None
    point = affine.point
    kind, cells, sites = host.sites(point, 2 * unit)
    distance = np.round(np.linalg.norm((sites - point) @ affine.deformation, axis=1), 6)
    nearest = np.lexsort((kind, cells[:, 2], cells[:, 1], cells[:, 0], distance))[0]
    site: Int[np.ndarray, "4"] = np.array([kind[nearest], *cells[nearest]])
    where = (int(site[0]), int(site[1]), int(site[2]), int(site[3]))
    return HostFit(affine.deformation, affine.origin, affine.rms, affine.found, where)
