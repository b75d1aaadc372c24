"""The main job end to end: real labels, real nequip-train, in this process and by the daemon; audit and archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.data import provenance
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import NONE, from_ase
from aiida_mlip.workchains.develop import DevelopWorkChain

TINY_TRAINING = {
    "max_epochs": 2,
    "threads": 1,
    "model": {"num_layers": 1, "num_features": 4, "radial_mlp_width": 8, "cutoff_ang": 3.5},
    "split": {"test": 0.25, "val": 0.25},
}
EMT = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
LDA = {
    "lda": {
        "engine": "qe",
        "pseudo_family": "debian-lda",
        "ecutwfc_ry": 8.0,
        "kpoints_distance_inv_ang": 2.0,
        "occupations": "fixed",
    }
}


def steps(n_strains: int) -> dict[str, object]:
    return {
        "seed": 3,
        "steps": [
            {"generator": "strain", "per_parent": n_strains, "linear": 0.03, "keep": False},
            {"generator": "rattle", "parents": "strain", "per_parent": 2, "amplitude_ang": [0.02, 0.1]},
        ],
    }


def builder(atoms, codes, fidelities, **overrides):
    return DevelopWorkChain.get_builder_from_protocol(
        DatasetData.from_frames(from_ase([atoms])),
        codes=codes,
        fidelities=fidelities,
        protocol="fast",
        overrides={"train": TINY_TRAINING, "generate": steps(6), **overrides},
    )


@pytest.fixture
def teacher_codes(label_code, train_code, evaluate_code):
    return {"ase": label_code, "train": train_code, "evaluate": evaluate_code}


@pytest.mark.nequip
@pytest.mark.slow
def test_from_crystal_to_potential_with_a_teacher_that_misses_its_target(teacher_codes, tmp_path):
    impossible = {"force_rmse_relative": 1e-9}
    job = builder(bulk("Cu", cubic=True), teacher_codes, EMT, label={"isolated_atoms": True}, targets=impossible)
    results, node = run_get_node(job)
    assert node.exit_status == DevelopWorkChain.exit_codes.ERROR_TARGET_NOT_MET.status, node.exit_message
    assert "force_rmse_relative" in node.exit_message

    dataset = results["dataset"]
    assert dataset.settings["emt"]
    assert dataset.reference_energies["emt"].keys() == {"Cu"}
    frames = dataset.frames()
    assert frames.labelled.all()
    assert frames.label_uuid.any(axis=1).all(), "every label names the process that made it"
    made = frames.generator != NONE
    assert made.sum() == 13
    assert frames.geometry_uuid[made].any(axis=1).all(), "every generated geometry names the process that made it"
    assert results["potentials"]["member_0"].species == ["Cu"]
    assert [link.link_label for link in node.base.links.get_outgoing(link_type=_calls()).all()] == [
        "generate",
        "label",
        "train",
    ]

    report = provenance.audit(results["potentials"]["member_0"])
    assert report.orphans == ()
    assert provenance.audit(node).passed
    assert audited_elsewhere(node, tmp_path)["n_nodes"] == provenance.audit(node).n_nodes


@pytest.mark.qe
@pytest.mark.nequip
@pytest.mark.daemon
@pytest.mark.slow
@pytest.mark.usefixtures("pseudo_family")
def test_the_daemon_does_the_same_with_pw(pw_code, installed_train_code, evaluate_code, submit_and_await):
    codes = {"pw": pw_code, "train": installed_train_code, "evaluate": evaluate_code}
    node = submit_and_await(builder(bulk("Si"), codes, LDA), timeout=500)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    summary = node.outputs.label_summary["fidelities"]["lda"]
    assert summary["computed"] == 13
    report = provenance.audit(node.outputs.potentials.member_0)
    assert report.orphans == ()
    assert all("quantumespresso" in entry.origin for entry in report.third_party)

    # the same job again computes no label
    again = submit_and_await(builder(bulk("Si"), codes, LDA), timeout=500)
    assert again.is_finished_ok, (again.exit_status, again.exit_message)
    summary = again.outputs.label_summary["fidelities"]["lda"]
    assert (summary["computed"], summary["reused"]) == (0, 13)


def audited_elsewhere(node, tmp_path):
    """Archive of a workchain, imported into an empty profile of its own, and what the audit says there."""
    from aiida.tools.archive import create_archive

    archive = tmp_path / "result.aiida"
    create_archive([node], filename=archive, test_run=False)
    environment = {**os.environ, "AIIDA_PATH": str(tmp_path)}
    (tmp_path / ".aiida").mkdir()
    bin_dir = Path(sys.executable).parent

    def run(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(bin_dir / "verdi", "presto", "-p", "fresh", "--no-broker")
    run(bin_dir / "verdi", "-p", "fresh", "archive", "import", str(archive))
    report = json.loads(run(bin_dir / "aiida-mlip", "-p", "fresh", "audit", node.uuid, "--json"))
    assert report["passed"], report["orphans"]
    return report


def _calls():
    from aiida.common.links import LinkType

    return LinkType.CALL_WORK


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"targets": {"force_rmse": 1.0}}, "unknown key 'force_rmse'"),
        ({"train": {"max_epoch": 3}}, "did you mean 'max_epochs'"),
        ({"generate": {"steps": [{"generator": "ratle"}]}}, "did you mean 'rattle'"),
        ({"label": {"max_concurent": 3}}, "max_concurrent"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_stored(teacher_codes, overrides, message):
    before = orm.QueryBuilder().append(orm.ProcessNode).count()
    with pytest.raises(ValueError, match=message):
        run_get_node(builder(bulk("Cu", cubic=True), teacher_codes, EMT, **overrides))
    assert orm.QueryBuilder().append(orm.ProcessNode).count() == before
