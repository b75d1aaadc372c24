"""Pairs of teachers: EMT as published, cheap, and EMT with changed parameters, dear; and frames for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def copper_labels(n_cheap: int = 204, n_dear: int = 24) -> Labels:
    """Labels of hot copper by both teachers, the first cells also by the dear one.

    Four of the dear ones are for validation, which leaves 200 cheap and 20 dear ones to train on.
    """
    images = hot_copper(n_cheap, seed=1)
    dear = labelled(images, DEAR)
    return Labels(labelled(images, CHEAP), dear.take(range(n_dear)), dear)
