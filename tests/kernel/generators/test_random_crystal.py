"""Random crystals: composition, distances, volume and symmetry, checked with spglib."""

import numpy as np
import pytest
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators import GENERATORS, empty_frames
from aiida_mlip.kernel.generators.assembly import formula
from aiida_mlip.kernel.generators.random_crystal import RandomCrystal, compatible_groups, space_groups_of


def make(parameters: RandomCrystal, seed: int = 0) -> Frames:
    return GENERATORS["random_crystal"](empty_frames(), parameters, np.random.default_rng(seed))


def has_group(frames: Frames, row: int, number: int, *, primitive: bool) -> bool:
    """Whether spglib finds all operations of the group, by the number of point operations and translations."""
    numbers, positions, cell, _ = geometry(frames, row)
    found = spglib.get_symmetry((cell, positions @ np.linalg.inv(cell), numbers), symprec=1e-3)
    hall = next(h for h in range(1, 531) if spglib.get_spacegroup_type(h).number == number)
    table = spglib.get_symmetry_from_database(hall)
    asked = len({w.tobytes() for w in table["rotations"]}) if primitive else len(table["rotations"])
    return len(found["rotations"]) % asked == 0


@pytest.mark.parametrize(
    ("group", "primitive"),
    [(2, False), (14, False), (62, False), (136, False), (225, False), (36, True), (141, True), (148, True)],
)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, deadline=None, derandomize=True)  # some draws take seconds
def test_what_was_asked_for(group, primitive, seed):
    limits = {"Ti-O": 1.5, "O-O": 1.9}
    parameters = RandomCrystal(
        "TiO2", formula_units=4, space_groups=group, primitive=primitive, min_distance_ang=limits
    )
    frames = make(parameters, seed)
    assert formula(geometry(frames, 0)[0]) == "O8Ti4"
    assert closest_pair(*geometry(frames, 0), pair_limits(limits))[0] >= 1.0
    assert has_group(frames, 0, group, primitive=primitive)


def test_many_groups_and_formula_units():
    parameters = RandomCrystal(
        ("Si", "NaCl"), 12, formula_units=(2, 4, 8), volume_ang3_per_atom=(18.0, 26.0), min_distance_ang=1.9
    )
    frames = make(parameters)
    assert [formula(geometry(frames, row)[0]) for row in range(6)] == [
        "Si2", "Na2Cl2", "Si4", "Na4Cl4", "Si8", "Na8Cl8",
    ]  # fmt: skip
    volume = np.abs(np.linalg.det(frames.cell)) / frames.natoms
    # one in each twelfth of the window
    np.testing.assert_array_equal(np.sort(((volume - 18.0) / 8.0 * 12).astype(int)), np.arange(12))
    assert all(closest_pair(*geometry(frames, row), pair_limits(1.9))[0] >= 1.0 for row in range(12))
    assert len(set(space_groups_of(frames))) > 3
    assert len({bytes(row) for row in frames.group_id}) == 12


def test_exact_symmetry():
    frames = make(RandomCrystal("SiO2", 4, formula_units=4, space_groups=(14, 19, 33), exact=True), 3)
    assert set(space_groups_of(frames)) <= {14, 19, 33}


def test_group_choice_is_complete():
    # a perovskite cell fits Pm-3m (1a, 1b, 3c), not Ia-3d, whose smallest position has 16 sites
    found = compatible_groups("SrTiO3", 1, RandomCrystal("SrTiO3", formula_units=1))
    assert 221 in found
    assert 230 not in found
    assert 1 in found


def test_bad_input():
    with pytest.raises(InvalidInputError, match=r"space_groups: \[230\] cannot hold 3 O, 1 Ti, 1 Sr \(1 x SrTiO3\)"):
        RandomCrystal("SrTiO3", formula_units=1, space_groups=230)
    with pytest.raises(InvalidInputError, match="denser than the densest packing"):
        RandomCrystal("Si", volume_ang3_per_atom=(10.0, 12.0), min_distance_ang=2.9)
    with pytest.raises(InvalidInputError, match="min_distance_ang: no crystal of"):
        make(
            RandomCrystal(
                "Si", formula_units=8, space_groups=2, volume_ang3_per_atom=(12.0, 12.1), min_distance_ang=2.45,
                max_attempts=1,
            )
        )  # fmt: skip
    for keys, message in (
        ({"space_groups": 231}, "space_groups"),
        ({"space_groups": ()}, "empty list"),
        ({"formula_units": 0}, "formula_units"),
        ({"count": 0}, "count"),
        ({"volume_ang3_per_atom": (20.0, 10.0)}, "volume_ang3_per_atom"),
        ({"min_distance_ang": -1.0}, "min_distance_ang"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            RandomCrystal(**({"composition": "Si"} | keys))
    with pytest.raises(InvalidInputError, match="composition"):
        RandomCrystal("Xx")
