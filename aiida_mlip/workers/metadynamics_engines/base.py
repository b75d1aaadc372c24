"""What every engine of biased dynamics can do, and the integrator that those on ASE share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin

from aiida_mlip.errors import MlipError
from aiida_mlip.io.metadynamics import MetadynamicsSpec


class EngineMissingError(MlipError):
    """A program library that an engine needs is not installed here."""


class BiasedEngine(Protocol):
    """What the program does with an engine, in this order: start, advance and save as often as it likes, finish."""

    def start(self, atoms: Atoms, *, step: int, seed: int) -> None:
        """Take a structure with velocities; ``step`` of its trajectory are done already."""
        ...

    def advance(self, n_steps: int, *, seed: int) -> None:
        """Do so many steps: positions and momenta of the atoms are updated; new random numbers from ``seed``.

        :raises PairDistanceReached: atoms came too close.
        :raises ForcesFailed: the forces cannot be computed.
        """
        ...

    def bias_energy(self) -> float:
        """Energy (eV) of the bias at the present step."""
        ...

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        ...

    def save(self, folder: Path) -> None:
        """Write the bias, so that :data:`ENGINES` can go on from it."""
        ...

    def finish(self) -> None:
        """End the trajectory; the bias stays."""
        ...

    def summary(self) -> dict[str, Any]:
        """Numbers for the report."""
        ...


def langevin(atoms: Atoms, calculator: Calculator, spec: MetadynamicsSpec, *, seed: int) -> Langevin:
    """Langevin dynamics of a specification; fixed atoms become a constraint."""
    atoms.set_constraint(FixAtoms(list(spec.fixed_atoms)) if spec.fixed_atoms else None)
    atoms.calc = calculator
    return Langevin(
        atoms,
        timestep=spec.timestep_fs * units.fs,
        temperature_K=spec.temperature_k,
        friction=spec.friction_per_ps * 1e-3 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(seed),
    )
