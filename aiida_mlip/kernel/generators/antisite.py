"""Antisites and substitutions: atoms that change places, or elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import (
    Geometry,
    assemble,
    atomic_number,
    enlarged,
    formula,
    geometry,
    name_of,
    sites_of,
)
from aiida_mlip.kernel.generators.base import Generator, at_least


@dataclass(frozen=True)
class Antisite:
    """Keys of an antisite step.

    :param species: the two elements concerned, e.g. ``[Ga, As]``; None: any two of the parent (``exchange`` only).
    :param kind: ``exchange``: pairs of atoms change places, the composition stays; ``replace``: atoms of the first
        element become the second, which need not be in the parent.
    :param per_parent: frames made from each parent.
    :param n_sites: pairs exchanged, or atoms replaced.
    :param min_image_distance_ang: enlarge the parent until a defect is this far (Å) from its images; None: as it is.
    """

    species: tuple[str, str] | None = None
    kind: Literal["exchange", "replace"] = "exchange"
    per_parent: int = 1
    n_sites: int = 1
    min_image_distance_ang: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.n_sites, 1, "n_sites")
        if self.species is None and self.kind == "replace":
            raise InvalidInputError("species: kind 'replace' needs two elements, [from, to]")
        if self.species is not None:
            if len(self.species) != 2 or self.species[0] == self.species[1]:
                raise InvalidInputError(f"species: expected two different elements, got {self.species}")
            for symbol in self.species:
                atomic_number(symbol, "species")
        if self.min_image_distance_ang is not None and not 0 < self.min_image_distance_ang < np.inf:
            raise InvalidInputError(f"min_image_distance_ang: must be positive, got {self.min_image_distance_ang}")


def antisite(parents: Frames, parameters: Antisite, rng: np.random.Generator) -> Frames:
    """``per_parent`` copies of (a supercell of) every parent with exchanged or replaced atoms.

    ``replace`` leaves at least one atom of the first element. Equal structures share a split group.

    :raises InvalidInputError: a parent of one element only, or without enough atoms of the species.
    """
    change = _exchange if parameters.kind == "exchange" else _replace
    made, rows = [], []
    for row in range(len(parents)):
        host = enlarged(geometry(parents, row), parameters.min_image_distance_ang)
        for _ in range(parameters.per_parent):
            numbers = change(host, parameters, rng, what=f"frame {name_of(parents, row)}")
            made.append(host._replace(numbers=numbers))
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def _exchange(host: Geometry, parameters: Antisite, rng: np.random.Generator, *, what: str) -> np.ndarray:
    numbers = host.numbers.copy()
    present = np.unique(numbers)
    if parameters.species is None and len(present) < 2:
        raise InvalidInputError(f"species: {what} is {formula(numbers)}, an exchange needs two elements")
    used = np.zeros(len(numbers), dtype=bool)
    for _ in range(parameters.n_sites):
        if parameters.species is None:
            pair = rng.permutation(np.unique(numbers[~used]))[:2]
        else:
            pair = np.array([atomic_number(symbol, "species") for symbol in parameters.species])
        free = [np.flatnonzero((numbers == z) & ~used) for z in pair]
        if len(pair) < 2 or min(len(sites) for sites in free) == 0:
            raise InvalidInputError(
                f"n_sites: {what} ({formula(numbers)}) has no {parameters.n_sites} pairs of "
                f"{parameters.species or 'different elements'} to exchange; raise min_image_distance_ang"
            )
        i, j = (int(rng.choice(sites)) for sites in free)
        numbers[i], numbers[j] = numbers[j], numbers[i]
        used[[i, j]] = True
    return numbers


def _replace(host: Geometry, parameters: Antisite, rng: np.random.Generator, *, what: str) -> np.ndarray:
    first, second = parameters.species or ("", "")
    sites = sites_of(host, (first,), "species")
    if len(sites) <= parameters.n_sites:
        raise InvalidInputError(
            f"n_sites: {what} has {len(sites)} atoms of {first}, replacing {parameters.n_sites} would leave none; "
            "raise min_image_distance_ang"
        )
    numbers = host.numbers.copy()
    numbers[rng.choice(sites, parameters.n_sites, replace=False)] = atomic_number(second, "species")
    return numbers


GENERATOR = Generator(
    name="antisite",
    parameters=Antisite,
    run=antisite,
    needs_parents=True,
    example={"per_parent": 3, "kind": "replace", "species": ("Si", "Ge"), "min_image_distance_ang": 7.0},
    composition="asked",
    draws="discrete",
)
