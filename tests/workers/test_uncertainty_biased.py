"""The engine `uncertainty` of aiida-mlip-metadynamics, run for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from graded_toy import carbide, graded_folder

from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.metadynamics import MetadynamicsReport, MetadynamicsRequest, MetadynamicsSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.metadynamics.whitening import explored_volume, fit_whitening
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.metadynamics import main
from aiida_mlip.workers.model_loading import load_model

WALLS = {"min_distance_ang": 1.4, "max_temperature_k": 4000}


@pytest.fixture(scope="module")
def graded(toy_package, tmp_path_factory) -> Path:
    """Folder with the toy potential and its grades."""
    return graded_folder(tmp_path_factory.mktemp("graded"), toy_package)


@pytest.fixture(scope="module")
def graded_copper(emt_copper_committee, tmp_path_factory) -> Path:
    """The same of a potential that knows copper at 300 K."""
    folder = tmp_path_factory.mktemp("copper")
    return graded_folder(folder, emt_copper_committee.packages[0], emt_copper_committee.data.train)


def prepare(folder: Path, source: Path, structures, max_seconds=None, **keys) -> Path:
    folder.mkdir(exist_ok=True)
    spec = MetadynamicsSpec.model_validate(
        {
            "engine": "uncertainty",
            "temperature_k": 300,
            "timestep_fs": 2,
            "n_steps": 60,
            "record_every": 20,
            "friction_per_ps": 10,
            "uncertainty": {"ramp_steps": 20, "memory_steps": 20, "update_every": 5},
            "walls": WALLS,
            **keys,
        }
    )
    request = MetadynamicsRequest(spec=spec, max_seconds=max_seconds)
    (folder / "input.json").write_text(request.model_dump_json())
    (folder / "structures.npz").write_bytes(write_shard(from_ase(structures)))
    for name in ("model.nequip.zip", "statistics.npz"):
        if (source / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(source / name)
    return folder


def report(folder: Path) -> MetadynamicsReport:
    return MetadynamicsReport.model_validate_json((folder / "output.json").read_text())


def frames(folder: Path) -> Frames:
    with (folder / "trajectory.npz").open("rb") as handle:
        return read_shard(handle)


def history(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "bias" / "uncertainty.npz") as arrays:
        return {name.removeprefix("history_"): arrays[name] for name in arrays.files if name.startswith("history_")}


@pytest.mark.slow
@pytest.mark.nequip
def test_it_sees_more_than_unbiased_dynamics(graded_copper, tmp_path):
    """More of the space of the potential's own features, whitened on the unbiased run; and no closer pairs."""
    copper = bulk("Cu", "fcc", a=3.61, cubic=True).repeat((2, 2, 1))
    copper.rattle(0.03, seed=0)
    common = {
        "n_steps": 400,
        "record_every": 10,
        "timestep_fs": 4,
        "seed": 3,
        "walls": {"min_distance_ang": 1.7, "max_temperature_k": 4000},
    }
    adapted = {"ramp_steps": 40, "memory_steps": 40, "update_every": 5}
    runs = {
        name: prepare(tmp_path / name, graded_copper, [copper], uncertainty={**adapted, **changes}, **common)
        for name, changes in {"biased": {"strength": 0.5}, "plain": {"strength": 1e-9}}.items()
    }
    for run in runs.values():
        assert main([str(run)]) == 0
        assert report(run).status == "finished"
        assert len(frames(run)) == 40
    model = load_model(graded_copper / "model.nequip.zip", device="cpu", features=True)
    values = {name: predict(model, frames(run), features=True).features for name, run in runs.items()}
    space = fit_whitening(values["plain"], components=2)
    volume = {name: explored_volume(space(value), edge=0.5) for name, value in values.items()}
    assert volume["biased"] >= 1.5 * volume["plain"]
    with np.load(graded_copper / "statistics.npz") as arrays:
        grades = Grades.from_arrays(dict(arrays))
    novelty = {name: grades.novelty(value, np.full(len(value), 29)) for name, value in values.items()}
    assert np.mean(novelty["biased"] > 1) > 2 * np.mean(novelty["plain"] > 1)
    assert smallest_distances(frames(runs["biased"]), cutoff=5).min() > 1.7
    # the strength is what was asked for: the bias pushes with half of the forces
    ratio = history(runs["biased"])["force_ratio"]
    assert np.median(ratio[len(ratio) // 2 :]) == pytest.approx(0.5, rel=0.25)


def test_strength_and_its_history_are_stored(graded, tmp_path):
    run = prepare(tmp_path / "run", graded, [carbide(1)])
    assert main([str(run)]) == 0
    found = history(run)
    assert found["step"].tolist() == list(range(5, 61, 5))
    assert found["tau_ev"][-1] == report(run).tau_ev > 0
    assert (np.diff(found["tau_ev"][:4]) > 0).all()  # the ramp
    assert (found["uncertainty"] > 0).all()
    assert report(run).trajectories[0].largest_bias_ev < 0
    with np.load(run / "series.npz") as series:
        assert (series["bias_energy_ev"] < 0).all()


def test_a_resumed_run_equals_the_uninterrupted_one(graded, tmp_path):
    keys = {"replicas": 2, "seed": 11, "fixed_atoms": [0, 3], "n_steps": 40}
    whole = prepare(tmp_path / "whole", graded, [carbide(2)], **keys)
    assert main([str(whole)]) == 0
    parts, pieces = tmp_path / "parts", []
    prepare(parts, graded, [carbide(2)], max_seconds=1e-6, **keys)
    for attempt in range(6):
        if attempt == 2:
            prepare(parts, graded, [carbide(2)], **keys)
        assert main([str(parts)]) == 0
        pieces.append(frames(parts).positions)
        if report(parts).status == "finished":
            break
        assert report(parts).status == "walltime"
    assert attempt == 2
    np.testing.assert_allclose(np.concatenate(pieces), frames(whole).positions, atol=1e-7)
    ours, theirs = history(parts), history(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-8)


def test_walls_hold(graded, tmp_path):
    """A bias much stronger than the forces drives atoms together or heats them: both end a trajectory by its wall."""
    hot = prepare(
        tmp_path / "hot",
        graded,
        [carbide(3)],
        n_steps=400,
        record_every=2,
        walls={"min_distance_ang": 0.3, "max_temperature_k": 600},
        uncertainty={"strength": 2.0, "ramp_steps": 0, "update_every": 1, "saturation": 100.0},
    )
    assert main([str(hot)]) == 0
    assert report(hot).trajectories[0].stopped_by == "temperature"
    close = prepare(
        tmp_path / "close",
        graded,
        [carbide(3)],
        n_steps=400,
        walls={"min_distance_ang": 1.7, "max_temperature_k": 1e6, "pair_action": "stop"},
        uncertainty={"strength": 2.0, "ramp_steps": 0, "update_every": 1, "saturation": 100.0},
    )
    assert main([str(close)]) == 0
    assert report(close).trajectories[0].stopped_by == "pair_distance"
    if report(close).trajectories[0].frames:
        assert smallest_distances(frames(close), cutoff=5).min() >= 1.7


def test_refusals(graded, tmp_path):
    def refused(folder: Path) -> MetadynamicsReport:
        assert main([str(folder)]) == 2
        return report(folder)

    bare = prepare(tmp_path / "bare", tmp_path, [carbide(1)])
    assert "statistics.npz" in refused(bare).message
    run = prepare(tmp_path / "run", graded, [carbide(1)])
    assert main([str(run)]) == 0
    (run / "bias" / "uncertainty.npz").write_bytes(b"no archive")
    assert "bias: uncertainty.npz" in refused(run).message
    (run / "bias" / "uncertainty.npz").write_bytes(write_npz({"tau_ev": np.array(1.0)}))
    assert "'force_square' must be one number" in refused(run).message
    strange = prepare(tmp_path / "strange", graded, [bulk("Ge", cubic=True)])
    assert "never trained on Ge" in refused(strange).message
