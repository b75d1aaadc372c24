"""Reference energies: recovered where the data decide, defined where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.kernel.reference_energies import compositions, fit_reference_energies, rms_force


def frames_of(formulas, truth):
    frames = from_ase(
        [Atoms(formula, positions=np.arange(3 * len(Atoms(formula))).reshape(-1, 3)) for formula in formulas]
    )
    energy = compositions(frames, list(truth)) @ np.array(list(truth.values()))
    return frames.with_columns(energy=energy.astype(float))


@given(st.floats(-2000, 0), st.floats(-2000, 0), st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_energies_are_recovered_with_and_without_a_prior(si, o, offset):
    truth = {"O": o, "Si": si}
    frames = frames_of(["Si2", "SiO2", "O2", "Si3O"], truth)
    for prior in (None, {"O": o + offset}, {"O": o - offset, "Si": si}):
        found = fit_reference_energies(frames, ["O", "Si"], prior=prior)
        assert found["Si"] == pytest.approx(si, abs=1e-3)
        assert found["O"] == pytest.approx(o, abs=1e-3)


def test_one_stoichiometry_leaves_the_sum_exact_and_the_prior_decides_the_rest():
    truth = {"O": -430.0, "Si": -110.0}
    frames = frames_of(["SiO2", "Si2O4"], truth)
    for prior in (None, {"O": -400.0, "Si": -100.0}):
        found = fit_reference_energies(frames, ["O", "Si"], prior=prior)
        assert (2 * found["O"] + found["Si"]) / 3 == pytest.approx((2 * -430.0 - 110.0) / 3, abs=1e-3)
    # the shortest correction: what remains goes along the composition (2, 1)/3
    assert found["O"] - -400.0 == pytest.approx(2 * (found["Si"] - -100.0), abs=1e-3)


def test_no_energies_leave_the_prior():
    frames = from_ase([Atoms("Si")])
    assert fit_reference_energies(frames, ["Si", "O"], prior={"Si": -7.0}) == {"Si": -7.0, "O": 0.0}


def test_unlisted_species_are_refused():
    with pytest.raises(InvalidInputError, match="species"):
        compositions(from_ase([Atoms("Si")]), ["O"])


def test_rms_force_ignores_masked_components_and_has_a_floor():
    frames = from_ase([Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2]])])
    assert rms_force(frames) == 1.0
    masked = frames.with_columns(forces=np.array([[3.0, np.nan, 0.0], [np.nan] * 3]))
    assert rms_force(masked) == pytest.approx(np.sqrt(9 / 2))
    assert rms_force(frames.with_columns(forces=np.zeros((2, 3)))) == 1e-3
