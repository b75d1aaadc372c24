"""A barostat without memory: stochastic cell rescaling of an isotropic cell."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.units import BOLTZMANN


def internal_pressure(kinetic_energy: float, stress: Float[np.ndarray, "3 3"], volume: float) -> float:
    r"""Instantaneous pressure P = 2K/3V − tr σ/3 in eV/Å³.

    :param kinetic_energy: K in eV.
    :param stress: (3, 3) σ in eV/Å³, tension positive, without the kinetic part.
    :param volume: V in Å³.
    """
    return 2.0 * kinetic_energy / (3.0 * volume) - float(np.trace(stress)) / 3.0


def rescaled_volume(
    volume: float,
    pressure: float,
    *,
    target: float,
    temperature: float,
    compressibility: float,
    relaxation_time: float,
    timestep: float,
    noise: float,
) -> float:
    r"""Volume after one step of stochastic cell rescaling; its stationary distribution is the isobaric ensemble.

    With λ = √V (so that the noise does not depend on the state):
    :math:`d\lambda = -\frac{\beta_T \lambda}{2 \tau} (P_0 - P - \frac{k_B T}{2 V}) dt
    + \sqrt{\frac{k_B T \beta_T}{2 \tau}} dW`. Positions are to be scaled by (V'/V)^{1/3}, momenta by its inverse.
    There is no piston: nothing to store for a restart, and no ringing far from equilibrium.

    :param volume: V in Å³.
    :param pressure: P in eV/Å³, see :func:`internal_pressure`.
    :param target: P_0 in eV/Å³.
    :param temperature: K.
    :param compressibility: β_T in Å³/eV; only the speed depends on it.
    :param relaxation_time: τ in fs.
    :param timestep: fs.
    :param noise: a standard normal random number.
    :returns: Å³.
    :raises InvalidInputError: the step would change the volume by more than a tenth: the barostat is too fast.

    Reference: M. Bernetti, G. Bussi, doi:10.1063/5.0020514.
    """
    energy = BOLTZMANN * temperature
    speed = compressibility * timestep / (2.0 * relaxation_time)
    root = np.sqrt(volume)
    change = -speed * root * (target - pressure - energy / (2.0 * volume)) + np.sqrt(energy * speed) * noise
    new = float((root + change) ** 2)
    if not 0.9 < new / volume < 1.1:
        raise InvalidInputError(
            f"the barostat changed the volume from {volume:.4g} to {new:.4g} Å³ in one step: pressure {pressure:.3g} "
            f"eV/Å³, target {target:.3g}; give a longer barostat_ps or a smaller compressibility_per_gpa"
        )
    return new
