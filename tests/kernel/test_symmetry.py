"""Symmetry operations and centred lattices, against spglib's tables."""

import numpy as np
import pytest
import spglib
from ase.spacegroup import crystal

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.symmetry import has_operations, primitive_of_centring

CASES = [
    ("P", 221, [4.0, 4.0, 4.0, 90, 90, 90]),
    ("C", 65, [4.0, 5.0, 6.0, 90, 90, 90]),
    ("A", 38, [4.0, 5.0, 6.0, 90, 90, 90]),
    ("I", 139, [4.0, 4.0, 7.0, 90, 90, 90]),
    ("F", 225, [5.6, 5.6, 5.6, 90, 90, 90]),
    ("R", 160, [5.0, 5.0, 9.0, 90, 90, 120]),
]


@pytest.mark.parametrize(("letter", "number", "parameters"), CASES)
def test_operations_hold_until_an_atom_moves(letter, number, parameters):
    atoms = crystal(["Na", "Cl"], [(0.1, 0.23, 0.37), (0.0, 0.0, 0.5)], spacegroup=number, cellpar=parameters)
    hall = next(h for h in range(1, 531) if spglib.get_spacegroup_type(h).number == number)
    table = spglib.get_symmetry_from_database(hall)
    part = (atoms.numbers, atoms.positions, atoms.cell.array)
    assert has_operations(*part, table["rotations"], table["translations"], 1e-4)
    moved = atoms.positions.copy()
    moved[0] += 0.01
    assert not has_operations(atoms.numbers, moved, atoms.cell.array, table["rotations"], table["translations"], 1e-4)
    strained = atoms.cell.array * np.array([[1.01], [1.0], [1.02]])
    high = number in (221, 139, 225, 160)
    scaled = atoms.get_scaled_positions() @ strained
    assert has_operations(atoms.numbers, scaled, strained, table["rotations"], table["translations"], 1e-4) is not high
    recoloured = atoms.numbers.copy()
    recoloured[0] = 19
    assert not has_operations(recoloured, *part[1:], table["rotations"], table["translations"], 1e-4)


@pytest.mark.parametrize(("letter", "number", "parameters"), CASES)
def test_primitive_cell_is_the_same_crystal(letter, number, parameters):
    atoms = crystal(["Na", "Cl"], [(0.1, 0.23, 0.37), (0.0, 0.0, 0.5)], spacegroup=number, cellpar=parameters)
    cell, scaled, numbers = primitive_of_centring(atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers, letter)
    points = {"P": 1, "F": 4, "R": 3}.get(letter, 2)
    assert len(numbers) * points == len(atoms)
    assert np.linalg.det(cell) * points == pytest.approx(atoms.get_volume())
    found = spglib.get_symmetry_dataset((cell, scaled, numbers), symprec=1e-4)
    assert found.number == number
    assert len(found.std_types) == len(atoms)


def test_unknown_centring():
    with pytest.raises(InvalidInputError, match="centring 'Q'"):
        primitive_of_centring(np.eye(3), np.zeros((1, 3)), np.ones(1, dtype=np.uint8), "Q")
