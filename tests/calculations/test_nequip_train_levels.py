"""Trainings on several levels of theory with the real nequip-train, and what is refused before one begins."""

from __future__ import annotations

import pytest
from aiida import orm
from aiida.engine import run_get_node
from emt_levels import HIGH, LOW, two_levels

from aiida_mlip.calculations.functions.train import plan_training
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.data.dataset import DatasetData

TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 2,
    "optimizer": {"schedule": "constant", "learning_rate": 0.01},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "l_max": 1, "radial_mlp_width": 4},
    "split": {"test": 0.0, "val": 0.25},
    "multi_fidelity": {"fidelities": [LOW, HIGH], "num_features": 2},
}


@pytest.fixture(scope="module")
def dataset(aiida_profile):
    return DatasetData.from_frames(two_levels()).store()


def planned(dataset, **changes):
    plan, node = plan_training.run_get_node(dataset, orm.Dict({**TINY, **changes}))
    assert node.is_finished_ok, node.exit_message
    return {"dataset": dataset, "split": plan["split"], "settings": plan["settings_0"]}


@pytest.mark.nequip
def test_joint_training(dataset, train_code):
    inputs = planned(dataset)
    outputs, node = run_get_node(NequipTrainCalculation, code=train_code, **inputs)
    assert node.is_finished_ok, node.exit_message
    potential, summary = outputs["potential"], outputs["summary"].get_dict()
    assert potential.joint
    assert potential.fidelities == [LOW, HIGH]
    assert summary["fidelities"][HIGH]["frames_seen"] == 2 * summary["fidelities"][HIGH]["rows"]
