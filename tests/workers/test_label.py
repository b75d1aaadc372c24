"""The program aiida-mlip-label, run as a program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from aiida_mlip.io.label_messages import FRAMES_FILE, INPUT_FILE, LABELS_FILE, OUTPUT_FILE, LabelReport, LabelRequest
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Failure, from_ase

PROGRAM = Path(sys.executable).parent / "aiida-mlip-label"
EMT = "ase.calculators.emt.EMT"


def write(folder: Path, images, **request) -> None:
    content = {"fidelity": "emt", "calculator": EMT, "labels": ["energy", "forces", "stress"]} | request
    (folder / INPUT_FILE).write_text(LabelRequest(**content).model_dump_json())
    (folder / FRAMES_FILE).write_bytes(write_shard(from_ase(images)))


def run(folder: Path, images, **request):
    write(folder, images, **request)
    done = subprocess.run([PROGRAM], cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    return done, LabelReport.model_validate_json((folder / OUTPUT_FILE).read_text())


def labels(folder: Path):
    with (folder / LABELS_FILE).open("rb") as handle:
        return read_shard(handle)


def test_failures_are_rows(tmp_path):
    """EMT knows no silicon, and has no stress to give for a molecule."""
    h2 = molecule("H2")
    done, report = run(tmp_path, [bulk("Cu"), bulk("Si"), h2, bulk("Al")])
    assert done.returncode == 0, done.stderr
    assert "4/4 frames, 1 failed" in done.stdout
    rows = labels(tmp_path)
    assert rows.failure.tolist() == [0, Failure.CRASHED, 0, 0]
    assert np.isfinite(rows.energy).tolist() == [True, False, True, True]
    assert np.isnan(rows.forces[rows.atom_slice(1)]).all()
    assert np.isnan(rows.stress[[1, 2]]).all()
    assert np.isfinite(rows.stress[[0, 3]]).all()
    assert rows.label_row.tolist() == [0, 1, 2, 3]
    assert (report.n_done, list(report.messages)) == (4, [1])
    assert "Si" in report.messages[1]


def test_energies_whose_derivatives_the_forces_are(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.positions[0] += [0.1, 0.05, 0]
    plus, minus = atoms.copy(), atoms.copy()
    plus.positions[0, 0] += 1e-4
    minus.positions[0, 0] -= 1e-4
    run(tmp_path, [atoms, plus, minus])
    rows = labels(tmp_path)
    assert rows.forces[0, 0] == pytest.approx(-(rows.energy[1] - rows.energy[2]) / 2e-4, abs=1e-5)


def test_a_factory_takes_arguments(tmp_path):
    run(tmp_path, [bulk("Cu")], calculator="ase.calculators.lj.LennardJones", arguments={"epsilon": 0.0})
    assert labels(tmp_path).energy[0] == 0.0


def test_only_the_labels_asked_for(tmp_path):
    run(tmp_path, [bulk("Cu")], labels=["energy"])
    rows = labels(tmp_path)
    assert np.isfinite(rows.energy).all()
    assert np.isnan(rows.forces).all()
    assert np.isnan(rows.stress).all()


@pytest.mark.parametrize(
    ("calculator", "arguments", "message"),
    [
        ("no.such.Thing", {}, "ModuleNotFoundError"),
        ("ase.calculators.emt.EMTT", {}, "AttributeError"),
        (EMT, {"nonsense": 3, "atoms": 3}, "Error"),
    ],
)
def test_a_calculator_that_does_not_start_is_said_once(tmp_path, calculator, arguments, message):
    done, report = run(tmp_path, [bulk("Cu")], calculator=calculator, arguments=arguments)
    assert done.returncode == 2
    assert message in report.error
    assert not (tmp_path / LABELS_FILE).exists()


def test_damaged_input_is_said(tmp_path):
    write(tmp_path, [bulk("Cu")])
    data = (tmp_path / FRAMES_FILE).read_bytes()
    (tmp_path / FRAMES_FILE).write_bytes(data[: len(data) // 2])
    done = subprocess.run([PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert FRAMES_FILE in json.loads((tmp_path / OUTPUT_FILE).read_text())["error"]


def test_what_was_finished_survives_the_walltime(tmp_path):
    """Terminated half-way, as a scheduler does: the finished frames are there, and equal to an uninterrupted run's."""
    images = [bulk("Cu", cubic=True, a=3.5 + 0.001 * i) * (6, 6, 6) for i in range(40)]
    write(tmp_path, images, checkpoint_seconds=0.0)
    process = subprocess.Popen([PROGRAM], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / LABELS_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
    part = labels(tmp_path)
    assert 0 < len(part) < len(images)
    assert process.returncode == 128 + signal.SIGTERM
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, images[: len(part)])
    np.testing.assert_array_equal(part.energy, labels(whole).energy)
    np.testing.assert_array_equal(part.frame_id, labels(whole).frame_id)


def test_help_says_what_it_does():
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
    assert "input.json" in done.stdout
