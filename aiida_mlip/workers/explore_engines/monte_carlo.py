"""Monte Carlo with a potential: swaps of atoms at a temperature, alone or in turn with short trajectories."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.explore import ExploreSpec, MonteCarlo
from aiida_mlip.kernel.monte_carlo import hybrid_monte_carlo, swap_monte_carlo
from aiida_mlip.kernel.short_range_order import ShortRangeOrder, warren_cowley
from aiida_mlip.workers.explore_engines.base import Clocked, State
from aiida_mlip.workers.guarded_calculator import GuardedCalculator, PairDistanceReached


class MonteCarloEngine(Clocked):
    """Attempted swaps, or cycles of swaps and a short trajectory.

    :param spec: what to do.
    :param guard: calculator that watches pair distances; a move below their limit is refused.
    """

    def __init__(self, spec: ExploreSpec, guard: GuardedCalculator) -> None:
        if spec.monte_carlo is None:
            raise InvalidInputError("spec.monte_carlo: missing")
        self._spec, self._guard = spec, guard
        self._settings: MonteCarlo = spec.monte_carlo

    def start(self, atoms: Atoms, *, step: int, seed: int, state: State) -> None:  # noqa: ARG002 - one signature for all engines
        """Take a structure."""
        self._atoms = atoms
        atoms.set_momenta(np.zeros((len(atoms), 3)))
        self._trial = atoms.copy()
        counts = state.get("counts", np.zeros(4))
        self._accepted, self._attempted = counts[:2].copy(), counts[2:].copy()  # swaps, trajectories
        self._orders: list[np.ndarray] = [state["order_sum"].copy()] if "order_sum" in state else []
        self._n_orders = int(state.get("order_count", np.array(0)))
        self._energy = self._evaluate(atoms.numbers, atoms.positions)[0]
        if np.isinf(self._energy):
            raise PairDistanceReached("two atoms of the starting structure are below the smallest allowed distance")

    def advance(self, n_steps: int, *, seed: int) -> int:
        """Attempts, or cycles."""
        settings, atoms, rng = self._settings, self._atoms, np.random.default_rng(seed)
        numbers = np.asarray(atoms.numbers, dtype=np.uint8)
        if settings.moves == "swap":
            run = swap_monte_carlo(
                numbers,
                lambda trial: self._evaluate(trial, atoms.positions)[0],
                temperature=settings.temperature_k,
                n_steps=n_steps,
                rng=rng,
                sites=self._sites(),
                record_every=n_steps,
            )
            self._count(run.accepted * n_steps, n_steps, 0.0, 0)
            self._take(run.numbers[-1], atoms.positions, float(run.energies[-1]))
            return n_steps
        hybrid = hybrid_monte_carlo(
            numbers,
            atoms.positions,
            self._evaluate,
            temperature=settings.temperature_k,
            n_cycles=n_steps,
            rng=rng,
            swaps_per_cycle=settings.swaps_per_cycle,
            md_steps=settings.md_steps,
            timestep_fs=settings.timestep_fs,
            sites=self._sites() if settings.swaps_per_cycle else None,
            fixed=self._spec.fixed_atoms,
        )
        swaps = n_steps * settings.swaps_per_cycle
        self._count(hybrid.accepted_swaps * swaps, swaps, hybrid.accepted_moves * n_steps, n_steps)
        self._take(hybrid.numbers[-1], hybrid.positions[-1], float(hybrid.energies[-1]))
        return n_steps

    def energy(self) -> float:
        """Potential energy (eV)."""
        return self._energy

    def moves_atoms(self) -> bool:
        """Momenta do not outlive a move."""
        return False

    def recorded(self) -> None:
        """Measure the order of the frame, for the mean over all frames."""
        if self._settings.n_shells and len(np.unique(self._atoms.numbers)) > 1:
            with contextlib.suppress(InvalidInputError):  # shells that cannot be told apart in a hot crystal
                order = self._order()
                self._orders = [order.alpha + sum(self._orders)]
                self._n_orders += 1

    def state(self) -> dict[str, np.ndarray]:
        """Counts of the moves, and the sum of the order parameters so far."""
        kept = {"counts": np.concatenate([self._accepted, self._attempted])}
        if self._orders:
            kept |= {"order_sum": self._orders[0], "order_count": np.array(self._n_orders)}
        return kept

    def numbers(self) -> dict[str, Any]:
        """Accepted shares, and mean Warren-Cowley parameters over the recorded frames, by pair and shell."""
        found: dict[str, Any] = {
            name: float(accepted / attempted)
            for name, accepted, attempted in zip(
                ("accepted_swaps", "accepted_moves"), self._accepted, self._attempted, strict=True
            )
            if attempted
        }
        if self._orders:
            mean = self._orders[0] / self._n_orders
            names = [chemical_symbols[z] for z in np.unique(self._atoms.numbers)]
            found["warren_cowley"] = {
                f"{a}-{b}": [float(value) for value in mean[:, i, i + j]]
                for i, a in enumerate(names)
                for j, b in enumerate(names[i:])
            }
        return found

    # -- parts -------------------------------------------------------------------------------------------------

    def _order(self) -> ShortRangeOrder:
        atoms = self._atoms
        return warren_cowley(
            np.asarray(atoms.numbers, dtype=np.uint8),
            atoms.positions,
            atoms.cell.array,
            atoms.pbc,
            n_shells=self._settings.n_shells,
        )

    def _sites(self) -> np.ndarray:
        """Atoms that take part in swaps."""
        numbers = self._atoms.numbers
        chosen = np.setdiff1d(np.arange(len(numbers)), self._spec.fixed_atoms)
        if self._settings.elements:
            chosen = chosen[np.isin(numbers[chosen], [atomic_numbers[s] for s in self._settings.elements])]
        return chosen

    def _evaluate(self, numbers: np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy and forces of a trial; a pair below its limit makes the energy infinite."""
        self._trial.numbers[:], self._trial.positions[:] = numbers, positions
        try:
            return self._guard.compute(self._trial)
        except PairDistanceReached:
            return float("inf"), np.zeros_like(positions)

    def _count(self, swaps: float, swaps_tried: int, moves: float, moves_tried: int) -> None:
        self._accepted += np.round([swaps, moves])
        self._attempted += [swaps_tried, moves_tried]

    def _take(self, numbers: np.ndarray, positions: np.ndarray, energy: float) -> None:
        self._atoms.numbers[:] = numbers
        self._atoms.positions[:] = positions
        self._energy = energy
