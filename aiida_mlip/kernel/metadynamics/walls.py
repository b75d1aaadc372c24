"""Walls: atoms that come too close, and dynamics that run too hot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.metadynamics.descriptor import neighbours

#: The kinetic temperature of few atoms fluctuates: without a limit given, this many standard deviations are allowed.
TEMPERATURE_SIGMAS: Final[float] = 8.0

Action = Literal["stop", "repel"]


@dataclass(frozen=True)
class PairWall:
    """Repulsion between atoms nearer than ``onset`` times their limit: E = Σ_pairs ½ k (onset·d_lim − r)².

    :param limits: (119, 119) smallest allowed distance (Å) by atomic numbers.
    :param strength: k in eV/Å²; 0 switches the repulsion off, the distances are watched all the same.
    :param onset: where the wall begins, in units of the limit.
    """

    limits: Float[np.ndarray, "z z"]
    strength: float = 0.0
    onset: float = 1.15

    def __post_init__(self) -> None:
        """Check the parameters.

        :raises InvalidInputError: a negative strength, or a wall that begins inside the limit.
        """
        if self.strength < 0 or not np.isfinite(self.strength):
            raise InvalidInputError(f"strength must not be negative, got {self.strength}")
        if self.onset < 1:
            raise InvalidInputError(f"onset must be at least 1 (the limit itself), got {self.onset}")

    def evaluate(
        self, numbers: np.ndarray, positions: Float[np.ndarray, "a 3"], cell: Float[np.ndarray, "3 3"], pbc: np.ndarray
    ) -> tuple[float, Float[np.ndarray, "a 3"], Float[np.ndarray, "3 3"], float]:
        """Energy (eV), forces (eV/Å), strain derivative (eV), and the smallest ratio of a distance to its limit.

        The ratio is inf when no pair is near the wall.
        """
        species = np.unique(numbers)
        reach = self.onset * float(self.limits[np.ix_(species, species)].max())
        pairs = neighbours(numbers, positions, cell, pbc, reach)
        limit = self.limits[numbers[pairs.i], numbers[pairs.j]]
        ratio = float((pairs.distance / limit).min()) if len(limit) else np.inf
        overlap = np.maximum(self.onset * limit - pairs.distance, 0.0)
        # every pair is listed twice, so each listing carries half of the energy
        energy = 0.25 * self.strength * float((overlap**2).sum())
        push = self.strength * overlap[:, None] * pairs.direction
        n = len(numbers)
        forces = np.stack([-np.bincount(pairs.i, push[:, k], n) for k in range(3)], axis=1)
        virial = -0.5 * push.T @ (pairs.direction * pairs.distance[:, None])
        return energy, forces, virial, ratio


def temperature_limit(temperature_k: float, n_atoms: int, given: float | None = None) -> float:
    """Kinetic temperature (K) above which dynamics is out of control.

    :param given: the limit when one is stated; else 3·T, or the mean plus 8 standard deviations, T·8·√(2/3N), for few
        atoms.

    >>> temperature_limit(300.0, 1000), temperature_limit(300.0, 1000, 500.0)
    (900.0, 500.0)
    """
    if given is not None:
        return given
    return temperature_k * max(3.0, 1.0 + TEMPERATURE_SIGMAS * float(np.sqrt(2 / (3 * n_atoms))))
