"""MetadynamicsWorkChain: through several jobs, and every way it can end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from double_well import molecule

from aiida_mlip.calculations.functions.metadynamics import join_summaries
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
from aiida_mlip.errors import ProtocolError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.metadynamics import MetadynamicsWorkChain

TESTS = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "aiida-mlip-metadynamics"
CODES = MetadynamicsWorkChain.exit_codes
SPEC = {
    "engine": "colvars",
    "forces": {"calculator": "double_well.DoubleWell"},
    "n_steps": 60,
    "record_every": 20,
    "walls": {"min_distance_ang": 1.0},
    "hills": {"height_ev": 0.006, "every": 20},
    "collective_variables": [
        {"name": "d", "kind": "distance", "group1": [0], "group2": [1], "lower": 1.7, "upper": 3.3, "width": 0.1}
    ],
}


@pytest.fixture
def builder(localhost):
    """Builder of a run of 60 steps of two molecules, with changes to its specification and options."""

    def make(options=None, **overrides):
        code = orm.InstalledCode(
            label="metadynamics", computer=localhost, filepath_executable=str(PROGRAM), with_mpi=False
        ).store()
        return MetadynamicsWorkChain.get_builder_from_protocol(
            code,
            DatasetData.from_frames(from_ase([molecule(), molecule(shift=(0, 0, 1))])),
            protocol="fast",
            overrides={**SPEC, **overrides},
            options={"environment_variables": {"PYTHONPATH": str(TESTS)}, **(options or {})},
        )

    return make


def slow(delay_s=0.03, **arguments):
    return {"calculator": "double_well.DoubleWell", "arguments": {"delay_s": delay_s, **arguments}}


def test_one_job(builder):
    results, node = run_get_node(builder())
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 6
    assert set(results) == {"dataset", "bias", "series", "trajectory_summary"}
    assert [link.link_label for link in node.base.links.get_outgoing(link_type=_calls()).all()] == ["dynamics_00"]
    assert audit(node).passed


def test_goes_on_after_walltime(builder):
    results, node = run_get_node(builder(options={"max_wallclock_seconds": 1}, forces=slow(0.015)))
    assert node.is_finished_ok, node.exit_message
    labels = [link.link_label for link in node.base.links.get_outgoing(link_type=_calls()).all()]
    assert len(labels) >= 3
    assert labels[0] == "dynamics_00"
    assert labels[-1] == "join_runs"
    assert len(results["dataset"]) == 6
    np.testing.assert_array_equal(results["series"].get_array("step"), [20, 40, 60] * 2)
    summary = results["trajectory_summary"].get_dict()
    assert [(t["steps"], t["frames"], t["stopped_by"]) for t in summary["trajectories"]] == [(60, 3, "finished")] * 2
    report = audit(node)
    assert report.passed, report.orphans


def test_too_many_jobs(builder):
    given = builder(options={"max_wallclock_seconds": 1}, forces=slow())
    given.max_jobs = orm.Int(1)
    results, node = run_get_node(given)
    assert node.exit_status == CODES.ERROR_TOO_MANY_JOBS.status
    assert 1 <= len(results["dataset"]) < 6
    with pytest.raises(ValueError, match="max_jobs must be at least 1"):
        given.max_jobs = orm.Int(0)


def test_wall(builder):
    walls = {"min_distance_ang": 1.0, "max_temperature_k": 400}
    results, node = run_get_node(builder(n_steps=2000, record_every=5, walls=walls))
    assert node.exit_status == CODES.ERROR_STOPPED_BY_WALL.status
    assert len(results["dataset"]) >= 1


def test_forces_that_fail_in_an_earlier_job_are_not_forgotten(builder):
    # each trajectory fails after 45 steps: the calculator counts anew in each job, so the walltime must lie beyond
    results, node = run_get_node(builder(forces=slow(0.0, fail_after=90)))
    assert node.exit_status == CODES.ERROR_FORCES_FAILED.status
    assert "broke down" in node.exit_message
    assert len(results["dataset"]) == 4


def test_dynamics_that_cannot_start(builder):
    results, node = run_get_node(builder(forces={"calculator": "no_such_package.Thing"}))
    assert node.exit_status == CODES.ERROR_DYNAMICS_FAILED.status
    assert "no_such_package" in node.exit_message
    assert "dataset" not in results


def test_summaries_are_joined():
    entry = {"structure": 0, "replica": 0, "message": "", "largest_bias_ev": None}
    first = entry | {
        "steps": 40,
        "frames": 2,
        "stopped_by": "walltime",
        "mean_temperature_k": 300.0,
        "smallest_distance_ang": 1.5,
    }
    second = first | {"steps": 60, "frames": 1, "stopped_by": "finished", "mean_temperature_k": 330.0}
    other = entry | {
        "steps": 0,
        "frames": 0,
        "stopped_by": "not_started",
        "mean_temperature_k": None,
        "smallest_distance_ang": None,
    }
    failed = other | {"stopped_by": "forces_failed", "message": "it broke", "steps": 3}
    joined = join_summaries(
        [
            {"seconds": 1.0, "status": "walltime", "trajectories": [first, other]},
            {"seconds": 2.0, "status": "finished", "trajectories": [second, failed]},
        ]
    )
    assert (joined["seconds"], joined["status"]) == (3.0, "finished")
    assert joined["trajectories"][0] == second | {"frames": 3, "mean_temperature_k": 310.0}
    assert joined["trajectories"][1] == failed


def test_builder_refuses_unknown_keys(builder):
    with pytest.raises(ProtocolError, match="did you mean 'n_steps'"):
        builder(n_stepz=5)


def _calls():
    from aiida.common.links import LinkType

    return (LinkType.CALL_CALC, LinkType.CALL_WORK)
