"""The configuration of nequip-train, the job script around it, and its output read back."""

from __future__ import annotations

import math
import subprocess

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.nequip_config import TrainingData, TrainingStart, config_text, nequip_config, time_limit_of
from aiida_mlip.io.nequip_output import Ending, data_statistics, is_diverged, read_metrics, why_ended
from aiida_mlip.io.nequip_script import after_training, before_training, read_status
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
