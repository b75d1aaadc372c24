"""Selecting frames: every one that is not chosen has a reason, and the budget and the weights decide."""

import numpy as np
import pytest
from ase.build import bulk

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.sanity import SanityLimits
from aiida_mlip.kernel.selection.costs import CostModel, measured_cost
from aiida_mlip.kernel.selection.frames import Known, SelectSettings, select_frames
from aiida_mlip.kernel.selection.greedy import known_precision

METHODS = ["maxdet", "farthest", "largest_cluster", "maxvol", "random"]


def copper(seed: int, amplitude: float = 0.1, repeat: int = 1, symbol: str = "Cu") -> Frames:
    atoms = bulk("Cu", cubic=True) * (repeat, 1, 1)
    atoms.rattle(amplitude, seed=seed)
    atoms.symbols[0] = symbol
    return from_ase([atoms])


def pool(n: int = 30) -> Frames:
    return concatenate([copper(seed, 0.02 + 0.01 * (seed % 10)) for seed in range(n)])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_lost_without_a_reason(method):
    broken = copper(99)
    broken = broken.with_columns(positions=broken.positions * 0.5)
    frames = concatenate([pool(), copper(3, 0.05), broken, copper(4, 0.1, symbol="Au")])
    settings = SelectSettings(method=method, max_frames=8, sanity=SanityLimits(min_distance_ang=1.7))
    choice = select_frames(frames, settings)
    assert len(set(choice.rows.tolist())) == 8
    assert choice.reasons["duplicate"] >= 1  # seed 3 has this amplitude already
    assert choice.reasons["pair_distance"] == 1
    assert sum(choice.reasons.values()) + len(choice.rows) == len(frames)
    assert choice.details == ("frame 31: " + choice.details[0].removeprefix("frame 31: "),)
    assert ((choice.atoms >= 0) & (choice.atoms < 4)).all()
    again = select_frames(frames, settings)
    np.testing.assert_array_equal(choice.rows, again.rows)
    if method in ("maxdet", "farthest"):
        assert 32 in choice.rows  # the only gold


def test_the_reference_is_not_chosen_again_and_what_it_knows_counts_less():
    frames = pool()
    seen = select_frames(frames, SelectSettings(max_frames=5), known=Known(frames=frames.take(range(10))))
    assert seen.reasons["duplicate"] == 10
    assert seen.rows.min() >= 10
    calm, wild = copper(200, 0.01), copper(201, 0.01, symbol="Au")
    teaches = select_frames(
        concatenate([calm, wild]), SelectSettings(max_frames=1), known=Known(frames=concatenate([copper(202, 0.01)]))
    )
    assert teaches.rows.tolist() == [1]


def test_features_and_precision_of_a_potential_decide():
    frames = pool(6)
    features = np.zeros((24, 3))
    features[:, 0] = 1.0 + 0.1 * np.random.default_rng(0).normal(size=24)
    features[9, 1] = features[17, 2] = 2.0
    known = Known(precision=known_precision(np.eye(3) * [30.0, 30.0, 0.1]))
    choice = select_frames(frames, SelectSettings(max_frames=1), features=features, known=known)
    assert choice.rows.tolist() == [17 // 4]
    assert choice.atoms.tolist() == [17 % 4]


@pytest.mark.parametrize("method", ["maxdet", "farthest", "largest_cluster"])
def test_errors_weigh_and_saturate(method):
    frames, errors = pool(20), np.zeros(80)
    errors[[4 * 7 + 2, 4 * 11]] = 0.9, 90.0
    choice = select_frames(frames, SelectSettings(method=method, error_threshold=0.3), errors=errors)
    assert set(choice.rows.tolist()) == {7, 11}
    assert choice.reasons["duplicate"] == 18  # without any weight there is nothing to learn from them
    assert dict(zip(choice.rows.tolist(), choice.atoms.tolist(), strict=True)) == {7: 2, 11: 0}


def test_the_budget_in_core_hours():
    frames = concatenate([copper(seed, repeat=1 + seed % 3) for seed in range(24)])
    settings = SelectSettings(core_hours=20.0, cost=CostModel(core_hours=1.0, natoms=4))
    choice = select_frames(frames, settings)
    np.testing.assert_allclose(choice.core_hours, (frames.natoms[choice.rows] / 4.0) ** 2)
    assert 19.0 < choice.core_hours.sum() <= 20.0


def test_measured_costs():
    model = measured_cost(np.array([36.0, 144.0, np.nan, 0.0]), np.array([10, 20, 10, 10]))
    np.testing.assert_allclose(model(np.array([10, 40])), [0.01, 0.16])
    assert measured_cost(np.array([np.nan]), np.array([4])) is None
    with pytest.raises(InvalidInputError, match="core_hours and natoms must be positive"):
        CostModel(core_hours=0.0)


def test_nothing_left_is_an_answer():
    frames = pool(3)
    choice = select_frames(frames, SelectSettings(), known=Known(frames=frames))
    assert len(choice.rows) == 0
    assert choice.reasons["duplicate"] == 3


def test_bad_input_is_refused():
    frames = pool(3)
    cases = [
        ({"features": np.zeros((5, 2))}, "features: expected 12 rows"),
        ({"errors": np.full(12, -1.0)}, "none negative or NaN"),
        ({"errors": np.ones(11)}, "errors: expected 12 numbers"),
    ]
    for arguments, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            select_frames(frames, SelectSettings(), **arguments)
    with pytest.raises(InvalidInputError, match="budget: must be positive, got 0 groups"):
        SelectSettings(max_frames=0)
    with pytest.raises(InvalidInputError, match="error_threshold: must be positive"):
        SelectSettings(error_threshold=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_required_frames_come_first_and_the_rest_knows_of_them(method):
    """Of twins one is required: the budget's second place goes to a frame of another kind."""
    frames = concatenate([copper(0, 0.01), copper(1, 0.01), copper(2, 0.01, symbol="Au"), copper(3, 0.2)])
    required = np.array([False, True, False, False])
    choice = select_frames(frames, SelectSettings(method=method, max_frames=2), required=required)
    assert choice.rows[0] == 1
    assert len(set(choice.rows.tolist())) == 2
    assert not np.isfinite(choice.scores[0])
    if method in ("maxdet", "farthest"):
        assert choice.rows[1] in (2, 3)
    alone = select_frames(frames, SelectSettings(method=method, max_frames=1), required=required)
    assert alone.rows.tolist() == [1]


def test_required_frames_keep_to_budget_and_sanity():
    frames = concatenate([copper(0), copper(1, repeat=3), copper(2)])
    cost = CostModel(core_hours=1.0, natoms=4, exponent=1.0)
    settings = SelectSettings(core_hours=2.0, cost=cost)
    choice = select_frames(frames, settings, required=np.array([False, True, True]))
    assert sorted(choice.rows.tolist()) == [0, 2]  # the second costs three
    assert choice.rows[0] == 2
    known = Known(frames=frames.take([2]))
    assert 2 not in select_frames(frames, settings, required=np.array([False, False, True]), known=known).rows
    with pytest.raises(InvalidInputError, match="required: expected 3 truth values"):
        select_frames(frames, settings, required=np.ones(2, dtype=bool))
