"""The calcfunction that selects: provenance, summary, what other nodes know, and its exit codes."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from ase.build import bulk

from aiida_mlip.calculations.functions import select as module
from aiida_mlip.calculations.functions.select import complete_settings, means_of, precision_of, select
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.selection.frames import SelectSettings
from aiida_mlip.kernel.uncertainty.grades import fit_grades

pytestmark = pytest.mark.usefixtures("aiida_profile")


def copper(n: int, *, first: int = 0) -> Frames:
    images = []
    for seed in range(first, first + n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.02 + 0.01 * (seed % 10), seed=seed)
        images.append(atoms)
    return from_ase(images)


def labelled(frames: Frames, cost: float) -> Frames:
    n = len(frames)
    return frames.with_columns(
        energy=np.zeros(n), fidelity=np.zeros(n, dtype="<i2"), fidelities=("pbe",), cost=np.full(n, cost, dtype="<f4")
    )


def test_selected_frames_keep_their_lineage_and_the_summary_adds_up():
    frames = copper(20)
    squeezed = copper(1, first=50)
    squeezed = squeezed.with_columns(positions=squeezed.positions * 0.6)
    candidates = DatasetData.from_frames(concatenate([frames, squeezed]))
    reference = DatasetData.from_frames(labelled(frames.take(range(5)), 7200.0), settings={"pbe": "a" * 64})
    outputs, node = select.run_get_node(
        spec=orm.Dict({"max_frames": 30, "core_hours": 20.0}), candidates=candidates, reference=reference
    )
    assert node.is_finished_ok
    summary, chosen = outputs["summary"].get_dict(), outputs["dataset"]
    assert chosen.base.links.get_incoming().first().node.pk == node.pk
    assert len(chosen) == summary["n_selected"] == 10  # two core-hours each, as measured
    assert summary["core_hours"] == pytest.approx(20.0)
    assert summary["dropped"]["duplicate"] == 5
    assert summary["dropped"]["pair_distance"] == 1
    assert "frame 20: Cu (atom" in summary["details"][0]
    assert sum(summary["dropped"].values()) + 10 == summary["n_candidates"] == 21
    assert chosen.frame_ids() == [entry["frame_id"] for entry in summary["selected"]]
    ids = candidates.frame_ids()
    assert [ids[entry["row"]] for entry in summary["selected"]] == chosen.frame_ids()


def test_environments_decide():
    frames = copper(12)
    features = np.random.default_rng(0).normal(size=(48, 3)) * 0.1 + 1.0
    features[4 * 8 + 1] += 5.0
    errors = np.full(48, 0.3)
    errors[4 * 3] = 0.0
    environments = orm.ArrayData({"features": features, "errors": errors, "novelty": errors})
    outputs, node = select.run_get_node(
        spec=orm.Dict({"max_frames": 1, "error_threshold_ev_per_ang": 0.3}),
        candidates=DatasetData.from_frames(frames),
        environments=environments,
    )
    assert node.is_finished_ok
    (entry,) = outputs["summary"]["selected"]
    assert (entry["row"], entry["atom"]) == (8, 1)
    assert outputs["summary"]["core_hours"] is None


def test_grades_say_what_the_training_set_was():
    rng = np.random.default_rng(1)
    features, numbers = rng.normal(size=(400, 4)), np.repeat([29, 79], 200)
    grades = fit_grades(features, numbers)
    np.testing.assert_allclose(precision_of(grades), features.T @ features, atol=1e-4)
    assert means_of(grades).shape[1] == 4


def test_a_budget_without_costs_a_shape_and_too_many_atoms_end_with_313(monkeypatch):
    candidates = DatasetData.from_frames(copper(3))
    _, node = select.run_get_node(spec=orm.Dict({"core_hours": 5.0}), candidates=candidates)
    assert node.exit_status == 313
    assert "give spec.cost" in node.exit_message
    _, node = select.run_get_node(
        spec=orm.Dict({}), candidates=candidates, environments=orm.ArrayData({"features": np.ones((5, 2))})
    )
    assert node.exit_status == 313
    assert "features: expected 12 rows" in node.exit_message
    monkeypatch.setattr(module, "MAX_ENVIRONMENTS", 10)
    _, node = select.run_get_node(spec=orm.Dict({}), candidates=candidates)
    assert node.exit_status == 313
    assert "more than 10 atoms" in node.exit_message


def test_nothing_left_ends_with_314_and_the_reasons():
    frames = copper(3)
    _, node = select.run_get_node(
        spec=orm.Dict({}), candidates=DatasetData.from_frames(frames), reference=DatasetData.from_frames(frames)
    )
    assert node.exit_status == 314
    assert node.exit_message == "no frame is left to label: 3 duplicate"


def test_what_the_specification_says_goes_before_what_nodes_know():
    reference = DatasetData.from_frames(labelled(copper(2), 3600.0))
    assert complete_settings(SelectSettings(), reference, None).cost.core_hours == pytest.approx(1 / 16)
    assert complete_settings(SelectSettings(), None, None) == SelectSettings()
