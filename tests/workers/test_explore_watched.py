"""Watched runs with a real committee: driven out of the domain they end in time, and go on with what was learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from emt_copper import LATTICE_ANG
from watched_copper import Watched, prepare_watched, watched

from aiida_mlip.io.explore import ExploreReport
from aiida_mlip.io.shards import read_shard
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, from_ase, id_hex
from aiida_mlip.workers.explore import main

pytestmark = [pytest.mark.nequip, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch about itself

LIMIT_ANG = 1.7
HEAT = {"n_steps": 400, "temperature_k": 300, "end_temperature_k": 4000, "friction_per_ps": 20}


@pytest.fixture(scope="module")
def source(emt_copper_committee) -> Watched:
    return watched(emt_copper_committee, members=2)


def crystal(repeat=(2, 2, 1)) -> Frames:
    return from_ase([bulk("Cu", cubic=True, a=LATTICE_ANG).repeat(repeat)])


def heated(**keys):
    limits = {"min_distance_ang": LIMIT_ANG, "max_temperature_k": 9e4}
    return {
        "kind": "md",
        "md": {"timestep_fs": 2.0, "schedule": [HEAT]},
        "record_every": 20,
        "limits": limits,
        "watch": {},
        **keys,
    }


def frames(folder: Path, name: str) -> Frames:
    with (folder / name).open("rb") as handle:
        return read_shard(handle)


def report(folder: Path) -> ExploreReport:
    return ExploreReport.model_validate_json((folder / "output.json").read_text())


def test_heating_ends_before_atoms_come_too_close(tmp_path, source):
    """Three seeds of what benchmarks/bench_explore.py does with twenty."""
    run = prepare_watched(tmp_path, source, crystal(), replicas=3, **heated())
    assert main([str(run)]) == 0
    for found in report(run).runs:
        assert found.stopped_by == "novelty"
        assert found.largest_novelty > 4
        assert "γ = " in found.message
        assert found.steps < found.stopped_at <= found.steps + 10
        assert found.selected >= 1
    everything = smallest_distances(frames(run, "trajectory.npz"), cutoff=6)
    assert everything.min() > LIMIT_ANG
    assert smallest_distances(frames(run, "selected.npz"), cutoff=6).min() > LIMIT_ANG


def test_selected_frames_come_with_the_grades_of_their_atoms(tmp_path, source):
    run = prepare_watched(tmp_path, source, crystal(), members=1, selected_every=30, **heated(seed=3))
    assert main([str(run)]) == 0
    chosen = frames(run, "selected.npz")
    with np.load(run / "grades.npz") as arrays:
        grades = dict(arrays)
    assert id_hex(grades["frame_id"]) == chosen.ids()
    np.testing.assert_array_equal(grades["natoms"], chosen.natoms)
    novelty = grades["novelty"].reshape(len(chosen), -1)
    np.testing.assert_allclose(novelty.max(axis=1), grades["largest_novelty"])
    # each is above a threshold, in its worst atom
    unit = source.calibration.force_rmse_validation
    assert ((grades["largest_novelty"] > 1.5) | (grades["largest_error_ev_per_ang"] > 2 * unit)).all()
    # the committee was asked, because each of them has an atom beyond the border
    assert (grades["largest_novelty"] > 1).all()
    error = grades["error_ev_per_ang"].reshape(len(chosen), -1)
    assert np.isfinite(error).all()
    np.testing.assert_allclose(error.max(axis=1), grades["largest_error_ev_per_ang"])
    spacing = np.diff(grades["step"])
    assert (spacing[:-1] >= 30).all()  # the frame of the stop is always there
    assert grades["step"][-1] == report(run).runs[0].stopped_at
    assert report(run).runs[0].selected == len(chosen)
    # the grades are those of the potential itself
    from aiida_mlip.workers.force_source import calculator_of_package

    calculator = calculator_of_package(
        source.packages[0],
        device="cpu",
        sha256=None,
        species=(),
        wanted=("Cu",),
        shifts={},
        fidelity=None,
        grades=source.grades,
    )
    np.testing.assert_allclose(calculator.novelty(chosen.to_ase(0)), novelty[0], rtol=1e-4)


def test_a_stopped_run_goes_on_from_its_last_trusted_frame(tmp_path, source):
    """As after a retraining: here the new potential is one that minds nothing."""
    run = prepare_watched(tmp_path / "stopped", source, crystal(), **heated())
    assert main([str(run)]) == 0
    stopped = report(run).runs[0]
    assert stopped.stopped_by == "novelty"
    keys = heated(watch={"novelty_stop": None}, md={"timestep_fs": 2.0, "schedule": [HEAT | {"n_steps": 400}]})
    again = prepare_watched(tmp_path / "again", source, crystal(), restart_stopped=True, **keys)
    (again / "checkpoint.npz").write_bytes((run / "checkpoint.npz").read_bytes())
    assert main([str(again)]) == 0
    found = report(again).runs[0]
    assert found.steps > stopped.stopped_at or found.stopped_by == "pair_distance"
    with np.load(again / "series.npz") as arrays:
        assert arrays["step"][0] > stopped.steps


def test_a_start_outside_of_the_domain_is_stopped_at_once(tmp_path, source):
    cell = bulk("Cu", cubic=True, a=LATTICE_ANG * 0.85).repeat((2, 2, 1))
    run = prepare_watched(tmp_path, source, from_ase([cell]), **heated())
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert (found.stopped_by, found.steps, found.frames, found.selected) == ("novelty", 0, 0, 1)


@pytest.mark.parametrize("kind", ["relax", "lammps", "monte_carlo"])
def test_other_kinds_are_watched_too(tmp_path, source, kind):
    sections = {
        "relax": {"relax": {"max_steps": 8, "cell": "free"}},
        "lammps": {
            "lammps": {
                "timestep_fs": 2.0,
                "n_steps": 400,
                "temperature_k": 300,
                "commands": ["fix pull all deform 1 x erate 1.0 y erate 1.0 z erate 1.0 remap x"],
            }
        },
        "monte_carlo": {
            "monte_carlo": {"moves": "hybrid", "temperature_k": 300, "n_steps": 8, "swaps_per_cycle": 0, "n_shells": 0}
        },
    }
    keys = heated(kind=kind, watch={"every": 4}, record_every=4) | sections[kind]
    del keys["md"]
    run = prepare_watched(tmp_path, source, crystal(), **keys)
    assert main([str(run)]) == 0
    found = report(run).runs[0]
    assert found.largest_novelty > 0
    if kind == "lammps":  # stretched until the potential knows no more, in a box that LAMMPS changes
        assert found.stopped_by == "novelty"
        assert found.numbers["volume_ang3_per_atom"] > 1.02 * LATTICE_ANG**3 / 4
    else:
        assert found.stopped_by in ("finished", "converged", "not_converged")


@pytest.mark.parametrize("kind", ["md", "relax"])
def test_a_watched_run_that_is_interrupted_equals_one_that_is_not(tmp_path, source, kind):
    """Every job is stopped as soon as it can be: at observed frames, so that each gets on."""
    watch = {"every": 4, "novelty_select": 0.01, "novelty_stop": None}
    keys = heated(watch=watch, record_every=6, selected_every=8)
    keys["md"] = {"timestep_fs": 2.0, "schedule": [HEAT | {"n_steps": 14}]}
    start = bulk("Cu", cubic=True, a=LATTICE_ANG).repeat((2, 1, 1))
    start.rattle(0.05, seed=3)
    if kind == "relax":
        del keys["md"]
        keys |= {"kind": "relax", "relax": {"max_steps": 14, "frame_displacement_ang": 10.0, "fmax_ev_per_ang": 1e-3}}
    whole = prepare_watched(tmp_path / "whole", source, from_ase([start]), **keys)
    assert main([str(whole)]) == 0
    parts, steps, novelties = tmp_path / "parts", [], []
    ends: list[str] = []
    while "finished" not in ends and len(ends) < 10:
        for name in ("grades.npz", "trajectory.npz", "series.npz", "selected.npz"):
            (parts / name).unlink(missing_ok=True)
        prepare_watched(parts, source, from_ase([start]), max_seconds=1e-6, **keys)
        assert main([str(parts)]) == 0
        if (parts / "grades.npz").exists():
            with np.load(parts / "grades.npz") as arrays:
                steps.append(arrays["step"])
                novelties.append(arrays["novelty"])
        ends.append(report(parts).status)
    assert len(ends) >= 4
    assert ends == ["walltime"] * (len(ends) - 1) + ["finished"]
    with np.load(whole / "grades.npz") as arrays:
        np.testing.assert_array_equal(np.concatenate(steps), arrays["step"])
        np.testing.assert_allclose(np.concatenate(novelties), arrays["novelty"], rtol=1e-3)
    assert report(parts).runs[0].selected == report(whole).runs[0].selected
