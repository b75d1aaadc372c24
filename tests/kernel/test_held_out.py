"""Calibration of a committee: which frames count, and that each member has its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.calibration import calibrate
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.held_out import Parity, calibrate_members, held_out_rows

FRAMES, ATOMS = 40, 10


def committee(n_members: int = 3, *, seed: int = 0) -> dict[str, Parity]:
    """The first half of the frames is the test part, the rest belongs to training and validation in turns."""
    rng = np.random.default_rng(seed)
    natoms = np.full(FRAMES, ATOMS)
    truth = rng.normal(size=(FRAMES * ATOMS, 3))
    quality = rng.lognormal(-3, 0.7, size=(FRAMES * ATOMS, 1))
    members = {}
    for i in range(n_members):
        part = np.where(np.arange(FRAMES) < FRAMES // 2, 2, (np.arange(FRAMES) + i) % 2)
        members[f"member_{i}"] = Parity(
            frame_id=np.random.default_rng(7).integers(0, 256, size=(FRAMES, 16), dtype=np.uint8),
            part=part.astype(np.int8),
            natoms=natoms,
            numbers=np.full(FRAMES * ATOMS, 29),
            forces_reference=truth,
            forces_predicted=truth + quality * rng.normal(size=truth.shape),
            novelty=rng.uniform(0.5, 1.5, size=FRAMES * ATOMS),
        )
    return members


def test_only_frames_that_no_member_has_seen_count() -> None:
    members = committee()
    np.testing.assert_array_equal(held_out_rows(members), np.arange(FRAMES) < FRAMES // 2)
    found = calibrate_members(members)
    assert {value.n_atoms for value in found.values()} == {FRAMES // 2 * ATOMS}
    # what the others say of frames that are trained on changes nothing
    spoiled = {
        name: replace(member, forces_predicted=np.where(np.arange(400)[:, None] < 200, member.forces_predicted, 1e3))
        for name, member in members.items()
    }
    assert calibrate_members(spoiled) == found


def test_each_member_has_its_own_errors_and_shares_the_deviation() -> None:
    members = committee()
    found = calibrate_members(members, seed=3)
    deviation = force_deviation(np.stack([member.forces_predicted for member in members.values()]))[:200]
    group = np.repeat(np.arange(20), ATOMS)
    for name, member in members.items():
        error = (member.forces_predicted - member.forces_reference)[:200]
        region = np.where(member.novelty[:200] <= 1.0, "inside", "outside")
        assert found[name] == calibrate(deviation, error, member.numbers[:200], group=group, region=region, seed=3)
    assert found["member_0"].scale != found["member_1"].scale


def test_a_dataset_that_no_member_was_trained_on_counts_as_a_whole() -> None:
    fresh = {name: replace(member, part=np.full(FRAMES, -1)) for name, member in committee().items()}
    assert calibrate_members(fresh)["member_0"].n_atoms == FRAMES * ATOMS
    bare = {name: replace(member, novelty=None) for name, member in fresh.items()}
    assert calibrate_members(bare)["member_0"].metrics["coverage"]["region"] == {}


def test_frames_without_labels_or_of_one_atom_do_not_count() -> None:
    members = committee()
    holes = members["member_0"].forces_reference.copy()
    holes[:50] = np.nan
    some = {name: replace(member, forces_reference=holes) for name, member in members.items()}
    assert calibrate_members(some)["member_2"].n_atoms == 150
    alone = {
        name: replace(
            member, natoms=np.ones(400, dtype=int), part=np.full(400, 2), frame_id=np.zeros((400, 16), dtype=np.uint8)
        )
        for name, member in members.items()
    }
    with pytest.raises(InvalidInputError, match="got 0"):
        calibrate_members(alone)


def test_wrong_input_is_refused() -> None:
    members = committee(2)
    with pytest.raises(InvalidInputError, match=r"at least two members, got 1: \['member_0'\]"):
        calibrate_members({"member_0": members["member_0"]})
    other = replace(members["member_1"], frame_id=members["member_1"].frame_id[::-1])
    with pytest.raises(InvalidInputError, match="member_1 was evaluated on other frames than member_0"):
        calibrate_members({**members, "member_1": other})
