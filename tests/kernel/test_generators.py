"""Generators: contracts that every registered one inherits, then the laws of each."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits, smallest_distances
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.generate import Step, check_steps, generate
from aiida_mlip.kernel.generators import GENERATORS, Generator, empty_frames
from aiida_mlip.kernel.generators.random_structure import RandomStructure, crystal_volume, parse_composition
from aiida_mlip.kernel.generators.rattle import Rattle, displacements
from aiida_mlip.kernel.generators.strain import Strain


@pytest.fixture
def seeds() -> Frames:
    return from_ase([bulk("Si", cubic=True), bulk("SiC", "zincblende", a=4.36, cubic=True)])


@pytest.fixture(params=sorted(GENERATORS))
def generator(request) -> Generator:
    return GENERATORS[request.param]


def run(generator: Generator, seeds: Frames, seed: int) -> Frames:
    parents = seeds if generator.needs_parents else empty_frames()
    return generator(parents, generator.parameters(**generator.example), np.random.default_rng(seed))


class TestContracts:
    """What a new generator gets tested for by being registered."""

    def test_same_seed_same_bytes(self, generator, seeds):
        assert write_shard(run(generator, seeds, 1)) == write_shard(run(generator, seeds, 1))

    def test_other_seed_other_frames(self, generator, seeds):
        first, other = (set(run(generator, seeds, seed).ids()) for seed in (1, 2))
        draws = generator.draws
        if draws == "continuous":
            assert not first & other
        elif draws == "none":
            assert first == other

    def test_continuous_draws_never_repeat(self, generator, seeds):
        frames = run(generator, seeds, 3)
        assert len(frames) > 0
        if generator.draws == "continuous":
            assert len(set(frames.ids())) == len(frames)

    def test_composition_is_kept(self, generator, seeds):
        if generator.composition != "kept":
            return  # its own tests say what was asked for
        frames = run(generator, seeds, 4)
        if generator.needs_parents:
            allowed = [seeds.numbers[seeds.atom_slice(row)] for row in range(len(seeds))]
        else:
            allowed = [parse_composition(formula) for formula in generator.parameters(**generator.example).formulas]
        for row in range(len(frames)):
            mine = frames.numbers[frames.atom_slice(row)]
            assert any(is_multiple(mine, numbers) for numbers in allowed), np.unique(mine, return_counts=True)

    def test_minimum_distances_hold(self, generator, seeds):
        given = generator.example.get("min_distance_ang")
        limits = pair_limits(given, scale=0.6)  # without a limit of its own: nothing overlaps
        for seed in range(3):
            frames = run(generator, seeds, seed)
            for row in range(len(frames)):
                assert closest_pair(*geometry(frames, row), limits)[0] >= 1.0

    def test_impossible_distances_name_the_field(self, generator, seeds):
        if "max_attempts" not in {entry.name for entry in fields(generator.parameters)}:
            return  # it does not draw until the distances hold
        impossible = dict(generator.example) | {"min_distance_ang": 6.0, "max_attempts": 3}
        parents = seeds if generator.needs_parents else empty_frames()
        with pytest.raises(InvalidInputError, match="min_distance_ang"):
            generator(parents, generator.parameters(**impossible), np.random.default_rng(0))

    def test_lineage_and_labels(self, generator, seeds):
        frames = run(generator, seeds, 5)
        assert frames.generators == (generator.name,)
        assert (frames.generator == 0).all()
        assert not frames.labelled.any()
        assert frames.group_id.any(axis=1).all()
        parents = {bytes(row) for row in frames.parent_id}
        assert parents <= ({bytes(row) for row in seeds.frame_id} if generator.needs_parents else {bytes(16)})

    def test_parents_are_not_changed(self, generator, seeds):
        before = write_shard(seeds)
        run(generator, seeds, 6)
        assert write_shard(seeds) == before


def is_multiple(numbers: np.ndarray, of: np.ndarray) -> bool:
    """Whether a composition is a whole multiple of another."""
    (a, m), (b, n) = (np.unique(z, return_counts=True) for z in (numbers, of))
    return np.array_equal(a, b) and len(set(m / n)) == 1 and float(m[0] / n[0]).is_integer()


class TestRattle:
    def test_directions_are_uniform_on_the_sphere(self):
        u = displacements(200_000, 0.1, np.random.default_rng(0), distribution="fixed") / 0.1
        # moments of the uniform distribution: mean 0, <xy> = δ/3, <x⁴> = 1/5, <x²y²> = 1/15
        assert np.abs(u.mean(axis=0)).max() < 0.006
        np.testing.assert_allclose(u.T @ u / len(u), np.eye(3) / 3, atol=0.004)
        np.testing.assert_allclose((u**4).mean(axis=0), 0.2, atol=0.004)
        np.testing.assert_allclose((u[:, 0] ** 2 * u[:, 1] ** 2).mean(), 1 / 15, atol=0.002)

    @given(st.floats(0.001, 1.0), st.sampled_from(["gaussian", "fixed"]))
    @settings(max_examples=20, deadline=None)
    def test_amplitude_is_the_rms_displacement(self, amplitude, distribution):
        u = displacements(20_000, amplitude, np.random.default_rng(1), distribution=distribution)
        assert np.sqrt((u**2).sum(axis=1).mean()) == pytest.approx(amplitude, rel=0.02)

    def test_amplitudes_cover_their_window(self):
        seeds = from_ase([bulk("Si", cubic=True) * (3, 3, 3)])
        frames = GENERATORS["rattle"](seeds, Rattle(10, (0.02, 0.22)), np.random.default_rng(0))
        moves = (frames.positions - np.tile(seeds.positions, (10, 1))).reshape(10, -1, 3)
        rms = np.sort(np.sqrt((moves**2).sum(axis=2).mean(axis=1)))
        np.testing.assert_allclose(rms, np.linspace(0.03, 0.21, 10), atol=0.02)

    def test_frames_of_one_cell_share_its_group(self, seeds):
        strained = GENERATORS["strain"](seeds, Strain(3), np.random.default_rng(0))
        rattled = GENERATORS["rattle"](strained, Rattle(4), np.random.default_rng(0))
        np.testing.assert_array_equal(rattled.group_id, np.repeat(strained.group_id, 4, axis=0))
        assert len(np.unique(rattled.group_id, axis=0)) == 6


class TestStrain:
    def test_fractional_positions_and_volume_window(self, seeds):
        frames = GENERATORS["strain"](seeds, Strain(20, 0.05, volume=(0.8, 1.2)), np.random.default_rng(0))
        ratio = np.linalg.det(frames.cell) / np.repeat(np.linalg.det(seeds.cell), 20)
        # stratified: one in each twentieth of the window
        np.testing.assert_array_equal(np.sort(((ratio[:20] - 0.8) / 0.02).astype(int)), np.arange(20))
        for row in range(len(frames)):
            mine = np.linalg.solve(frames.cell[row].T, frames.positions[frames.atom_slice(row)].T)
            parent = np.linalg.solve(seeds.cell[row // 20].T, seeds.positions[seeds.atom_slice(row // 20)].T)
            np.testing.assert_allclose(mine, parent, atol=1e-12)

    def test_strain_is_within_its_limits_and_without_rotation(self, seeds):
        frames = GENERATORS["strain"](seeds, Strain(50, 0.04, shear=0.01), np.random.default_rng(1))
        gradient = np.linalg.solve(np.repeat(seeds.cell, 50, axis=0), frames.cell)
        epsilon = gradient - np.eye(3)
        np.testing.assert_allclose(epsilon, epsilon.transpose(0, 2, 1), atol=1e-12)
        assert 0.035 < np.abs(epsilon[:, range(3), range(3)]).max() <= 0.04
        assert 0.008 < np.abs(epsilon[:, 0, 1]).max() <= 0.01

    def test_open_directions_are_not_strained(self):
        slab = fcc111("Cu", (1, 1, 3), vacuum=6.0)
        slab.pbc = (True, True, False)
        frames = GENERATORS["strain"](from_ase([slab]), Strain(5, 0.05), np.random.default_rng(0))
        np.testing.assert_allclose(frames.cell[:, 2], np.tile(slab.cell[2], (5, 1)), atol=1e-12)
        assert np.abs(frames.cell[:, 0, 0] - slab.cell[0, 0]).max() > 0.01
        with pytest.raises(InvalidInputError, match="three periodic directions"):
            GENERATORS["strain"](from_ase([slab]), Strain(volume=(0.9, 1.1)), np.random.default_rng(0))
        with pytest.raises(InvalidInputError, match="no periodic cell"):
            GENERATORS["strain"](from_ase([molecule("H2O")]), Strain(), np.random.default_rng(0))


class TestRandomStructure:
    @pytest.mark.parametrize("formula", ["Si8", "Cu4", "Na4Cl4", "SiO2", "Fe2O3"])
    def test_default_windows_give_sensible_densities(self, formula):
        frames = GENERATORS["random_structure"](
            empty_frames(), RandomStructure(formula, count=4), np.random.default_rng(0)
        )
        volume = np.linalg.det(frames.cell) / frames.natoms
        middle = np.mean([crystal_volume(int(z)) for z in parse_composition(formula)])
        assert (np.abs(volume) >= 0.79 * middle).all()
        assert (np.abs(volume) <= 1.41 * middle).all()
        assert smallest_distances(frames, cutoff=4.0).min() > 0.8

    def test_impossible_requests_are_refused_at_once(self):
        with pytest.raises(InvalidInputError, match="denser than the densest packing"):
            RandomStructure("Si8", volume_ang3_per_atom=(10, 12), min_distance_ang=2.8)
        with pytest.raises(InvalidInputError, match="composition: "):
            RandomStructure("Xx3")
        with pytest.raises(InvalidInputError, match="volume_ang3_per_atom"):
            RandomStructure("Si2", volume_ang3_per_atom=(20, 10))

    def test_pair_limits_differ_by_pair(self):
        wanted = {"Na-Cl": 2.3, "Na-Na": 3.2, "Cl-Cl": 3.2}
        parameters = RandomStructure("Na4Cl4", 6, volume_ang3_per_atom=(30, 40), min_distance_ang=wanted)
        frames = GENERATORS["random_structure"](empty_frames(), parameters, np.random.default_rng(0))
        for row in range(len(frames)):
            assert closest_pair(*geometry(frames, row), pair_limits(wanted))[0] >= 1.0


class TestSteps:
    STRAIN = Step("strain", "strain", Strain(3))
    RATTLE = Step("rattle", "rattle", Rattle(2), parents=("strain",))

    def test_steps_do_not_disturb_one_another(self, seeds):
        alone, _ = generate(seeds, [self.STRAIN], seed=1)
        more = [Step("first", "random_structure", RandomStructure("Si4", 2)), self.STRAIN, self.RATTLE]
        both, table = generate(seeds, more, seed=1)
        assert set(alone.ids()) < set(both.ids())
        assert [step.frames for step in table] == [2, 6, 12]
        moved, _ = generate(seeds, [Step("strain", "strain", Strain(3), seed=5)], seed=1)
        assert not set(moved.ids()) & set(alone.ids())

    def test_equal_frames_are_kept_once_and_intermediate_ones_not_at_all(self, seeds):
        steps = [
            Step("cells", "strain", Strain(2), keep=False),
            Step("still", "rattle", Rattle(3, 0.0), parents=("cells", "seeds")),
        ]
        frames, table = generate(seeds, steps, seed=0)
        # rattled by nothing: every copy is its parent, and the seeds are known already
        assert [(step.made, step.frames, step.duplicates) for step in table] == [(4, 0, 0), (18, 4, 14)]
        assert len(set(frames.ids())) == len(frames) == 4

    def test_seeds_are_kept_with_their_labels(self, seeds):
        labelled = seeds.with_columns(
            energy=np.array([1.0, 2.0]), fidelity=np.zeros(2, dtype="<i2"), fidelities=("pbe",)
        )
        frames, _ = generate(labelled, [self.STRAIN], seed=0, keep_seeds=True)
        assert frames.labelled.tolist() == [True, True] + [False] * 6

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ([], "there are none"),
            ([RATTLE], "no earlier step"),
            ([RATTLE, STRAIN], "no earlier step"),
            ([STRAIN, STRAIN], "used twice"),
            ([Step("a", "nobody", None)], "unknown generator"),
            ([Step("a", "rattle", Rattle(10**7))], "most allowed"),
            ([Step("a", "rattle", Rattle(), keep=False)], "nothing is kept"),
            ([Step("a", "rattle", Rattle(), seed=-1)], "must not be negative"),
        ],
    )
    def test_bad_steps(self, seeds, steps, message):
        with pytest.raises(InvalidInputError, match=message):
            generate(seeds, steps, seed=0)

    def test_counts_are_known_before(self, seeds):
        assert check_steps([self.STRAIN, self.RATTLE], n_seeds=2) == {"strain": 6, "rattle": 12}
        with pytest.raises(InvalidInputError, match="give seed structures"):
            check_steps([self.STRAIN], n_seeds=0)


def test_distances_see_periodic_images_and_open_directions():
    lonely = from_ase([bulk("Cu")])  # one atom: its neighbours are its images
    assert smallest_distances(lonely, cutoff=4.0)[0] == pytest.approx(3.61 / np.sqrt(2))
    pair = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])
    chain = Atoms("C", cell=[0, 0, 1.3], pbc=(False, False, True))
    assert smallest_distances(concatenate([from_ase([pair]), from_ase([chain])]), cutoff=3.0) == pytest.approx(
        [1.1, 1.3]
    )
    assert smallest_distances(from_ase([Atoms("C")]), cutoff=3.0)[0] == np.inf
