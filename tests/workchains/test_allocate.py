"""AllocateWorkChain with real jobs: what the members say reaches the choice, and what happens where they cannot."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.kernel.allocation import difference_deviation
from aiida_mlip.kernel.committee import largest_per_frame
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.workchains.allocate import AllocateWorkChain
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, e3nn and lightning about themselves

NAMES = ["lda", "pbe", "hse"]
ENERGIES = {name: {"Si": -100.0 - level, "C": -150.0} for level, name in enumerate(NAMES)}
SETTINGS = {"target": "hse", "cheap": "lda", "n_frames": 2}
#: In the reference energies of a member whose job the program does not survive.
MARK = -999.5


def silicon(n: int) -> Frames:
    images = []
    for seed in range(n):
        atoms = bulk("SiC", "zincblende", a=4.4 + 0.2 * (seed % 3), cubic=True)
        atoms.rattle(0.02 + 0.02 * seed, seed=seed)
        images.append(atoms)
    return from_ase(images)


def at(frames: Frames, fidelity: str) -> Frames:
    n = len(frames)
    return frames.with_columns(energy=np.zeros(n), fidelity=np.zeros(n, dtype="<i2"), fidelities=(fidelity,))


@pytest.fixture
def dataset(aiida_profile) -> DatasetData:
    frames = silicon(6)
    return DatasetData.from_frames(concatenate([at(frames, "lda"), at(frames.take([0]), "hse")]))


@pytest.fixture
def committee(aiida_profile, joint_toy_package: Path, joint_toy_package_32: Path) -> dict[str, PotentialData]:
    packages = {"member_0": joint_toy_package, "member_1": joint_toy_package_32}
    return {
        name: PotentialData.import_package(package, fidelities=NAMES, joint=True, reference_energies=ENERGIES).store()
        for name, package in packages.items()
    }


@pytest.fixture
def marked(aiida_profile, joint_toy_package: Path) -> PotentialData:
    energies = {name: {"Si": MARK, "C": MARK} for name in NAMES}
    return PotentialData.import_package(
        joint_toy_package, fidelities=NAMES, joint=True, reference_energies=energies
    ).store()


@pytest.fixture
def fragile_code(localhost, preloaded_programs: Path, tmp_path: Path) -> orm.InstalledCode:
    """The program, but it does not survive the marked member."""
    path = tmp_path / "fragile.sh"
    program = preloaded_programs / "aiida-mlip-evaluate"
    path.write_text(f'#!/bin/bash\ngrep -q -e "{MARK}" input.json && exit 1\nexec {program} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return orm.InstalledCode(label="fragile", computer=localhost, filepath_executable=str(path)).store()


def choose(dataset: DatasetData, settings: dict | None = None, code: orm.Code | None = None, **inputs):
    codes = {} if code is None else {"codes": {"evaluate": code}}
    return run_get_node(
        AllocateWorkChain, dataset=dataset, settings=orm.Dict({**SETTINGS, **(settings or {})}), **codes, **inputs
    )


def test_the_committee_decides(dataset, committee, fragile_code, joint_toy_package, joint_toy_package_32):
    results, node = choose(dataset, code=fragile_code, joint_potentials=committee)
    assert node.is_finished_ok, node.exit_message
    report = results["report"].get_dict()
    assert report["method"] == "difference"
    candidates = silicon(6).take(range(1, 6))
    models = [load_model(package, device="cpu") for package in (joint_toy_package, joint_toy_package_32)]
    dear, cheap = (
        np.array([predict(model, candidates, fidelity=np.full(5, level)).forces for model in models])
        for level in (2, 0)
    )
    expected = dict(
        zip(candidates.ids(), largest_per_frame(difference_deviation(dear, cheap), candidates.natoms), strict=True)
    )
    assert len(report["selected"]) == 2
    for entry in report["selected"]:
        assert entry["deviation_ev_per_ang"] == pytest.approx(expected[entry["frame_id"]], abs=2e-5)
    assert report["deviation_ev_per_ang"]["largest"] == pytest.approx(max(expected.values()), abs=2e-5)
    assert max(expected.values()) > 1e-3  # the members do differ
    assert results["frames"].frame_ids() == [entry["frame_id"] for entry in report["selected"]]
    labels = {link.link_label for link in node.base.links.get_outgoing().all()}
    assert {"bake_target_member_0", "bake_cheap_member_1", "evaluate_cheap_member_0", "allocate_labels"} <= labels


def test_without_a_committee_no_job_is_needed(dataset, committee):
    results, node = choose(dataset, joint_potentials={"member_0": committee["member_0"]})
    assert node.is_finished_ok
    assert results["report"]["method"] == "diversity"
    assert "no committee of joint models" in results["report"]["notes"][0]
    assert len(results["frames"]) == 2
    random, node = choose(dataset, {"method": "random", "seed": 3}, joint_potentials=committee)
    assert node.is_finished_ok
    assert random["report"]["method"] == "random"
    assert not node.base.links.get_outgoing(node_class=orm.CalcJobNode).all()


def test_two_that_can_be_asked_are_enough(dataset, committee, marked, fragile_code):
    given = {**committee, "member_2": marked}
    results, node = choose(dataset, code=fragile_code, joint_potentials=given)
    assert node.exit_status == AllocateWorkChain.exit_codes.ERROR_SOME_MEMBERS_FAILED.status
    assert "chosen without member_2. BakeCalculation<" in node.exit_message
    assert results["report"]["method"] == "difference"
    assert len(results["frames"]) == 2


def test_one_that_can_be_asked_is_not(dataset, committee, marked, fragile_code):
    given = {"member_0": committee["member_0"], "member_1": marked}
    results, node = choose(dataset, code=fragile_code, joint_potentials=given)
    assert node.exit_status == AllocateWorkChain.exit_codes.ERROR_NO_UNCERTAINTY.status
    assert results["report"]["method"] == "diversity"
    assert len(results["frames"]) == 2


def test_what_cannot_be_allotted(dataset):
    _, node = choose(dataset, {"core_hours": 1.0})
    assert node.exit_status == AllocateWorkChain.exit_codes.ERROR_INVALID_INPUT.status
    assert "no label at 'hse' has a measured cost" in node.exit_message
    _, node = choose(dataset, {"cheap": "pbe"})
    assert node.exit_status == AllocateWorkChain.exit_codes.ERROR_NO_FRAMES.status
    assert "5 no_cheap_label" in node.exit_message


def test_inputs_are_checked_before_anything_is_submitted(dataset, committee, fragile_code, toy_package):
    with pytest.raises(ValueError, match="there is no budget"):
        choose(dataset, {"n_frames": None})
    with pytest.raises(ValueError, match=r"codes\.evaluate: missing"):
        choose(dataset, joint_potentials=committee)
    with pytest.raises(ValueError, match=r"joint_potentials\.member_0: trained on lda, pbe, hse, not on scan"):
        choose(dataset, {"target": "scan"}, code=fragile_code, joint_potentials=committee)
    ordinary = PotentialData.import_package(toy_package, fidelities=["hse"])
    with pytest.raises(ValueError, match=r"joint_potentials\.member_1: not joint"):
        choose(dataset, code=fragile_code, joint_potentials={**committee, "member_1": ordinary})
