"""Supercells: by repetition, or the smallest one whose periodic images keep a distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, enlarged, geometry, name_of
from aiida_mlip.kernel.generators.base import Generator
from aiida_mlip.kernel.supercells import repeat


@dataclass(frozen=True)
class Supercell:
    """Keys of a supercell step.

    :param repeat: copies along the three lattice vectors; this or ``min_image_distance_ang``.
    :param min_image_distance_ang: smallest allowed distance (Å) between an atom and its periodic image.
    :param max_atoms: refuse larger supercells.
    """

    repeat: tuple[int, int, int] | None = None
    min_image_distance_ang: float | None = None
    max_atoms: int = 1000

    def __post_init__(self) -> None:
        """Check the values."""
        if (self.repeat is None) == (self.min_image_distance_ang is None):
            raise InvalidInputError("repeat: give either repeat or min_image_distance_ang")
        if self.repeat is not None and min(self.repeat) < 1:
            raise InvalidInputError(f"repeat: must be at least 1 along each vector, got {self.repeat}")
        if self.min_image_distance_ang is not None and not 0 < self.min_image_distance_ang < np.inf:
            raise InvalidInputError(f"min_image_distance_ang: must be positive, got {self.min_image_distance_ang}")

    @property
    def per_parent(self) -> int:
        """One supercell of each parent."""
        return 1


def supercell(parents: Frames, parameters: Supercell, _rng: np.random.Generator) -> Frames:
    """One supercell of every parent; directions without periodicity are not repeated.

    :raises InvalidInputError: a parent without a periodic direction, or more than ``max_atoms`` atoms.
    """
    made = []
    for row in range(len(parents)):
        part = geometry(parents, row)
        if not part.pbc.any():
            raise InvalidInputError(f"supercell of frame {name_of(parents, row)}: it has no periodic direction")
        if parameters.repeat is None:
            part = enlarged(part, parameters.min_image_distance_ang)
        else:
            matrix = np.diag(np.where(part.pbc, parameters.repeat, 1))
            part = Geometry(*repeat(part.numbers, part.positions, part.cell, matrix), part.pbc)
        if len(part.numbers) > parameters.max_atoms:
            raise InvalidInputError(
                f"max_atoms: the supercell of frame {name_of(parents, row)} has {len(part.numbers)} atoms, "
                f"allowed are {parameters.max_atoms}"
            )
        made.append(part)
    return assemble(made, parents=parents, rows=np.arange(len(parents)))


GENERATOR = Generator(
    name="supercell",
    parameters=Supercell,
    run=supercell,
    needs_parents=True,
    example={"min_image_distance_ang": 7.5},
    draws="none",
)
