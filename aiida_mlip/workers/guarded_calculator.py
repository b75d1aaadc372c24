"""Forces of biased dynamics: the potential's, plus bias and walls, with a watch on the smallest pair distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.metadynamics.environment_bias import BiasEvaluation
from aiida_mlip.kernel.metadynamics.walls import PairWall
from aiida_mlip.kernel.pair_list import PairList

#: Å beyond the limit of distances that the list of near pairs reaches: little is that near, so a wide one is cheap.
_SKIN: Final[float] = 0.6

#: No atom of a sane simulation has a coordinate (Å) above this.
FAR_AWAY: Final[float] = 1e6
#: What a search of neighbours raises when the atoms are too far apart for its grid, or the cell is no cell.
NO_NEIGHBOURS: Final[tuple[type[Exception], ...]] = (
    SystemError,
    RuntimeError,
    MemoryError,
    ValueError,
    np.linalg.LinAlgError,
)


class PairDistanceReached(MlipError):  # noqa: N818 - not a failure of the program: the wall that ends a trajectory
    """Two atoms came closer than allowed."""


class ForcesFailed(MlipError):  # noqa: N818 - reads as what happened
    """The calculator raised, or gave numbers that are not finite."""


class Bias(Protocol):
    """Anything that adds energy, forces and virial."""

    def evaluate(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> BiasEvaluation:
        """Energy (eV), forces (eV/Å), virial (eV)."""
        ...


class GuardedCalculator(Calculator):  # type: ignore[misc]  # ASE ships no types
    """Potential + pair wall + bias.

    :param base: calculator of the unbiased forces.
    :param wall: repulsion and limit of pair distances.
    :param bias: added to the forces, if any.
    :param with_stress: the stress is computed as well (``stress``), for a cell that changes.

    After each calculation ``base_energy``, ``bias_evaluation`` and ``smallest_ratio`` (smallest distance in units of
    its limit since :meth:`reset_watch`) tell what it was made of.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self, base: Calculator, wall: PairWall, bias: Bias | None = None, *, with_stress: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.with_stress = with_stress
        self.stress: np.ndarray | None = None
        self.wall = wall
        self.bias = bias
        self.base_energy = 0.0
        self.bias_evaluation: BiasEvaluation | None = None
        self.smallest_ratio = np.inf
        self._plain: Atoms | None = None
        self._near: PairList | None = None
        self._unbiased: tuple[float, np.ndarray] = (0.0, np.zeros((0, 3)))

    def reset_watch(self) -> None:
        """Forget the smallest ratio."""
        self.smallest_ratio = np.inf

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Energy (eV), forces (eV/Å) and, where it was asked for, stress (eV/Å³).

        :raises PairDistanceReached: a pair is below its limit.
        :raises ForcesFailed: the base calculator raised, or its numbers are not finite.
        """
        super().calculate(atoms, properties, system_changes)
        energy, forces = self.compute(self.atoms)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if self.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(self.stress)

    def compute(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        """Energy (eV) and (a, 3) forces (eV/Å), without ASE's bookkeeping of what has changed.

        With ``with_stress`` the attribute ``stress`` is then the (3, 3) stress (eV/Å³, tension positive).

        :raises PairDistanceReached: a pair is below its limit.
        :raises ForcesFailed: the base calculator raised, or its numbers are not finite.
        """
        geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        if not (np.abs(atoms.positions) < FAR_AWAY).all():  # NaN is not below it either
            raise ForcesFailed("atoms have run away: the dynamics is unstable, take a shorter timestep")
        try:
            wall_energy, wall_forces, virial, ratio = self._evaluate_wall(*geometry)
        except NO_NEIGHBOURS as error:
            raise ForcesFailed(f"no neighbours can be found, atoms or cell have run away ({error})") from error
        if ratio < 1:
            raise PairDistanceReached(f"two atoms are at {ratio:.3f} of the smallest allowed distance")
        self.smallest_ratio = min(self.smallest_ratio, ratio)
        self.base_energy, forces = self._base(atoms)
        energy = self.base_energy + wall_energy
        forces = forces + wall_forces
        self._unbiased = (energy, forces)
        if self.bias is not None:
            self.bias_evaluation = self.bias.evaluate(*geometry)
            energy += self.bias_evaluation.energy
            forces = forces + self.bias_evaluation.forces
            virial = virial + self.bias_evaluation.virial
        if self.with_stress:
            self.stress = self._base_stress() + virial / atoms.get_volume()
        return energy, forces

    def _evaluate_wall(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, float]:
        """What :meth:`PairWall.evaluate` says; without a repulsion only the distances, from a list that is kept."""
        if self.wall.strength > 0:
            return self.wall.evaluate(numbers, positions, cell, pbc)
        species = np.unique(numbers)
        reach = self.wall.onset * float(self.wall.limits[np.ix_(species, species)].max())
        if self._near is None or self._near.cutoff != reach:
            self._near = PairList(reach, skin=_SKIN)
        pairs = self._near.pairs(positions, cell, pbc)
        ratio = pairs.closest(numbers, self.wall.limits, reach=self.wall.onset)[0]
        return 0.0, np.zeros_like(positions), np.zeros((3, 3)), ratio

    def refresh_bias(self) -> None:
        """Take account of a bias that has changed since the last calculation, at the same geometry."""
        if self.bias is None or not self.results:
            return
        new = self.bias.evaluate(self.atoms.numbers, self.atoms.positions, self.atoms.cell.array, self.atoms.pbc)
        energy = self._unbiased[0] + new.energy
        self.results = {"energy": energy, "free_energy": energy, "forces": self._unbiased[1] + new.forces}
        self.bias_evaluation = new

    def _base(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        """Energy whose derivative the forces are, and the forces, of the atoms without constraints."""
        plain = self._plain
        if plain is None or len(plain) != len(atoms) or (plain.numbers != atoms.numbers).any():
            plain = self._plain = Atoms(numbers=atoms.numbers)
        plain.positions, plain.cell, plain.pbc = atoms.positions, atoms.cell, atoms.pbc
        try:
            forces = np.array(self.base.get_property("forces", plain), dtype=float)
            found = self.base.results
            energy = float(found.get("free_energy", found.get("energy", np.nan)))
            if np.isnan(energy):
                energy = float(self.base.get_property("energy", plain))
        except Exception as error:  # any calculator may raise anything
            raise ForcesFailed(f"{type(error).__name__}: {error}") from error
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise ForcesFailed(f"energy {energy} eV or forces are not finite")
        return energy, forces

    def _base_stress(self) -> np.ndarray:
        """(3, 3) stress (eV/Å³) of the atoms that :meth:`_base` has just seen."""
        try:
            stress = np.asarray(self.base.get_property("stress", self._plain), dtype=float)
        except Exception as error:  # any calculator may raise anything
            raise ForcesFailed(f"the stress: {type(error).__name__}: {error}") from error
        if not np.isfinite(stress).all():
            raise ForcesFailed("the stress is not finite")
        return stress if stress.shape == (3, 3) else voigt_6_to_full_3x3_stress(stress)
