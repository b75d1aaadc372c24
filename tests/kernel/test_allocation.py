"""Allotting dear labels: the budget holds, nothing is labelled twice, what cancels in the difference is no doubt."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.allocation import (
    AllocateSettings,
    allocate,
    compare_with_forecast,
    difference_deviation,
    find_candidates,
)
from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, from_ase
from aiida_mlip.kernel.selection.costs import CostModel

METHODS = ["difference", "diversity", "random"]
seeds = st.integers(0, 2**20)


def pool(n: int, seed: int = 0) -> Frames:
    """n cells of copper, four or eight atoms each, all of them different."""
    images = []
    for index in range(n):
        atoms = bulk("Cu", cubic=True) * (1 + index % 2, 1, 1)
        atoms.rattle(0.03 + 0.01 * (index % 8), seed=1000 * seed + index)
        images.append(atoms)
    return from_ase(images)


def at(frames: Frames, fidelity: str) -> Frames:
    n = len(frames)
    return frames.with_columns(energy=np.zeros(n), fidelity=np.zeros(n, dtype="<i2"), fidelities=(fidelity,))


def doubts(frames: Frames, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 0.1, frames.n_atoms) + 1e-6


POOL = pool(16)


@settings(max_examples=30)
@given(
    method=st.sampled_from(METHODS),
    batch=st.sampled_from(["maxdet", "farthest", "largest_cluster"]),
    n_frames=st.none() | st.integers(1, 20),
    core_hours=st.none() | st.floats(0.1, 60.0),
    exponent=st.floats(0.0, 3.0),
    n_dear=st.integers(0, 12),
    seed=seeds,
)
def test_never_beyond_the_budget_and_never_what_is_labelled(
    method, batch, n_frames, core_hours, exponent, n_dear, seed
):
    if n_frames is None and core_hours is None:
        core_hours = 5.0
    order = np.random.default_rng(seed).permutation(len(POOL))
    dear = POOL.take(order[:n_dear])
    cost = CostModel(1.0, natoms=4, exponent=exponent)
    wanted = AllocateSettings(method, batch, n_frames, core_hours, cost, duplicate_edge=None, seed=seed)
    result = allocate(POOL, wanted, dear=dear if n_dear else None, deviation=doubts(POOL, seed))
    assert len(set(result.rows.tolist())) == len(result.rows)
    assert not set(result.rows.tolist()) & set(order[:n_dear].tolist())
    np.testing.assert_allclose(result.core_hours, cost(POOL.natoms[result.rows]))
    assert result.forecast <= (np.inf if core_hours is None else core_hours * (1 + 1e-9))
    assert len(result.rows) <= (n_frames or len(POOL))
    assert sum(result.dropped.values()) + len(result.rows) == len(POOL)
    spare = np.inf if core_hours is None else core_hours - result.forecast
    left = np.setdiff1d(order[n_dear:], result.rows)
    if len(result.rows) < (n_frames or len(POOL)) and len(left):  # nothing that would still fit was passed over
        assert cost(POOL.natoms[left]).min() > spare


@settings(max_examples=20)
@given(method=st.sampled_from(METHODS[:2]), seed=seeds)
def test_neither_the_order_of_the_candidates_nor_the_unit_of_the_doubt_matters(method, seed):
    order = np.random.default_rng(seed).permutation(len(POOL))
    doubt = doubts(POOL, seed)
    moved = np.concatenate([doubt[POOL.atom_slice(row)] for row in order])
    wanted = AllocateSettings(method, n_frames=5)
    here = allocate(POOL, wanted, deviation=doubt)
    there = allocate(POOL.take(order), wanted, deviation=1000.0 * moved)
    assert order[there.rows].tolist() == here.rows.tolist()


@settings(max_examples=20)
@given(method=st.sampled_from(METHODS), seed=seeds, few=st.integers(1, 8), more=st.integers(0, 8))
def test_a_larger_budget_chooses_the_same_frames_first(method, seed, few, more):
    doubt = doubts(POOL, seed)
    small = allocate(POOL, AllocateSettings(method, n_frames=few, seed=seed), deviation=doubt)
    large = allocate(POOL, AllocateSettings(method, n_frames=few + more, seed=seed), deviation=doubt)
    assert large.rows[: len(small.rows)].tolist() == small.rows.tolist()


@settings(max_examples=50)
@given(seed=seeds, members=st.integers(2, 5))
def test_what_a_member_adds_to_both_levels_cancels_and_a_rotation_changes_nothing(seed, members):
    rng = np.random.default_rng(seed)
    dear, cheap = rng.normal(size=(2, members, 7, 3))
    reference = difference_deviation(dear, cheap)
    own = rng.normal(size=(members, 7, 3)) * 10.0  # what each got wrong of both
    np.testing.assert_allclose(difference_deviation(dear + own, cheap + own), reference, atol=1e-12)
    common = rng.normal(size=(7, 3))  # what all of them say of the difference
    np.testing.assert_allclose(difference_deviation(dear + common, cheap), reference, atol=1e-12)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(difference_deviation(dear @ turn, cheap @ turn), reference, atol=1e-12)
    np.testing.assert_allclose(difference_deviation(3.0 * dear, 3.0 * cheap), 3.0 * reference, atol=1e-12)
    assert (reference > 0).all()


def test_the_frame_in_doubt_goes_first_and_one_without_doubt_is_not_chosen():
    frames = pool(10)
    doubt = np.zeros(frames.n_atoms)
    doubt[frames.atom_slice(7)] = 0.5
    doubt[frames.atom_slice(3).start] = 0.1
    result = allocate(frames, AllocateSettings("difference", n_frames=5), deviation=doubt)
    assert result.rows.tolist() == [7, 3]
    assert result.atoms[1] == 0
    assert result.dropped["not_chosen"] + result.dropped["duplicate"] == 8
    np.testing.assert_array_equal(result.deviation[[7, 3, 0]], [0.5, 0.1, 0.0])


@pytest.mark.parametrize("batch", ["maxdet", "farthest", "largest_cluster"])
def test_of_two_alike_one_is_enough(batch):
    frames = pool(10)
    twin = frames.take([7])
    moved = twin.positions + 1e-4 * np.sin(np.arange(3 * twin.n_atoms)).reshape(-1, 3)
    frames = concatenate([frames, twin.with_columns(positions=moved)])
    doubt = np.full(frames.n_atoms, 0.1)
    doubt[np.isin(frames.atom_rows(), [7, 10])] = 0.3
    wanted = AllocateSettings("difference", batch, n_frames=4, duplicate_edge=None)
    rows = allocate(frames, wanted, deviation=doubt).rows.tolist()
    assert len({7, 10} & set(rows)) == 1


def test_without_a_deviation_diversity_decides_and_says_so():
    asked = allocate(POOL, AllocateSettings("difference", n_frames=4))
    plain = allocate(POOL, AllocateSettings("diversity", n_frames=4))
    assert asked.method == plain.method == "diversity"
    assert asked.rows.tolist() == plain.rows.tolist()
    assert np.isnan(asked.deviation).all()
    assert asked.forecast is None
    ignores = allocate(POOL, AllocateSettings("diversity", n_frames=4), deviation=doubts(POOL, 3))
    assert ignores.rows.tolist() == plain.rows.tolist()


def test_only_core_and_trusted_atoms_of_a_fragment_count():
    frames = pool(4)
    region = np.full(frames.n_atoms, Region.BUFFER, dtype=np.uint8)
    region[[frames.atom_slice(row).start for row in range(4)]] = Region.CORE
    frames = frames.with_columns(region=region)
    doubt = np.where(region == Region.CORE, 0.1, 5.0)
    doubt[frames.atom_slice(2).start] = 0.2
    result = allocate(frames, AllocateSettings("difference", n_frames=1), deviation=doubt)
    assert result.rows.tolist() == [2]
    assert result.deviation.tolist() == [0.1, 0.1, 0.2, 0.1]


def test_candidates_have_the_cheap_label_and_lack_the_dear_one():
    frames = pool(6)
    atom = from_ase([Atoms("Cu")])
    failed = at(frames.take([1]), "dear").with_columns(
        energy=np.array([np.nan]), failure=np.array([Failure.WALLTIME], dtype="|u1")
    )
    rows = concatenate(
        [
            at(frames.take([0]), "dear"),
            at(concatenate([frames.take([0, 1, 2, 3]), atom]), "cheap"),
            at(frames.take([3]), "cheap"),
            at(frames.take([4]), "other"),
            failed,
            frames.take([5]),
        ]
    )
    found = find_candidates(rows, target="dear", cheap="cheap")
    assert found.rows.tolist() == [3, 4]
    assert rows.take(found.rows).ids() == frames.take([2, 3]).ids()
    assert found.excluded == {"labelled": 1, "failed": 1, "isolated_atom": 1, "no_cheap_label": 2}
    nothing_dear = find_candidates(rows, target="hse", cheap="cheap")
    assert nothing_dear.rows.tolist() == [1, 2, 3, 4]
    again = concatenate([rows, at(frames.take([1]), "dear")])  # a later attempt got there
    assert find_candidates(again, target="dear", cheap="cheap").excluded["labelled"] == 2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "give n_frames, core_hours, or both"),
        ({"n_frames": 0}, "n_frames: must be positive, got 0"),
        ({"core_hours": -1.0, "cost": CostModel(1.0)}, "core_hours: must be positive, got -1.0"),
        ({"core_hours": 1.0}, "nothing says what a dear label costs"),
    ],
)
def test_budgets_that_are_none_are_refused(keywords, message):
    with pytest.raises(InvalidInputError, match=message):
        AllocateSettings(**keywords)


def test_wrong_shapes_and_names_are_refused():
    wanted = AllocateSettings(n_frames=1)
    for wrong in (np.ones(3), np.full(POOL.n_atoms, np.nan), np.full(POOL.n_atoms, -1.0)):
        with pytest.raises(InvalidInputError, match=f"deviation: expected {POOL.n_atoms} numbers"):
            allocate(POOL, wanted, deviation=wrong)
    with pytest.raises(InvalidInputError, match=r"at the dear level have shape \(2, 4, 3\)"):
        difference_deviation(np.zeros((2, 4, 3)), np.zeros((2, 5, 3)))
    with pytest.raises(InvalidInputError, match="forces of a committee"):
        difference_deviation(np.zeros((1, 4, 3)), np.zeros((1, 4, 3)))
    with pytest.raises(InvalidInputError, match="both 'pbe'"):
        find_candidates(POOL, target="pbe", cheap="pbe")
    with pytest.raises(InvalidInputError, match="2 forecasts, but 1 costs"):
        compare_with_forecast(np.ones(2), np.ones(1))


def test_spent_is_compared_with_what_was_forecast_for_the_labels_that_ran():
    spent = compare_with_forecast(np.array([2.0, 2.0, 2.0]), np.array([7200.0, 3600.0, np.nan]))
    assert (spent.forecast_core_hours, spent.core_hours, spent.ratio) == (4.0, 3.0, 0.75)
    unknown = compare_with_forecast(np.array([np.nan]), np.array([3600.0]))
    assert (unknown.forecast_core_hours, unknown.core_hours, unknown.ratio) == (None, 1.0, None)
    nothing = compare_with_forecast(np.array([1.0]), np.array([np.nan]))
    assert (nothing.forecast_core_hours, nothing.core_hours, nothing.ratio) == (0.0, 0.0, None)
