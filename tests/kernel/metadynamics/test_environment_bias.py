"""Bias in environment space: exact derivatives, invariances, hills that add up, cost that stays flat."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.metadynamics.descriptor import EnvironmentDescriptor
from aiida_mlip.kernel.metadynamics.environment_bias import fit_environment_bias, from_arrays, to_arrays
from aiida_mlip.kernel.metadynamics.hills import REACH, HillGrid, well_tempered
from aiida_mlip.kernel.metadynamics.walls import PairWall, temperature_limit
from aiida_mlip.kernel.metadynamics.whitening import explored_volume, fit_whitening

KT = 0.0258


def rattled(seed: int = 0, amplitude: float = 0.12, shear: float = 0.1):
    atoms = bulk("CuAu", "rocksalt", a=5.2, cubic=True)
    strain = np.array([[1, shear, 0], [0, 1, shear], [0, 0, 1.02]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(amplitude, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def bias():
    reference = from_ase([rattled(seed) for seed in range(12)])
    result = fit_environment_bias(reference, cutoff_ang=4.5, n_radial=4, components=3, width=0.7)
    for seed in range(20):
        atoms = rattled(100 + seed)
        here = result.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        result.deposit(atoms.numbers, here, height_ev=0.1, boltzmann_temperature_ev=KT, bias_factor=50.0)
    return result


def evaluate(bias, atoms):
    return bias.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def test_forces_are_the_derivative_of_the_bias(bias):
    atoms = rattled(3)
    here = evaluate(bias, atoms)
    assert np.abs(here.forces).max() > 0.05  # the hills are felt
    h = 1e-5
    for atom, axis in [(0, 0), (1, 2), (5, 1), (7, 0)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            energies.append(evaluate(bias, moved).energy)
        assert here.forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-5)


def test_virial_is_the_strain_derivative(bias):
    atoms = rattled(4)
    here = evaluate(bias, atoms)
    h = 1e-6
    for a, b in [(0, 0), (0, 1), (2, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain.T, scale_atoms=True)
            energies.append(evaluate(bias, moved).energy)
        assert here.virial[a, b] == pytest.approx((energies[0] - energies[1]) / (2 * h), rel=1e-2, abs=1e-4)


def test_bias_is_invariant(bias, rng):
    atoms = rattled(5)
    here = evaluate(bias, atoms)
    rotation = Rotation.random(random_state=7).as_matrix()
    order = rng.permutation(len(atoms))
    other = atoms[order]
    other.set_cell(atoms.cell.array @ rotation.T)
    other.positions = atoms.positions[order] @ rotation.T + [0.3, -0.2, 5.0]
    there = evaluate(bias, other)
    assert there.energy == pytest.approx(here.energy, rel=1e-9)
    np.testing.assert_allclose(there.forces, here.forces[order] @ rotation.T, atol=1e-9)
    doubled = evaluate(bias, atoms.repeat((2, 1, 1)))
    assert doubled.energy == pytest.approx(2 * here.energy, rel=1e-9)
    np.testing.assert_allclose(here.forces.sum(axis=0), 0, atol=1e-10)


def test_descriptor_fades_out_at_the_cutoff():
    descriptor = EnvironmentDescriptor(species=(29,), cutoff_ang=4.0, n_radial=3)
    numbers, cell = np.array([29, 29]), np.zeros((3, 3))
    near, at = (
        descriptor.evaluate(numbers, np.array([[0.0, 0, 0], [d, 0, 0]]), cell, np.zeros(3, bool)).values
        for d in (3.9999, 4.0001)
    )
    assert np.abs(near - at).max() < 1e-6
    with pytest.raises(InvalidInputError, match="atomic number 14"):
        descriptor.evaluate(np.array([14]), np.zeros((1, 3)), cell, np.zeros(3, bool))


def test_bias_comes_back_from_its_arrays(bias):
    atoms = rattled(6)
    again = from_arrays(to_arrays(bias))
    assert evaluate(again, atoms).energy == evaluate(bias, atoms).energy
    np.testing.assert_array_equal(evaluate(again, atoms).forces, evaluate(bias, atoms).forces)
    with pytest.raises(InvalidInputError, match="matrix_29"):
        from_arrays({name: value for name, value in to_arrays(bias).items() if name != "matrix_29"})


@given(
    n_dim=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    width=st.floats(0.2, 3.0),
    count=st.integers(1, 3000),
)
@settings(max_examples=25, deadline=None)
def test_grid_equals_the_plain_sum_over_its_hills(n_dim, seed, width, count):
    rng = np.random.default_rng(seed)
    grid = HillGrid(n_dim, width)
    for part in np.array_split(rng.normal(size=(count, n_dim)) * 4, 3):
        grid.deposit(part, rng.uniform(0, 1, len(part)))
    points = rng.normal(size=(7, n_dim)) * 3
    coordinates, heights = grid.export()
    assert len(grid) == len(coordinates) == len(np.unique(coordinates, axis=0))
    q = ((points[:, None] / width - coordinates) ** 2).sum(axis=2)
    end = np.exp(-(REACH**2) / 2)
    bump = np.where(q < REACH**2, np.exp(-q / 2) - end * (1 + (REACH**2 - q) / 2), 0) / (1 - end * (1 + REACH**2 / 2))
    np.testing.assert_allclose(grid.evaluate(points)[0], bump @ heights, rtol=1e-10, atol=1e-12)


def test_equal_heights_everywhere_are_flat():
    grid = HillGrid(2, 0.5)
    side = np.arange(-20, 21) * 0.5
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    grid.deposit(points, np.ones(len(points)))
    inside = np.random.default_rng(0).uniform(-4, 4, (500, 2))
    value, slope = grid.evaluate(inside)
    assert np.ptp(value) < 3e-3 * value.mean()
    assert np.abs(slope).max() < 1e-2 * value.mean() / 0.5


def test_hills_on_known_ground_do_not_slow_the_grid():
    rng = np.random.default_rng(1)
    grid = HillGrid(2, 1.0)
    for _ in range(50):
        grid.deposit(rng.uniform(-5, 5, (1000, 2)), np.ones(1000))
    assert len(grid) <= 11 * 11  # 50 000 hills, 121 grid points
    assert grid.evaluate(np.zeros((1, 2)))[0] > 100


def test_grid_refuses_what_it_cannot_hold():
    with pytest.raises(InvalidInputError, match="1 to 4 dimensions"):
        HillGrid(5, 1.0)
    with pytest.raises(InvalidInputError, match="width"):
        HillGrid(2, 0.0)
    with pytest.raises(InvalidInputError, match="not finite"):
        HillGrid(2, 1.0).deposit(np.full((1, 2), np.nan), np.ones(1))
    with pytest.raises(InvalidInputError, match="do not fit"):
        HillGrid(2, 1.0).load(np.zeros((3, 1)), np.ones(3))


def test_well_tempered_heights():
    heights = well_tempered(2.0, np.array([0.0, 0.1]), boltzmann_temperature=0.05, bias_factor=3.0)
    np.testing.assert_allclose(heights, [2.0, 2.0 * np.exp(-1.0)])
    np.testing.assert_array_equal(
        well_tempered(2.0, np.array([0.0, 9.0]), boltzmann_temperature=0.05, bias_factor=None), [2.0, 2.0]
    )
    with pytest.raises(InvalidInputError, match="bias_factor"):
        well_tempered(2.0, np.zeros(1), boltzmann_temperature=0.05, bias_factor=1.0)


def test_whitened_reference_has_unit_variance(rng):
    values = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3
    points = fit_whitening(values, components=4)(values)
    np.testing.assert_allclose(np.cov(points.T, bias=True), np.eye(4), atol=1e-10)
    assert fit_whitening(values[:, [0, 0, 1]], components=3).n_dim == 2
    with pytest.raises(InvalidInputError, match="Cu: all environments are equal"):
        fit_whitening(np.ones((50, 3)), components=2, where="Cu")
    with pytest.raises(InvalidInputError, match="at least 8"):
        fit_whitening(values[:3], components=2)


def test_pair_wall_forces_and_ratio():
    limits = np.full((119, 119), 2.6)
    wall = PairWall(limits, strength=5.0, onset=1.2)
    atoms = rattled(8, 0.2)
    energy, forces, virial, ratio = wall.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    distances = atoms.get_all_distances(mic=True)
    assert ratio == pytest.approx(distances[distances > 0].min() / 2.6)
    assert energy > 0
    h = 1e-6
    for atom, axis in [(0, 0), (4, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            energies.append(wall.evaluate(moved.numbers, moved.positions, moved.cell.array, moved.pbc)[0])
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-6)
    strained = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.set_cell(
            atoms.cell.array @ (np.eye(3) + sign * h * np.eye(3)[[0]].T @ np.eye(3)[[1]]).T, scale_atoms=True
        )
        strained.append(wall.evaluate(moved.numbers, moved.positions, moved.cell.array, moved.pbc)[0])
    assert virial[0, 1] == pytest.approx((strained[0] - strained[1]) / (2 * h), abs=1e-6)
    far = PairWall(np.full((119, 119), 1.0), strength=5.0)
    assert far.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)[3] == np.inf
    with pytest.raises(InvalidInputError, match="onset"):
        PairWall(limits, onset=0.9)
    with pytest.raises(InvalidInputError, match="strength"):
        PairWall(limits, strength=-1.0)


def test_temperature_limit_leaves_room_for_fluctuations():
    assert temperature_limit(300.0, 2) > 300.0 * 5
    assert temperature_limit(300.0, 10_000) == 900.0


def test_explored_volume_counts_cubes(rng):
    points = rng.uniform(0, 3, (5000, 2))
    assert explored_volume(points, edge=1.0) == 9
    assert explored_volume(points[:1], edge=1.0) == 1
