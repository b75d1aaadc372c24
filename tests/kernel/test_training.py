"""Fidelity to train on, and the table of errors."""

from __future__ import annotations

import pytest
from emt_frames import emt_frames

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import concatenate
from aiida_mlip.kernel.training import split_for, tabulate_errors, training_fidelity


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
