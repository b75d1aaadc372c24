"""The program aiida-mlip-metadynamics, run for real: known free energies, exact resumes, walls, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from double_well import DoubleWell, molecule

from aiida_mlip.io.colvars import read_pmf
from aiida_mlip.io.metadynamics import MetadynamicsReport, MetadynamicsRequest, MetadynamicsSpec
from aiida_mlip.io.shards import read_shard, write_shard
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.metadynamics.descriptor import EnvironmentDescriptor
from aiida_mlip.kernel.metadynamics.environment_bias import descriptors
from aiida_mlip.kernel.metadynamics.whitening import explored_volume, fit_whitening
from aiida_mlip.workers.metadynamics import main
from aiida_mlip.workers.metadynamics_engines import EngineMissingError, check_plumed

TESTS = Path(__file__).parents[1]
EMT_FORCES = {"calculator": "ase.calculators.emt.EMT"}
WELL = {"calculator": "double_well.DoubleWell"}
DISTANCE = {"name": "d", "kind": "distance", "group1": [0], "group2": [1], "lower": 1.7, "upper": 3.3, "width": 0.1}
SKEWED = [[12.0, 0, 0], [3, 11, 0], [5, -4, 10]]


def prepare(folder: Path, structures, engine_input=None, max_seconds=None, checkpoint_seconds=30.0, **keys) -> Path:
    folder.mkdir(exist_ok=True)
    spec = MetadynamicsSpec.model_validate(
        {"temperature_k": 300, "timestep_fs": 4, "n_steps": 100, "record_every": 20, "friction_per_ps": 10, **keys}
    )
    request = MetadynamicsRequest(
        spec=spec,
        engine_input=engine_input is not None,
        max_seconds=max_seconds,
        checkpoint_seconds=checkpoint_seconds,
    )
    (folder / "input.json").write_text(request.model_dump_json())
    frames = structures if isinstance(structures, Frames) else from_ase(structures)
    (folder / "structures.npz").write_bytes(write_shard(frames))
    if engine_input is not None:
        (folder / "engine_input.txt").write_text(engine_input)
    return folder


def report(folder: Path) -> MetadynamicsReport:
    return MetadynamicsReport.model_validate_json((folder / "output.json").read_text())


def frames(folder: Path) -> Frames:
    with (folder / "trajectory.npz").open("rb") as handle:
        return read_shard(handle)


def environment(**keys):
    return {
        "engine": "environment",
        "forces": EMT_FORCES,
        "hills": {"height_ev": 0.02, "every": 20},
        "environment": {"cutoff_ang": 4.5, "components": 2, "reference_steps": 60},
        "walls": {"min_distance_ang": 1.9, "max_temperature_k": 3000},
        **keys,
    }


def colvars(**keys):
    return {
        "engine": "colvars",
        "forces": WELL,
        "hills": {"height_ev": 0.006, "every": 100, "bias_factor": 10},
        "walls": {"min_distance_ang": 1.0},
        "collective_variables": [DISTANCE],
        **keys,
    }


@pytest.mark.slow
def test_colvars_recovers_the_barrier_of_a_double_well(tmp_path):
    start = molecule(cell=SKEWED, shift=(11.5, 6.9, 9.9))  # the bond crosses the faces of a skewed cell
    run = prepare(tmp_path, [start], **colvars(n_steps=20_000, record_every=1000))
    assert main([str(run)]) == 0
    assert report(run).status == "finished"
    distance, energy = read_pmf((run / "bias" / "bias.pmf").read_text())
    distance, well = distance[:, 0], DoubleWell()
    top = energy[np.abs(distance - well.c) < 0.15].max()
    measured = top - energy[distance < well.c - 0.2].min()
    assert measured == pytest.approx(well.barrier(300), rel=0.10)
    # the grid reaches beyond the region of interest, the molecule does not go far there
    assert smallest_distances(frames(run), cutoff=20).min() > 1.5


def test_environment_space_is_explored_at_least_twice_as_far(tmp_path):
    copper = bulk("Cu", cubic=True).repeat(2)
    common = {"n_steps": 300, "record_every": 10, "seed": 3}
    plain = environment(hills={"height_ev": 1e-9, "every": 300})
    biased = prepare(tmp_path / "biased", [copper], **environment(**common))
    unbiased = prepare(tmp_path / "unbiased", [copper], **(plain | common))
    assert main([str(biased)]) == 0
    assert main([str(unbiased)]) == 0
    descriptor = EnvironmentDescriptor(species=(29,), cutoff_ang=4.5)
    values = {run.name: descriptors(descriptor, frames(run)) for run in (biased, unbiased)}
    space = fit_whitening(values["unbiased"], components=2)
    volume = {name: explored_volume(space(value), edge=0.5) for name, value in values.items()}
    assert len(frames(biased)) == len(frames(unbiased)) == 30
    assert volume["biased"] >= 2 * volume["unbiased"]
    assert smallest_distances(frames(biased), cutoff=5).min() >= 1.9
    assert report(biased).hills > 50


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    gold = bulk("Au", cubic=True).repeat((2, 1, 1))
    gold.rattle(0.02, seed=1)
    keys = environment(n_steps=120, replicas=2, seed=11, fixed_atoms=[0, 3])
    whole = prepare(tmp_path / "whole", [gold], **keys)
    assert main([str(whole)]) == 0
    parts, pieces, runs = tmp_path / "parts", [], 0
    prepare(parts, [gold], max_seconds=1e-6, **keys)
    while True:
        assert main([str(parts)]) == 0
        pieces.append(frames(parts).positions)
        runs += 1
        if report(parts).status == "finished":
            break
        assert report(parts).status == "walltime"
        assert (parts / "checkpoint.npz").exists()
        if runs == 3:
            prepare(parts, [gold], **keys)
    assert runs == 4
    assert not (parts / "checkpoint.npz").exists()
    # equal but for the order in which EMT adds up its neighbours, which depends on when it began
    np.testing.assert_allclose(np.concatenate(pieces), frames(whole).positions, atol=1e-8)
    with np.load(parts / "bias" / "hills.npz") as ours, np.load(whole / "bias" / "hills.npz") as theirs:
        for name in theirs.files:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-8)
    moved = frames(whole).positions.reshape(-1, len(gold), 3) - gold.positions
    assert np.abs(moved[:, [0, 3]]).max() == 0
    assert np.abs(moved[:, 1]).max() > 0.01


def test_lineage_of_the_frames(tmp_path):
    start = from_ase([molecule(), molecule(shift=(0.0, 0.1, 0.0))])
    run = prepare(tmp_path, start, **colvars(n_steps=60, replicas=2))
    assert main([str(run)]) == 0
    found = frames(run)
    assert found.generators == ("metadynamics",)
    assert len(found) == 12
    assert [start.ids().index(parent.hex()) for parent in map(bytes, found.parent_id)] == [0] * 6 + [1] * 6
    groups = [bytes(group) for group in found.group_id]
    assert len(set(groups)) == 4
    assert groups[:3] == [groups[0]] * 3
    assert not found.labelled.any()
    assert len(list((run / "bias").glob("variables_*.traj"))) == 4


def laid(folder: Path) -> float:
    """Integral of the bias over the variable: every hill adds the same."""
    distance, energy = read_pmf((folder / "bias" / "bias.pmf").read_text())
    return float((energy.max() - energy).sum() * (distance[1, 0] - distance[0, 0]))


def test_colvars_goes_on_from_a_stored_bias(tmp_path):
    # five chunks each: no hill may be lost between chunks, trajectories, or runs
    keys = {"n_steps": 1000, "record_every": 200, "hills": {"height_ev": 0.006, "every": 50}}
    first = prepare(tmp_path / "first", [molecule()], **colvars(**keys))
    assert main([str(first)]) == 0
    one_run = laid(first)
    assert one_run == pytest.approx(20 * 0.006 * 0.1 * np.sqrt(2 * np.pi), rel=0.1)
    second = prepare(tmp_path / "second", [molecule()], **colvars(seed=5, replicas=2, **keys))
    (first / "bias").rename(second / "bias")
    assert main([str(second)]) == 0
    assert laid(second) == pytest.approx(3 * one_run, rel=0.1)


def test_colvars_input_of_ones_own(tmp_path):
    own = """
    units metal
    colvar {
      name wide
      distance {
        group1 { atomNumbers 1 }
        group2 { atomNumbers 2 }
      }
    }
    harmonic {
      name hold
      colvars wide
      centers 2.5
      forceConstant 40.0
    }
    """
    start = molecule()
    start.positions[1, 0] = 2.45
    keys = colvars(collective_variables=[], n_steps=400, record_every=10)
    run = prepare(tmp_path, [start], engine_input=own, **keys)
    assert main([str(run)]) == 0
    # held on the top between the wells, where no molecule stays by itself
    assert smallest_distances(frames(run), cutoff=6).mean() == pytest.approx(2.5, abs=0.05)


def test_angle_and_coordination_are_those_of_the_structure(tmp_path):
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, seed=2)
    variables = [
        {**DISTANCE, "name": "a", "kind": "angle", "group3": [2], "lower": 40, "upper": 110, "width": 5},
        {**DISTANCE, "name": "c", "kind": "coordination", "group1": [0], "group2": [1, 2, 3], "cutoff_ang": 3.0}
        | {"lower": 0.5, "upper": 3.0},
    ]
    keys = {"collective_variables": variables, "walls": {"max_temperature_k": 1e5}}
    run = prepare(tmp_path, [copper], **colvars(forces=EMT_FORCES, n_steps=20, **keys))
    assert main([str(run)]) == 0
    rows = [line.split() for line in (run / "bias" / "variables_0000.traj").read_text().splitlines()]
    last = frames(run).to_ase(0)
    assert [int(rows[-1][0]), len(rows[-1])] == [20, 3]
    assert float(rows[-1][1]) == pytest.approx(last.get_angle(0, 1, 2, mic=True), abs=1e-4)
    x = last.get_distances(0, [1, 2, 3], mic=True) / 3.0
    assert float(rows[-1][2]) == pytest.approx(((1 - x**6) / (1 - x**12)).sum(), abs=1e-4)


def test_walls_of_temperature(tmp_path):
    hot = colvars(n_steps=400, temperature_k=600, walls={"min_distance_ang": 0.5, "max_temperature_k": 650})
    run = prepare(tmp_path / "stop", [molecule()], **hot)
    assert main([str(run)]) == 0
    trajectory = report(run).trajectories[0]
    assert (trajectory.stopped_by, trajectory.steps < 400) == ("temperature", True)
    assert "limit of 650 K" in trajectory.message
    hot["walls"]["temperature_action"] = "repel"
    run = prepare(tmp_path / "repel", [molecule()], **hot)
    assert main([str(run)]) == 0
    assert report(run).trajectories[0].stopped_by == "finished"
    assert report(run).trajectories[0].frames == 20


def test_walls_of_distance(tmp_path):
    # the left well is at 2.0 Å; a limit just below it is crossed soon unless a wall repels
    keys = {"temperature_k": 300, "n_steps": 600, "seed": 1, "record_every": 5}
    walls = {"min_distance_ang": 1.9, "pair_action": "stop", "max_temperature_k": 50_000}
    run = prepare(tmp_path / "stop", [molecule()], **colvars(walls=walls, **keys))
    assert main([str(run)]) == 0
    stopped = report(run).trajectories[0]
    assert stopped.stopped_by == "pair_distance"
    assert smallest_distances(frames(run), cutoff=6).min() >= 1.9
    walls |= {"pair_action": "repel", "pair_strength_ev_per_ang2": 200.0, "pair_onset": 1.1}
    run = prepare(tmp_path / "repel", [molecule()], **colvars(walls=walls, **keys))
    assert main([str(run)]) == 0
    assert report(run).trajectories[0].steps > stopped.steps


def test_structure_below_the_limit_is_not_started(tmp_path):
    run = prepare(tmp_path, [molecule()], **colvars(walls={"min_distance_ang": 2.5}))
    assert main([str(run)]) == 0
    trajectory = report(run).trajectories[0]
    assert (trajectory.stopped_by, trajectory.frames) == ("pair_distance", 0)
    assert "atoms 0 and 1 2.000 Å apart" in trajectory.message
    assert not (run / "trajectory.npz").exists()


@pytest.mark.parametrize("engine", ["colvars", "environment"])
def test_calculator_that_breaks_down_leaves_its_frames(tmp_path, engine):
    forces = {"calculator": "double_well.DoubleWell", "arguments": {"fail_after": 250}}
    spec = (colvars if engine == "colvars" else environment)(
        forces=forces, n_steps=400, walls={"min_distance_ang": 1.0, "max_temperature_k": 9e4}
    )
    run = prepare(tmp_path, [molecule()], **spec)
    assert main([str(run)]) == 0
    trajectory = report(run).trajectories[0]
    assert trajectory.stopped_by == "forces_failed"
    assert "the calculator broke down" in trajectory.message
    assert len(frames(run)) == trajectory.frames > 3


def test_signal_ends_it_cleanly(tmp_path):
    forces = {"calculator": "double_well.DoubleWell", "arguments": {"delay_s": 0.002}}
    run = prepare(tmp_path, [molecule()], checkpoint_seconds=0.2, **colvars(forces=forces, n_steps=1_000_000))
    program = Path(sys.executable).parent / "aiida-mlip-metadynamics"
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([program, run], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        give_up = time.monotonic() + 60
        while not (run / "output.json").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        assert report(run).status == "running"  # what a kill -9 would leave: frames, bias and checkpoint are there
        assert len(frames(run)) >= 1
        assert (run / "checkpoint.npz").exists()
        assert (run / "bias" / "bias.colvars.state").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert report(run).status == "walltime"
    assert report(run).trajectories[0].steps >= 20 * len(frames(run))


@pytest.mark.parametrize(
    ("keys", "reason", "message"),
    [
        ({"forces": {"calculator": "no_such_module.Thing"}}, "invalid_input", "no_such_module"),
        (
            {"collective_variables": [], "engine_input": "colvar {\n name d\n nonsense {\n }\n}"},
            "invalid_input",
            "colvar",
        ),
        (
            {"engine": "plumed", "hills": None, "collective_variables": [], "engine_input": "d: DISTANCE ATOMS=1,2"},
            "engine_missing",
            "PLUMED",
        ),
    ],
)
def test_refusals(tmp_path, monkeypatch, keys, reason, message):
    monkeypatch.setenv("PLUMED_KERNEL", "/nonexistent/libplumedKernel.so")
    run = prepare(tmp_path, [molecule()], **{**colvars(), **keys})
    assert main([str(run)]) == 2
    found = report(run)
    assert (found.status, found.reason) == ("refused", reason)
    assert message in found.message


def test_checkpoint_of_another_run(tmp_path):
    run = prepare(tmp_path, [molecule()], **colvars())
    np.savez(run / "checkpoint.npz", trajectory=5, step=1, positions=np.zeros((2, 3)), momenta=np.zeros((2, 3)))
    assert main([str(run)]) == 2
    assert "checkpoint: not one of this run" in report(run).message
    (run / "checkpoint.npz").write_bytes(b"nonsense")
    assert main([str(run)]) == 2
    assert report(run).reason == "invalid_input"


def test_bias_of_another_engine(tmp_path):
    run = prepare(tmp_path, [molecule()], **environment(forces=WELL, walls={"min_distance_ang": 1.0}))
    (run / "bias").mkdir()
    (run / "bias" / "hills.npz").write_bytes(b"nonsense")
    assert main([str(run)]) == 2
    assert "bias: hills.npz" in report(run).message


def test_plumed(tmp_path):
    """Where PLUMED has a kernel (PLUMED_KERNEL); elsewhere test_refusals shows what is said."""
    try:
        check_plumed()
    except EngineMissingError as error:
        pytest.skip(str(error))
    own = """
    UNITS LENGTH=A TIME=ps ENERGY=eV
    d: DISTANCE ATOMS=1,2
    metad: METAD ARG=d PACE=50 HEIGHT=0.006 SIGMA=0.1 FILE=HILLS
    PRINT ARG=d,metad.bias FILE=COLVAR STRIDE=100
    """
    keys = {"engine": "plumed", "forces": WELL, "walls": {"min_distance_ang": 1.0}, "replicas": 2}
    run = prepare(tmp_path, [molecule()], engine_input=own, n_steps=500, record_every=100, **keys)
    assert main([str(run)]) == 0
    rows = np.loadtxt(run / "bias" / "COLVAR")
    with np.load(run / "series.npz") as series:
        np.testing.assert_allclose(series["bias_energy_ev"][-5:], rows[-5:, 2], atol=1e-5)
        np.testing.assert_allclose(series["smallest_distance_ang"][-5:], rows[-5:, 1], atol=1e-5)
    hills = np.loadtxt(run / "bias" / "HILLS")
    assert len(hills) >= 20  # those of the first trajectory are still there


def test_unreadable_request(tmp_path):
    (tmp_path / "input.json").write_text(json.dumps({"spec": {"engine": "metadynamix"}}))
    assert main([str(tmp_path)]) == 2
    assert report(tmp_path).reason == "invalid_input"


def test_program_is_reproducible(tmp_path):
    outputs = []
    for name in ("a", "b"):
        run = prepare(tmp_path / name, [molecule()], **colvars(n_steps=200))
        assert main([str(run)]) == 0
        outputs.append((run / "trajectory.npz").read_bytes())
    assert outputs[0] == outputs[1]
    other = prepare(tmp_path / "c", [molecule()], **colvars(n_steps=200, seed=1))
    assert main([str(other)]) == 0
    assert (other / "trajectory.npz").read_bytes() != outputs[0]


def test_temperature_is_that_of_the_thermostat(tmp_path):
    """Both integrators, without a noticeable bias: mean kinetic temperature within the statistical error."""
    for spec in (colvars(hills={"height_ev": 1e-9, "every": 1000}), environment(forces=EMT_FORCES)):
        spec["hills"] = {"height_ev": 1e-9, "every": 1000}
        copper = bulk("Cu", cubic=True)
        copper.rattle(0.05, seed=0)
        spec |= {"forces": EMT_FORCES, "n_steps": 600, "record_every": 5, "friction_per_ps": 50}
        if spec["engine"] == "colvars":
            spec["collective_variables"] = [{**DISTANCE, "lower": 0.5, "upper": 4.0}]
        run = prepare(tmp_path / spec["engine"], [copper.repeat((2, 1, 1))], **spec)
        assert main([str(run)]) == 0
        assert report(run).trajectories[0].mean_temperature_k == pytest.approx(300, rel=0.15)


def test_calculator_is_the_one_asked_for(tmp_path):
    copper = bulk("Cu", cubic=True)
    run = prepare(tmp_path, [copper], **environment(n_steps=20))
    assert main([str(run)]) == 0
    with np.load(run / "series.npz") as series:
        energy = series["potential_energy_ev"][-1]
    last = frames(run).to_ase(-1 % len(frames(run)))
    last.calc = EMT()
    assert energy == pytest.approx(last.get_potential_energy(), abs=1e-9)
