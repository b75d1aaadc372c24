"""Shards: round trips for any frames, and no damaged or hostile file does harm."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.shards import read_columns, read_shard, read_tables, shard_name, write_shard
from aiida_mlip.kernel.frames import ATOM_COLUMNS, ROW_COLUMNS, Frames, from_arrays


@st.composite
def frames(draw) -> Frames:
    natoms = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    n, a = len(natoms), sum(natoms)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    columns = {}
    if draw(st.booleans()):
        columns |= {"energy": rng.normal(size=n), "fidelity": rng.integers(-1, 1, n), "fidelities": ("Ångström",)}
    if draw(st.booleans()):
        columns["forces"] = np.where(rng.random((a, 3)) < 0.3, np.nan, rng.normal(size=(a, 3)))
    if draw(st.booleans()):
        columns |= {"region": rng.integers(0, 4, a), "parent_atom": rng.integers(-1, 9, a)}
    return from_arrays(
        natoms=np.array(natoms),
        numbers=rng.integers(1, 100, a),
        positions=rng.normal(size=(a, 3)),
        cell=rng.normal(size=(n, 3, 3)),
        pbc=rng.random((n, 3)) < 0.5,
        **columns,
    )


@given(frames())
@settings(max_examples=60, deadline=None)
def test_round_trip_and_equal_bytes(value):
    data = write_shard(value)
    again = read_shard(io.BytesIO(data))
    for name in ("natoms", *ROW_COLUMNS, *ATOM_COLUMNS, "region", "parent_atom"):
        first, second = getattr(value, name), getattr(again, name)
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(second, first)
            assert second.flags.writeable
    assert again.fidelities == value.fidelities
    assert write_shard(again) == data
    assert read_tables(io.BytesIO(data))["fidelities"] == value.fidelities
    np.testing.assert_array_equal(read_columns(io.BytesIO(data), ["energy"])["energy"], value.energy)


BASE = write_shard(
    from_arrays(natoms=np.array([2, 1]), numbers=np.array([14, 14, 1]), positions=np.arange(9.0).reshape(3, 3))
)


@given(st.integers(0, len(BASE) - 1), st.integers(1, 255), st.booleans())
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_a_changed_byte_is_an_error_or_harmless(position, change, partly):
    data = bytearray(BASE)
    data[position] ^= change
    try:
        if partly:
            result = read_columns(io.BytesIO(bytes(data)), ["frame_id", "energy"])
            assert len(result["frame_id"]) == 2
        else:
            assert len(read_shard(io.BytesIO(bytes(data)))) == 2
    except FileFormatError:
        pass
    assert shard_name(bytes(data)) != shard_name(BASE)


@given(st.integers(0, len(BASE) - 1))
@settings(max_examples=100, deadline=None)
def test_a_truncated_file_is_an_error(length):
    with pytest.raises(FileFormatError):
        read_shard(io.BytesIO(BASE[:length]))


def rewritten(**members: bytes | None) -> io.BytesIO:
    """The base shard with members replaced, or dropped where None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(BASE)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = [name for name in old.namelist() if name.split(".")[0] not in members]
        for name in names:
            new.writestr(name, old.read(name))
        for name, data in members.items():
            if data is not None:
                new.writestr("header.json" if name == "header" else f"{name}.npy", data)
    buffer.seek(0)
    return buffer


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HEADER = {"version": 1, "fidelities": [], "generators": []}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"natoms": npy(np.array([2**31 - 1, 2**31 - 1], dtype="<i4"))}, "'numbers' has 3 entries for 2 rows"),
        ({"natoms": npy(np.array([-1, 4], dtype="<i4"))}, "negative number"),
        ({"natoms": npy(np.array([1, 1, 1], dtype="<i4"))}, "entries for 3 rows"),
        ({"natoms": None}, "natoms"),
        ({"positions": None}, "positions"),
        ({"frame_id": npy(np.zeros((3, 16), dtype="u1"))}, "'frame_id' has 3 entries"),
        ({"numbers": npy(np.array(["a", "b", "c"], dtype=object))}, "Python objects"),
        ({"numbers": npy(np.zeros(3))}, "expected"),
        ({"energy": npy(np.zeros(7))}, "energy"),
        ({"surprise": npy(np.zeros(3))}, "unknown or repeated"),
        ({"header": b"[" * 100_000}, "not a readable JSON"),
        ({"header": json.dumps(HEADER | {"version": 99}).encode()}, "version"),
        ({"header": json.dumps(HEADER | {"fidelities": 3}).encode()}, "not a list of names"),
        ({"fidelity": npy(np.zeros(2, dtype="<i2"))}, "0 names"),
    ],
)
def test_hostile_members_are_refused(members, message):
    with pytest.raises(FileFormatError, match=message):
        read_shard(rewritten(**members))


def test_compressed_members_are_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(HEADER))
    with pytest.raises(FileFormatError, match="compressed"):
        read_shard(io.BytesIO(buffer.getvalue()))


def test_columns_are_read_without_the_others(monkeypatch):
    """A partial read of a shard touches the members asked for and the lengths of the rest."""
    value = from_arrays(natoms=np.array([1000]), numbers=np.full(1000, 14), positions=np.zeros((1000, 3)))
    data = write_shard(value)

    class Counting(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1) -> bytes:
            got = super().read(size)
            Counting.total += len(got)
            return got

    read_columns(Counting(data), ["frame_id"])
    assert Counting.total < len(data) / 2
