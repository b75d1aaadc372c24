"""Joining interrupted runs, and judging what came out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.dynamics import degrees_of_freedom
from aiida_mlip.kernel.trajectory import (
    Segment,
    analyse,
    energy_is_conserved,
    failed_geometries,
    join,
    resume_velocities,
    temperature_is_reached,
)
from aiida_mlip.kernel.units import BOLTZMANN


def whole_run(n: int = 30, atoms: int = 4, seed: int = 0) -> Segment:
    rng = np.random.default_rng(seed)
    return Segment(
        positions=rng.normal(size=(n, atoms, 3)),
        energy=rng.normal(size=n),
        forces=rng.normal(size=(n, atoms, 3)),
        stress=rng.normal(size=(n, 3, 3)),
        kinetic=rng.uniform(1, 2, size=n),
        unlabelled=None,
        scf_failed=False,
        completed=True,
        seconds=10.0,
    )


def cut(run: Segment, start: int, stop: int, **changes) -> Segment:
    columns = {
        name: getattr(run, name)[start:stop].copy() for name in ("positions", "energy", "forces", "stress", "kinetic")
    }
    return dataclasses.replace(run, **columns, completed=False, **changes)


@given(cuts=st.lists(st.integers(0, 30), max_size=6), seed=st.integers(0, 50))
def test_joined_segments_are_the_uninterrupted_run(cuts, seed):
    run = whole_run(seed=seed)
    segments, start = [], 0
    for stop in [*sorted(cuts), 30]:
        segment = cut(run, start, max(stop, start))
        # the kinetic energy of the last step of a killed job is often not printed any more
        if len(segment) and stop < 30:
            segment.kinetic[-1] = np.nan
        segments.append(segment)
        start += segment.resume_step
    joined = join(segments)
    for name in ("positions", "energy", "forces", "stress", "kinetic"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole_run(seed=seed), name))
    assert joined.repeated == sum(len(s) for s in segments) - 30
    assert joined.mismatch == 0.0 or joined.repeated == 0
    for step, (s, row) in enumerate(zip(joined.segment, joined.row, strict=True)):
        assert segments[s].energy[row] == run.energy[step]


def test_a_different_energy_of_a_repeated_step_is_reported():
    run = whole_run()
    second = cut(run, 9, 30)
    second.energy[0] += 0.4
    assert join([cut(run, 0, 10), second]).mismatch == pytest.approx(0.1)


def test_a_segment_of_one_step_starts_anew():
    run = whole_run()
    assert resume_velocities(cut(run, 0, 1), np.ones(4), 1.0) is None
    assert resume_velocities(cut(run, 0, 2), np.ones(4), 1.0) is not None


def test_nothing_to_join():
    with pytest.raises(InvalidInputError, match="no segments"):
        join([])


def test_geometries_whose_scf_failed_are_kept_unless_labelled_later():
    run = whole_run()
    lost = np.full((4, 3), 9.0)
    segments = [
        cut(run, 0, 10, scf_failed=True, unlabelled=run.positions[10]),  # labelled by the next segment
        cut(run, 9, 20, scf_failed=True, unlabelled=lost),
        cut(run, 19, 25, scf_failed=True, unlabelled=lost + 1e-9),  # the same geometry again
        cut(run, 24, 30, scf_failed=False, unlabelled=lost + 1.0),  # cut off, not failed
    ]
    ((segment, geometry),) = failed_geometries(segments, join(segments))
    assert segment == 1
    np.testing.assert_array_equal(geometry, lost)


def steady(n: int, *, slope: float = 0.0, kelvin: float = 300.0, timestep: float = 2.0, seed: int = 0):
    """A run with a linear energy drift (eV/atom/ps) and Gaussian temperature noise of 10 %."""
    rng = np.random.default_rng(seed)
    run = whole_run(n=n, seed=seed)
    kinetic = 0.5 * degrees_of_freedom(4) * BOLTZMANN * kelvin * (1 + 0.1 * rng.normal(size=n))
    energy = 4 * slope * np.arange(n) * timestep * 1e-3 - kinetic
    return analyse(join([dataclasses.replace(run, kinetic=kinetic, energy=energy)]), timestep=timestep)


@pytest.mark.parametrize(("slope", "conserved"), [(0.0, True), (0.01, True), (0.03, False), (-0.03, False)])
def test_a_drift_beyond_the_limit_is_seen(slope, conserved):
    analysis = steady(500, slope=slope)
    assert analysis.drift == pytest.approx(slope, abs=1e-9)
    assert energy_is_conserved(analysis, 0.02) is conserved


def test_a_run_within_a_vibration_is_not_judged_by_its_energy():
    assert energy_is_conserved(steady(45, slope=0.03), 0.02)
    assert not energy_is_conserved(steady(55, slope=0.03), 0.02)


@pytest.mark.parametrize(("target", "reached"), [(300, True), (330, True), (200, False), (500, False)])
def test_a_temperature_off_target_is_seen(target, reached):
    analysis = steady(500)
    assert abs(analysis.temperature - 300) < 4 * analysis.temperature_error < 10
    assert temperature_is_reached(analysis, target, 0.15) is reached


def test_a_run_too_short_to_judge_passes_and_says_nothing():
    analysis = steady(1)
    assert analysis.energy_time is None
    assert np.isnan(analysis.drift)
    assert energy_is_conserved(analysis, 1e-9)
    assert temperature_is_reached(analysis, 5000, 0.1)
