"""Between the stages of active learning: candidates, which of them are required, and what their errors are."""

from __future__ import annotations

import numpy as np
import pytest
from aiida import orm
from ase.build import bulk

from aiida_mlip.calculations.functions.active_learning import (
    gather_candidates,
    plan_active_learning,
    plan_selection,
    record_round,
)
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.splits import ALWAYS_TRAINED


def copper(n: int, size: int = 1):
    frames = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True) * (size, 1, 1)
        atoms.rattle(0.1, seed=seed)
        frames.append(atoms)
    return from_ase(frames)


def grades(frames, *, run, step, error):
    return orm.ArrayData(
        {
            "frame_id": frames.frame_id,
            "natoms": frames.natoms,
            "run": np.array(run),
            "step": np.array(step),
            "novelty": np.ones(frames.n_atoms),
            "error_ev_per_ang": np.asarray(error, dtype=float),
        }
    )


def summary(*runs):
    return orm.Dict({"runs": [{"stopped_by": by, "stopped_at": at} for by, at in runs]})


def fragments_of(frames, row, atoms, generator="fragment"):
    """A piece of a frame with the columns of a fragment: the first half of its atoms is core."""
    part = frames.to_ase(row)[list(atoms)]
    piece = from_ase([part])
    return piece.with_columns(
        parent_id=frames.frame_id[row][None],
        region=(np.arange(len(part)) >= len(part) // 2).astype(np.uint8) * 2,
        parent_atom=np.asarray(atoms, dtype=np.int32),
    )


def test_frames_at_which_runs_were_stopped_are_required(aiida_profile):
    frames = copper(4)
    found = gather_candidates(
        selected_a=DatasetData.from_frames(frames),
        grades_a=grades(frames, run=[0, 0, 1, 1], step=[10, 20, 10, 20], error=np.arange(16)),
        summary_a=summary(("novelty", 20), ("finished", None)),
    )
    assert found["environments"].get_array("required").tolist() == [False, True, False, False]
    assert found["environments"].get_array("errors").tolist() == list(range(16))
    assert found["candidates"].frame_ids() == frames.ids()
    groups = found["candidates"].column("group_id")
    assert (groups == ALWAYS_TRAINED).all(axis=1).tolist() == [False, True, False, False]


def test_of_a_stopped_frame_the_worst_fragment_is_required(aiida_profile):
    frames = copper(2, size=2)
    pieces = concatenate([fragments_of(frames, 0, [0, 1, 2, 3]), fragments_of(frames, 1, [7, 6, 5, 4]),
                          fragments_of(frames, 1, [3, 2, 1, 0])])  # fmt: skip
    found = gather_candidates(
        selected_a=DatasetData.from_frames(pieces),
        grades_a=grades(frames, run=[0, 0], step=[10, 20], error=np.arange(16)),
        summary_a=summary(("error", 20)),
    )
    assert found["environments"].get_array("required").tolist() == [False, True, False]
    # core atoms have the error of their parents, the buffer none
    errors = found["environments"].get_array("errors").reshape(3, 4)
    np.testing.assert_array_equal(errors, [[0, 1, 0, 0], [15, 14, 0, 0], [11, 10, 0, 0]])
    groups = found["candidates"].column("group_id")
    assert len(np.unique(groups, axis=0)) == 3, "fragments of one large frame are divided"


def test_a_frame_that_two_explorations_found_is_one_candidate(aiida_profile):
    first, second = copper(2), copper(3)
    found = gather_candidates(
        selected_a=DatasetData.from_frames(first),
        grades_a=grades(first, run=[0, 0], step=[1, 2], error=np.ones(8)),
        selected_b=DatasetData.from_frames(second),
    )
    assert found["candidates"].frame_ids() == second.ids()
    assert "errors" not in found["environments"].get_arraynames()
    assert len(found["environments"].get_array("required")) == 3


def test_what_is_labelled_is_no_candidate_again(aiida_profile):
    """A frame by its id; a fragment also by the atom of the parent that it was cut around."""
    frames = copper(2, size=2)
    done, same_place, new = (fragments_of(frames, 0, atoms) for atoms in ([0, 1, 2, 3], [0, 5, 6, 7], [4, 1, 2, 3]))
    labels = {"energy": np.zeros(1), "forces": np.zeros((4, 3)), "fidelity": np.zeros(1, dtype="<i2")}
    reference = DatasetData.from_frames(done.with_columns(**labels, fidelities=("emt",)))
    found = gather_candidates(
        reference=reference, selected_a=DatasetData.from_frames(concatenate([done, same_place, new]))
    )
    assert found["counts"].get_dict() == {"found": 3, "known": 2}
    assert found["candidates"].frame_ids() == new.ids()
    nothing = gather_candidates(reference=reference, selected_a=DatasetData.from_frames(done))
    assert set(nothing) == {"counts"}
    unlabelled = DatasetData.from_frames(done)
    assert gather_candidates(reference=unlabelled, selected_a=DatasetData.from_frames(done))["counts"]["known"] == 0


def test_the_gate_is_paid_from_the_budget_and_has_a_share_of_it(aiida_profile):
    settings = orm.Dict(
        {
            "protocol": "moderate",
            "mode": "fragments",
            "fragment": {"core_radius_ang": 4.0},
            "dft_core_hours": 8.0,
            "select": {"cost": {"core_hours": 0.5, "natoms": 64}},
        }
    )
    plan = plan_active_learning(settings)
    assert plan["gate"].get_dict() == {"n_fragments": 2, "core_hours": 2.0, "cost": {"core_hours": 0.5, "natoms": 64}}
    spent = orm.Dict({"fidelities": {"lda": {"core_seconds": 5400.0}}})
    assert plan_selection(plan["settings"], labels_gate=spent)["core_hours"] == pytest.approx(6.5)


def test_the_record_of_a_round_has_gate_and_properties(aiida_profile):
    plan = plan_active_learning(orm.Dict({"protocol": "fast"}))
    counts = {"frames": 6, "failed": 1, "not_run": 0, "core_seconds": 7200.0}
    history = record_round(
        plan["settings"],
        DatasetData.from_frames(copper(2)),
        labels_gate=orm.Dict({"fidelities": {"lda": counts}}),
        embedding=orm.Dict({"measured_ev_per_ang": 0.04}),
        properties=orm.Dict({"missed": ["a0"]}),
    )
    done = history["rounds"][0]
    assert (done["n_gate"], done["embedding_error"], done["dft_core_hours"]) == (5, 0.04, 2.0)
    assert history["verdict"] == "stalled"
    assert history["evidence"].endswith("the potential misses a0")
