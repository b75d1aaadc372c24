"""Laws of leakage-safe splits."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, digest, from_ase, id_keys
from aiida_mlip.kernel.splits import ALWAYS_TRAINED, Part, group_rows, repetition, split_frames, usable_rows


def labelled(n: int, *, groups: list[int] | None = None, seed: int = 0) -> Frames:
    """n single-atom periodic frames with an energy; groups by number, 0 for none."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Cu", a=3.6 + rng.normal(0, 0.1))
        atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()), forces=np.zeros((1, 3)))
        images.append(atoms)
    frames = from_ase(images, fidelity="emt")
    if groups is not None:
        ids = np.array([digest(f"group {g}") if g else np.zeros(16, dtype=np.uint8) for g in groups])
        frames = frames.with_columns(group_id=ids.reshape(n, 16))
    return frames


@given(
    groups=st.lists(st.integers(0, 12), min_size=4, max_size=60),
    members=st.integers(1, 4),
    test=st.sampled_from([0.0, 0.1, 0.3]),
    val=st.sampled_from([0.1, 0.25]),
    bag=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_on_two_sides(groups, members, test, val, bag, seed):
    frames = labelled(len(groups), groups=groups)
    number = group_rows(frames)
    assume(len(np.unique(number)) >= 2 + (test > 0))
    split = split_frames(frames, test=test, val=val, seed=seed, members=members, bag=bag)
    assert split.parts.shape == (members, len(frames))
    for parts in split.parts:
        for group in np.unique(number):
            assert len(np.unique(parts[number == group])) == 1
        assert (parts == Part.TRAIN).any()
        assert (parts == Part.VAL).any()
        assert (parts == Part.TEST).any() == (test > 0)
        if bag == 1.0:
            assert not (parts == Part.UNUSED).any()
    # the test part is common
    assert (np.ptp((split.parts == Part.TEST).astype(int), axis=0) == 0).all()


@given(seed=st.integers(0, 100), order=st.permutations(range(20)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_rows_does_not_matter(seed, order):
    frames = labelled(20, groups=[i // 3 for i in range(20)])
    split = split_frames(frames, test=0.2, val=0.2, seed=seed, members=2)
    permuted = split_frames(frames.take(order), test=0.2, val=0.2, seed=seed, members=2)
    np.testing.assert_array_equal(permuted.parts, split.parts[:, order])


def test_same_seed_same_split_other_seed_another():
    frames = labelled(40)
    first, again, other = (split_frames(frames, test=0.2, val=0.2, seed=seed).parts for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_fractions_are_met_with_groups_of_one():
    counts = split_frames(labelled(100), test=0.1, val=0.15, seed=3, members=2).counts()
    assert counts == [{"train": 75, "val": 15, "test": 10}] * 2


def test_few_added_rows_move_few_test_rows():
    """A test frame should stay one when a round of active learning adds frames."""
    frames = labelled(110)
    before = split_frames(frames.take(range(100)), test=0.2, val=0.1, seed=0).parts[0] == Part.TEST
    after = split_frames(frames, test=0.2, val=0.1, seed=0).parts[0, :100] == Part.TEST
    assert (before & after).sum() >= 0.8 * before.sum()


def test_validation_parts_of_members_are_disjoint_while_groups_last():
    split = split_frames(labelled(40), test=0.1, val=0.2, seed=0, members=4)
    assert ((split.parts == Part.VAL).sum(axis=0) <= 1).all()


def test_children_of_one_parent_stay_with_it():
    parent = labelled(1)
    children = labelled(3, seed=1).with_columns(parent_id=np.repeat(parent.frame_id, 3, axis=0))
    others = labelled(4, seed=2)
    frames = concatenate([parent, children, others])
    assert len(np.unique(group_rows(frames)[:4])) == 1
    assert len(np.unique(group_rows(frames))) == 5
    assert len(np.unique(group_rows(frames, group_by="frame"))) == 8
    # a group of their own separates children from their parent
    grouped = children.with_columns(group_id=children.frame_id)
    assert len(np.unique(group_rows(concatenate([parent, grouped])))) == 4


def test_the_same_frame_at_two_fidelities_is_one_group():
    frames = labelled(5)
    both = concatenate([frames, frames.with_columns(fidelities=("dft",))])
    split = split_frames(both, test=0.2, val=0.2, seed=0)
    np.testing.assert_array_equal(split.parts[0, :5], split.parts[0, 5:])
    only = split_frames(both, test=0.2, val=0.2, seed=0, fidelity="dft")
    assert (only.parts[0, :5] == Part.UNUSED).all()
    assert (only.parts[0, 5:] != Part.UNUSED).all()


def test_isolated_atoms_failed_and_unlabelled_rows_are_not_used():
    frames = labelled(6)
    atom = Atoms("Cu")
    atom.calc = SinglePointCalculator(atom, energy=-1.0)
    failed = labelled(1, seed=5).with_columns(failure=np.array([Failure.CRASHED], dtype=np.uint8))
    mixed = concatenate([frames, from_ase([atom], fidelity="emt"), failed, from_ase([bulk("Al")])])
    assert usable_rows(mixed).tolist() == [True] * 6 + [False] * 3
    split = split_frames(mixed, test=0.2, val=0.2, seed=0)
    assert (split.parts[0, 6:] == Part.UNUSED).all()


def test_forces_without_energies_can_be_trained_on():
    frames = labelled(2)
    assert usable_rows(frames.with_columns(energy=np.full(2, np.nan))).all()
    masked = frames.with_columns(energy=np.full(2, np.nan), forces=np.full((2, 3), np.nan))
    assert not usable_rows(masked).any()


def test_too_few_groups_names_the_way_out():
    frames = labelled(6, groups=[1] * 6)
    with pytest.raises(InvalidInputError, match=r"only 1 group.*group_by: frame.* would be 6"):
        split_frames(frames, test=0.1, val=0.1, seed=0)
    assert split_frames(frames, test=0.1, val=0.1, seed=0, group_by="frame").counts()[0]["train"] == 4


def test_no_labels_and_wrong_fractions_are_refused():
    with pytest.raises(InvalidInputError, match="none of the 1 rows carries labels"):
        split_frames(from_ase([bulk("Al")]), test=0.1, val=0.1, seed=0)
    with pytest.raises(InvalidInputError, match="fractions"):
        split_frames(labelled(5), test=0.6, val=0.5, seed=0)


def test_group_keys_cover_frames():
    frames = labelled(4)
    assert len(np.unique(id_keys(frames.frame_id))) == 4
    assert group_rows(frames.take([])).shape == (0,)


@pytest.mark.parametrize("group_by", ["lineage", "frame"])
def test_rows_that_are_always_trained_on(group_by):
    """Pinned rows train every member, for every seed; the others are dealt out as before."""
    frames = labelled(20)
    group_id = frames.frame_id.copy()
    group_id[[3, 7]] = ALWAYS_TRAINED
    pinned = frames.with_columns(group_id=group_id)
    for seed in range(10):
        split = split_frames(pinned, test=0.3, val=0.3, seed=seed, members=2, group_by=group_by, bag=0.5)
        assert (split.parts[:, [3, 7]] == Part.TRAIN).all()
        assert all(count["test"] and count["val"] for count in split.counts())
    # what has parts to deal out must still be enough for them
    few = labelled(4).with_columns(group_id=np.stack([*labelled(4).frame_id[:2], ALWAYS_TRAINED, ALWAYS_TRAINED]))
    with pytest.raises(InvalidInputError, match="only 2 group"):
        split_frames(few, test=0.3, val=0.3, seed=0, group_by=group_by)


# -- several levels of theory ------------------------------------------------------------------------------------


def at_several(groups: list[int], at_target: list[bool]) -> Frames:
    """A frame per entry labelled at "low", and those of ``at_target`` at "high" too."""
    low = labelled(len(groups), groups=groups).with_columns(fidelities=("low",))
    return concatenate([low, low.take(np.array(at_target)).with_columns(fidelities=("high",))])


LEVELS = {
    "groups": st.lists(st.integers(0, 9), min_size=8, max_size=40),
    "chosen": st.integers(0, 2**40 - 1),
    "seed": st.integers(0, 1000),
    "bag": st.sampled_from([0.5, 1.0]),
    "test": st.sampled_from([0.0, 0.2]),
}


@given(**LEVELS)
@settings(max_examples=60, deadline=None)
def test_rows_at_the_target_are_dealt_out_as_if_alone_and_others_follow(groups, chosen, seed, bag, test):
    at_target = [bool(chosen >> i & 1) for i in range(len(groups))]
    frames = at_several(groups, at_target)
    assume(any(at_target))
    target = frames.fidelity == frames.fidelity_index("high")
    number = group_rows(frames)
    assume(len(np.unique(number[target])) >= 3)
    options = {"test": test, "val": 0.2, "seed": seed, "bag": bag, "members": 2, "fidelity": "high"}
    alone = split_frames(frames, **options)
    split = split_frames(frames, others=["low"], **options)
    np.testing.assert_array_equal(split.parts[:, target], alone.parts[:, target])
    for parts in split.parts:
        for group in np.unique(number):
            assert len(np.unique(parts[number == group])) == 1  # no leakage, whatever the level
        without = ~np.isin(number, number[target])
        assert np.isin(parts[without], (Part.TRAIN, Part.UNUSED)).all()
        if bag == 1.0:
            assert (parts[without] == Part.TRAIN).all()


def test_bags_leave_out_groups_without_the_target_too():
    frames = at_several([0] * 40, [i < 8 for i in range(40)])
    split = split_frames(frames, test=0.0, val=0.2, seed=0, members=2, bag=0.5, fidelity="high", others=["low"])
    without = np.arange(40) >= 8
    counts = [(parts[:40][without] == Part.TRAIN).sum() for parts in split.parts]
    assert counts == [16, 16]
    assert (split.parts[0] != split.parts[1]).any()


@given(st.integers(1, 500), st.integers(0, 5000), st.floats(0.0, 0.9))
def test_repetition_comes_next_to_the_share(n_target, n_others, share):
    times = repetition(n_target, n_others, share)

    def wanted(r):  # distance of the number of repetitions from the exact one
        return abs(r * n_target - share / (1 - share) * n_others)

    assert times >= 1
    assert all(wanted(times) <= wanted(r) + 1e-6 for r in (times - 1, times + 1) if r >= 1)
    assert repetition(n_target, n_others, 0.0) == 1
