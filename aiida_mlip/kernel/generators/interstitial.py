"""Interstitials: atoms put into the holes of a structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce
from scipy.spatial import Delaunay, Voronoi, cKDTree

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import (
    Geometry,
    assemble,
    atomic_number,
    check_apart,
    enlarged,
    geometry,
    is_apart,
    name_of,
)
from aiida_mlip.kernel.generators.base import Generator, at_least

#: Voronoi vertices closer than this (Å) are one hole.
_MERGE: Final[float] = 0.2


@dataclass(frozen=True)
class Interstitial:
    """Keys of an interstitial step.

    :param per_parent: frames made from each parent.
    :param species: element put in, or several, taken in turn; None: the elements of the parent.
    :param n_interstitials: atoms put into each frame.
    :param sites: ``voronoi``: centres of the holes; ``random``: anywhere that keeps the distances.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param min_image_distance_ang: enlarge the parent until a defect is this far (Å) from its images; None: as it is.
    :param max_attempts: draws for one frame before giving up.
    """

    per_parent: int = 1
    species: str | tuple[str, ...] | None = None
    n_interstitials: int = 1
    sites: Literal["voronoi", "random"] = "voronoi"
    min_distance_ang: float | Mapping[str, float] | None = None
    min_image_distance_ang: float | None = None
    max_attempts: int = 1000

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.n_interstitials, 1, "n_interstitials")
        at_least(self.max_attempts, 1, "max_attempts")
        pair_limits(self.min_distance_ang)
        for symbol in self.symbols or ():
            atomic_number(symbol, "species")
        if self.min_image_distance_ang is not None and not 0 < self.min_image_distance_ang < np.inf:
            raise InvalidInputError(f"min_image_distance_ang: must be positive, got {self.min_image_distance_ang}")

    @property
    def symbols(self) -> tuple[str, ...] | None:
        """Elements as a tuple."""
        return (self.species,) if isinstance(self.species, str) else self.species


def interstitial(parents: Frames, parameters: Interstitial, rng: np.random.Generator) -> Frames:
    """``per_parent`` copies of (a supercell of) every parent with extra atoms; equal structures share a split group.

    :raises InvalidInputError: no hole is large enough for the minimum distances.
    """
    limits = pair_limits(parameters.min_distance_ang)
    made, rows = [], []
    for row in range(len(parents)):
        host = enlarged(geometry(parents, row), parameters.min_image_distance_ang)
        what = f"interstitial in frame {name_of(parents, row)}"
        check_apart(host, limits, what)
        numbers = _choices(host, parameters)
        holes = voronoi_holes(host) if parameters.sites == "voronoi" else None
        for k in range(parameters.per_parent):
            part = host
            for extra in range(parameters.n_interstitials):
                number = numbers[(k * parameters.n_interstitials + extra) % len(numbers)]
                part = _insert(part, number, holes, limits, rng, attempts=parameters.max_attempts, what=what)
            made.append(part)
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def voronoi_holes(part: Geometry) -> np.ndarray:
    """(h, 3) centres (Å, in one cell) of the holes of a structure: vertices of its Voronoi cells, merged, widest first.

    A vertex is as far as possible from the atoms around it (doi:10.1103/PhysRevB.90.085133). Without periodicity only
    vertices inside the convex hull of the atoms count.

    :raises InvalidInputError: fewer than five atoms without periodicity, or all in a plane.
    """
    part = _reduced(part)
    points = _with_images(part)
    if len(points) < 5 or np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-6) < 3:
        raise InvalidInputError(f"sites: {len(part.numbers)} atoms without a hole between them; use sites: random")
    vertices = Voronoi(points).vertices
    scaled = vertices @ np.linalg.pinv(part.cell[part.pbc])
    home = ((scaled > -1e-6) & (scaled < 1.0 - 1e-6)).all(axis=1)
    if not part.pbc.all():
        home &= Delaunay(points).find_simplex(vertices) >= 0
    vertices = vertices[home]
    radii = cKDTree(points).query(vertices)[0]
    order = np.lexsort((*np.round(vertices.T, 6), -np.round(radii, 6)))
    tree = cKDTree(vertices)
    kept = np.ones(len(vertices), dtype=bool)
    for k in order:
        if kept[k]:
            kept[[m for m in tree.query_ball_point(vertices[k], _MERGE) if m != k]] = False
    return np.asarray(vertices[[k for k in order if kept[k]]])


def _reduced(part: Geometry) -> Geometry:
    """The same structure with a Minkowski-reduced cell and its atoms inside (next-nearest cells then do not matter)."""
    if not part.pbc.any():
        return part
    cell = minkowski_reduce(part.cell, pbc=part.pbc)[0]
    inverse = np.linalg.pinv(cell[part.pbc])
    shift = np.floor(part.positions @ inverse)
    return part._replace(positions=part.positions - shift @ cell[part.pbc], cell=cell)


def _with_images(part: Geometry) -> np.ndarray:
    """Positions with those of the neighbouring cells along the periodic directions."""
    steps = [(-1, 0, 1) if periodic else (0,) for periodic in part.pbc]
    shifts = np.array(list(product(*steps))) @ part.cell
    return np.asarray((part.positions[None] + shifts[:, None]).reshape(-1, 3))


def _choices(host: Geometry, parameters: Interstitial) -> list[int]:
    if parameters.symbols is None:
        return [int(z) for z in np.unique(host.numbers)]
    return [atomic_number(symbol, "species") for symbol in parameters.symbols]


def _insert(
    part: Geometry,
    number: int,
    holes: np.ndarray | None,
    limits: np.ndarray,
    rng: np.random.Generator,
    *,
    attempts: int,
    what: str,
) -> Geometry:
    """The geometry with one more atom, at the end."""
    if holes is None:
        box = part.cell if part.pbc.all() else np.diag(np.ptp(part.positions, axis=0))
        origin = np.zeros(3) if part.pbc.all() else part.positions.min(axis=0)
        places = origin + rng.random((attempts, 3)) @ box
    else:
        places = rng.permutation(holes)[:attempts]
    for place in places:
        trial = Geometry(
            np.append(part.numbers, np.uint8(number)), np.vstack([part.positions, place]), part.cell, part.pbc
        )
        if is_apart(trial, limits):
            return trial
    raise InvalidInputError(
        f"min_distance_ang: {what}: no place for an atom of number {number} in {len(places)} tries; lower it"
    )


GENERATOR = Generator(
    name="interstitial",
    parameters=Interstitial,
    run=interstitial,
    needs_parents=True,
    example={"per_parent": 3, "min_image_distance_ang": 5.0, "min_distance_ang": 1.5},
    composition="asked",
    draws="discrete",
)
