"""The main job with every stage: generate, label, train, learn actively on fragments, validate, report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.report.write import write_report
from aiida_mlip.workchains.develop import DevelopWorkChain

pytestmark = [pytest.mark.nequip, pytest.mark.slow]

EMT = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
CODES = DevelopWorkChain.exit_codes
COPPER = bulk("Cu", cubic=True)
TRAIN = {
    "max_epochs": 4,
    "threads": 1,
    "device": "cpu",
    "model": {"num_layers": 1, "num_features": 4, "radial_mlp_width": 4, "cutoff_ang": 4.0},
    "split": {"test": 0.2, "val": 0.2},
}
GENERATE = {
    "seed": 3,
    "steps": [
        {"generator": "strain", "per_parent": 6, "linear": 0.03, "keep": False},
        {"generator": "rattle", "parents": "strain", "per_parent": 2, "amplitude_ang": [0.02, 0.1]},
    ],
}
LEARN = {
    "mode": "fragments",
    "max_rounds": 1,
    "labels_per_round": 2,
    "fragment": {"core_radius_ang": 2.6, "buffer_ang": 1.0, "max_atoms": 120, "threshold": 0.5, "device": "cpu"},
}
EXPLORE = {
    "kind": "md",
    "record_every": 10,
    "selected_every": 5,
    "md": {"timestep_fs": 4, "schedule": [{"n_steps": 10, "temperature_k": 900}]},
    "watch": {"every": 5, "novelty_select": 0.5, "novelty_stop": 1e6, "error_select": None, "error_stop": None},
}
ONLY_EOS = {"elastic": None, "phonons": None, "vacancy": None, "dimer": None}


@pytest.fixture
def codes(localhost, train_code, evaluate_code, label_code):
    folder = Path(sys.executable).parent
    ours = {
        name: orm.InstalledCode(
            label=name, computer=localhost, filepath_executable=str(folder / f"aiida-mlip-{name}"), with_mpi=False
        ).store()
        for name in ("explore", "fragment")
    }
    return {"ase": label_code, "train": train_code, "evaluate": evaluate_code, **ours}


def job(codes, **changes):
    return DevelopWorkChain.get_builder_from_protocol(
        DatasetData.from_frames(from_ase([COPPER])),
        codes=codes,
        fidelities=EMT,
        protocol="fast",
        overrides={"train": TRAIN, "generate": GENERATE},
        **{
            "active_learning": {
                "explorations": {
                    "hot": {"structures": DatasetData.from_frames(from_ase([COPPER * (4, 4, 4)])), "spec": EXPLORE}
                },
                "settings": LEARN,
                "hosts": {"copper": orm.StructureData(ase=COPPER)},
            },
            "validate": {"structures": orm.StructureData(ase=bulk("Cu")), "settings": ONLY_EOS},
            **changes,
        },
    )


def test_all_stages_with_a_teacher(codes, tmp_path):
    builder = job(codes)
    forecast = DevelopWorkChain.forecast_active_learning(builder)
    assert (forecast.rounds, forecast.labels, forecast.largest, forecast.atom_steps) == (1, 2, 120, 2560)
    assert any("at most 2 trainings" in line for line in forecast.lines())
    results, node = run_get_node(builder)
    # an untrained toy is neither certain within one round nor right about copper: both are results, not failures
    assert node.exit_status in (CODES.ERROR_NOT_CONVERGED.status, CODES.ERROR_PROPERTIES_MISSED.status), (
        node.exit_status,
        node.exit_message,
    )
    links = [
        link.link_label for link in node.base.links.get_outgoing().all() if link.link_type.value.startswith("call")
    ]
    assert links == ["generate", "label", "train", "active_learning", "validate"]
    history = results["history"]
    assert history["verdict"] == "budget"
    done = history["rounds"][0]
    assert done["n_labelled"] == done["n_selected"] >= 1
    # the labels of the round are in the dataset, and in what the last potential was trained on
    frames = results["dataset"].frames()
    assert len(frames) == 13 + done["n_labelled"]
    learning = next(child for child in node.called if child.process_label == "ActiveLearningWorkChain")
    final = learning.base.links.get_outgoing().get_node_by_label("final_train")
    assert final.inputs.dataset.uuid == results["dataset"].uuid
    assert results["potentials"]["member_0"].uuid == final.outputs.potentials.member_0.uuid
    values = {entry["name"]: entry for entry in results["properties"]["entries"]}
    assert values["a0_ang"]["reference"] == pytest.approx(3.58, abs=0.02)
    assert audit(node).passed
    write_report(node, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert all(part.uuid in text for part in (results["history"], results["properties"], results["errors"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"active_learning": {"exploration": {}}}, "did you mean 'explorations'"),
        ({"validate": {"structure": None}}, "did you mean 'structures'"),
    ],
)
def test_unknown_keys_are_named(codes, changes, message):
    with pytest.raises(ValueError, match=message):
        job(codes, **changes)
