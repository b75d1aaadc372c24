"""aiida-mlip-explore driven to where the potential is uncertain: at constant pressure, resumed, refused."""

from __future__ import annotations

import numpy as np
import pytest
from graded_toy import carbide, graded_folder

from aiida_mlip.io.explore import ExploreReport, ExploreRequest, ExploreSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.workers.explore import main

NPT = {"ensemble": "npt", "n_steps": 40, "temperature_k": 300, "barostat_ps": 0.1}
LANGEVIN = {"ensemble": "langevin", "n_steps": 40, "temperature_k": 300}


@pytest.fixture(scope="module")
def graded(toy_package, tmp_path_factory):
    return graded_folder(tmp_path_factory.mktemp("graded"), toy_package)


def biased(folder, graded, segment, **keys):
    uncertainty = {"strength": 0.3, "ramp_steps": 10, "memory_steps": 20, "update_every": 5, **keys.pop("bias", {})}
    request = {"graded": "watch" in keys, "max_seconds": keys.pop("max_seconds", None)}
    spec = {
        "kind": "md",
        "record_every": 10,
        "md": {"timestep_fs": 1.0, "schedule": [segment], "uncertainty": uncertainty},
        "limits": {"min_distance_ang": 1.2, "max_temperature_k": 5000},
        **keys,
    }
    folder.mkdir(exist_ok=True)
    (folder / "input.json").write_text(ExploreRequest(spec=ExploreSpec(**spec), **request).model_dump_json())
    (folder / "structures.npz").write_bytes(write_shard(from_ase([carbide(1)])))
    for name in ("model.nequip.zip", "statistics.npz"):
        if not (folder / name).exists():
            (folder / name).symlink_to(graded / name)
    return folder


def report(folder) -> ExploreReport:
    return ExploreReport.model_validate_json((folder / "output.json").read_text())


def frames(folder) -> Frames:
    with (folder / "trajectory.npz").open("rb") as handle:
        return read_shard(handle)


def test_bias_of_dynamics_at_constant_pressure(graded, tmp_path):
    """The stress of the bias reaches the barostat: the volume goes another way than without."""
    volumes = {}
    for name, strength in (("biased", 1.0), ("plain", 1e-9)):
        run = biased(tmp_path / name, graded, NPT, bias={"strength": strength, "ramp_steps": 0})
        assert main([str(run)]) == 0
        assert report(run).runs[0].stopped_by == "finished"
        numbers = report(run).runs[0].numbers
        assert numbers["tau_ev"] > 0
        assert numbers["mean_uncertainty"] > 0
        volumes[name] = np.abs(np.linalg.det(frames(run).cell))
    assert np.abs(volumes["biased"] - volumes["plain"]).max() > 1e-3


def test_a_resumed_run_equals_the_uninterrupted_one(graded, tmp_path):
    whole = biased(tmp_path / "whole", graded, LANGEVIN, replicas=2)
    assert main([str(whole)]) == 0
    parts = biased(tmp_path / "parts", graded, LANGEVIN, replicas=2, max_seconds=1e-6)
    pieces = []
    for attempt in range(8):
        if attempt == 3:
            biased(parts, graded, LANGEVIN, replicas=2)
        assert main([str(parts)]) == 0
        pieces.append(frames(parts).positions)
        if report(parts).status == "finished":
            break
    assert attempt == 3
    np.testing.assert_allclose(np.concatenate(pieces), frames(whole).positions, atol=1e-7)
    assert report(parts).runs[1].numbers["tau_ev"] == pytest.approx(report(whole).runs[1].numbers["tau_ev"], rel=1e-6)


def test_each_run_begins_with_a_strength_of_its_own(graded, tmp_path):
    """Two replicas differ by their random numbers only, not by what the first has left behind."""
    both = biased(tmp_path / "both", graded, LANGEVIN, replicas=2)
    assert main([str(both)]) == 0
    first, second = (run.numbers["mean_tau_ev"] for run in report(both).runs)
    assert first == pytest.approx(second, rel=0.5)
    assert first != second


def test_a_watch_sees_the_biased_dynamics(graded, tmp_path):
    """With a stop right at the border, and a strong bias across it, the watch ends the run."""
    watch = {"every": 1, "novelty_select": 0.2, "novelty_stop": 1.0, "error_select": None, "error_stop": None}
    run = biased(tmp_path / "run", graded, {**LANGEVIN, "n_steps": 400}, bias={"strength": 1.5}, watch=watch)
    assert main([str(run)]) == 0
    assert report(run).runs[0].stopped_by == "novelty"


def test_refusals(graded, tmp_path):
    with pytest.raises(ValueError, match="conserves no energy"):
        ExploreSpec.model_validate(
            {
                "kind": "md",
                "record_every": 10,
                "md": {
                    "timestep_fs": 1.0,
                    "schedule": [{"ensemble": "nve", "n_steps": 20, "temperature_k": 300}],
                    "uncertainty": {},
                },
            }
        )
    for changes in ({"forces": {"calculator": "ase.calculators.emt.EMT"}}, {"mode": "compiled"}):
        with pytest.raises(ValueError, match=r"md\.uncertainty: needs a potential with grades"):
            biased(tmp_path / "never", graded, LANGEVIN, **changes)
    run = biased(tmp_path / "run", graded, LANGEVIN)
    (run / "statistics.npz").unlink()
    assert main([str(run)]) == 2
    assert "statistics.npz" in report(run).message
