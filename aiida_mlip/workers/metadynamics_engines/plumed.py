"""PLUMED through ASE, where the machine has its kernel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms, units

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.metadynamics import MetadynamicsSpec
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.workers.guarded_calculator import GuardedCalculator
from aiida_mlip.workers.metadynamics_engines.base import EngineMissingError, langevin

PLUMED_INPUT: Final[str] = "plumed.dat"


class PlumedEngine:
    """Whatever a ``plumed.dat`` says, through ASE's interface to PLUMED.

    :param spec: what to do.
    :param guard: calculator with walls.
    :param text: contents of ``plumed.dat``; its files are written in ``folder``.
    :param folder: where PLUMED runs; a ``HILLS`` there is gone on from.
    :raises EngineMissingError: no PLUMED kernel here.
    """

    def __init__(self, spec: MetadynamicsSpec, guard: GuardedCalculator, text: str, folder: Path) -> None:
        check_plumed()
        self._spec, self._guard = spec, guard
        self._lines = [line for line in text.splitlines() if line.strip()]
        self._folder = folder.resolve()
        self._folder.mkdir(exist_ok=True)
        (self._folder / PLUMED_INPUT).write_text(text, encoding="utf-8")
        self._calculator: Any = None

    def start(self, atoms: Atoms, *, step: int, seed: int) -> None:
        """Start PLUMED on a structure."""
        from ase.calculators.plumed import Plumed

        self._atoms = atoms
        with contextlib.chdir(self._folder):
            self._calculator = Plumed(
                calc=self._guard,
                input=self._lines,
                timestep=self._spec.timestep_fs * units.fs,
                atoms=atoms,
                kT=self._spec.temperature_k * units.kB,
                log="plumed.log",
                restart=(self._folder / "HILLS").exists(),
            )
        self._calculator.istep = step
        self._dynamics = langevin(atoms, self._calculator, self._spec, seed=seed)

    def advance(self, n_steps: int, *, seed: int) -> None:
        """Integrate."""
        self._dynamics.rng = np.random.default_rng(seed)
        with contextlib.chdir(self._folder):
            for _ in range(n_steps):
                self._dynamics.step()

    def bias_energy(self) -> float:
        """Energy (eV) that PLUMED added."""
        return float(self._calculator.results["energy"] - self._guard.results["energy"])

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        self._atoms.set_momenta(self._atoms.get_momenta() * factor)

    def save(self, folder: Path) -> None:
        """PLUMED writes its files as it goes."""

    def finish(self) -> None:
        """Close PLUMED's files."""
        if self._calculator is not None:
            self._calculator.plumed.finalize()
            self._calculator = None

    def summary(self) -> dict[str, Any]:
        """The hills are in PLUMED's own files."""
        return {}


def check_plumed() -> None:
    """Make sure that PLUMED can be used here.

    :raises EngineMissingError: the Python module or the kernel is missing; says what to install.
    """
    if importlib.util.find_spec("plumed") is None:
        raise EngineMissingError(
            "PLUMED is not installed here: pip install plumed, and set PLUMED_KERNEL to its kernel"
        )
    import plumed

    try:
        plumed.Plumed().finalize()
    except Exception as error:  # the module raises whatever the dynamic loader says
        kernel = os.environ.get("PLUMED_KERNEL", "not set")
        raise EngineMissingError(f"PLUMED has no usable kernel here (PLUMED_KERNEL: {kernel}): {error}") from error


def make_plumed(
    spec: MetadynamicsSpec,
    guard: GuardedCalculator,
    *,
    folder: Path,
    text: str | None,
    reference: Callable[[], Frames],  # noqa: ARG001 - one signature for all engines
) -> PlumedEngine:
    """Engine of the person's own PLUMED input.

    :raises InvalidInputError: there is none.
    :raises EngineMissingError: no PLUMED kernel here.
    """
    if text is None:
        raise InvalidInputError("engine_input: missing, the engine plumed needs a plumed.dat")
    return PlumedEngine(spec, guard, text, folder)
