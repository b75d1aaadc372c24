"""Two teachers of copper that agree in the crystal and differ where atoms lack neighbours, and frames to label.

The cheap one is EMT. The dear one is EMT with slightly other parameters and a term that the cheap one does not know:
E = Σ_i a/2 · max(c₀ − c_i, 0)², c_i = Σ_j s(r_ij) a smooth count of neighbours. It is zero in a crystal, also a warm
or a strained one, and large at surfaces, beside vacancies and in a liquid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators import emt
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from aiida_mlip.kernel.frames import Frames, concatenate, from_ase

LATTICE_ANG = 3.61
#: Where the count of neighbours fades, Å; atoms with fewer than ENOUGH pay STIFFNESS (eV).
FADE = (2.3, 3.9)
ENOUGH = 11.0
STIFFNESS = 0.25
#: Factors of the dear teacher's parameters of copper: (E0, s0, V0, eta2, kappa, lambda, n0).
CHANGED = (1.0, 1.0, 1.03, 1.0, 1.0, 1.02, 1.0)
#: Kinds of frames and their share of the pool.
KINDS = {"bulk": 0.6, "strained": 0.12, "vacancy": 0.1, "surface": 0.08, "liquid": 0.1}


class DearTeacher(Calculator):
    """EMT with other parameters and the term of missing neighbours."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces, virial = missing_neighbours(atoms)
        usual = emt.parameters["Cu"]
        emt.parameters["Cu"] = tuple(value * factor for value, factor in zip(usual, CHANGED, strict=True))
        try:
            plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=EMT())
            self.results = {
                "energy": plain.get_potential_energy() + energy,
                "forces": plain.get_forces() + forces,
                "stress": plain.get_stress() + full_3x3_to_voigt_6_stress(virial / atoms.get_volume()),
            }
        finally:
            emt.parameters["Cu"] = usual


def missing_neighbours(atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (n, 3) and virial Σ r ⊗ dE/dr (3, 3) of the term."""
    low, high = FADE
    i, j, d, vector = neighbor_list("ijdD", atoms, high)
    phase = np.pi * np.clip((d - low) / (high - low), 0.0, 1.0)
    count = np.bincount(i, weights=0.5 * (1.0 + np.cos(phase)), minlength=len(atoms))
    slope = -0.5 * np.pi / (high - low) * np.sin(phase)
    lacking = np.maximum(ENOUGH - count, 0.0)
    # dE/dr of a pair, half of it for each direction in which it is listed
    pull = (-STIFFNESS * lacking[i] * slope)[:, None] * vector / d[:, None]
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    return 0.5 * STIFFNESS * float((lacking**2).sum()), forces, vector.T @ pull


def label(frames: Frames, teacher: Callable[[], Calculator], fidelity: str) -> Frames:
    """The same frames with the labels of a teacher."""
    done = []
    for row in range(len(frames)):
        atoms = frames.to_ase(row)
        atoms.calc = teacher()
        atoms.get_forces()
        atoms.get_stress()
        done.append(atoms)
    labelled = from_ase(done, fidelity=fidelity)
    return labelled.with_columns(generator=frames.generator, generators=frames.generators)


def frames_of(n: int, *, seed: int) -> Frames:
    """About n frames of all kinds by their share; the generator's name says which kind."""
    rng = np.random.default_rng(seed)
    parts = [
        from_ase([MAKERS[kind](rng) for _ in range(round(n * share))], generator=kind) for kind, share in KINDS.items()
    ]
    return concatenate(parts)


def kinds_of(frames: Frames) -> np.ndarray:
    """(n,) name of the kind of each frame."""
    return np.array(frames.generators)[frames.generator]


def _crystal(rng: np.random.Generator) -> Atoms:
    return bulk("Cu", "fcc", a=LATTICE_ANG, cubic=True) * ((2, 2, 1), (1, 2, 2), (2, 1, 2))[rng.integers(3)]


def _warm(atoms: Atoms, rng: np.random.Generator, *, strain: float = 0.012, rattle: float | None = None) -> Atoms:
    tensor = rng.normal(0.0, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (tensor + tensor.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(0.0, rng.uniform(0.03, 0.09) if rattle is None else rattle, (len(atoms), 3))
    atoms.pbc = True
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def _bulk(rng: np.random.Generator) -> Atoms:
    return _warm(_crystal(rng), rng)


def _strained(rng: np.random.Generator) -> Atoms:
    atoms = _crystal(rng)
    atoms.set_cell(atoms.cell.array * rng.uniform(0.95, 1.01), scale_atoms=True)
    return _warm(atoms, rng, strain=0.02)


def _vacancy(rng: np.random.Generator) -> Atoms:
    atoms = _crystal(rng)
    del atoms[[0] if rng.random() < 0.6 else rng.choice(len(atoms), 2, replace=False)]
    return _warm(atoms, rng)


def _surface(rng: np.random.Generator) -> Atoms:
    make, size = [(fcc100, (2, 2, 4)), (fcc111, (2, 2, 4)), (fcc110, (2, 2, 5))][rng.integers(3)]
    slab = make("Cu", size, a=LATTICE_ANG, vacuum=4.0, periodic=True)
    if rng.random() < 0.4:
        del slab[int(np.argmax(slab.positions[:, 2]))]
    return _warm(slab, rng)


def _liquid(rng: np.random.Generator) -> Atoms:
    while True:
        atoms = _crystal(rng)
        atoms.set_cell(atoms.cell.array * rng.uniform(1.0, 1.06), scale_atoms=True)
        atoms = _warm(atoms, rng, strain=0.03, rattle=rng.uniform(0.12, 0.2))
        if not len(neighbor_list("i", atoms, 1.9)):
            return atoms


MAKERS = {"bulk": _bulk, "strained": _strained, "vacancy": _vacancy, "surface": _surface, "liquid": _liquid}
