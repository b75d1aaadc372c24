"""Vacancies: atoms taken out of a supercell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, enlarged, geometry, name_of, sites_of
from aiida_mlip.kernel.generators.base import Generator, at_least


@dataclass(frozen=True)
class Vacancy:
    """Keys of a vacancy step.

    :param per_parent: frames made from each parent.
    :param n_vacancies: atoms taken out, or a window, cycled through.
    :param species: elements that may be taken out; None: any.
    :param min_image_distance_ang: enlarge the parent until a defect is this far (Å) from its images; None: as it is.
    """

    per_parent: int = 1
    n_vacancies: int | tuple[int, int] = 1
    species: tuple[str, ...] | None = None
    min_image_distance_ang: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        low, high = self.counts
        at_least(low, 1, "n_vacancies")
        if high < low:
            raise InvalidInputError(f"n_vacancies: expected low <= high, got {self.n_vacancies}")
        if self.min_image_distance_ang is not None and not 0 < self.min_image_distance_ang < np.inf:
            raise InvalidInputError(f"min_image_distance_ang: must be positive, got {self.min_image_distance_ang}")

    @property
    def counts(self) -> tuple[int, int]:
        """Smallest and largest number of vacancies."""
        return (self.n_vacancies, self.n_vacancies) if isinstance(self.n_vacancies, int) else self.n_vacancies


def vacancy(parents: Frames, parameters: Vacancy, rng: np.random.Generator) -> Frames:
    """``per_parent`` copies of (a supercell of) every parent without some atoms, drawn at random.

    An element is never removed altogether: each keeps at least one atom. Equal structures share a split group.

    :raises InvalidInputError: not enough atoms of the species.
    """
    low, high = parameters.counts
    made, rows = [], []
    for row in range(len(parents)):
        host = enlarged(geometry(parents, row), parameters.min_image_distance_ang)
        sites = sites_of(host, parameters.species, "species")
        for k in range(parameters.per_parent):
            count = low + k % (high - low + 1)
            gone = _draw_sites(host.numbers, sites, count, rng, what=f"frame {name_of(parents, row)}")
            keep = np.ones(len(host.numbers), dtype=bool)
            keep[gone] = False
            made.append(Geometry(host.numbers[keep], host.positions[keep], host.cell, host.pbc))
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def _draw_sites(
    numbers: np.ndarray, sites: np.ndarray, count: int, rng: np.random.Generator, *, what: str
) -> np.ndarray:
    """(count,) random sites, leaving one atom of every element."""
    order = rng.permutation(sites)
    left = {z: int((numbers == z).sum()) for z in np.unique(numbers)}
    gone: list[int] = []
    for site in order:
        if len(gone) == count:
            break
        if left[numbers[site]] > 1:
            left[numbers[site]] -= 1
            gone.append(int(site))
    if len(gone) < count:
        raise InvalidInputError(
            f"n_vacancies: {what} can spare {len(gone)} atoms of the allowed species without losing an element, "
            f"asked for {count}; raise min_image_distance_ang"
        )
    return np.array(gone)


GENERATOR = Generator(
    name="vacancy",
    parameters=Vacancy,
    run=vacancy,
    needs_parents=True,
    example={"per_parent": 3, "n_vacancies": (1, 2), "min_image_distance_ang": 7.0},
    composition="asked",
    draws="discrete",
)
