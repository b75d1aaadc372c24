"""Fragments cut where the large frame is: the same as from the frame itself, nothing else left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from graded_copper import COPPER, GradedPotential, graded, warm_copper

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.fragments import FragmentKeys, HostCrystal
from aiida_mlip.io.scan import FRAGMENT_NOVELTY, FRAGMENTS, NOVELTY, PARTIAL, ScanRequest, write_scan_request
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.fragments.frame import fragment_row, fragments_of_frame
from aiida_mlip.kernel.frames import from_ase, id_hex
from aiida_mlip.workers import evaluate as program
from aiida_mlip.workers import scan as module
from aiida_mlip.workers.scan import read_frame
from aiida_mlip.workers.scan_fragments import cut_fragments

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch, e3nn and lightning about themselves

KEYS = {"core_radius_ang": 4.5, "buffer_ang": 1.5, "max_fragments": 3}
HOST = HostCrystal(
    numbers=COPPER.numbers.tolist(), positions=COPPER.positions.tolist(), cell=COPPER.cell.array.tolist()
)


@pytest.fixture(scope="module")
def source(emt_copper_committee) -> GradedPotential:
    return graded(emt_copper_committee)


@pytest.fixture(scope="module")
def large() -> Atoms:
    """Warm copper with two vacancies, its atoms out of order."""
    atoms = warm_copper(without=[100, 333], seed=1)
    return atoms[np.random.default_rng(0).permutation(len(atoms))]


@pytest.fixture
def folder(tmp_path: Path, source, large) -> Path:
    shutil.copy(source.package, tmp_path / "model.nequip.zip")
    (tmp_path / "statistics.npz").write_bytes(write_npz(source.grades.arrays()))
    ase.io.write(tmp_path / "large.xyz", large, format="extxyz")
    return tmp_path


def request(**fragments) -> ScanRequest:
    return ScanRequest(
        file="large.xyz", mode="eager", device="cpu", max_atoms=1500, max_candidates=1,
        fragments=FragmentKeys(**(KEYS | fragments)), hosts=(HOST,),
    )  # fmt: skip


def scan(folder: Path) -> dict:
    write_scan_request(folder / "input.json", request())
    assert program.main([str(folder), "--scan"]) == 0
    return json.loads((folder / "output.json").read_text())


@pytest.fixture(scope="module")
def novelty(source, large) -> np.ndarray:
    return source.calculator.novelty(large)


def cut(folder: Path, source, novelty: np.ndarray, **fragments) -> dict:
    """What is cut out, without scanning again."""
    asked = request(**fragments)
    return cut_fragments(folder, asked, read_frame(folder, asked), novelty, source.grades)["fragments"]


def test_fragments_are_those_of_the_whole_frame(folder, source, novelty, monkeypatch):
    """Also when the program was killed while cutting: then it need not scan again."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "cut_fragments", killed)
        with pytest.raises(KeyboardInterrupt):
            scan(folder)
    whole = scan(folder)
    assert whole["resumed_slabs"] == whole["n_slabs"]
    answer = whole["fragments"]
    frames = from_ase([ase.io.read(folder / "large.xyz")])
    keys = FragmentKeys(**KEYS)
    expected, _ = fragments_of_frame(
        frames, 0, novelty, keys.carving(), threshold=keys.threshold, most=3, hosts=[HOST.host()]
    )
    assert len(expected) == 3
    with (folder / FRAGMENTS).open("rb") as stream:
        found = read_shard(stream, source=FRAGMENTS)
    assert found.ids() == [fragment_row(fragment, frames, 0).ids()[0] for fragment in expected]
    assert answer["n_fragments"] == answer["n_accepted"] == 3
    assert answer["parent_id"] == frames.ids()[0]
    assert set(id_hex(found.parent_id)) == {frames.ids()[0]}
    assert answer["file_sha256"] == hashlib.sha256((folder / "large.xyz").read_bytes()).hexdigest()
    # every atom leads back to the parent
    for row, fragment in enumerate(expected):
        np.testing.assert_array_equal(found.parent_atom[found.atom_slice(row)], fragment.parent_atom)
        centre = fragment.parent_atom[0]
        record = answer["fragments"][row]
        assert record["centre"] == centre
        assert record["novelty_parent"] == pytest.approx(novelty[centre], rel=1e-4)
        assert record["novelty_fragment"] == pytest.approx(novelty[centre], rel=0.05)
    grades = np.load(folder / FRAGMENT_NOVELTY)
    atoms = found.to_ase(2)
    np.testing.assert_allclose(grades[found.atom_slice(2)], source.calculator.novelty(atoms), rtol=1e-5)
    # the grades of all atoms were not asked for
    assert not (folder / NOVELTY).exists()
    assert not (folder / f"{NOVELTY}.partial").exists()
    assert not (folder / PARTIAL).exists()


def test_a_frame_too_small_is_told_and_costs_no_scan(folder, source, novelty):
    answer = cut(folder, source, novelty, buffer_ang=9.0)
    assert answer["n_fragments"] == answer["n_accepted"] == 0
    assert "smaller than the fragment" in answer["message"]
    assert not (folder / FRAGMENTS).exists()


def test_what_is_refused_has_a_reason(folder, source, novelty):
    answer = cut(folder, source, novelty, completion="crystal", max_atoms=50, max_fragments=1)
    assert answer["n_fragments"] == 0
    assert len(answer["refused"]) == 3  # tries for each that was wanted
    assert all("more than 50" in entry["reason"] for entry in answer["refused"])
