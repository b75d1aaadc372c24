"""Isolated atoms, dimers and trimers: what a potential needs to know about few atoms in vacuum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, atomic_number
from aiida_mlip.kernel.generators.base import Generator, at_least, stratified, window


@dataclass(frozen=True)
class IsolatedAtom:
    """Keys of an isolated_atom step.

    :param species: elements, one frame each.
    """

    species: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the values."""
        _elements(self.species, 1)

    @property
    def count(self) -> int:
        """Frames made."""
        return len(self.species)


@dataclass(frozen=True)
class Dimer:
    """Keys of a dimer step.

    :param species: elements; every pair of them is made, equal ones included.
    :param per_pair: frames of each pair of elements.
    :param distance_ang: window of the distance (Å), stratified.
    :param relative_distance: used when ``distance_ang`` is None: window in units of the sum of the covalent radii.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    """

    species: tuple[str, ...]
    per_pair: int = 20
    distance_ang: tuple[float, float] | None = None
    relative_distance: tuple[float, float] = (0.75, 2.5)
    min_distance_ang: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values, and that the shortest distance is allowed."""
        at_least(self.per_pair, 1, "per_pair")
        limits = pair_limits(self.min_distance_ang)
        for i, j in combinations_with_replacement(_elements(self.species, 1), 2):
            low, _ = _distances(i, j, self)
            if low < limits[i, j]:
                field = "relative_distance" if self.distance_ang is None else "distance_ang"
                raise InvalidInputError(
                    f"{field}: {chemical_symbols[i]}-{chemical_symbols[j]} from {low:.3f} Å on, but min_distance_ang "
                    f"allows {limits[i, j]:.3f} Å"
                )

    @property
    def count(self) -> int:
        """Frames made."""
        n = len(self.species)
        return self.per_pair * n * (n + 1) // 2


@dataclass(frozen=True)
class Trimer:
    """Keys of a trimer step.

    :param species: elements; every triple of them is made, whichever is the apex.
    :param per_triple: frames of each triple (apex and two others).
    :param distance_ang: window of the two bond lengths (Å).
    :param relative_distance: used when ``distance_ang`` is None: window in units of the sum of the covalent radii.
    :param angle_deg: window of the angle between the bonds, stratified.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`; holds for the third pair, too.
    :param max_attempts: redraws of one frame before giving up.
    """

    species: tuple[str, ...]
    per_triple: int = 20
    distance_ang: tuple[float, float] | None = None
    relative_distance: tuple[float, float] = (0.8, 1.8)
    angle_deg: tuple[float, float] = (50.0, 180.0)
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 1000

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_triple, 1, "per_triple")
        at_least(self.max_attempts, 1, "max_attempts")
        elements = _elements(self.species, 1)
        if window(self.angle_deg, "angle_deg")[1] > 180.0:
            raise InvalidInputError(f"angle_deg: at most 180, got {self.angle_deg}")
        pair_limits(self.min_distance_ang)
        for i, j in combinations_with_replacement(elements, 2):
            _distances(i, j, self)

    @property
    def count(self) -> int:
        """Frames made."""
        n = len(self.species)
        return self.per_triple * n * (n * (n + 1) // 2)


def isolated_atom(_parents: Frames, parameters: IsolatedAtom, _rng: np.random.Generator) -> Frames:
    """One frame with one atom, without periodicity, for each element: its label is a reference energy."""
    return assemble([_molecule([z], np.zeros((1, 3))) for z in _elements(parameters.species, 1)])


def dimer(_parents: Frames, parameters: Dimer, rng: np.random.Generator) -> Frames:
    """``per_pair`` dimers of every pair of elements, along x, without periodicity."""
    made = []
    for i, j in combinations_with_replacement(_elements(parameters.species, 1), 2):
        for d in np.sort(stratified(*_distances(i, j, parameters), parameters.per_pair, rng)):
            made.append(_molecule([i, j], np.array([[0.0, 0.0, 0.0], [d, 0.0, 0.0]])))
    return assemble(made)


def trimer(_parents: Frames, parameters: Trimer, rng: np.random.Generator) -> Frames:
    """``per_triple`` trimers of every apex and pair of elements, in the xy plane, without periodicity.

    :raises InvalidInputError: the minimum distances cannot be kept with these bonds and angles.
    """
    limits = pair_limits(parameters.min_distance_ang)
    elements = _elements(parameters.species, 1)
    made = []
    for apex in elements:
        for i, j in combinations_with_replacement(elements, 2):
            for angle in np.sort(stratified(*window(parameters.angle_deg, "angle_deg"), parameters.per_triple, rng)):
                made.append(_molecule([apex, i, j], _bend(apex, i, j, float(angle), parameters, limits, rng)))
    return assemble(made)


def _bend(
    apex: int, i: int, j: int, angle: float, parameters: Trimer, limits: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(3, 3) positions (Å) of a trimer with random bonds that keep the limits."""
    radians = np.radians(angle)
    for _ in range(parameters.max_attempts):
        first, second = (rng.uniform(*_distances(apex, k, parameters)) for k in (i, j))
        ends = np.array([[first, 0.0, 0.0], [second * np.cos(radians), second * np.sin(radians), 0.0]])
        if first >= limits[apex, i] and second >= limits[apex, j] and np.linalg.norm(ends[1] - ends[0]) >= limits[i, j]:
            return np.vstack([np.zeros(3), ends])
    names = "-".join(chemical_symbols[z] for z in (i, apex, j))
    raise InvalidInputError(
        f"min_distance_ang: no {names} with an angle of {angle:.1f}° keeps it in {parameters.max_attempts} draws; "
        "raise distance_ang or angle_deg"
    )


def _molecule(numbers: Sequence[int], positions: np.ndarray) -> Geometry:
    return Geometry(np.array(numbers, dtype=np.uint8), positions, np.zeros((3, 3)), np.zeros(3, dtype=bool))


def _elements(species: Sequence[str], smallest: int) -> list[int]:
    """Atomic numbers of distinct symbols."""
    if isinstance(species, str) or len(species) < smallest or len(set(species)) != len(species):
        raise InvalidInputError(f"species: expected a list of different elements, got {species!r}")
    return [atomic_number(symbol, "species") for symbol in species]


def _distances(i: int, j: int, parameters: Dimer | Trimer) -> tuple[float, float]:
    if parameters.distance_ang is not None:
        return window(parameters.distance_ang, "distance_ang", smallest=0.1)
    low, high = window(parameters.relative_distance, "relative_distance", smallest=0.1)
    radii = float(covalent_radii[i] + covalent_radii[j])
    return low * radii, high * radii


ISOLATED_ATOM = Generator(
    name="isolated_atom",
    parameters=IsolatedAtom,
    run=isolated_atom,
    needs_parents=False,
    example={"species": ("Si", "O")},
    composition="asked",
    draws="none",
)
DIMER = Generator(
    name="dimer",
    parameters=Dimer,
    run=dimer,
    needs_parents=False,
    example={"species": ("Si", "O"), "per_pair": 4, "distance_ang": (1.8, 4.0), "min_distance_ang": 1.7},
    composition="asked",
)
TRIMER = Generator(
    name="trimer",
    parameters=Trimer,
    run=trimer,
    needs_parents=False,
    example={"species": ("Si", "O"), "per_triple": 2, "distance_ang": (1.8, 3.0), "min_distance_ang": 1.7},
    composition="asked",
)
