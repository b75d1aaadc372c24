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
from aiida_mlip.workers.adaptive_bias import AdaptiveBias
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.metadynamics_engines.base import langevin

BIAS_FILE: Final[str] = "uncertainty.npz"


class UncertaintyEngine:
    """Langevin dynamics on E − τ U; τ is adapted every few steps, and its history is the stored bias.

    :param spec: what to do.
    :param guard: calculator with walls around a potential that knows the slope of its uncertainty.
    :param stored: arrays that :meth:`save` wrote, of a run to go on from.
    :raises InvalidInputError: forces that know no uncertainty, or arrays that are no such bias.
    """

    def __init__(
        self, spec: MetadynamicsSpec, guard: GuardedCalculator, stored: dict[str, np.ndarray] | None = None
    ) -> None:
        if spec.uncertainty is None:
            raise InvalidInputError("spec.uncertainty: missing")
        self._spec, self._guard = spec, guard
        self._bias = AdaptiveBias(guard, spec.uncertainty)
        if stored is not None:
            self._bias.restore(stored)

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
            self._bias.after_step(self._step)

    def bias_energy(self) -> float:
        """Energy (eV) of the bias."""
        return 0.0 if self._guard.bias_evaluation is None else self._guard.bias_evaluation.energy

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        self._atoms.set_momenta(self._atoms.get_momenta() * factor)

    def save(self, folder: Path) -> None:
        """Write the state of the strength and its history."""
        (folder / BIAS_FILE).write_bytes(write_npz(self._bias.arrays()))

    def finish(self) -> None:
        """Nothing to close."""

    def summary(self) -> dict[str, Any]:
        """Strength, and means over its history."""
        return self._bias.numbers()


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
