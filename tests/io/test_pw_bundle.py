"""The files of a bundle: they come back as they went in, damage is told, and the shell runs every frame."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io import pw_bundle
from aiida_mlip.io.pw_bundle import (
    begun_frames,
    bundle_script,
    index_of,
    pack_inputs,
    read_frame,
    split_results,
    unpack_input,
)


def archive(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=50), min_size=1, max_size=12))
def test_inputs_come_back_and_are_the_same_bytes(inputs):
    packed = pack_inputs(inputs)
    assert packed == pack_inputs(inputs)
    assert [unpack_input(packed, i) for i in range(len(inputs))] == inputs
    with pytest.raises(FileFormatError, match="no frame"):
        unpack_input(packed, len(inputs))


FRAME = {
    "times": b"10.5 12.25 0\n",
    "aiida.out": b"JOB DONE\n" * 300,
    "aiida.err": b"",
    "data-file-schema.xml": b"<a/>",
}


def test_a_frame_comes_back():
    files = read_frame(archive(FRAME))
    assert files.output == "JOB DONE\n" * 300
    assert (files.xml, files.crash, files.seconds, files.status) == (b"<a/>", None, 1.75, 0)
    assert read_frame(archive(FRAME | {"times": b"10.N 12.N 137"})).seconds == 2
    assert np.isnan(read_frame(archive({"aiida.out": b"x"})).seconds)


@given(st.data())
def test_a_damaged_frame_is_told_and_never_believed(data):
    """Cut off anywhere or with a byte changed: refused, or what is read of its files is what was written."""
    whole = archive(FRAME)
    cut = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    for damaged in (whole[:cut], bytes(changed)):
        try:
            files = read_frame(damaged)
        except FileFormatError:
            continue
        assert files.output in ("", "JOB DONE\n" * 300)
        assert files.xml in (None, b"<a/>")


def test_more_than_anybody_asked_for_is_refused(monkeypatch):
    link = tarfile.TarInfo("aiida.out")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        packed.addfile(link)
    assert read_frame(stream.getvalue()).output == ""
    monkeypatch.setattr(pw_bundle, "MAX_FRAME_BYTES", 1000)
    with pytest.raises(FileFormatError, match="more than 1000 bytes"):
        read_frame(archive({"aiida.out": b"0" * 2000}))


@given(st.integers(0, 4 * 1536))
def test_of_results_that_are_cut_off_the_whole_frames_are_kept(cut):
    frames = {f"./0000{i}.tar.gz": bytes([i]) * 700 for i in range(4)}
    whole = archive(frames | {"../../evil": b"x"}, mode="w")
    found, problem = split_results(whole)
    assert (list(found), problem) == ([0, 1, 2, 3], "")
    found, _ = split_results(whole[:cut])
    assert all(content == bytes([index]) * 700 for index, content in found.items())
    assert list(found) == list(range(len(found)))
    assert len(found) >= cut // 1536


def test_names_and_what_was_begun():
    assert [index_of(name) for name in ("00012.tar.gz", "./00000.tar.gz", "x.tar.gz", "../00001.tar.gz")] == [
        12,
        0,
        None,
        None,
    ]
    assert begun_frames("00000 1.5\n00003 2\n\nrubbish here\n0000") == [0, 3, 0]


PROGRAM = """#!/bin/sh
sleep 0.05
grep -q fail aiida.in && { echo "Error in routine" > CRASH; exit 3; }
ls pseudo > out/pseudos
mkdir out/aiida.save
echo "<xml/>" > out/aiida.save/data-file-schema.xml
cat aiida.in
echo "$1" >&2
"""


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("side_by_side", [1, 3])
def test_the_shell_runs_every_frame_once(tmp_path, side_by_side, shell):
    inputs = [f"input {i}\n" for i in range(5)]
    inputs[3] = "fail\n"
    (tmp_path / "program.sh").write_text(PROGRAM)
    (tmp_path / "program.sh").chmod(0o755)
    (tmp_path / "pseudo").mkdir()
    (tmp_path / "pseudo" / "Si.UPF").write_text("upf")
    (tmp_path / "inputs.tar.gz").write_bytes(pack_inputs(inputs))
    line = f"'{tmp_path}/program.sh' 'it'\"'\"'s $HOME'"
    (tmp_path / "bundle.sh").write_text(bundle_script(line, side_by_side=side_by_side))
    subprocess.run([shell, "-euc", ". ./bundle.sh"], cwd=tmp_path, check=True, timeout=60)
    assert {path.name for path in tmp_path.iterdir()} == {
        "begun",
        "bundle.sh",
        "inputs.tar.gz",
        "program.sh",
        "pseudo",
        "results.tar",
    }
    found, problem = split_results((tmp_path / "results.tar").read_bytes())
    assert problem == ""
    assert sorted(found) == [0, 1, 2, 3, 4]
    for index, content in found.items():
        files = read_frame(content)
        assert files.seconds > 0.04
        if index == 3:
            assert (files.status, files.crash, files.xml) == (3, "Error in routine\n", None)
        else:
            assert (files.status, files.output, files.xml) == (0, inputs[index], b"<xml/>\n")
            assert files.error == "it's $HOME\n"
    assert sorted(begun_frames((tmp_path / "begun").read_text())) == [0, 1, 2, 3, 4]


def test_a_job_that_runs_again_begins_where_it_was(tmp_path):
    """As a scheduler does that requeues a job: what has ended stays, what was begun begins anew."""
    (tmp_path / "inputs.tar.gz").write_bytes(pack_inputs(["a", "b"]))
    (tmp_path / "pseudo").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "work" / "00001").mkdir(parents=True)
    kept = archive({"aiida.out": b"from before"})
    (tmp_path / "done" / "00000.tar.gz").write_bytes(kept)
    subprocess.run(["sh", "-c", bundle_script("cat aiida.in", side_by_side=2)], cwd=tmp_path, check=True, timeout=60)
    found, _ = split_results((tmp_path / "results.tar").read_bytes())
    assert found[0] == kept
    assert read_frame(found[1]).output == "b"


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_no_frame_is_begun_when_the_time_is_up(tmp_path, shell):
    (tmp_path / "inputs.tar.gz").write_bytes(pack_inputs(["a", "b", "c"]))
    (tmp_path / "pseudo").mkdir()
    script = bundle_script("sleep 1.1; cat aiida.in", side_by_side=1, max_seconds=1)
    subprocess.run([shell, "-euc", script], cwd=tmp_path, check=True, timeout=60)
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["00000.tar.gz"]
    assert not (tmp_path / "results.tar").exists()
    assert begun_frames((tmp_path / "begun").read_text()) == [0]


def test_inputs_are_an_archive_that_tar_reads():
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(pack_inputs(["a", "b"])))) as packed:
        assert packed.getnames() == ["00000.in", "00001.in"]
