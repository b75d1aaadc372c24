"""Laws of the properties, and teachers whose answers are known (`known_teachers`)."""

from __future__ import annotations

import known_teachers
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.optimize import LBFGS
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.properties import defects, dimers, dynamics, elastic, equation_of_state
from aiida_mlip.kernel.properties.comparison import judge, verdict
from aiida_mlip.kernel.properties.crystal import crystal_of, repeats
from aiida_mlip.kernel.properties.phonons import PhononCells
from aiida_mlip.kernel.properties.results import NotComputableError, Results, failed, results_of
from aiida_mlip.kernel.units import GPA


def computed(cells, calculator):
    energy, forces, stress = [], [], []
    for cell in cells:
        atoms = cell.copy()
        atoms.calc = calculator
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stress.append(atoms.get_stress(voigt=False) if atoms.pbc.all() else np.full((3, 3), np.nan))
    return Results(np.array(energy), tuple(forces), np.array(stress))


def values(outcome):
    return {entry.name: entry.value for entry in outcome.properties}


def equilibrium(crystal, calculator, strain=0.03, points=25, fit_strain=0.01):
    cells = equation_of_state.strained_cells(crystal, strain=strain, points=points)
    outcome, found = equation_of_state.equation_of_state(
        crystal, cells, computed(cells, calculator), fit_strain=fit_strain
    )
    return values(outcome), crystal.scaled(found.stretch), found


# -- crystals --------------------------------------------------------------------------------------------------


def test_the_same_crystal_from_any_cell():
    cubic = crystal_of(bulk("Si", cubic=True, a=5.43), symprec=1e-3)
    rotated = bulk("Si", a=5.43) * (2, 1, 3)
    rotated.rotate(33.0, (1, 2, 3), rotate_cell=True)
    rotated.positions += 0.7
    other = crystal_of(rotated, symprec=1e-3)
    assert (len(other.primitive), len(other.conventional), other.number) == (2, 8, 227)
    np.testing.assert_allclose(other.primitive.cell.array, cubic.primitive.cell.array, atol=1e-6)
    assert len(cubic.rotations) == 48
    assert cubic.is_cubic
    assert cubic.is_elemental


def test_a_molecule_is_no_crystal():
    from ase import Atoms

    with pytest.raises(NotComputableError, match="not a crystal"):
        crystal_of(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), symprec=1e-3)


@given(st.floats(2.0, 9.0), st.floats(3.0, 20.0))
def test_repeats_keep_the_length(edge, length):
    n = repeats(edge * np.eye(3), length)
    assert n[0] * edge >= length - 1e-5
    assert (n[0] - 1) * edge < length
    even = repeats(edge * np.eye(3), length, even=True)
    assert even[0] == 1 or even[0] % 2 == 0


# -- equation of state -----------------------------------------------------------------------------------------


@given(st.floats(-0.015, 0.015), st.floats(20.0, 400.0), st.floats(3.0, 6.0))
def test_a_birch_murnaghan_crystal_is_recovered(shift, modulus, derivative):
    from ase.eos import birchmurnaghan

    crystal = crystal_of(bulk("Cu", a=3.6), symprec=1e-3)
    cells = equation_of_state.strained_cells(crystal, strain=0.04, points=9)
    volumes = np.array([cell.get_volume() for cell in cells])
    v0 = crystal.primitive.get_volume() * (1 + shift) ** 3
    energies = birchmurnaghan(volumes, -3.0, modulus * GPA, derivative, v0)
    results = Results(energies, tuple(np.zeros((1, 3)) for _ in cells), np.zeros((9, 3, 3)))
    outcome, found = equation_of_state.equation_of_state(crystal, cells, results, fit_strain=0.03)
    got = values(outcome)
    assert got["a0_ang"] == pytest.approx(3.6 * (1 + shift), abs=1e-5)
    assert got["bulk_modulus_gpa"] == pytest.approx(modulus, rel=1e-3)
    assert got["bulk_modulus_derivative"] == pytest.approx(derivative, rel=1e-2)
    assert found.energy == pytest.approx(-3.0, abs=1e-6)


def test_a_minimum_outside_is_a_reason():
    crystal = crystal_of(bulk("Cu", a=4.2), symprec=1e-3)
    with pytest.raises(NotComputableError, match="smallest volume"):
        equilibrium(crystal, EMT())


def test_a_gap_is_a_reason():
    crystal = crystal_of(bulk("Cu", a=3.6), symprec=1e-3)
    cells = equation_of_state.strained_cells(crystal, strain=0.04, points=5)
    results = computed(cells, EMT())
    results.energy[2] = np.nan
    with pytest.raises(NotComputableError, match="frame 2 of 5"):
        equation_of_state.equation_of_state(crystal, cells, results, fit_strain=0.03)


# -- known teachers: the bars ----------------------------------------------------------------------------------

#: a0 (Å), C11, C12, C44 (GPa), vacancy (eV) with its supercell (Å), X point (THz).
KNOWN = {
    "silicon": ("Si", 5.40, 5.4309, (151.4, 76.4, 56.4), 2.694, 16.0, 6.0, (6.65, 6.65, 12.99, 12.99, 15.63, 15.63)),
    "copper": ("Cu", 3.60, 3.6149, (170.0, 122.7, 76.2), 1.2735, 9.0, 12.0, (5.21, 5.21, 7.82)),
    "aluminium": ("Al", 4.03, 4.0453, (110.2, 61.4, 32.6), 0.659, 9.0, 9.0, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name):
    symbol, start, a0, constants, vacancy, length, phonon_length, at_x = KNOWN[name]
    calculator = getattr(known_teachers, name)()
    found, own, _ = equilibrium(crystal_of(bulk(symbol, a=start), symprec=1e-3), calculator)
    assert found["a0_ang"] == pytest.approx(a0, abs=1e-3)
    cells = elastic.elastic_cells(own, strain=0.002, displacement=0.01)
    results = computed(cells, calculator)
    got = values(elastic.elastic_constants(own, results, strain=0.002, displacement=0.01))
    assert [got["c11_gpa"], got["c12_gpa"], got["c44_gpa"]] == pytest.approx(constants, rel=0.01)
    cells = defects.vacancy_cells(own, min_length=length, inward=0.2)
    energies = []
    for atoms in cells:
        atoms.calc = calculator
        LBFGS(atoms, logfile=None).run(fmax=0.005, steps=300)
        energies.append(atoms.get_potential_energy())
    outcome = defects.vacancy_energy(len(cells[0]), *energies, definition="")
    assert values(outcome)["vacancy_ev"] == pytest.approx(vacancy, abs=0.005)
    if at_x is not None:
        phonons = PhononCells(own, min_length=phonon_length, displacement=0.01)
        outcome = phonons.outcome(computed(phonons.cells(), calculator), mesh=4, points_per_path=3)
        got = values(outcome)
        assert got["phonons_X_thz"] == pytest.approx(at_x, abs=0.05)
        assert got["phonons_gamma_thz"][:3] == pytest.approx((0, 0, 0), abs=0.05)
        assert got["lowest_frequency_thz"] > -0.05
        if name == "silicon":
            assert got["phonons_gamma_thz"][3:] == pytest.approx([17.83] * 3, abs=0.05)


# -- elastic constants -----------------------------------------------------------------------------------------


def test_bulk_modulus_two_ways():
    found, own, _ = equilibrium(crystal_of(bulk("Cu", a=3.58), symprec=1e-3), EMT())
    cells = elastic.elastic_cells(own, strain=0.002, displacement=0.01)
    got = values(elastic.elastic_constants(own, computed(cells, EMT()), strain=0.002, displacement=0.01))
    assert got["elastic_bulk_modulus_gpa"] == pytest.approx(found["bulk_modulus_gpa"], rel=0.02)
    assert got["elastic_bulk_modulus_gpa"] == pytest.approx((got["c11_gpa"] + 2 * got["c12_gpa"]) / 3, rel=1e-6)
    assert got["smallest_elastic_eigenvalue_gpa"] == pytest.approx(got["c11_gpa"] - got["c12_gpa"], rel=1e-6)


# -- defects ---------------------------------------------------------------------------------------------------


def test_a_vacancy_that_costs_nothing():
    """E proportional to the number of atoms."""
    assert values(defects.vacancy_energy(32, -32 * 3.5, -31 * 3.5, definition=""))["vacancy_ev"] == pytest.approx(0)


def test_slabs_are_thick_enough_and_whole():
    crystal = crystal_of(bulk("Si", cubic=True, a=5.43), symprec=1e-3)
    for miller in [(1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1)]:
        made = defects.slab(crystal, miller, min_thickness=10.0, vacuum=8.0)
        density = len(made) / crystal.conventional.get_volume() * crystal.conventional.get_volume() / 8
        area = np.linalg.norm(np.cross(*made.cell.array[:2]))
        thickness = density * crystal.conventional.get_volume() / area
        assert 10.0 - 1e-6 <= thickness < 10.0 + 12.0
        assert made.pbc.all()


def test_compounds_have_no_vacancy():
    crystal = crystal_of(bulk("NaCl", "rocksalt", a=5.6), symprec=1e-3)
    with pytest.raises(NotComputableError, match="chemical potentials"):
        defects.vacancy_cells(crystal, min_length=5.0, inward=0.0)


# -- dimers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("turning", "expected"), [(0.0, 1.0), (2.0, 2.0)])
def test_where_repulsion_ends(turning, expected):
    """A pair that repels at all distances below 2.6 Å, but for those below ``turning``."""
    distances = np.linspace(1.0, 4.0, 31)
    energy = np.abs(2.6 - distances) * np.where(distances < 2.6, 1.0, 0.1)
    force = np.where(distances < 2.6, 1.0, -0.1)
    force[distances < turning - 1e-9] = -1.0
    pairs = tuple(np.array([[-f, 0, 0], [f, 0, 0]]) for f in force)
    outcome = dimers.repulsion(("Si", "Si"), distances, Results(energy, pairs, np.zeros((31, 3, 3))))
    assert outcome.properties[0].value * 2 * 1.11 == pytest.approx(expected, abs=1e-9)


# -- runs ------------------------------------------------------------------------------------------------------


def test_pair_distribution_of_an_ideal_gas_is_one():
    from ase import Atoms

    rng = np.random.default_rng(1)
    images = [Atoms("Cu500", rng.uniform(0, 20, (500, 3)), cell=[20, 20, 20], pbc=True) for _ in range(4)]
    radii, g = dynamics.pair_distribution(from_ase(images))
    assert g[radii > 2].mean() == pytest.approx(1.0, abs=0.02)


def test_angles_of_fcc():
    angles, density = dynamics.angle_distribution(from_ase([bulk("Cu", a=3.6, cubic=True) * 3]), reach=3.0)
    peaks = angles[density > 1e-9]
    for angle in (60, 90, 120, 180):
        assert np.abs(peaks - angle).min() <= 1.0
    assert density.sum() * 2 == pytest.approx(1.0)


@given(st.floats(1e-6, 1e-4))
def test_expansion_of_a_straight_line(alpha):
    kelvin = np.array([100.0, 200.0, 400.0])
    outcome = dynamics.expansion_outcome(kelvin, 12.0 * np.exp(3 * alpha * kelvin))
    assert outcome.properties[0].value == pytest.approx(alpha * 1e6, rel=1e-6)


def test_a_run_that_fails_says_when():
    frames = from_ase([bulk("Cu", a=3.6, cubic=True)] * 2)
    report = {"steps": 40, "stopped_by": "temperature", "stopped_at": 50, "message": "too hot"}
    columns = (np.array([20, 40]), np.zeros(2), np.full(2, 300.0))
    outcome = dynamics.run_outcome(
        frames, *columns, report=report, temperature=300.0, timestep=2.0, equilibration=10, n_steps=200
    )
    assert values(outcome)["stable_part_300k"] == 0.25
    assert values(outcome)["diffusion_300k_ang2_per_ps"] is None
    assert outcome.curves["failure_time_ps_300k"] == pytest.approx([0.1])


# -- judging ---------------------------------------------------------------------------------------------------


def entry(value, **keys):
    plain = {"name": "a0_ang", "family": "a0", "structure": 0, "unit": "Å", "definition": "", "reason": ""}
    return {**plain, "value": value, **keys}


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(-5, 5), st.floats(0.01, 2))
def test_judging_one_number(members, reference, bound):
    found = judge([entry(value) for value in members], {"value": reference}, {"absolute": bound})
    mean = np.mean(members)
    assert found.value == pytest.approx(mean)
    assert found.error_bar == pytest.approx(np.std(members, ddof=1))
    assert found.passed == (abs(found.difference) <= bound)
    assert found.difference == pytest.approx(mean - reference)


def test_what_is_not_judged_and_what_fails():
    assert judge([entry(1.0)], None, {"absolute": 1.0}).passed is None
    assert judge([entry(1.0)], None, None).passed is None
    missing = judge([entry(1.0), entry(None, reason="no stress")], {"value": 1.0}, {"absolute": 1.0})
    assert missing.passed is False
    assert missing.reason == "not computed: member 1: no stress"
    assert judge([entry([1.0, 2.0])], {"value": [1.0, 2.5]}, {"relative": 0.1}).difference == -0.5
    assert judge([entry(-1.0)], None, {"at_least": 0.0}).passed is False
    assert judge([entry(2.0)], None, {"at_most": 1.0}).passed is False
    with pytest.raises(InvalidInputError, match="members give"):
        judge([entry([1.0]), entry([1.0, 2.0])], None, None)
    good, bad = judge([entry(1.0)], None, {"at_least": 0}), missing
    assert verdict([good])["verdict"] == "passed"
    assert verdict([good, bad])["verdict"] == "failed"
    assert verdict([judge([entry(1.0)], None, None)])["verdict"] == "not_judged"


def test_results_are_found_by_frame():
    frames = from_ase([bulk("Cu", a=a) for a in (3.5, 3.6, 3.7)])
    labelled = []
    for a in (3.7, 3.5):
        atoms = bulk("Cu", a=a)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.get_stress()
        labelled.append(atoms)
    found = results_of(frames, from_ase(labelled, fidelity="emt"))
    assert found.energy[0] == labelled[1].get_potential_energy()
    assert found.energy[2] == labelled[0].get_potential_energy()
    with pytest.raises(NotComputableError, match="frame 1 of 3"):
        found.check("energy")
    assert failed([("a0_ang", "a0", "Å")], "why").properties[0].reason == "why"
