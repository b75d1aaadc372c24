from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, fcc111, graphene, molecule
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aiida_mlip.errors import FrameError, InvalidInputError
from aiida_mlip.kernel.cells import boxed, has_vacuum
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.geometry_checks import check_geometries


@given(arrays(float, (4, 3), elements=st.floats(-5, 5)), st.integers(0, 7), st.floats(1, 10))
def test_a_box_keeps_the_shape_and_the_padding(positions, bits, padding):
    present = np.array([bits >> i & 1 for i in range(3)], dtype=bool)
    cell = np.where(present[:, None], np.array([[4.0, 1, 0], [0, 5, 0.5], [0.3, 0, 6]]), 0.0)
    moved, box = boxed(positions, cell, present, padding=padding)
    np.testing.assert_allclose(moved - moved[0], positions - positions[0], atol=1e-9)
    np.testing.assert_array_equal(box[present], cell[present])
    assert abs(np.linalg.det(box)) > 1
    for direction in np.flatnonzero(~present):
        axis = box[direction] / np.linalg.norm(box[direction])
        np.testing.assert_allclose(np.delete(box, direction, axis=0) @ axis, 0, atol=1e-9)
        along = moved @ axis
        assert along.min() == pytest.approx(padding, abs=1e-6)
        assert np.linalg.norm(box[direction]) - along.max() == pytest.approx(padding, abs=1e-6)


def test_an_isolated_atom_sits_in_the_middle_of_a_cube():
    moved, box = boxed(np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool), padding=6.0)
    np.testing.assert_allclose(box, 12 * np.eye(3))
    np.testing.assert_allclose(moved, [[6, 6, 6]])


def test_a_periodic_direction_needs_a_vector():
    with pytest.raises(InvalidInputError, match="no cell vector"):
        boxed(np.zeros((1, 3)), np.zeros((3, 3)), np.array([True, False, False]), padding=3.0)


def test_vacuum_is_seen_whatever_the_origin():
    slab = fcc111("Cu", (1, 1, 4), vacuum=5.0, orthogonal=False, periodic=True)
    for shift in np.linspace(0, slab.cell[2, 2], 7):
        assert has_vacuum(slab.positions + np.array([0, 0, shift]), slab.cell.array)
    for atoms in (bulk("Si"), bulk("Cu") * (3, 3, 3), bulk("Cs"), graphene(vacuum=1.7)):
        assert not has_vacuum(atoms.positions, atoms.cell.array)


def bad(atoms, **changes):
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (bad(bulk("Si"), positions=np.array([[0, 0, 0], [0.3, 0, 0]])), r"atoms Si 0 and Si 1 overlap: 0.300 Å"),
        (bad(bulk("Si"), positions=np.array([[0, 0, 0], [5.3, 0.1, 0]]), cell=5.4 * np.eye(3)), "overlap: 0.141 Å"),
        (bad(bulk("Si"), cell=np.diag([5, 5, 0])), "without a cell vector"),
        (bad(bulk("Si"), cell=np.array([[5, 0, 0], [5, 0, 0], [0, 0, 5]])), "cell without volume"),
        (bad(bulk("Si"), positions=np.full((2, 3), np.nan)), "not finite"),
    ],
)
def test_unusable_frames_are_named(atoms, message):
    frames = from_ase([bulk("Si"), molecule("H2O"), molecule("C6H6"), atoms])
    with pytest.raises(FrameError, match=message) as caught:
        check_geometries(frames, source="my.xyz")
    assert caught.value.index == 3
    assert "my.xyz, frame 3" in str(caught.value)


def test_usable_frames_pass():
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    wire = bulk("Cu")
    wire.pbc = [True, False, False]
    check_geometries(from_ase([bulk("Si"), molecule("H2"), slab, wire, bulk("Cu", cubic=True) * 3]))
