"""ExploreWorkChain: through several jobs, and every way it can end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk
from double_well import molecule

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.explore import ExploreWorkChain

TESTS = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "aiida-mlip-explore"
CODES = ExploreWorkChain.exit_codes
SEGMENT = {"n_steps": 60, "temperature_k": 300}
MD = {"kind": "md", "record_every": 20, "md": {"timestep_fs": 4, "schedule": [SEGMENT]}}
WELL = {"forces": {"calculator": "double_well.DoubleWell"}, "limits": {"min_distance_ang": 1.0}}


def slow(delay_s=0.015, **arguments):
    return {"calculator": "double_well.DoubleWell", "arguments": {"delay_s": delay_s, **arguments}}


@pytest.fixture
def builder(localhost):
    """Builder of a run of 60 steps of two molecules, with changes to its specification and options."""

    def make(options=None, structures=None, **overrides):
        code = orm.InstalledCode(
            label="explore", computer=localhost, filepath_executable=str(PROGRAM), with_mpi=False
        ).store()
        return ExploreWorkChain.get_builder_from_protocol(
            code,
            DatasetData.from_frames(from_ase(structures or [molecule(), molecule(shift=(0, 0, 1))])),
            protocol="fast",
            overrides={**(WELL if structures is None else {}), **({} if "kind" in overrides else MD), **overrides},
            options={"environment_variables": {"PYTHONPATH": str(TESTS)}, **(options or {})},
        )

    return make


def links(node):
    from aiida.common.links import LinkType

    kinds = (LinkType.CALL_CALC, LinkType.CALL_WORK)
    return [link.link_label for link in node.base.links.get_outgoing(link_type=kinds).all()]


def test_one_job(builder):
    results, node = run_get_node(builder())
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 6
    assert set(results) == {"dataset", "series", "summary"}
    assert links(node) == ["explore_00"]
    assert audit(node).passed


def test_goes_on_after_walltime_as_if_never_interrupted(builder):
    whole, node = run_get_node(builder())
    assert node.is_finished_ok, node.exit_message
    results, node = run_get_node(builder(options={"max_wallclock_seconds": 1}, forces=slow()))
    assert node.is_finished_ok, node.exit_message
    assert len(links(node)) >= 3
    assert (links(node)[0], links(node)[-1]) == ("explore_00", "join_jobs")
    np.testing.assert_array_equal(results["series"].get_array("step"), [20, 40, 60] * 2)
    np.testing.assert_allclose(
        results["dataset"].frames().positions, whole["dataset"].frames().positions, rtol=0, atol=1e-9
    )
    summary = results["summary"].get_dict()
    assert [(run["steps"], run["frames"], run["stopped_by"]) for run in summary["runs"]] == [(60, 3, "finished")] * 2
    report = audit(node)
    assert report.passed, report.orphans
    assert "checkpoint" not in results


def test_too_many_jobs(builder):
    given = builder(options={"max_wallclock_seconds": 1}, forces=slow(0.03))
    given.max_jobs = orm.Int(1)
    results, node = run_get_node(given)
    assert node.exit_status == CODES.ERROR_TOO_MANY_JOBS.status
    assert 1 <= len(results["dataset"]) < 6
    with pytest.raises(ValueError, match="max_jobs must be at least 1"):
        given.max_jobs = orm.Int(0)


def test_a_limit_and_a_restart(builder):
    hot = {"min_distance_ang": 1.0, "max_temperature_k": 400}
    schedule = {"timestep_fs": 4, "schedule": [{"n_steps": 2000, "temperature_k": 300}]}
    results, node = run_get_node(builder(limits=hot, record_every=5, md=schedule))
    assert node.exit_status == CODES.ERROR_STOPPED_BY_LIMIT.status
    assert "limit of 400 K" in node.exit_message
    steps = [run["steps"] for run in results["summary"]["runs"]]
    schedule["schedule"][0]["n_steps"] = max(steps) + 20
    given = builder(limits=hot | {"max_temperature_k": 90_000}, record_every=5, md=schedule)
    given.restart = results["checkpoint"]
    rest, node = run_get_node(given)
    assert node.is_finished_ok, node.exit_message
    assert rest["series"].get_array("step").min() == min(steps) + 5
    assert audit(node).passed


def test_relaxation_that_does_not_converge(builder):
    relax = {"fmax_ev_per_ang": 1e-5, "max_steps": 2}
    start = molecule()
    start.positions[1, 0] = 2.3
    keys = {"forces": WELL["forces"], "limits": WELL["limits"]}
    results, node = run_get_node(builder(kind="relax", relax=relax, structures=[start], **keys))
    assert node.exit_status == CODES.ERROR_NOT_CONVERGED.status
    assert results["summary"]["runs"][0]["stopped_by"] == "not_converged"


def test_forces_that_fail_in_an_earlier_job_are_not_forgotten(builder):
    # each run fails after 45 steps: the calculator counts anew in each job, so the walltime must lie beyond
    results, node = run_get_node(builder(forces=slow(0.0, fail_after=90)))
    assert node.exit_status == CODES.ERROR_FORCES_FAILED.status
    assert "broke down" in node.exit_message
    assert len(results["dataset"]) == 4


def test_exploration_that_cannot_start(builder):
    results, node = run_get_node(builder(forces={"calculator": "no_such_package.Thing"}))
    assert node.exit_status == CODES.ERROR_EXPLORATION_FAILED.status
    assert "no_such_package" in node.exit_message
    assert "dataset" not in results


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_a_potential_with_grades_is_watched(localhost, toy_package):
    from aiida_mlip.data.potential import PotentialData
    from aiida_mlip.kernel.calibration import calibrate
    from aiida_mlip.kernel.uncertainty.grades import fit_grades
    from aiida_mlip.workers.inference import predict
    from aiida_mlip.workers.model_loading import load_model

    images = [bulk("Si", cubic=True) for _ in range(12)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.01, seed=seed)
    known = from_ase(images)
    features = predict(load_model(toy_package, device="cpu", features=True), known, features=True).features
    calibration = calibrate(np.linspace(0.1, 1, 50), np.linspace(0.1, 1, 50), np.full(50, 14))
    potential = PotentialData.import_package(
        toy_package,
        fidelities=["lj"],
        statistics=fit_grades(features, known.numbers).arrays(),
        calibration=calibration.as_dict(),
    )
    code = orm.InstalledCode(
        label="explore", computer=localhost, filepath_executable=str(PROGRAM), with_mpi=False
    ).store()
    given = ExploreWorkChain.get_builder_from_protocol(
        code,
        DatasetData.from_frames(known.take([0])),
        potential=potential,
        committee={"other": PotentialData.import_package(toy_package, fidelities=["lj"])},
        protocol="fast",
        overrides={**MD, "limits": {"min_distance_ang": 0.8, "max_temperature_k": 90_000}},
    )
    assert given.spec["watch"] == {}
    results, node = run_get_node(given)
    assert node.exit_status == CODES.ERROR_STOPPED_BY_WATCH.status
    run = results["summary"]["runs"][0]
    assert run["stopped_by"] == "novelty"
    assert len(results["selected"]) == run["selected"] >= 1
    # the other member is the same package: it was asked, and does not differ
    error = results["grades"].get_array("error_ev_per_ang")
    assert np.isfinite(error).any()
    assert np.nanmax(error) < 1e-3
    assert audit(node).passed
    unwatched = ExploreWorkChain.get_builder_from_protocol(
        code, DatasetData.from_frames(known), potential=potential, overrides={**MD, "watch": None}
    )
    assert unwatched.spec["watch"] is None


def test_builder_refuses_unknown_keys(builder):
    with pytest.raises(ProtocolError, match="did you mean 'record_every'"):
        builder(record_evry=5)


def test_frames_that_two_jobs_recorded_are_taken_once():
    from aiida_mlip.calculations.functions.explore import join_explorations

    frames = from_ase([molecule(shift=(0, 0, k)) for k in range(4)])

    def job(rows, steps):
        return DatasetData.from_frames(frames.take(rows)).store(), orm.ArrayData(
            {"run": np.zeros(len(steps)), "step": np.array(steps, float)}
        ).store()

    first, second = job([0, 1, 2], [10, 20, 30]), job([2, 3], [30, 40])
    joined = join_explorations(
        dataset_0000=first[0], series_0000=first[1], dataset_0001=second[0], series_0001=second[1]
    )
    assert joined["dataset"].frames().ids() == frames.ids()
    np.testing.assert_array_equal(joined["series"].get_array("step"), [10, 20, 30, 40])
