"""``aiida-mlip lineage`` and ``taint`` as a person calls them, on a campaign that was run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from aiida import orm
from click.testing import CliRunner
from traced_campaign import traced_campaign

from aiida_mlip.cli.main import main

load = orm.load_node


@pytest.fixture
def campaign(localhost, label_code, train_code, evaluate_code):
    return traced_campaign(localhost, label_code, train_code, evaluate_code)


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.nequip
def test_an_atom_of_a_fragment(campaign):
    labelled, label = load(campaign.labelled), load(campaign.label)
    frame_id = labelled.frame_ids()[1]
    parent = int(labelled.frames().take([1]).parent_atom[4])
    shown = call("lineage", frame_id[:12], "--atom", 4)
    assert shown.exit_code == 0, shown.output
    assert f"was atom {parent} in the frame" in shown.output
    assert f"label emt: computed by aiida_mlip.ase_label<{label.pk}>" in shown.output
    (row,) = np.flatnonzero([found == frame_id for found in label.outputs.dataset.frame_ids()])
    assert f"{label.uuid}, row {row}" in shown.output
    assert campaign.potential in shown.output
    assert campaign.simulation in shown.output
    for arguments in ((labelled.pk, "--row", 1), (labelled.uuid[:13], "--frame", frame_id[:10])):
        same = call("lineage", *arguments, "--atom", 4)
        assert same.output == shown.output
    content = json.loads(call("lineage", frame_id, "--atom", 4, "--json").output)
    assert content["atom"]["parent_atom"] == parent
    assert content["labels"][0]["calculation"]["uuid"] == label.uuid


@pytest.mark.nequip
def test_any_node(campaign):
    for uuid in (campaign.potential, campaign.dataset, campaign.train, campaign.simulation):
        shown = call("lineage", uuid)
        assert shown.exit_code == 0, shown.output
        assert f"<{load(uuid).pk}>" in shown.output.splitlines()[0]
        assert "rests on" in shown.output
        assert json.loads(call("lineage", uuid, "--json").output)["node"]["uuid"] == uuid


@pytest.mark.nequip
def test_taint_of_a_label(campaign):
    frame_id = load(campaign.labelled).frame_ids()[0]
    shown = call("taint", f"emt:{frame_id[:12]}")
    assert shown.exit_code == 0, shown.output
    assert f"{campaign.dataset} (holds)" in shown.output
    assert "rows of datasets concerned: 1\n" in shown.output
    assert "  potentials: 2 (2 trained on it)" in shown.output or "  potentials: 2 (2 judged with it)" in shown.output
    assert campaign.second in shown.output
    content = json.loads(call("taint", campaign.label, "--row", 0, "--json").output)
    assert {each["node"]["uuid"] for each in content["potentials"]} == {campaign.fresh, campaign.potential}


@pytest.mark.nequip
def test_taint_names_the_first_few_or_all(campaign, monkeypatch):
    monkeypatch.setattr("aiida_mlip.cli.taint._MOST_SHOWN", 1)
    content = json.loads(call("taint", campaign.simulation, "--json").output)
    few, everything = (call("taint", campaign.simulation, *extra).output for extra in ((), ("--all",)))
    n = len(content["datasets"])
    assert n > 1
    assert f"{n - 1} more datasets, see --all" in few
    assert few.count("    dataset ") == 1
    assert everything.count("    dataset ") == n
    assert "see --all" not in everything
    for kind in ("datasets", "potentials", "simulations", "properties"):
        for each in content[kind]:
            assert each["node"]["uuid"] in everything


@pytest.mark.nequip
def test_audit_shows_findings(campaign):
    shown = call("audit", campaign.potential)
    assert "not calibrated" in shown.output
    content = json.loads(call("audit", campaign.potential, "--json").output)
    assert content["passed"] is (shown.exit_code == 0) is True
    assert "not_calibrated" in {finding["kind"] for finding in content["findings"]}


@pytest.mark.nequip
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("lineage", 987654321), 1, "no pk, uuid or label"),
        (("lineage", "ffffffffffff"), 1, "no dataset of this profile holds such a frame"),
        (("lineage", "{potential}", "--row", 0), 1, "need a dataset"),
        (("lineage", "{dataset}", "--row", 10**6), 1, "has no row 1000000"),
        (("lineage", "{dataset}", "--row", 0, "--frame", "abcd"), 2, "not both"),
        (("lineage", "{dataset}", "--atom", 0), 2, "of which frame"),
        (("taint", "{potential}", "--row", 0), 1, "has no rows"),
        (("taint", "pbe:{frame}"), 1, "no label at 'pbe'"),
        (("taint", "{frame}", "--row", 0), 2, "--row needs a calculation or a dataset"),
        (("audit", 987654321), 1, "no node '987654321'"),
    ],
)
def test_wrong_input_is_a_message(campaign, arguments, status, message):
    frame = load(campaign.labelled).frame_ids()[0]
    values = {"potential": campaign.potential, "dataset": campaign.dataset, "frame": frame}
    result = call(*(str(argument).format(**values) for argument in arguments))
    assert result.exit_code == status
    assert message in result.output
    assert "Traceback" not in result.output
