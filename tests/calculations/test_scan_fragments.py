"""ScanCalculation that cuts: fragments of a frame that never becomes a node lead back to its file and its atoms."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from graded_copper import COPPER, graded, warm_copper

from aiida_mlip.calculations.scan import ScanCalculation
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import from_ase, id_bytes

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch, e3nn and lightning about themselves

FRAGMENTS = {"core_radius_ang": 4.5, "buffer_ang": 1.5, "max_fragments": 2}
SETTINGS = {"mode": "eager", "device": "cpu", "max_atoms": 1500, "max_candidates": 1, "fragments": FRAGMENTS}


@pytest.fixture(scope="module")
def source(emt_copper_committee):
    return graded(emt_copper_committee)


@pytest.fixture
def inputs(aiida_profile, source, evaluate_code, tmp_path: Path) -> dict:
    ase.io.write(tmp_path / "large.xyz", warm_copper(without=[200]), format="extxyz")
    return {
        "code": evaluate_code,
        "potential": PotentialData.import_package(
            source.package, fidelities=["emt"], statistics=source.grades.arrays()
        ),
        "frame": orm.SinglefileData(tmp_path / "large.xyz"),
        "hosts": {"copper": orm.StructureData(ase=COPPER)},
        "settings": orm.Dict(SETTINGS),
    }


def test_fragments_of_a_real_job(inputs: dict, tmp_path: Path) -> None:
    results, node = run_get_node(ScanCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    told, frames = results["summary"]["fragments"], results["fragments"].frames()
    assert told["n_accepted"] == told["n_fragments"] == len(frames) == 2
    assert told["file_sha256"] == hashlib.sha256((tmp_path / "large.xyz").read_bytes()).hexdigest()
    np.testing.assert_array_equal(frames.geometry_uuid, np.tile(id_bytes([node.uuid]), (2, 1)))
    parent = from_ase([ase.io.read(tmp_path / "large.xyz")])
    assert told["parent_id"] == parent.ids()[0]
    assert (frames.parent_id == parent.frame_id).all()
    assert frames.parent_atom[0] == results["summary"]["histogram"]["largest_atom"]
    # distances within the fragment are those of the atoms it names
    near = frames.region[frames.atom_slice(0)] == 0
    index = frames.parent_atom[frames.atom_slice(0)][near]
    expected = parent.to_ase(0).get_distances(index[0], index, mic=True)
    np.testing.assert_allclose(
        np.linalg.norm(frames.positions[frames.atom_slice(0)][near], axis=1), expected, atol=1e-7
    )
    grades = results["fragment_grades"]
    np.testing.assert_array_equal(grades.get_array("frame_id"), frames.frame_id)
    novelty = grades.get_array("novelty")[frames.offsets[:-1]]
    np.testing.assert_allclose(novelty, [entry["novelty"] for entry in told["fragments"]], rtol=0.05)
    _cut_short(inputs, Path(node.get_remote_workdir()), tmp_path)


def _cut_short(inputs: dict, folder: Path, tmp_path: Path) -> None:
    """Files that are broken, or not those of the answer, are no output."""
    script = tmp_path / "program.sh"
    for change in (
        "echo > fragment_novelty.npy",
        "head -c 900 fragments.npz > x; mv x fragments.npz",
        f"{sys.executable} -c 'import numpy as np; np.save(\"fragment_novelty.npy\", np.ones(3))'",
    ):
        script.write_text(f"#!/bin/bash\ncp {folder}/*.np? {folder}/output.json .\n{change}\n")
        script.chmod(0o755)
        code = orm.InstalledCode(label="short", computer=inputs["code"].computer, filepath_executable=str(script))
        results, node = run_get_node(ScanCalculation, **(inputs | {"code": code.store()}))
        assert node.exit_status == 301, node.exit_message
        assert not set(results) & {"fragments", "summary"}


@pytest.mark.parametrize(
    ("change", "hosts", "message"),
    [
        ({"core_radius": 3.0}, True, "did you mean 'core_radius_ang'"),
        ({"core_radius_ang": 3.0, "completion": "crystal"}, False, "hosts: missing"),
        (None, True, "settings.fragments is not given"),
    ],
)
def test_wrong_input_is_refused(inputs: dict, change, hosts: bool, message: str) -> None:
    if not hosts:
        del inputs["hosts"]
    inputs["settings"] = orm.Dict({**SETTINGS, "fragments": change})
    with pytest.raises(ValueError, match=message):
        run_get_node(ScanCalculation, **inputs)
