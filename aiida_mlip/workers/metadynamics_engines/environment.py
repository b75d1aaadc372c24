"""Metadynamics in the space of atomic environments, integrated by ASE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.arrays import read_npz, write_npz
from aiida_mlip.io.metadynamics import MetadynamicsSpec
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.metadynamics.environment_bias import (
    EnvironmentBias,
    fit_environment_bias,
    from_arrays,
    to_arrays,
)
from aiida_mlip.kernel.units import BOLTZMANN
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.metadynamics_engines.base import langevin

HILLS_FILE: Final[str] = "hills.npz"


class EnvironmentEngine:
    """Metadynamics in environment space, integrated by ASE.

    :param spec: what to do.
    :param guard: calculator with walls; the bias is put into it.
    :param bias: hills so far, or none.
    """

    def __init__(self, spec: MetadynamicsSpec, guard: GuardedCalculator, bias: EnvironmentBias) -> None:
        if spec.hills is None:
            raise InvalidInputError("spec.hills: missing")
        self._spec, self._guard, self._hills = spec, guard, spec.hills
        self.bias = bias
        guard.bias = bias

    def start(self, atoms: Atoms, *, step: int, seed: int) -> None:
        """Take a structure."""
        self._step = step
        self._atoms = atoms
        self._dynamics = langevin(atoms, self._guard, self._spec, seed=seed)

    def advance(self, n_steps: int, *, seed: int) -> None:
        """Integrate, and lay hills."""
        self._dynamics.rng = np.random.default_rng(seed)
        for _ in range(n_steps):
            self._dynamics.step()
            self._step += 1
            if self._step % self._hills.every == 0:
                self._deposit()

    def bias_energy(self) -> float:
        """Energy (eV) of the bias."""
        return 0.0 if self._guard.bias_evaluation is None else self._guard.bias_evaluation.energy

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        self._atoms.set_momenta(self._atoms.get_momenta() * factor)

    def save(self, folder: Path) -> None:
        """Write descriptor, whitening and hills."""
        (folder / HILLS_FILE).write_bytes(write_npz(to_arrays(self.bias)))

    def finish(self) -> None:
        """Nothing to close."""

    def summary(self) -> dict[str, Any]:
        """Grid points that carry a hill."""
        return {"hills": self.bias.n_hills}

    def _deposit(self) -> None:
        at = self._guard.bias_evaluation
        if at is None:
            return
        self.bias.deposit(
            self._atoms.numbers,
            at,
            height_ev=self._hills.height_ev,
            boltzmann_temperature_ev=BOLTZMANN * self._spec.temperature_k,
            bias_factor=self._hills.bias_factor,
        )
        self._guard.refresh_bias()


def make_environment(
    spec: MetadynamicsSpec,
    guard: GuardedCalculator,
    *,
    folder: Path,
    text: str | None,  # noqa: ARG001 - one signature for all engines
    reference: Callable[[], Frames],
) -> EnvironmentEngine:
    """Engine of environment space: hills of ``folder`` if there are any, else none, whitened on the reference.

    :raises InvalidInputError: hills that cannot be read, or a reference without variety.
    """
    stored = folder / HILLS_FILE
    if stored.exists():
        try:
            return EnvironmentEngine(spec, guard, from_arrays(read_npz(stored)))
        except ValueError as error:
            raise InvalidInputError(f"bias: {HILLS_FILE}: {error}") from error
    if spec.environment is None:
        raise InvalidInputError("spec.environment: missing")
    space = spec.environment
    bias = fit_environment_bias(
        reference(),
        cutoff_ang=space.cutoff_ang,
        n_radial=space.n_radial,
        components=space.components,
        width=space.width,
    )
    return EnvironmentEngine(spec, guard, bias)
