"""ExploreCalculation: real jobs, and every exit code from a job that goes wrong in that way."""

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

from aiida_mlip.calculations.explore import ExploreCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.io.explore import ExploreReport, RunReport
from aiida_mlip.kernel.frames import from_ase, id_bytes
from aiida_mlip.kernel.uncertainty.grades import fit_grades

TESTS = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "aiida-mlip-explore"
CODES = ExploreCalculation.exit_codes
WELL = {"calculator": "double_well.DoubleWell"}


def md(n_steps=60, temperature_k=300, **keys) -> dict:
    return {
        "kind": "md",
        "forces": WELL,
        "md": {"timestep_fs": 4.0, "schedule": [{"n_steps": n_steps, "temperature_k": temperature_k}]},
        "record_every": 20,
        "limits": {"min_distance_ang": 1.0},
        **keys,
    }


def code_of(localhost, executable: Path) -> orm.InstalledCode:
    return orm.InstalledCode(
        label="explore", computer=localhost, filepath_executable=str(executable), with_mpi=False
    ).store()


def dataset(*images) -> DatasetData:
    return DatasetData.from_frames(from_ase(list(images)))


@pytest.fixture
def inputs(localhost) -> dict:
    return {
        "code": code_of(localhost, PROGRAM),
        "structures": dataset(molecule(), molecule(shift=(0, 0, 1))),
        "spec": orm.Dict(md()),
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
    return run_get_node(ExploreCalculation, **inputs)


def test_a_job(inputs):
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    frames = results["dataset"].frames()
    assert len(frames) == 6
    assert frames.generators == ("md",)
    np.testing.assert_array_equal(frames.geometry_uuid, np.repeat(id_bytes([node.uuid]), 6, axis=0))
    parents = inputs["structures"].frames().frame_id
    np.testing.assert_array_equal(frames.parent_id, np.repeat(parents, 3, axis=0))
    np.testing.assert_array_equal(results["series"].get_array("step"), [20, 40, 60] * 2)
    np.testing.assert_array_equal(results["series"].get_array("run"), [0] * 3 + [1] * 3)
    assert [each["stopped_by"] for each in results["summary"]["runs"]] == ["finished", "finished"]
    assert not {"checkpoint", "selected", "grades"} & set(results)


def test_lammps_with_a_script_of_ones_own(inputs):
    copper = bulk("Cu", cubic=True)
    section = {"timestep_fs": 2.0, "n_steps": 20, "temperature_k": 100}
    spec = {"kind": "lammps", "forces": {"calculator": "ase.calculators.emt.EMT"}, "lammps": section}
    inputs |= {
        "structures": dataset(copper),
        "spec": orm.Dict({**spec, "record_every": 20}),
        "engine_input": orm.SinglefileData.from_string("fix 1 all deform 1 z erate 1.0 remap x\n", "pull.in"),
    }
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    assert results["dataset"].frames().cell[0, 2, 2] == pytest.approx(1.04 * 3.61)


def test_walltime_leaves_a_checkpoint_that_goes_on(inputs):
    slow = {**WELL, "arguments": {"delay_s": 0.05}}
    inputs["spec"] = orm.Dict(md(forces=slow))
    inputs["metadata"]["options"]["max_wallclock_seconds"] = 1
    results, node = run(inputs)
    assert node.exit_status == CODES.ERROR_OUT_OF_WALLTIME.status
    assert not node.base.caching.is_valid_cache
    done = len(results["dataset"])
    assert 1 <= done < 6
    del inputs["metadata"]["options"]["max_wallclock_seconds"]
    both = {"checkpoint": results["checkpoint"], "restart": results["checkpoint"]}
    with pytest.raises(ValueError, match="restart: give either"):
        run(inputs | both)
    rest, node = run(inputs | {"spec": orm.Dict(md()), "checkpoint": results["checkpoint"]})
    assert node.is_finished_ok, node.exit_message
    assert len(rest["dataset"]) == 6 - done


def test_limit_is_reported_and_restarted_from(inputs):
    limits = {"min_distance_ang": 1.0, "max_temperature_k": 400}
    spec = md(n_steps=2000, record_every=5, limits=limits)
    inputs["spec"] = orm.Dict(spec)
    results, node = run(inputs)
    assert node.exit_status == CODES.ERROR_STOPPED_BY_LIMIT.status
    assert "2 of 2 runs" in node.exit_message
    assert "limit of 400 K" in node.exit_message
    before = [each["steps"] for each in results["summary"]["runs"]]
    spec["limits"]["max_temperature_k"] = 90_000
    spec["md"]["schedule"][0]["n_steps"] = max(before) + 50
    inputs["spec"] = orm.Dict(spec)
    results, node = run(inputs | {"restart": results["checkpoint"]})
    assert node.is_finished_ok, node.exit_message
    series = {name: results["series"].get_array(name) for name in ("run", "step")}
    assert [series["step"][series["run"] == k].min() for k in (0, 1)] == [step + 5 for step in before]


def test_forces_that_fail_leave_the_frames_before(inputs):
    inputs["spec"] = orm.Dict(md(forces={**WELL, "arguments": {"fail_after": 90}}))
    results, node = run(inputs)
    assert node.exit_status == CODES.ERROR_FORCES_FAILED.status
    assert "1 of 2 runs" in node.exit_message
    assert "the calculator broke down" in node.exit_message
    assert len(results["dataset"]) == 4


def test_relaxation_that_does_not_converge(inputs):
    start = molecule()
    start.positions[1, 0] = 2.3
    section = {"max_steps": 3, "fmax_ev_per_ang": 1e-4}
    spec = {**md(), "kind": "relax", "relax": section}
    del spec["md"]
    results, node = run(inputs | {"structures": dataset(start), "spec": orm.Dict(spec)})
    assert node.exit_status == CODES.ERROR_NOT_CONVERGED.status
    assert len(results["dataset"]) == 1


def test_no_frames(inputs):
    inputs["spec"] = orm.Dict(md(limits={"min_distance_ang": 2.4}))
    results, node = run(inputs)
    assert node.exit_status == CODES.ERROR_NO_FRAMES.status
    assert "2.000 Å apart" in node.exit_message
    assert "dataset" not in results


def test_calculator_that_does_not_exist(inputs):
    inputs["spec"] = orm.Dict(md(forces={"calculator": "no_such_package.Thing"}))
    _, node = run(inputs)
    assert node.exit_status == CODES.ERROR_INVALID_INPUT.status
    assert "no_such_package" in node.exit_message


def test_lammps_that_is_not_installed(inputs, tmp_path):
    (tmp_path / "lammps.py").write_text("raise ImportError('liblammps.so: no such file')\n")
    inputs["metadata"]["options"]["environment_variables"]["PYTHONPATH"] = f"{tmp_path}:{TESTS}"
    spec = {**md(), "kind": "lammps", "lammps": {"timestep_fs": 2.0, "n_steps": 20, "temperature_k": 100}}
    del spec["md"]
    _, node = run(inputs | {"spec": orm.Dict(spec)})
    assert node.exit_status == CODES.ERROR_ENGINE_MISSING.status
    assert "pip install" in node.exit_message


def test_output_missing(broken):
    _, node = run(broken("echo the disk is full\nexit 1\n"))
    assert node.exit_status == CODES.ERROR_OUTPUT_MISSING.status
    assert "the disk is full" in node.exit_message


@pytest.mark.parametrize(
    "damage",
    ["echo '{' > output.json", "head -c 500 trajectory.npz > t; mv t trajectory.npz", "echo x > series.npz"],
)
def test_output_unreadable(broken, damage):
    results, node = run(broken(f"{PROGRAM}\n{damage}\n"))
    assert node.exit_status == CODES.ERROR_OUTPUT_UNREADABLE.status
    assert ("dataset" in results) == ("series" in damage)
    assert ("summary" in results) == ("output.json" not in damage)  # the rest is kept


def test_killed_job_keeps_what_was_written(broken):
    """What kill -9 leaves: a report that says 'running', with everything written at the last checkpoint."""
    report = ExploreReport(status="running", runs=[RunReport(structure=0, replica=0)])
    results, node = run(broken(f"{PROGRAM}\ncat > output.json <<'E'\n{report.model_dump_json()}\nE\n"))
    assert node.exit_status == CODES.ERROR_OUT_OF_WALLTIME.status
    assert len(results["dataset"]) == 6


# -- potentials ------------------------------------------------------------------------------------------------

FITS = {"forces": None, "limits": {"min_distance_ang": 0.8, "max_temperature_k": 90_000}}


@pytest.fixture(scope="module")
def graded(toy_package) -> dict:
    """Statistics of the toy potential's grades on rattled silicon."""
    from aiida_mlip.workers.inference import predict
    from aiida_mlip.workers.model_loading import load_model

    images = [bulk("Si", cubic=True) for _ in range(12)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
    frames = from_ase(images)
    features = predict(load_model(toy_package, device="cpu", features=True), frames, features=True).features
    return fit_grades(features, frames.numbers).arrays()


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_run_that_leaves_what_the_potential_knows(inputs, toy_package, graded):
    del inputs["metadata"]
    inputs["structures"] = dataset(bulk("Si", cubic=True))
    inputs["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"], statistics=graded)
    watch = {"every": 2, "novelty_select": 0.01, "novelty_stop": None, "error_select": None, "error_stop": None}
    inputs["spec"] = orm.Dict(md(n_steps=8, record_every=4, selected_every=2, watch=watch, **FITS))
    results, node = run(inputs)
    assert node.is_finished_ok, node.exit_message
    assert len(results["selected"]) == 5  # the start, and every other step
    assert results["grades"].get_array("novelty").shape == (40,)
    assert (results["series"].get_array("largest_novelty") > 0).all()
    watch |= {"novelty_stop": 0.02}
    inputs["spec"] = orm.Dict(md(n_steps=8, record_every=4, watch=watch, **FITS))
    results, node = run(inputs)
    assert node.exit_status == CODES.ERROR_STOPPED_BY_WATCH.status
    assert "γ = " in node.exit_message
    assert {"selected", "grades", "checkpoint", "summary"} <= set(results)


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_package_that_cannot_be_loaded(broken, toy_package):
    given = broken(f"printf nonsense > model.nequip.zip\nexec {PROGRAM}\n")
    given["structures"] = dataset(bulk("Si", cubic=True))
    given["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"])
    given["spec"] = orm.Dict(md(**FITS))
    _, node = run(given)
    assert node.exit_status == CODES.ERROR_MODEL_NOT_LOADED.status


@pytest.mark.nequip
def test_species_not_covered_on_the_spot(broken, toy_package):
    """The inputs are checked before; this is the program's own check, of a request that says otherwise."""
    given = broken(f'sed -i \'s/"Si"/"Ge"/\' input.json\nexec {PROGRAM}\n')
    given["structures"] = dataset(bulk("Si", cubic=True))
    given["potential"] = PotentialData.import_package(toy_package, fidelities=["lj"])
    given["spec"] = orm.Dict(md(**FITS))
    _, node = run(given)
    assert node.exit_status == CODES.ERROR_SPECIES_NOT_COVERED.status
    assert "does not cover Si" in node.exit_message


@pytest.mark.nequip
def test_potentials_that_do_not_fit_are_refused(inputs, toy_package, graded):
    plain = PotentialData.import_package(toy_package, fidelities=["lj"])
    known = PotentialData.import_package(toy_package, fidelities=["lj"], statistics=graded)
    other = PotentialData.import_package(toy_package, fidelities=["lj", "dft"])
    silicon = {"structures": dataset(bulk("Si", cubic=True)), "potential": plain, "spec": orm.Dict(md(**FITS))}
    always = {"error_where": "always", "novelty_select": None, "novelty_stop": None}
    for changes, message in [
        ({"structures": dataset(bulk("Cu", cubic=True))}, "does not cover Cu"),
        ({"spec": orm.Dict(md(fidelity="pbe", **FITS))}, "'pbe' is none of the potential's"),
        ({"potential": other}, "spec.fidelity: missing"),
        ({"spec": orm.Dict(md())}, "spec.forces: give either this key or the input 'potential', not both"),
        ({"spec": orm.Dict(md(watch={}, **FITS))}, "spec.watch: the potential .* has no grades"),
        ({"spec": orm.Dict(md(watch=always, **FITS)), "potential": known}, "spec.watch.error_where: 'always'"),
        ({"committee": {"a": plain}}, "committee: only a watch"),
        (
            {"committee": {"a": plain}, "potential": known, "spec": orm.Dict(md(watch={}, **FITS))},
            "committee: the potential .* has no calibration",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            run(inputs | silicon | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"md": {"timestep_fs": 1, "schedule": [{"n_steps": 50, "temperature_k": -5}]}}, "schedule.0.temperature_k"),
        ({"record_evry": 5}, "did you mean 'record_every'"),
        ({"fixed_atoms": [7]}, "spec.fixed_atoms: atom 7"),
        ({"forces": None}, "spec.forces: give either"),
        ({"watch": {}}, "watch: only a potential"),
        (
            {"md": {"timestep_fs": 1, "schedule": [{"ensemble": "npt", "n_steps": 50, "temperature_k": 5}]}},
            "spec.md.schedule: the cell of structure 0 cannot change",
        ),
    ],
)
def test_wrong_input_is_refused_before_submission(inputs, changes, message):
    with pytest.raises(ValueError, match=message):
        run(inputs | {"spec": orm.Dict({**md(), **changes})})
