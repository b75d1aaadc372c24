"""ExploreCalculation driven by the uncertainty of its potential: the grades travel with the job."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from aiida import orm
from aiida.engine import run_get_node
from graded_toy import carbide, grades_of

from aiida_mlip.calculations.explore import ExploreCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.frames import from_ase

SPEC = {
    "kind": "md",
    "record_every": 10,
    "watch": None,
    "limits": {"min_distance_ang": 1.0, "max_temperature_k": 5000},
    "md": {
        "timestep_fs": 1.0,
        "schedule": [{"ensemble": "npt", "n_steps": 20, "temperature_k": 300}],
        "uncertainty": {"ramp_steps": 10, "update_every": 5},
    },
}


@pytest.mark.filterwarnings("ignore")  # torch and e3nn about themselves
@pytest.mark.nequip
def test_grades_travel_with_the_job(localhost, toy_package):
    program = Path(sys.executable).parent / "aiida-mlip-explore"
    code = orm.InstalledCode(label="explore", computer=localhost, filepath_executable=str(program), with_mpi=False)
    inputs = {
        "code": code.store(),
        "structures": DatasetData.from_frames(from_ase([carbide(1)])),
        "spec": orm.Dict(SPEC),
    }
    with pytest.raises(ValueError, match=r"spec\.forces: give either"):
        run_get_node(ExploreCalculation, **inputs)
    bare = PotentialData.import_package(toy_package, fidelities=["lj"])
    with pytest.raises(ValueError, match="has no grades, so there is no uncertainty to follow"):
        run_get_node(ExploreCalculation, **inputs, potential=bare)
    graded = PotentialData.import_package(toy_package, fidelities=["lj"], statistics=grades_of(toy_package).arrays())
    results, node = run_get_node(ExploreCalculation, **inputs, potential=graded)
    assert node.is_finished_ok, node.exit_message
    assert len(results["dataset"]) == 2
    assert results["summary"]["runs"][0]["numbers"]["tau_ev"] > 0
