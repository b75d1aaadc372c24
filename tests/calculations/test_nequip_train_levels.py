"""Trainings on several levels of theory with the real nequip-train, and what is refused before one begins."""

from __future__ import annotations

import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import run_get_node
from aiida.plugins import ParserFactory
from emt_levels import HIGH, LOW, OFFSET, two_levels

from aiida_mlip.calculations.evaluate import parts_of
from aiida_mlip.calculations.functions.train import plan_training
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.io.nequip_config import CONFIG_FILE, TRAIN_FILE
from aiida_mlip.io.training_levels import LEVELS_FILE
from aiida_mlip.kernel.frames import concatenate, from_arrays
from aiida_mlip.kernel.splits import Part

CODES = NequipTrainCalculation.exit_codes
TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 2,
    "optimizer": {"schedule": "constant", "learning_rate": 0.01},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "l_max": 1, "radial_mlp_width": 4},
    "split": {"test": 0.0, "val": 0.25},
}
SEVERAL = {"fidelities": [LOW, HIGH], "num_features": 2, "target_share": 1 / 3}
#: A training that changes next to nothing: what it begins with is what it ends with.
STILL = {"max_epochs": 1, "optimizer": {"schedule": "constant", "learning_rate": 1e-7}}


@pytest.fixture(scope="module")
def dataset(aiida_profile):
    return DatasetData.from_frames(two_levels()).store()


def planned(dataset, **changes):
    """Inputs of the training of the first member."""
    changes.setdefault("multi_fidelity", SEVERAL)
    plan, node = plan_training.run_get_node(dataset, orm.Dict({**TINY, **changes}))
    assert node.is_finished_ok, node.exit_message
    return {"dataset": dataset, "split": plan["split"], "settings": plan["settings_0"]}


def train(code, dataset, *, starts=None, **changes):
    outputs, node = run_get_node(NequipTrainCalculation, code=code, **planned(dataset, **changes), **(starts or {}))
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    return outputs, node


_TRAINED: dict[str, tuple] = {}


@pytest.fixture
def joint(dataset, train_code):
    """Outputs and node of a joint training; run once."""
    if "joint" not in _TRAINED:
        _TRAINED["joint"] = train(train_code, dataset)
    return _TRAINED["joint"]


@pytest.fixture
def low(dataset, train_code):
    """Outputs and node of a training at the low level alone; run once."""
    if "low" not in _TRAINED:
        _TRAINED["low"] = train(train_code, dataset, multi_fidelity=None, fidelity=LOW)
    return _TRAINED["low"]


def remote_frames(node, name=TRAIN_FILE):
    return ase.io.read(Path(node.outputs.remote_folder.get_remote_path()) / name, index=":")


def config_of(node):
    return yaml.safe_load(node.base.repository.get_object_content(CONFIG_FILE))


def without(frames, fidelity, *labels):
    """The same rows; those at one level lack these labels."""
    rows = frames.fidelity == frames.fidelity_index(fidelity)
    at = {"energy": rows, "stress": rows, "forces": rows[frames.atom_rows()]}
    changed = {name: np.array(getattr(frames, name)) for name in labels}
    for name, values in changed.items():
        values[at[name]] = np.nan
    return frames.with_columns(**changed)


# -- real trainings ---------------------------------------------------------------------------------------------------


@pytest.mark.nequip
def test_joint_potential_and_what_the_loader_has_seen(joint, dataset):
    outputs, node = joint
    potential, summary = outputs["potential"], outputs["summary"].get_dict()
    assert potential.joint
    assert potential.fidelities == [LOW, HIGH]
    assert set(potential.reference_energies) == {LOW, HIGH}
    assert potential.energy_shifts[HIGH] == {"Cu": 0.0}
    assert potential.energy_shifts[LOW]["Cu"] == pytest.approx(OFFSET, abs=0.05)

    parts = node.inputs.split.get_array("member_0")
    names = dataset.column("fidelity")
    rows = {name: int(((parts == Part.TRAIN) & (names == name)).sum()) for name in (LOW, HIGH)}
    assert summary["repetition"] == 2
    assert summary["fidelities"] == {
        LOW: {"rows": rows[LOW], "frames_per_epoch": rows[LOW], "frames_seen": rows[LOW]},
        HIGH: {"rows": rows[HIGH], "frames_per_epoch": 2 * rows[HIGH], "frames_seen": 2 * rows[HIGH]},
    }
    assert summary["frames_val"] == ((parts == Part.VAL) & (names == HIGH)).sum()
    # that validation is in the energies of the target: else it would be wrong by the offset
    assert potential.metrics["validation"]["val_energy_rmse_ev_per_atom"] < 0.2


@pytest.mark.nequip
def test_the_last_weights_are_kept_where_they_are_wanted(dataset, train_code):
    """A learning rate so high that the errors grow."""
    high = {"schedule": "constant", "learning_rate": 0.5}
    outputs, node = train(train_code, dataset, max_epochs=2, optimizer=high, checkpoint="last")
    errors = outputs["curves"].get_array("val_objective")
    assert errors[0] < errors[1], "the best epoch is an earlier one"
    assert outputs["summary"]["best_epoch"] == outputs["potential"].metrics["best_epoch"] == 1
    assert outputs["summary"]["best"]["val_objective"] == pytest.approx(errors[1])
    assert "checkpoints/kept_" in node.outputs.retrieved.base.repository.get_object_content("status.txt")


@pytest.mark.nequip
def test_the_training_file_is_in_the_energies_of_the_target(joint, dataset):
    outputs, node = joint
    frames = dataset.frames()
    energy = {
        (name, np.round(atoms.positions, 6).tobytes()): atoms.get_potential_energy()
        for name, atoms in zip(dataset.column("fidelity"), frames.iter_ase(), strict=True)
    }
    shifts, written = outputs["potential"].energy_shifts, remote_frames(node)
    assert sorted({atoms.info["dataset"] for atoms in written}) == [0, 1]
    for atoms in written:
        name = (LOW, HIGH)[atoms.info["dataset"]]
        original = energy[name, np.round(atoms.positions, 6).tobytes()]
        assert atoms.get_potential_energy() == pytest.approx(original - len(atoms) * shifts[name]["Cu"], abs=1e-6)
    shifts_of_model = config_of(node)["training_module"]["model"]["per_type_energy_shifts"]
    assert shifts_of_model == pytest.approx(outputs["potential"].reference_energies[HIGH])


def reparsed(node, change):
    """Exit status of the parser when the output of a training says something else."""
    copy = orm.CalcJobNode(computer=node.computer, process_type=node.process_type)
    for name, value in node.get_options().items():
        copy.set_option(name, value)
    for link in node.base.links.get_incoming(link_type=LinkType.INPUT_CALC):
        copy.base.links.add_incoming(link.node, link_type=LinkType.INPUT_CALC, link_label=link.link_label)
    for name in (CONFIG_FILE, LEVELS_FILE):
        copy.base.repository.put_object_from_bytes(node.base.repository.get_object_content(name, "rb"), name)
    copy.store()
    folder = orm.FolderData()
    with node.outputs.retrieved.base.repository.as_path() as path:
        folder.base.repository.put_object_from_tree(str(path))
    output = node.get_option("output_filename")
    text = change(folder.base.repository.get_object_content(output))
    folder.base.repository.put_object_from_bytes(text.encode(), output)
    folder.base.links.add_incoming(copy, link_type=LinkType.CREATE, link_label="retrieved")
    folder.store()
    return ParserFactory("aiida_mlip.nequip_train").parse_from_node(copy, store_provenance=False)[1]


@pytest.mark.nequip
def test_the_frames_of_each_level_are_the_guard(joint):
    """The same number of frames in all, but of the wrong level; frames missing; the level not counted at all."""
    _, node = joint
    assert reparsed(node, lambda text: text).exit_status == 0
    swapped = reparsed(node, lambda text: re.sub(r"(num_frames_[01]): \d+", r"\1: 17", text))
    assert swapped.exit_status == CODES.ERROR_FRAMES_MISMATCH.status
    assert re.search(r"34 \(17 low, 17 high\) frames, but the split has 34 \(22 low, 12 high\)", swapped.exit_message)
    once = reparsed(node, lambda text: text.replace("num_frames_1: 12", "num_frames_1: 6").replace(": 34", ": 28"))
    assert once.exit_status == CODES.ERROR_FRAMES_MISMATCH.status
    uncounted = reparsed(node, lambda text: text.replace("num_frames_1", "num_other"))
    assert uncounted.exit_status == CODES.ERROR_FRAMES_MISMATCH.status


@pytest.mark.nequip
def test_pooled_is_an_ordinary_potential_of_the_target(dataset, train_code):
    outputs, node = train(train_code, dataset, multi_fidelity={**SEVERAL, "method": "pooled", "target_share": 0.0})
    potential, summary = outputs["potential"], outputs["summary"].get_dict()
    assert not potential.joint
    assert potential.fidelities == [HIGH]
    assert set(potential.reference_energies) == {HIGH}
    assert potential.energy_shifts == {}
    assert summary["repetition"] == 1
    assert summary["frames_seen"] == summary["frames_train"]
    assert "categorical_graph_field_embed" not in config_of(node)["training_module"]["model"]


@pytest.mark.nequip
def test_warm_start_keeps_the_order_and_the_energies_of_the_joint_potential(joint, dataset, train_code):
    """Also where the settings name the levels in another order, and another one as the target."""
    first = joint[0]["potential"]
    levels = {**SEVERAL, "fidelities": [HIGH, LOW]}
    starts = {"initial_potential": first}
    outputs, _ = train(train_code, dataset, starts=starts, multi_fidelity=levels, fidelity=HIGH, **STILL)
    again = outputs["potential"]
    assert again.fidelities == [LOW, HIGH]
    assert again.reference_energies == first.reference_energies
    assert again.energy_shifts == first.energy_shifts
    name = "val_force_rmse_ev_per_ang"
    assert outputs["curves"].get_array(name)[0] == pytest.approx(first.metrics["validation"][name], rel=1e-2)

    outputs, _ = train(train_code, dataset, starts=starts, multi_fidelity=levels, fidelity=LOW, **STILL)
    assert outputs["potential"].energy_shifts == first.energy_shifts
    # labels of the low level in the energies of the high one, which the model goes on to predict
    assert outputs["curves"].get_array("val_energy_rmse_ev_per_atom")[0] < 0.3
    assert outputs["summary"]["fidelities"][LOW]["frames_seen"] == outputs["summary"]["fidelities"][LOW]["rows"]


@pytest.mark.nequip
@pytest.mark.parametrize("port", ["restart_folder", "initial_folder"])
def test_going_on_keeps_the_energies(joint, dataset, train_code, port):
    """A restart, and a new beginning from the best checkpoint."""
    first = joint[0]
    changes = {"max_epochs": 3} if port == "restart_folder" else STILL
    outputs, node = train(train_code, dataset, starts={port: first["remote_folder"]}, **changes)
    assert outputs["potential"].reference_energies == first["potential"].reference_energies
    assert outputs["potential"].joint
    assert node.base.repository.get_object_content(LEVELS_FILE) == joint[1].base.repository.get_object_content(
        LEVELS_FILE
    )
    if port == "restart_folder":
        assert outputs["curves"].get_array("epoch").tolist() == [0, 1, 2]


@pytest.mark.nequip
def test_fine_tuning_gives_the_model_the_shifts_of_the_new_level(low, dataset, train_code):
    first = low[0]["potential"]
    outputs, node = train(
        train_code, dataset, starts={"initial_potential": first}, multi_fidelity=None, fidelity=HIGH, **STILL
    )
    tuned = outputs["potential"]
    assert tuned.fidelities == [HIGH]
    assert not tuned.joint
    assert first.reference_energies[LOW]["Cu"] - tuned.reference_energies[HIGH]["Cu"] == pytest.approx(OFFSET, abs=0.2)
    model = config_of(node)["training_module"]["model"]
    assert model["_target_"] == "nequip.model.modify"
    assert model["modifiers"][0]["shifts"] == pytest.approx(tuned.reference_energies[HIGH])
    assert outputs["curves"].get_array("val_energy_rmse_ev_per_atom")[0] < 1.0


@pytest.mark.nequip
def test_energies_alone_at_the_target(train_code, aiida_profile):
    """Forces are learned at the low level; validation is of the energies there are."""
    dataset = DatasetData.from_frames(without(two_levels(), HIGH, "forces", "stress")).store()
    outputs, node = train(train_code, dataset)
    validation = outputs["potential"].metrics["validation"]
    assert "val_force_rmse_ev_per_ang" not in validation
    assert validation["val_energy_rmse_ev_per_atom"] == pytest.approx(validation["val_objective"], rel=1e-6)
    assert validation["train_force_rmse_ev_per_ang"] > 0
    high = [atoms for atoms in remote_frames(node) if atoms.info["dataset"] == 1]
    assert all(np.isnan(atoms.get_forces()).all() for atoms in high)


# -- refused before anything is submitted -----------------------------------------------------------------------------


def isolated(fidelity, energy):
    return from_arrays(
        natoms=np.array([1]),
        numbers=np.array([29]),
        positions=np.zeros((1, 3)),
        energy=np.array([energy]),
        forces=np.zeros((1, 3)),
        fidelity=np.array([0]),
        fidelities=(fidelity,),
    )


def refused(dataset, **changes):
    """Message of a plan that fails."""
    changes.setdefault("multi_fidelity", SEVERAL)
    _, node = plan_training.run_get_node(dataset, orm.Dict({**TINY, **changes}))
    assert node.exit_status == 200
    return node.exit_message


def test_a_level_without_labels(dataset):
    message = refused(dataset, multi_fidelity={"fidelities": [LOW, "hybrid"]})
    assert "no row is labelled at fidelity 'hybrid'; there are labels at high, low" in message


def test_one_level_twice(dataset):
    message = refused(dataset, multi_fidelity={"fidelities": [LOW, HIGH, LOW]})
    assert "two fidelities with the same index: 'low' is named as number 0 and as number 2" in message


def test_a_target_that_is_no_level(dataset):
    assert "'hybrid' is none of multi_fidelity.fidelities" in refused(dataset, fidelity="hybrid")


def test_mixed_reference_energies(aiida_profile):
    """Isolated at one level, not at the other."""
    frames = two_levels()
    dataset = DatasetData.from_frames(concatenate([frames, isolated(HIGH, -1.0)]))
    message = refused(dataset, reference="isolated")
    assert "needs an isolated atom of Cu labelled at 'low'" in message
    both = DatasetData.from_frames(concatenate([frames, isolated(HIGH, -1.0), isolated(LOW, 5.5)]))
    _, node = plan_training.run_get_node(both, orm.Dict({**TINY, "multi_fidelity": SEVERAL, "reference": "isolated"}))
    assert node.is_finished_ok, node.exit_message


def test_no_forces_anywhere(aiida_profile):
    frames = two_levels()
    bare = without(without(frames, HIGH, "forces", "stress"), LOW, "forces", "stress")
    dataset = DatasetData.from_frames(bare)
    assert "training rows has forces, but the loss weighs them with 1" in refused(dataset)
    assert "training rows has forces" in refused(dataset, multi_fidelity=None, fidelity=LOW)
    assert planned(dataset, loss={"forces": 0.0})


@pytest.mark.nequip
def test_weights_that_do_not_go_with_the_levels(joint, low, dataset, train_code):
    joint_potential, low_potential = joint[0]["potential"], low[0]["potential"]
    third = two_levels(12, 6).with_columns(fidelities=("mid", HIGH))
    three = DatasetData.from_frames(concatenate([two_levels(), third])).store()
    cases = [
        (dataset, {}, {"initial_potential": low_potential}, "trained on low, but multi_fidelity names low, high"),
        (
            dataset,
            {"multi_fidelity": None, "fidelity": HIGH},
            {"initial_potential": joint_potential},
            r"a joint model of low, high; .*aiida_mlip.bake",
        ),
        (
            three,
            {"multi_fidelity": {"fidelities": [LOW, "mid", HIGH]}},
            {"initial_potential": joint_potential},
            "trained on low, high, but multi_fidelity names low, mid, high",
        ),
        (
            dataset,
            {"multi_fidelity": {**SEVERAL, "method": "pooled"}},
            {"initial_folder": joint[0]["remote_folder"]},
            r"trained on low, high \(embedding\), but the settings ask for low, high \(pooled\)",
        ),
        (dataset, {}, {"initial_folder": low[0]["remote_folder"]}, "trained on one fidelity, but"),
    ]
    for data, changes, starts, message in cases:
        inputs = planned(data, **changes)
        with pytest.raises(ValueError, match=message):
            run_get_node(NequipTrainCalculation, code=train_code, **inputs, **starts)


# -- the split elsewhere -----------------------------------------------------------------------------------------------


def test_a_frame_at_two_levels_has_the_part_it_is_used_as(dataset):
    """Also for a training at the high level alone, whose split does not use the same frame's row at the low one."""
    plan, node = plan_training.run_get_node(dataset, orm.Dict({**TINY, "fidelity": HIGH}))
    assert node.is_finished_ok, node.exit_message
    planned_parts = plan["split"].get_array("member_0")
    parts = parts_of(dataset, plan["split"], "member_0")
    at_high = dataset.column("fidelity") == HIGH
    np.testing.assert_array_equal(parts[at_high], planned_parts[at_high])
    assert (parts[at_high] != Part.UNUSED).all()
