"""``aiida-mlip develop``: wrong job files end in one line that names the key; nothing is stored."""

from __future__ import annotations

import copy

import pytest
import yaml
from aiida import orm
from ase.build import bulk
from ase.io import write
from click.testing import CliRunner

from aiida_mlip.cli.main import main
from aiida_mlip.workchains.develop import DevelopWorkChain

JOB = {
    "structures": ["cu.xyz"],
    "protocol": "fast",
    "codes": {"ase": "aiida-mlip-label@localhost", "train": "nequip-train@localhost"},
    "fidelities": {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}},
    "generate": {"steps": [{"generator": "rattle", "per_parent": 2, "amplitude_ang": 0.1}]},
}


def changed(**changes):
    job = copy.deepcopy(JOB)
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = job
        for parent in parents:
            target = target[parent]
        target[key] = value
    return job


@pytest.mark.usefixtures("label_code", "train_code", "evaluate_code")
@pytest.mark.parametrize(
    ("job", "message"),
    [
        (changed(structurs=["x"]), "did you mean 'structures'"),
        (changed(structures=["missing.cif"]), "there is no file"),
        (changed(structures=["job.yaml"]), "ASE cannot read"),
        (changed(codes__train="nequip-train@elsewhere"), "codes.train: no code 'nequip-train@elsewhere'"),
        (changed(codes__evaluate="aiida-mlip-evaluate@localhost", fidelities={}), "at least one level of theory"),
        (changed(codes__evaluate="aiida-mlip-evaluate@localhost", protocol="fsat"), "did you mean 'fast'"),
        (changed(codes__evaluate="aiida-mlip-evaluate@localhost", train={"comittee": 2}), "did you mean 'committee'"),
        (JOB, "codes: evaluate missing; got ase, train"),
        ("just text", "expected a mapping"),
        ("a: [1", "not readable YAML"),
    ],
)
def test_wrong_job_files_are_refused_with_the_reason(job, message, tmp_path):
    write(tmp_path / "cu.xyz", bulk("Cu"), format="extxyz")
    path = tmp_path / "job.yaml"
    path.write_text(job if isinstance(job, str) else yaml.safe_dump(job))
    before = orm.QueryBuilder().append(orm.ProcessNode).count()
    result = CliRunner().invoke(main, ["develop", str(path)])
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert orm.QueryBuilder().append(orm.ProcessNode).count() == before


def test_a_job_without_active_learning_has_no_forecast(aiida_profile):
    builder = DevelopWorkChain.get_builder()
    assert "explorations" in builder["active_learning"]
    assert DevelopWorkChain.forecast_active_learning(builder) is None
