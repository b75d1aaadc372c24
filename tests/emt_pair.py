"""Pairs of teachers: EMT as published, cheap, and EMT with changed parameters, dear; and frames for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators import emt
from ase.neighborlist import neighbor_list

from aiida_mlip.kernel.frames import Frames, from_ase

CHEAP, DEAR = "emt", "changed_emt"
LATTICE_ANG = 3.61
Changes = Mapping[str, Sequence[float]]
#: Parameters of the dear teacher relative to the published ones: E0, s0, V0, eta2, kappa, lambda, n0.
COPPER: Changes = {"Cu": (1.03, 1.03, 1.07, 1.06, 1.11, 1.06, 1.13)}
#: Of the cheap teacher on alloys, eV/Å.
LARGEST_FORCE = 8.0
ALLOY_LATTICE_ANG = {"Cu": 3.61, "Ag": 4.09, "Au": 4.08, "Pt": 3.92}
#: As levels of theory differ: for all elements in the same direction (LDA binds more than PBE), but for none
#: as much as for another. Copper's changes times a factor.
ALLOY: Changes = {
    symbol: tuple(1.0 + factor * (change - 1.0) for change in COPPER["Cu"])
    for symbol, factor in {"Cu": 1.2, "Ag": 1.1, "Au": 0.9, "Pt": 0.8}.items()
}


@dataclass(frozen=True)
class Labels:
    """Frames at both levels.

    :param cheap: all frames at the cheap level.
    :param dear: some of them at the dear level.
    :param all_dear: all of them at the dear level, where these are known.
    """

    cheap: Frames
    dear: Frames
    all_dear: Frames | None = None


class ChangedEMT(emt.EMT):
    """EMT with the parameters of some elements multiplied by factors."""

    def __init__(self, changes: Changes, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.changes = changes

    def initialize(self, atoms: Atoms) -> None:
        """As in EMT; the parameters are read here and nowhere else."""
        changed = {s: tuple(np.array(emt.parameters[s]) * factors) for s, factors in self.changes.items()}
        with patch.dict(emt.parameters, changed):
            super().initialize(atoms)


def labelled(images: Sequence[Atoms], fidelity: str, changes: Changes = COPPER) -> Frames:
    """The structures with energy, forces and stress of a teacher."""
    done = []
    for image in images:
        atoms = Atoms(numbers=image.numbers, positions=image.positions, cell=image.cell, pbc=True)
        atoms.calc = ChangedEMT(changes) if fidelity == DEAR else emt.EMT()
        atoms.get_forces()
        atoms.get_stress()
        done.append(atoms)
    return from_ase(done, fidelity=fidelity)


def hot_copper(n: int, *, seed: int) -> list[Atoms]:
    """n cells of four atoms at 0.90 to 1.12 of the volume, strained by 2 %, rattled by 0.08 to 0.20 Å."""
    rng = np.random.default_rng(seed)
    images: list[Atoms] = []
    while len(images) < n:
        atoms = bulk("Cu", a=LATTICE_ANG, cubic=True) if rng.random() < 0.5 else bulk("Cu", a=LATTICE_ANG) * (2, 2, 1)
        tensor = rng.normal(0.0, 0.02, (3, 3))
        strain = (np.eye(3) + (tensor + tensor.T) / 2) * rng.uniform(0.90, 1.12) ** (1 / 3)
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.08, 0.20), (len(atoms), 3))
        if not len(neighbor_list("i", atoms, 2.0)):  # no collision
            images.append(atoms)
    return images


def hot_alloys(n: int, *, seed: int) -> list[Atoms]:
    """n cells of four atoms, each at random one of four elements; fcc or bcc, strained, at 0.93 to 1.10 of the volume.

    Rattled by 0.05 to 0.18 Å times the lattice constant relative to copper's. Where the cheap teacher has a force above
    :data:`LARGEST_FORCE` the cell is left out: two such would decide the error on a hundred others.
    """
    rng = np.random.default_rng(seed)
    cells = (
        bulk("Cu", a=1.0, cubic=True),
        bulk("Cu", a=1.0) * (2, 2, 1),
        bulk("Cu", "bcc", a=2 ** (-1 / 3), cubic=True) * (2, 1, 1),
    )
    images: list[Atoms] = []
    while len(images) < n:
        atoms = cells[rng.integers(len(cells))].copy()
        atoms.symbols = rng.choice(list(ALLOY_LATTICE_ANG), len(atoms))
        lattice = float(np.mean([ALLOY_LATTICE_ANG[symbol] ** 3 for symbol in atoms.symbols]) ** (1 / 3))
        tensor = rng.normal(0.0, 0.02, (3, 3))
        strain = (np.eye(3) + (tensor + tensor.T) / 2) * rng.uniform(0.93, 1.10) ** (1 / 3) * lattice
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.05, 0.18), (len(atoms), 3)) * lattice / LATTICE_ANG
        if np.abs(labelled([atoms], CHEAP).forces).max() <= LARGEST_FORCE:
            images.append(atoms)
    return images


@dataclass(frozen=True)
class Domain:
    """A kind of frames, and how the dear teacher differs on it.

    :param images: number and ``seed`` to structures.
    :param changes: of the dear teacher.
    """

    images: Callable[..., list[Atoms]]
    changes: Changes

    def labels(self, *, seed: int, n_cheap: int = 204, n_dear: int = 24) -> Labels:
        """Labels by both teachers, the first structures also by the dear one; other frames for every seed.

        Four of the dear ones are for validation, which leaves 200 cheap and 20 dear ones to train on.
        """
        images = self.images(n_cheap, seed=10 * seed + 1)
        dear = labelled(images, DEAR, self.changes)
        return Labels(labelled(images, CHEAP), dear.take(range(n_dear)), dear)

    def held_out(self, *, seed: int, n: int = 150) -> tuple[Frames, Frames]:
        """Other structures of the kind, by the cheap and by the dear teacher."""
        images = self.images(n, seed=10 * seed + 3)
        return labelled(images, CHEAP), labelled(images, DEAR, self.changes)


DOMAINS = {"copper": Domain(hot_copper, COPPER), "alloy": Domain(hot_alloys, ALLOY)}
