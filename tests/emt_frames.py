"""Small labelled frames: rattled, strained copper with the EMT calculator of ASE as the teacher."""

from __future__ import annotations

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from aiida_mlip.kernel.frames import Frames, from_ase


def emt_frames(n: int = 12, *, seed: int = 0, fidelity: str = "emt", symbol: str = "Cu") -> Frames:
    """n frames of four atoms with energies, forces and stresses."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk(symbol, "fcc", cubic=True)
        strain = rng.normal(0.0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.get_stress()
        atoms.get_forces()
        images.append(atoms)
    return from_ase(images, fidelity=fidelity)
