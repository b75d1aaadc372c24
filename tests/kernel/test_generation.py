"""Specifications as streams: blocks, filters, memory, and no dependence on what is kept in memory."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel import generate as module
from aiida_mlip.kernel.distances import smallest_distances
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.generate import Filters, Generation, Step, generate
from aiida_mlip.kernel.generators.decoration import Decoration
from aiida_mlip.kernel.generators.molecules import Dimer
from aiida_mlip.kernel.generators.random_structure import RandomStructure
from aiida_mlip.kernel.generators.rattle import Rattle
from aiida_mlip.kernel.generators.strain import Strain
from aiida_mlip.kernel.generators.vacancy import Vacancy
from aiida_mlip.kernel.sanity import SanityLimits
from aiida_mlip.protocols.generate import kernel_steps, parse_filters, parse_generate
from aiida_mlip.protocols.model import merged_protocol

SI = from_ase([bulk("Si", cubic=True)])
STEPS = (
    Step("random", "random_structure", RandomStructure(("Si4", "Si2Ge2"), 23)),
    Step("dimers", "dimer", Dimer(("Si", "Ge"), per_pair=4), keep=False),
    Step("strain", "strain", Strain(11), parents=("seeds", "random")),
    Step("rattle", "rattle", Rattle(3, 0.1), parents=("strain", "dimers")),
)


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 10)


def test_stream_is_the_whole_in_blocks(small_blocks):
    run = Generation(SI, STEPS, seed=3, keep_seeds=True)
    blocks = list(run)
    assert max(len(block) for block in blocks) <= 11  # one parent's frames may exceed a block by what it has
    whole, table = generate(SI, STEPS, seed=3, keep_seeds=True)
    assert write_shard(concatenate(blocks)) == write_shard(whole)
    assert run.table == table
    assert [(step.made, step.frames) for step in table] == [(23, 23), (12, 0), (264, 264), (828, 828)]
    assert len(whole) == 1 + 23 + 264 + 828
    assert write_shard(concatenate(list(run))) == write_shard(whole)  # iterating again makes the same frames


def test_frames_do_not_depend_on_what_is_kept_in_memory(small_blocks, monkeypatch):
    cached, _ = generate(SI, STEPS, seed=1)
    monkeypatch.setattr(module, "CACHE_ROWS", 0)
    made_again, _ = generate(SI, STEPS, seed=1)
    assert write_shard(cached) == write_shard(made_again)


def test_many_frames_of_one_parent_are_cut_too(small_blocks):
    frames, table = generate(SI, [Step("rattle", "rattle", Rattle(35, (0.05, 0.2)))], seed=0)
    assert (len(frames), table[0].made) == (35, 35)
    assert len(set(frames.ids())) == 35


def test_memory_is_that_of_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 40)
    monkeypatch.setattr(module, "CACHE_ROWS", 80)
    seeds = from_ase([bulk("Si", cubic=True) * (2, 2, 2)])
    steps = [Step("cells", "strain", Strain(10)), Step("rattle", "rattle", Rattle(60, 0.1), parents=("cells",))]
    tracemalloc.start()
    size = rows = 0
    for block in Generation(seeds, steps, seed=0):
        size += sum(getattr(block, name).nbytes for name in ("positions", "forces", "numbers", "cell"))
        rows += len(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 610
    assert peak < size / 2


class TestFilters:
    @given(st.integers(0, 50), st.floats(1.9, 2.3))
    @settings(max_examples=8, deadline=None)
    def test_what_is_left_out_is_counted_and_what_is_kept_passes(self, seed, distance):
        steps = [Step("rattle", "rattle", Rattle(30, 0.25, min_distance_ang=1.0)), Step("strain", "strain", Strain(10))]
        filters = Filters(SanityLimits(min_distance_ang=distance, volume_ang3_per_atom=(19.5, 20.5)))
        frames, table = _keep_some(steps, seed, filters)
        for step in table:
            assert step.frames + step.duplicates + sum(step.dropped.values()) == step.made
        if len(frames):
            volume = np.linalg.det(frames.cell) / frames.natoms
            assert smallest_distances(frames, cutoff=4.0).min() >= distance
            assert ((volume >= 19.5) & (volume <= 20.5)).all()

    def test_equal_structures_are_kept_once(self):
        steps = [
            Step("holes", "vacancy", Vacancy(12, min_image_distance_ang=7.0)),
            Step("alloy", "decoration", Decoration(("Si", "Ge"), ({"Si": 0.875, "Ge": 0.125},), per_composition=6)),
        ]
        frames, table = generate(SI, steps, seed=0, filters=Filters(duplicate_tolerance=0.005))
        # all vacancies of diamond are one structure, and so are all single germanium atoms in Si8
        assert [step.frames for step in table] == [1, 1]
        assert [step.duplicates + step.dropped.get("duplicate", 0) for step in table] == [11, 5]
        assert len(frames) == 2
        both, _ = generate(SI, steps, seed=0)
        assert len(both) > 2

    def test_the_seeds_are_known_structures(self):
        turned = SI.to_ase(0)
        turned.rotate(30, (1, 2, 3), rotate_cell=True)
        seeds = concatenate([SI, from_ase([turned])])
        steps = [Step("still", "rattle", Rattle(1, 0.0)), Step("moved", "rattle", Rattle(2, 0.2))]
        frames, table = generate(seeds, steps, seed=0, keep_seeds=True, filters=Filters(duplicate_tolerance=0.005))
        assert [step.frames for step in table] == [0, 4]
        assert len(frames) == 6

    def test_nothing_left(self):
        filters = Filters(SanityLimits(volume_ang3_per_atom=(1.0, 2.0)))
        with pytest.raises(InvalidInputError, match="nothing is kept"):
            generate(SI, [Step("rattle", "rattle", Rattle(2))], seed=0, filters=filters)
        with pytest.raises(InvalidInputError, match="duplicate_tolerance"):
            Filters(duplicate_tolerance=-1.0)

    def test_specification(self):
        steps = [{"generator": "rattle"}]
        assert parse_filters({"steps": steps}) == Filters()
        given_ = {"min_distance_ang": {"Si-Si": 1.8}, "duplicate_tolerance": 0.01}
        assert parse_filters({"steps": steps, "filters": given_}) == Filters(
            SanityLimits(min_distance_ang={"Si-Si": 1.8}), duplicate_tolerance=0.01
        )
        for filters, message in (
            ({"min_distance": 1.0}, "min_distance_ang"),
            ({"min_distance_ang": -1.0}, "spec.filters.min_distance_ang"),
            ({"volume_ang3_per_atom": [3, 1]}, "spec.filters.volume_ang3_per_atom"),
            ({"duplicate_tolerance": -1}, "spec.filters.duplicate_tolerance"),
        ):
            with pytest.raises(ProtocolError, match=message):
                parse_filters({"steps": steps, "filters": filters})


def _keep_some(steps: list[Step], seed: int, filters: Filters) -> tuple[Frames, tuple]:
    """Result of a run that may keep nothing."""
    run = Generation(SI, steps, seed=seed, filters=filters)
    blocks = []
    try:
        blocks.extend(run)
    except InvalidInputError:
        return SI.take([]), run.table
    return concatenate(blocks), run.table


@pytest.mark.parametrize(
    ("spec", "n_frames", "identity"),
    [
        (merged_protocol("generate", "fast"), 122, "662f0b262c75dd95"),
        (
            {
                "keep_seeds": True,
                "filters": {"duplicate_tolerance": 0.005, "min_distance_ang": 1.5},
                "steps": [
                    {"generator": "vacancy", "per_parent": 4, "min_image_distance_ang": 7.0, "name": "holes"},
                    {"generator": "random_structure", "composition": "Si4", "count": 5, "keep": False, "name": "r"},
                    {"generator": "dimer", "species": ["Si", "Ge"], "per_pair": 3},
                    {
                        "generator": "rattle",
                        "parents": ["holes", "r", "seeds"],
                        "per_parent": 3,
                        "amplitude_ang": [0.03, 0.2],
                        "seed": 4,
                    },
                    {"generator": "strain", "parents": ["r"], "per_parent": 2},
                ],
            },
            68,
            "a375f930cba42c08",
        ),
    ],
)
def test_frames_are_those_of_earlier_versions(spec, n_frames, identity):
    """A specification written before there were stages gives the frames it gave then (first release, seed 11)."""
    seeds = from_ase([bulk("Si", cubic=True), bulk("Ge")])
    steps, keep_seeds = parse_generate(spec)
    frames, _ = generate(seeds, kernel_steps(steps), seed=11, keep_seeds=keep_seeds, filters=parse_filters(spec))
    assert len(frames) == n_frames
    assert hashlib.sha256("".join(frames.ids()).encode()).hexdigest()[:16] == identity
