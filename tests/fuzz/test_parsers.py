"""Every parser answers damaged files of a job with an exit code and outputs that can be stored; it never raises."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from aiida import orm
from fuzz_parsers import JOBS, Job, check, node_of, parse, run, seeds_of
from fuzz_readers import frames, watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiida_mlip.io.shards import write_shard

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on nonsense

BY_NAME = {job.entry_point: job for job in JOBS}
each = pytest.mark.parametrize("name", BY_NAME)


@pytest.fixture
def node(name: str, localhost) -> orm.CalcJobNode:
    """The stored job of a parser, one for all its tests."""
    found = orm.QueryBuilder().append(orm.CalcJobNode, filters={"label": f"fuzz {name}"}).first()
    if found is not None:
        return found[0]
    made = node_of(BY_NAME[name], localhost)
    made.label = f"fuzz {name}"
    return made


@each
def test_good_files_give_all_outputs(name: str, node, tmp_path: Path) -> None:
    job = BY_NAME[name]
    outputs, code = parse(job, node, seeds_of(job), tmp_path)
    status = check(job, node, outputs, code)
    assert status == {"aiida_mlip.evaluate": 410, "aiida_mlip.nequip_train": 0}.get(name, 0), code
    assert outputs


@each
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=12, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_give_an_exit_code(name: str, node, tmp_path: Path, rng: random.Random) -> None:
    with watched():
        run(BY_NAME[name], node, rng, tmp_path / "temporary")


def changed(**columns) -> bytes:
    """Shard of the frames of the label job, with columns replaced."""
    return write_shard(frames().with_columns(**columns))


@pytest.mark.parametrize("name", ["aiida_mlip.ase_label"])
def test_a_job_cannot_forge_where_frames_come_from(name: str, node, tmp_path: Path) -> None:
    job: Job = BY_NAME[name]
    forged = frames().with_columns(
        geometry_uuid=frames().label_uuid, parent_id=frames().frame_id[::-1].copy(), fidelities=("ccsd(t)",)
    )
    outputs, code = parse(job, node, {**seeds_of(job), "labels.npz": write_shard(forged)}, tmp_path)
    rows = outputs["dataset"].frames()
    assert code is None
    assert (rows.energy == frames().energy).all()
    assert rows.fidelities == ("pbe",)
    assert not rows.geometry_uuid.any()
    assert (rows.parent_id == frames().parent_id).all()


@pytest.mark.parametrize("name", ["aiida_mlip.ase_label"])
def test_labels_of_other_geometries_under_the_same_ids_are_refused(name: str, node, tmp_path: Path) -> None:
    job = BY_NAME[name]
    other = changed(positions=frames().positions + 0.1, frame_id=frames().frame_id)
    outputs, code = parse(job, node, {**seeds_of(job), "labels.npz": other}, tmp_path)
    assert code.status == 301
    assert "the frame id is not that of the geometry" in code.message
    assert (outputs["dataset"].frames().failure > 0).all()


@pytest.mark.parametrize("name", ["aiida_mlip.metadynamics"])
def test_links_in_a_retrieved_folder_are_not_followed(name: str, node, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    folder = tmp_path / "temporary"
    (folder / "bias").mkdir(parents=True)
    (folder / "bias" / "hills.npz").symlink_to(secret)
    job = BY_NAME[name]
    given_files = {name: data for name, data in seeds_of(job).items() if not name.startswith("bias")}
    outputs, code = parse(job, node, given_files, folder)
    assert code.status == 301
    assert "'hills.npz' is no plain file" in code.message
    assert "bias" not in outputs


@pytest.mark.parametrize("name", ["aiida_mlip.pw_bundle"])
@pytest.mark.parametrize(("folder", "status"), [("results.tar", 300), ("begun", 0)])
def test_a_folder_in_place_of_a_file_is_no_file(name: str, folder: str, status: int, node, tmp_path: Path) -> None:
    job = BY_NAME[name]
    outputs, code = parse(job, node, {**seeds_of(job), folder: None}, tmp_path)
    assert check(job, node, outputs, code) == status
    assert set(outputs) == {"dataset", "report"}
