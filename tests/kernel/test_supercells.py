"""Supercells: the distance is kept, the crystal is the same, and the cell is not larger than needed."""

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fingerprints import fingerprint
from aiida_mlip.kernel.generators.random_structure import random_cell
from aiida_mlip.kernel.supercells import repeat, shortest_image_distance, supercell_matrix

ALL = np.ones(3, dtype=bool)


def brute_force_shortest(cell: np.ndarray, pbc: np.ndarray, span: int = 6) -> float:
    steps = [np.arange(-span, span + 1) if periodic else [0] for periodic in pbc]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return float(np.linalg.norm(grid[grid.any(axis=1)] @ cell, axis=1).min())


@given(st.integers(0, 10_000), st.floats(4.0, 14.0))
@settings(max_examples=25, deadline=None)
def test_images_are_at_least_that_far_apart(seed, distance):
    cell = random_cell(60.0, 2.0, np.random.default_rng(seed))
    matrix = supercell_matrix(cell, ALL, distance)
    assert shortest_image_distance(matrix @ cell, ALL) >= distance - 1e-6
    # never larger than plain repetition
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    assert 1 <= round(np.linalg.det(matrix)) <= np.prod(np.ceil(distance / heights))


@given(st.integers(0, 10_000), st.tuples(st.booleans(), st.booleans(), st.booleans()))
@settings(max_examples=25, deadline=None)
def test_shortest_vector_is_that_of_a_brute_force_search(seed, pbc):
    cell = random_cell(30.0, 2.0, np.random.default_rng(seed))
    periodic = np.array(pbc)
    expected = brute_force_shortest(cell, periodic) if periodic.any() else np.inf
    assert shortest_image_distance(cell, periodic) == pytest.approx(expected)


def test_close_packed_cells_are_found():
    # fcc primitive, a = 4: the fcc supercell of edge 2 keeps twice the nearest-neighbour distance with 8 atoms
    cell = bulk("Cu", a=4.0).cell.array
    assert round(np.linalg.det(supercell_matrix(cell, ALL, 2 * 4.0 / np.sqrt(2)))) == 8


@pytest.mark.parametrize("matrix", [np.diag([2, 1, 3]), np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 2]])])
def test_repeated_crystal_is_the_same_crystal(matrix):
    atoms = bulk("SiC", "zincblende", a=4.36)
    numbers, positions, cell = repeat(atoms.numbers, atoms.positions, atoms.cell.array, matrix)
    assert len(numbers) == 2 * round(abs(np.linalg.det(matrix)))
    np.testing.assert_allclose(
        fingerprint(numbers, positions, cell, ALL),
        fingerprint(atoms.numbers, atoms.positions, atoms.cell.array, ALL),
        atol=1e-6,
    )
    np.testing.assert_allclose(positions[:2], atoms.positions)


def test_open_directions_are_left_alone():
    cell = np.diag([3.0, 3.0, 20.0])
    matrix = supercell_matrix(cell, np.array([True, True, False]), 7.0)
    np.testing.assert_array_equal(matrix, np.diag([3, 3, 1]))


@pytest.mark.parametrize("distance", [0.0, -1.0, np.nan, np.inf])
def test_bad_distance(distance):
    with pytest.raises(InvalidInputError, match="min_image_distance_ang"):
        supercell_matrix(np.eye(3), ALL, distance)
    with pytest.raises(InvalidInputError, match="matrix"):
        repeat(np.ones(1, dtype=np.uint8), np.zeros((1, 3)), np.eye(3), np.zeros((3, 3), dtype=int))
