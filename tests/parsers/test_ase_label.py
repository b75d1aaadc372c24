"""Every exit code of the job of the ase engine, from real jobs and from outputs that were cut short."""

from __future__ import annotations

import json

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import Failure, from_ase

EMT = {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}


def batch(rows, **spec):
    return orm.Dict({"fidelity": "emt", "spec": EMT | spec, "settings": "f" * 64, "rows": rows})


def dataset(n=4):
    return DatasetData.from_frames(from_ase([bulk("Cu", cubic=True, a=3.5 + 0.02 * i) for i in range(n)]))


def run(code, data, content, **metadata):
    return run_get_node(AseLabelCalculation, code=code, dataset=data, batch=content, metadata=metadata)


def script(localhost, tmp_path, text):
    """A program that runs the real one and then does something to what it left."""
    path = tmp_path / "worker.sh"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return orm.InstalledCode(
        label=f"worker-{tmp_path.name}",
        computer=localhost,
        filepath_executable=str(path),
        default_calc_job_plugin="aiida_mlip.ase_label",
        with_mpi=False,
    ).store()


def test_rows_in_any_order(label_code):
    data = dataset()
    results, node = run(label_code, data, batch([3, 1]))
    assert node.is_finished_ok, node.exit_message
    out = results["dataset"].frames()
    assert out.ids() == [data.frame_ids()[3], data.frame_ids()[1]]
    assert results["dataset"].settings == {"emt": "f" * 64}
    assert {uuid.tobytes().hex() for uuid in out.label_uuid} == {node.uuid.replace("-", "")}
    assert out.label_row.tolist() == [0, 1]


def test_a_calculator_that_cannot_be_imported(label_code):
    results, node = run(label_code, dataset(), batch([0, 1], calculator="no.such.Calculator"))
    assert node.exit_status == AseLabelCalculation.exit_codes.ERROR_CALCULATOR.status
    assert "No module named 'no'" in node.exit_message
    assert results["dataset"].frames().failure.tolist() == [Failure.CRASHED] * 2


def test_a_job_that_leaves_nothing(localhost, tmp_path):
    code = script(localhost, tmp_path, "echo 'Segmentation fault' >&2")
    results, node = run(code, dataset(), batch([0, 1]))
    assert node.exit_status == AseLabelCalculation.exit_codes.ERROR_OUTPUT_MISSING.status
    assert results["dataset"].frames().failure.tolist() == [Failure.CRASHED] * 2
    assert "Segmentation fault" in results["report"].get_dict()["failures"][0]["message"]


def test_truncated_labels(localhost, label_code, tmp_path):
    worker = label_code.filepath_executable
    code = script(localhost, tmp_path, f"{worker}; truncate -s 300 labels.npz")
    results, node = run(code, dataset(), batch([0, 1]))
    assert node.exit_status == AseLabelCalculation.exit_codes.ERROR_OUTPUT_TRUNCATED.status
    assert "labels.npz" in node.exit_message
    assert np.isnan(results["dataset"].frames().energy).all()


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("slurmstepd: error: *** JOB 3 CANCELLED DUE TO TIME LIMIT ***", Failure.WALLTIME),
        ("slurmstepd: error: Detected 1 oom-kill event(s)", Failure.OUT_OF_MEMORY),
        ("", Failure.INTERRUPTED),
    ],
)
def test_a_job_ended_half_way_keeps_what_is_finished(localhost, label_code, tmp_path, said, failure):
    """The worker is given only half of the frames, which is what an interrupted one leaves."""
    cut = (
        "python3 - <<'END'\nfrom aiida_mlip.io.shards import *\n"
        "frames = read_shard(open('frames.npz', 'rb'))\n"
        "open('frames.npz', 'wb').write(write_shard(frames.take([0, 1])))\nEND"
    ).replace("python3", str(label_code.filepath_executable).replace("aiida-mlip-label", "python"))
    code = script(localhost, tmp_path, f"{cut}\n{label_code.filepath_executable}\necho '{said}' >&2")
    results, node = run(code, dataset(), batch([0, 1, 2, 3]))
    assert node.exit_status == AseLabelCalculation.exit_codes.ERROR_INTERRUPTED.status
    assert "2 of 4" in node.exit_message
    out = results["dataset"].frames()
    assert np.isfinite(out.energy).tolist() == [True, True, False, False]
    assert out.failure.tolist() == [0, 0, failure, failure]
    assert json.dumps(results["report"].get_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fidelity": "emt"}, "are missing"),
        ({"fidelity": "emt", "spec": EMT, "settings": "", "rows": []}, "at least one row"),
        ({"fidelity": "emt", "spec": {"engine": "ase"}, "settings": "", "rows": [0]}, "calculator: missing"),
        ({"fidelity": "emt", "spec": {"pseudo_family": "x"}, "settings": "", "rows": [0]}, "not of the engine ase"),
    ],
)
def test_bad_batches_are_refused(label_code, content, message):
    with pytest.raises(ValueError, match=message):
        run(label_code, dataset(), orm.Dict(content))
