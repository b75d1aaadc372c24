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
