"""Lineage and taint of a campaign that was run: what they say is what the nodes and the frames themselves say."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.repository import Repository
from aiida.tools.graph.graph_traversers import traverse_graph
from traced_campaign import traced_campaign

from aiida_mlip.calculations.functions.dataset import merge_datasets
from aiida_mlip.data.audit_findings import findings
from aiida_mlip.data.frame_index import FrameIndex
from aiida_mlip.data.graph import CALLS, DATA_FLOW, Wanted, called_by, reach_in_memory, walk
from aiida_mlip.data.identify import FrameName, identify
from aiida_mlip.data.lineage import frame_lineage, lineage
from aiida_mlip.data.taint import taint, taint_frame
from aiida_mlip.errors import InvalidInputError

pytestmark = [pytest.mark.nequip]
load = orm.load_node


@pytest.fixture
def campaign(localhost, label_code, train_code, evaluate_code):
    return traced_campaign(localhost, label_code, train_code, evaluate_code)


@pytest.fixture
def index(campaign):
    with FrameIndex.open() as opened:
        opened.refresh()
        yield opened


def uuids(nodes):
    return {each.node.uuid for each in nodes}


def parts_of(campaign):
    """Part of each row of the dataset in the training, from the node of the split itself."""
    return load(campaign.training).inputs.split.get_array("member_0")


def test_every_atom_of_every_fragment_leads_to_the_simulation_the_label_and_the_potential(campaign, index):
    labelled, simulated = load(campaign.labelled).frames(), load(campaign.simulated).frames()
    by_id = dict(zip(simulated.ids(), range(len(simulated)), strict=True))
    rows = load(campaign.dataset).frame_ids()
    assert len(labelled) >= 2
    for number, frame_id in enumerate(labelled.ids()):
        part = labelled.atom_slice(number)
        for atom in range(labelled.natoms[number]):
            found = frame_lineage(frame_id, atom=atom, index=index)
            assert found.atom.symbol == "Cu"
            assert found.atom.region == ("core", "trust", "buffer", "cap")[labelled.region[part][atom]]
            assert found.atom.parent_atom == labelled.parent_atom[part][atom]
        # the atom of the parent is where the fragment says: the same distance from the centre
        parent = simulated.to_ase(by_id[found.parent.frame_id])
        centre, last = labelled.parent_atom[part][0], found.atom.parent_atom
        positions = labelled.positions[part]
        near = np.flatnonzero(labelled.region[part] == 0)
        assert np.linalg.norm(positions[near[-1]] - positions[0]) == pytest.approx(
            parent.get_distance(centre, labelled.parent_atom[part][near[-1]], mic=True)
        )
        assert 0 <= last < len(parent)
        assert found.parent.made_by.uuid == found.origin.simulation.uuid == campaign.simulation
        (label,) = found.labels
        assert (label.fidelity, label.failure) == ("emt", "")
        calculation = load(label.calculation.uuid)
        assert calculation.uuid == campaign.label
        assert label.calculation.pk == calculation.pk
        assert calculation.outputs.dataset.frame_ids()[label.row] == frame_id
        (training,) = found.potentials
        assert training.potential.uuid == campaign.potential
        assert training.training.uuid == campaign.training
        assert (training.dataset.uuid, rows[training.row]) == (campaign.dataset, frame_id)
        assert training.part == ("train", "val", "test")[parts_of(campaign)[training.row]]


def test_no_file_is_opened(campaign, index, monkeypatch):
    """Once the index knows a dataset and a split, neither lineage nor taint needs a file of the repository."""
    frame_id = load(campaign.labelled).frame_ids()[0]
    expected = frame_lineage(frame_id, atom=2, index=index), taint_frame(frame_id, index=index)

    def refuse(*arguments, **keywords):
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Repository, "open", refuse)
    monkeypatch.setattr(Repository, "get_object_content", refuse)
    with FrameIndex.open() as again:
        assert again.refresh() == 0
        assert (frame_lineage(frame_id, atom=2, index=again), taint_frame(frame_id, index=again)) == expected
        assert lineage(load(campaign.potential)).rests_on["label"] == 1
        assert taint(load(campaign.label), index=again).potentials


def test_a_frame_of_the_simulation(campaign, index):
    simulated = load(campaign.simulated)
    found = frame_lineage(simulated.frame_ids()[0][:12], atom=10, index=index)
    assert found.origin.made_by.uuid == found.origin.simulation.uuid == campaign.simulation
    assert found.atom.parent_atom is None, "the dynamics does not say which atom of its structure it was"
    assert found.labels == found.potentials == ()
    parents = load(campaign.fragments).frames().parent_id
    assert found.n_children == sum(parent.tobytes().hex() == found.frame_id for parent in parents) > 0
    assert found.parent.made_by is None, "the structure was given by a person"


def test_the_index_says_what_the_datasets_say(campaign, index):
    for uuid in (campaign.simulated, campaign.fragments, campaign.dataset):
        node = load(uuid)
        frames = node.frames()
        for number, frame_id in enumerate(frames.ids()):
            row = index.row_of(node.pk, number)
            assert row.frame_id == frame_id
            assert row.natoms == frames.natoms[number]
            assert row.labelled == frames.labelled[number]
            assert number in index.datasets_with([row])[node.pk]
            assert (row.label_uuid is not None) == frames.label_uuid[number].any()


def test_walks_agree_with_aiida(campaign):
    everything = Wanted(types=("",))
    forward = {"links_forward": list(DATA_FLOW)}
    for start, direction, rules in (
        (campaign.simulation, "forward", forward),
        (campaign.potential, "backward", {"links_backward": list(DATA_FLOW)}),
        (campaign.train, "backward", {"links_backward": [*DATA_FLOW, LinkType.INPUT_WORK]}),
    ):
        pk = load(start).pk
        links = next(iter(rules.values()))
        reach = walk([pk], links, direction=direction, wanted=everything)
        assert {node.pk for node in reach.nodes} == set(traverse_graph([pk], **rules)["nodes"])
        assert reach.n_nodes == len(reach.nodes)


def test_a_walk_in_memory_reaches_the_same(campaign, index, monkeypatch):
    """From one node and from many; taint says the same whichever way it walks."""
    wanted = Wanted(types=("data.aiida_mlip", "process."), returned=("data.core.dict.",))
    called = [pk for pk, _, _ in called_by(load(campaign.train).pk)]
    assert set(called) == set(traverse_graph(called[:1], links_forward=list(CALLS))["nodes"])
    for starts in ([load(campaign.simulation).pk], called, []):
        reach = walk(starts, DATA_FLOW, direction="forward", wanted=wanted)
        reached, nodes = reach_in_memory(starts, DATA_FLOW, wanted=wanted)
        assert nodes == reach.nodes
        assert len(reached) == reach.n_nodes
        assert {node.pk for node in nodes} <= set(reached.tolist())
    for uuid in (campaign.simulation, campaign.train, campaign.label):
        expected = taint(load(uuid), index=index)
        with monkeypatch.context() as patch:
            patch.setattr("aiida_mlip.data.graph.FEW", 0)
            patch.setattr("aiida_mlip.data.graph._LINKS_PER_START", 10**9)
            patch.setattr("aiida_mlip.data.taint.walk", None)
            assert taint(load(uuid), index=index) == expected
        assert expected.n_nodes > 0


def test_what_made_a_potential_and_what_it_made(campaign):
    found = lineage(load(campaign.potential))
    assert [each.kind for each in found.made_by] == ["judge_potential", "aiida_mlip.train"]
    assert campaign.second in {each.uuid for each in found.used_by}
    assert found.rests_on["label"] == 1
    assert found.rests_on["simulation"] == 1
    assert found.rests_on["dataset"] >= 5
    assert found.led_to["simulation"] == 1
    assert found.details["species"] == ["Cu"]
    train = lineage(load(campaign.train))
    assert train.made_by == ()
    assert {"dataset", "settings"} <= {each.name for each in train.inputs}
    assert campaign.potential in {each.uuid for each in train.made}
    dataset = lineage(load(campaign.dataset))
    assert campaign.training in {each.uuid for each in dataset.used_by}
    assert campaign.fresh in {each.uuid for each in dataset.made}


def test_taint_of_one_label(campaign, index):
    """It holds for each row what its part in the training says."""
    labelled, dataset = load(campaign.labelled), load(campaign.dataset)
    rows = dataset.frame_ids()
    seen = set()
    for frame_id in labelled.frame_ids():
        (label,) = frame_lineage(frame_id, index=index).labels
        found = taint(load(campaign.label), row=label.row, index=index)
        assert found == type(found)(**{**vars(found), "n_rows": 1})
        how = {each.node.uuid: each.how for each in found.datasets}
        assert how[campaign.labelled] == how[campaign.dataset] == "holds"
        assert campaign.simulated not in how
        assert campaign.fragments not in how, "they were cut before the label was"
        part = parts_of(campaign)[rows.index(frame_id)]
        expected = "held out" if part == 2 else "trained"
        seen.add(expected)
        assert {each.node.uuid: each.how for each in found.potentials} == {
            campaign.fresh: expected,
            campaign.potential: expected,
        }
        assert uuids(found.simulations) == {campaign.second}
        assert any(each.node.name.startswith("errors of aiida_mlip.train") for each in found.properties)
        same = taint_frame(frame_id, fidelity="emt", index=index)
        assert (same.datasets, same.potentials) == (found.datasets, found.potentials)
    assert "trained" in seen


def test_taint_of_a_simulation_reaches_what_was_cut_out_of_it(campaign, index):
    found = taint(load(campaign.simulation), index=index)
    assert {campaign.simulated, campaign.fragments, campaign.dataset} <= uuids(found.datasets)
    assert {campaign.fresh, campaign.potential} == uuids(found.potentials)
    assert uuids(found.simulations) == {campaign.second}
    assert found.labels == 1
    frame = taint_frame(load(campaign.simulated).frame_ids()[0], index=index)
    assert campaign.potential in uuids(frame.potentials)
    nothing = taint(load(campaign.second), index=index)
    assert nothing.potentials == nothing.simulations == ()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c, i: frame_lineage("zz12", index=i), "hexadecimal"),
        (lambda c, i: frame_lineage("f" * 32, index=i), "no dataset of this profile holds a frame"),
        (lambda c, i: frame_lineage(load(c.labelled).frame_ids()[0], atom=10**6, index=i), "has atoms 0 to"),
        (lambda c, i: taint(load(c.potential), row=0, index=i), "has no rows"),
        (lambda c, i: taint(load(c.label), row=10**6, index=i), "no dataset holds a label of this row"),
        (lambda c, i: taint_frame(load(c.labelled).frame_ids()[0], fidelity="pbe", index=i), "has labels at emt"),
        (lambda c, i: taint_frame(load(c.simulated).frame_ids()[0], fidelity="pbe", index=i), "it has no labels"),
        (lambda c, i: i.row_of(load(c.dataset).pk, 10**6), "has no row 1000000"),
        (lambda c, i: identify("987654321", i), "no pk, uuid or label"),
        (lambda c, i: identify("no such thing", i), "no pk, uuid or label"),
    ],
)
def test_wrong_questions_are_answered_with_what_is_wrong(campaign, index, ask, message):
    with pytest.raises(InvalidInputError, match=message):
        ask(campaign, index)


def test_identification(campaign, index):
    potential = load(campaign.potential)
    for text in (str(potential.pk), potential.uuid, potential.uuid[:13], potential.uuid.replace("-", "")[:20]):
        assert identify(text, index).uuid == potential.uuid
    frame_id = load(campaign.labelled).frame_ids()[0]
    assert identify(frame_id[:10], index) == FrameName(frame_id)
    assert identify(f"emt:{frame_id[:10]}", index) == FrameName(frame_id, "emt")
    named = orm.Int(3, label="a name nobody else has").store()
    assert identify(named.label, index).uuid == named.uuid
    twin = orm.Int(4, label=named.label).store()
    with pytest.raises(InvalidInputError, match=rf"ambiguous.*<{twin.pk}>"):
        identify(named.label, index)


def test_findings_of_a_training(campaign, index):
    """One member has no calibration; a dataset that grew makes the judgement old; everything has a seed."""
    potential = load(campaign.potential)
    assert [finding.kind for finding in findings(potential, index=index)] == ["not_calibrated"]
    from emt_frames import emt_frames

    from aiida_mlip.data.dataset import DatasetData

    dataset = load(campaign.dataset)
    more = DatasetData.from_frames(emt_frames(2, seed=5), settings=dataset.settings)
    merged, _ = merge_datasets.run_get_node(a=dataset, b=more)
    grown = merged["dataset"]
    index.refresh()
    found = {finding.kind: finding for finding in findings(load(campaign.train), index=index)}
    assert set(found) == {"not_calibrated", "calibration_out_of_date"}
    assert f"has grown to DatasetData<{grown.pk}>" in found["calibration_out_of_date"].message
    assert not any(finding.serious for finding in found.values())
