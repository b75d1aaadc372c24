"""Calculators whose statistics are known exactly: harmonic wells, and atoms in a field of their sites."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class HarmonicWells(Calculator):
    """E = k/2 Σ |r_i − s_i|² about the sites s of the first call.

    :param stiffness: k in eV/Å².
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - ASE's way

    def __init__(self, stiffness=1.0):
        super().__init__()
        self.k = stiffness
        self.sites = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.sites is None:
            self.sites = self.atoms.positions.copy()
        away = self.atoms.positions - self.sites
        energy = 0.5 * self.k * float((away**2).sum())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": -self.k * away,
        }


class FieldOfSites(Calculator):
    """E = Σ_i field_i over the sites i on which gold sits; nothing pulls at the atoms.

    :param field: eV per site.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - ASE's way

    def __init__(self, field=()):
        super().__init__()
        self.field = np.array(field)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy = float(self.field[self.atoms.numbers == 79].sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": np.zeros((len(self.atoms), 3))}
