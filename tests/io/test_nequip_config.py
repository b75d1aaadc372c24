"""The configuration of nequip-train, the job script around it, and its output read back."""

from __future__ import annotations

import math
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.nequip_config import TrainingData, TrainingStart, config_text, nequip_config, time_limit_of
from aiida_mlip.io.nequip_output import Ending, data_statistics, is_diverged, read_metrics, why_ended
from aiida_mlip.io.nequip_script import after_training, before_training, kept_epoch, read_status
from aiida_mlip.io.training_levels import TrainingLevels
from aiida_mlip.protocols.train import train_settings

DATA = TrainingData(("Si", "O"), {"Si": -110.0, "O": -430.0}, 1.5, with_energy=True, with_forces=True, with_stress=True)


def config(data=DATA, start=None, **overrides):
    return nequip_config(train_settings({"protocol": "fast", **overrides}).model_dump(), data, seed=7, start=start)


def test_every_loss_and_metric_ignores_missing_labels_and_there_is_one_training_file():
    found = config(loss={"stress": 4.0})
    for section in ("loss", "val_metrics", "train_metrics"):
        metrics = found["training_module"][section]["metrics"]
        assert [entry["name"] for entry in metrics] == ["energy_per_atom", "forces", "stress"]
        assert all(entry["ignore_nan"] for entry in metrics)
    assert found["training_module"]["val_metrics"]["metrics"][2]["coeff"] == 2.0
    assert found["data"]["train_file_path"] == "train.xyz"
    assert found["trainer"]["check_val_every_n_epoch"] == 1
    assert "ckpt_path" not in found


@pytest.mark.parametrize(("labelled", "weight"), [(False, 4.0), (True, 0.0)])
def test_stress_is_left_out_where_not_labelled_or_not_wanted(labelled, weight):
    data = TrainingData(("Si",), {"Si": -110.0}, 1.5, with_energy=True, with_forces=True, with_stress=labelled)
    names = [entry["name"] for entry in config(data, loss={"stress": weight})["training_module"]["loss"]["metrics"]]
    assert names == ["energy_per_atom", "forces"]


def test_forces_alone_are_trained_on_without_an_energy_error():
    """A validation part without any energy would have an error of NaN, which ends a training."""
    data = TrainingData(("Si",), {"Si": 0.0}, 1.5, with_energy=False, with_forces=True, with_stress=False)
    names = [entry["name"] for entry in config(data)["training_module"]["val_metrics"]["metrics"]]
    assert names == ["forces"]


def test_nothing_labelled_that_the_loss_wants():
    data = TrainingData(("Si",), {"Si": -110.0}, 1.5, with_energy=True, with_forces=False, with_stress=False)
    with pytest.raises(InvalidInputError, match="lack every label"):
        config(data, loss={"energy": 0.0})


def test_yaml_round_trip_and_determinism():
    found = config()
    assert yaml.safe_load(config_text(found)) == found
    assert config_text(found) == config_text(config())


def test_overrides_merge_and_callbacks_append():
    found = config(
        nequip={
            "trainer": {
                "limit_train_batches": 3,
                "callbacks": [{"_target_": "lightning.pytorch.callbacks.DeviceStatsMonitor"}],
            },
            "training_module": {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.5}},
        }
    )
    assert found["trainer"]["limit_train_batches"] == 3
    assert len(found["trainer"]["callbacks"]) == len(config()["trainer"]["callbacks"]) + 1
    assert found["training_module"]["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.5}


@pytest.mark.parametrize(
    ("nequip", "message"),
    [
        ({"trainer": {"check_val_every_n_epoch": 5}}, "corrupts the checkpoints"),
        ({"data": {"split_dataset": {}}}, "split_dataset cannot be set"),
        ({"data": {"train_file_path": ["a.xyz", "b.xyz"]}}, "train_file_path"),
        ({"training_module": {"model": {"r_max": 9.0}}}, "r_max 9.0 differs"),
        ({"trainer": {"callbacks": "all"}}, "must be a list"),
        ({"trainer": {"max_time": {"hours": 1}}}, "use time_limit_s"),
    ],
)
def test_overrides_that_lose_data_are_refused(nequip, message):
    with pytest.raises(InvalidInputError, match=message):
        config(nequip=nequip)


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/last.ckpt"])
def test_checkpoints_stay_in_the_folder(path):
    with pytest.raises(InvalidInputError, match="relative"):
        TrainingStart(checkpoint=path)
    with pytest.raises(InvalidInputError, match="not from both"):
        TrainingStart(initial_checkpoint="a", initial_package="b")


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_schedules(schedule):
    module = config(optimizer={"schedule": schedule, "warmup_epochs": 3})["training_module"]
    assert ("lr_scheduler" in module) == (schedule != "constant")


@given(st.integers(1, 10**7))
def test_time_limit_round_trip(seconds):
    found = config(start=TrainingStart(max_time_s=seconds))
    assert time_limit_of(found) == seconds
    assert time_limit_of(config()) == 0


# -- script --------------------------------------------------------------------------------------------------------


def test_script_packages_the_best_checkpoint_of_all(tmp_path):
    """Smallest validation error first, never one of NaN; strange paths do no harm."""
    folder = tmp_path / "a b; touch hacked"
    (folder / "checkpoints").mkdir(parents=True)
    packager = folder / "package it"
    packager.write_text('#!/bin/sh\ncp "$2" "$3"\n')
    packager.chmod(0o755)
    for name in ("best_000012.3456789_000003", "best_000000.1234567_000002", "best_000000000000nan_000009", "last"):
        (folder / "checkpoints" / f"{name}.ckpt").write_text(name)
    script = "\n".join([before_training(threads=1, initial=None), "true", after_training(str(packager))])
    subprocess.run(["bash", "-c", script], cwd=folder, check=True)
    assert (folder / "model.nequip.zip").read_text() == "best_000000.1234567_000002"
    status = read_status((folder / "status.txt").read_text())
    assert status.pop("seconds").isdigit()
    assert status == {"train": "0", "best": "checkpoints/best_000000.1234567_000002.ckpt", "package": "0"}


def test_script_packages_the_last_checkpoint_where_that_is_kept(tmp_path):
    """Unless its error is not finite: then the best one."""
    (tmp_path / "checkpoints").mkdir()
    packager = tmp_path / "package"
    packager.write_text('#!/bin/sh\ncp "$2" "$3"\n')
    packager.chmod(0o755)
    script = [before_training(threads=1, initial=None), "true", after_training(str(packager), keep_last=True)]

    def packaged(*names):
        for name in names:
            (tmp_path / "checkpoints" / f"{name}.ckpt").write_text(name)
        subprocess.run(["bash", "-c", "\n".join(script)], cwd=tmp_path, check=True)
        return (tmp_path / "model.nequip.zip").read_text(), kept_epoch(
            read_status((tmp_path / "status.txt").read_text())
        )

    best, last = "best_000000.1234567_000002", "kept_000000.2000000_000011"
    assert packaged(best, "kept_000000000000nan_000012") == (best, 2)
    assert packaged(last) == (last, 11)
    assert kept_epoch({}) is None


def test_the_last_checkpoint_is_one_more():
    callbacks = config(replace(DATA, keep_last=True))["trainer"]["callbacks"]
    (kept,) = [each for each in callbacks if each not in config()["trainer"]["callbacks"]]
    assert (kept["monitor"], kept["mode"], kept["save_top_k"]) == ("epoch", "max", 1)
    assert kept["filename"].startswith("kept_{val0_epoch/weighted_sum")


def test_script_without_checkpoint_and_with_initial_folder(tmp_path):
    (tmp_path / "initial" / "x").mkdir(parents=True)
    (tmp_path / "initial" / "x" / "best_000001.0_000000.ckpt").write_text("weights")
    script = "\n".join([before_training(threads=None, initial="initial/x"), "false", after_training("nequip-package")])
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False)
    assert (tmp_path / "initial" / "x" / "best.ckpt").read_text() == "weights"
    status = read_status((tmp_path / "status.txt").read_text())
    assert status.pop("seconds").isdigit()
    assert status == {"train": "1"}


# -- output --------------------------------------------------------------------------------------------------------

HEADER = "epoch,lr-Adam,step,train_loss_epoch/weighted_sum,val0_epoch/forces,val0_epoch/weighted_sum"


def metrics(values, start=0):
    lines = [HEADER]
    for epoch, value in enumerate(values, start):
        lines += [f",0.01,{epoch},,,", f"{epoch},,{epoch},,{value},{value}", f"{epoch},,{epoch},1.0,,"]
    return "\n".join(lines) + "\n"


def test_curves_of_a_restart_follow_those_before():
    curves = read_metrics([metrics([5.0, 4.0, 3.0]), metrics([2.5, 2.0], start=2)], source="m")
    assert curves.epoch.tolist() == [0, 1, 2, 3]
    assert curves.objective.tolist() == [5.0, 4.0, 2.5, 2.0]
    assert curves.values["learning_rate"].tolist() == [0.01] * 4
    assert curves.best == 3
    assert curves.at(0)["train_loss"] == 1.0


@given(st.integers(0, 400))
def test_a_truncated_file_gives_a_prefix_or_nothing(cut):
    text = metrics([5.0, 4.0, 3.0, 2.0])
    try:
        curves = read_metrics([text[:cut]], source="m")
    except FileFormatError:
        return
    np.testing.assert_array_equal(curves.objective, np.array([5.0, 4.0, 3.0, 2.0])[: len(curves.objective)])


def test_a_foreign_file_is_refused():
    with pytest.raises(FileFormatError, match="no table of metrics"):
        read_metrics(["hello\n"], source="m")
    assert len(read_metrics([""], source="m")) == 0


@pytest.mark.parametrize(
    ("values", "log", "ending"),
    [
        ([3.0, 2.0, 1.0], "", Ending.COMPLETED),
        ([3.0, 2.0], "TRAIN RUN END", Ending.STOPPED_EARLY),
        ([3.0, math.nan], "TRAIN RUN END", Ending.NOT_FINITE),
        ([0.001, 9.0, 9.0], "", Ending.DIVERGED),
        (
            [3.0],
            "Time limit reached. Elapsed time is 0:00:08. Signaling Trainer to stop.\nTRAIN RUN END",
            Ending.WALLTIME,
        ),
        ([3.0], "torch.OutOfMemoryError: CUDA out of memory", Ending.OUT_OF_MEMORY),
        ([], "slurmstepd: error: *** JOB 7 CANCELLED DUE TO TIME LIMIT ***", Ending.WALLTIME),
        ([3.0], "", Ending.INTERRUPTED),
    ],
)
def test_why_ended(values, log, ending):
    curves = read_metrics([metrics(values)], source="m")
    assert why_ended(log, curves, max_epochs=3, factor=100.0, epochs=2) is ending


@given(st.lists(st.floats(0.5, 2.0), max_size=30))
def test_a_bounded_error_never_diverges(values):
    assert not is_diverged(values, factor=100.0, epochs=3)


def test_statistics_of_the_loader():
    line = "[2026-11-21 07:35:19,330][nequip.data.stats_manager][INFO] - [rank: 0] num_frames: 48.0\n"
    assert data_statistics(line) == {"num_frames": 48.0}


# -- several levels of theory --------------------------------------------------------------------------------------

SEVERAL = {"fidelities": ["lda", "pbe"], "num_features": 4}


def differences(one, other, path=()):
    """Paths at which two configurations differ, with what the second has there."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return {
            place: value
            for key in keys
            for place, value in differences(one.get(key), other.get(key), (*path, key)).items()
        }
    return {} if one == other else {path: other}


def test_several_levels_change_nothing_but_what_tells_them_apart():
    single, joint, pooled = (
        config(),
        config(multi_fidelity=SEVERAL),
        config(multi_fidelity={**SEVERAL, "method": "pooled"}),
    )
    changed = differences(single, joint)
    assert set(changed) == {
        ("data", "include_keys"),
        ("data", "stats_manager", "metrics"),
        ("training_module", "model", "categorical_graph_field_embed"),
    }
    assert changed["data", "include_keys"] == ["dataset"]
    assert changed["training_module", "model", "categorical_graph_field_embed"] == [
        {"field": "dataset", "num_features": 4, "min": 0, "max": 1}
    ]
    added = changed["data", "stats_manager", "metrics"][len(single["data"]["stats_manager"]["metrics"]) :]
    assert [entry["name"] for entry in added] == ["num_frames_0", "num_frames_1"]
    assert [entry["metric"]["transform_pred"]["other"] for entry in added] == [0, 1]
    assert set(differences(joint, pooled)) == {("training_module", "model", "categorical_graph_field_embed")}


def test_types_of_every_level():
    """The file says of which type each atom is; every level has the shifts of the one that energies are in."""
    data = replace(DATA, n_level_types=2)
    found = config(data, multi_fidelity={**SEVERAL, "method": "types"})
    assert found["model_type_names"] == ["Si0", "O0", "Si1", "O1"]
    assert found["data"]["include_keys"] == ["dataset", "atom_types"]
    assert [entry["_target_"].rpartition(".")[2] for entry in found["data"]["transforms"]] == ["NeighborListTransform"]
    model = found["training_module"]["model"]
    assert "categorical_graph_field_embed" not in model
    assert model["per_type_energy_shifts"] == {"Si0": -110.0, "O0": -430.0, "Si1": -110.0, "O1": -430.0}


def test_hyperparameters_of_allegro():
    model = config(model={"architecture": "allegro", "num_features": 15, "l_max": 1, "dtype": "float64"})[
        "training_module"
    ]["model"]
    expected = {"num_scalar_features": 15, "num_tensor_features": 7, "l_max": 1, "model_dtype": "float64", "r_max": 5.0}
    assert model.items() >= expected.items()
    assert model["_target_"] == "allegro.model.AllegroModel"
    assert "architecture" not in model
    assert "architecture" not in config()["training_module"]["model"]
    wide = config(model={"architecture": "allegro", "num_tensor_features": 12})["training_module"]["model"]
    assert wide["num_tensor_features"] == 12


def test_training_and_validation_follow_their_own_labels():
    """Energies alone at the target: forces are learned from the other level, and the validation is of energies."""
    data = TrainingData(
        ("Si",),
        {"Si": 0.0},
        1.5,
        with_energy=True,
        with_forces=True,
        with_stress=False,
        validated=frozenset({"energy"}),
    )
    module = config(data, multi_fidelity=SEVERAL)["training_module"]
    names = {
        key: [entry["name"] for entry in module[key]["metrics"]] for key in ("loss", "train_metrics", "val_metrics")
    }
    assert names == {
        "loss": ["energy_per_atom", "forces"],
        "train_metrics": ["energy_per_atom", "forces"],
        "val_metrics": ["energy_per_atom"],
    }
    with pytest.raises(InvalidInputError, match="validation frames lack every label"):
        config(data, multi_fidelity=SEVERAL, loss={"energy": 0.0})


def test_weights_from_another_level_get_new_shifts():
    start = TrainingStart(initial_package="initial/model.nequip.zip", new_references=True)
    assert config(start=start)["training_module"]["model"] == {
        "_target_": "nequip.model.modify",
        "modifiers": [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Si": -110.0, "O": -430.0}}],
        "model": {"_target_": "nequip.model.ModelFromPackage", "package_path": "initial/model.nequip.zip"},
    }


def test_the_level_of_a_frame_cannot_be_overridden():
    with pytest.raises(InvalidInputError, match="include_keys cannot be set"):
        config(multi_fidelity=SEVERAL, nequip={"data": {"include_keys": ["charge"]}})


def test_statistics_of_each_level():
    lines = [
        f"[x][nequip.data.stats_manager][INFO] - [rank: 0] num_frames{name}: {n}.0"
        for name, n in (("", 30), ("_0", 20), ("_1", 10))
    ]
    assert data_statistics("\n".join(lines)) == {"num_frames": 30.0, "num_frames_0": 20.0, "num_frames_1": 10.0}


def test_levels_of_a_training_survive_a_round_trip():
    levels = TrainingLevels(
        fidelities=("lda", "pbe"),
        target="pbe",
        joint=True,
        reference_energies={"lda": {"Si": -5.0}, "pbe": {"Si": -7.0}},
        energy_shifts={"lda": {"Si": 2.0}, "pbe": {"Si": 0.0}},
        repetition=3,
    )
    assert TrainingLevels.from_text(levels.text(), source="x") == levels
    for text in ("{", "[]", '{"fidelities": ["a"]}'):
        with pytest.raises(FileFormatError, match="x: not the levels of a training"):
            TrainingLevels.from_text(text, source="x")
