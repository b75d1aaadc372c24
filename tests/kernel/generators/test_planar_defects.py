"""Surfaces, stacking faults and grain boundaries: known layer spacings, coordination and coincidence."""

from collections import Counter
from itertools import combinations
from math import gcd

import numpy as np
import pytest
from ase.build import bulk, fcc100, fcc111, molecule
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, geometry, pair_limits
from aiida_mlip.kernel.fingerprints import equal_structures
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.kernel.generators.assembly import geometry as part_of
from aiida_mlip.kernel.generators.grain_boundary import GrainBoundary, bicrystal
from aiida_mlip.kernel.generators.stacking_fault import StackingFault
from aiida_mlip.kernel.generators.surface import Surface, oriented, plane_basis, terminations

A = 3.6
CU = from_ase([bulk("Cu", a=A, cubic=True)])
NACL = from_ase([bulk("NaCl", "rocksalt", a=5.6, cubic=True)])


def make(name: str, parents: Frames, parameters, seed: int = 0) -> Frames:
    return GENERATORS[name](parents, parameters, np.random.default_rng(seed))


def coordination(frames: Frames, row: int, cutoff: float) -> np.ndarray:
    numbers, positions, cell, pbc = geometry(frames, row)
    i = neighbour_list("i", positions=positions, cell=cell, pbc=pbc, cutoff=cutoff)
    return np.bincount(i, minlength=len(numbers))


class TestOrientation:
    @given(st.tuples(*[st.integers(-4, 4)] * 3))
    @settings(max_examples=40, deadline=None)
    def test_plane_basis_is_a_lattice_basis(self, miller):
        assume(any(miller) and gcd(*miller) == 1)
        basis = plane_basis(miller)
        assert abs(round(np.linalg.det(basis))) == 1
        np.testing.assert_array_equal(basis @ miller, [0, 0, 1])

    @given(st.tuples(*[st.integers(-3, 3)] * 3))
    @settings(max_examples=15, deadline=None)
    def test_oriented_cell_is_the_same_crystal_with_the_normal_up(self, miller):
        assume(any(miller))
        layer = oriented(part_of(NACL, 0), miller)
        reduced = np.array(miller) / gcd(*miller)
        assert layer.cell[2, 2] == pytest.approx(5.6 / np.linalg.norm(reduced))
        np.testing.assert_allclose(layer.cell[:2, 2], 0.0, atol=1e-9)
        assert np.linalg.det(layer.cell) == pytest.approx(5.6**3)
        same = from_ase([NACL.to_ase(0)])
        turned = same.with_columns(positions=layer.positions, cell=layer.cell[None], numbers=layer.numbers)
        assert equal_structures(concatenate([same, turned])).tolist() == [0, 0]


class TestSurface:
    @pytest.mark.parametrize(("miller", "build"), [((1, 1, 1), fcc111), ((1, 0, 0), fcc100)])
    def test_low_index_slabs_are_those_of_ase(self, miller, build):
        slab = make("surface", CU, Surface(1, (miller,), min_slab_ang=6.0, vacuum_ang=12.0))
        spacing = A / np.sqrt(3) if miller == (1, 1, 1) else A / 2
        heights = np.unique(np.round(slab.positions[:, 2], 4))
        np.testing.assert_allclose(np.diff(heights), spacing, atol=1e-3)
        reference = build("Cu", (1, 1, len(heights)), a=A, vacuum=6.0)
        reference.pbc = (True, True, False)
        assert equal_structures(concatenate([slab, from_ase([reference])])).tolist() == [0, 0]
        assert slab.pbc.tolist() == [[True, True, False]]

    @given(st.tuples(*[st.integers(-2, 2)] * 3), st.floats(4.0, 10.0), st.floats(8.0, 15.0))
    @settings(max_examples=12, deadline=None)
    def test_thickness_vacuum_and_stoichiometry(self, miller, thickness, vacuum):
        assume(any(miller))
        frames = make("surface", NACL, Surface(3, (miller,), thickness, vacuum, max_atoms=2000))
        for row in range(3):
            numbers, positions, cell, _ = geometry(frames, row)
            assert Counter(numbers.tolist())[11] == Counter(numbers.tolist())[17]
            height = np.ptp(positions[:, 2])
            assert cell[2, 2] - height == pytest.approx(vacuum)
            layer = oriented(part_of(NACL, 0), miller)
            assert height >= thickness - layer.cell[2, 2]

    def test_terminations_of_a_layered_compound(self):
        # zinc blende (111): two ways to cut, through the short and through the long gap
        sic = from_ase([bulk("SiC", "zincblende", a=4.36, cubic=True)])
        assert len(terminations(oriented(part_of(sic, 0), (1, 1, 1)))) == 2
        frames = make("surface", sic, Surface(2, ((1, 1, 1),), min_slab_ang=6.0))
        assert len(set(equal_structures(frames).tolist())) == 2

    def test_width(self):
        frames = make("surface", CU, Surface(1, ((1, 1, 1),), min_width_ang=7.0))
        cell = frames.cell[0]
        area = np.linalg.norm(np.cross(cell[0], cell[1]))
        assert min(area / np.linalg.norm(cell[k]) for k in (0, 1)) >= 7.0 - 1e-6

    def test_bad_input(self):
        for keys, message in (
            ({"miller": ((0, 0, 0),)}, "miller"),
            ({"miller": ()}, "miller"),
            ({"vacuum_ang": 0.0}, "vacuum_ang"),
            ({"min_slab_ang": -1.0}, "min_slab_ang"),
            ({"min_width_ang": 0.0}, "min_width_ang"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                Surface(**keys)
        with pytest.raises(InvalidInputError, match="max_atoms"):
            make("surface", CU, Surface(min_slab_ang=50.0, max_atoms=10))
        with pytest.raises(InvalidInputError, match="three directions"):
            make("surface", from_ase([molecule("H2O")]), Surface())


class TestStackingFault:
    def test_intrinsic_fault_of_fcc(self):
        # a third of both vectors (at 60°) of the (111) plane, or two thirds, is the partial: full
        # coordination, hcp-like planes
        frames = make("stacking_fault", CU, StackingFault(4, (1, 1, 1), (1.0, 1.0), min_layers_ang=12.0))
        np.testing.assert_array_equal(coordination(frames, 0, 0.85 * A), 12)  # no displacement
        perfect = from_ase([bulk("Cu", a=A)])
        assert equal_structures(concatenate([perfect, frames])).tolist()[1] == 0
        assert equal_structures(concatenate([perfect, frames])).tolist()[4] == 0  # a whole lattice vector
        partial = [row for row in (1, 2) if (coordination(frames, row, 0.85 * A) == 12).all()]
        assert len(partial) == 1  # the other third puts atoms on top of one another
        assert equal_structures(concatenate([perfect, frames])).tolist()[1 + partial[0]] != 0

    @given(st.integers(0, 200))
    @settings(max_examples=10, deadline=None)
    def test_gamma_surface_keeps_composition_and_distances(self, seed):
        parameters = StackingFault(3, (1, 1, 0), None, 6.0, (0.0, 0.5), min_distance_ang=2.3)
        frames = make("stacking_fault", NACL, parameters, seed)
        for row in range(3):
            counts = Counter(geometry(frames, row)[0].tolist())
            assert counts[11] == counts[17]
            assert closest_pair(*geometry(frames, row), pair_limits(2.3))[0] >= 1.0
            assert frames.cell[row, 2, 2] >= 6.0

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match=r"direction: .* breaks min_distance_ang"):
            make("stacking_fault", CU, StackingFault(4, (1, 1, 1), (1.0, 1.0), min_distance_ang=2.4))
        with pytest.raises(InvalidInputError, match="miller"):
            StackingFault(miller=(0, 0, 0))
        with pytest.raises(InvalidInputError, match="min_layers_ang"):
            StackingFault(min_layers_ang=0.0)
        with pytest.raises(InvalidInputError, match="max_atoms"):
            make("stacking_fault", CU, StackingFault(max_atoms=5))
        with pytest.raises(InvalidInputError, match="three directions"):
            make("stacking_fault", from_ase([molecule("H2O")]), StackingFault())


class TestGrainBoundary:
    def test_coherent_twin(self):
        # Σ3 (111): every atom keeps twelve neighbours at the bulk distance, and no gap is needed
        parameters = GrainBoundary((1, 1, 1), 3, (1, 1, 1), min_grain_ang=6.0, min_distance_ang=2.5)
        frames = make("grain_boundary", CU, parameters)
        np.testing.assert_array_equal(coordination(frames, 0, 0.85 * A), 12)
        perfect = from_ase([bulk("Cu", a=A)])
        assert equal_structures(concatenate([perfect, frames])).tolist() == [0, 1]
        assert np.linalg.det(frames.cell[0]) / frames.natoms[0] == pytest.approx(A**3 / 4)

    @pytest.mark.parametrize(("sigma", "axis", "plane"), [(5, (1, 0, 0), (0, 1, 2)), (9, (1, 1, 0), None)])
    def test_grains_are_crystals_with_the_right_share_of_coincident_sites(self, sigma, axis, plane):
        pair = bicrystal(part_of(CU, 0), GrainBoundary(axis, sigma, plane, min_grain_ang=9.0), "test")
        assert pair.upper.sum() * 2 == len(pair.upper)
        lower, upper = (lattice_of_grain(pair, which) for which in (False, True))
        # the lattice of one grain, one period of the coincidence lattice, in units of the other's
        grid = np.stack(np.meshgrid(*[np.arange(sigma)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        coordinates = grid @ lower @ np.linalg.inv(upper)
        coincident = (np.abs(coordinates - np.rint(coordinates)) < 1e-4).all(axis=1)
        assert coincident.mean() == pytest.approx(1 / sigma)

    def test_composition_distances_and_shifts(self):
        parameters = GrainBoundary((1, 1, 1), 3, (1, 1, 1), 3, min_grain_ang=5.0, min_distance_ang=2.2)
        frames = make("grain_boundary", NACL, parameters)
        assert len(frames) == 3
        for row in range(3):
            counts = Counter(geometry(frames, row)[0].tolist())
            assert counts[11] == counts[17]
            assert closest_pair(*geometry(frames, row), pair_limits(2.2))[0] >= 1.0
        assert len(set(frames.ids())) == 3

    def test_bad_input(self):
        hexagonal = from_ase([bulk("Mg", "hcp", a=3.2, c=5.2)])
        with pytest.raises(InvalidInputError, match="must be cubic, it is hexagonal"):
            make("grain_boundary", hexagonal, GrainBoundary())
        with pytest.raises(InvalidInputError, match="sigma"):
            make("grain_boundary", CU, GrainBoundary(sigma=4))
        with pytest.raises(InvalidInputError, match="sigma"):
            GrainBoundary(sigma=1)
        with pytest.raises(InvalidInputError, match="plane"):
            GrainBoundary(plane=(0, 0, 0))
        with pytest.raises(InvalidInputError, match="max_atoms"):
            make("grain_boundary", CU, GrainBoundary(max_atoms=10))
        with pytest.raises(InvalidInputError, match=r"max_opening_ang: .* does not keep min_distance_ang"):
            make("grain_boundary", CU, GrainBoundary(plane=(0, 1, 2), max_opening_ang=0.1, min_distance_ang=2.5))
        with pytest.raises(InvalidInputError, match="three directions"):
            make("grain_boundary", from_ase([molecule("H2O")]), GrainBoundary())


def lattice_of_grain(pair, upper: bool) -> np.ndarray:
    """(3, 3) primitive vectors of an fcc grain, from the neighbours of an atom in its middle."""
    chosen = pair.upper == upper
    part = pair.part
    i, vectors = neighbour_list(
        "iD", positions=part.positions[chosen], cell=part.cell, pbc=part.pbc, cutoff=A * (1 + np.sqrt(0.5)) / 2
    )
    counts = np.bincount(i, minlength=chosen.sum())
    around = vectors[i == np.flatnonzero(counts == 12)[0]]
    for basis in combinations(around, 3):
        if abs(np.linalg.det(basis)) == pytest.approx(A**3 / 4):
            return np.array(basis)
    raise AssertionError("no primitive cell among the neighbours")
