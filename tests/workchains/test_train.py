"""The training workchain with the real nequip-train, on tiny EMT data."""

from __future__ import annotations

import io
import shutil
import sys
import zipfile

import numpy as np
import pytest
from aiida import orm
from aiida.engine import calcfunction, run_get_node
from aiida.manage.caching import enable_caching
from emt_frames import emt_frames

from aiida_mlip.calculations.functions.train import lower_learning_rate, plan_training, reduce_batch_size
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.provenance import audit
from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.committee import force_deviation
from aiida_mlip.kernel.frames import digest
from aiida_mlip.workchains.train import TrainWorkChain

pytestmark = [pytest.mark.nequip]

TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 4,
    "optimizer": {"warmup_epochs": 1},
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
    """Two members with different weights and validation sets, one test set; errors, parity, curves; no orphan.

    Each potential comes judged: errors, grades, calibration. The same again with a calibration that needs more held-out
    atoms than there are trains nothing again, and returns the potentials without it.
    """
    inputs = builder(emt_frames(15), committee=2)
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
        "calibrate",
        "judge_member_0",
        "judge_member_1",
        "tabulate",
    } <= labels
    check_judged(outputs, parts, node)

    demanding = builder(emt_frames(15), committee=2, calibration_level=0.99)
    demanding.test_dataset = inputs.test_dataset
    with enable_caching():
        again, other = run_get_node(demanding)
    assert other.exit_status == TrainWorkChain.exit_codes.ERROR_CALIBRATION_FAILED.status
    assert "needs at least 99 held-out atoms" in other.exit_message
    jobs = [job for job in other.called_descendants if isinstance(job, orm.CalcJobNode)]
    assert jobs
    assert all(job.base.caching.is_created_from_cache for job in jobs)
    assert again["potentials"]["member_1"].has_grades
    assert again["potentials"]["member_1"].calibration() is None


def check_judged(outputs, parts, node):
    """Grades are those of the member's own training frames, the calibration that of the held-out ones."""
    for i in range(2):
        potential, parity = outputs["potentials"][f"member_{i}"], outputs["parity"][f"member_{i}"]
        assert potential.creator.process_label == "judge_potential"
        grades, calibration = potential.grades(), potential.calibration()
        assert grades.elements[29].n_train == 4 * (parts[i] == 0).sum()
        trained = np.repeat(parity.get_array("part") == 0, 4)
        assert np.mean(parity.get_array("novelty")[trained] <= 1.0) > 0.8
        assert calibration.as_dict() == outputs["calibrations"][f"member_{i}"].get_dict()
        assert calibration.n_atoms == 4 * (parts[i] == 2).sum()
        held_out = np.repeat(parity.get_array("part") == 2, 4)
        error = parity.get_array("forces_predicted") - parity.get_array("forces_reference")
        rmse = np.sqrt(np.mean((error[held_out] ** 2).sum(axis=1)))
        assert calibration.force_rmse_validation == pytest.approx(rmse)
        both = np.stack([outputs["parity"][f"member_{j}"].get_array("forces_predicted") for j in range(2)])
        bound = calibration.bound(force_deviation(both), np.full(60, 29))
        assert np.mean(np.linalg.norm(error, axis=1)[held_out] <= bound[held_out]) >= 0.9
        assert set(calibration.metrics["coverage"]["region"]) <= {"inside", "outside"}
        assert potential.metrics["test"]["n_frames"] == 3
        assert potential.metrics["external"]["n_frames"] == 3
        trained_node = node.base.links.get_outgoing().get_node_by_label(f"train_member_{i}").outputs.potential
        assert trained_node.sha256 == potential.sha256
        key = [item.base.repository.get_object(item.PACKAGE_NAME).key for item in (trained_node, potential)]
        assert key[0] == key[1]  # stored once


def test_builder_refuses_what_cannot_be_trained(builder):
    """Each with a message, and nothing stored."""
    frames = emt_frames(8)
    bare = frames.with_columns(energy=np.full(8, np.nan), forces=np.full((32, 3), np.nan), fidelity=np.full(8, -1))
    one_group = frames.with_columns(group_id=np.tile(digest("trajectory"), (8, 1)))
    other = DatasetData.from_frames(emt_frames(3, symbol="Al"))
    before = orm.QueryBuilder().append(orm.Node).count()
    for data, change, message in (
        (bare, {}, "missing labels"),
        (one_group, {}, "group_by: frame"),
        (frames, {"fidelity": "pbe"}, "no row is labelled at fidelity 'pbe'"),
        (frames, {"test_dataset": other}, "test_dataset has Al"),
        (frames, {"max_concurrent": orm.Int(0)}, "must be at least 1"),
        (frames, {"reference": "isolated"}, "isolated atom of Cu"),
    ):
        ports = {name: change.pop(name) for name in ("test_dataset", "max_concurrent") if name in change}
        inputs = builder(data, **change)
        if "test_dataset" in ports:
            inputs.test_dataset = ports["test_dataset"]
        if "max_concurrent" in ports:
            with pytest.raises(ValueError, match=message):
                inputs.max_concurrent = ports["max_concurrent"]
            continue
        with pytest.raises(ValueError, match=message):
            run_get_node(inputs)
    assert orm.QueryBuilder().append(orm.Node).count() == before


def test_unknown_keys_name_the_nearest(builder):
    with pytest.raises(ProtocolError, match="did you mean 'max_epochs'"):
        builder(emt_frames(8), max_epoch=3)
    with pytest.raises(ProtocolError, match="did you mean 'fast'"):
        builder(emt_frames(8), protocol="fasst")


def test_warm_start_from_other_species_is_refused(builder, toy_package):
    inputs = builder(emt_frames(8))
    inputs.initial_potentials = {"all": PotentialData.import_package(toy_package)}
    with pytest.raises(ValueError, match="does not cover Cu"):
        run_get_node(inputs)
    inputs.initial_potentials = {"member_3": inputs.initial_potentials["all"]}
    with pytest.raises(ValueError, match="unknown member_3"):
        run_get_node(inputs)


@calcfunction
def without_labels(dataset):
    frames = dataset.frames()
    missing = np.full(len(frames), np.nan)
    bare = frames.with_columns(energy=missing, fidelity=np.full(len(frames), -1))
    return DatasetData.from_frames(bare)


def test_a_dataset_of_a_calculation_is_checked_by_the_plan(builder):
    """Inside a larger workchain a bad dataset must be an exit code, not an exception."""
    inputs = builder(emt_frames(4))
    inputs.dataset = without_labels(inputs.dataset)
    outputs, node = run_get_node(inputs)
    assert node.exit_status == TrainWorkChain.exit_codes.ERROR_INVALID_INPUT.status
    assert "missing labels" in node.exit_message
    assert outputs == {}


def broken_package() -> PotentialData:
    """A package that passes every check of its form, but whose model nequip cannot load."""
    buffer = io.BytesIO()
    content = {
        "m/model/package_metadata.txt": "atom_types: {0: Cu}\navailable_models: [eager]\npackage_version_id: 2\n",
        "m/model/config.yaml": "training_module:\n  model: {_target_: x, model: {r_max: 4.0}}\n",
        "m/model/eager_model.pkl": "not a model",
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    buffer.seek(0)
    return PotentialData.from_package(buffer)


def test_one_member_fails_the_other_is_returned(builder):
    inputs = builder(emt_frames(8), committee=2, max_epochs=1)
    inputs.initial_potentials = {"member_1": broken_package()}
    outputs, node = run_get_node(inputs)
    assert node.exit_status == TrainWorkChain.exit_codes.ERROR_SOME_MEMBERS_FAILED.status
    assert "[1]" in node.exit_message
    assert set(outputs["potentials"]) == {"member_0"}
    assert outputs["errors"]["n_members"] == 1
    assert outputs["potentials"]["member_0"].has_grades
    assert outputs["potentials"]["member_0"].calibration() is None  # one member has nothing to deviate from


def test_failed_plan_is_an_exit_code():
    """A dataset that arrives later, unlabelled, ends the plan with its reason."""
    frames = emt_frames(4)
    bare = DatasetData.from_frames(frames.with_columns(energy=np.full(4, np.nan), fidelity=np.full(4, -1)))
    _, node = plan_training.run_get_node(bare, orm.Dict(TINY))
    assert node.exit_status == 200
    assert "missing labels" in node.exit_message


def test_changed_settings_that_cannot_be_are_an_exit_code():
    _, node = reduce_batch_size.run_get_node(orm.Dict({**TINY, "batch_size": 1}))
    assert node.exit_status == 200
    _, node = lower_learning_rate.run_get_node(orm.Dict({"batch": 1}))
    assert node.exit_status == 200


def test_all_members_fail(builder, localhost):
    """No potential at all: the split is still returned."""
    inputs = builder(emt_frames(8))
    inputs.codes.train = orm.InstalledCode(
        label="nothing", computer=localhost, filepath_executable=shutil.which("true"), with_mpi=False
    )
    outputs, node = run_get_node(inputs)
    assert node.exit_status == TrainWorkChain.exit_codes.ERROR_NO_POTENTIAL.status
    assert set(outputs) == {"split", "summaries"}


#: The evaluation with a model that gives no features.
WITHOUT_FEATURES = """
import sys
from aiida_mlip.workers import evaluate, model_loading
model_loading.feature_field = lambda outputs: None
sys.exit(evaluate.main([]))
"""


def test_evaluation_or_grades_fail_but_the_potential_is_returned(builder, localhost, tmp_path):
    """First no evaluation at all, then - nothing trained again - one that cannot fit grades."""
    inputs = builder(emt_frames(8), max_epochs=1)
    inputs.codes.evaluate = orm.InstalledCode(
        label="nothing", computer=localhost, filepath_executable=shutil.which("true"), with_mpi=False
    )
    outputs, node = run_get_node(inputs)
    assert node.exit_status == TrainWorkChain.exit_codes.ERROR_EVALUATION_FAILED.status
    assert not outputs["potentials"]["member_0"].has_grades

    program = tmp_path / "evaluate.sh"
    (tmp_path / "evaluate.py").write_text(WITHOUT_FEATURES)
    program.write_text(f"#!/bin/bash\n{sys.executable} {tmp_path}/evaluate.py\n")
    program.chmod(0o755)
    inputs = builder(emt_frames(8), max_epochs=1)
    inputs.codes.evaluate = orm.InstalledCode(
        label="without-features", computer=localhost, filepath_executable=str(program), with_mpi=False
    )
    with enable_caching():
        outputs, node = run_get_node(inputs)
    assert node.exit_status == TrainWorkChain.exit_codes.ERROR_GRADES_FAILED.status
    assert "member_0 have no grades" in node.exit_message
    assert "the potential gave no features" in node.exit_message
    assert outputs["potentials"]["member_0"].metrics["test"]["n_frames"] > 0  # judged as far as possible
    assert not outputs["potentials"]["member_0"].has_grades
