"""Point defects: exactly the atoms asked for are missing, added or changed, and nothing else."""

from collections import Counter

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.kernel.generators.antisite import Antisite
from aiida_mlip.kernel.generators.assembly import geometry as part_of
from aiida_mlip.kernel.generators.interstitial import Interstitial, voronoi_holes
from aiida_mlip.kernel.generators.supercell import Supercell
from aiida_mlip.kernel.generators.vacancy import Vacancy
from aiida_mlip.kernel.supercells import shortest_image_distance

SIC = from_ase([bulk("SiC", "zincblende", a=4.36)])


def make(name: str, parents: Frames, parameters, seed: int = 0) -> Frames:
    return GENERATORS[name](parents, parameters, np.random.default_rng(seed))


def composition(frames: Frames, row: int = 0) -> Counter:
    return Counter(frames.numbers[frames.atom_slice(row)].tolist())


def supercell_of(distance: float | None, parents: Frames = SIC) -> Frames:
    if distance is None:
        return parents
    return make("supercell", parents, Supercell(min_image_distance_ang=distance))


def keys(frames: Frames, row: int = 0) -> set[tuple]:
    part = frames.atom_slice(row)
    return {(int(z), *np.round(x, 6)) for z, x in zip(frames.numbers[part], frames.positions[part], strict=True)}


class TestVacancy:
    @given(st.integers(0, 500), st.integers(1, 4), st.sampled_from([("Si",), ("C",), ("Si", "C"), None]))
    @settings(max_examples=15, deadline=None)
    def test_only_atoms_of_the_species_are_missing(self, seed, count, species):
        host = supercell_of(8.0)
        parameters = Vacancy(3, count, species, min_image_distance_ang=8.0)
        frames = make("vacancy", SIC, parameters, seed)
        for row in range(3):
            assert keys(frames, row) < keys(host)
            missing = composition(host) - composition(frames, row)
            assert sum(missing.values()) == count
            assert {14: "Si", 6: "C"}.items() >= {z: {14: "Si", 6: "C"}[z] for z in missing}.items()
            assert species is None or set(missing) <= {{"Si": 14, "C": 6}[s] for s in species}
            np.testing.assert_allclose(frames.cell[row], host.cell[0])

    def test_number_of_vacancies_runs_through_its_window(self):
        frames = make("vacancy", SIC, Vacancy(6, (1, 3), min_image_distance_ang=8.0))
        n_host = int(supercell_of(8.0).natoms[0])
        assert (n_host - frames.natoms).tolist() == [1, 2, 3, 1, 2, 3]

    def test_images_of_a_defect_are_far_apart(self):
        frames = make("vacancy", SIC, Vacancy(2, min_image_distance_ang=9.5))
        assert all(shortest_image_distance(cell, np.ones(3, dtype=bool)) >= 9.5 for cell in frames.cell)

    def test_equivalent_vacancies_share_a_group_and_others_do_not(self):
        frames = make("vacancy", SIC, Vacancy(30, min_image_distance_ang=8.0))
        kinds = [composition(frames, row)[14] for row in range(30)]
        groups = {bytes(row) for row in frames.group_id}
        assert len(groups) == len(set(kinds)) == 2

    def test_no_element_is_lost(self):
        with pytest.raises(InvalidInputError, match=r"n_vacancies: .* can spare 0"):
            make("vacancy", SIC, Vacancy(1, 1))
        frames = make("vacancy", supercell_of(5.0), Vacancy(5, int(supercell_of(5.0).natoms[0]) - 2))
        assert all(set(composition(frames, row)) == {14, 6} for row in range(5))

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match="species: no atom of"):
            make("vacancy", SIC, Vacancy(1, 1, ("Ge",)))
        with pytest.raises(InvalidInputError, match="species: 'Foo'"):
            make("vacancy", SIC, Vacancy(1, 1, ("Foo",)))
        for keys_, message in (
            ({"n_vacancies": 0}, "n_vacancies"),
            ({"n_vacancies": (3, 1)}, "n_vacancies"),
            ({"per_parent": 0}, "per_parent"),
            ({"min_image_distance_ang": -1.0}, "min_image_distance_ang"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                Vacancy(**keys_)


class TestInterstitial:
    def test_holes_of_diamond_and_fcc(self):
        # known holes: octahedral (a/2 from 6 atoms) and tetrahedral (√3/4 a) of fcc; tetrahedral of diamond
        fcc = voronoi_holes(part_of(from_ase([bulk("Cu", a=4.0, cubic=True)]), 0))
        assert len(fcc) == 4 + 8
        tree = cKDTree((bulk("Cu", a=4.0, cubic=True) * (3, 3, 3)).positions - 4.0)
        radii = np.sort(tree.query(fcc)[0])[::-1]
        np.testing.assert_allclose(radii, [2.0] * 4 + [np.sqrt(3.0)] * 8, atol=1e-6)
        diamond = voronoi_holes(part_of(from_ase([bulk("Si", a=5.43)]), 0))
        nearest = cKDTree((bulk("Si", a=5.43) * (5, 5, 5)).positions - 2 * bulk("Si", a=5.43).cell.sum(axis=0))
        distance = nearest.query(diamond)[0]
        assert distance[0] == pytest.approx(5.43 * np.sqrt(3) / 4, abs=1e-6)  # as far from its atoms as a bond

    @given(st.integers(0, 300))
    @settings(max_examples=8, deadline=None)
    def test_every_hole_is_equally_far_from_at_least_four_atoms(self, seed):
        rng = np.random.default_rng(seed)
        atoms = bulk("SiC", "zincblende", a=4.36) * (1, 1, 2)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        images = (atoms * (7, 7, 5)).positions - atoms.cell.array.T @ [3, 3, 2]
        atoms.positions[0] += 2 * atoms.cell[1] - 3 * atoms.cell[2]  # the same atom, far outside the cell
        holes = voronoi_holes(part_of(from_ase([atoms]), 0))
        # fold the holes near the middle of the images
        scaled = holes @ np.linalg.inv(atoms.cell.array) % 1.0
        distances = cKDTree(images).query(scaled @ atoms.cell.array, k=4)[0]
        np.testing.assert_allclose(distances, distances[:, :1] * np.ones(4), atol=1e-6)

    @pytest.mark.parametrize("sites", ["voronoi", "random"])
    @given(seed=st.integers(0, 200), count=st.integers(1, 3))
    @settings(max_examples=6, deadline=None)
    def test_host_stays_and_distances_hold(self, sites, seed, count):
        parameters = Interstitial(2, ("Si", "Li"), count, sites, 1.4, 6.0)
        frames = make("interstitial", SIC, parameters, seed)
        host = supercell_of(6.0)
        added = [composition(frames, row) - composition(host) for row in range(2)]
        expected = [14, 3] * count
        assert [Counter(expected[:count]), Counter(expected[count : 2 * count])] == added
        for row in range(2):
            assert keys(host) < keys(frames, row)
            assert closest_pair(*geometry(frames, row), pair_limits(1.4))[0] >= 1.0

    def test_open_structures(self):
        cage = from_ase([molecule("C60")])
        frames = make("interstitial", cage, Interstitial(1, "Li", min_distance_ang={"Li-C": 2.5}))
        inserted = frames.positions[-1]
        assert np.linalg.norm(inserted - cage.positions.mean(axis=0)) < 3.55 - 2.4  # radius of the cage: 3.55 Å
        with pytest.raises(InvalidInputError, match="sites: 3 atoms without a hole"):
            make("interstitial", from_ase([molecule("H2O")]), Interstitial(1, "H", min_distance_ang=0.5))

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match=r"min_distance_ang: .* no place"):
            make("interstitial", SIC, Interstitial(1, "Li", min_distance_ang={"Si-Li": 2.3, "C-Li": 2.3}))
        with pytest.raises(InvalidInputError, match="species"):
            Interstitial(species="Foo")
        with pytest.raises(InvalidInputError, match="n_interstitials"):
            Interstitial(n_interstitials=0)


class TestAntisite:
    @given(st.integers(0, 300), st.integers(1, 4))
    @settings(max_examples=10, deadline=None)
    def test_exchange_keeps_the_composition_and_the_sites(self, seed, count):
        frames = make("antisite", SIC, Antisite(None, "exchange", 2, count, 8.0), seed)
        host = supercell_of(8.0)
        for row in range(2):
            part = frames.atom_slice(row)
            assert composition(frames, row) == composition(host)
            np.testing.assert_array_equal(frames.positions[part], host.positions)
            assert (frames.numbers[part] != host.numbers).sum() == 2 * count

    def test_replace_changes_exactly_what_is_asked(self):
        frames = make("antisite", SIC, Antisite(("Si", "Ge"), "replace", 3, 2, 8.0))
        host = composition(supercell_of(8.0))
        assert all(composition(frames, row) == host - Counter({14: 2}) + Counter({32: 2}) for row in range(len(frames)))

    def test_bad_input(self):
        silicon = from_ase([bulk("Si")])
        with pytest.raises(InvalidInputError, match=r"species: .* needs two elements"):
            make("antisite", silicon, Antisite())
        with pytest.raises(InvalidInputError, match=r"n_sites: .* would leave none"):
            make("antisite", SIC, Antisite(("Si", "Ge"), "replace"))
        with pytest.raises(InvalidInputError, match=r"n_sites: .* no 2 pairs"):
            make("antisite", SIC, Antisite(n_sites=2))
        with pytest.raises(InvalidInputError, match="species: kind 'replace'"):
            Antisite(kind="replace")
        with pytest.raises(InvalidInputError, match="two different elements"):
            Antisite(("Si", "Si"))


class TestSupercell:
    def test_repeat_and_distance(self):
        frames = make("supercell", SIC, Supercell(repeat=(2, 1, 3)))
        np.testing.assert_allclose(frames.cell[0], np.diag([2, 1, 3]) @ SIC.cell[0])
        assert composition(frames) == Counter({14: 6, 6: 6})
        large = supercell_of(12.0)
        assert shortest_image_distance(large.cell[0], np.ones(3, dtype=bool)) >= 12.0 - 1e-6

    def test_bad_input(self):
        for keys_ in ({}, {"repeat": (1, 1, 1), "min_image_distance_ang": 5.0}):
            with pytest.raises(InvalidInputError, match="give either repeat or"):
                Supercell(**keys_)
        with pytest.raises(InvalidInputError, match="repeat: must be at least 1"):
            Supercell(repeat=(0, 1, 1))
        with pytest.raises(InvalidInputError, match=r"max_atoms: .* allowed are 100"):
            make("supercell", SIC, Supercell(min_image_distance_ang=20.0, max_atoms=100))
        with pytest.raises(InvalidInputError, match="no periodic direction"):
            make("supercell", from_ase([molecule("H2O")]), Supercell(repeat=(2, 2, 2)))
