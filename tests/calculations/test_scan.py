"""ScanCalculation: a real job, from a file and from a remote folder, and every exit code."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.calculations.scan import ScanCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.scan import ScanRequest, write_scan_request
from aiida_mlip.kernel.frames import from_ase, id_bytes
from aiida_mlip.kernel.uncertainty.grades import Grades, fit_grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, e3nn and lightning about themselves

PROGRAM = Path(sys.executable).parent / "aiida-mlip-evaluate"
SETTINGS = {"mode": "eager", "device": "cpu", "max_atoms": 150, "max_candidates": 4, "threshold": 1.0}


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Silicon with one displaced atom, as a file."""
    atoms = bulk("Si", cubic=True) * (3, 2, 2)
    atoms.rattle(0.05, seed=3)
    atoms.positions[5] += [0.4, -0.3, 0.2]
    path = tmp_path_factory.mktemp("large") / "large.xyz"
    ase.io.write(path, atoms, format="extxyz")
    return path


@pytest.fixture(scope="module")
def grades(toy_package: Path) -> Grades:
    images = []
    for seed in range(12):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        images.append(atoms)
    frames = from_ase(images)
    model = load_model(toy_package, device="cpu", features=True, derivatives=False)
    return fit_grades(predict(model, frames, features=True).features, frames.numbers)


@pytest.fixture
def inputs(aiida_profile, toy_package: Path, grades: Grades, large: Path, evaluate_code) -> dict:
    return {
        "code": evaluate_code,
        "potential": PotentialData.import_package(toy_package, fidelities=["lj"], statistics=grades.arrays()),
        "frame": orm.SinglefileData(large),
        "settings": orm.Dict(SETTINGS),
    }


@pytest.fixture(scope="module")
def answer(large: Path, toy_package: Path, grades: Grades, tmp_path_factory) -> Path:
    """Folder in which the real program ran once."""
    folder = tmp_path_factory.mktemp("answer")
    (folder / "statistics.npz").write_bytes(write_npz(grades.arrays()))
    write_scan_request(folder / "input.json", ScanRequest(file=str(large), model=str(toy_package), **SETTINGS))
    subprocess.run([str(PROGRAM), "--scan"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def script_code(localhost, tmp_path: Path):
    """A code that is a shell script: a program that goes wrong in a given way."""

    def make(text: str) -> orm.InstalledCode:
        path = tmp_path / "program.sh"
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return orm.InstalledCode(label="script", computer=localhost, filepath_executable=str(path)).store()

    return make


def test_candidates_of_a_real_job_from_a_remote_folder(inputs: dict, large: Path, localhost) -> None:
    del inputs["frame"]
    inputs["remote"] = orm.RemoteData(computer=localhost, remote_path=str(large.parent))
    inputs["settings"] = orm.Dict({**SETTINGS, "file": "large.xyz"})
    results, node = run_get_node(ScanCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    summary, candidates, environments = (results[name] for name in ("summary", "candidates", "environments"))
    assert summary["n_atoms"] == 96
    worst = summary["histogram"]["largest_atom"]
    assert sum(summary["histogram"]["counts"]["Si"]) == 96
    assert isinstance(candidates, DatasetData)
    assert len(candidates) == summary["n_candidates"] == len(environments.get_array("atom")) >= 1
    assert environments.get_array("atom")[0] == worst
    frames = candidates.frames()
    assert frames.parent_atom[0] == worst
    np.testing.assert_array_equal(frames.geometry_uuid, np.tile(id_bytes([node.uuid]), (len(frames), 1)))
    assert all(results[name].creator.pk == node.pk for name in ("summary", "candidates", "environments"))


#: Exit code -> script of a program that ends that way; ``PROGRAM`` stands for the real one, ``ANSWER`` for its output.
BROKEN = {
    "ERROR_INVALID_INPUT": "rm frame_large.xyz; PROGRAM --scan",
    "ERROR_SPECIES_NOT_COVERED": 'sed -i \'s/"Si"/"Ge"/\' input.json; PROGRAM --scan',
    "ERROR_MODEL_NOT_LOADED": "head -c 99 statistics.npz > x; mv x statistics.npz; PROGRAM --scan",
    "ERROR_OUTPUT_MISSING": "echo 'Segmentation fault'; exit 139",
    "ERROR_OUTPUT_UNREADABLE": "cp ANSWER/output.json .; head -c 500 ANSWER/candidates.npz > candidates.npz",
    "ERROR_OUT_OF_WALLTIME": "echo 'slurmstepd: error: JOB 7 CANCELLED AT 10:00 DUE TO TIME LIMIT' >&2",
    "ERROR_OUT_OF_MEMORY": "kill -9 $$",
}


@pytest.mark.parametrize("name", BROKEN)
def test_exit_codes(inputs: dict, script_code, answer: Path, name: str) -> None:
    inputs["code"] = script_code(BROKEN[name].replace("PROGRAM", str(PROGRAM)).replace("ANSWER", str(answer)))
    results, node = run_get_node(ScanCalculation, **inputs)
    assert node.exit_code.status == ScanCalculation.exit_codes[name].status, (node.exit_message, name)
    assert "summary" not in results


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('cp ANSWER/*.npz .; echo \'{"status": "finished"}\' > output.json', "'histogram' is missing"),
        ('cp ANSWER/*.npz ANSWER/output.json .; sed -i \'s/"width"/"with"/\' output.json', "not a histogram"),
        ("cp ANSWER/candidates.npz ANSWER/output.json .", "environments.npz"),
    ],
)
def test_answers_that_make_no_sense(inputs: dict, script_code, answer: Path, script: str, message: str) -> None:
    inputs["code"] = script_code(script.replace("ANSWER", str(answer)))
    _, node = run_get_node(ScanCalculation, **inputs)
    assert (node.exit_status, message in node.exit_message) == (301, True), node.exit_message


def test_a_frame_without_candidates(inputs: dict, script_code, answer: Path) -> None:
    change = (
        'import json; a = json.load(open("output.json")); a["n_candidates"] = 0; json.dump(a, open("output.json", "w"))'
    )
    inputs["code"] = script_code(f"cp {answer}/output.json .; {sys.executable} -c '{change}'")
    results, node = run_get_node(ScanCalculation, **inputs)
    assert node.is_finished_ok
    assert "candidates" not in results
    assert "summary" in results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": None}, "give either `frame`"),
        ({"settings": {"treshold": 2.0}}, "did you mean 'threshold'"),
        ({"settings": {"threshold": -1.0}}, "threshold"),
        ({"potential": "bare"}, "has no grades"),
        ({"remote": "folder"}, "give either `frame`"),
        ({"frame": None, "remote": "folder"}, "name the file in the remote folder"),
    ],
)
def test_wrong_input_is_refused(
    inputs: dict, change: dict, message: str, toy_package: Path, localhost, tmp_path: Path
) -> None:
    made = {
        "bare": lambda: PotentialData.import_package(toy_package, fidelities=["lj"]),
        "folder": lambda: orm.RemoteData(computer=localhost, remote_path=str(tmp_path)),
    }
    for name, value in change.items():
        inputs.pop(name, None)
        if value is not None:
            inputs[name] = orm.Dict(value) if isinstance(value, dict) else made[value]()
    with pytest.raises(ValueError, match=message):
        run_get_node(ScanCalculation, **inputs)
