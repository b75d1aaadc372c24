"""Vacancies and surfaces of elemental crystals: supercells, slabs, and energies of formation."""

from __future__ import annotations

from typing import Final

import numpy as np
from ase import Atoms
from ase.build import surface as ase_surface

from aiida_mlip.kernel.properties.crystal import Crystal, repeats
from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Property
from aiida_mlip.kernel.units import J_PER_M2

VACANCY: Final[tuple[str, str, str]] = ("vacancy_ev", "vacancy", "eV")
#: Neighbours of a vacancy are those within this many shortest distances.
_FIRST_SHELL: Final[float] = 1.15


def vacancy_cells(crystal: Crystal, *, min_length: float, inward: float) -> list[Atoms]:
    """The supercell of the conventional cell, and the same with one atom less and the neighbours moved inwards.

    :param min_length: distance (Å) of the supercell's faces.
    :param inward: displacement of the neighbours towards the vacancy, as a part of their distance.
    :raises NotComputableError: the crystal has several elements.
    """
    if not crystal.is_elemental:
        raise NotComputableError(
            "energies of vacancies in compounds depend on chemical potentials, which are no part of this"
        )
    whole = crystal.conventional.repeat(repeats(crystal.conventional.cell.array, min_length))
    vectors = whole.get_distances(0, range(len(whole)), mic=True, vector=True)
    distances = np.linalg.norm(vectors, axis=1)
    shell = (distances > 0) & (distances < _FIRST_SHELL * distances[1:].min())
    holed = whole.copy()
    holed.positions[shell] -= inward * vectors[shell]
    del holed[0]
    return [whole, holed]


def vacancy_energy(n_atoms: int, bulk: float, vacancy: float, *, definition: str) -> Outcome:
    """E_f = E(n-1 atoms) - (n-1)/n E(n atoms), at constant volume.

    :param n_atoms: n.
    :param bulk: eV, of the supercell.
    :param vacancy: eV, of the relaxed supercell with the vacancy.
    """
    value = vacancy - (n_atoms - 1) / n_atoms * bulk
    return Outcome((Property(*VACANCY[:2], float(value), VACANCY[2], definition),))


def slab(crystal: Crystal, miller: tuple[int, int, int], *, min_thickness: float, vacuum: float) -> Atoms:
    """Unreconstructed slab of the conventional cell, at least ``min_thickness`` (Å) thick.

    :raises NotComputableError: the slab does not have the composition of the crystal.
    """
    one = ase_surface(crystal.conventional, miller, 1, periodic=True)
    height = crystal.conventional.get_volume() / float(np.linalg.norm(np.cross(*one.cell.array[:2])))
    layers = max(1, int(np.ceil(min_thickness / height * len(crystal.conventional) / len(one) - 1e-6)))
    made = ase_surface(crystal.conventional, miller, layers, vacuum=vacuum / 2, periodic=True)
    if len(made) % len(crystal.primitive):
        raise NotComputableError(f"the slab {miller} is not a multiple of the primitive cell")
    made.pbc = True
    return made


def surface_name(miller: tuple[int, int, int]) -> tuple[str, str, str]:
    """Name, family and unit of a surface energy: ``surface_111_j_per_m2``; a bar is an ``m``."""
    digits = "".join(f"m{-index}" if index < 0 else str(index) for index in miller)
    return f"surface_{digits}_j_per_m2", "surface", "J/m²"


def surface_energy(
    miller: tuple[int, int, int], made: Atoms, energy: float, bulk_per_atom: float, *, definition: str
) -> Outcome:
    """γ = (E_slab - n E_bulk/atom) / 2A."""
    area = float(np.linalg.norm(np.cross(*made.cell.array[:2])))
    value = (energy - len(made) * bulk_per_atom) / (2.0 * area) / J_PER_M2
    name, family, unit = surface_name(miller)
    return Outcome((Property(name, family, float(value), unit, definition),))
