"""Alloys: random decoration of a sublattice over a grid of compositions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from ase.data import chemical_symbols

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import (
    assemble,
    atomic_number,
    check_apart,
    enlarged,
    geometry,
    name_of,
    sites_of,
)
from aiida_mlip.kernel.generators.base import Generator, at_least


@dataclass(frozen=True)
class Decoration:
    """Keys of a decoration step.

    :param species: elements put on the sublattice, at least two.
    :param fractions: compositions, each ``{element: share}`` with shares that sum to 1; None: the grid.
    :param grid: steps of the grid of all compositions, e.g. 4: shares 0, 1/4, ... 1 of each element.
    :param pure: whether compositions on the border of the grid (an element missing) belong to it.
    :param sites: elements of the parent that form the sublattice; None: all its atoms.
    :param per_composition: decorations of each composition.
    :param scale_volume: scale the cell so that its volume follows the elements' crystals (Zen's law).
    :param min_image_distance_ang: enlarge the parent first; None: as it is.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    """

    species: tuple[str, ...]
    fractions: tuple[Mapping[str, float], ...] | None = None
    grid: int = 4
    pure: bool = False
    sites: tuple[str, ...] | None = None
    per_composition: int = 1
    scale_volume: bool = False
    min_image_distance_ang: float | None = None
    min_distance_ang: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_composition, 1, "per_composition")
        check_species(self.species)
        for entry in self.fractions or ():
            check_fractions(entry, self.species)
        if not self.compositions:
            raise InvalidInputError(
                f"grid: {self.grid} steps hold no mixture of all of {list(self.species)}; raise it or set pure: true"
            )
        pair_limits(self.min_distance_ang)

    @property
    def compositions(self) -> tuple[Mapping[str, float], ...]:
        """Shares of the elements, one mapping per composition."""
        if self.fractions is not None:
            return self.fractions
        return composition_grid(self.species, self.grid, pure=self.pure)

    @property
    def per_parent(self) -> int:
        """Frames made from each parent."""
        return self.per_composition * len(self.compositions)


def check_species(species: Sequence[str]) -> None:
    """Refuse anything but two or more different elements.

    :raises InvalidInputError: naming ``species``.
    """
    if isinstance(species, str) or len(species) < 2 or len(set(species)) != len(species):
        raise InvalidInputError(f"species: expected at least two different elements, got {species!r}")
    for symbol in species:
        atomic_number(symbol, "species")


def check_fractions(fractions: Mapping[str, float], species: Sequence[str] | None = None) -> None:
    """Refuse shares that are negative, do not sum to 1, or belong to other elements.

    :raises InvalidInputError: naming ``fractions``.
    """
    if species is not None and (unknown := set(fractions) - set(species)):
        raise InvalidInputError(f"fractions: {sorted(unknown)} is not among species {list(species)}")
    if any(value < 0 for value in fractions.values()) or abs(sum(fractions.values()) - 1.0) > 1e-6:
        raise InvalidInputError(f"fractions: shares must not be negative and sum to 1, got {dict(fractions)}")


def composition_grid(species: Sequence[str], steps: int, *, pure: bool) -> tuple[Mapping[str, float], ...]:
    """All compositions whose shares are multiples of 1/steps, in lexical order.

    :param pure: also those in which an element is missing.

    >>> [entry["Cu"] for entry in composition_grid(("Cu", "Au"), 4, pure=False)]
    [0.25, 0.5, 0.75]
    """
    at_least(steps, 1, "grid")
    smallest = 0 if pure else 1
    parts = [
        counts
        for counts in product(range(smallest, steps + 1), repeat=len(species) - 1)
        if steps - sum(counts) >= smallest
    ]
    return tuple(
        {symbol: n / steps for symbol, n in zip(species, (*counts, steps - sum(counts)), strict=True)}
        for counts in parts
    )


def site_counts(fractions: Mapping[str, float], n_sites: int) -> dict[str, int]:
    """Whole numbers of atoms closest to shares of ``n_sites`` (largest remainders), none of them lost.

    :raises InvalidInputError: an element with a positive share would get no atom.

    >>> site_counts({"Cu": 0.75, "Au": 0.25}, 8)
    {'Cu': 6, 'Au': 2}
    """
    exact = {symbol: share * n_sites for symbol, share in fractions.items()}
    counts = {symbol: int(np.floor(value + 1e-9)) for symbol, value in exact.items()}
    rest = n_sites - sum(counts.values())
    for symbol in sorted(exact, key=lambda s: (counts[s] - exact[s], s))[:rest]:
        counts[symbol] += 1
    if lost := [symbol for symbol, share in fractions.items() if share > 0 and counts[symbol] == 0]:
        raise InvalidInputError(
            f"fractions: {dict(fractions)} gives no atom of {lost} on {n_sites} sites; use a larger supercell"
        )
    return counts


def decoration(parents: Frames, parameters: Decoration, rng: np.random.Generator) -> Frames:
    """``per_composition`` random decorations of (a supercell of) every parent for each composition.

    The number of atoms of each element is exactly that of :func:`site_counts`; equal structures share a split group.

    :raises InvalidInputError: too few sites for a composition, or the decorated lattice breaks a minimum distance.
    """
    limits = pair_limits(parameters.min_distance_ang)
    made, rows = [], []
    for row in range(len(parents)):
        host = enlarged(geometry(parents, row), parameters.min_image_distance_ang)
        sites = sites_of(host, parameters.sites, "sites")
        for fractions in parameters.compositions:
            counts = site_counts(fractions, len(sites))
            pool = np.concatenate([np.full(n, atomic_number(s, "species")) for s, n in counts.items()])
            for _ in range(parameters.per_composition):
                numbers = host.numbers.copy()
                numbers[sites] = rng.permutation(pool)
                part = host._replace(numbers=numbers)
                if parameters.scale_volume:
                    scale = volume_scale(host.numbers, numbers)
                    part = part._replace(positions=scale * part.positions, cell=scale * part.cell)
                what = f"decoration {'-'.join(chemical_symbols[z] for z in np.unique(numbers))} of frame"
                check_apart(part, limits, f"{what} {name_of(parents, row)}")
                made.append(part)
                rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def volume_scale(before: np.ndarray, after: np.ndarray) -> float:
    """Factor on lengths that makes a volume follow a change of elements (Zen's law with the elements' crystals)."""
    from aiida_mlip.kernel.generators.random_structure import crystal_volume

    ratio = sum(crystal_volume(int(z)) for z in after) / sum(crystal_volume(int(z)) for z in before)
    return float(ratio ** (1.0 / 3.0))


GENERATOR = Generator(
    name="decoration",
    parameters=Decoration,
    run=decoration,
    needs_parents=True,
    example={"species": ("Si", "Ge"), "grid": 4, "per_composition": 2, "min_image_distance_ang": 7.0},
    composition="asked",
    draws="discrete",
)
