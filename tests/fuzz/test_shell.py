"""Job scripts of inputs with hostile names are run by a shell: nothing of them becomes a command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from aiida import orm
from aiida.engine import run
from emt_frames import emt_frames

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.calculations.options import options_problem
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.io.nequip_script import after_training, before_training

#: A name that is legal for a folder, with all that a shell makes something of.
HOSTILE = "a 'b' \"c\" $(touch canary) `touch canary`; touch canary & é\n#\ttouch canary\n* ~ \\ $HOME ${IFS} |x>canary"


def program(folder: Path, name: str, text: str) -> Path:
    """A program in a folder of the hostile name."""
    path = folder / HOSTILE.replace("/", "_") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def code(localhost, executable: Path, plugin: str) -> orm.InstalledCode:
    return orm.InstalledCode(
        label=f"hostile-{executable.parent.parent.name}",
        description=HOSTILE,
        computer=localhost,
        filepath_executable=str(executable),
        default_calc_job_plugin=plugin,
        with_mpi=False,
    ).store()


def script_of(process, monkeypatch: pytest.MonkeyPatch, folder: Path, **inputs) -> Path:
    """The job script that AiiDA writes for these inputs, in a folder of its own."""
    monkeypatch.chdir(folder)
    metadata = {"dry_run": True, "store_provenance": False, "label": HOSTILE, "description": HOSTILE}
    options = inputs.pop("options", {})
    run(process, **inputs, metadata={**metadata, "options": options})
    (script,) = folder.glob("submit_test/*/_aiidasubmit.sh")
    return script


def execute(script: Path) -> list[Path]:
    """Run a script in its folder; what calls itself a canary afterwards."""
    subprocess.run(["bash", script.name], cwd=script.parent, check=False, capture_output=True, timeout=60)
    top = script.parents[2]
    return [path for path in top.rglob("*") if path.name.startswith("canary")]


def test_the_canary_sings(tmp_path: Path) -> None:
    """The same name unquoted: the test can fail."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    script = tmp_path / "a" / "b" / "script.sh"
    script.write_text(f"echo {HOSTILE}\n")
    assert execute(script)


def test_label_job(localhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = program(tmp_path, "worker", 'echo "$#" > ran.txt')
    batch = {"fidelity": "emt", "spec": {"engine": "ase", "calculator": "x.Y", "arguments": {"label": HOSTILE}}}
    script = script_of(
        AseLabelCalculation,
        monkeypatch,
        tmp_path,
        code=code(localhost, executable, "aiida_mlip.ase_label"),
        dataset=DatasetData.from_frames(emt_frames(2, seed=1).with_columns(fidelities=(HOSTILE,))),
        batch=orm.Dict({**batch, "settings": "f" * 64, "rows": [0, 1]}),
    )
    assert not execute(script)
    assert (script.parent / "ran.txt").read_text() == "0\n"
    assert json.loads((script.parent / "input.json").read_text())["arguments"] == {"label": HOSTILE}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_lines_around_a_training(shell: str, tmp_path: Path) -> None:
    """Checkpoints, folder of the start and packager are all called what they should not be."""
    packager = program(tmp_path, "nequip-package", 'printf "%s" "$2" > packed.txt')
    for folder in ("checkpoints", HOSTILE):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "best_00001.5_$(touch canary) 'x'.ckpt").write_text("weights")
    script = tmp_path / "job.sh"
    script.write_text(before_training(threads=1, initial=HOSTILE) + "\ntrue\n" + after_training(str(packager)) + "\n")
    done = subprocess.run([shell, "job.sh"], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert not done.stderr.strip()
    assert not (tmp_path / "canary").exists()
    assert (tmp_path / "packed.txt").read_text() == "checkpoints/best_00001.5_$(touch canary) 'x'.ckpt"
    assert (tmp_path / HOSTILE / "best.ckpt").read_text() == "weights"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_name": "debug\ntouch canary"}, "queue_name"),
        ({"account": "a b"}, "account"),
        ({"qos": "$(touch canary)"}, "qos"),
        ({"output_filename": "../../x"}, "output_filename"),
        ({"scheduler_stderr": "a\n#SBATCH --wrap=x"}, "scheduler_stderr"),
        ({"scheduler_stdout": ".."}, "scheduler_stdout"),
        ({"environment_variables": {"A=1; touch canary; B": "x"}}, "name of a variable"),
        ({"environment_variables": {"A": "$(x)"}, "environment_variables_double_quotes": True}, "double_quotes"),
    ],
)
def test_options_that_would_be_commands(options: dict, message: str) -> None:
    assert message in str(options_problem(options))


def test_options_of_every_cluster_are_taken() -> None:
    good = {"queue_name": "gpu-a100,cpu", "account": "proj_12/sub", "qos": "normal", "output_filename": "aiida.out"}
    good["environment_variables"] = {"OMP_NUM_THREADS": "1", "MESSAGE": HOSTILE}
    assert options_problem({**good, "resources": {"num_machines": 1}, "max_wallclock_seconds": 60}) is None


@pytest.mark.parametrize("process", [AseLabelCalculation, NequipTrainCalculation])
def test_calculations_refuse_them(process, aiida_profile) -> None:
    port = process.spec().inputs["metadata"]["options"]
    error = port.validate({"resources": {"num_machines": 1}, "queue_name": "debug\ntouch canary"})
    assert "no word of letters" in str(error)


def test_every_calculation_of_this_package_looks_at_its_options(aiida_profile) -> None:
    from aiida.plugins import CalculationFactory
    from aiida.plugins.entry_point import get_entry_point_names

    names = [name for name in get_entry_point_names("aiida.calculations") if name.startswith("aiida_mlip.")]
    assert len(names) >= 8
    for name in names:
        options = CalculationFactory(name).spec().inputs["metadata"]["options"]
        assert options.validator({"queue_name": "a\nb"}, options), name


def test_variables_of_the_environment_are_values(tmp_path: Path, localhost, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = program(tmp_path, "worker", 'printf "%s" "$MESSAGE" > ran.txt')
    batch = {"fidelity": "emt", "spec": {"engine": "ase", "calculator": "x.Y"}, "settings": "f" * 64, "rows": [0]}
    script = script_of(
        AseLabelCalculation,
        monkeypatch,
        tmp_path,
        code=code(localhost, executable, "aiida_mlip.ase_label"),
        dataset=DatasetData.from_frames(emt_frames(1, seed=1)),
        batch=orm.Dict(batch),
        options={"environment_variables": {"MESSAGE": HOSTILE}},
    )
    assert not execute(script)
    assert (script.parent / "ran.txt").read_text() == HOSTILE
