"""RelaxFragmentsCalculation: real jobs on fragments of copper, lineage, refusals with reasons, and every exit code."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from graded_copper import COPPER, GradedPotential, graded, warm_copper

from aiida_mlip.calculations.functions.fragment import carve_fragments
from aiida_mlip.calculations.relax_fragments import RelaxFragmentsCalculation
from aiida_mlip.data.atom_grades import grades_node
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import concatenate, from_ase, id_bytes

pytestmark = [pytest.mark.nequip, pytest.mark.filterwarnings("ignore")]  # torch, e3nn and lightning about themselves

PROGRAM = Path(sys.executable).parent / "aiida-mlip-fragment"
SETTINGS = {"core_radius_ang": 4.5, "buffer_ang": 1.5, "max_fragments": 2, "device": "cpu", "max_atoms": 200}


@pytest.fixture(scope="module")
def source(emt_copper_committee) -> GradedPotential:
    return graded(emt_copper_committee)


@pytest.fixture(scope="module")
def parent(source):
    """Warm copper without one of its atoms, and γ of every atom."""
    atoms = warm_copper(without=[200])
    return from_ase([atoms], generator="md"), source.calculator.novelty(atoms)


@pytest.fixture
def potential(aiida_profile, source) -> PotentialData:
    return PotentialData.import_package(source.package, fidelities=["emt"], statistics=source.grades.arrays())


@pytest.fixture
def fragment_code(localhost):
    return orm.InstalledCode(label="fragment", computer=localhost, filepath_executable=str(PROGRAM)).store()


@pytest.fixture
def carved(aiida_profile, parent):
    frames, novelty = parent
    outputs, node = carve_fragments.run_get_node(
        DatasetData.from_frames(frames),
        grades_node(frames.frame_id, novelty),
        orm.Dict(SETTINGS),
        copper=orm.StructureData(ase=COPPER),
    )
    assert node.is_finished_ok, node.exit_message
    return outputs


@pytest.fixture
def inputs(fragment_code, potential, carved) -> dict:
    return {
        "code": fragment_code,
        "potential": potential,
        "fragments": carved["fragments"],
        "grades": carved["grades"],
        "settings": orm.Dict(SETTINGS),
    }


def test_carving_hands_over_the_grades_of_the_parent(carved, parent):
    frames, novelty = parent
    fragments, summary = carved["fragments"].frames(), carved["summary"]
    np.testing.assert_array_equal(carved["grades"].get_array("frame_id"), fragments.frame_id)
    np.testing.assert_array_equal(carved["grades"].get_array("novelty"), novelty[fragments.parent_atom])
    assert [entry["frame_id"] for entry in summary["fragments"]] == fragments.ids()
    for row, entry in enumerate(summary["fragments"]):
        assert entry["centre"] == fragments.parent_atom[fragments.offsets[row]]
        assert entry["novelty"] == pytest.approx(novelty[entry["centre"]], rel=1e-12)
        assert entry["parent_id"] == frames.ids()[0]
        assert entry["completion"] == "crystal"


def test_fragments_of_a_crystal_are_accepted_as_they_are(inputs, carved, parent):
    """A vacancy in warm copper: nothing asks for a relaxation, γ of the centre survives, lineage stays."""
    results, node = run_get_node(RelaxFragmentsCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    accepted, cut, summary = results["fragments"].frames(), carved["fragments"].frames(), results["summary"]
    assert accepted.ids() == cut.ids()
    for name in ("region", "parent_atom", "parent_id", "group_id", "geometry_uuid", "positions"):
        np.testing.assert_array_equal(getattr(accepted, name), getattr(cut, name))
    assert summary["n_accepted"] == len(cut) == 2
    assert summary["n_relaxed"] == 0
    for entry in summary["fragments"]:
        assert abs(entry["novelty_fragment"] / entry["novelty_parent"] - 1) < 0.05
        assert entry["novelty_parent"] > 1.5
        assert entry["reason"] == entry["relaxed_because"] == ""
    grades = results["grades"].get_array("novelty")
    np.testing.assert_allclose(grades[accepted.offsets[:-1]], [e["novelty_fragment"] for e in summary["fragments"]])
    assert results["fragments"].creator.pk == node.pk


def test_one_that_was_moved_is_made_by_the_job(inputs, carved):
    """Asked for always: the buffer moves, core and trust stay bit for bit; then it is another frame, of this job."""
    inputs["settings"] = orm.Dict(SETTINGS | {"relax": "always", "survival": 1.0, "relax_steps": 4})
    results, node = run_get_node(RelaxFragmentsCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    before, after = carved["fragments"].frames(), results["fragments"].frames()
    assert results["summary"]["n_relaxed"] == len(after) == 2
    assert not set(before.ids()) & set(after.ids())
    fixed = before.region < 2
    np.testing.assert_array_equal(after.positions[fixed], before.positions[fixed])
    assert (after.positions[~fixed] != before.positions[~fixed]).any(axis=1).all()
    np.testing.assert_array_equal(after.geometry_uuid, np.tile(id_bytes([node.uuid]), (2, 1)))
    for name in ("region", "parent_atom", "parent_id", "group_id"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for entry, old in zip(results["summary"]["fragments"], before.ids(), strict=True):
        assert entry["carved_id"] == old
        assert entry["steps"] == 4


def test_none_accepted_is_no_failure(inputs):
    inputs["settings"] = orm.Dict(SETTINGS | {"max_atoms": 20})
    results, node = run_get_node(RelaxFragmentsCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    assert "fragments" not in results
    assert "grades" not in results
    assert all("more than max_atoms, 20" in entry["reason"] for entry in results["summary"]["fragments"])


def test_an_element_the_potential_lacks_costs_only_its_fragment(inputs, carved):
    cut = carved["fragments"].frames()
    numbers = cut.numbers.copy()
    numbers[-1] = 47
    mixed = cut.with_columns(numbers=numbers)
    inputs["fragments"] = DatasetData.from_frames(mixed).store()
    inputs["grades"] = grades_node(mixed.frame_id, carved["grades"].get_array("novelty"))
    results, node = run_get_node(RelaxFragmentsCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    first, second = results["summary"]["fragments"]
    assert first["accepted"]
    assert not second["accepted"]
    assert "does not cover Ag" in second["reason"]
    assert results["fragments"].frames().ids() == mixed.ids()[:1]


#: Exit code -> script of a program that ends that way; ``PROGRAM`` stands for the real one, ``ANSWER`` for its output.
BROKEN = {
    "ERROR_INVALID_INPUT": "head -c 99 statistics.npz > x; mv x statistics.npz; PROGRAM",
    "ERROR_SPECIES_NOT_COVERED": 'sed -i \'s/"Cu"/"Ge"/\' input.json; PROGRAM',
    "ERROR_MODEL_NOT_LOADED": "head -c 999 model.nequip.zip > x; mv x model.nequip.zip; PROGRAM",
    "ERROR_OUTPUT_MISSING": "echo 'Segmentation fault'; exit 139",
    "ERROR_OUTPUT_UNREADABLE": "cp ANSWER/output.json .; head -c 500 ANSWER/fragments.npz > fragments.npz",
    "ERROR_OUT_OF_WALLTIME": 'sed -i \'s/"max_seconds":.*/"max_seconds": 1e-9/\' input.json; PROGRAM',
}


@pytest.fixture
def script_code(localhost, tmp_path: Path):
    """A code that is a shell script: a program that goes wrong in a given way."""

    def make(text: str) -> orm.InstalledCode:
        path = tmp_path / "program.sh"
        path.write_text("#!/bin/bash\n" + text.replace("PROGRAM", str(PROGRAM)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return orm.InstalledCode(label="script", computer=localhost, filepath_executable=str(path)).store()

    return make


@pytest.fixture
def answer(inputs, tmp_path: Path) -> Path:
    """Folder in which the real program ran, from a dry run of the job."""
    folder = tmp_path / "answer"
    shutil.copytree(_prepared(inputs), folder)
    subprocess.run([str(PROGRAM)], cwd=folder, check=True, capture_output=True)
    return folder


def _prepared(inputs) -> Path:
    """Work directory of a job whose program does nothing."""
    code = orm.InstalledCode(label="nothing", computer=inputs["code"].computer, filepath_executable="/bin/true").store()
    _, node = run_get_node(RelaxFragmentsCalculation, **(inputs | {"code": code}))
    return Path(node.get_remote_workdir())


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "ERROR_OUTPUT_UNREADABLE"])
def test_exit_codes(inputs, script_code, name):
    inputs["code"] = script_code(BROKEN[name])
    _, node = run_get_node(RelaxFragmentsCalculation, **inputs)
    assert node.exit_code.status == RelaxFragmentsCalculation.exit_codes[name].status, node.exit_message


def test_results_of_a_killed_program_are_kept(inputs, script_code, answer):
    """A report that is behind the files: what it names is attached, what it does not name is not."""
    report = json.loads((answer / "output.json").read_text())
    report["status"], report["fragments"] = "running", report["fragments"][:1]
    (answer / "partial.json").write_text(json.dumps(report))
    inputs["code"] = script_code(f"cp {answer}/*.npz {answer}/novelty.npy .; cp {answer}/partial.json output.json")
    results, node = run_get_node(RelaxFragmentsCalculation, **inputs)
    assert node.exit_status == 400
    assert "after 1 of 2 fragments" in node.exit_message
    assert len(results["fragments"]) == results["summary"]["n_accepted"] == 1
    assert len(results["grades"].get_array("novelty")) == results["fragments"].frames().n_atoms
    # files that are broken, or not those of the report
    for script in (
        BROKEN["ERROR_OUTPUT_UNREADABLE"].replace("ANSWER", str(answer)),
        f'cp {answer}/*.np? .; sed \'s/"frame_id": "..../"frame_id": "0000/\' {answer}/output.json > output.json',
        f"cp {answer}/*.npz {answer}/output.json .; echo > novelty.npy",
        "echo '{' > output.json",
    ):
        inputs["code"] = script_code(script)
        results, node = run_get_node(RelaxFragmentsCalculation, **inputs)
        assert node.exit_status == 301, node.exit_message
        assert "fragments" not in results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"core_radius_ang": 4.5, "survivl": 0.1}}, "did you mean 'survival'"),
        ({"settings": SETTINGS | {"relax": "sometimes"}}, "relax"),
        ({"settings": SETTINGS | {"fidelity": "pbe"}}, "settings.fidelity: 'pbe' is none"),
        ({"potential": "bare"}, "has no grades"),
        ({"grades": "other"}, "1 frames are not in the dataset"),
        ({"fragments": "whole"}, "no fragments"),
    ],
)
def test_wrong_input_is_refused(inputs, source, parent, change, message):
    whole = from_ase([COPPER])
    for name, value in change.items():
        if value == "bare":
            value = PotentialData.import_package(source.package, fidelities=["emt"])
        elif value == "other":
            value = grades_node(whole.frame_id, np.ones(4))
        elif value == "whole":
            value = DatasetData.from_frames(whole)
            inputs["grades"] = grades_node(whole.frame_id, np.ones(4))
        inputs[name] = orm.Dict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        run_get_node(RelaxFragmentsCalculation, **inputs)


def test_a_frame_too_small_costs_only_itself(aiida_profile, parent):
    """Two frames, one of them smaller than a fragment: the other is cut, the reason for the first is told."""
    frames, novelty = parent
    small = from_ase([COPPER * (2, 2, 2)])
    both = concatenate([small, frames])
    grades = grades_node(both.frame_id, np.concatenate([np.full(32, 9.0), novelty]))
    outputs, node = carve_fragments.run_get_node(
        DatasetData.from_frames(both), grades, orm.Dict(SETTINGS), copper=orm.StructureData(ase=COPPER)
    )
    assert node.is_finished_ok, node.exit_message
    assert len(outputs["fragments"]) == 2
    (refused,) = outputs["summary"]["refused"]
    assert refused["frame_id"] == small.ids()[0]
    assert "smaller than the fragment" in refused["reason"]
