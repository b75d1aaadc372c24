"""DatasetData: round trips, slices, laziness, merging, and files that were changed."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from aiida.common.exceptions import ValidationError

from aiida_mlip.data import dataset as module
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.shards import shard_name, write_shard
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, from_arrays

pytestmark = pytest.mark.usefixtures("aiida_profile")


def random_frames(n: int, seed: int, *, natoms: int = 4, fidelity: str | None = "lda") -> Frames:
    rng = np.random.default_rng(seed)
    labels = {}
    if fidelity:
        labels = {
            "energy": rng.normal(size=n),
            "forces": rng.normal(size=(n * natoms, 3)),
            "fidelity": np.zeros(n),
            "fidelities": (fidelity,),
        }
    return from_arrays(
        natoms=np.full(n, natoms),
        numbers=rng.choice([14, 32], n * natoms),
        positions=rng.random((n * natoms, 3)) * 5,
        cell=np.tile(5 * np.eye(3), (n, 1, 1)),
        pbc=np.ones((n, 3), dtype=bool),
        **labels,
    )


def failed(frames: Frames) -> Frames:
    n, a = len(frames), frames.n_atoms
    return frames.with_columns(
        energy=np.full(n, np.nan), forces=np.full((a, 3), np.nan), failure=np.full(n, Failure.WALLTIME, dtype=np.uint8)
    )


def bare(frames: Frames) -> Frames:
    return from_arrays(
        natoms=frames.natoms, numbers=frames.numbers, positions=frames.positions, cell=frames.cell, pbc=frames.pbc
    )


def same(a: Frames, b: Frames) -> bool:
    names = ("natoms", "numbers", "positions", "cell", "energy", "forces", "frame_id", "failure", "parent_id")
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=getattr(a, n).dtype.kind == "f") for n in names)


def repository_bytes(node: DatasetData) -> int:
    return sum(shard["bytes"] for shard in node.base.attributes.get("shards"))


def test_round_trip_through_the_profile(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 7)
    frames = random_frames(20, seed=0)
    node = orm.load_node(DatasetData.from_frames(frames, settings={"lda": "abc"}).store().pk)
    assert len(node) == 20
    assert len(node.shard_names) == 3
    assert same(node.frames(), frames)
    assert node.settings == {"lda": "abc"}
    assert node.frame_ids() == frames.ids()
    np.testing.assert_array_equal(node.column("energy"), frames.energy)
    assert set(node.column("fidelity")) == {"lda"}
    for index in (slice(5, 16), slice(None, None, -3), slice(18, 40), 3, -1):
        rows = np.arange(20)[index if isinstance(index, slice) else [index]]
        assert same(node[index], frames.take(rows)), index
    assert [len(part) for part in node] == [1] * 20
    assert [len(atoms) for atoms in node.to_ase(slice(2, 5))] == [4, 4, 4]
    with pytest.raises(IndexError, match="no row 20"):
        node[20]


def test_opening_reads_no_array_and_a_slice_only_its_shard(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 5)
    node = DatasetData.from_frames(random_frames(20, seed=1)).store()
    loaded, read = orm.load_node(node.pk), []
    original = DatasetData._read
    monkeypatch.setattr(DatasetData, "_read", lambda self, name: read.append(name) or original(self, name))
    assert (len(loaded), loaded.species, loaded.fidelities) == (20, ["Si", "Ge"], ["lda"])
    assert read == []
    assert len(loaded[6:9]) == 3
    assert read == [loaded.shard_names[1]]


def test_equal_frames_are_equal_bytes_and_are_kept_once():
    frames = random_frames(10, seed=2)
    assert write_shard(frames) == write_shard(frames.take(np.arange(10)))
    first, second = (DatasetData.from_frames(frames).store() for _ in range(2))
    hashes = [node.base.repository.hash() for node in (first, second)]
    assert hashes[0] == hashes[1]
    # the object store is addressed by content: the second node's file is the first's
    with first.base.repository.open(f"shards/{first.shard_names[0]}", "rb") as a:
        assert shard_name(a.read()) == second.shard_names[0]


def test_a_merge_round_costs_the_new_frames_only():
    base = DatasetData.from_frames(random_frames(1000, seed=3)).store()
    new = DatasetData.from_frames(random_frames(10, seed=4)).store()
    merged = DatasetData.merge([base, new]).store()
    assert merged.shard_names == base.shard_names + new.shard_names
    assert repository_bytes(merged) == repository_bytes(base) + repository_bytes(new)
    assert same(merged.frames(), concatenate([base.frames(), new.frames()]))
    again = DatasetData.merge([merged, new, base])
    assert again.shard_names == merged.shard_names


def test_merge_keeps_the_first_of_several_labels():
    frames = random_frames(6, seed=5)
    other = frames.take([1, 4]).with_columns(energy=np.array([7.0, 8.0]))
    merged = DatasetData.merge([DatasetData.from_frames(part) for part in (frames, other)])
    assert same(merged.frames(), frames)


@pytest.mark.parametrize("absence", [failed, bare])
@pytest.mark.parametrize("label_first", [True, False])
def test_a_label_supersedes_its_absence_wherever_it_stands(absence, label_first):
    frames = random_frames(5, seed=6)
    without, labelled = absence(frames), frames.take([1, 3])
    parts = [labelled, without] if label_first else [without, labelled]
    merged = DatasetData.merge([DatasetData.from_frames(part) for part in parts]).frames()
    assert sorted(merged.ids()) == sorted(frames.ids())
    assert set(merged.take(merged.labelled).ids()) == set(labelled.ids())


def test_a_failed_row_supersedes_a_bare_one_but_not_a_label_at_another_fidelity():
    frames = random_frames(3, seed=7)
    merged = DatasetData.merge([DatasetData.from_frames(bare(frames)), DatasetData.from_frames(failed(frames))])
    assert merged.base.attributes.get("failures") == {"walltime": 3}
    assert len(merged) == 3
    pbe = frames.with_columns(fidelities=("pbe",))
    both = DatasetData.merge([DatasetData.from_frames(failed(frames)), DatasetData.from_frames(pbe)])
    assert len(both) == 6  # failed at lda stays a record although pbe is there


def test_forces_without_an_energy_are_a_label():
    frames = random_frames(2, seed=8)
    cluster = frames.with_columns(energy=np.full(2, np.nan))
    merged = DatasetData.merge([DatasetData.from_frames(part) for part in (cluster, failed(frames))])
    assert same(merged.frames(), cluster)


def test_merge_refuses_two_settings_under_one_name():
    a = DatasetData.from_frames(random_frames(2, seed=9), settings={"lda": "a" * 64})
    b = DatasetData.from_frames(random_frames(2, seed=10), settings={"lda": "b" * 64})
    with pytest.raises(InvalidInputError, match="'lda' was computed with two different settings"):
        DatasetData.merge([a, b])


def test_empty_datasets_are_refused():
    with pytest.raises(InvalidInputError, match="empty dataset"):
        DatasetData.from_frames(random_frames(2, seed=11).take([]))
    with pytest.raises(InvalidInputError, match="nothing to merge"):
        DatasetData.merge([])
    with pytest.raises(ValidationError, match="at least one frame"):
        DatasetData().store()


def test_a_changed_shard_is_noticed():
    node = DatasetData.from_frames(random_frames(3, seed=12))
    name = node.shard_names[0]
    other = write_shard(random_frames(3, seed=13))
    node.base.repository.delete_object(f"shards/{name}")
    import io

    node.base.repository.put_object_from_filelike(io.BytesIO(other), f"shards/{name}")
    with pytest.raises(FileFormatError, match="does not match its content hash"):
        node.frames()


def test_filter_takes_rows_by_column():
    frames = concatenate(
        [random_frames(4, seed=14), failed(random_frames(2, seed=15)), bare(random_frames(3, seed=16))]
    )
    node = DatasetData.from_frames(frames)
    assert len(node.filter(fidelity="lda")) == 6
    assert len(node.filter(fidelity="lda", labelled=True)) == 4
    assert len(node.filter(labelled=False)) == 5
    assert len(node.filter(fidelity="pbe")) == 0


@pytest.mark.parametrize("sizes", [[3, 4, 5], [12], [1] * 12, [7, 5], [5, 0, 7]])
def test_blocks_of_any_size_give_the_same_node(monkeypatch, sizes):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 5)
    frames = random_frames(12, 0)
    starts = np.cumsum([0, *sizes])
    blocks = (frames.take(np.arange(start, start + size)) for start, size in zip(starts, sizes, strict=False))
    node = DatasetData.from_blocks(blocks)
    assert node.shard_names == DatasetData.from_frames(frames).shard_names
    assert same(node.frames(), frames)
    with pytest.raises(InvalidInputError, match="no frames"):
        DatasetData.from_blocks(iter(()))
