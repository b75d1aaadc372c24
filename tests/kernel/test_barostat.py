"""Stochastic cell rescaling against the isobaric ensemble of an ideal gas, which is known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.barostat import internal_pressure, rescaled_volume
from aiida_mlip.kernel.units import BOLTZMANN

SETTINGS = {"target": 0.01, "temperature": 300.0, "compressibility": 50.0, "relaxation_time": 500.0}


def test_pressure_of_a_gas_and_of_a_strained_solid():
    kinetic = 1.5 * 10 * BOLTZMANN * 300
    assert internal_pressure(kinetic, np.zeros((3, 3)), 1000.0) == pytest.approx(10 * BOLTZMANN * 300 / 1000)
    assert internal_pressure(0.0, 0.02 * np.eye(3), 1000.0) == pytest.approx(-0.02)  # under tension


def test_volume_of_an_ideal_gas_is_distributed_as_it_must(rng):
    """p(V) ∝ V^N exp(-PV/kT): mean (N+1) kT/P, variance (N+1) (kT/P)²."""
    n, energy, target = 100, BOLTZMANN * 300, 1e-3
    volume, volumes = (n + 1) * energy / target, []
    for noise in rng.standard_normal(300_000):
        volume = rescaled_volume(
            volume,
            n * energy / volume,
            target=target,
            temperature=300,
            compressibility=1 / target,
            relaxation_time=100,
            timestep=1,
            noise=noise,
        )
        volumes.append(volume)
    assert np.mean(volumes) == pytest.approx((n + 1) * energy / target, rel=0.02)
    assert np.var(volumes) == pytest.approx((n + 1) * (energy / target) ** 2, rel=0.12)


def test_without_noise_it_goes_to_the_target():
    """A solid whose pressure is linear in the volume: the volume relaxes in the time asked for."""
    start, equilibrium, bulk_modulus = 1050.0, 1000.0, 1 / 50.0
    volume = start
    for _ in range(500):  # one relaxation time
        pressure = SETTINGS["target"] + bulk_modulus * (equilibrium - volume) / equilibrium
        volume = rescaled_volume(volume, pressure, timestep=1.0, noise=0.0, **(SETTINGS | {"temperature": 1e-9}))
    assert (volume - equilibrium) / (start - equilibrium) == pytest.approx(np.exp(-1), rel=0.05)


def test_a_step_that_is_too_large_is_refused():
    with pytest.raises(InvalidInputError, match="barostat_ps"):
        rescaled_volume(1000.0, 5.0, timestep=10.0, noise=0.0, **SETTINGS)
