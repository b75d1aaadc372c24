"""Copper at two levels of theory: the EMT calculator of ASE, and the same with other parameters."""

from __future__ import annotations

import numpy as np
from ase.calculators import emt
from emt_frames import emt_frames

from aiida_mlip.kernel.frames import Frames, concatenate, from_ase

LOW, HIGH = "low", "high"
#: eV per atom between the two levels, as between two pseudopotentials.
OFFSET = 7.0
#: Factors of E0, s0, V0, eta2, kappa, lambda, n0 of the low level.
_CHANGES = (1.05, 1.005, 0.9, 1.02, 1.02, 1.02, 1.05)


class ChangedEMT(emt.EMT):
    """EMT with its parameters changed by some percent and an offset of the energy."""

    def initialize(self, atoms):
        """As in EMT, with other parameters."""
        kept = dict(emt.parameters)
        emt.parameters.update(
            {name: tuple(np.array(values) * _CHANGES) for name, values in emt.parameters.items()}  # type: ignore[misc]
        )
        try:
            super().initialize(atoms)
        finally:
            emt.parameters.update(kept)

    def calculate(self, *args, **kwargs):
        """As in EMT, with an offset of the energy."""
        super().calculate(*args, **kwargs)
        for name in ("energy", "free_energy"):
            self.results[name] += OFFSET * len(self.atoms)


def at_low(frames: Frames) -> Frames:
    """The same frames labelled at the low level."""
    images = [frames.to_ase(row) for row in range(len(frames))]
    for atoms in images:
        atoms.calc = ChangedEMT()
        atoms.get_stress()
        atoms.get_forces()
    return from_ase(images, fidelity=LOW)


def two_levels(n: int = 24, n_high: int = 8, *, seed: int = 0) -> Frames:
    """n frames at the low level, and the first of them at the high level too."""
    frames = emt_frames(n, fidelity=HIGH, seed=seed)
    return concatenate([at_low(frames), frames.take(range(n_high))])
