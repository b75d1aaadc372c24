"""The calculations behind stages: what they take, what they give, and how they say that they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from ase.build import bulk

from aiida_mlip.calculations.functions.generate_stages import (
    generate_steps,
    join_steps,
    merged_settings,
    plan_stages,
    take_parents,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.generate import chosen_parents, generate
from aiida_mlip.protocols.generate import kernel_steps, parse_generate

pytestmark = pytest.mark.usefixtures("aiida_profile")
FORCES = {"calculator": "ase.calculators.emt.EMT"}
SPEC = {
    "steps": [
        {"generator": "strain", "per_parent": 6},
        {"generator": "relax", "parents": {"of": ["strain", "seeds"], "count": 3}, "forces": FORCES},
        {"generator": "rattle", "parents": "strain", "per_parent": 2, "amplitude_ang": 0.1},
    ]
}


def copper() -> DatasetData:
    return DatasetData.from_frames(from_ase([bulk("Cu", cubic=True)]))


def test_a_plan_holds_everything_but_frames():
    options = {"explore": {"max_wallclock_seconds": 60}, "pw": {"withmpi": True}}
    plan = plan_stages(spec=orm.Dict(SPEC), seed=orm.Int(3), options=orm.Dict(options))
    assert set(plan) == {"step_00", "step_01", "step_02", "spec_01", "options_01"}
    assert plan["options_01"].get_dict() == options["explore"]
    assert plan["spec_01"]["relax"]["cell"] == "fixed"  # defaults are written out
    assert plan["step_01"]["parents"] == {"strain": 0}
    everywhere = plan_stages(spec=orm.Dict(SPEC), seed=orm.Int(3), options=orm.Dict({"queue_name": "short"}))
    assert everywhere["options_01"].get_dict() == {"queue_name": "short"}
    assert everywhere["spec_01"]["seed"] == plan["spec_01"]["seed"]


def test_generators_apart_give_the_frames_of_the_whole():
    plan = plan_stages(spec=orm.Dict(SPEC), seed=orm.Int(3))
    seeds = copper()
    steps = {name: plan[name] for name in ("step_00", "step_02")}
    made, _ = generate_steps.run_get_node(seed=orm.Int(3), structures=seeds, **steps)
    assert made["report"]["problems"] == {}
    parsed, _ = parse_generate({"steps": [SPEC["steps"][0], SPEC["steps"][2]]})
    whole, _ = generate(seeds.frames(), kernel_steps(parsed), seed=3)
    apart = concatenate([made["frames_00"].frames(), made["frames_02"].frames()])
    assert apart.geometry_uuid.any(axis=1).all()
    zero = np.zeros_like(apart.geometry_uuid)
    assert write_shard(apart.with_columns(geometry_uuid=zero)) == write_shard(whole)
    # one after the other, too
    first, _ = generate_steps.run_get_node(seed=orm.Int(3), structures=seeds, step_00=plan["step_00"])
    second, _ = generate_steps.run_get_node(seed=orm.Int(3), step_02=plan["step_02"], frames_00=first["frames_00"])
    assert second["frames_02"].frame_ids() == made["frames_02"].frame_ids()


def test_parents_are_taken_once_without_labels_and_some_by_seed():
    plan = plan_stages(spec=orm.Dict(SPEC), seed=orm.Int(3))
    made, _ = generate_steps.run_get_node(seed=orm.Int(3), structures=copper(), step_00=plan["step_00"])
    taken, _ = take_parents.run_get_node(
        step=plan["step_01"], seed=orm.Int(3), structures=copper(), frames_00=made["frames_00"]
    )
    rows = chosen_parents(7, 3, name="relax", seed=3, step_seed=0)
    pool = made["frames_00"].frame_ids() + copper().frame_ids()
    assert taken["structures"].frame_ids() == [pool[row] for row in rows]
    labelled = made["frames_00"].frames()
    twice = concatenate(
        [
            labelled.with_columns(energy=np.ones(6), fidelity=np.zeros(6, dtype="<i2"), fidelities=(name,))
            for name in ("lda", "pbe")
        ]
    )
    all_of = {**plan["step_01"].get_dict(), "step": {**SPEC["steps"][1], "parents": "strain"}}
    taken, _ = take_parents.run_get_node(
        step=orm.Dict(all_of), seed=orm.Int(3), frames_00=DatasetData.from_frames(twice)
    )
    assert taken["structures"].frame_ids() == made["frames_00"].frame_ids()
    assert not taken["structures"].base.attributes.get("fidelities")


def test_what_cannot_be_done_is_an_exit_code():
    plan = plan_stages(spec=orm.Dict(SPEC), seed=orm.Int(3))
    _, node = take_parents.run_get_node(step=plan["step_01"], seed=orm.Int(3))
    assert (node.exit_status, node.exit_message) == (310, "spec.steps[1].parents: ['strain', 'seeds'] made no frames")
    many = {"steps": [{"generator": "rattle", "per_parent": 1_500_000}]}
    wanted = plan_stages(spec=orm.Dict(many), seed=orm.Int(3))["step_00"]
    seeds = DatasetData.from_frames(from_ase([bulk("Cu"), bulk("Ag")]))
    _, node = generate_steps.run_get_node(seed=orm.Int(3), structures=seeds, step_00=wanted)
    assert node.exit_status == 310
    assert "the most allowed" in node.exit_message
    same = {"steps": [{"generator": "rattle", "amplitude_ang": 0.0}]}
    _, node = join_steps.run_get_node(spec=orm.Dict(same), structures=copper(), frames_00=copper())
    assert node.exit_status == 310
    assert "nothing is kept" in node.exit_message


def test_labels_of_one_name_and_two_settings_are_refused():
    labelled = from_ase([bulk("Cu")]).with_columns(
        energy=np.ones(1), fidelity=np.zeros(1, dtype="<i2"), fidelities=("pbe",)
    )
    first, second = (DatasetData.from_frames(labelled, settings={"pbe": name * 32}) for name in ("ab", "cd"))
    assert merged_settings([first, first, copper()]) == {"pbe": "ab" * 32}
    with pytest.raises(InvalidInputError, match="fidelity 'pbe': labels of two settings"):
        merged_settings([first, second])
    steps = [{"generator": "import", "dataset": name, "name": name} for name in ("a", "b")]
    _, node = join_steps.run_get_node(spec=orm.Dict({"steps": steps}), frames_00=first, frames_01=second)
    assert node.exit_status == 310
    assert "pbe" in node.exit_message
