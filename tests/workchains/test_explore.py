"""ExploreWorkChain: through several jobs, and every way it can end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from double_well import molecule

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.provenance import audit
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
