"""The index of frames says what the shards say, follows what is stored and deleted, and is made anew when damaged."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.tools import delete_nodes
from emt_frames import emt_frames

from aiida_mlip.data.audit_findings import findings
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.frame_index import FrameIndex, index_path
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import id_bytes

pytestmark = pytest.mark.usefixtures("aiida_profile")
SETTINGS = {"emt": "a" * 64}


@pytest.fixture
def index(tmp_path):
    """An index in a file of its own."""
    with FrameIndex.open(tmp_path / "frames.sqlite") as opened:
        opened.refresh()
        yield opened


def stored(n: int, seed: int, **columns: np.ndarray) -> DatasetData:
    return DatasetData.from_frames(emt_frames(n, seed=seed).with_columns(**columns), settings=SETTINGS).store()


def test_new_datasets_are_taken_in_and_deleted_ones_forgotten(index):
    first, second = stored(3, 101), stored(2, 102)
    assert index.refresh() == 2
    assert index.refresh() == 0
    merged = DatasetData.merge([first, second]).store()
    assert index.refresh() == 1
    frame_id = second.frame_ids()[1]
    assert index.datasets_with(index.rows(frame_id)) == {second.pk: [1], merged.pk: [4]}
    assert index.row_of(merged.pk, 4).frame_id == frame_id
    delete_nodes([second.pk], dry_run=False)
    assert index.refresh() == 0
    assert index.datasets_with(index.rows(frame_id)) == {merged.pk: [4]}


def test_prefixes(index):
    node = stored(3, 103)
    index.refresh()
    frame_id = node.frame_ids()[0]
    for digits in (8, 9, 31, 32):  # odd ones, too
        assert index.find_one(frame_id[:digits].upper()) == frame_id
    everything = {index.row_of(node.pk, row).frame_id for row in range(3)}
    assert everything == set(node.frame_ids())
    for wrong in ("abc", "g" * 8, "a" * 33, ""):
        with pytest.raises(InvalidInputError, match="hexadecimal digits"):
            index.find(wrong)


def test_two_frames_of_one_prefix_are_ambiguous(index):
    ids = np.zeros((2, 16), dtype=np.uint8)
    ids[:, 0], ids[:, 15] = 7, (1, 2)
    stored(2, 104, frame_id=ids)
    index.refresh()
    with pytest.raises(InvalidInputError, match=r"'070000' is ambiguous"):
        index.find_one("070000")
    assert index.find_one("07" + "00" * 14 + "02") == "07" + "00" * 14 + "02"


def test_a_damaged_index_is_made_anew(tmp_path):
    path = tmp_path / "frames.sqlite"
    node = stored(2, 105)
    for content in (b"no database at all" * 100, b""):
        path.write_bytes(content)
        with FrameIndex.open(path) as index:
            assert index.refresh() > 0
            assert index.datasets_with(index.rows(node.frame_ids()[0])) == {node.pk: [0]}


def test_where_nothing_can_be_written_it_is_in_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    stored(2, 107)
    with FrameIndex.open(tmp_path / "file" / "frames.sqlite") as index:
        assert index.refresh() > 0


def test_it_lies_beside_the_configuration_of_aiida(aiida_profile):
    assert index_path().name == f"{aiida_profile.uuid}.frames.sqlite"


def failed_job(process_type: str, **inputs: orm.Data) -> orm.CalcJobNode:
    """A job that ended badly, with its inputs."""
    node = orm.CalcJobNode(process_type=process_type)
    node.set_process_state("finished")
    node.set_exit_status(410)
    node.set_exit_message("The electronic minimization cycle did not reach self-consistency.")
    for name, value in inputs.items():
        node.base.links.add_incoming(value.store(), LinkType.INPUT_CALC, name)
    return node.store()


def test_a_label_in_use_whose_calculation_failed(index):
    job = failed_job("aiida.calculations:quantumespresso.pw")
    labels = np.repeat(id_bytes([job.uuid]), 2, axis=0)
    labels[1] = 0
    node = stored(2, 106, label_uuid=labels)
    index.refresh()
    (finding,) = findings(node, index=index)
    assert (finding.kind, finding.pk, finding.serious) == ("unconverged_label", job.pk, True)
    assert "did not reach self-consistency" in finding.message


@pytest.mark.parametrize(("settings", "found"), [({"max_epochs": 2}, ["missing_seed"]), ({"seed": 0}, [])])
def test_a_training_without_seed(index, settings, found):
    job = failed_job("aiida.calculations:aiida_mlip.nequip_train", settings=orm.Dict(settings))
    assert [finding.kind for finding in findings(job, index=index)] == found


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({}, []),  # as an allocation submits it: no grades, nothing is drawn
        ({"settings": {"device": "cpu"}}, []),
        ({"settings": {"fit_grades": False}}, []),
        ({"settings": {"fit_grades": True}}, ["missing_seed"]),
        ({"settings": {"fit_grades": True, "seed": 0}}, []),
    ],
)
def test_an_evaluation_needs_a_seed_only_where_it_fits_grades(index, inputs, found):
    given = {name: orm.Dict(value) for name, value in inputs.items()}
    job = failed_job("aiida.calculations:aiida_mlip.evaluate", **given)
    assert [finding.kind for finding in findings(job, index=index)] == found
