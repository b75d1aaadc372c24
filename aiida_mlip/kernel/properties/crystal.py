"""The crystal behind a structure: primitive and conventional cell in the standard setting, and repetitions of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Float

from aiida_mlip.kernel.properties.results import NotComputableError


@dataclass(frozen=True)
class Crystal:
    """A crystal in spglib's standard setting (axes along x, y, z where they can be).

    :param primitive: smallest cell.
    :param conventional: cell that shows the symmetry.
    :param number: of the space group.
    :param rotations: (m, 3, 3) Cartesian rotations of the point group.
    """

    primitive: Atoms
    conventional: Atoms
    number: int
    rotations: Float[np.ndarray, "m 3 3"]

    @property
    def is_cubic(self) -> bool:
        """Whether one lattice constant says it all."""
        return self.number >= 195

    @property
    def is_elemental(self) -> bool:
        """Whether all atoms are of one element."""
        return len(set(self.primitive.numbers.tolist())) == 1

    def scaled(self, stretch: float) -> Crystal:
        """All lengths times ``stretch``."""
        return Crystal(
            _scaled(self.primitive, stretch), _scaled(self.conventional, stretch), self.number, self.rotations
        )


def crystal_of(atoms: Atoms, *, symprec: float) -> Crystal:
    """Crystal of a structure by spglib (doi:10.1080/27660400.2024.2384822).

    :param symprec: Å.
    :raises NotComputableError: not periodic in three directions, or no symmetry can be found.
    """
    import spglib

    if not atoms.pbc.all():
        raise NotComputableError(f"periodic along {int(atoms.pbc.sum())} of 3 directions: not a crystal")
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    if found is None:
        raise NotComputableError("spglib finds no symmetry: are two atoms on one place?")
    primitive, conventional = (
        _standard(cell, to_primitive=to_primitive, symprec=symprec) for to_primitive in (True, False)
    )
    own = spglib.get_symmetry_dataset(
        (primitive.cell.array, primitive.get_scaled_positions(), primitive.numbers), symprec=symprec
    )
    if own is None:
        raise NotComputableError("spglib finds no symmetry of the primitive cell")
    lattice = primitive.cell.array.T
    rotations = np.array([lattice @ rotation @ np.linalg.inv(lattice) for rotation in np.unique(own.rotations, axis=0)])
    return Crystal(primitive, conventional, int(found.number), rotations)


def repeats(cell: Float[np.ndarray, "3 3"], min_length: float, *, even: bool = False) -> tuple[int, int, int]:
    """Repetitions along each vector so that opposite faces are ``min_length`` (Å) apart.

    :param even: only even numbers, or 1: zone-boundary points then are points of the supercell.

    >>> repeats(3.0 * np.eye(3), 8.0)
    (3, 3, 3)
    >>> repeats(3.0 * np.eye(3), 8.0, even=True)
    (4, 4, 4)
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    counts = np.maximum(1, np.ceil(min_length / heights - 1e-6).astype(int))
    if even:
        counts = np.where(counts > 1, counts + counts % 2, counts)
    return int(counts[0]), int(counts[1]), int(counts[2])


def _standard(cell: tuple[np.ndarray, ...], *, to_primitive: bool, symprec: float) -> Atoms:
    import spglib

    made = spglib.standardize_cell(cell, to_primitive=to_primitive, no_idealize=False, symprec=symprec)
    if made is None:
        raise NotComputableError("spglib finds no standard cell")
    lattice, places, numbers = made
    return Atoms(numbers=numbers, cell=lattice, scaled_positions=places, pbc=True)


def _scaled(atoms: Atoms, stretch: float) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array * stretch, scale_atoms=True)
    return copy
