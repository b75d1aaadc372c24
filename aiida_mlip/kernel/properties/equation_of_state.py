"""Equation of state: equilibrium volume, bulk modulus and its derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from ase import Atoms

from aiida_mlip.kernel.properties.crystal import Crystal
from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Property, Results
from aiida_mlip.kernel.units import GPA

DEFINITION: Final[str] = (
    "Birch-Murnaghan fit to energies of isotropically strained cells; fractional coordinates as given"
)
#: Points of the second fit, at least.
_FEWEST: Final[int] = 5
NAMES: Final[tuple[tuple[str, str, str], ...]] = (
    ("a0_ang", "a0", "Å"),
    ("volume_ang3_per_atom", "volume", "Å³/atom"),
    ("bulk_modulus_gpa", "bulk_modulus", "GPa"),
    ("bulk_modulus_derivative", "bulk_modulus_derivative", "1"),
)


@dataclass(frozen=True)
class Equilibrium:
    """Where the energy is lowest.

    :param stretch: of the lengths of the structure given.
    :param energy: eV per atom.
    """

    stretch: float
    energy: float


def strained_cells(crystal: Crystal, *, strain: float, points: int) -> list[Atoms]:
    """Primitive cells with lengths from ``1 - strain`` to ``1 + strain`` times the given ones."""
    return [crystal.scaled(1.0 + s).primitive for s in np.linspace(-strain, strain, points)]


def equation_of_state(
    crystal: Crystal, cells: list[Atoms], results: Results, *, fit_strain: float
) -> tuple[Outcome, Equilibrium]:
    """Third-order Birch-Murnaghan equation of state (doi:10.1103/PhysRev.71.809), by ASE.

    Fitted to all points, then once more to those within ``fit_strain`` of the minimum found, at least five.

    :param cells: see :func:`strained_cells`, by growing volume.
    :raises NotComputableError: an energy is missing, or the minimum is outside of the strains.
    """
    results.check("energy")
    n = len(crystal.primitive)
    volumes = np.array([cell.get_volume() for cell in cells])
    curves = {"eos_volume_ang3_per_atom": volumes / n, "eos_energy_ev_per_atom": results.energy / n}
    lowest = int(np.argmin(results.energy))
    if lowest in (0, len(cells) - 1):
        side = "smallest" if lowest == 0 else "largest"
        raise NotComputableError(f"the energy is lowest at the {side} volume, {volumes[lowest] / n:.2f} Å³ per atom")
    volume, _, _ = _fit(volumes, results.energy, n)
    near = np.sort(np.argsort(np.abs(np.log(volumes / volume)))[:_FEWEST])
    chosen = np.abs((volumes / volume) ** (1 / 3) - 1.0) <= fit_strain
    chosen[near] = True
    volume, energy, (modulus, derivative) = _fit(volumes[chosen], results.energy[chosen], n)
    stretch = float((volume / crystal.primitive.get_volume()) ** (1 / 3))
    values: dict[str, float] = {
        "volume_ang3_per_atom": float(volume / n),
        "bulk_modulus_gpa": float(modulus / GPA),
        "bulk_modulus_derivative": derivative,
    }
    if crystal.is_cubic:
        values["a0_ang"] = float(crystal.conventional.cell.lengths()[0] * stretch)
    properties = tuple(
        Property(name, family, values[name], unit, DEFINITION) for name, family, unit in NAMES if name in values
    )
    return Outcome(properties, curves), Equilibrium(stretch, float(energy / n))


def _fit(volumes: np.ndarray, energies: np.ndarray, n: int) -> tuple[float, float, tuple[float, float]]:
    """Volume and energy of the minimum, (bulk modulus, its derivative)."""
    from ase.eos import EquationOfState

    try:
        fit = EquationOfState(volumes, energies, eos="birchmurnaghan")
        volume, energy, modulus = fit.fit(warn=False)
    except (RuntimeError, ValueError) as error:
        raise NotComputableError(f"the fit of the equation of state failed: {error}") from error
    if not volumes[0] < volume < volumes[-1]:
        raise NotComputableError(f"the fitted minimum, {volume / n:.2f} Å³ per atom, is outside of the strains")
    return float(volume), float(energy), (float(modulus), float(fit.eos_parameters[2]))
