"""Monte-Carlo swaps of atoms at a temperature, alone or with hybrid (molecular-dynamics) moves.

The energy comes from a callback, so that any potential drives it; a worker supplies one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from ase.data import atomic_masses
from jaxtyping import Float, Int, UInt8

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.units import AMU_ANG2_PER_FS2, BOLTZMANN

#: Total energy (eV) of a configuration with these atomic numbers (a,), on fixed sites.
SiteEnergy: TypeAlias = Callable[[np.ndarray], float]
#: Energy (eV) and forces (a, 3) eV/Å for atomic numbers (a,) and positions (a, 3) Å.
EnergyAndForces: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class SwapRun:
    """Recorded configurations of a run.

    :param numbers: (k, a) atomic numbers at each record.
    :param energies: (k,) eV.
    :param accepted: share of the swaps that was accepted.
    """

    numbers: UInt8[np.ndarray, "k a"]
    energies: Float[np.ndarray, "k"]
    accepted: float


@dataclass(frozen=True)
class HybridRun:
    """Recorded configurations of a hybrid run.

    :param numbers: (k, a) atomic numbers at each record.
    :param positions: (k, a, 3) Å.
    :param energies: (k,) potential energy, eV.
    :param accepted_swaps: share of the swaps that was accepted.
    :param accepted_moves: share of the molecular-dynamics moves that was accepted.
    """

    numbers: UInt8[np.ndarray, "k a"]
    positions: Float[np.ndarray, "k a 3"]
    energies: Float[np.ndarray, "k"]
    accepted_swaps: float
    accepted_moves: float


def acceptance(change: float, temperature: float) -> float:
    """Metropolis probability min(1, exp(-ΔE/k_B T)) of a move (doi:10.1063/1.1699114).

    :param change: ΔE in eV.
    :param temperature: K.

    >>> acceptance(-1.0, 300.0), round(acceptance(0.025, 300.0), 3)
    (1.0, 0.38)
    """
    return float(np.exp(-max(change, 0.0) / (BOLTZMANN * temperature)))


def propose_swap(
    numbers: UInt8[np.ndarray, "a"], sites: Int[np.ndarray, "s"], rng: np.random.Generator
) -> tuple[int, int]:
    """Two sites with different elements: the first uniform, the second uniform among those that differ from it.

    Its probability, (1/s)·(1/(s-n_A) + 1/(s-n_B)) for a pair of elements A and B, is the same before and after the
    swap: no correction of the acceptance is needed.
    """
    i = int(rng.choice(sites))
    return i, int(rng.choice(sites[numbers[sites] != numbers[i]]))


def swap_monte_carlo(
    numbers: UInt8[np.ndarray, "a"],
    energy: SiteEnergy,
    *,
    temperature: float,
    n_steps: int,
    rng: np.random.Generator,
    sites: Int[np.ndarray, "s"] | None = None,
    record_every: int = 1,
) -> SwapRun:
    """Canonical sampling of the arrangement of atoms on sites, the composition fixed.

    :param numbers: (a,) atomic numbers at the start.
    :param energy: total energy (eV) of an arrangement, inf for one that is not allowed; called once per step.
    :param temperature: K.
    :param n_steps: attempted swaps.
    :param sites: which atoms take part; None: all.
    :param record_every: record the configuration after every so many attempts.
    :raises InvalidInputError: a temperature that is not positive, sites with one element only, nothing to record, or an
        energy that is not finite.
    """
    current = np.array(numbers, dtype=np.uint8)
    sites = _checked_sites(current, sites, temperature)
    if not 1 <= record_every <= n_steps:
        raise InvalidInputError(f"record_every: must be in 1..n_steps ({n_steps}), got {record_every}")
    value = _finite(energy(current))
    accepted = 0
    configurations, energies = [], []
    for step in range(1, n_steps + 1):
        value, taken = _swap(current, value, energy, sites, temperature, rng)
        accepted += taken
        if step % record_every == 0:
            configurations.append(current.copy())
            energies.append(value)
    return SwapRun(np.array(configurations), np.array(energies), accepted / n_steps)


def hybrid_monte_carlo(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    energy_and_forces: EnergyAndForces,
    *,
    temperature: float,
    n_cycles: int,
    rng: np.random.Generator,
    swaps_per_cycle: int = 10,
    md_steps: int = 10,
    timestep_fs: float = 2.0,
    sites: Int[np.ndarray, "s"] | None = None,
    fixed: Sequence[int] = (),
) -> HybridRun:
    """Swaps and hybrid moves in turn: arrangement and displacements are sampled together, at a fixed cell.

    A hybrid move draws velocities, integrates ``md_steps`` of velocity Verlet and accepts by the change of the total
    energy, so the error of the integrator changes the acceptance but not the distribution
    (doi:10.1016/0370-2693(87)91197-X). One record per cycle.

    :param numbers: (a,) atomic numbers at the start.
    :param positions: (a, 3) Å at the start.
    :param energy_and_forces: eV and eV/Å.
    :param temperature: K.
    :param swaps_per_cycle: attempted swaps before each hybrid move; 0 for none.
    :param timestep_fs: fs.
    :param fixed: atoms that do not move.
    :raises InvalidInputError: see :func:`swap_monte_carlo`.
    """
    current, where = np.array(numbers, dtype=np.uint8), np.array(positions, dtype=float)
    if swaps_per_cycle:
        sites = _checked_sites(current, sites, temperature)
    _check_temperature(temperature)
    if n_cycles < 1 or md_steps < 1 or swaps_per_cycle < 0 or not timestep_fs > 0:
        raise InvalidInputError("n_cycles, md_steps, swaps_per_cycle, timestep_fs: must be positive")
    value = _finite(energy_and_forces(current, where)[0])
    swaps = moves = 0
    records: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(n_cycles):

        def frozen(trial: np.ndarray, where: np.ndarray = where) -> float:
            return energy_and_forces(trial, where)[0]

        for _ in range(swaps_per_cycle):
            value, taken = _swap(current, value, frozen, sites, temperature, rng)  # type: ignore[arg-type]  # set above
            swaps += taken
        where, value, taken = _hybrid_move(
            current, where, value, energy_and_forces, temperature, md_steps, timestep_fs, rng, fixed
        )
        moves += taken
        records.append((current.copy(), where.copy(), value))
    return HybridRun(
        numbers=np.array([record[0] for record in records]),
        positions=np.array([record[1] for record in records]),
        energies=np.array([record[2] for record in records]),
        accepted_swaps=swaps / max(n_cycles * swaps_per_cycle, 1),
        accepted_moves=moves / n_cycles,
    )


def _swap(
    numbers: np.ndarray,
    value: float,
    energy: SiteEnergy,
    sites: np.ndarray,
    temperature: float,
    rng: np.random.Generator,
) -> tuple[float, bool]:
    """One attempt; ``numbers`` is changed in place when it is accepted. Returns the energy and whether it was."""
    i, j = propose_swap(numbers, sites, rng)
    numbers[i], numbers[j] = numbers[j], numbers[i]
    new = energy(numbers)
    if np.isnan(new):
        raise InvalidInputError(f"energy: the potential returned {new}")
    # an infinite energy (atoms that may not come so close) is refused
    if rng.random() < acceptance(new - value, temperature):
        return new, True
    numbers[i], numbers[j] = numbers[j], numbers[i]
    return value, False


def _hybrid_move(
    numbers: np.ndarray,
    positions: np.ndarray,
    value: float,
    energy_and_forces: EnergyAndForces,
    temperature: float,
    md_steps: int,
    timestep: float,
    rng: np.random.Generator,
    fixed: Sequence[int],
) -> tuple[np.ndarray, float, bool]:
    """Velocity Verlet from fresh velocities; positions and energy after the decision."""
    masses = AMU_ANG2_PER_FS2 * atomic_masses[numbers][:, None]  # velocities in Å/fs
    velocities = rng.normal(size=positions.shape) * np.sqrt(BOLTZMANN * temperature / masses)
    velocities[list(fixed)] = 0.0

    def pulling(trial: np.ndarray, where: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces = energy_and_forces(trial, where)
        forces = np.array(forces)
        forces[list(fixed)] = 0.0
        return energy, forces

    before = value + 0.5 * float((masses * velocities**2).sum())
    trial, velocities, new = velocity_verlet(
        numbers, positions, velocities, pulling, n_steps=md_steps, timestep_fs=timestep
    )
    after = new + 0.5 * float((masses * velocities**2).sum())
    # a trajectory that ran away has an energy that is not finite: rejected
    if np.isfinite(after) and rng.random() < acceptance(after - before, temperature):
        return trial, float(new), True
    return positions, value, False


def velocity_verlet(
    numbers: UInt8[np.ndarray, "a"],
    positions: Float[np.ndarray, "a 3"],
    velocities: Float[np.ndarray, "a 3"],
    energy_and_forces: EnergyAndForces,
    *,
    n_steps: int,
    timestep_fs: float,
) -> tuple[Float[np.ndarray, "a 3"], Float[np.ndarray, "a 3"], float]:
    """Newton's equations by velocity Verlet: reversible and volume preserving, as hybrid moves need it.

    :param positions: (a, 3) Å.
    :param velocities: (a, 3) Å/fs.
    :param timestep_fs: fs.
    :returns: positions (Å), velocities (Å/fs) and potential energy (eV) after ``n_steps``.
    """
    masses = AMU_ANG2_PER_FS2 * atomic_masses[numbers][:, None]
    where, speed = positions.copy(), velocities.copy()
    value, forces = energy_and_forces(numbers, where)
    for _ in range(n_steps):
        speed += 0.5 * timestep_fs * forces / masses
        where += timestep_fs * speed
        value, forces = energy_and_forces(numbers, where)
        speed += 0.5 * timestep_fs * forces / masses
    return where, speed, float(value)


def _check_temperature(temperature: float) -> None:
    if not (np.isfinite(temperature) and temperature > 0):
        raise InvalidInputError(f"temperature: must be positive (K), got {temperature}")


def _checked_sites(numbers: np.ndarray, sites: np.ndarray | None, temperature: float) -> np.ndarray:
    _check_temperature(temperature)
    chosen = np.arange(len(numbers)) if sites is None else np.asarray(sites, dtype=int)
    if len(np.unique(numbers[chosen])) < 2:
        raise InvalidInputError("sites: a swap needs two elements on the sites")
    return chosen


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise InvalidInputError(f"energy: the potential returned {value}")
    return float(value)
