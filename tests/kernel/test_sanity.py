"""Sanity filters: every reason is met, nothing is lost without a record."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.generators.rattle import displacements
from aiida_mlip.kernel.sanity import REASONS, SanityLimits, count_reasons, sift


def silicon(seed: int, amplitude: float = 0.0, scale: float = 1.0) -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    atoms.positions += displacements(8, amplitude, np.random.default_rng(seed))
    return atoms


def with_forces(largest: float) -> Frames:
    atoms = silicon(0, 0.01)
    forces = np.zeros((8, 3))
    forces[3, 1] = -largest
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    return from_ase([atoms], fidelity="pbe")


def test_every_filter_drops_its_frame_and_says_why():
    broken = from_ase([silicon(0)])
    broken = broken.with_columns(positions=np.where(np.arange(24).reshape(8, 3) == 5, np.nan, broken.positions))
    close = from_ase([Atoms("Si2", [[0, 0, 0], [0, 0, 1.0]])])
    rows = [
        from_ase([silicon(0)]),
        broken,
        close,
        from_ase([silicon(0, scale=1.3)]),
        with_forces(30.0),
        with_forces(3.0),
    ]
    frames = concatenate(rows)
    limits = SanityLimits(volume_ang3_per_atom=(15.0, 30.0), max_force_ev_per_ang=15.0)
    kept, dropped = sift(frames, limits, first=100)
    assert kept.ids() == [frames.ids()[0], frames.ids()[5]]
    assert [(entry.row, entry.reason) for entry in dropped] == [
        (101, "not_finite"), (102, "pair_distance"), (103, "volume"), (104, "force"),
    ]  # fmt: skip
    assert [entry.frame_id for entry in dropped] == frames.ids()[1:5]
    assert "Si (atom 0) and Si (atom 1) are 1.000 Å apart, allowed are 1.554" in dropped[1].detail
    assert "43.968 Å³ per atom" in dropped[2].detail
    assert "30.000 eV/Å, allowed are 15" in dropped[3].detail
    assert count_reasons(dropped) == {reason: int(reason != "duplicate") for reason in REASONS}


@given(st.integers(0, 100), st.floats(0.0, 0.6), st.floats(1.2, 2.3))
@settings(max_examples=20, deadline=None)
def test_kept_frames_keep_the_distance_and_dropped_ones_do_not(seed, amplitude, distance):
    frames = from_ase([silicon(seed + k, amplitude) for k in range(5)])
    kept, dropped = sift(frames, SanityLimits(min_distance_ang=distance))
    assert len(kept) + len(dropped) == 5
    table = pair_limits(distance)
    gone = {entry.frame_id for entry in dropped}
    for row, name in enumerate(frames.ids()):
        assert (closest_pair(*geometry(frames, row), table)[0] < 1.0) == (name in gone)


def test_masked_forces_are_not_known_forces():
    frames = with_forces(30.0)
    masked = frames.with_columns(forces=np.where(np.abs(frames.forces) > 1, np.nan, frames.forces))
    assert len(sift(masked, SanityLimits(max_force_ev_per_ang=1.0))[0]) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"volume_ang3_per_atom": (30.0, 20.0)}, "volume_ang3_per_atom"),
        ({"max_force_ev_per_ang": -1.0}, "max_force_ev_per_ang"),
        ({"min_distance_ang": 0.0}, "min_distance_ang"),
    ],
)
def test_bad_limits(keys, message):
    with pytest.raises(InvalidInputError, match=message):
        SanityLimits(**keys)
