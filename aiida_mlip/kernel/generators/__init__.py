"""Generators of geometries. A new one is a file of this package and one line of :data:`GENERATORS`.

A generator is a pure function ``(parents, parameters, rng) -> frames``: the same state of ``rng`` gives the same
bytes. It sets the lineage (``parent_id``; ``group_id``: frames that must stay on one side of a split), keeps the
composition it promises, and never returns a frame with two atoms closer than its limits.
``tests/kernel/test_generators.py`` holds these contracts and runs them for every entry, with its ``example``.
"""

from __future__ import annotations

from typing import Final

from aiida_mlip.kernel.generators import (
    antisite,
    cluster,
    decoration,
    grain_boundary,
    interstitial,
    molecules,
    random_crystal,
    random_structure,
    rattle,
    sqs,
    stacking_fault,
    strain,
    supercell,
    surface,
    vacancy,
)
from aiida_mlip.kernel.generators.base import Generator, empty_frames

GENERATORS: Final[dict[str, Generator]] = {
    generator.name: generator
    for generator in (
        rattle.GENERATOR,
        strain.GENERATOR,
        random_structure.GENERATOR,
        random_crystal.GENERATOR,
        supercell.GENERATOR,
        vacancy.GENERATOR,
        interstitial.GENERATOR,
        antisite.GENERATOR,
        surface.GENERATOR,
        stacking_fault.GENERATOR,
        grain_boundary.GENERATOR,
        molecules.ISOLATED_ATOM,
        molecules.DIMER,
        molecules.TRIMER,
        cluster.CLUSTER,
        cluster.NANOPARTICLE,
        decoration.GENERATOR,
        sqs.GENERATOR,
    )
}

__all__ = ["GENERATORS", "Generator", "empty_frames"]
