"""Warren-Cowley parameters: ordered alloys, the random limit, and published special quasirandom structures."""

from itertools import pairwise, product

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.short_range_order import warren_cowley

ALL = np.ones(3, dtype=bool)


def layered_fcc(sequence: str, normal: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One atom per layer of an fcc lattice (a = 4 Å) along a direction; A is Cu, B is Au."""
    n = np.array(normal)
    points = [np.array(p) for p in product(range(-4, 5), repeat=3) if sum(p) % 2 == 0]
    flat = sorted((p for p in points if p @ n == 0 and p.any()), key=lambda p: p @ p)
    u = flat[0]
    v = next(p for p in flat if np.cross(u, p).any())
    height = min(p @ n for p in points if p @ n > 0)
    w = next(p for p in points if p @ n == height)
    assert abs(round(np.linalg.det([u, v, w]))) == 2  # the primitive cell of the lattice
    positions = 2.0 * np.array([k * w for k in range(len(sequence))])
    numbers = np.array([29 if letter == "A" else 79 for letter in sequence], dtype=np.uint8)
    return numbers, positions, 2.0 * np.array([u, v, len(sequence) * w], dtype=float)


def test_published_sqs8_of_fcc_ab():
    # Wei, Ferreira, Bernard & Zunger, doi:10.1103/PhysRevB.42.9622: SQS8-a, the A2B3A2B superlattice along [-1, 1, 3].
    # At x = 1/2 the pair correlation of the k-th neighbours is the Warren-Cowley parameter.
    published = [0, 0, 1 / 24, -1 / 12, 1 / 12, 0, -1 / 8]
    order = warren_cowley(*layered_fcc("AABBBAAB", (-1, 1, 3)), ALL, n_shells=7)
    np.testing.assert_allclose(order.between("Cu", "Au"), published, atol=1e-12)
    np.testing.assert_allclose(order.coordination, [12, 6, 24, 12, 24, 8, 48])
    np.testing.assert_allclose(order.radii, 4.0 * np.sqrt(np.arange(1, 8) / 2), atol=1e-9)


def test_ordered_alloys():
    l1_0 = layered_fcc("AB", (0, 0, 1))
    # 8 of 12 nearest neighbours are unlike: 1 - (8/12)/(1/2)
    np.testing.assert_allclose(warren_cowley(*l1_0, ALL, n_shells=2).between("Cu", "Au"), [-1 / 3, 1.0], atol=1e-12)
    cu3au = bulk("Cu", cubic=True)
    cu3au.numbers[0] = 79
    order = warren_cowley(cu3au.numbers, cu3au.positions, cu3au.cell.array, ALL, n_shells=2)
    np.testing.assert_allclose(order.between("Au", "Cu"), [-1 / 3, 1.0], atol=1e-12)
    np.testing.assert_allclose(order.between("Au", "Au"), [1.0, -3.0], atol=1e-12)


@given(st.integers(0, 1000), st.sampled_from([("Cu", "Au"), ("Cu", "Au", "Ni")]))
@settings(max_examples=10, deadline=None)
def test_sum_rule_and_symmetry(seed, species):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", a=3.7, cubic=True) * (2, 2, 2)
    atoms.symbols = [*species, *rng.choice(species, len(atoms) - len(species))]
    order = warren_cowley(atoms.numbers, atoms.positions, atoms.cell.array, ALL)
    np.testing.assert_allclose(order.alpha @ order.fractions, 0.0, atol=1e-12)  # Σ_B P(B|A) = 1
    np.testing.assert_allclose(order.alpha, order.alpha.transpose(0, 2, 1), atol=1e-12)


def test_random_alloy_has_none_and_distortion_does_not_matter():
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", a=3.7, cubic=True) * (10, 10, 10)
    atoms.numbers[rng.permutation(len(atoms))[:1000]] = 79
    perfect = warren_cowley(atoms.numbers, atoms.positions, atoms.cell.array, ALL)
    assert np.abs(perfect.between("Cu", "Au")).max() < 0.02  # 4000 sites: sigma of the mean is 0.006
    atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    moved = warren_cowley(atoms.numbers, atoms.positions, atoms.cell.array, ALL, n_shells=2)
    np.testing.assert_allclose(moved.alpha, perfect.alpha[:2], atol=1e-12)
    assert all(a < b for a, b in pairwise(moved.radii))


def test_bad_input():
    atoms = bulk("Cu", cubic=True)
    part = (atoms.numbers, atoms.positions, atoms.cell.array)
    with pytest.raises(InvalidInputError, match="pbc"):
        warren_cowley(*part, np.array([True, True, False]))
    with pytest.raises(InvalidInputError, match="n_shells"):
        warren_cowley(*part, ALL, n_shells=0)
    with pytest.raises(InvalidInputError, match="n_shells: 9 shells"):
        warren_cowley(*part, ALL, n_shells=9, max_radius=6.0)
    with pytest.raises(InvalidInputError, match="no 'Ag'"):
        warren_cowley(*part, ALL).between("Cu", "Ag")
