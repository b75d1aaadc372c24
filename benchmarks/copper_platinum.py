"""Copper and platinum by two teachers, whose mixing energies differ by some 40 per cent.

Training: cells of four atoms of random composition as a solid has them. Property: the energy of mixing of the random
solid solution, cells of 32 atoms on fcc sites, each at the volume of its lowest energy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from aiida_mlip.kernel.frames import Frames, from_ase

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from emt_pair import CHEAP, DEAR, Labels, labelled

N_CHEAP, N_DEAR, N_TEST = 200, 20, 60
LATTICE_ANG = {"Cu": 3.59, "Pt": 3.93}
CHANGES = {
    "Cu": (1.036, 0.994, 1.036, 1.041, 1.031, 0.968, 0.965),
    "Pt": (1.03, 1.009, 0.968, 0.942, 0.945, 1.03, 1.058),
}
#: Fractions of platinum, cells of each, and lattice constants relative to Vegard's rule.
FRACTIONS = np.array([0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
REPEATS = 3
SCALES = np.linspace(0.97, 1.03, 7)


def warm_cells(n: int, *, seed: int) -> list[Atoms]:
    """n cells of four atoms of every composition, strained by 2 %, rattled by 0.03 to 0.15 Å."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Cu", a=1.0, cubic=True) if rng.random() < 0.5 else bulk("Cu", a=1.0) * (2, 2, 1)
        n = rng.integers(0, 5)
        atoms.symbols = rng.permutation(["Pt"] * n + ["Cu"] * (4 - n))
        tensor = rng.normal(0.0, 0.02, (3, 3))
        strain = (np.eye(3) + (tensor + tensor.T) / 2) * rng.uniform(0.96, 1.04) * vegard(atoms)
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.03, 0.15), (len(atoms), 3))
        images.append(atoms)
    return images


def vegard(atoms: Atoms) -> float:
    """Lattice constant (Å) between those of the elements."""
    return float(np.mean([LATTICE_ANG[symbol] for symbol in atoms.symbols]))


def labels() -> Labels:
    """Training frames: all at both levels."""
    images = warm_cells(N_CHEAP, seed=1)
    dear = labelled(images, DEAR, CHANGES)
    return Labels(labelled(images, CHEAP), dear.take(range(N_DEAR)), dear)


def held_out() -> Frames:
    """Dear labels of further frames."""
    return labelled(warm_cells(N_TEST, seed=2), DEAR, CHANGES)


def solutions() -> list[Atoms]:
    """Cells of the solid solution: fraction by fraction, cell by cell, volume by volume."""
    rng = np.random.default_rng(7)
    images = []
    for fraction in FRACTIONS:
        for _ in range(REPEATS):
            atoms = bulk("Cu", a=1.0, cubic=True) * (2, 2, 2)
            n = round(fraction * len(atoms))
            atoms.symbols = rng.permutation(["Pt"] * n + ["Cu"] * (len(atoms) - n))
            for scale in SCALES:
                images.append(atoms.copy())
                images[-1].set_cell(atoms.cell.array * vegard(atoms) * scale, scale_atoms=True)
    return images


def as_frames(images: list[Atoms]) -> Frames:
    """Without labels."""
    return from_ase(images)


def teacher_energies(images: list[Atoms], fidelity: str) -> np.ndarray:
    """(n,) eV."""
    return labelled(images, fidelity, CHANGES).energy


def mixing_energies(energies: np.ndarray) -> np.ndarray:
    """(9,) eV per atom, mean over the cells of a fraction, from the energies (eV) of all :func:`solutions`."""
    each = energies.reshape(len(FRACTIONS), REPEATS, len(SCALES)) / 32
    lowest = np.array([[_minimum(curve) for curve in cells] for cells in each]).mean(axis=1)
    return np.asarray(lowest - (1 - FRACTIONS) * lowest[0] - FRACTIONS * lowest[-1])


def _minimum(energies: np.ndarray) -> float:
    """Lowest energy on the polynomial through the energies of one cell at all volumes."""
    fine = np.linspace(SCALES[0], SCALES[-1], 601)
    return float(np.polyval(np.polyfit(SCALES - 1.0, energies, 4), fine - 1.0).min())
