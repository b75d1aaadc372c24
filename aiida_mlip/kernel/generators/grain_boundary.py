"""Grain boundaries: coincidence-site-lattice bicrystals (by pymatgen), with rigid shifts of one grain."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, check_apart, geometry, is_apart, name_of
from aiida_mlip.kernel.generators.base import Generator, at_least


@dataclass(frozen=True)
class GrainBoundary:
    """Keys of a grain_boundary step.

    :param axis: rotation axis (cubic indices).
    :param sigma: reciprocal density of coincidence sites, e.g. 3, 5, 9.
    :param plane: boundary plane (cubic indices); None: normal to the axis, a twist boundary.
    :param per_parent: boundaries made of each parent, with different rigid shifts of one grain in the plane.
    :param min_grain_ang: smallest thickness (Å) of a grain.
    :param opening_step_ang: the gap at the boundaries grows in such steps (Å) until the minimum distances hold.
    :param max_opening_ang: largest gap (Å).
    :param max_atoms: refuse larger cells.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    """

    axis: tuple[int, int, int] = (1, 0, 0)
    sigma: int = 5
    plane: tuple[int, int, int] | None = None
    per_parent: int = 1
    min_grain_ang: float = 8.0
    opening_step_ang: float = 0.1
    max_opening_ang: float = 3.0
    max_atoms: int = 500
    min_distance_ang: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.sigma, 2, "sigma")
        for name in ("axis", "plane"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or not any(value)):
                raise InvalidInputError(f"{name}: expected three integers, not all zero, got {value}")
        for name in ("min_grain_ang", "opening_step_ang", "max_opening_ang"):
            if not 0 < getattr(self, name) < np.inf:
                raise InvalidInputError(f"{name}: must be positive, got {getattr(self, name)}")
        pair_limits(self.min_distance_ang)


class Bicrystal(NamedTuple):
    """Two grains in a cell: geometry, and which atoms (a,) belong to the upper one."""

    part: Geometry
    upper: np.ndarray


def grain_boundary(parents: Frames, parameters: GrainBoundary, rng: np.random.Generator) -> Frames:
    """``per_parent`` bicrystals of every cubic parent, with two boundaries per cell, periodic in three directions.

    The first keeps the coincidence of the two lattices; the others shift the upper grain by a random vector in the
    plane. No atom is added or removed, so the composition is the parent's; the gap opens until the distances hold.
    Equal structures share a split group (doi:10.1016/j.commatsci.2018.08.029).

    :raises InvalidInputError: pymatgen is not installed, a parent that is not cubic, a Σ that the axis does not have,
        too many atoms, or a gap above ``max_opening_ang``.
    """
    limits = pair_limits(parameters.min_distance_ang)
    made, rows = [], []
    for row in range(len(parents)):
        what = f"grain_boundary in frame {name_of(parents, row)}"
        part = geometry(parents, row)
        if not part.pbc.all():
            raise InvalidInputError(f"{what}: the parent must be periodic in three directions")
        check_apart(part, limits, what)
        pair = bicrystal(part, parameters, what)
        for k in range(parameters.per_parent):
            shift = rng.random(2) if k else np.zeros(2)
            made.append(_open(pair, shift, parameters, limits, what))
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def bicrystal(part: Geometry, parameters: GrainBoundary, what: str) -> Bicrystal:
    """Unshifted bicrystal with grains of at least ``min_grain_ang``."""
    builder = _builder(part, what)
    angles = _angles(builder, parameters, what)
    plane = None if parameters.plane is None else _coprime(parameters.plane)
    times = 1
    while True:
        try:
            found = builder.gb_from_parameters(
                _coprime(parameters.axis), angles[0], expand_times=times, plane=plane, rm_ratio=0.0
            )
        except (ValueError, RuntimeError, IndexError) as error:
            raise InvalidInputError(
                f"plane: {what}: no bicrystal for axis {parameters.axis}, sigma {parameters.sigma}, "
                f"plane {parameters.plane} ({error})"
            ) from error
        if len(found) > parameters.max_atoms:
            raise InvalidInputError(f"max_atoms: {what} has {len(found)} atoms, allowed are {parameters.max_atoms}")
        cell = np.array(found.lattice.matrix)
        cell[2] *= np.sign(np.linalg.det(cell))  # the same lattice, right-handed
        thickness = abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[0], cell[1])) / 2.0
        if thickness >= parameters.min_grain_ang - 1e-6:
            break
        times = max(times + 1, int(np.ceil(times * (parameters.min_grain_ang - 1e-6) / thickness)))
    numbers = np.array([site.specie.Z for site in found], dtype=np.uint8)
    upper = np.array(["top" in label for label in found.site_properties["grain_label"]])
    order = np.lexsort((numbers, upper))
    grains = Geometry(numbers[order], np.array(found.cart_coords)[order], cell, np.ones(3, dtype=bool))
    return Bicrystal(grains, upper[order])


def _builder(part: Geometry, what: str) -> Any:
    """GrainBoundaryGenerator of pymatgen (untyped) for a cubic crystal."""
    try:
        from pymatgen.core import Lattice, Structure
        from pymatgen.core.interface import GrainBoundaryGenerator
        from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    except ImportError as error:
        raise InvalidInputError(
            "generator grain_boundary: pymatgen is not installed; pip install 'aiida-mlip-workchains[generators]'"
        ) from error
    crystal = Structure(Lattice(part.cell), [int(z) for z in part.numbers], part.positions, coords_are_cartesian=True)
    system = SpacegroupAnalyzer(crystal, symprec=1e-3).get_crystal_system()
    if system != "cubic":
        raise InvalidInputError(f"{what}: the parent must be cubic, it is {system}")
    return GrainBoundaryGenerator(crystal)


def _angles(builder: Any, parameters: GrainBoundary, what: str) -> list[float]:
    """Rotation angles (degrees) that give Σ about the axis; ``builder`` is pymatgen's (untyped)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pymatgen takes the next smaller Σ, with a warning
            return list(builder.get_rotation_angle_from_sigma(parameters.sigma, _coprime(parameters.axis), "c"))
    except (RuntimeError, ValueError, Warning) as error:
        raise InvalidInputError(
            f"sigma: {what}: {parameters.sigma} does not occur about axis {parameters.axis} ({error})"
        ) from error


def _open(pair: Bicrystal, shift: np.ndarray, parameters: GrainBoundary, limits: np.ndarray, what: str) -> Geometry:
    """The upper grain moved by ``shift`` (units of the plane's vectors), and the smallest gap that keeps the limits."""
    cell = pair.part.cell
    normal = np.cross(cell[0], cell[1])
    normal *= np.sign(normal @ cell[2]) / np.linalg.norm(normal)
    steps = int(np.floor(parameters.max_opening_ang / parameters.opening_step_ang + 1e-9))
    for k in range(steps + 1):
        gap = k * parameters.opening_step_ang
        positions = pair.part.positions + np.outer(pair.upper, shift @ cell[:2] + gap * normal)
        opened = np.vstack([cell[:2], cell[2] + 2.0 * gap * normal])
        moved = pair.part._replace(positions=positions, cell=opened)
        if is_apart(moved, limits):
            return moved
    raise InvalidInputError(
        f"max_opening_ang: {what}: a gap of {parameters.max_opening_ang} Å does not keep min_distance_ang"
    )


def _coprime(indices: tuple[int, int, int]) -> tuple[int, int, int]:
    divisor = gcd(*indices)
    h, k, l = (index // divisor for index in indices)  # noqa: E741  # the field's letters
    return h, k, l


GENERATOR = Generator(
    name="grain_boundary",
    parameters=GrainBoundary,
    run=grain_boundary,
    needs_parents=True,
    example={"sigma": 3, "axis": (1, 1, 1), "plane": (1, 1, 1), "per_parent": 2, "min_distance_ang": 1.6},
    draws="discrete",
)
