"""Small pieces of molecular dynamics: starting velocities, velocities from Verlet positions, drift of the energy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.units import AMU_ANG2_PER_FS2, BOLTZMANN


def degrees_of_freedom(n_atoms: int) -> int:
    """Degrees of freedom of atoms in a periodic cell whose centre of mass is at rest, 3 (n - 1)."""
    return 3 * (n_atoms - 1)


def kinetic_energy(masses: Float[np.ndarray, "a"], velocities: Float[np.ndarray, "... a 3"]) -> np.ndarray:
    """Kinetic energy Σ m v²/2 in eV.

    :param masses: (a,) amu.
    :param velocities: (..., a, 3) Å/fs.
    :returns: (...) eV.
    """
    return 0.5 * AMU_ANG2_PER_FS2 * (np.asarray(masses)[:, None] * np.asarray(velocities) ** 2).sum(axis=(-2, -1))


def temperature(kinetic: np.ndarray | float, n_atoms: int) -> np.ndarray:
    """Temperature (K) of a kinetic energy (eV): T = 2 E / (k f), f = 3 (n - 1)."""
    return 2.0 * np.asarray(kinetic, dtype=float) / (BOLTZMANN * degrees_of_freedom(n_atoms))


def maxwell_boltzmann(
    masses: Float[np.ndarray, "a"], kelvin: float, rng: np.random.Generator
) -> Float[np.ndarray, "a 3"]:
    r"""Random velocities without total momentum, at exactly the given temperature.

    Drawn from :math:`p(v) \propto e^{-m v^2 / 2kT}`, the centre of mass put at rest, then scaled.

    :param masses: (a,) amu, at least two atoms.
    :param kelvin: temperature in K, not negative.
    :returns: (a, 3) Å/fs.
    :raises InvalidInputError: fewer than two atoms, a mass that is not positive, or a negative temperature.
    """
    masses = np.asarray(masses, dtype=float)
    if len(masses) < 2:
        raise InvalidInputError(
            f"molecular dynamics needs at least 2 atoms (the centre of mass rests), got {len(masses)}"
        )
    if (masses <= 0).any():
        raise InvalidInputError(f"masses must be positive, got {masses.min():g} amu")
    if kelvin < 0:
        raise InvalidInputError(f"a temperature must not be negative, got {kelvin:g} K")
    velocities = rng.normal(size=(len(masses), 3)) / np.sqrt(masses)[:, None]
    velocities -= (masses[:, None] * velocities).sum(axis=0) / masses.sum()
    wanted = 0.5 * degrees_of_freedom(len(masses)) * BOLTZMANN * kelvin
    return velocities * np.sqrt(wanted / kinetic_energy(masses, velocities))


def verlet_velocity(
    before: Float[np.ndarray, "a 3"],
    now: Float[np.ndarray, "a 3"],
    forces: Float[np.ndarray, "a 3"],
    masses: Float[np.ndarray, "a"],
    timestep: float,
) -> Float[np.ndarray, "a 3"]:
    r"""Velocity at the later of two successive Verlet positions, :math:`v_n = (x_n - x_{n-1})/h + h F_n/2m`.

    Starting there anew with :math:`x_{n+1} = x_n + h v_n + h^2 F_n/2m` gives the position that the Verlet recursion
    :math:`x_{n+1} = 2x_n - x_{n-1} + h^2 F_n/m` would have given: a trajectory goes on as if never interrupted.

    :param before: (a, 3) Å, one timestep earlier.
    :param now: (a, 3) Å.
    :param forces: (a, 3) eV/Å at ``now``.
    :param masses: (a,) amu.
    :param timestep: h in fs.
    :returns: (a, 3) Å/fs.

    Reference: L. Verlet, doi:10.1103/PhysRev.159.98.
    """
    acceleration = np.asarray(forces) / (np.asarray(masses)[:, None] * AMU_ANG2_PER_FS2)
    return (np.asarray(now) - np.asarray(before)) / timestep + 0.5 * timestep * acceleration


def drift(times: Float[np.ndarray, "n"], values: Float[np.ndarray, "n"]) -> float:
    """Slope of a least-squares line, value unit per time unit; NaN for fewer than three values.

    >>> round(drift(np.arange(4.0), np.array([1.0, 3.0, 5.0, 7.0])), 12)
    2.0
    """
    finite = np.isfinite(values)
    if finite.sum() < 3:
        return float("nan")
    t = np.asarray(times, dtype=float)[finite]
    y = np.asarray(values, dtype=float)[finite]
    t = t - t.mean()
    return float((t * (y - y.mean())).sum() / (t * t).sum())
