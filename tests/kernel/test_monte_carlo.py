"""Monte Carlo: detailed balance and the exact canonical distribution of models that can be enumerated."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chi2

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.monte_carlo import (
    acceptance,
    hybrid_monte_carlo,
    propose_swap,
    swap_monte_carlo,
    velocity_verlet,
)
from aiida_mlip.kernel.units import BOLTZMANN

TEMPERATURE = 600.0
#: Ring of six sites, energy per pair of neighbours (eV), not symmetric in the elements and with a field on one site.
COUPLING = {(29, 29): -0.02, (29, 47): 0.03, (47, 47): 0.01, (29, 79): -0.05, (47, 79): 0.02, (79, 79): 0.04}
START = np.array([29, 29, 47, 47, 79, 29], dtype=np.uint8)


def ring_energy(numbers: np.ndarray) -> float:
    pairs = zip(numbers.tolist(), np.roll(numbers, -1).tolist(), strict=True)
    return sum(COUPLING[min(pair), max(pair)] for pair in pairs) + (0.04 if numbers[0] == 79 else 0.0)


STATES = sorted(set(permutations(START.tolist())))
ENERGIES = np.array([ring_energy(np.array(state)) for state in STATES])
BOLTZMANN_WEIGHTS = np.exp(-ENERGIES / (BOLTZMANN * TEMPERATURE))
EXACT = BOLTZMANN_WEIGHTS / BOLTZMANN_WEIGHTS.sum()


def transition_matrix() -> np.ndarray:
    """Exact probabilities of one attempt, from the proposal's definition and the acceptance that the code uses."""
    index = {state: k for k, state in enumerate(STATES)}
    matrix = np.zeros((len(STATES), len(STATES)))
    for k, state in enumerate(STATES):
        for i in range(6):
            unlike = [j for j in range(6) if state[j] != state[i]]
            for j in unlike:
                new = list(state)
                new[i], new[j] = new[j], new[i]
                m = index[tuple(new)]
                matrix[k, m] += acceptance(ENERGIES[m] - ENERGIES[k], TEMPERATURE) / 6 / len(unlike)
        matrix[k, k] += 1.0 - matrix[k].sum()
    return matrix


def test_detailed_balance_and_stationarity():
    matrix = transition_matrix()
    flow = EXACT[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-15)
    np.testing.assert_allclose(EXACT @ matrix, EXACT, atol=1e-14)
    assert (np.linalg.matrix_power(matrix, 40) > 0).all()  # ergodic


def test_proposals_have_the_probabilities_the_balance_assumes():
    rng = np.random.default_rng(0)
    sites = np.arange(6)
    counts = np.zeros((6, 6))
    for _ in range(10_000):
        counts[propose_swap(START, sites, rng)] += 1
    unlike = START[:, None] != START[None, :]
    expected = 10_000 / 6 * unlike / unlike.sum(axis=1, keepdims=True)
    assert (counts[~unlike] == 0).all()
    statistic = ((counts - expected)[unlike] ** 2 / expected[unlike]).sum()
    assert statistic < chi2.ppf(1 - 1e-6, unlike.sum() - 1)


def test_reaches_the_exact_canonical_average():
    run = swap_monte_carlo(
        START, ring_energy, temperature=TEMPERATURE, n_steps=30_000, rng=np.random.default_rng(1), record_every=3
    )
    index = {state: k for k, state in enumerate(STATES)}
    visited = np.bincount([index[tuple(row)] for row in run.numbers.tolist()], minlength=len(STATES)) / len(run.numbers)
    # error of the mean from the exact spectrum: 10000 records of a chain that forgets within a few attempts
    exact_mean, exact_std = EXACT @ ENERGIES, np.sqrt(EXACT @ ENERGIES**2 - (EXACT @ ENERGIES) ** 2)
    gap = np.sort(np.abs(np.linalg.eigvals(np.linalg.matrix_power(transition_matrix(), 3))))[-2]
    error = exact_std * np.sqrt((1 + gap) / (1 - gap) / len(run.numbers))
    assert abs(run.energies.mean() - exact_mean) < 4 * error
    assert error < 0.03 * exact_std
    assert np.abs(visited - EXACT).sum() / 2 < 0.05
    np.testing.assert_allclose(run.energies, [ring_energy(row) for row in run.numbers], atol=1e-12)


def test_composition_frozen_sites_and_seed():
    sites = np.array([0, 2, 4, 5])
    runs = [
        swap_monte_carlo(START, ring_energy, temperature=300.0, n_steps=200, rng=np.random.default_rng(7), sites=sites)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].numbers, runs[1].numbers)
    assert (np.sort(runs[0].numbers, axis=1) == np.sort(START)).all()
    assert (runs[0].numbers[:, [1, 3]] == START[[1, 3]]).all()
    assert 0 < runs[0].accepted < 1


def test_low_temperature_finds_the_ground_state():
    run = swap_monte_carlo(START, ring_energy, temperature=20.0, n_steps=3000, rng=np.random.default_rng(0))
    assert run.energies.min() == pytest.approx(ENERGIES.min())


class TestHybrid:
    STIFFNESS = 3.0

    def springs(self, numbers: np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Each atom on a spring (of its site, and stronger for gold), plus the energy of the arrangement."""
        stiffness = np.where(numbers == 79, 2 * self.STIFFNESS, self.STIFFNESS)[:, None]
        energy = 0.5 * float((stiffness * positions**2).sum()) + ring_energy(numbers)
        return energy, -stiffness * positions

    def test_displacements_and_arrangements_have_their_exact_distribution(self):
        run = hybrid_monte_carlo(
            START,
            np.zeros((6, 3)),
            self.springs,
            temperature=TEMPERATURE,
            n_cycles=2500,
            rng=np.random.default_rng(3),
            swaps_per_cycle=4,
            md_steps=8,
            timestep_fs=12.0,  # coarse on purpose: the acceptance must correct the integrator
        )
        gold = run.numbers == 79
        # <x²> = kT/k, independent of the masses and of the timestep
        for chosen, stiffness in ((gold, 2 * self.STIFFNESS), (~gold, self.STIFFNESS)):
            variance = (run.positions[chosen] ** 2).mean()
            assert variance == pytest.approx(BOLTZMANN * TEMPERATURE / stiffness, rel=0.07)
        # springs make no difference to the arrangement: their free energy is that of one gold and five others
        arrangement = np.array([ring_energy(row) for row in run.numbers])
        assert arrangement.mean() == pytest.approx(EXACT @ ENERGIES, abs=0.05 * ENERGIES.std())
        assert 0.5 < run.accepted_moves < 0.999
        assert 0.05 < run.accepted_swaps < 1.0

    def test_integrator_is_reversible_and_of_second_order(self):
        rng = np.random.default_rng(0)
        positions, velocities = rng.normal(scale=0.1, size=(6, 3)), rng.normal(scale=0.01, size=(6, 3))

        def run(steps: int, timestep: float, where=positions, speed=velocities):
            return velocity_verlet(START, where, speed, self.springs, n_steps=steps, timestep_fs=timestep)

        there = run(50, 4.0)
        back = run(50, 4.0, there[0], -there[1])
        np.testing.assert_allclose(back[0], positions, atol=1e-12)
        np.testing.assert_allclose(-back[1], velocities, atol=1e-12)
        exact = run(3200, 0.0625)[0]
        coarse, fine = (np.abs(run(n, 200 / n)[0] - exact).max() for n in (50, 100))
        assert coarse / fine == pytest.approx(4.0, rel=0.1)

    def test_runaway_trajectories_are_rejected(self):
        run = hybrid_monte_carlo(
            START, np.zeros((6, 3)), self.springs, temperature=300.0, n_cycles=5, rng=np.random.default_rng(0),
            md_steps=20, timestep_fs=1000.0, swaps_per_cycle=0,
        )  # fmt: skip
        assert run.accepted_moves == 0.0
        assert (run.positions == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -300.0}, "temperature"),
        ({"sites": np.array([0, 1])}, "sites: a swap needs two elements"),
        ({"record_every": 11}, "record_every"),
        ({"energy": lambda _: float("nan")}, "energy: the potential returned nan"),
    ],
)
def test_bad_input(change, message):
    arguments = {"energy": ring_energy, "temperature": 300.0, "n_steps": 10} | change
    with pytest.raises(InvalidInputError, match=message):
        swap_monte_carlo(START, arguments.pop("energy"), rng=np.random.default_rng(0), **arguments)
