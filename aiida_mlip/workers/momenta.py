"""Starting momenta and kinetic temperature of ASE atoms, some of which may be fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms, units

from aiida_mlip.kernel.frames import Frames


def thermal_atoms(
    structures: Frames, row: int, *, temperature_k: float, fixed: Sequence[int], seed: int, at_rest: bool = False
) -> Atoms:
    """Atoms of a structure with random momenta, each component of variance m k T (Maxwell-Boltzmann).

    :param fixed: atoms that get none.
    :param at_rest: take the motion of the centre of mass away, where no atom is fixed.
    """
    atoms = bare_atoms(structures, row)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature_k)
    momenta = rng.normal(size=(len(atoms), 3)) * spread[:, None]
    momenta[list(fixed)] = 0.0
    if at_rest and not len(fixed) and len(atoms) > 1:
        masses = atoms.get_masses()[:, None]
        momenta -= masses * momenta.sum(axis=0) / masses.sum()
    atoms.set_momenta(momenta)
    return atoms


def bare_atoms(structures: Frames, row: int) -> Atoms:
    """Atoms of a structure: geometry alone."""
    atoms = structures.to_ase(row)
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def kinetic_temperature(atoms: Atoms, n_mobile: int) -> float:
    """Temperature (K) of the kinetic energy, 2 E / 3 N k, N the atoms that move."""
    return float(2 * atoms.get_kinetic_energy() / (3 * n_mobile * units.kB))
