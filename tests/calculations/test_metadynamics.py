"""MetadynamicsCalculation: real jobs, and every exit code from a job that goes wrong in that way."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from double_well import molecule

from aiida_mlip.calculations.metadynamics import MetadynamicsCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.io.colvars import read_pmf
from aiida_mlip.io.metadynamics import MetadynamicsReport, TrajectoryReport
from aiida_mlip.kernel.frames import from_ase, id_bytes
from aiida_mlip.kernel.uncertainty.grades import fit_grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

TESTS = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "aiida-mlip-metadynamics"
DISTANCE = {"name": "d", "kind": "distance", "group1": [0], "group2": [1], "lower": 1.7, "upper": 3.3, "width": 0.1}
UNCERTAIN = {"engine": "uncertainty", "uncertainty": {}, "collective_variables": []}


def colvars(**keys) -> dict:
    return {
        "engine": "colvars",
        "forces": {"calculator": "double_well.DoubleWell"},
        "temperature_k": 300,
        "timestep_fs": 4,
        "n_steps": 60,
        "record_every": 20,
        "hills": {"height_ev": 0.006, "every": 20},
        "walls": {"min_distance_ang": 1.0},
        "collective_variables": [DISTANCE],
        **keys,
    }


def environment(**keys) -> dict:
    changes = {"engine": "environment", "collective_variables": [], "timestep_fs": 2}
    space = {"cutoff_ang": 4.0, "reference_steps": 20}
    return {**colvars(), **changes, "environment": space, "walls": {"min_distance_ang": 1.2}, **keys}


def code_of(localhost, executable: Path) -> orm.InstalledCode:
    return orm.InstalledCode(
        label="metadynamics", computer=localhost, filepath_executable=str(executable), with_mpi=False
    ).store()


@pytest.fixture
def inputs(localhost) -> dict:
    return {
        "code": code_of(localhost, PROGRAM),
        "structures": DatasetData.from_frames(from_ase([molecule(), molecule(shift=(0, 0, 1))])),
        "spec": orm.Dict(colvars()),
        "metadata": {"options": {"environment_variables": {"PYTHONPATH": str(TESTS)}}},
    }


@pytest.fixture
def broken(inputs, localhost, tmp_path):
    """Inputs whose program is a shell script that goes wrong in a given way."""

    def make(text: str) -> dict:
        path = tmp_path / "program.sh"
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return {**inputs, "code": code_of(localhost, path)}

    return make


def run(inputs: dict):
    return run_get_node(MetadynamicsCalculation, **inputs)


def test_colvars_job(inputs):
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    frames = results["dataset"].frames()
    assert len(frames) == 6
    assert frames.generators == ("metadynamics",)
    np.testing.assert_array_equal(frames.geometry_uuid, np.repeat(id_bytes([node.uuid]), 6, axis=0))
    parents = inputs["structures"].frames().frame_id
    np.testing.assert_array_equal(frames.parent_id, np.repeat(parents, 3, axis=0))
    assert len({bytes(group) for group in frames.group_id}) == 2
    names = results["bias"].list_object_names()
    assert {"bias.colvars.state", "bias.pmf", "colvars.in", "variables_0000.traj"} <= set(names)
    assert read_pmf(results["bias"].get_object_content("bias.pmf"))[1].max() > 0
    np.testing.assert_array_equal(results["series"].get_array("step"), [20, 40, 60] * 2)
    summary = results["trajectory_summary"].get_dict()
    assert [entry["stopped_by"] for entry in summary["trajectories"]] == ["finished", "finished"]
    assert "checkpoint" not in results


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_environment_job_driven_by_a_potential(inputs, toy_package):
    silicon = bulk("Si", cubic=True)
    silicon.rattle(0.03, seed=1)
    del inputs["metadata"]
    inputs["structures"] = DatasetData.from_frames(from_ase([silicon]))
    rattled = [silicon.copy() for _ in range(4)]
    for seed, atoms in enumerate(rattled):
        atoms.rattle(0.05, seed=seed)
    inputs["reference"] = DatasetData.from_frames(from_ase(rattled))
    walls = {"min_distance_ang": 0.8, "max_temperature_k": 20000}
    inputs["spec"] = orm.Dict(environment(forces=None, walls=walls))
    # so large that only the shifted energies of this potential can be what comes out
    inputs["potential"] = PotentialData.import_package(
        toy_package, fidelities=["lj"], energy_shifts={"lj": {"Si": 1e6, "C": 0.0}}
    )
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 3
    np.testing.assert_allclose(results["series"].get_array("potential_energy_ev"), 8e6, atol=1e3)
    # whitened on the given frames: no unbiased dynamics at the start
    assert "unbiased" not in node.outputs.retrieved.get_object_content("aiida-mlip-metadynamics.out")


def test_environment_bias_goes_on(inputs):
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.05, seed=1)
    inputs["structures"] = DatasetData.from_frames(from_ase([copper]))
    emt = {"calculator": "ase.calculators.emt.EMT"}
    # hills so low that both runs take the same path
    inputs["spec"] = orm.Dict(environment(forces=emt, hills={"height_ev": 1e-10, "every": 20}))
    first, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    second, node = run(inputs | {"bias": first["bias"]})
    assert node.is_finished_ok, node.exit_message
    assert hill_heights(second["bias"]) == pytest.approx(2 * hill_heights(first["bias"]), rel=1e-6)


def hill_heights(bias: orm.FolderData) -> float:
    with bias.base.repository.open("hills.npz", "rb") as handle, np.load(handle) as arrays:
        return float(sum(arrays[name].sum() for name in arrays.files if name.startswith("heights")))


def test_walltime_leaves_a_checkpoint(inputs):
    slow = {"calculator": "double_well.DoubleWell", "arguments": {"delay_s": 0.05}}
    inputs["spec"] = orm.Dict(colvars(forces=slow, n_steps=60))
    inputs["metadata"]["options"]["max_wallclock_seconds"] = 1
    results, node = run(inputs)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_OUT_OF_WALLTIME.status
    assert not node.base.caching.is_valid_cache
    done = len(results["dataset"])
    assert 1 <= done < 6
    assert {"bias", "checkpoint", "series", "trajectory_summary"} <= set(results)


def test_wall_is_reported(inputs):
    walls = {"min_distance_ang": 1.0, "max_temperature_k": 400}
    inputs["spec"] = orm.Dict(colvars(n_steps=2000, record_every=5, walls=walls))
    results, node = run(inputs)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_STOPPED_BY_WALL.status
    assert "2 of 2 trajectories" in node.exit_message
    assert "limit of 400 K" in node.exit_message
    assert len(results["dataset"]) >= 1


def test_forces_that_fail_leave_the_frames_before(inputs):
    forces = {"calculator": "double_well.DoubleWell", "arguments": {"fail_after": 90}}
    inputs["spec"] = orm.Dict(colvars(forces=forces))
    results, node = run(inputs)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_FORCES_FAILED.status
    assert "1 of 2 trajectories" in node.exit_message
    assert "the calculator broke down" in node.exit_message
    assert len(results["dataset"]) == 4


def test_no_frames(inputs):
    inputs["spec"] = orm.Dict(colvars(walls={"min_distance_ang": 2.4}))
    results, node = run(inputs)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_NO_FRAMES.status
    assert "2.000 Å apart" in node.exit_message
    assert "dataset" not in results


def test_calculator_that_does_not_exist(inputs):
    inputs["spec"] = orm.Dict(colvars(forces={"calculator": "no_such_package.Thing"}))
    _, node = run(inputs)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_INVALID_INPUT.status
    assert "no_such_package" in node.exit_message


def test_plumed_without_a_kernel(inputs, tmp_path):
    inputs["metadata"]["options"]["environment_variables"]["PLUMED_KERNEL"] = "/nonexistent.so"
    inputs["engine_input"] = orm.SinglefileData.from_string("d: DISTANCE ATOMS=1,2\n", "plumed.dat")
    spec = colvars(engine="plumed", collective_variables=[])
    del spec["hills"]
    inputs["spec"] = orm.Dict(spec)
    _, node = run(inputs)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_ENGINE_MISSING.status
    assert "PLUMED" in node.exit_message


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_package_that_cannot_be_loaded(inputs, broken, toy_package):
    silicon = bulk("Si", cubic=True)
    given = broken(f"printf nonsense > model.nequip.zip\nexec {PROGRAM}\n")
    given["structures"] = DatasetData.from_frames(from_ase([silicon]))
    given["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"])
    given["spec"] = orm.Dict(environment(forces=None))
    _, node = run(given)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_MODEL_NOT_LOADED.status


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_uncertainty_biased_job_of_a_potential_with_grades(inputs, toy_package):
    crystals = []
    for seed in range(30):
        crystals.append(bulk("Si", cubic=True))
        crystals[-1].rattle(0.05, seed=seed)
    frames = from_ase(crystals)
    grades = fit_grades(
        predict(load_model(toy_package, device="cpu", features=True), frames, features=True).features, frames.numbers
    )
    given = {name: inputs[name] for name in ("code", "structures")}
    given["structures"] = DatasetData.from_frames(from_ase(crystals[:1]))
    spec = {**colvars(forces=None, timestep_fs=2, n_steps=40, walls={"min_distance_ang": 0.8}), **UNCERTAIN}
    given["spec"] = orm.Dict({**spec, "hills": None})
    given["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"])
    with pytest.raises(ValueError, match="has no grades, so there is no uncertainty to follow"):
        run(given)
    given["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"], statistics=grades.arrays())
    results, node = run(given)
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 2
    assert (results["series"].get_array("bias_energy_ev") < 0).all()
    assert results["trajectory_summary"]["tau_ev"] > 0
    assert "uncertainty.npz" in results["bias"].list_object_names()
    given["structures"] = DatasetData.from_frames(from_ase([bulk("SiC", "zincblende", a=4.4)]))
    with pytest.raises(ValueError, match="was never trained on C, so it has no grades"):
        run(given)


@pytest.mark.nequip
def test_species_not_covered_on_the_spot(inputs, broken, toy_package):
    """The inputs are checked before; this is the program's own check, of a request that says otherwise."""
    given = broken(f'sed -i \'s/"Si"/"Ge"/\' input.json\nexec {PROGRAM}\n')
    given["structures"] = DatasetData.from_frames(from_ase([bulk("Si", cubic=True)]))
    given["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"])
    given["spec"] = orm.Dict(environment(forces=None))
    for changes, message in [
        ({"structures": DatasetData.from_frames(from_ase([bulk("Cu", cubic=True)]))}, "does not cover Cu"),
        ({"spec": orm.Dict(environment(forces=None, fidelity="pbe"))}, "'pbe' is none of the potential's"),
        ({"spec": orm.Dict(environment())}, "spec.forces: give either"),
        ({"reference": DatasetData.from_frames(from_ase([bulk("Cu", cubic=True)]))}, "no environments of Si"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(given | changes)
    _, node = run(given)
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_SPECIES_NOT_COVERED.status
    assert "does not cover Si" in node.exit_message


def test_output_missing(broken):
    _, node = run(broken("echo the disk is full\nexit 1\n"))
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_OUTPUT_MISSING.status
    assert "the disk is full" in node.exit_message


@pytest.mark.parametrize("damage", ["echo '{' > output.json", "head -c 500 trajectory.npz > t; mv t trajectory.npz"])
def test_output_unreadable(broken, damage):
    results, node = run(broken(f"{PROGRAM}\n{damage}\n"))
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_OUTPUT_UNREADABLE.status
    assert "dataset" not in results
    if "trajectory" in damage:
        assert {"bias", "series", "trajectory_summary"} <= set(results)  # the rest is kept


def test_killed_job_keeps_what_was_written(broken):
    """What kill -9 leaves: a report that says 'running', with everything written at the last checkpoint."""
    report = MetadynamicsReport(status="running", trajectories=[TrajectoryReport(structure=0, replica=0)])
    results, node = run(broken(f"{PROGRAM}\ncat > output.json <<'E'\n{report.model_dump_json()}\nE\n"))
    assert node.exit_status == MetadynamicsCalculation.exit_codes.ERROR_OUT_OF_WALLTIME.status
    assert len(results["dataset"]) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature_k": -5}, "spec.temperature_k"),
        ({"temprature_k": 5}, "did you mean 'temperature_k'"),
        (
            {"engine": "uncertainty", "collective_variables": []},
            "uncertainty: missing, the engine uncertainty needs it",
        ),
        ({**UNCERTAIN, "hills": None}, "forces: a calculator knows no uncertainty"),
        ({**UNCERTAIN, "forces": None}, "hills: the engine uncertainty lays none"),
        ({**UNCERTAIN, "forces": None, "hills": None}, "potential: missing, the engine uncertainty needs one"),
        ({"uncertainty": {}}, "uncertainty belongs to the engine uncertainty"),
        ({"engine": "colvar"}, "spec.engine"),
        ({"n_steps": 10}, "record_every"),
        ({"fixed_atoms": [7]}, "spec.fixed_atoms: atom 7 does not exist"),
        ({"fixed_atoms": [0, 1]}, "no atom is left to move"),
        ({"collective_variables": [{**DISTANCE, "group2": [2]}]}, "atom 2 does not exist"),
        ({"collective_variables": [{**DISTANCE, "group2": [0]}]}, "share the atoms"),
        ({"collective_variables": [{**DISTANCE, "upper": 1.0}]}, "upper must be above lower"),
        ({"collective_variables": [{**DISTANCE, "kind": "cell"}]}, "COLVARS has no variable of the cell"),
        ({"collective_variables": [{**DISTANCE, "kind": "angle"}]}, "an angle needs group3"),
        ({"collective_variables": [{**DISTANCE, "kind": "coordination"}]}, "needs cutoff_ang"),
        ({"collective_variables": [{**DISTANCE, "widht": 1}]}, "did you mean 'width'"),
        ({"collective_variables": []}, "needs either them or an engine_input"),
        ({"hills": None}, "hills: missing"),
        ({"hills": {"height_ev": 0.1, "every": 10, "bias_factor": 0.5}}, "spec.hills.bias_factor"),
        ({"walls": {"min_distance_ang": {"Xx-Y": 1.0}}}, "is not a pair of chemical symbols"),
        ({"forces": None}, "spec.forces: give either"),
        ({"forces": {"calculator": "rm -rf"}}, "spec.forces.calculator"),
        ({"environment": {}}, "belongs to the engine environment"),
    ],
)
def test_bad_input_is_refused_before_any_job(inputs, changes, message):
    inputs["spec"] = orm.Dict({**colvars(), **changes})
    before = orm.QueryBuilder().append(orm.CalcJobNode).count()
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        run(inputs)
    assert orm.QueryBuilder().append(orm.CalcJobNode).count() == before


def test_bad_files_are_refused_before_any_job(inputs):
    own = "colvar {\n name d\n distance {\n group1 { atomNumbers 1 }\n group2 { atomNumbers 9 }\n }\n}\n"
    inputs["spec"] = orm.Dict(colvars(collective_variables=[]))
    for text, message in [(own, "line 5: atom 9 does not exist"), (own[:-3], "braces"), ("# nothing", "no block")]:
        inputs["engine_input"] = orm.SinglefileData.from_string(text, "colvars.in")
        with pytest.raises(ValueError, match=message):
            run(inputs)
    del inputs["engine_input"]
    inputs["spec"] = orm.Dict(colvars())
    inputs["checkpoint"] = orm.SinglefileData.from_string("x", "checkpoint.npz")
    with pytest.raises(ValueError, match="needs the 'bias'"):
        run(inputs)
    del inputs["checkpoint"]
    inputs["reference"] = inputs["structures"]
    with pytest.raises(ValueError, match="only the engine environment"):
        run(inputs)
