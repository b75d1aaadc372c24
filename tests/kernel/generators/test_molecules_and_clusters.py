"""Atoms, dimers, trimers, clusters and particles in vacuum."""

from collections import Counter

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.generators import GENERATORS, empty_frames
from aiida_mlip.kernel.generators.cluster import Cluster, Nanoparticle
from aiida_mlip.kernel.generators.molecules import Dimer, IsolatedAtom, Trimer

SIC = from_ase([bulk("SiC", "zincblende", a=4.36, cubic=True)])


def make(name: str, parameters, seed: int = 0, parents: Frames | None = None) -> Frames:
    return GENERATORS[name](empty_frames() if parents is None else parents, parameters, np.random.default_rng(seed))


def numbers_of(frames: Frames) -> list[tuple[int, ...]]:
    return [tuple(geometry(frames, row)[0].tolist()) for row in range(len(frames))]


def test_isolated_atoms_are_reference_rows():
    frames = make("isolated_atom", IsolatedAtom(("Si", "O")))
    assert numbers_of(frames) == [(14,), (8,)]
    assert not frames.pbc.any()
    with pytest.raises(InvalidInputError, match="species"):
        IsolatedAtom(("Si", "Si"))
    with pytest.raises(InvalidInputError, match="species"):
        IsolatedAtom(())


class TestDimer:
    def test_all_pairs_over_the_whole_window(self):
        frames = make("dimer", Dimer(("Si", "O"), 10, (1.6, 3.6), min_distance_ang=1.6))
        assert Counter(numbers_of(frames)) == {(14, 14): 10, (14, 8): 10, (8, 8): 10}
        for pair in range(3):
            distances = [
                np.linalg.norm(np.diff(geometry(frames, row)[1], axis=0)) for row in range(10 * pair, 10 * pair + 10)
            ]
            np.testing.assert_array_equal(((np.array(distances) - 1.6) / 0.2).astype(int), np.arange(10))

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match=r"distance_ang: Si-Si from 1.000 Å on, but min_distance_ang"):
            Dimer(("Si",), distance_ang=(1.0, 3.0))
        with pytest.raises(InvalidInputError, match="relative_distance"):
            Dimer(("Si",), relative_distance=(0.5, 2.0))
        with pytest.raises(InvalidInputError, match="per_pair"):
            Dimer(("Si",), per_pair=0)


class TestTrimer:
    @given(st.integers(0, 200))
    @settings(max_examples=10, deadline=None)
    def test_angles_cover_their_window_and_all_three_pairs_keep_their_distance(self, seed):
        parameters = Trimer(("Si", "O"), 8, (1.6, 2.4), angle_deg=(60.0, 180.0), min_distance_ang=1.5)
        frames = make("trimer", parameters, seed)
        assert len(frames) == parameters.count == 48
        assert Counter(tuple(sorted(n)) for n in numbers_of(frames)) == {
            (14, 14, 14): 8, (8, 14, 14): 16, (8, 8, 14): 16, (8, 8, 8): 8,
        }  # fmt: skip
        angles = [frames.to_ase(row).get_angle(1, 0, 2) for row in range(8)]
        np.testing.assert_array_equal(((np.array(angles) - 60.0) / 15.0).astype(int), np.arange(8))
        for row in range(len(frames)):
            assert closest_pair(*geometry(frames, row), pair_limits(1.5))[0] >= 1.0

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match=r"min_distance_ang: no Si-Si-Si with an angle of"):
            make("trimer", Trimer(("Si",), 1, (1.6, 1.7), angle_deg=(10, 12), min_distance_ang=1.5, max_attempts=20))
        with pytest.raises(InvalidInputError, match="angle_deg"):
            Trimer(("Si",), angle_deg=(90.0, 200.0))


class TestCluster:
    @given(st.integers(0, 300), st.sampled_from(["Si7", "Ti2O4", "Na4Cl4", "Cu13"]))
    @settings(max_examples=15, deadline=None)
    def test_composition_distances_and_one_piece(self, seed, text):
        frames = make("cluster", Cluster(text, 2), seed)
        for row in range(2):
            atoms = frames.to_ase(row)
            assert Counter(atoms.symbols) == Counter(_counts(text))
            assert closest_pair(*geometry(frames, row), pair_limits(None))[0] >= 1.0
            # connected: every atom is reached through bonds of at most 1.3 covalent radii
            from ase.data import covalent_radii

            radii = covalent_radii[atoms.numbers]
            bonded = atoms.get_all_distances() <= 1.3 * (radii[:, None] + radii) + 1e-9
            assert (np.linalg.matrix_power(bonded.astype(int), len(atoms)) > 0).all()
            assert not frames.pbc[row].any()

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match="min_distance_ang: no place for atom"):
            make("cluster", Cluster("Si5", min_distance_ang=4.0, max_attempts=50))
        with pytest.raises(InvalidInputError, match="composition"):
            Cluster("Xx2")
        with pytest.raises(InvalidInputError, match="relative_bond"):
            Cluster("Si2", relative_bond=(1.5, 1.0))


class TestNanoparticle:
    @given(st.integers(0, 200), st.floats(3.0, 7.0))
    @settings(max_examples=10, deadline=None)
    def test_is_a_sphere_of_the_crystal(self, seed, radius):
        frames = make("nanoparticle", Nanoparticle(1, radius), seed, SIC)
        numbers, positions, _, pbc = geometry(frames, 0)
        assert np.linalg.norm(positions, axis=1).max() <= radius
        assert set(numbers.tolist()) == {6, 14}
        assert not pbc.any()
        # as many atoms as the density says, within the surface layer
        expected = 8 / 4.36**3 * 4 / 3 * np.pi * np.array([max(radius - 1.5, 0), radius + 1.5]) ** 3
        assert expected[0] <= len(numbers) <= expected[1]

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match="max_atoms"):
            make("nanoparticle", Nanoparticle(radius_ang=30.0), parents=SIC)
        with pytest.raises(InvalidInputError, match="radius_ang"):
            make("nanoparticle", Nanoparticle(radius_ang=0.6), parents=SIC)
        with pytest.raises(InvalidInputError, match="three directions"):
            make("nanoparticle", Nanoparticle(), parents=from_ase([molecule("H2O")]))


def _counts(text: str) -> dict[str, int]:
    from ase.formula import Formula

    return Formula(text).count()
