"""All methods of learning from two fidelities, with the real nequip-train on tiny cells of two copper teachers."""

from __future__ import annotations

import io
import math
import shutil

import numpy as np
import pytest
from aiida import orm
from aiida.engine import calcfunction, run_get_node
from emt_frames import emt_frames
from emt_levels import HIGH, LOW, at_low
from rich.console import Console

from aiida_mlip.calculations.functions.train_fidelities import correct_labels
from aiida_mlip.cli.results import print_results
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.frames import concatenate, digest, id_hex, id_keys
from aiida_mlip.kernel.labelling import isolated_atoms
from aiida_mlip.protocols.train_fidelities import METHODS
from aiida_mlip.workchains.train_fidelities import TrainFidelitiesWorkChain

pytestmark = [pytest.mark.nequip]

TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 1,
    "split": {"test": 0.2, "val": 0.2},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "l_max": 1, "radial_mlp_width": 4},
    "multi_fidelity": {"fidelities": [LOW, HIGH], "num_features": 2},
}
CODES = TrainFidelitiesWorkChain.exit_codes


def two_levels(n_low, n_high, *, first_high=0):
    """Frames labelled at the low level, and some of them - or others - at the high one."""
    frames = emt_frames(max(n_low, first_high + n_high), fidelity=HIGH, seed=3)
    return concatenate([at_low(frames.take(range(n_low))), frames.take(range(first_high, first_high + n_high))])


@pytest.fixture
def evaluate_code(localhost, preloaded_programs):
    """What aiida-mlip-evaluate of this environment does, without its start-up: fifteen evaluations."""
    return orm.InstalledCode(
        label="preloaded-evaluate",
        computer=localhost,
        filepath_executable=str(preloaded_programs / "aiida-mlip-evaluate"),
        default_calc_job_plugin="aiida_mlip.evaluate",
        with_mpi=False,
    )


@pytest.fixture
def builder(train_code, evaluate_code):
    def make(frames, methods, **overrides):
        return TrainFidelitiesWorkChain.get_builder_from_protocol(
            DatasetData.from_frames(frames, settings={LOW: "a" * 64, HIGH: "b" * 64}),
            {"train": train_code, "evaluate": evaluate_code},
            methods=methods,
            overrides={**TINY, **overrides},
        )

    return make


def child(node, label):
    return node.base.links.get_outgoing().get_node_by_label(label)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_methods_side_by_side(builder):
    """Every method learns from the same rest and is measured on the same held-out rows; nothing is an orphan."""
    frames = two_levels(9, 6)
    inputs = builder(frames, METHODS)
    inputs.fine_tune = orm.Dict({"optimizer": {"learning_rate": 0.001}})
    outputs, node = run_get_node(inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    table, test = outputs["table"].get_dict(), outputs["test_dataset"].frames()

    assert set(table["methods"]) == set(METHODS)
    assert (table["result"], table["target"], table["missing"]) == ("embedding", HIGH, [])
    assert table["low"] == {"fine_tune": LOW, "delta": LOW}
    for method, row in table["methods"].items():
        training = child(node, f"train_{method}")
        errors = training.outputs.errors["external"]
        assert row["force_rmse_ev_per_ang"] == errors["force_rmse_ev_per_ang"] > 0.0
        assert row["n_energies"] == len(test)
        assert row["potentials"] == {"member_0": training.outputs.potentials.member_0.uuid}
        assert training.outputs.potentials.member_0.fidelities == [HIGH]
        assert training.inputs.test_dataset.uuid == outputs["test_dataset"].uuid
        assert row["training_seconds"] >= training.outputs.summaries.member_0["wall_seconds"]
    check_held_out(node, frames, test, table)
    check_delta(node, outputs["corrected_dataset"])

    assert outputs["potentials"]["member_0"].uuid == table["methods"]["embedding"]["potentials"]["member_0"]
    assert outputs["joint_potentials"]["member_0"].fidelities == [LOW, HIGH]
    assert outputs["errors"].uuid == child(node, "train_embedding").outputs.errors.uuid
    second = child(node, "train_fine_tune")
    assert (
        second.inputs.initial_potentials.member_0.uuid == child(node, "train_pretrain").outputs.potentials.member_0.uuid
    )
    assert second.inputs.settings["optimizer"]["learning_rate"] == 0.001
    report = audit(node)
    assert report.passed, report.orphans
    check_printed(node)


def check_held_out(node, frames, test, table):
    """Rows at the target only; their frames are seen by no training at any fidelity."""
    assert {test.fidelities[index] for index in test.fidelity} == {HIGH}
    assert table["held_out"] == {"rows": len(test), "test_dataset": False, "left_out": len(test)}
    trainings = [one for one in node.called if one.process_label == "TrainWorkChain"]
    assert len(trainings) == 8
    for training in trainings:
        seen = training.inputs.dataset.frames()
        assert not np.isin(id_keys(seen.frame_id), id_keys(test.frame_id)).any()
        assert training.outputs.split.base.attributes.get("counts")[0]["test"] == 0
    n_low, n_high = 9 - len(test), 6 - len(test)
    for name, epochs in table["epochs"].items():
        summary = child(node, f"train_{name}").outputs.summaries.member_0
        assert summary["epochs"] == epochs
        if name != "delta":  # how many of its rows are validated on is not known before they exist
            assert table["steps_per_epoch"][name] == math.ceil(summary["frames_seen"] / 5)
    assert table["epochs"]["high_only"] > table["epochs"]["embedding"] == 1
    labels = {method: row["labels"] for method, row in table["methods"].items()}
    assert labels["high_only"] == {HIGH: n_high}
    assert labels["embedding"] == labels["fine_tune"] == labels["delta"] == {LOW: n_low, HIGH: n_high}
    assert table["gap"][LOW]["n_frames"] == n_high


def check_printed(node):
    """What people see: a row for each method, with the labels that it needed and where the numbers come from."""
    stream = io.StringIO()
    print_results(node, console=Console(file=stream, width=160))
    text = stream.getvalue()
    for method, row in node.outputs.table["methods"].items():
        (line,) = (line for line in text.splitlines() if method in line and "eV" not in line)
        assert f"{row['force_rmse_ev_per_ang']:.4f}" in line
        assert f"{row['labels'][HIGH]} {HIGH}" in line
    assert "embedding (result)" in text
    assert f"labels at {LOW} and {HIGH} differ by" in text
    assert node.outputs.table.uuid in text


def check_delta(node, corrected):
    """Cheap labels plus what the model of the difference predicts; no labelling will take them for its own."""
    rows, cheap = corrected.frames(), child(node, "plan").outputs.uncorrected.frames()
    parity = child(node, "predict_member_0").outputs.parity
    made = rows.take(rows.frame_id.shape[0] - len(cheap) + np.arange(len(cheap)))
    assert corrected.fidelities == [HIGH]
    np.testing.assert_allclose(
        made.energy, cheap.energy + parity.get_array("energy_predicted") * cheap.natoms, rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(made.forces, cheap.forces + parity.get_array("forces_predicted"), rtol=0, atol=1e-12)
    assert set(id_hex(made.label_uuid)) == {corrected.creator.uuid.replace("-", "")}
    assert corrected.settings[HIGH] not in ("", "b" * 64)
    assert corrected.base.attributes.get("corrected") == {HIGH: {"from": LOW, "rows": len(cheap)}}
    with pytest.raises(InvalidInputError, match="two different settings"):
        DatasetData.merge([corrected, node.inputs.dataset])
    difference = child(node, "train_difference").inputs.dataset
    assert difference.fidelities == [f"{HIGH}_minus_{LOW}"]
    assert child(node, "train_difference").outputs.potentials.member_0.fidelities == difference.fidelities


def test_given_test_rows_and_a_committee(builder):
    """Relatives of the rows to measure on are left out; a committee that cannot be calibrated is a known problem."""
    frames = two_levels(4, 7)
    inputs = builder(frames, ["high_only"], committee=2, calibration_level=0.99)
    relative = emt_frames(1, fidelity=HIGH, seed=99).with_columns(parent_id=frames.frame_id[[6]])
    inputs.test_dataset = DatasetData.from_frames(relative)
    outputs, node = run_get_node(inputs)
    assert node.exit_status == CODES.ERROR_RESULT_INCOMPLETE.status
    assert "high_only: TrainWorkChain" in node.exit_message
    assert "held-out atoms" in node.exit_message
    assert outputs["test_dataset"].uuid == inputs.test_dataset.uuid
    table = outputs["table"].get_dict()
    assert table["held_out"] == {"rows": 1, "test_dataset": True, "left_out": 2}  # at both fidelities
    assert set(outputs["potentials"]) == set(table["methods"]["high_only"]["potentials"]) == {"member_0", "member_1"}
    seen = child(node, "train_high_only").inputs.dataset
    assert frames.frame_id[6].tobytes().hex() not in seen.frame_ids()


def test_a_baseline_that_fails_does_not_fail_the_result(builder):
    """A joint training that lacks an isolated atom: the first method's potentials, and the table without it."""
    alone = isolated_atoms([29]).with_columns(energy=np.zeros(1), fidelity=np.zeros(1, dtype="<i2"), fidelities=(HIGH,))
    frames = concatenate([two_levels(4, 5), alone])
    outputs, node = run_get_node(builder(frames, ["high_only", "embedding"], reference="isolated"))
    assert node.exit_status == CODES.ERROR_BASELINES_FAILED.status, node.exit_message
    assert "embedding: TrainWorkChain" in node.exit_message
    assert "isolated atom of Cu" in node.exit_message
    assert outputs["table"]["missing"] == ["embedding"]
    assert set(outputs["table"]["methods"]) == {"high_only"}
    assert set(outputs["potentials"]) == {"member_0"}
    assert outputs["potentials"]["member_0"].reference_energies == {HIGH: {"Cu": 0.0}}


def test_the_first_method_fails(builder, localhost):
    """No potential: what was held out is still returned; a failed first training ends both methods of two."""
    inputs = builder(two_levels(6, 5), ["delta", "fine_tune"])
    inputs.codes.train = orm.InstalledCode(
        label="nothing", computer=localhost, filepath_executable=shutil.which("true"), with_mpi=False
    )
    outputs, node = run_get_node(inputs)
    assert node.exit_status == CODES.ERROR_NO_POTENTIAL.status
    assert "delta" in node.exit_message
    assert "No member of the committee" in node.exit_message
    assert set(outputs) == {"test_dataset"}
    assert sorted(one.process_label for one in node.called) == ["TrainWorkChain", "TrainWorkChain", "plan_methods"]


@calcfunction
def passed_on(dataset):
    return DatasetData.from_frames(dataset.frames())


def test_a_dataset_of_a_calculation_is_checked_by_the_plan(builder):
    inputs = builder(two_levels(4, 5, first_high=4), ["delta"])
    inputs.dataset = passed_on(inputs.dataset)
    outputs, node = run_get_node(inputs)
    assert node.exit_status == CODES.ERROR_INVALID_INPUT.status
    assert "no frame is labelled both" in node.exit_message
    assert outputs == {}


def test_what_cannot_be_compared_is_refused_before_anything_is_submitted(builder):
    """Each with a message, and nothing stored."""
    frames = two_levels(6, 5)
    apart = two_levels(4, 5, first_high=4)
    covered = two_levels(5, 5)
    one_group = frames.with_columns(group_id=np.tile(digest("trajectory"), (len(frames), 1)))
    before = orm.QueryBuilder().append(orm.Node).count()
    for data, methods, change, message in (
        (apart, ["delta"], {}, "no frame is labelled both"),
        (covered, ["delta"], {}, "nothing to correct"),
        (frames.take(frames.fidelity == 1), ["fine_tune"], {}, f"is labelled at '{LOW}'"),
        (frames, ["high_only"], {"split": {"test": 0.0}}, r"split\.test is 0"),
        (frames, ["embedding"], {"multi_fidelity": {"fidelities": [LOW, "dft"]}}, "is labelled at 'dft'"),
        (one_group, ["embedding"], {}, "group_by: frame"),
    ):
        with pytest.raises(ValueError, match=message):
            run_get_node(builder(data, methods, **change))
    for methods, change, message in (
        (["embedding_"], {}, "did you mean 'embedding'"),
        (["delta", "delta"], {}, "at most once"),
        ([], {}, "none given"),
        (["delta"], {"multi_fidelity": None}, "multi_fidelity: missing"),
        (["delta"], {"multi_fidelity": {"fidelities": [LOW]}}, "fidelities"),
        (["delta"], {"max_epoch": 3}, "did you mean 'max_epochs'"),
    ):
        with pytest.raises(ProtocolError, match=message):
            builder(frames, methods, **change)
    inputs = builder(frames, ["fine_tune"])
    with pytest.raises(ValueError, match="did you mean 'high_only'"):
        inputs.methods = orm.List(["high_onl"])
    inputs.fine_tune = orm.Dict({"optimiser": {}})
    with pytest.raises(ValueError, match="did you mean 'optimizer'"):
        run_get_node(inputs)
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_predictions_that_do_not_fit_are_an_exit_code():
    """Predictions of other frames, or none at all."""
    frames = two_levels(2, 1)
    dataset = DatasetData.from_frames(frames)
    plan = orm.Dict({"target": HIGH, "low": {"delta": LOW}})
    for arrays, message in (({"energy": np.zeros(1)}, "are missing"), (parity_of(frames), "other frames")):
        _, node = correct_labels.run_get_node(
            plan=plan,
            dataset=dataset,
            uncorrected=DatasetData.from_frames(frames.take([1])),
            member_0=orm.ArrayData(arrays),
        )
        assert node.exit_status == 400
        assert message in node.exit_message


def parity_of(frames):
    return {
        "frame_id": frames.frame_id,
        "natoms": frames.natoms,
        "energy_predicted": frames.energy,
        "forces_predicted": frames.forces,
        "stress_predicted": frames.stress,
    }
