"""The training workchain with the real nequip-train, on tiny EMT data."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import digest
from aiida_mlip.workchains.train import TrainWorkChain

from emt_frames import emt_frames

pytestmark = [pytest.mark.nequip]

TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 4,
    "split": {"test": 0.2, "val": 0.2},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
}


@pytest.fixture
def builder(train_code, evaluate_code):
    def make(frames, **overrides):
        return TrainWorkChain.get_builder_from_protocol(
            DatasetData.from_frames(frames),
            {"train": train_code, "evaluate": evaluate_code},
            overrides={**TINY, **overrides},
        )

    return make


def test_committee_end_to_end(builder):
    """Two members with different weights and validation sets, one test set; errors, parity, curves; no orphan."""
    inputs = builder(emt_frames(12), committee=2)
    inputs.test_dataset = DatasetData.from_frames(emt_frames(3, seed=99))
    outputs, node = run_get_node(inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)

    first, second = (outputs["potentials"][f"member_{i}"] for i in range(2))
    assert first.species == ["Cu"]
    assert first.fidelities == ["emt"]
    assert first.cutoff_ang == 4.0
    assert first.sha256 != second.sha256
    assert first.reference_energies["emt"]["Cu"] == pytest.approx(0.0, abs=1.0)
    split = outputs["split"]
    parts = [split.get_array(f"member_{i}") for i in range(2)]
    np.testing.assert_array_equal(parts[0] == 2, parts[1] == 2)
    assert ((parts[0] == 1) != (parts[1] == 1)).any()

    errors = outputs["errors"].get_dict()
    assert errors["n_members"] == 2
    values = [errors["members"][f"member_{i}"]["test"]["force_rmse_ev_per_ang"] for i in range(2)]
    assert errors["test"]["force_rmse_ev_per_ang"] == pytest.approx(np.mean(values))
    assert errors["external"]["n_frames"] == 3
    curves = outputs["curves"]["member_1"]
    assert curves.get_array("epoch").tolist() == [0, 1, 2, 3]
    assert np.isfinite(curves.get_array("val_force_rmse_ev_per_ang")).all()
    assert outputs["summaries"]["member_0"]["frames_seen"] == int((parts[0] == 0).sum())
    assert set(outputs["parity"]) == {"member_0", "member_1", "external_0", "external_1"}
    report = audit(node)
    assert report.passed, report.orphans
    labels = {link.link_label for link in node.base.links.get_outgoing().all()}
    assert {
        "plan",
        "train_member_0",
        "train_member_1",
        "evaluate_member_0",
        "evaluate_external_1",
        "tabulate",
    } <= labels
