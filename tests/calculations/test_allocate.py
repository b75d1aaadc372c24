"""The calcfunctions that allot dear labels: provenance, report, measured costs, and their exit codes."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from ase.build import bulk

from aiida_mlip.calculations.functions import allocate as module
from aiida_mlip.calculations.functions.allocate import account_for_labels, allocate_labels, plan_allocation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase

pytestmark = pytest.mark.usefixtures("aiida_profile")

SETTINGS = {"target": "hse", "cheap": "pbe", "n_frames": 3}
HASHES = {"pbe": "a" * 64, "hse": "b" * 64}


def copper(n: int, *, first: int = 0) -> Frames:
    images = []
    for seed in range(first, first + n):
        atoms = bulk("Cu", cubic=True) * (1 + seed % 2, 1, 1)
        atoms.rattle(0.02 + 0.01 * (seed % 10), seed=seed)
        images.append(atoms)
    return from_ase(images)


def at(frames: Frames, fidelity: str, cost: float = np.nan) -> Frames:
    n = len(frames)
    return frames.with_columns(
        energy=np.zeros(n),
        fidelity=np.zeros(n, dtype="<i2"),
        fidelities=(fidelity,),
        cost=np.full(n, cost, dtype="<f4"),
    )


def two_levels(n: int = 12, dear: int = 3, cost: float = np.nan) -> DatasetData:
    """n frames at pbe, a minute each, the first of them at hse as well."""
    frames = copper(n)
    rows = [at(frames, "pbe", 60.0)] + ([at(frames.take(range(dear)), "hse", cost)] if dear else [])
    return DatasetData.from_frames(concatenate(rows), settings=HASHES)


def parity(frames: Frames, forces: np.ndarray) -> orm.ArrayData:
    """What an evaluation leaves, as far as it is looked at."""
    return orm.ArrayData({"frame_id": frames.frame_id, "natoms": frames.natoms, "forces_predicted": forces})


def predictions(frames: Frames, doubtful: tuple[int, ...], members: int = 3) -> dict[str, orm.ArrayData]:
    """Members that agree on the difference but for some frames, and on nothing else."""
    rng = np.random.default_rng(5)
    result = {}
    for member in range(members):
        forces = rng.normal(size=(frames.n_atoms, 3))
        further = np.isin(frames.atom_rows(), doubtful)[:, None] * rng.normal(size=(frames.n_atoms, 3))
        result[f"cheap_member_{member}"] = parity(frames, forces)
        result[f"target_member_{member}"] = parity(frames, forces + 0.3 + further)
    return result


def test_frames_whose_difference_is_in_doubt_are_chosen():
    dataset = two_levels()
    frames = copper(12)
    asked = frames.take(np.random.default_rng(1).permutation(12))  # the evaluation has an order of its own
    doubtful = [asked.ids().index(frames.ids()[row]) for row in (1, 5, 9)]
    outputs, node = allocate_labels.run_get_node(dataset, orm.Dict(SETTINGS), **predictions(asked, tuple(doubtful)))
    assert node.is_finished_ok
    report, chosen = outputs["report"].get_dict(), outputs["frames"]
    assert chosen.creator.uuid == node.uuid
    assert set(chosen.frame_ids()) == {frames.ids()[5], frames.ids()[9]}  # row 1 has its label, no other is in doubt
    assert [entry["frame_id"] for entry in report["selected"]] == chosen.frame_ids()
    assert all(entry["deviation_ev_per_ang"] > 0.5 for entry in report["selected"])
    assert report["deviation_ev_per_ang"]["median"] == pytest.approx(0.0, abs=1e-12)
    assert (report["method"], report["n_candidates"], report["n_selected"]) == ("difference", 9, 2)
    assert report["left_out"]["labelled"] == 3
    assert sum(report["left_out"].values()) + report["n_selected"] == 12
    assert chosen.fidelities == ["pbe"]
    assert chosen.settings["pbe"] == HASHES["pbe"]


def test_a_forecast_needs_measured_costs_and_says_where_there_are_none():
    outputs = allocate_labels(two_levels(), orm.Dict(SETTINGS))
    report = outputs["report"].get_dict()
    assert report["core_hours"] is None
    assert report["costs"]["hse"] == {"n_labels": 0, "core_hours": None, "model": None}
    assert report["costs"]["pbe"]["core_hours"] == pytest.approx(1 / 60)
    assert report["notes"] == [
        "no committee of joint models has looked at the candidates: chosen by diversity alone, not by the difference",
        "what a label at hse costs is not known: there is no forecast",
    ]
    assert (report["asked"], report["method"]) == ("difference", "diversity")
    known = allocate_labels(two_levels(cost=7200.0), orm.Dict({**SETTINGS, "n_frames": None, "core_hours": 9.0}))
    report = known["report"].get_dict()
    assert report["costs"]["hse"]["n_labels"] == 3
    assert 0 < report["core_hours"] <= 9.0
    assert report["core_hours"] == pytest.approx(sum(entry["core_hours"] for entry in report["selected"]))
    other = DatasetData.from_frames(at(copper(4, first=50), "hse", 3600.0), settings=HASHES)
    elsewhere = allocate_labels(two_levels(dear=0), orm.Dict(SETTINGS), measured=other)
    assert elsewhere["report"]["costs"]["hse"]["core_hours"] == pytest.approx(1.0)
    assert elsewhere["report"]["core_hours"] > 0
    stated = {**SETTINGS, "cost": {"core_hours": 2.0, "natoms": 4, "exponent": 0.0}}
    assert allocate_labels(two_levels(), orm.Dict(stated))["report"]["core_hours"] == pytest.approx(6.0)


@pytest.mark.parametrize("method", ["difference", "diversity", "random"])
def test_what_is_labelled_elsewhere_is_not_chosen_again(method):
    frames = copper(12)
    elsewhere = DatasetData.from_frames(at(frames.take(range(3, 11)), "hse", 60.0), settings=HASHES)
    settings = orm.Dict({**SETTINGS, "method": method})
    given = predictions(frames, tuple(range(12)))
    outputs = allocate_labels(two_levels(), settings, measured=elsewhere, **given)
    assert outputs["frames"].frame_ids() == [frames.ids()[11]]
    assert outputs["report"]["left_out"]["labelled"] == 3
    assert outputs["report"]["left_out"]["duplicate"] == 8


def test_one_member_is_no_committee_and_random_frames_are_a_matter_of_the_seed():
    dataset, frames = two_levels(), copper(12)
    outputs = allocate_labels(dataset, orm.Dict(SETTINGS), **predictions(frames, (5,), members=1))
    assert outputs["report"]["method"] == "diversity"
    random = [
        allocate_labels(dataset, orm.Dict({**SETTINGS, "method": "random", "seed": seed}))["frames"].frame_ids()
        for seed in (1, 1, 2)
    ]
    assert random[0] == random[1] != random[2]


def test_a_frame_that_a_member_could_not_predict_is_no_candidate():
    dataset, frames = two_levels(), copper(12)
    given = predictions(frames, (5, 9))
    broken = given["cheap_member_1"].get_array("forces_predicted").copy()
    broken[frames.atom_slice(9)] = np.nan
    given["cheap_member_1"] = parity(frames, broken)
    outputs = allocate_labels(dataset, orm.Dict(SETTINGS), **given)
    assert outputs["frames"].frame_ids() == [frames.ids()[5]]
    assert outputs["report"]["left_out"]["not_predicted"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "hse", "cheap": "hse", "n_frames": 1}, "target and cheap are both 'hse'"),
        ({"target": "hse", "cheap": "pbe"}, "there is no budget; give n_frames, core_hours, or both"),
        ({**SETTINGS, "n_frames": 0}, "n_frames: Input should be greater than or equal to 1, got 0"),
        ({**SETTINGS, "core_hours": 3.0}, "core_hours: no label at 'hse' has a measured cost"),
        ({**SETTINGS, "methd": "random"}, "unknown key 'methd' \\(did you mean 'method'"),
        ({**SETTINGS, "cost": {"core_hours": -1.0}}, "core_hours and natoms must be positive"),
    ],
)
def test_settings_that_do_not_fit_end_with_313(settings, message):
    _, node = allocate_labels.run_get_node(two_levels(), orm.Dict(settings))
    assert node.exit_status == 313
    assert node.exit_message.startswith("dear labels cannot be allotted: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(node.exit_message)


def test_predictions_that_do_not_fit_end_with_313(monkeypatch):
    dataset, frames = two_levels(), copper(12)
    good = predictions(frames, (5,))
    few = frames.take(range(8))
    cases = {
        "member_2 at one level of theory only": {k: v for k, v in good.items() if k != "cheap_member_2"},
        "expected arrays target_<member> and cheap_<member>, got 'other'": {"other": orm.Int(1)},
        "has no frame .* \\(4 are missing\\)": good | {"cheap_member_0": parity(few, np.zeros((few.n_atoms, 3)))},
        "lacks forces_predicted": good
        | {"cheap_member_0": orm.ArrayData({"frame_id": few.frame_id, "natoms": few.natoms})},
    }
    for message, given in cases.items():
        _, node = allocate_labels.run_get_node(dataset, orm.Dict(SETTINGS), **given)
        assert node.exit_status == 313
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(node.exit_message)
    other = DatasetData.from_frames(at(copper(2), "hse", 60.0), settings={"hse": "c" * 64})
    _, node = allocate_labels.run_get_node(dataset, orm.Dict(SETTINGS), measured=other)
    assert node.exit_status == 313
    assert "its labels at 'hse' were computed with other settings" in node.exit_message
    monkeypatch.setattr(module, "MAX_ATOMS", 10)
    _, node = allocate_labels.run_get_node(dataset, orm.Dict(SETTINGS))
    assert node.exit_status == 313
    assert "more than 10; select among them first" in node.exit_message


def test_nothing_left_ends_with_314_and_the_reasons():
    full = two_levels(n=3)
    message = "no frame is left for a dear label: 3 labelled"
    for function in (allocate_labels, plan_allocation):
        _, node = function.run_get_node(full, orm.Dict(SETTINGS))
        assert (node.exit_status, node.exit_message) == (314, message)


def test_the_plan_gives_the_candidates_and_the_names():
    outputs, node = plan_allocation.run_get_node(two_levels(), orm.Dict(SETTINGS))
    assert node.is_finished_ok
    assert outputs["candidates"].frame_ids() == copper(12).ids()[3:]
    assert (outputs["target"].value, outputs["cheap"].value) == ("hse", "pbe")
    _, node = plan_allocation.run_get_node(two_levels(), orm.Dict({**SETTINGS, "target": "pbe"}))
    assert node.exit_status == 313


def test_spent_after():
    allocation = allocate_labels(two_levels(cost=7200.0), orm.Dict(SETTINGS))
    chosen = allocation["frames"].frames()
    labelled = at(chosen.take([0, 1]), "hse", 3600.0)
    other = at(copper(1, first=90), "hse", 1e6)  # asked for by someone else
    labels = DatasetData.from_frames(concatenate([labelled, other]), settings=HASHES)
    summary = orm.Dict({"fidelities": {"hse": {"reused": 1}}})
    spent = account_for_labels(allocation["report"], labels, summary).get_dict()
    assert spent["core_hours"] == pytest.approx(2.0)
    expected = sum(entry["core_hours"] for entry in allocation["report"]["selected"][:2])
    assert spent["forecast_core_hours"] == pytest.approx(expected)
    assert spent["ratio"] == pytest.approx(2.0 / expected)
    assert (spent["frames"], spent["with_cost"], spent["labelled"], spent["reused"]) == (3, 2, 2, 1)
