"""The main job at two levels of theory: all frames labelled cheaply, few dearly, one model, active learning."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from ase.calculators.emt import EMT
from report_checks import check_report

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain
from aiida_mlip.workchains.develop import DevelopWorkChain

pytestmark = [pytest.mark.nequip, pytest.mark.slow]

#: The same potential with another cutoff is the cheap level.
LEVELS = {
    "quick": {"engine": "ase", "calculator": "ase.calculators.emt.EMT", "arguments": {"asap_cutoff": True}},
    "exact": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"},
}
COPPER = bulk("Cu", cubic=True)
TRAIN = {
    "committee": 2,
    "max_epochs": 4,
    "threads": 1,
    "device": "cpu",
    "model": {"num_layers": 1, "num_features": 4, "radial_mlp_width": 4, "cutoff_ang": 4.0},
    "split": {"test": 0.4, "val": 0.2},  # of the dear rows
}
GENERATE = {
    "seed": 5,
    "steps": [
        {"generator": "strain", "per_parent": 8, "linear": 0.03, "keep": False},
        {"generator": "rattle", "parents": "strain", "per_parent": 2, "amplitude_ang": [0.02, 0.1]},
    ],
}
EXPLORE = {
    "kind": "md",
    "record_every": 10,
    "selected_every": 5,
    "md": {"timestep_fs": 4, "schedule": [{"n_steps": 10, "temperature_k": 900}]},
    "watch": {"every": 5, "novelty_select": 0.5, "novelty_stop": 1e6, "error_select": None, "error_stop": None},
}


def builder(codes, *, levels=LEVELS, promote=None, train=TRAIN):
    structures = DatasetData.from_frames(from_ase([COPPER]))
    return DevelopWorkChain.get_builder_from_protocol(
        structures,
        codes=codes,
        fidelities=levels,
        protocol="fast",
        overrides={"train": train, "generate": GENERATE},
        active_learning={
            "explorations": {"hot": {"structures": structures, "spec": EXPLORE}},
            "settings": {"mode": "frames", "max_rounds": 1, "labels_per_round": 3},
        },
        promote={"fraction": 0.4} if promote is None else promote,
    )


@pytest.fixture
def codes(localhost, train_code, evaluate_code, label_code):
    program = str(Path(sys.executable).parent / "aiida-mlip-explore")
    explore = orm.InstalledCode(label="explore", computer=localhost, filepath_executable=program, with_mpi=False)
    return {"ase": label_code, "train": train_code, "evaluate": evaluate_code, "explore": explore.store()}


def test_few_dear_labels_through_all_stages(codes, tmp_path):
    results, node = run_get_node(builder(codes))
    assert node.exit_status == DevelopWorkChain.exit_codes.ERROR_NOT_CONVERGED.status, node.exit_message
    learning = next(each for each in node.called if each.process_class is ActiveLearningWorkChain)

    frames = results["dataset"].frames()
    exact = frames.fidelity == frames.fidelity_index("exact")
    cheap = set(frames.take(~exact).ids())
    assert set(frames.take(exact).ids()) <= cheap, "a dear label stands beside a cheap one"
    assert exact.sum() == pytest.approx(0.4 * len(cheap), abs=1)
    for row in (int(np.flatnonzero(exact)[-1]), int(np.flatnonzero(~exact)[-1])):
        atoms = frames.to_ase(row)
        atoms.calc = EMT(asap_cutoff=not exact[row])
        np.testing.assert_allclose(frames.forces[frames.atom_slice(row)], atoms.get_forces(), atol=1e-8)

    done = results["history"]["rounds"][0]
    assert done["n_promoted"] >= 1
    assert done["n_labelled"] == done["n_selected"] + done["n_promoted"]
    assert {name: potential.fidelities for name, potential in results["potentials"].items()} == {
        f"member_{i}": ["exact"] for i in range(2)
    }
    assert results["joint_potentials"]["member_0"].fidelities == ["quick", "exact"]
    allocation = learning.base.links.get_outgoing(link_label_filter="round_00_label").one().node.outputs.allocation
    assert allocation["method"] == "difference", "the committee of joint models says which frames"
    starts = [
        link.node.inputs.initial_potentials["member_0"]
        for link in learning.base.links.get_outgoing(link_label_filter="final_train").all()
    ]
    assert all(start.joint for start in starts), "the last training starts from the joint potentials"
    assert starts
    assert audit(node).passed
    check_report(node, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promote": {"fidelity": "quik"}}, "did you mean 'quick'"),
        ({"levels": {"exact": LEVELS["exact"]}}, "two levels of theory or more"),
        ({"train": {**TRAIN, "fidelity": "exact"}}, "multi_fidelity"),
    ],
)
def test_what_does_not_go_together_is_refused(codes, changes, message):
    with pytest.raises(ValueError, match=message):
        run_get_node(builder(codes, **changes))
