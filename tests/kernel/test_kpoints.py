from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.kpoints import mesh_from_distance

cells = arrays(float, (3, 3), elements=st.floats(-8, 8)).filter(lambda c: abs(c[0] @ np.cross(c[1], c[2])) > 5)
pbcs = arrays(bool, (3,))
distances = st.floats(0.05, 3)


@given(cells, pbcs, distances)
def test_meets_the_density_with_the_smallest_mesh(cell, pbc, distance):
    mesh = mesh_from_distance(cell, pbc, distance)
    for direction, count in enumerate(mesh):
        if not pbc[direction]:
            assert count == 1
            continue
        # |b_i| = 2π / (distance between the lattice planes of the periodic sublattice)
        others = cell[[d for d in range(3) if pbc[d] and d != direction]]
        vector = cell[direction]
        if len(others):
            vector = vector - others.T @ np.linalg.lstsq(others.T, vector, rcond=None)[0]
        length = 2 * np.pi / np.linalg.norm(vector)
        assert length / count <= distance * (1 + 1e-6)
        assert count == 1 or length / (count - 1) > distance * (1 - 1e-6)


@given(cells, pbcs, distances, st.floats(1.0, 3.0))
def test_denser_when_the_distance_is_smaller(cell, pbc, distance, factor):
    coarse, fine = mesh_from_distance(cell, pbc, distance * factor), mesh_from_distance(cell, pbc, distance)
    assert all(f >= c for f, c in zip(fine, coarse, strict=True))


@given(cells, pbcs, distances, st.floats(0.5, 50))
def test_does_not_depend_on_the_vacuum(cell, pbc, distance, factor):
    assume(not pbc.all())
    scaled = np.where(pbc[:, None], cell, factor * cell)
    assert mesh_from_distance(scaled, pbc, distance) == mesh_from_distance(cell, pbc, distance)
    assert mesh_from_distance(np.where(pbc[:, None], cell, 0.0), pbc, distance) == mesh_from_distance(
        cell, pbc, distance
    )


@given(cells, distances, st.integers(0, 2**32 - 1))
def test_does_not_depend_on_the_orientation(cell, distance, seed):
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    pbc = np.ones(3, dtype=bool)
    # a length that is a whole multiple of the distance to the last bit may go either way
    meshes = {mesh_from_distance(cell @ rotation, pbc, distance * f) for f in (1 - 1e-9, 1, 1 + 1e-9)}
    assert mesh_from_distance(cell, pbc, distance) in meshes


def test_known_meshes():
    pbc = np.ones(3, dtype=bool)
    assert mesh_from_distance(np.eye(3) * 5.43, pbc, 2 * np.pi / 5.43 / 3) == (3, 3, 3)
    assert mesh_from_distance(np.eye(3) * 5.43, pbc, 100.0) == (1, 1, 1)
    assert mesh_from_distance(np.zeros((3, 3)), ~pbc, 0.1) == (1, 1, 1)


@pytest.mark.parametrize("distance", [0.0, -0.2, float("nan")])
def test_refuses_a_distance_that_is_not_positive(distance):
    with pytest.raises(InvalidInputError, match="must be positive, got"):
        mesh_from_distance(np.eye(3), np.ones(3, dtype=bool), distance)


def test_refuses_periodic_vectors_without_area():
    with pytest.raises(InvalidInputError, match="linearly dependent"):
        mesh_from_distance(np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1]]), np.array([True, True, False]), 0.5)
