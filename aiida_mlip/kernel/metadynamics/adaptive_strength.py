"""Strength of a bias that follows the forces: the bias pushes with a chosen fraction of what the potential does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float

from aiida_mlip.errors import InvalidInputError

#: Columns of the history.
HISTORY: Final[tuple[str, ...]] = ("step", "tau_ev", "uncertainty", "force_ratio")
_STATE: Final[tuple[str, ...]] = ("force_square", "gradient_square", "updates")


@dataclass
class AdaptiveStrength:
    """τ of E_b = E − τ U with rms(τ ∇U) = ``strength`` · rms(F), both averaged over the recent past.

    The relative strength of hyperactive learning (van der Oord et al. 2023, doi:10.1038/s41524-023-01104-6), with an
    exponential average instead of a burn-in, so that it follows the dynamics. :meth:`update` is the only thing that
    changes it.

    :param strength: wanted ratio of the bias's forces to the potential's, 0.05-0.5 in practice.
    :param memory: updates that the averages reach back, about.
    :param ramp: updates over which the strength rises from 0; 0: it is there at once.
    :param most_ev: τ is at most this; None: no limit.
    """

    strength: float
    memory: float = 20.0
    ramp: int = 10
    most_ev: float | None = None
    tau_ev: float = field(default=0.0, init=False)
    _force_square: float = field(default=0.0, init=False)
    _gradient_square: float = field(default=0.0, init=False)
    _updates: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Check the parameters.

        :raises InvalidInputError: a number out of its range.
        """
        if not (
            self.strength > 0 and self.memory >= 1 and self.ramp >= 0 and (self.most_ev is None or self.most_ev > 0)
        ):
            raise InvalidInputError(
                "strength and most_ev must be positive, memory at least 1, ramp not negative; got "
                f"{self.strength}, {self.most_ev}, {self.memory}, {self.ramp}"
            )

    def update(self, forces: Float[np.ndarray, "a 3"], gradient: Float[np.ndarray, "a 3"]) -> float:
        """Take note of one geometry, and give the strength from now on (eV).

        :param forces: (a, 3) of the potential alone, eV/Å.
        :param gradient: (a, 3) ∂U/∂r, 1/Å.
        """
        keep = 1.0 - 1.0 / min(self._updates + 1.0, self.memory)  # a plain mean until there is a past
        self._force_square = keep * self._force_square + (1 - keep) * float(np.mean(forces**2))
        self._gradient_square = keep * self._gradient_square + (1 - keep) * float(np.mean(gradient**2))
        self._updates += 1
        rise = min(1.0, self._updates / self.ramp) if self.ramp else 1.0
        if self._gradient_square > 0:
            tau = rise * self.strength * float(np.sqrt(self._force_square / self._gradient_square))
            self.tau_ev = tau if self.most_ev is None else min(tau, self.most_ev)
        return self.tau_ev

    def arrays(self) -> dict[str, np.ndarray]:
        """State, from which :meth:`restore` goes on exactly."""
        values = (self._force_square, self._gradient_square, float(self._updates))
        return {**dict(zip(_STATE, map(np.array, values), strict=True)), "tau_ev": np.array(self.tau_ev)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from a state.

        :raises InvalidInputError: an array is missing, not a finite number, or negative.
        """
        found = {}
        for name in (*_STATE, "tau_ev"):
            value = arrays.get(name)
            if value is None or value.shape != () or not np.isfinite(value) or value < 0:
                raise InvalidInputError(f"bias: {name!r} must be one number that is not negative, got {value!r}")
            found[name] = float(value)
        self._force_square, self._gradient_square = found["force_square"], found["gradient_square"]
        self._updates, self.tau_ev = int(found["updates"]), found["tau_ev"]
