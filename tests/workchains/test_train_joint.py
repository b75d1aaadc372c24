"""The training workchain on two levels of theory: joint models are trained, baked at the target, and judged."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.engine import run_get_node
from emt_frames import emt_frames

from aiida_mlip.calculations.bake import request_of
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.provenance import audit
from aiida_mlip.data.taint import taint
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.bake import BAKED
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.workchains.train import TrainWorkChain
from aiida_mlip.workers.bake import bake
from aiida_mlip.workers.inference import predict
from aiida_mlip.workers.model_loading import load_model

pytestmark = [pytest.mark.nequip]

CODES = TrainWorkChain.exit_codes
TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 2,
    "optimizer": {"warmup_epochs": 1},
    "split": {"test": 0.25, "val": 0.25},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "radial_mlp_width": 4},
    "multi_fidelity": {"fidelities": ["cheap", "dear"], "num_features": 2},
}
#: Energy of an isolated atom at the dear level, above that at the cheap one (eV).
APART = 2.5


def two_levels() -> Frames:
    """Fourteen frames at the cheap level, twelve of them at the dear one too: forces 10 % larger, energies far away."""
    cheap = emt_frames(14, fidelity="cheap")
    dear = emt_frames(14, fidelity="dear").take(np.arange(12))
    return concatenate(
        [cheap, dear.with_columns(energy=1.1 * dear.energy + APART * dear.natoms, forces=1.1 * dear.forces)]
    )


def builder(train_code, evaluate_code, **overrides):
    return TrainWorkChain.get_builder_from_protocol(
        DatasetData.from_frames(two_levels()),
        {"train": train_code, "evaluate": evaluate_code},
        overrides={**TINY, **overrides},
    )


def test_a_committee_is_baked_and_judged_at_the_target(train_code, preloaded_evaluate_code):
    inputs = builder(train_code, preloaded_evaluate_code, committee=2)
    inputs.test_dataset = DatasetData.from_frames(emt_frames(3, seed=99, fidelity="dear"))
    outputs, node = run_get_node(inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)

    frames, parts = inputs.dataset.frames(), [outputs["split"].get_array(f"member_{i}") for i in range(2)]
    dear = frames.fidelity == frames.fidelity_index("dear")
    for member in ("member_0", "member_1"):
        joint, baked = outputs["joint_potentials"][member], outputs["potentials"][member]
        assert (joint.joint, joint.fidelities) == (True, ["cheap", "dear"])
        assert (baked.joint, baked.fidelities) == (False, ["dear"])
        assert baked.sha256 != joint.sha256
        assert baked.reference_energies == {"dear": joint.reference_energies["dear"]}
        references = [joint.reference_energies[name]["Cu"] for name in ("cheap", "dear")]
        assert references[1] - references[0] == pytest.approx(APART, abs=0.2)
        assert baked.metrics["baked"]["energy_difference_ev_per_atom"] <= 1e-6
        assert baked.metrics["baked"]["force_difference_ev_per_ang"] <= 1e-5
        # grades of all that was trained on, errors and parity of the target alone
        trained = frames.take(parts[int(member[-1])] == 0)
        assert sum(element.n_train for element in baked.grades().elements.values()) == trained.n_atoms
        assert baked.calibration() is not None
        labelled = np.isfinite(outputs["parity"][member].get_array("energy_reference"))
        np.testing.assert_array_equal(labelled, dear)
    errors = outputs["errors"].get_dict()
    for part, code in (("train", 0), ("val", 1), ("test", 2)):
        found = errors["members"]["member_0"][part]["n_frames"]
        assert found == int((dear & (parts[0] == code)).sum()), part
    # energies of the other level would be off by APART
    assert errors["test"]["energy_rmse_ev_per_atom"] < APART / 2
    assert errors["external"]["n_frames"] == 3
    check_lineage(inputs.dataset, outputs, parts[0])
    labels = {link.link_label for link in node.base.links.get_outgoing().all()}
    assert {"bake_member_0", "bake_member_1", "evaluate_member_0", "calibrate", "judge_member_1"} <= labels
    assert outputs["potentials"]["member_0"].creator.inputs.potential.creator.process_label == "BakeCalculation"
    report = audit(node)
    assert report.passed, report.orphans


def check_lineage(dataset: DatasetData, outputs: dict, part: np.ndarray) -> None:
    """Joint, baked or judged: a potential has learned from what its training used, and was tested on what it kept."""
    for code, how in ((0, "trained"), (2, "held out")):
        row = int(np.flatnonzero(part == code)[0])
        found = {potential.node.pk: potential.how for potential in taint(dataset, row=row).potentials}
        judged = outputs["potentials"]["member_0"]
        versions = (outputs["joint_potentials"]["member_0"], judged.creator.inputs.potential, judged)
        assert [found[potential.pk] for potential in versions] == [how] * 3


@pytest.mark.parametrize("architecture", ["nequip", "allegro"])
def test_levels_with_types_of_their_own(architecture, train_code, preloaded_evaluate_code):
    """Two elements, one of which is rare; what was learned is gone on with, and baked at the cheap level as well."""
    model = {**TINY["model"], "architecture": architecture, "l_max": 1, "dtype": "float64"}
    told_apart = {**TINY["multi_fidelity"], **({"method": "types"} if architecture == "nequip" else {})}
    inputs = builder(train_code, preloaded_evaluate_code, model=model, multi_fidelity=told_apart)
    inputs.dataset = DatasetData.from_frames(with_platinum(two_levels()))
    outputs, node = run_get_node(inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    joint, baked = outputs["joint_potentials"]["member_0"], outputs["potentials"]["member_0"]
    assert (joint.engine, joint.joint_method) == (architecture, "types")
    assert (joint.species, joint.fidelities) == (["Cu", "Pt"], ["cheap", "dear"])
    assert joint.base.attributes.get("type_names") == ["Cu0", "Pt0", "Cu1", "Pt1"]
    assert (baked.engine, baked.joint, baked.species) == (architecture, False, ["Cu", "Pt"])
    assert baked.metrics["baked"]["force_difference_ev_per_ang"] <= 1e-5
    assert outputs["errors"]["test"]["energy_rmse_ev_per_atom"] < APART / 2
    training = next(child for child in node.called_descendants if "nequip_train" in child.process_type)
    summary = training.outputs.summary.get_dict()
    assert summary["method"] == "types"
    assert all(each["frames_seen"] == each["frames_per_epoch"] > 0 for each in summary["fidelities"].values())

    # exact at both levels, forces far apart
    frames = inputs.dataset.frames().take(np.arange(5))
    told = {}
    with joint.open_package() as stream, tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "joint.nequip.zip"
        package.write_bytes(stream.read())
        loaded = load_model(package, device="cpu")
        for index, name in enumerate(joint.fidelities):
            told[name] = predict(loaded, frames, fidelity=np.full(len(frames), index)).forces
            bake(Path(folder), request_of(joint, name).model_copy(update={"model": package.name}))
            found = predict(load_model(Path(folder) / BAKED, device="cpu"), frames).forces
            np.testing.assert_allclose(found, told[name], rtol=0, atol=1e-9)
        with pytest.raises(InvalidInputError, match="types for 2 levels of theory: say which"):
            loaded.types_of(frames.numbers)
        for names, wrong in ((("a", "b", "c"), {"joint": True}), (("dear",), {})):
            with pytest.raises(InvalidInputError, match="the model has types for 2 levels of theory"):
                PotentialData.from_package(package, fidelities=names, **wrong)
    assert np.abs(told["cheap"] - told["dear"]).max() > 1e-3

    if architecture == "allegro":
        again = builder(train_code, preloaded_evaluate_code, model=model)
        again.dataset, again.initial_potentials = inputs.dataset, {"member_0": joint}
        further, second = run_get_node(again)
        assert second.is_finished_ok, (second.exit_status, second.exit_message)
        assert further["joint_potentials"]["member_0"].engine == "allegro"
    other = builder(train_code, preloaded_evaluate_code)
    other.dataset, other.initial_potentials = inputs.dataset, {"member_0": joint}
    with pytest.raises(ValueError, match=r"tells its fidelities apart by 'types', but .* is 'embedding'"):
        run_get_node(other)


def with_platinum(frames: Frames) -> Frames:
    """The same with platinum for the first atom of every cell; labels are what they were."""
    numbers = frames.numbers.copy()
    numbers[frames.offsets[:-1]] = 78
    return frames.with_columns(numbers=numbers)


def test_what_cannot_be_baked_is_returned_joint(train_code, localhost, tmp_path: Path):
    """A job that is killed is repeated once; one that refuses is not."""
    program = tmp_path / "program.sh"
    program.write_text(
        f"""#!/bin/bash
if [ ! -e {tmp_path}/killed ]; then touch {tmp_path}/killed; kill -9 $$; fi
echo '{{"status": "failed", "reason": "not_exact", "message": "differs by nan"}}' > output.json
exit 1
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    code = orm.InstalledCode(label="no-baking", computer=localhost, filepath_executable=str(program)).store()
    outputs, node = run_get_node(builder(train_code, code))
    assert node.exit_status == CODES.ERROR_BAKING_FAILED.status, node.exit_message
    assert "Members 0 could not be baked" in node.exit_message
    assert "differs by nan" in node.exit_message
    assert outputs["joint_potentials"]["member_0"].joint
    assert "potentials" not in outputs
    labels = [link.link_label for link in node.base.links.get_outgoing().all()]
    assert [label for label in labels if label.startswith("bake")] == ["bake_member_0", "bake_member_0_again"]


def test_pooled_potentials_are_ordinary(train_code, preloaded_evaluate_code):
    settings = {**TINY["multi_fidelity"], "method": "pooled"}
    outputs, node = run_get_node(builder(train_code, preloaded_evaluate_code, multi_fidelity=settings))
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    assert outputs["potentials"]["member_0"].fidelities == ["dear"]
    assert "joint_potentials" not in outputs
    assert not any(child.process_label == "BakeCalculation" for child in node.called)
