"""Joining steps: the same as generating at once, and labels that are never lost to bare geometries."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, from_ase
from aiida_mlip.kernel.generate import Filters, Generation, Step, chosen_parents, generate
from aiida_mlip.kernel.generators.molecules import Dimer
from aiida_mlip.kernel.generators.random_structure import RandomStructure
from aiida_mlip.kernel.generators.rattle import Rattle
from aiida_mlip.kernel.generators.strain import Strain
from aiida_mlip.kernel.generators.vacancy import Vacancy
from aiida_mlip.kernel.joining import Joining, Part
from aiida_mlip.kernel.sanity import SanityLimits

SI = from_ase([bulk("Si", cubic=True)])
STEPS = (
    Step("holes", "vacancy", Vacancy(5, min_image_distance_ang=7.0)),
    Step("random", "random_structure", RandomStructure(("Si4", "Si2Ge2"), 6), keep=False),
    Step("dimers", "dimer", Dimer(("Si", "Ge"), per_pair=2)),
    Step("cells", "strain", Strain(3), parents=("seeds", "random")),
    Step("rattle", "rattle", Rattle(2, 0.2), parents=("cells", "dimers")),
)


def labelled(frames: Frames, *rows: int, fidelity: str = "lda", failure: int = 0) -> Frames:
    """The frames with a label (or a failed one) on some rows."""
    energy, index = np.full(len(frames), np.nan), np.full(len(frames), -1, dtype="<i2")
    index[list(rows)] = 0
    if not failure:
        energy[list(rows)] = -1.0
    failures = np.zeros(len(frames), dtype="|u1")
    failures[list(rows)] = failure
    return frames.with_columns(energy=energy, fidelity=index, failure=failures, fidelities=(fidelity,))


def joined(*parts: Frames, seeds=None, filters=None, keep_seeds=False, allow_nothing=False):
    made = [Part(Step(f"step{i}", "rattle", Rattle()), lambda part=part: (part,)) for i, part in enumerate(parts)]
    run = Joining(seeds, made, filters=filters, keep_seeds=keep_seeds, allow_nothing=allow_nothing)
    blocks = list(run)
    return concatenate(blocks) if blocks else SI.take([]), run


@pytest.mark.parametrize("keep_seeds", [False, True])
@pytest.mark.parametrize(
    "filters",
    [
        None,
        Filters(duplicate_tolerance=0.005),
        Filters(SanityLimits(min_distance_ang=2.0, volume_ang3_per_atom=(15, 25)), duplicate_tolerance=0.005),
    ],
)
def test_joining_generators_is_generating_at_once(filters, keep_seeds):
    whole, table = generate(SI, STEPS, seed=5, keep_seeds=keep_seeds, filters=filters)
    run = Generation(SI, STEPS, seed=5)
    parts = [Part(step, lambda name=step.name: run.frames_of(name), keep=step.keep) for step in STEPS]
    joining = Joining(SI, parts, keep_seeds=keep_seeds, filters=filters)
    assert write_shard(concatenate(list(joining))) == write_shard(whole)
    assert joining.table == table
    assert joining.n_seeds == keep_seeds


def test_steps_may_be_made_apart():
    """A step gives the same frames when its parents were made by another process."""
    whole = Generation(SI, STEPS, seed=5)
    first = Generation(SI, STEPS[:3], seed=5)
    sources = {name: concatenate(list(first.frames_of(name))) for name in ("random", "dimers")}
    second = Generation(SI, STEPS[3:], seed=5, sources=sources)
    for name in ("cells", "rattle"):
        apart, at_once = (concatenate(list(run.frames_of(name))) for run in (second, whole))
        assert write_shard(apart) == write_shard(at_once)


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_some_parents_are_drawn_by_seed_without_repeats(seed, count):
    rows = chosen_parents(20, count, name="rattle", seed=seed, step_seed=0)
    assert len(rows) == min(count, 20)
    assert (np.diff(rows) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < 20
    np.testing.assert_array_equal(rows, chosen_parents(20, count, name="rattle", seed=seed, step_seed=0))


def test_a_step_of_some_parents_makes_frames_of_those():
    cells = Step("cells", "strain", Strain(12), keep=False)
    some = Step("rattle", "rattle", Rattle(2, 0.1), parents=("cells", "seeds"), n_parents=4)
    frames, table = generate(SI, [cells, some], seed=1)
    assert (len(frames), table[1].made) == (8, 8)
    parents = {row.tobytes() for row in frames.parent_id}
    assert len(parents) == 4
    others, _ = generate(SI, [cells, some], seed=2)
    assert {row.tobytes() for row in others.parent_id} != parents
    everything, _ = generate(SI, [cells, Step("rattle", "rattle", Rattle(2, 0.1), ("cells", "seeds"))], seed=1)
    capped = Step("rattle", "rattle", Rattle(2, 0.1), ("cells", "seeds"), n_parents=13)
    assert write_shard(everything) == write_shard(generate(SI, [cells, capped], seed=1)[0])


class TestLabels:
    FRAMES, _ = generate(SI, [Step("rattle", "rattle", Rattle(4, 0.2))], seed=0)

    def test_a_label_supersedes_a_bare_frame_wherever_it_comes(self):
        frames, run = joined(self.FRAMES, labelled(self.FRAMES, 1, 2))
        assert len(frames) == 4
        assert frames.labelled.sum() == 2
        assert [(step.frames, step.duplicates) for step in run.table] == [(2, 2), (2, 2)]
        # also where a seed is bare
        frames, run = joined(labelled(self.FRAMES, 0), seeds=self.FRAMES, keep_seeds=True)
        assert (len(frames), run.n_seeds, frames.labelled.sum()) == (4, 3, 1)

    def test_labels_at_several_levels_are_all_kept_and_one_of_each(self):
        lda, pbe = labelled(self.FRAMES, 0, 1), labelled(self.FRAMES, 1, fidelity="pbe")
        frames, _ = joined(lda.take([0, 1]), pbe.take([1]), lda.take([1]), filters=Filters(duplicate_tolerance=0.005))
        assert len(frames) == 3
        assert sorted(frames.fidelities[i] for i in frames.fidelity) == ["lda", "lda", "pbe"]

    def test_a_failed_label_is_a_record_until_there_is_one(self):
        failed = labelled(self.FRAMES, 0, failure=int(Failure.WALLTIME))
        frames, _ = joined(failed)
        assert (frames.failure == Failure.WALLTIME).sum() == 1
        frames, _ = joined(failed, labelled(self.FRAMES, 0))
        assert (len(frames), frames.failure.any(), frames.labelled.sum()) == (4, False, 1)

    def test_equal_structures_never_cost_a_label(self):
        turned = self.FRAMES.to_ase(0)
        turned.rotate(40, (1, 1, 0), rotate_cell=True)
        same = labelled(from_ase([turned]), 0)
        frames, run = joined(self.FRAMES, same, seeds=self.FRAMES.take([0]), filters=Filters(duplicate_tolerance=0.005))
        assert frames.labelled.sum() == 1
        # known already: the seed itself; the others stay
        assert [step.frames for step in run.table] == [3, 1]

    def test_forces_are_looked_at(self):
        forces = np.zeros((self.FRAMES.n_atoms, 3))
        forces[self.FRAMES.atom_slice(2)] = 40.0
        hot = labelled(self.FRAMES, 0, 1, 2, 3).with_columns(forces=forces)
        frames, run = joined(hot, filters=Filters(SanityLimits(max_force_ev_per_ang=30.0)))
        assert len(frames) == 3
        assert run.table[0].dropped == {"force": 1}

    @given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "lda", "pbe"])), min_size=1, max_size=12))
    @settings(max_examples=30)
    def test_every_label_and_every_frame_is_there_once(self, rows):
        parts = [
            labelled(self.FRAMES.take([row]), 0, fidelity=name) if name else self.FRAMES.take([row])
            for row, name in rows
        ]
        frames, run = joined(*parts)
        names = [*frames.fidelities, ""]
        found = [(key.tobytes(), names[index]) for key, index in zip(frames.frame_id, frames.fidelity, strict=True)]
        assert len(set(found)) == len(found)
        ids = [self.FRAMES.frame_id[row].tobytes() for row, _ in rows]
        assert {key for key, _ in found} == set(ids)
        asked = {(key, name) for key, (_, name) in zip(ids, rows, strict=True)}
        assert {entry for entry in found if entry[1]} == {entry for entry in asked if entry[1]}
        for step in run.table:
            assert step.frames + step.duplicates + sum(step.dropped.values()) == step.made


def test_steps_without_frames_have_a_row_and_nothing_is_an_error_unless_allowed():
    with pytest.raises(InvalidInputError, match="nothing is kept"):
        joined(SI.take([]))
    frames, run = joined(SI.take([]), allow_nothing=True)
    assert (len(frames), run.table[0].made, run.table[0].natoms) == (0, 0, None)
