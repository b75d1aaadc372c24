"""Fidelity to train on, and the table of errors."""

from __future__ import annotations

import numpy as np
import pytest
from emt_frames import emt_frames

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import concatenate
from aiida_mlip.kernel.splits import Part
from aiida_mlip.kernel.training import (
    check_labels,
    joint_parts,
    labels_of,
    repeated,
    split_for,
    tabulate_errors,
    training_counts,
    training_fidelity,
)


def test_fidelity_is_the_only_one_or_the_chosen_one():
    low, high = emt_frames(2), emt_frames(2, fidelity="pbe", seed=1)
    assert training_fidelity(low) == "emt"
    both = concatenate([low, high])
    assert training_fidelity(both, "pbe") == "pbe"
    with pytest.raises(InvalidInputError, match="several fidelities \\(emt, pbe\\)"):
        training_fidelity(both)
    with pytest.raises(InvalidInputError, match="no row is labelled at fidelity 'hse'"):
        training_fidelity(both, "hse")


def test_missing_labels_are_named():
    frames = emt_frames(4)
    bare = frames.with_columns(energy=frames.energy * float("nan"), forces=frames.forces * float("nan"))
    with pytest.raises(InvalidInputError, match="missing labels: none of the 4 rows"):
        split_for(bare, {"test": 0.1, "val": 0.1, "seed": 0}, members=1, fidelity=None)


def test_table_means_numbers_and_keeps_what_lacks():
    report = {"n_frames": 3, "force_rmse": 1.0, "stress_rmse": None, "species": {"Cu": {"force_rmse": 1.0}}}
    other = {"n_frames": 3, "force_rmse": 2.0, "stress_rmse": 5.0, "species": {"Cu": {"force_rmse": 4.0}}}
    table = tabulate_errors(
        {"member_0": {"all": report, "test": report}, "member_1": {"test": other}, "external_1": {"all": other}}
    )
    assert table["test"] == {
        "n_frames": 3,
        "force_rmse": 1.5,
        "stress_rmse": None,
        "species": {"Cu": {"force_rmse": 2.5}},
    }
    assert isinstance(table["test"]["n_frames"], int)
    assert table["external"] == other
    assert table["members"]["member_1"]["test"] == other
    assert "train" not in table


# -- several levels of theory ------------------------------------------------------------------------------------

SPLIT = {"test": 0.2, "val": 0.2, "seed": 0}


def both_levels(n=20, n_high=10):
    low = emt_frames(n, fidelity="low")
    return concatenate([low, low.take(range(n_high)).with_columns(fidelities=("high",))])


def without(frames, *labels):
    return frames.with_columns(**{name: np.full_like(getattr(frames, name), np.nan) for name in labels})


def test_an_epoch_has_the_share_of_the_target_and_validates_on_it_alone():
    frames = both_levels()
    levels = ["low", "high"]
    parts = split_for(frames, SPLIT, members=1, fidelity="high", fidelities=levels).parts[0]
    train, val, times = joint_parts(frames, parts, target="high", fidelities=levels, share=1 / 3)
    rows = training_counts(frames, parts, levels)
    assert rows == {"low": 16, "high": 6}
    assert len(train) == 22
    assert (val.fidelity == val.fidelity_index("high")).all()
    assert len(val) == 2
    epoch = repeated(train, "high", times)
    assert times == 1
    assert len(epoch) == 22
    assert len(repeated(train, "high", 3)) == 16 + 3 * 6


def test_a_level_without_rows_to_train_on_is_named():
    high = emt_frames(6, fidelity="high")
    held_out = split_for(high, SPLIT, members=1, fidelity="high").parts[0] != Part.TRAIN
    frames = concatenate([high, high.take(held_out).with_columns(fidelities=("low",))])
    with pytest.raises(InvalidInputError, match="member 0 has no row at fidelity 'low' to train on"):
        split_for(frames, SPLIT, members=1, fidelity="high", fidelities=["low", "high"])


def test_a_level_without_labels_is_named():
    with pytest.raises(InvalidInputError, match="no row is labelled at fidelity 'hse'; there are labels at high, low"):
        split_for(both_levels(), SPLIT, members=1, fidelity="high", fidelities=["low", "hse", "high"])


def test_energies_alone_are_refused_unless_asked_for():
    frames = both_levels()
    loss = {"energy": 1.0, "forces": 1.0, "stress": 0.0}
    bare = without(frames, "forces", "stress")
    with pytest.raises(InvalidInputError, match="none of the 30 training rows has forces, but the loss weighs them"):
        check_labels(bare, frames, loss)
    check_labels(bare, bare, {**loss, "forces": 0.0})
    # energies alone at the target are fine, and what is validated on
    check_labels(concatenate([frames, bare]), bare, loss)
    with pytest.raises(InvalidInputError, match="30 validation rows lack every label"):
        check_labels(frames, bare, {**loss, "energy": 0.0})
    assert labels_of(bare) == {"energy"}
