"""A diatomic molecule in a double well of its bond length: the free energy is known exactly."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes


class DoubleWell(Calculator):
    """E = barrier · ((d − centre)²/half_distance² − 1)² of the distance d of atoms 0 and 1.

    :param fail_after: raise after so many calculations (a calculator that breaks down).
    :param delay_s: each calculation takes at least so long.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - ASE's way

    def __init__(self, barrier_ev=0.25, centre_ang=2.5, half_distance_ang=0.5, fail_after=None, delay_s=0.0):
        super().__init__()
        self.h, self.c, self.w = barrier_ev, centre_ang, half_distance_ang
        self.left = fail_after
        self.delay = delay_s

    def value(self, d):
        return self.h * (((d - self.c) / self.w) ** 2 - 1) ** 2

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the calculator broke down")
        if self.delay:
            import time

            time.sleep(self.delay)
        vector = self.atoms.positions[1] - self.atoms.positions[0]
        d = np.linalg.norm(vector)
        u = (d - self.c) / self.w
        slope = 4 * self.h * (u * u - 1) * u / self.w
        force = np.zeros((len(self.atoms), 3))
        force[0], force[1] = slope * vector / d, -slope * vector / d
        energy = float(self.value(d))
        self.results = {"energy": energy, "free_energy": energy, "forces": force}

    def free_energy(self, d, temperature_k):
        """F(d) = V(d) − 2 k T ln d: two free atoms in three dimensions."""
        return self.value(d) - 2 * units.kB * temperature_k * np.log(d)

    def barrier(self, temperature_k):
        """Height of the top over the left well of the free energy (eV)."""
        d = np.linspace(self.c - self.w - 0.3, self.c + 0.2, 4001)
        f = self.free_energy(d, temperature_k)
        top = f[np.abs(d - self.c) < 0.2].max()
        return float(top - f[d < self.c - 0.5 * self.w].min())


def molecule(cell=None, shift=(0.0, 0.0, 0.0)):
    """Two atoms of mass 40 at the left minimum."""
    atoms = Atoms("Ar2", positions=np.array([[0.0, 0, 0], [2.0, 0, 0]]) + shift)
    if cell is not None:
        atoms.set_cell(cell)
        atoms.pbc = True
    return atoms
