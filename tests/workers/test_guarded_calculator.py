"""The watch on pair distances inside the forces of a dynamics."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.metadynamics.walls import PairWall
from aiida_mlip.workers.guarded_calculator import GuardedCalculator, PairDistanceReached

LIMITS = pair_limits({"Cu-Cu": 2.2, "Cu-Au": 2.3}, scale=0.8)


@given(seed=st.integers(0, 2**32 - 1), step=st.floats(0.01, 0.25), onset=st.floats(1.0, 1.3))
def test_without_repulsion_the_distances_are_those_of_the_wall(seed: int, step: float, onset: float) -> None:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    atoms.numbers[:3] = 79
    wall = PairWall(LIMITS, onset=onset)
    guard = GuardedCalculator(EMT(), wall)
    for _ in range(5):
        atoms.positions += rng.normal(0, step, atoms.positions.shape)
        guard.reset_watch()
        ratio = wall.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)[3]
        if ratio < 1:
            with pytest.raises(PairDistanceReached, match=f"at {ratio:.3f}"):
                guard.compute(atoms)
            continue
        energy, forces = guard.compute(atoms)
        assert guard.smallest_ratio == pytest.approx(ratio, abs=1e-12)
        plain = atoms.copy()
        plain.calc = EMT()
        assert energy == pytest.approx(plain.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(forces, plain.get_forces(), atol=1e-9)
