"""Clusters: compact random ones of a composition, and spheres cut from a crystal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, check_apart, formula, geometry, name_of
from aiida_mlip.kernel.generators.base import Generator, at_least, stratified, window
from aiida_mlip.kernel.generators.random_structure import parse_composition
from aiida_mlip.kernel.generators.rattle import displacements
from aiida_mlip.kernel.supercells import repeat


@dataclass(frozen=True)
class Cluster:
    """Keys of a cluster step.

    :param composition: formula, e.g. ``Si7`` or ``Ti2O4``; or a list, taken in turn.
    :param count: clusters made, all compositions together.
    :param relative_bond: window of the bond to the atom a new one is attached to, in units of the covalent radii's sum.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param max_attempts: places tried for one atom before giving up.
    """

    composition: str | tuple[str, ...]
    count: int = 1
    relative_bond: tuple[float, float] = (0.95, 1.3)
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 5000

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.count, 1, "count")
        at_least(self.max_attempts, 1, "max_attempts")
        window(self.relative_bond, "relative_bond", smallest=0.1)
        pair_limits(self.min_distance_ang)
        for text in self.formulas:
            parse_composition(text)

    @property
    def formulas(self) -> tuple[str, ...]:
        """Compositions as a tuple."""
        return (self.composition,) if isinstance(self.composition, str) else tuple(self.composition)


@dataclass(frozen=True)
class Nanoparticle:
    """Keys of a nanoparticle step.

    :param per_parent: spheres cut from each parent.
    :param radius_ang: radius (Å), or a window, stratified.
    :param max_atoms: refuse larger particles.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`; a parent that breaks it is refused.
    """

    per_parent: int = 1
    radius_ang: float | tuple[float, float] = (4.0, 6.0)
    max_atoms: int = 500
    min_distance_ang: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        window(self.radius_ang, "radius_ang", smallest=0.5)
        pair_limits(self.min_distance_ang)


def cluster(_parents: Frames, parameters: Cluster, rng: np.random.Generator) -> Frames:
    """``count`` compact random clusters without periodicity, each a split group of its own.

    Atoms come in random order; each is bonded to a random earlier one, the innermost of the places that keep the
    distances among a handful tried.

    :raises InvalidInputError: the minimum distances cannot be kept.
    """
    limits = pair_limits(parameters.min_distance_ang)
    made = []
    for k in range(parameters.count):
        numbers = rng.permutation(parse_composition(parameters.formulas[k % len(parameters.formulas)]))
        positions = _grow(numbers, parameters, limits, rng)
        order = np.argsort(numbers, kind="stable")
        made.append(Geometry(numbers[order], positions[order], np.zeros((3, 3)), np.zeros(3, dtype=bool)))
    return assemble(made)


def nanoparticle(parents: Frames, parameters: Nanoparticle, rng: np.random.Generator) -> Frames:
    """``per_parent`` spheres around random points of every periodic parent, without periodicity.

    The composition is what the sphere holds; centres are redrawn until every element of the parent is in it.

    :raises InvalidInputError: a parent without three periodic directions, a sphere too small or too large.
    """
    limits = pair_limits(parameters.min_distance_ang)
    low, high = window(parameters.radius_ang, "radius_ang")
    made, rows = [], []
    for row in range(len(parents)):
        part = geometry(parents, row)
        what = f"nanoparticle of frame {name_of(parents, row)}"
        if not part.pbc.all():
            raise InvalidInputError(f"{what}: the parent must be periodic in three directions")
        check_apart(part, limits, what)
        for radius in stratified(low, high, parameters.per_parent, rng):
            made.append(_cut(part, float(radius), parameters.max_atoms, rng, what))
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def _grow(numbers: np.ndarray, parameters: Cluster, limits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high = window(parameters.relative_bond, "relative_bond")
    placed = np.zeros((len(numbers), 3))
    batch = 20
    for k in range(1, len(numbers)):
        for _ in range(max(parameters.max_attempts // batch, 1)):
            partner = rng.integers(k, size=batch)
            bonds = rng.uniform(low, high, batch) * (covalent_radii[numbers[k]] + covalent_radii[numbers[partner]])
            trial = placed[partner] + bonds[:, None] * displacements(batch, 1.0, rng, distribution="fixed")
            distances = np.linalg.norm(trial[:, None] - placed[None, :k], axis=2)
            good = np.flatnonzero((distances >= limits[numbers[k], numbers[:k]]).all(axis=1))
            if len(good):
                centre = placed[:k].mean(axis=0)
                placed[k] = trial[good[np.argmin(np.linalg.norm(trial[good] - centre, axis=1))]]
                break
        else:
            raise InvalidInputError(
                f"min_distance_ang: no place for atom {k} of cluster {formula(numbers)} in {parameters.max_attempts} "
                "tries; lower it or raise relative_bond"
            )
    return placed - placed.mean(axis=0)


def _cut(part: Geometry, radius: float, max_atoms: int, rng: np.random.Generator, what: str) -> Geometry:
    cell = complete_cell(part.cell)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    copies = 2 * np.ceil(radius / heights).astype(int) + 3
    if len(part.numbers) * radius**3 * 4.2 / abs(np.linalg.det(cell)) > 2 * max_atoms:
        raise InvalidInputError(f"max_atoms: {what} with radius_ang {radius:.2f} has more than {max_atoms} atoms")
    numbers, positions, big = repeat(part.numbers, part.positions, cell, np.diag(copies))
    wrapped = (positions @ np.linalg.inv(big) % 1.0) @ big
    middle = (copies // 2) @ cell
    for _ in range(100):
        centre = middle + rng.random(3) @ cell
        inside = np.linalg.norm(wrapped - centre, axis=1) <= radius
        if len(np.unique(numbers[inside])) == len(np.unique(numbers)):
            break
    else:
        raise InvalidInputError(f"radius_ang: {what} of {radius:.2f} Å does not hold every element of the parent")
    if inside.sum() > max_atoms:
        raise InvalidInputError(f"max_atoms: {what} has {inside.sum()} atoms, allowed are {max_atoms}")
    return Geometry(numbers[inside], wrapped[inside] - centre, np.zeros((3, 3)), np.zeros(3, dtype=bool))


CLUSTER = Generator(
    name="cluster",
    parameters=Cluster,
    run=cluster,
    needs_parents=False,
    example={"composition": ("Si7", "Ti2O4"), "count": 4},
)
NANOPARTICLE = Generator(
    name="nanoparticle",
    parameters=Nanoparticle,
    run=nanoparticle,
    needs_parents=True,
    example={"per_parent": 2, "radius_ang": (4.0, 5.0)},
    composition="asked",
    draws="discrete",
)
