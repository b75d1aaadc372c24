"""Active learning of EMT copper: rounds of whole frames and of fragments, budgets, verdicts, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from ase.calculators.emt import EMT
from emt_frames import emt_frames
from report_checks import check_report

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.protocols.explore import resolved_spec
from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain
from aiida_mlip.workchains.label_inputs import settings_hashes
from aiida_mlip.workchains.train import TrainWorkChain

pytestmark = [pytest.mark.nequip]

PROGRAM = Path(sys.executable).parent / "aiida-mlip-explore"
CODES = ActiveLearningWorkChain.exit_codes
TRAIN = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "committee": 2,
    "max_epochs": 6,
    "batch_size": 2,
    "optimizer": {"warmup_epochs": 1},
    "split": {"test": 0.2, "val": 0.2},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
}
EMT_LEVEL = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
WATCH = {"every": 5, "novelty_stop": 4.0, "error_select": None, "error_stop": None}


def labelled():
    """Twenty labelled frames of four atoms."""
    return DatasetData.from_frames(emt_frames(20), settings=settings_hashes(EMT_LEVEL))


_TRAINED: list[dict] = []


@pytest.fixture
def committee(train_code, evaluate_code):
    """A dataset and the committee trained on it, what a campaign may begin with; trained once, nodes for each test."""
    dataset = labelled()
    if not _TRAINED:
        codes = {"train": train_code, "evaluate": evaluate_code}
        results, node = run_get_node(TrainWorkChain.get_builder_from_protocol(dataset, codes, overrides=TRAIN))
        assert node.is_finished_ok, (node.exit_status, node.exit_message)
        _TRAINED.extend(contents(results["potentials"][f"member_{i}"]) for i in range(2))
    members = {f"member_{i}": PotentialData.from_package(**content) for i, content in enumerate(_TRAINED)}
    return {"dataset": dataset, "potentials": members}


def contents(potential):
    """What makes a node of the same potential."""
    names = ("engine", "fidelities", "reference_energies", "energy_shifts", "calibration")
    return {
        "package": potential.base.repository.get_object_content(PotentialData.PACKAGE_NAME, mode="rb"),
        "statistics": potential.statistics(),
        **{name: potential.base.attributes.get(name) for name in names},
    }


@pytest.fixture
def inputs(localhost, train_code, evaluate_code, label_code):
    """Inputs of a campaign; changes to settings, watch and explorations."""
    explore = orm.InstalledCode(
        label="explore", computer=localhost, filepath_executable=str(PROGRAM), with_mpi=False
    ).store()

    def make(structures, *, settings, watch=WATCH, temperature=600.0, n_steps=60, **changes):
        spec = {
            "kind": "md",
            "record_every": 20,
            "selected_every": 5,
            "md": {"timestep_fs": 4, "schedule": [{"n_steps": n_steps, "temperature_k": temperature}]},
            "watch": watch,
        }
        return {
            "dataset": labelled(),
            "settings": orm.Dict({"protocol": "fast", "labels_per_round": 3, **settings}),
            "explorations": {
                "hot": {
                    "structures": DatasetData.from_frames(from_ase(structures)),
                    "spec": orm.Dict(resolved_spec(spec, protocol="fast")),
                }
            },
            "codes": {"explore": explore},
            "train": {"settings": orm.Dict(TRAIN), "codes": {"train": train_code, "evaluate": evaluate_code}},
            "label": {
                "fidelities": orm.Dict(EMT_LEVEL),
                "codes": {"ase": label_code},
            },
            **changes,
        }

    return make


def test_rounds_of_whole_frames_until_the_budget_is_spent(inputs, committee, tmp_path):
    """Explore with the given committee, label, train on everything, explore once more."""
    given = inputs([bulk("Cu", cubic=True) * (2, 1, 1)], settings={"max_rounds": 2}, temperature=1500.0, **committee)
    results, node = run_get_node(ActiveLearningWorkChain, **given)
    assert node.exit_status == CODES.ERROR_BUDGET.status, (node.exit_status, node.exit_message)
    assert "2 rounds are done" in node.exit_message
    history = results["history"].get_dict()
    first, second = history["rounds"]
    assert 1 <= first["n_labelled"] == first["n_selected"] <= 3
    assert first["n_candidates"] >= first["n_selected"]
    assert first["training_hours"] == 0
    assert first["dft_core_hours"] > 0
    assert second["n_frames"] == first["n_frames"] + first["n_labelled"]
    assert second["training_hours"] > 0
    assert second["force_rmse"] > 0
    assert len(results["dataset"]) == second["n_frames"] + second["n_labelled"]
    assert history["verdict"] == "budget"
    # labels are EMT's, and every one leads back to the exploration and to the calculation that made it
    new = results["dataset"].frames().take(np.arange(20, len(results["dataset"])))
    for row in range(len(new)):
        atoms = new.to_ase(row)
        atoms.calc = EMT()
        np.testing.assert_allclose(new.forces[new.atom_slice(row)], atoms.get_forces(), atol=1e-8)
    assert new.label_uuid.any(axis=1).all()
    assert new.geometry_uuid.any(axis=1).all()
    assert len(np.unique(new.group_id, axis=0)) == len(new), "frames of one run must not all be held out together"
    assert set(results["potentials"]) == {"member_0", "member_1"}
    assert {node.uuid for node in results["potentials"].values()}.isdisjoint(
        node.uuid for node in committee["potentials"].values()
    )
    report = audit(node)
    assert report.passed, report.orphans
    told, _, _ = check_report(node, tmp_path)
    assert told.verdict.word == "Budget spent"


def test_fragments_of_a_larger_frame(inputs, committee, tmp_path):
    """A crystal of 256 atoms is explored; what is labelled are pieces of it."""
    crystal = bulk("Cu", cubic=True)
    big = crystal * (4, 4, 4)
    big.positions[7] += [0.6, 0.3, 0.1]
    given = inputs(
        [big],
        settings={
            "max_rounds": 1,
            "mode": "fragments",
            "fragment": {"core_radius_ang": 2.6, "buffer_ang": 2.4, "max_atoms": 120, "min_distance_ang": 1.5},
        },
        n_steps=20,
        hosts={"copper": orm.StructureData(ase=crystal)},
        **committee,
    )
    results, node = run_get_node(ActiveLearningWorkChain, **given)
    assert node.exit_status == CODES.ERROR_BUDGET.status, (node.exit_status, node.exit_message)
    new = results["dataset"].frames().take(np.arange(20, len(results["dataset"])))
    assert 1 <= len(new) <= 3
    assert (new.natoms < 120).all()
    assert new.labelled.all()
    assert new.parent_id.any(axis=1).all()
    assert (new.parent_atom[new.offsets[:-1]] >= 0).all()
    assert audit(node).passed
    told, _, _ = check_report(node, tmp_path)
    assert any(figure.kind == "fragment" for section in told.sections for figure in section.figures)


def test_nothing_selected_is_success(inputs, committee):
    """A watch that nothing alarms: one round, converged, no label."""
    calm = {"every": 5, "novelty_select": 1e6, "novelty_stop": 1e6, "error_select": None, "error_stop": None}
    cold = {"watch": calm, "temperature": 50.0, "n_steps": 20}
    given = inputs([bulk("Cu", cubic=True)], settings={"max_rounds": 3}, **cold, **committee)
    results, node = run_get_node(ActiveLearningWorkChain, **given)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    assert results["history"]["verdict"] == "converged"
    assert len(results["history"]["rounds"]) == 1
    assert results["dataset"].uuid == committee["dataset"].uuid


def test_what_fails_returns_what_there_is(inputs, committee):
    """A fragment larger than the frame it is to be cut from."""
    fragment = {"core_radius_ang": 6.0, "buffer_ang": 6.0, "threshold": 1e-3}
    settings = {"max_rounds": 1, "mode": "fragments", "fragment": fragment}
    watch = WATCH | {"novelty_select": 1e-3, "novelty_stop": 1e6}
    given = inputs([bulk("Cu", cubic=True)], settings=settings, watch=watch, n_steps=20, **committee)
    results, node = run_get_node(ActiveLearningWorkChain, **given)
    assert node.exit_status == CODES.ERROR_STEP_FAILED.status
    assert "the frame is smaller than the fragment" in node.exit_message
    assert set(results["potentials"]) == {"member_0", "member_1"}
    assert results["dataset"].uuid == committee["dataset"].uuid


def test_without_a_fragment_to_cut_it_is_not_called_converged(inputs, committee):
    """Frames were found, but no crystal like the host is there: the verdict says so."""
    fragment = {"core_radius_ang": 1.0, "buffer_ang": 0.5, "threshold": 1e-3, "completion": "crystal"}
    settings = {"max_rounds": 3, "mode": "fragments", "fragment": fragment}
    watch = WATCH | {"novelty_select": 1e-3, "novelty_stop": 1e6}
    hosts = {"hosts": {"salt": orm.StructureData(ase=bulk("NaCl", "rocksalt", a=5.6))}}
    given = inputs([bulk("Cu", cubic=True)], settings=settings, watch=watch, n_steps=20, **hosts, **committee)
    results, node = run_get_node(ActiveLearningWorkChain, **given)
    assert node.exit_status == CODES.ERROR_STALLED.status, (node.exit_status, node.exit_message)
    assert "candidates none was chosen" in results["history"]["evidence"]


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"max_round": 1}, {}, "unknown key 'max_round'.*did you mean 'max_rounds'"),
        ({"max_rounds": 0}, {}, "max_rounds: must be at least 1"),
        ({"dft_core_hours": -1}, {}, "dft_core_hours: must be positive"),
        ({"select": {"max_frames": 3}}, {}, "select.max_frames: given by labels_per_round"),
        ({"select": {"method": "best"}}, {}, "select.method"),
        ({"mode": "fragments"}, {}, "fragment: missing, the mode fragments needs it"),
        ({"mode": "fragments", "fragment": {"core_radius_ang": 3.0, "completion": "crystal"}}, {}, "hosts: missing"),
        ({}, {"explorations": {}}, "explorations: give at least one"),
        ({}, {"watch": None}, r"explorations\.hot\.spec\.watch: missing"),
        ({}, {"dataset": from_ase([bulk("Cu")])}, "dataset: has no labels"),
        ({}, {"dataset": emt_frames(2)}, r"dataset: its labels at 'emt' have the settings unknown \(imported\)"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(inputs, settings, changes, message):
    changes = dict(changes)
    if changes.get("dataset"):
        changes["dataset"] = DatasetData.from_frames(changes["dataset"])
    watch = {"watch": changes.pop("watch")} if "watch" in changes else {}
    given = inputs([bulk("Cu", cubic=True)], settings=settings, **watch, **changes)
    before = orm.QueryBuilder().append(orm.ProcessNode).count()
    with pytest.raises(ValueError, match=message):
        run_get_node(ActiveLearningWorkChain, **given)
    assert orm.QueryBuilder().append(orm.ProcessNode).count() == before
