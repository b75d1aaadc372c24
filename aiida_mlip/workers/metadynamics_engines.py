"""The engines of biased dynamics behind one interface.

A new engine (uncertainty-biased dynamics, say) is one class with the methods of :class:`BiasedEngine` and one entry in
:data:`ENGINES`; one whose bias is a function of the geometry only needs the method ``evaluate`` of
:class:`~aiida_mlip.workers.guarded_calculator.Bias`, see :class:`EnvironmentEngine`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin

from aiida_mlip.errors import ExternalProgramError, InvalidInputError, MlipError
from aiida_mlip.io.arrays import write_npz
from aiida_mlip.io.colvars import colvars_input, without_values
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
from aiida_mlip.workers.lammps_driver import LammpsDynamics, load_lammps

#: Files of a bias.
HILLS_FILE: Final[str] = "hills.npz"
STATE_FILE: Final[str] = "bias.colvars.state"
COLVARS_INPUT: Final[str] = "colvars.in"
PLUMED_INPUT: Final[str] = "plumed.dat"


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


class ColvarsEngine:
    """Metadynamics of collective variables: COLVARS inside LAMMPS.

    :param spec: what to do.
    :param guard: calculator with walls.
    :param text: input of COLVARS.
    :param folder: where its files go, and the state it goes on from is.
    """

    def __init__(self, spec: MetadynamicsSpec, guard: GuardedCalculator, text: str, folder: Path) -> None:
        load_lammps()
        self._spec, self._guard, self._folder = spec, guard, folder
        self._dynamics: LammpsDynamics | None = None
        self._broken = False
        folder.mkdir(exist_ok=True)
        (folder / COLVARS_INPUT).write_text(text, encoding="utf-8")

    def start(self, atoms: Atoms, *, step: int, seed: int) -> None:
        """Give the structure to LAMMPS and the variables to COLVARS."""
        spec = self._spec
        self._broken = True  # until LAMMPS and COLVARS have taken everything
        self._dynamics = LammpsDynamics(
            atoms,
            self._guard.compute,
            timestep_fs=spec.timestep_fs,
            temperature_k=spec.temperature_k,
            friction_per_ps=spec.friction_per_ps,
            seed=seed,
            fixed=spec.fixed_atoms,
        )
        self._dynamics.command(
            f"fix cv all colvars {self._folder / COLVARS_INPUT} output {self._folder / 'run'} "
            f"seed {seed % 900_000_000 + 1} tstat {self._dynamics.thermostat}"
        )
        self._load_state(self._dynamics, new_trajectory=step == 0)
        self._broken = False

    def advance(self, n_steps: int, *, seed: int) -> None:  # noqa: ARG002 - LAMMPS keeps its random numbers itself
        """Integrate."""
        try:
            self._running().run(n_steps)
        except ExternalProgramError:
            self._broken = True  # LAMMPS is in no state to be asked for anything
            raise

    def bias_energy(self) -> float:
        """Energy (eV) of all biases of COLVARS, walls included."""
        return self._running().extract_bias_energy("cv")

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        self._running().scale_velocities(factor)

    def save(self, folder: Path) -> None:
        """Write the state of COLVARS."""
        if self._dynamics is not None:
            self._dynamics.command(f"fix_modify cv save {folder / STATE_FILE}")

    def finish(self) -> None:
        """Write state and free energy, and free LAMMPS."""
        if self._dynamics is None:
            return
        try:
            if not self._broken:
                self.save(self._folder)
        finally:
            self._dynamics.close()
            self._dynamics = None
        # what COLVARS wrote under its own prefix gets a name that does not change
        for file in sorted(self._folder.glob("run.*")):
            if file.suffix in (".BAK", ".old"):
                file.unlink()
            elif file.suffix == ".traj":
                file.rename(self._folder / f"variables_{len(list(self._folder.glob('variables_*'))):04d}.traj")
            else:
                file.replace(self._folder / file.name.replace("run.", "bias.", 1))
        for file in (*self._folder.glob("*.old"), *self._folder.glob("*.BAK")):
            file.unlink()

    def summary(self) -> dict[str, Any]:
        """The hills are in the state file."""
        return {}

    def _load_state(self, dynamics: LammpsDynamics, *, new_trajectory: bool) -> None:
        """Take up the stored bias, if there is one.

        Not through the keyword ``input`` of the fix: with it every ``run`` reads the file anew and forgets all hills
        laid since (LAMMPS 22 Jul 2025).
        """
        state = self._folder / STATE_FILE
        if not state.exists():
            return
        if new_trajectory:
            # another trajectory under the same bias: the variables begin where this structure has them
            state.write_text(without_values(state.read_text(encoding="utf-8")), encoding="utf-8")
        dynamics.run(0)
        dynamics.command(f"fix_modify cv load {state}")

    def _running(self) -> LammpsDynamics:
        if self._dynamics is None:
            raise ExternalProgramError("no trajectory was started")
        return self._dynamics


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
            with np.load(stored, allow_pickle=False) as arrays:
                return EnvironmentEngine(spec, guard, from_arrays(dict(arrays)))
        except (OSError, ValueError) as error:
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


def make_colvars(
    spec: MetadynamicsSpec,
    guard: GuardedCalculator,
    *,
    folder: Path,
    text: str | None,
    reference: Callable[[], Frames],  # noqa: ARG001 - one signature for all engines
) -> ColvarsEngine:
    """Engine of collective variables, from the person's own input or from the specification's variables.

    :raises InvalidInputError: neither is there.
    """
    if text is None:
        if spec.hills is None:
            raise InvalidInputError("spec.hills: missing")
        text = colvars_input(
            spec.collective_variables, spec.hills, temperature_k=spec.temperature_k, record_every=spec.record_every
        )
    return ColvarsEngine(spec, guard, text, folder)


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


#: The engines by name; uncertainty-biased dynamics gets its line here.
ENGINES: Final[Mapping[str, Callable[..., BiasedEngine]]] = {
    "environment": make_environment,
    "colvars": make_colvars,
    "plumed": make_plumed,
}
