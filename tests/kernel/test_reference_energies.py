"""Reference energies: recovered where the data decide, defined where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.reference_energies import (
    compositions,
    fit_level_references,
    fit_reference_energies,
    in_energies_of_one,
    level_shifts,
    rms_force,
)


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


# -- several levels of theory ------------------------------------------------------------------------------------

FORMULAS = ["Si2", "SiO2", "O2", "Si3O", "SiO3"]
energies = st.tuples(st.floats(-500, 0), st.floats(-500, 0))


def at_levels(truths, formulas):
    """Rows of all formulas at each level of theory, energies from its atoms alone."""
    return concatenate(
        [
            frames_of(formulas[name], dict(zip(("O", "Si"), truth, strict=True))).with_columns(
                fidelities=(name,), fidelity=np.zeros(len(formulas[name]), dtype=np.int16)
            )
            for name, truth in truths.items()
        ]
    )


@given(energies, energies, st.sampled_from(["common", "apart"]))
@settings(max_examples=40, deadline=None)
def test_each_level_gets_its_own_energies(low, high, frames_are):
    truths = {"low": low, "high": high}
    formulas = {"low": FORMULAS, "high": FORMULAS[:3] if frames_are == "common" else ["Si4O", "Si2O5"]}
    frames = at_levels(truths, formulas)
    found = fit_level_references(frames, ["O", "Si"], ["low", "high"])
    for name, truth in truths.items():
        assert [found[name][symbol] for symbol in ("O", "Si")] == pytest.approx(list(truth), abs=1e-2)
    # what is left after subtraction is the same at both levels: nothing
    left = in_energies_of_one(frames, level_shifts(found, dict.fromkeys(("O", "Si"), 0.0)))
    np.testing.assert_allclose(left.energy, 0.0, atol=0.1)


@given(st.floats(-20, 20), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_the_difference_is_fitted_on_common_frames_whatever_binds_them(offset, slope):
    """The reference difference is exact also where the energies have a large part that no composition explains."""
    frames = at_levels({"low": (-400.0, -100.0)}, {"low": FORMULAS})
    binding = np.array([3.0, -8.0, 1.0, 5.0, -2.0])
    low = frames.with_columns(energy=frames.energy + binding)
    high = low.take([1, 3]).with_columns(fidelities=("high",))
    counts = compositions(high, ["O", "Si"])
    high = high.with_columns(energy=high.energy + counts @ np.array([offset, slope]))
    both = concatenate([low, high])
    found = fit_level_references(both, ["O", "Si"], ["low", "high"])
    assert found["high"]["O"] - found["low"]["O"] == pytest.approx(offset, abs=1e-3)
    assert found["high"]["Si"] - found["low"]["Si"] == pytest.approx(slope, abs=1e-3)
    # in the energies of one, the same frame has the same energy
    one = in_energies_of_one(both, level_shifts(found, found["high"]))
    np.testing.assert_allclose(one.energy[[1, 3]], one.energy[[5, 6]], atol=1e-2)
    np.testing.assert_array_equal(one.energy[5:], high.energy)


def test_isolated_atoms_count_only_if_all_levels_have_all():
    truths = {"low": (-400.0, -100.0), "high": (-430.0, -110.0)}
    frames = at_levels(truths, {"low": ["SiO2"], "high": ["SiO2"]})
    priors = {name: dict(zip(("O", "Si"), truth, strict=True)) for name, truth in truths.items()}
    found = fit_level_references(frames, ["O", "Si"], ["low", "high"], priors=priors)
    assert found["low"] == pytest.approx(priors["low"])
    assert found["high"] == pytest.approx(priors["high"])
    incomplete = {"low": priors["low"], "high": {"O": -430.0}}
    without = fit_level_references(frames, ["O", "Si"], ["low", "high"], priors=incomplete)
    assert without == fit_level_references(frames, ["O", "Si"], ["low", "high"])
    assert without["low"]["Si"] != pytest.approx(-100.0, abs=1.0)


def test_a_level_that_is_not_named_is_refused():
    frames = at_levels({"low": (-1.0, -2.0)}, {"low": ["Si"]})
    with pytest.raises(InvalidInputError, match="'low', but the levels are high"):
        in_energies_of_one(frames, {"high": {"Si": 0.0, "O": 0.0}})
