"""BakeCalculation: a real job, what is refused before one, every exit code; and who refuses a joint potential."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.calculations.bake import BakeCalculation
from aiida_mlip.calculations.evaluate import EvaluateCalculation
from aiida_mlip.calculations.explore import ExploreCalculation
from aiida_mlip.calculations.metadynamics import MetadynamicsCalculation
from aiida_mlip.calculations.relax_fragments import RelaxFragmentsCalculation
from aiida_mlip.calculations.scan import ScanCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.protocols import explore, metadynamics
from aiida_mlip.protocols.validate import resolved_validate
from aiida_mlip.workchains.validate import ValidateWorkChain
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, e3nn and lightning about themselves

PROGRAM = Path(sys.executable).parent / "aiida-mlip-evaluate"
NAMES = ["lda", "pbe", "hse"]
ENERGIES = {"lda": {"Si": -106.5, "C": -154.25}, "pbe": {"Si": -1.0, "C": -2.0}, "hse": {"Si": -108.0, "C": -157.0}}


@pytest.fixture
def joint(aiida_profile, joint_toy_package: Path) -> PotentialData:
    return PotentialData.import_package(
        joint_toy_package, fidelities=NAMES, joint=True, reference_energies=ENERGIES, versions={"mine": "1"}
    )


@pytest.fixture
def inputs(joint: PotentialData, evaluate_code) -> dict:
    return {"code": evaluate_code, "potential": joint, "fidelity": "hse"}


@pytest.fixture
def script_code(localhost, tmp_path: Path):
    """A code that is a shell script: a program that goes wrong in a given way."""

    def make(text: str) -> orm.InstalledCode:
        path = tmp_path / "program.sh"
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return orm.InstalledCode(label="script", computer=localhost, filepath_executable=str(path)).store()

    return make


def test_potential_of_a_real_job(inputs: dict, joint_toy_package: Path, tmp_path: Path) -> None:
    results, node = run_get_node(BakeCalculation, **inputs)
    assert node.is_finished_ok, node.exit_message
    baked, joint = results["potential"], inputs["potential"]
    assert (baked.fidelities, baked.joint, baked.reference_energies) == (["hse"], False, {"hse": ENERGIES["hse"]})
    assert (baked.species, baked.cutoff_ang, baked.engine) == (joint.species, joint.cutoff_ang, joint.engine)
    assert baked.versions["mine"] == "1"
    assert baked.metrics["baked"]["force_difference_ev_per_ang"] <= 1e-5
    assert (baked.creator.pk, baked.is_stored) == (node.pk, True)
    baked.check_runs()
    images = [bulk("Si", cubic=True), bulk("SiC", "zincblende", a=4.4, cubic=True)]
    for image in images:
        image.rattle(0.1, seed=5)
    frames = from_ase(images)
    found = predict(load_model(baked.export(tmp_path), device="cpu"), frames)
    told = predict(load_model(joint_toy_package, device="cpu"), frames, fidelity=np.array([2, 2]))
    shift = np.array([8 * (-108.0 + 1.0), 4 * (-108.0 + 1.0) + 4 * (-157.0 + 2.0)])
    np.testing.assert_allclose(found.energy - told.energy, shift, rtol=0, atol=8e-6)
    np.testing.assert_allclose(found.forces, told.forces, rtol=0, atol=1e-5)


#: Exit code -> script of a program that ends that way; ``PROGRAM`` stands for the real one.
BROKEN = {
    "ERROR_INVALID_INPUT": 'sed -i \'s/"index": 2/"index": 5/\' input.json; PROGRAM --bake',
    "ERROR_MODEL_NOT_LOADED": "head -c 9999 model.nequip.zip > x; mv x model.nequip.zip; PROGRAM --bake",
    "ERROR_OUTPUT_MISSING": 'echo \'{"status": "finished"}\' > output.json',
    "ERROR_OUTPUT_UNREADABLE": 'echo \'{"status": "finished"}\' > output.json; cp model.nequip.zip baked.nequip.zip',
    "ERROR_NOT_EXACT": "PYTHON -c 'CHANGE'; PROGRAM --bake",
    "ERROR_OUT_OF_WALLTIME": "echo 'slurmstepd: error: JOB 7 CANCELLED AT 10:00 DUE TO TIME LIMIT' >&2",
    "ERROR_OUT_OF_MEMORY": "kill -9 $$",
}
#: NaN for the embedding of the levels (3 x 3 doubles), and a request for the package that is then there.
CHANGE = """
import hashlib, json, struct, zipfile
with zipfile.ZipFile("model.nequip.zip") as old, zipfile.ZipFile("x", "w") as new:
    for info in old.infolist():
        data = old.read(info)
        new.writestr(info, struct.pack("9d", *[float("nan")] * 9) if len(data) == 72 else data)
open("model.nequip.zip", "wb").write(open("x", "rb").read())
request = json.load(open("input.json"))
request["sha256"] = hashlib.sha256(open("x", "rb").read()).hexdigest()
json.dump(request, open("input.json", "w"))
"""


@pytest.mark.parametrize("name", BROKEN)
def test_exit_codes(inputs: dict, script_code, name: str) -> None:
    script = BROKEN[name].replace("PROGRAM", str(PROGRAM)).replace("PYTHON", sys.executable)
    results, node = run_get_node(BakeCalculation, **{**inputs, "code": script_code(script.replace("CHANGE", CHANGE))})
    assert node.exit_code.status == BakeCalculation.exit_codes[name].status, (node.exit_message, name)
    assert "potential" not in results


def test_a_truncated_answer(inputs: dict, script_code) -> None:
    inputs["code"] = script_code('echo \'{"status": "fin\' > output.json')
    _, node = run_get_node(BakeCalculation, **inputs)
    assert (node.exit_status, "not a readable answer" in node.exit_message) == (301, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelity": "scan"}, r"'scan' is none of the potential's: \['lda', 'pbe', 'hse'\]"),
        ({"energies": {"hse": {"Si": -1.0}}}, "no reference energy of C at hse"),
        ({"energies": {}}, "no reference energy of Si, C at hse"),
        ({"joint": False}, "is not joint: it runs as it is"),
    ],
)
def test_refused_before_anything_runs(inputs: dict, joint_toy_package: Path, changes: dict, message: str) -> None:
    inputs["potential"] = PotentialData.import_package(
        joint_toy_package,
        fidelities=NAMES,
        joint=changes.get("joint", True),
        reference_energies=changes.get("energies", ENERGIES),
    )
    inputs["fidelity"] = changes.get("fidelity", "hse")
    with pytest.raises(ValueError, match=message):
        run_get_node(BakeCalculation, **inputs)


RUN = {"n_steps": 200, "temperature_k": 300}


def refused_inputs(process: type, joint: PotentialData, code: orm.Code) -> dict:
    """What would run the potential, were it not joint."""
    frames = DatasetData.from_frames(from_ase([bulk("Si", cubic=True)]))
    given = {
        EvaluateCalculation: {"dataset": frames},
        ExploreCalculation: {
            "structures": frames,
            "spec": orm.Dict(explore.resolved_spec({"kind": "md", "fidelity": "pbe", "md": {"schedule": [RUN]}})),
        },
        MetadynamicsCalculation: {
            "structures": frames,
            "spec": orm.Dict(metadynamics.resolved_spec({"engine": "environment", "fidelity": "pbe"})),
        },
        ScanCalculation: {"remote": orm.RemoteData(computer=code.computer, remote_path="/")},
        RelaxFragmentsCalculation: {
            "fragments": frames,
            "grades": orm.ArrayData(np.zeros(3)),
            "settings": orm.Dict({"core_radius_ang": 4.5}),
        },
        ValidateWorkChain: {"structures": frames, "settings": orm.Dict(resolved_validate({"fidelity": "pbe"}))},
    }[process]
    if process is ValidateWorkChain:
        return {**given, "potentials": {"member_0": joint}, "codes": {"evaluate": code}}
    return {**given, "potential": joint, "code": code}


@pytest.mark.parametrize(
    "process",
    [
        EvaluateCalculation,
        ExploreCalculation,
        MetadynamicsCalculation,
        ScanCalculation,
        RelaxFragmentsCalculation,
        ValidateWorkChain,
    ],
)
def test_what_would_run_a_joint_potential_refuses_it(process: type, joint: PotentialData, evaluate_code) -> None:
    with pytest.raises(ValueError, match=r"joint one of lda, pbe, hse, .* with aiida_mlip\.bake"):
        run_get_node(process, **refused_inputs(process, joint, evaluate_code))
