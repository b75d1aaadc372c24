"""Fingerprints: equal for every description of one structure, different for different ones."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fingerprints import DEFAULT_TOLERANCE, DuplicateFinder, equal_structures, fingerprint
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.generators.rattle import displacements


def of(atoms: Atoms) -> np.ndarray:
    return fingerprint(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def distorted(seed: int) -> Atoms:
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
    atoms.positions += displacements(len(atoms), 0.15, np.random.default_rng(seed))
    return atoms


#: Unimodular, so another basis of the same lattice.
BASES = [[[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [2, 1, 0], [0, -1, 1]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]]


class TestInvariance:
    @given(st.integers(0, 1000), st.sampled_from(BASES))
    @settings(max_examples=15, deadline=None)
    def test_order_orientation_origin_and_cell_choice(self, seed, basis):
        rng = np.random.default_rng(seed)
        atoms = distorted(seed)
        other = make_supercell(atoms, basis)[rng.permutation(len(atoms))]
        rotation = Rotation.random(rng=seed).as_matrix()
        other.set_cell(other.cell.array @ rotation.T)
        other.positions = other.positions @ rotation.T + rng.normal(size=3)
        if seed % 2:
            other.wrap()
        assert np.linalg.norm(of(other) - of(atoms)) < 1e-6

    @pytest.mark.parametrize("repeats", [(2, 1, 1), (2, 2, 2), (1, 3, 2)])
    def test_supercells_are_the_same_structure(self, repeats):
        atoms = distorted(0)
        assert np.linalg.norm(of(atoms * repeats) - of(atoms)) < 1e-6
        rows = from_ase([atoms, atoms * repeats])
        assert equal_structures(rows).tolist() == [0, 0]
        assert equal_structures(rows, ignore_size=False).tolist() == [0, 1]

    def test_perfect_crystals_where_symmetry_makes_exact_zeros(self):
        primitive, cubic = bulk("Cu"), bulk("Cu", cubic=True) * (2, 1, 1)
        cubic.rotate(31.0, (1, 2, 3), rotate_cell=True)
        assert np.linalg.norm(of(primitive) - of(cubic)) < 1e-5


class TestDiscrimination:
    def test_small_moves_and_strains_are_seen(self):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        for seed in range(5):
            moved = atoms.copy()
            moved.positions += displacements(len(atoms), 0.02, np.random.default_rng(seed))
            assert np.linalg.norm(of(moved) - of(atoms)) > DEFAULT_TOLERANCE
        strained = atoms.copy()
        strained.set_cell(atoms.cell * 1.0005, scale_atoms=True)
        assert np.linalg.norm(of(strained) - of(atoms)) > DEFAULT_TOLERANCE

    def test_different_structures(self):
        copper = {s: bulk("Cu", s, a=a) for s, a in (("fcc", 3.61), ("bcc", 2.87), ("sc", 2.4))}
        hcp = bulk("Cu", "hcp", a=3.61 / np.sqrt(2), c=3.61 / np.sqrt(2) * np.sqrt(8 / 3))  # same first shell as fcc
        swapped = distorted(0)
        swapped.numbers[[0, 1]] = swapped.numbers[[1, 0]]
        mirror = [bulk("SiC", "zincblende", a=a) for a in (4.36, 4.37)]
        rows = from_ase([*copper.values(), hcp, distorted(0), swapped, *mirror, molecule("H2O"), molecule("OH")])
        assert equal_structures(rows).tolist() == list(range(len(rows)))

    def test_vacancies_on_equivalent_sites_are_equal_and_on_others_not(self):
        host = bulk("SiC", "zincblende", a=4.36, cubic=True) * (2, 2, 2)
        frames = []
        for symbol in ("Si", "Si", "C", "C"):
            sites = np.flatnonzero(host.symbols == symbol)
            atoms = host.copy()
            del atoms[sites[len(frames) * 5]]
            frames.append(atoms)
        assert equal_structures(from_ase(frames)).tolist() == [0, 0, 2, 2]


class TestFinder:
    def test_blocks_give_the_same_as_all_at_once(self):
        rng = np.random.default_rng(0)
        rows = from_ase([distorted(int(seed)) for seed in rng.integers(12, size=40)])
        whole = equal_structures(rows)
        finder = DuplicateFinder()
        parts = [finder.add(rows.take(np.arange(start, min(start + 7, 40)))) for start in range(0, 40, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert len(set(whole)) == 12

    def test_grid_finds_what_a_loop_over_pairs_finds(self):
        # near copies at distances on both sides of the tolerance, in all directions of the grid
        base = distorted(3)
        rng = np.random.default_rng(1)
        images = [base]
        for scale in np.repeat([0.0005, 0.002, 0.004, 0.01, 0.05], 8):
            moved = base.copy()
            moved.positions += displacements(len(base), float(scale), rng)
            images.append(moved)
        values = [of(atoms) for atoms in images]
        expected: list[int] = []
        leaders: list[int] = []
        for k, value in enumerate(values):
            near = [m for m in leaders if np.linalg.norm(value - values[m]) <= DEFAULT_TOLERANCE]
            expected.append(near[0] if near else k)
            if not near:
                leaders.append(k)
        found = equal_structures(from_ase(images))
        # where several leaders are near, any is right
        for k, (mine, theirs) in enumerate(zip(found.tolist(), expected, strict=True)):
            assert (mine == k) == (theirs == k)
            assert np.linalg.norm(values[k] - values[mine]) <= DEFAULT_TOLERANCE
        assert 3 < len(leaders) < len(images)

    def test_cost_is_linear(self):
        from time import process_time

        block = from_ase([distorted(seed) for seed in range(20)])
        finder = DuplicateFinder(tolerance=1e-6)
        times = []
        for repeat in range(8):
            moved = block.with_columns(
                positions=block.positions + displacements(block.n_atoms, 0.05, np.random.default_rng(repeat))
            )
            start = process_time()
            finder.add(moved)
            times.append(process_time() - start)
        assert min(times[-3:]) < 3 * min(times[:3])

    def test_bad_tolerance(self):
        with pytest.raises(InvalidInputError, match="tolerance"):
            equal_structures(concatenate([from_ase([bulk("Cu")])]), tolerance=-1.0)
