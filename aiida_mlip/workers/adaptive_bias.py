"""Bias by uncertainty whose strength adapts while the dynamics runs, with its history."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.metadynamics import Uncertainty
from aiida_mlip.kernel.metadynamics.adaptive_strength import HISTORY, AdaptiveStrength
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.uncertain_potential import UncertainPotential, UncertaintyBias


class AdaptiveBias(UncertaintyBias):
    """Bias −τ U with a τ that is adapted every few steps; puts itself into the calculator of the dynamics.

    :param guard: calculator of the dynamics around an :class:`UncertainPotential`.
    :param settings: strength, and how fast it adapts.
    :raises InvalidInputError: forces that know no uncertainty.
    """

    def __init__(self, guard: GuardedCalculator, settings: Uncertainty) -> None:
        if not isinstance(guard.base, UncertainPotential):
            raise InvalidInputError("uncertainty: needs a potential with grades, not a calculator")
        super().__init__(guard.base)
        guard.bias = self
        self._guard, self._every = guard, settings.update_every
        self._strength = AdaptiveStrength(
            strength=settings.strength,
            memory=max(1.0, settings.memory_steps / self._every),
            ramp=-(-settings.ramp_steps // self._every),
            most_ev=settings.most_ev,
        )
        self._history: list[tuple[float, ...]] = []

    def after_step(self, step: int) -> None:
        """Adapt the strength if it is time; the forces of the present geometry follow.

        :param step: number of the step that was just done.
        """
        at = self.last
        if at is None or step % self._every:
            return
        size, before = float(np.sqrt(np.mean(at.forces**2))), self.tau_ev
        self.tau_ev = self._strength.update(at.forces, at.gradient)
        ratio = before * float(np.sqrt(np.mean(at.gradient**2))) / size if size > 0 else 0.0
        self._history.append((float(step), self.tau_ev, float(at.per_atom.mean()), ratio))
        self._guard.refresh_bias()

    def arrays(self) -> dict[str, np.ndarray]:
        """State of the strength, and columns ``history_*``: step, τ (eV), mean u, ratio of the forces before."""
        history = np.array(self._history).reshape(-1, len(HISTORY))
        return {**self._strength.arrays(), **{f"history_{name}": history[:, k] for k, name in enumerate(HISTORY)}}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`arrays` gave.

        :raises InvalidInputError: arrays that are no such bias.
        """
        self._strength.restore(arrays)
        columns = [arrays[key] for key in (f"history_{name}" for name in HISTORY) if key in arrays]
        if len(columns) < len(HISTORY) or len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
            raise InvalidInputError(f"bias: it lacks its history {HISTORY}")
        self.tau_ev = self._strength.tau_ev
        self._history = list(zip(*(column.tolist() for column in columns), strict=True))

    def reset(self) -> None:
        """Forget everything: another run."""
        self._strength = AdaptiveStrength(
            strength=self._strength.strength,
            memory=self._strength.memory,
            ramp=self._strength.ramp,
            most_ev=self._strength.most_ev,
        )
        self._history, self.tau_ev, self.last = [], 0.0, None

    def numbers(self) -> dict[str, float]:
        """Present strength (eV), and means over the history of strength and uncertainty."""
        if not self._history:
            return {"tau_ev": self.tau_ev}
        means = np.mean(self._history, axis=0)
        return {
            "tau_ev": self.tau_ev,
            "mean_tau_ev": float(means[HISTORY.index("tau_ev")]),
            "mean_uncertainty": float(means[HISTORY.index("uncertainty")]),
        }
