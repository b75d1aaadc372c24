"""LAMMPS as the integrator: any cell, the same trajectory as ASE, errors that come out of the callback."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import ExternalProgramError, InvalidInputError
from aiida_mlip.workers.lammps_driver import LammpsDynamics, load_lammps, to_lammps_cell

SETTINGS = {"timestep_fs": 2.0, "temperature_k": 300.0, "friction_per_ps": 0.0, "seed": 1}


def emt_forces(atoms):
    copy = atoms.copy()
    copy.calc = EMT()
    return copy.get_potential_energy(), copy.get_forces()


def hot_copper(strain, *, pbc=True, seed=0):
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + np.asarray(strain)), scale_atoms=True)
    atoms.pbc = pbc
    atoms.numbers[1] = 79
    rng = np.random.default_rng(seed)
    atoms.rattle(0.1, rng=rng)
    atoms.set_momenta(rng.normal(size=(4, 3)) * np.sqrt(atoms.get_masses() * units.kB * 900)[:, None])
    return atoms


@given(
    entries=st.lists(st.floats(-3, 3), min_size=9, max_size=9).filter(
        lambda e: abs(np.linalg.det(np.reshape(e, (3, 3)))) > 0.5
    )
)
@settings(max_examples=40, deadline=None)
def test_rotated_cell_is_the_same_cell(entries):
    cell = np.reshape(entries, (3, 3))
    lower, q = to_lammps_cell(cell)
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(cell @ q, lower, atol=1e-9)
    assert (np.diag(lower) > 0).all()
    assert np.abs(np.triu(lower, 1)).max() == 0


def test_cell_without_volume_is_refused():
    with pytest.raises(InvalidInputError, match="no volume"):
        to_lammps_cell(np.ones((3, 3)))


@pytest.mark.parametrize(
    ("strain", "pbc"),
    [
        (np.zeros((3, 3)), True),
        ([[0, 0.9, 0], [0.2, 0, -0.8], [0.7, 0.1, 0]], True),  # tilted beyond half a box length
        ([[0, 1, 0], [1, 0, 0], [0, 0, -0.02]] - np.eye(3) * [1, 1, 0], True),  # left-handed
        ([[0, 0.3, 0], [0, 0, 0], [0, 0, 0]], (True, True, False)),
        (np.zeros((3, 3)), False),
    ],
    ids=["cubic", "triclinic", "left-handed", "slab", "cluster"],
)
def test_trajectory_is_that_of_ase(strain, pbc):
    atoms = hot_copper(strain, pbc=pbc)
    if not np.all(pbc):
        atoms.cell[2] = 0
        if not np.any(pbc):
            atoms.cell[:] = 0
    atoms.positions += [1.7, -3.1, 8.0]  # partly outside the cell: nothing is wrapped for the caller
    twin = atoms.copy()
    twin.calc = EMT()
    VelocityVerlet(twin, 2.0 * units.fs).run(60)
    with LammpsDynamics(atoms, emt_forces, **SETTINGS) as dynamics:
        dynamics.run(25)
        dynamics.run(35)
    np.testing.assert_allclose(atoms.positions, twin.positions, atol=2e-6)
    np.testing.assert_allclose(atoms.get_momenta(), twin.get_momenta(), atol=2e-4)


def test_start_is_left_where_it_is():
    atoms = hot_copper([[0, 0.9, 0], [0.2, 0, -0.8], [0.7, 0.1, 0]])
    atoms.positions += [13.0, -25.0, 4.0]
    before, momenta = atoms.positions.copy(), atoms.get_momenta()
    with LammpsDynamics(atoms, emt_forces, **SETTINGS) as dynamics:
        dynamics.run(0)
    np.testing.assert_allclose(atoms.positions, before, atol=1e-10)
    np.testing.assert_allclose(atoms.get_momenta(), momenta, atol=1e-10)


def test_fixed_atoms_stay():
    atoms = hot_copper(np.zeros((3, 3)))
    atoms.set_momenta(atoms.get_momenta() * [[0], [1], [1], [1]])
    before = atoms.positions.copy()
    with LammpsDynamics(atoms, emt_forces, **{**SETTINGS, "friction_per_ps": 10.0}, fixed=(0,)) as dynamics:
        dynamics.run(20)
        moved = np.abs(atoms.positions - before).max(axis=1)
        assert moved[0] < 1e-12
        assert (moved[1:] > 1e-3).all()
        kinetic = atoms.get_kinetic_energy()
        dynamics.scale_velocities(0.5)
        assert atoms.get_kinetic_energy() == pytest.approx(kinetic / 4)


def test_error_in_the_forces_comes_out():
    calls = []

    def forces(atoms):
        calls.append(1)
        if len(calls) > 5:
            raise ZeroDivisionError("six is too many")
        return 0.0, np.zeros((len(atoms), 3))

    with LammpsDynamics(Atoms("Cu", cell=np.eye(3) * 9, pbc=True), forces, **SETTINGS) as dynamics:
        with pytest.raises(ZeroDivisionError, match="six"):
            dynamics.run(1000)
        assert len(calls) == 6  # the run was ended, not played to its end


def test_lammps_says_no():
    atom = Atoms("Cu", cell=np.eye(3) * 9, pbc=True)
    with (
        LammpsDynamics(atom, emt_forces, **SETTINGS) as dynamics,
        pytest.raises(ExternalProgramError, match="no_such_command"),
    ):
        dynamics.command("no_such_command 1")


def test_lammps_has_colvars():
    lammps = load_lammps()(cmdargs=["-log", "none", "-screen", "none"])
    try:
        assert "COLVARS" in lammps.installed_packages
    finally:
        lammps.close()


def emt_stress(atoms):
    copy = atoms.copy()
    copy.calc = EMT()
    return copy.get_stress(voigt=False)


SKEWED = [[0, 0.9, 0], [0.2, 0, -0.8], [0.7, 0.1, 0]]


@pytest.mark.parametrize(
    ("command", "strained"),
    [
        ("fix f all deform 1 x erate 2.0 y erate -1.0 flip no", {(0, 0): (0, 0.08), (1, 1): (1, -0.04)}),
        ("fix f all deform 1 xy erate 4.0 flip no", {(1, 0): (1, 0.16)}),
    ],
    ids=["stretch", "shear"],
)
def test_box_that_changes_is_passed_on(command, strained):
    atoms = hot_copper(SKEWED)
    atoms.positions += [1.7, -3.1, 8.0]
    start = atoms.cell.array.copy()
    lower, q = to_lammps_cell(start)
    expected = lower.copy()
    for entry, (length, strain) in strained.items():
        expected[entry] += strain * lower[length, length]
    seen = []

    def forces(image):
        seen.append((image.cell.array.copy(), image.positions.copy()))
        return emt_forces(image)

    with LammpsDynamics(atoms, forces, **SETTINGS) as dynamics:
        dynamics.command(command)
        dynamics.run(10, whole=(0, 20))
        dynamics.run(10, whole=(0, 20))
        np.testing.assert_allclose(atoms.cell.array, expected @ q.T, atol=1e-9)
        # the box was changed after the last forces; the next ones are for what the caller has
        cell, positions = atoms.cell.array.copy(), atoms.positions.copy()
        dynamics.run(0)
    np.testing.assert_allclose(seen[-1][0], cell, atol=1e-9)
    np.testing.assert_allclose(seen[-1][1], positions, atol=1e-9)
    assert np.abs(seen[0][0] - start).max() < 1e-9


def test_flipped_box_is_the_same_crystal():
    """LAMMPS takes other vectors of the lattice when a tilt exceeds half of the box: nothing may jump."""
    atoms = hot_copper(np.zeros((3, 3)))
    volume = atoms.get_volume()
    energies = []

    def forces(image):
        energy, found = emt_forces(image)
        energies.append(energy)
        return energy, found

    with LammpsDynamics(atoms, forces, **SETTINGS) as dynamics:
        dynamics.command("fix f all deform 1 xy erate 20.0")
        dynamics.run(20)
        assert atoms.cell.array[1, 0] < 0  # flipped
        assert atoms.get_volume() == pytest.approx(volume)
        assert np.abs(np.diff(energies, 2)).max() < 0.12  # smooth in time


def test_pressure_of_lammps_is_that_of_the_calculator():
    atoms = hot_copper(SKEWED)
    stress = {}

    def forces(image):
        stress["now"] = emt_stress(image)
        return emt_forces(image)

    with LammpsDynamics(atoms, forces, stress=lambda: stress["now"], **SETTINGS) as dynamics:
        dynamics.run(5)
        found = dynamics.pressure()
    expected = 2 / 3 * atoms.get_kinetic_energy() / atoms.get_volume() - np.trace(emt_stress(atoms)) / 3
    assert found == pytest.approx(expected / (1e-4 * units.GPa), rel=1e-3)


def test_state_goes_on_as_if_never_interrupted():
    settings = {**SETTINGS, "friction_per_ps": 5.0}
    deform = "fix f all deform 1 x erate 1.0 xy erate 0.5 remap x"

    def advance(dynamics, part):
        dynamics.set_thermostat(300.0, 5.0, seed=part + 1)
        dynamics.run(10, whole=(0, 40))

    whole = hot_copper(SKEWED)
    with LammpsDynamics(whole, emt_forces, **settings) as dynamics:
        dynamics.command(deform)
        for part in range(4):
            advance(dynamics, part)
    parts = hot_copper(SKEWED)
    state = None
    for part in range(4):
        with LammpsDynamics(parts, emt_forces, state=state, **settings) as dynamics:
            dynamics.command(deform)
            advance(dynamics, part)
            state = dynamics.state()
    np.testing.assert_allclose(parts.positions, whole.positions, atol=1e-7)
    np.testing.assert_allclose(parts.cell.array, whole.cell.array, atol=1e-9)
    np.testing.assert_allclose(parts.get_momenta(), whole.get_momenta(), atol=1e-5)


def test_pair_style_of_lammps_itself():
    from ase.calculators.lj import LennardJones

    atoms = Atoms("Ar4", positions=[[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [0, 0, 3.8]], cell=np.eye(3) * 30, pbc=True)
    twin = atoms.copy()
    twin.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=10.0, smooth=False)
    with LammpsDynamics(
        atoms,
        None,
        pair_commands=["pair_style lj/cut 10.0", "pair_coeff * * 0.0104 3.4", "pair_modify shift yes"],
        **SETTINGS,
    ) as dynamics:
        dynamics.run(0)
        energy = dynamics.potential_energy()
        dynamics.run(50)
    assert energy == pytest.approx(twin.get_potential_energy(), rel=1e-6)
    VelocityVerlet(twin, 2.0 * units.fs).run(50)
    np.testing.assert_allclose(atoms.positions, twin.positions, atol=1e-6)


def test_set_up_of_a_run_costs_no_forces():
    """Runs of one step each, atoms leaving the cell: as many calculations as there are geometries."""

    class Counting(EMT):
        count = 0

        def calculate(self, *arguments, **keys):
            Counting.count += 1
            super().calculate(*arguments, **keys)

    calculator = Counting()

    def forces(image):
        return calculator.get_property("energy", image), calculator.get_property("forces", image)

    atoms = hot_copper(np.zeros((3, 3)))
    atoms.positions += [1.7, -3.1, 8.0]
    twin = atoms.copy()
    twin.calc = EMT()
    with LammpsDynamics(atoms, forces, **SETTINGS) as dynamics:
        for _ in range(30):
            dynamics.run(1)
    VelocityVerlet(twin, 2.0 * units.fs).run(30)
    assert Counting.count == 31
    np.testing.assert_allclose(atoms.positions, twin.positions, atol=2e-6)
