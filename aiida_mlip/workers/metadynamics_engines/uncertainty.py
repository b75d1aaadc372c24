"""Uncertainty-biased dynamics: the potential is driven to where it knows least, with a strength that adapts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.metadynamics import MetadynamicsSpec
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.metadynamics.adaptive_strength import HISTORY, AdaptiveStrength
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.metadynamics_engines.base import langevin
from aiida_mlip.workers.uncertain_potential import UncertainPotential, UncertaintyBias

BIAS_FILE: Final[str] = "uncertainty.npz"


class UncertaintyEngine:
    """Langevin dynamics on E − τ U; τ is adapted every few steps, and its history is the stored bias.

    :param spec: what to do.
    :param guard: calculator with walls around an :class:`UncertainPotential`; the bias is put into it.
    :param stored: arrays that :meth:`save` wrote, of a run to go on from.
    :raises InvalidInputError: forces that know no uncertainty, or arrays that are no such bias.
    """

    def __init__(
        self, spec: MetadynamicsSpec, guard: GuardedCalculator, stored: dict[str, np.ndarray] | None = None
    ) -> None:
        if spec.uncertainty is None:
            raise InvalidInputError("spec.uncertainty: missing")
        if not isinstance(guard.base, UncertainPotential):
            raise InvalidInputError("engine: uncertainty needs a potential with grades, not a calculator")
        self._spec, self._guard, self._settings = spec, guard, spec.uncertainty
        self._bias = UncertaintyBias(guard.base)
        guard.bias = self._bias
        every = self._settings.update_every
        self._strength = AdaptiveStrength(
            strength=self._settings.strength,
            memory=max(1.0, self._settings.memory_steps / every),
            ramp=-(-self._settings.ramp_steps // every),
            most_ev=self._settings.most_ev,
        )
        self._history: list[tuple[float, ...]] = []
        if stored is not None:
            self._restore(stored)

    def start(self, atoms: Atoms, *, step: int, seed: int) -> None:
        """Take a structure."""
        self._step, self._atoms = step, atoms
        self._dynamics = langevin(atoms, self._guard, self._spec, seed=seed)

    def advance(self, n_steps: int, *, seed: int) -> None:
        """Integrate, and adapt the strength."""
        self._dynamics.rng = np.random.default_rng(seed)
        for _ in range(n_steps):
            self._dynamics.step()
            self._step += 1
            if self._step % self._settings.update_every == 0:
                self._adapt()

    def bias_energy(self) -> float:
        """Energy (eV) of the bias."""
        return 0.0 if self._guard.bias_evaluation is None else self._guard.bias_evaluation.energy

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        self._atoms.set_momenta(self._atoms.get_momenta() * factor)

    def save(self, folder: Path) -> None:
        """Write the state of the strength and its history."""
        history = np.array(self._history).reshape(-1, len(HISTORY))
        columns = {f"history_{name}": history[:, k] for k, name in enumerate(HISTORY)}
        (folder / BIAS_FILE).write_bytes(write_npz({**self._strength.arrays(), **columns}))

    def finish(self) -> None:
        """Nothing to close."""

    def summary(self) -> dict[str, Any]:
        """The present strength."""
        return {"tau_ev": self._strength.tau_ev}

    def _adapt(self) -> None:
        at = self._bias.last
        if at is None:
            return
        before = self._bias.tau_ev
        self._bias.tau_ev = self._strength.update(at.forces, at.gradient)
        size = float(np.sqrt(np.mean(at.forces**2)))
        ratio = before * float(np.sqrt(np.mean(at.gradient**2))) / size if size > 0 else 0.0
        self._history.append((float(self._step), self._bias.tau_ev, float(at.per_atom.mean()), ratio))
        self._guard.refresh_bias()

    def _restore(self, stored: dict[str, np.ndarray]) -> None:
        self._strength.restore(stored)
        columns = [stored[key] for key in (f"history_{name}" for name in HISTORY) if key in stored]
        if len(columns) < len(HISTORY) or len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
            raise InvalidInputError(f"bias: {BIAS_FILE} lacks its history {HISTORY}")
        self._bias.tau_ev = self._strength.tau_ev
        self._history = list(zip(*(column.tolist() for column in columns), strict=True))


def make_uncertainty(
    spec: MetadynamicsSpec,
    guard: GuardedCalculator,
    *,
    folder: Path,
    text: str | None,  # noqa: ARG001 - one signature for all engines
    reference: Callable[[], Frames],  # noqa: ARG001 - one signature for all engines
) -> UncertaintyEngine:
    """Engine of uncertainty-biased dynamics; goes on with the strength that ``folder`` holds, if it does.

    :raises InvalidInputError: a stored bias that cannot be read, or forces that know no uncertainty.
    """
    path = folder / BIAS_FILE
    if not path.exists():
        return UncertaintyEngine(spec, guard)
    try:
        return UncertaintyEngine(spec, guard, read_npz(path))
    except FileFormatError as error:
        raise InvalidInputError(f"bias: {error}") from error
