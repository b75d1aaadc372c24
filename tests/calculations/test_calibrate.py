"""Judging potentials: calibration of a committee and potentials with their grades, as calculations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from aiida import orm

from aiida_mlip.calculations.functions.calibrate import calibrate, judge_potential
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.uncertainty.grades import fit_grades

FRAMES, ATOMS = 30, 8


def parity(i: int, *, part: int = -1, frames: int = FRAMES) -> orm.ArrayData:
    """Output of an evaluation of member i."""
    truth = np.random.default_rng(0).normal(size=(frames * ATOMS, 3))
    noise = np.random.default_rng(1).lognormal(-3, 0.5, size=(frames * ATOMS, 1))
    return orm.ArrayData(
        {
            "frame_id": np.random.default_rng(2).integers(0, 256, size=(frames, 16), dtype=np.uint8),
            "part": np.full(frames, part, dtype=np.int8),
            "natoms": np.full(frames, ATOMS),
            "numbers": np.tile([14, 6], frames * ATOMS // 2).astype(np.uint8),
            "forces_reference": truth,
            "forces_predicted": truth + noise * np.random.default_rng(10 + i).normal(size=truth.shape),
        }
    )


def settings(**values: float) -> orm.Dict:
    return orm.Dict({"level": 0.9, "seed": 0, **values})


def test_calibration_of_a_committee_on_any_held_out_dataset(aiida_profile) -> None:
    members = {f"member_{i}": parity(i) for i in range(3)}
    found, node = calibrate.run_get_node(settings=settings(), **members)
    assert node.is_finished_ok
    assert set(found) == set(members)
    again = calibrate(settings=settings(), **members)
    for name, value in found.items():
        content = value.get_dict()
        assert set(content["scale"]) == {"Si", "C"}
        assert content["metrics"]["coverage"]["all"] == pytest.approx(0.9, abs=0.05)
        assert again[name].get_dict() == content


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"member_0": 0}, "at least two members"),
        ({"member_0": 0, "member_1": 30}, "evaluated on other frames"),
        ({"member_0": 0, "member_1": -1}, "is no parity data: arrays ['frame_id'"),
    ],
)
def test_what_cannot_be_calibrated_is_an_exit_code(aiida_profile, members: dict, message: str) -> None:
    nodes = {}
    for name, kind in members.items():
        node = parity(kind, frames=FRAMES - kind // 30)
        nodes[name] = orm.ArrayData({"x": np.zeros(3)}) if kind < 0 else node
    found, node = calibrate.run_get_node(settings=settings(), **nodes)
    assert found == {}
    assert (node.exit_status, message in node.exit_message) == (400, True), node.exit_message


def test_trained_frames_are_no_held_out_frames(aiida_profile) -> None:
    _, node = calibrate.run_get_node(settings=settings(), **{f"member_{i}": parity(i, part=0) for i in range(2)})
    assert node.exit_status == 400
    assert "needs at least 9 held-out atoms with labels, got 0" in node.exit_message


def grades_node() -> orm.ArrayData:
    features = np.random.default_rng(0).normal(size=(100, 4))
    return orm.ArrayData(fit_grades(features, np.tile([14, 6], 50)).arrays())


def test_a_judged_potential_is_the_same_package_with_more(aiida_profile, toy_package: Path) -> None:
    potential = PotentialData.import_package(toy_package, fidelities=["lj"], metrics={"best_epoch": 3}).store()
    potential.label = "toy"
    calibration = calibrate(settings=settings(), member_0=parity(0), member_1=parity(1))["member_0"]
    errors = orm.Dict({"all": {"n_frames": 4}, "test": {"n_frames": 2}, "fidelities": {}, "n_frames": 4})
    judged = judge_potential(
        potential=potential, grades=grades_node(), calibration=calibration, errors=errors, external=errors
    )
    assert judged.creator.process_label == "judge_potential"
    assert (judged.sha256, judged.species, judged.fidelities) == (potential.sha256, ["Si", "C"], ["lj"])
    assert judged.metrics == {"best_epoch": 3, "test": {"n_frames": 2}, "external": {"n_frames": 4}}
    assert judged.label == "toy"
    assert judged.calibration().as_dict() == calibration.get_dict()
    assert judged.grades().n_features == 4
    keys = {node.base.repository.get_object(PotentialData.PACKAGE_NAME).key for node in (potential, judged)}
    assert len(keys) == 1
    # the next round brings another calibration; grades stay
    later = calibrate(settings=settings(seed=1), member_0=parity(5), member_1=parity(6))["member_0"]
    again = judge_potential(potential=judged, calibration=later)
    assert again.calibration().scale != judged.calibration().scale
    assert again.has_grades
    assert again.metrics == judged.metrics


def test_malformed_grades_are_an_exit_code(aiida_profile, toy_package: Path) -> None:
    node = grades_node()
    arrays = {name: node.get_array(name) for name in node.get_arraynames()}
    arrays["grades_6_laplace"] = arrays["grades_6_laplace"][:2]
    potential = PotentialData.import_package(toy_package)
    _, process = judge_potential.run_get_node(potential=potential, grades=orm.ArrayData(arrays))
    assert process.exit_status == 400
    assert "'grades_6_laplace' has shape" in process.exit_message
