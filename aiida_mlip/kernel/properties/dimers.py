"""Curves of two atoms alone, and how far inwards they repel one another."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Final

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Property, Results

DEFINITION: Final[str] = (
    "shortest distance, in units of the sum of the covalent radii, down to which the pair repels at every distance "
    "sampled inside of its outermost repulsion; runs and melts at high temperature come as close as about 0.6"
)


def dimer_pairs(species: tuple[str, ...]) -> list[tuple[str, str]]:
    """All pairs of elements, each with itself too."""
    return list(combinations_with_replacement(species, 2))


def dimer_distances(pair: tuple[str, str], *, shortest: float, longest: float, points: int) -> np.ndarray:
    """(points,) Å; ``shortest`` and ``longest`` in units of the sum of the covalent radii."""
    radii = sum(float(covalent_radii[atomic_numbers[symbol]]) for symbol in pair)
    return np.linspace(shortest, longest, points) * radii


def dimers(pair: tuple[str, str], distances: np.ndarray) -> list[Atoms]:
    """One molecule per distance, not periodic."""
    return [Atoms("".join(pair), positions=[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]) for distance in distances]


def dimer_name(pair: tuple[str, str]) -> tuple[str, str, str]:
    """Name, family and unit of a pair's repulsion."""
    return f"dimer_{'_'.join(pair)}_repels_to", "dimer", "1"


def repulsion(pair: tuple[str, str], distances: np.ndarray, results: Results) -> Outcome:
    """How far inwards a pair repels: the force along the bond is positive and the energy grows.

    :raises NotComputableError: a number is missing; no repulsion at all.
    """
    results.check("energy", "forces")
    force = np.array([forces[1, 0] for forces in results.forces])  # positive: repels
    label = "_".join(pair)
    curves = {
        f"dimer_{label}_distance_ang": distances,
        f"dimer_{label}_energy_ev": results.energy,
        f"dimer_{label}_force_ev_per_ang": force,
    }
    repels = (force > 0) & np.append(np.diff(results.energy) < 0, True)
    name, family, unit = dimer_name(pair)
    if not repels.any():
        raise NotComputableError("the pair repels at no distance that was sampled")
    outermost = int(np.flatnonzero(repels).max())
    inner = outermost
    while inner > 0 and repels[inner - 1]:
        inner -= 1
    radii = sum(float(covalent_radii[atomic_numbers[symbol]]) for symbol in pair)
    return Outcome((Property(name, family, float(distances[inner] / radii), unit, DEFINITION),), curves)
