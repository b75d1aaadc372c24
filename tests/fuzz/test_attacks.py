"""Attacks by name: each is refused with its reason, and before it costs memory or time."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz_mutations import gzipped
from fuzz_readers import frames, packages, shards, watched

from aiida_mlip.errors import FileFormatError, FrameError
from aiida_mlip.io import documents
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.ase_files import read_images
from aiida_mlip.io.documents import brief, clipped_lines, parse_json, parse_yaml
from aiida_mlip.io.extxyz import parse_comment, read_extxyz
from aiida_mlip.io.large_frames import read_large_frame
from aiida_mlip.io.model_package import read_package
from aiida_mlip.io.pw_bundle import begun_frames, index_of
from aiida_mlip.io.pw_xml import read_scf_xml
from aiida_mlip.io.readers import read_path
from aiida_mlip.io.shards import read_foreign_shard, write_shard


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as made:
        warnings.simplefilter("ignore")
        for name, data in members:
            made.writestr(name, data)
    return buffer.getvalue()


def npy(value: np.ndarray, *, pickles: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=pickles)
    return buffer.getvalue()


def header(text: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive([("a.npy", npy(np.zeros(10**6)))], zipfile.ZIP_DEFLATED), "more bytes than the file"),
        (archive([("a.npy", npy(np.zeros(1))), ("a.npy", npy(np.ones(1)))]), "appears twice"),
        (archive([("a.npy", npy(np.arange(9))), ("b", b"x")], zipfile.ZIP_BZIP2), "is compressed|is no array"),
        (archive([("../a.npy", npy(np.zeros(1)))]), "is no array"),
        (archive([("/etc/a.npy", npy(np.zeros(1)))]), "is no array"),
        (archive([("a.npy", npy(np.array([{}]), pickles=True))]), "only numbers and text"),
        (archive([("a.npy", npy(np.zeros(2, dtype=[("x", "f8")])))]), "only numbers and text"),
        (archive([("a.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,)}"))]), "not fit"),
        (archive([("a.npy", header("{'descr': '|V0', 'fortran_order': False, 'shape': (10000000000,)}"))]), "holds"),
        (archive([("a.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", bytes(8)))]), "negat"),
        (archive([("a.npy", header("(" * 3000))]), "not a readable archive"),
        (archive([("a.npy", npy(np.array(["a"])).replace(b"a\0\0\0", b"\0\0\xff\x7f"))]), "do not exist"),
    ],
)  # fmt: skip
def test_archives_of_arrays(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "series.npz"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_npz(path)
    assert "series.npz" in str(caught.value)


def test_archives_whose_members_lie_over_one_another(tmp_path: Path) -> None:
    """Many names for the same bytes: a bomb without compression."""
    data = bytearray(write_npz({"a": np.zeros(1000), "b": np.zeros(1000)}))
    second = data.rfind(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<I", 0)  # b's local header is a's
    path = tmp_path / "x.npz"
    path.write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match=r"x\.npz"):
        read_npz(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"numbers": np.array([0, 14, 14, 8, 8], dtype="|u1")}, "atomic numbers"),
        ({"numbers": np.array([200, 14, 14, 8, 8], dtype="|u1")}, "atomic numbers"),
        ({"positions": np.full((5, 3), np.nan)}, "positions that are not finite"),
        ({"energy": np.full(3, np.inf)}, "infinite labels"),
        ({"failure": np.full(3, 99, dtype="|u1")}, "failures that do not exist"),
        ({"fidelity": np.full(3, -1, dtype="<i2")}, "without a level of theory"),
        ({"fidelities": ("pbe", "pbe")}, "names that repeat"),
        ({"frame_id": np.zeros((3, 16), dtype="|u1")}, "frame 0: the frame id is not that of the geometry"),
    ],
)
def test_frames_that_cannot_be(columns: dict, message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        read_foreign_shard(io.BytesIO(write_shard(frames().with_columns(**columns))), source="labels.npz")
    assert "labels.npz" in str(caught.value)


def test_truth_values_that_are_neither() -> None:
    data = shards()[0]
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    members = [(name, body[:-1] + b"\x07" if name == "pbc.npy" else body) for name, body in members]
    with pytest.raises(FileFormatError, match="periodicities"):
        read_foreign_shard(io.BytesIO(archive(members)), source="x")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def test_aliases_that_multiply() -> None:
    with watched(), pytest.raises(FileFormatError, match=r"job\.yaml: more than 200000 values"):
        parse_yaml(BOMB, source="job.yaml")
    with zipfile.ZipFile(io.BytesIO(packages()[0])) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    types = BOMB + "atom_types: {0: *l, 1: Si}\nversions: {nequip: *l}\n"
    bomb = archive([(name, types.encode() if "metadata" in name else body) for name, body in members])
    with watched(), pytest.raises(FileFormatError, match="no atom types"):
        read_package(io.BytesIO(bomb), source="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not a readable JSON"),
        ("[" * 70 + "]" * 70, "nested deeper"),
        ("9" * 5000, "not a readable JSON"),
        ("9" * 40, "more than 64"),
        ("NaN", "not finite"),
        ("1e999", "not finite"),
        (b"\xff", "not a readable JSON"),
    ],
)
def test_documents(text: str | bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        parse_json(text, source="x.json")


def test_texts_that_databases_do_not_hold_are_mended() -> None:
    assert parse_json('{"a\\u0000": "\\ud800 b"}', source="x") == {
        "a\N{REPLACEMENT CHARACTER}": "\N{REPLACEMENT CHARACTER} b"
    }
    assert len(brief("x" * 10**6)) == 500
    assert clipped_lines("a\n" + "b" * 5000, 10) == "a\nbbbbbbbbbb"


def test_long_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 10)
    monkeypatch.setattr(documents, "MAX_YAML_BYTES", 10)
    for parse in (parse_json, parse_yaml):
        with pytest.raises(FileFormatError, match="11 bytes, more than 10"):
            parse("[1,2,3,4,5]", source="x")


@pytest.mark.parametrize("piece", ["a={ ", "a=[ ", 'x="\\" ', "a='b ", "  ", "=", '"'])
def test_comments_are_read_in_linear_time(piece: str) -> None:
    with watched():
        parse_comment(piece * (2_000_000 // len(piece)))


def test_numbers_of_atoms_that_nobody_has(tmp_path: Path) -> None:
    for count in ("9" * 5000, str(10**18), "²"):
        with pytest.raises(FileFormatError, match="number of atoms"):
            read_extxyz(io.StringIO(f"{count}\nx\nCu 0 0 0\n"))
        (tmp_path / "x.xyz").write_text(f"{count}\nx\nCu 0 0 0\n")
        with pytest.raises(FileFormatError, match="number of atoms"):
            read_large_frame(tmp_path / "x.xyz")
    (tmp_path / "x.dump").write_text(
        "ITEM: NUMBER OF ATOMS\n2000000000\nITEM: BOX BOUNDS pp pp pp\n0 1\n0 1\n0 1\n"
        "ITEM: ATOMS element x y z\nCu 0 0 0\n"
    )
    with pytest.raises(FileFormatError, match="1 of 2000000000 rows"):
        read_large_frame(tmp_path / "x.dump", frame=0)


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_positions_and_labels_that_are_not_finite(bad: str) -> None:
    with pytest.raises(FrameError, match="not finite"):
        read_extxyz(io.StringIO(f"1\nProperties=species:S:1:pos:R:3\nCu 0 {bad} 0\n"))
    if bad == "inf":
        with pytest.raises(FrameError, match="infinite"):
            read_extxyz(io.StringIO("1\nProperties=species:S:1:pos:R:3 energy=inf\nCu 0 0 0\n"), fidelity="x")


def test_packed_files_that_inflate_without_end(tmp_path: Path) -> None:
    text = b"1\nx\nCu 0 0 0\n" * 1_000_000
    for name in ("x.xyz.gz", "x.cif.gz"):
        (tmp_path / name).write_bytes(gzipped(text))
    with pytest.raises(FileFormatError, match="inflates to more than 100 times"):
        read_large_frame(tmp_path / "x.xyz.gz")
    with pytest.raises(FileFormatError, match="inflates to more than"):
        read_path(tmp_path / "x.cif.gz", fidelity=None)


def test_formats_of_ase_that_are_no_files_of_frames(tmp_path: Path) -> None:
    for name in ("x.json", "x.db"):
        (tmp_path / name).write_text('{"__ndarray__": [[100000000000], "int8", 1]}')
        with pytest.raises(FileFormatError, match="is not read"):
            read_images(tmp_path / name)


def test_a_file_is_read_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a@0.xsf", "mysql.xsf", "-.xsf", "$(touch canary).xsf"):
        frames().to_ase(0).write("good.xsf")
        Path("good.xsf").rename(name)
        assert len(read_images(Path(name))) == 1
    assert not Path("canary").exists()


def test_a_line_that_asks_for_all_memory(tmp_path: Path) -> None:
    (tmp_path / "POSCAR").write_text("x\n1\n1 0 0\n0 1 0\n0 0 1\nCu\n2000000000\nDirect\n0 0 0\n")
    with watched(), pytest.raises(FileFormatError, match="POSCAR"):
        read_images(tmp_path / "POSCAR", file_format="vasp")


@pytest.mark.parametrize(
    ("config", "metrics"),
    [
        (b"trainer: {max_epochs: 7}", b"epoch,x\n0,1\n1,1\n"),
        (b"trainer: [1", b"epoch\n\xc2\xb2\n"),
        (b"[]", b"\x00\xff"),
        (b"trainer: 3", b"epoch\n" + b"9" * 5000),
        (b"trainer: {max_epochs: [1]}", b'"' + b"x" * 200_000),
        (b"!!bool x", b""),
    ],
)
def test_the_progress_display_survives_what_a_job_writes(tmp_path: Path, config: bytes, metrics: bytes) -> None:
    from aiida_mlip.cli.progress import _last_epoch, _max_epochs

    (tmp_path / "config.yaml").write_bytes(config)
    (tmp_path / "metrics.csv").write_bytes(metrics)
    assert _max_epochs(tmp_path) == (7 if b"7" in config else 0)
    assert _last_epoch(tmp_path / "metrics.csv") == (2 if b"0,1" in metrics else 0)


# -- found by benchmarks/fuzz.py ---------------------------------------------------------------------------------------


def test_a_message_does_not_repeat_the_file() -> None:
    comment = "Properties=species:S:1:pos:R:3 " + " ".join(f"energy{i}=1" for i in range(20_000))
    with pytest.raises(FrameError) as caught:
        read_extxyz(io.StringIO(f"1\n{comment}\nCu 0 0 0\n"), fidelity="x")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("tilt", ["1 2", "1 2 3 4", ""])
def test_tilts_of_another_number(tmp_path: Path, tilt: str) -> None:
    text = f"x\n1 atoms\n0 5 xlo xhi\n0 5 ylo yhi\n0 5 zlo zhi\n{tilt} xy xz yz\n\nAtoms # atomic\n\n1 1 0 0 0\n"
    (tmp_path / "x.lmp").write_text(text)
    with pytest.raises(FileFormatError, match=r"x\.lmp"):
        read_large_frame(tmp_path / "x.lmp", species=("Cu",))


def test_times_of_pw_that_are_no_numbers() -> None:
    from aiida_mlip.io.pw_md import read_md_output

    text = "Program PWSCF\n     PWSCF        :      1.00s CPU      1.5.5s WALL\n"
    assert np.isnan(read_md_output(text, np.zeros((1, 3))).seconds)


def test_a_stress_without_a_volume(tmp_path: Path) -> None:
    from fuzz_readers import pw_outputs

    flat = pw_outputs()[2].replace(b"a(3) = (   0.000000   0.000000   1.000000 )", b"a(3) = (   0.0   0.0   0.0 )")
    (tmp_path / "pw.out").write_bytes(flat)
    with pytest.raises(FileFormatError, match="without a volume"):
        read_path(tmp_path / "pw.out", fidelity="pbe")


def test_an_encoding_that_nobody_knows_is_refused() -> None:
    with pytest.raises(FileFormatError, match=r"scf\.xml: unknown encoding: klingon"):
        read_scf_xml(b'<?xml version="1.0" encoding="klingon"?><a/>', source="scf.xml")


def test_numbers_of_frames_are_short() -> None:
    assert begun_frames(f"00001 1.5\n{'9' * 5000} 2.5\n00002 3.5\n") == [1, 2]
    assert index_of(f"{'9' * 5000}.tar.gz") is None
    assert index_of("٠٠٠٠٣.tar.gz") is None
    assert index_of("./00003.tar.gz") == 3
