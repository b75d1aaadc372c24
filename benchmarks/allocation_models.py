"""Models whose training costs next to nothing: potentials linear in random features, for many trainings.

E = Σ_i c · φ(z_i), with z_i the whitened invariants of a density expansion around atom i (degrees 0, 1, 2) and φ random
cosines of them: what a Gaussian process with a squared exponential kernel of length ``SCALE`` becomes when its
kernel is sampled (Rahimi and Recht, NIPS 2007). Forces are linear in c as well, so that a training is one ridge fit.
The dear level of theory is the cheap one and a potential of the difference, fitted to frames with both labels. Members
of a committee differ by their random features and, for the difference, by the frames drawn (with replacement).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matscipy.neighbours import neighbour_list
from scipy import sparse

from aiida_mlip.kernel.frames import Frames

CUTOFF_ANG = 4.5
RADIAL = 6
FEATURES = 400
#: In whitened invariants.
SCALE = 7.0
#: Noise of a force component (eV/Å) by which the labels are weighed against the prior.
NOISE = 0.02


@dataclass(frozen=True)
class Surroundings:
    """Invariants z (a, d) of all atoms, their gradients (p, d, 3) by the vector of each pair, and the pairs."""

    values: np.ndarray
    gradients: np.ndarray
    first: np.ndarray
    second: np.ndarray


def surroundings(frames: Frames) -> Surroundings:
    """Density invariants of periodic frames."""
    parts = [_of_frame(frames, row) for row in range(len(frames))]
    return Surroundings(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.gradients for part in parts]),
        np.concatenate([part.first + start for part, start in zip(parts, frames.offsets, strict=False)]),
        np.concatenate([part.second + start for part, start in zip(parts, frames.offsets, strict=False)]),
    )


def _of_frame(frames: Frames, row: int) -> Surroundings:
    atoms = frames.atom_slice(row)
    n = int(frames.natoms[row])
    i, j, vector = neighbour_list(
        "ijD", positions=frames.positions[atoms], cell=frames.cell[row], pbc=frames.pbc[row], cutoff=CUTOFF_ANG
    )
    r = np.linalg.norm(vector, axis=1)
    unit = vector / r[:, None]
    centres = np.linspace(1.8, CUTOFF_ANG, RADIAL, endpoint=False)
    width = 1.1 * (centres[1] - centres[0])
    x = (r[:, None] - centres) / width
    fade, slope = 0.5 * (1 + np.cos(np.pi * r / CUTOFF_ANG)), -0.5 * np.pi / CUTOFF_ANG * np.sin(np.pi * r / CUTOFF_ANG)
    radial = np.exp(-0.5 * x**2) * fade[:, None]
    derivative = np.exp(-0.5 * x**2) * (slope[:, None] - x / width * fade[:, None])
    gather = sparse.csr_matrix((np.ones(len(i)), (i, np.arange(len(i)))), shape=(n, len(i)))
    turn = (np.eye(3) - unit[:, :, None] * unit[:, None, :]) / r[:, None, None]
    second = np.einsum("pa,pb->pab", unit, unit).reshape(-1, 9) - np.eye(3).reshape(9) / 3
    dsecond = (np.einsum("pac,pb->pabc", turn, unit) + np.einsum("pa,pbc->pabc", unit, turn)).reshape(-1, 9, 3)
    values, gradients = [gather @ radial], [derivative[:, :, None] * unit[:, None, :]]
    for angular, dangular in ((unit, turn), (second, dsecond)):
        size = angular.shape[1]
        density = (gather @ (radial[:, :, None] * angular[:, None, :]).reshape(len(r), -1)).reshape(n, RADIAL, size)
        strength = np.sqrt((density**2).sum(axis=2) + 1e-2)  # smooth where the density vanishes
        along = density[i] / strength[i][:, :, None]
        values.append(strength)
        gradients.append(
            np.einsum("pmc,pc,pm,px->pmx", along, angular, derivative, unit)
            + np.einsum("pmc,pcx,pm->pmx", along, dangular, radial)
        )
    return Surroundings(np.concatenate(values, axis=1), np.concatenate(gradients, axis=1), i, j)


class Features:
    """Random features of one member, and what they make of frames."""

    def __init__(self, seed: int, mean: np.ndarray, width: np.ndarray) -> None:
        rng = np.random.default_rng(seed)
        self._mean, self._width = mean, width
        self._waves = rng.normal(0.0, 1.0 / SCALE, (FEATURES, len(mean)))
        self._phases = rng.uniform(0.0, 2 * np.pi, FEATURES)

    def design(self, given: Surroundings) -> np.ndarray:
        """(3a, K) force components by the coefficients."""
        z = (given.values - self._mean) / self._width
        steep = -np.sqrt(2.0 / FEATURES) * np.sin(z @ self._waves.T + self._phases)
        scaled = self._waves / self._width
        n = len(given.values)
        ones, pair = np.ones(len(given.first)), np.arange(len(given.first))
        net = sparse.csr_matrix((ones, (given.first, pair)), shape=(n, len(pair))) - sparse.csr_matrix(
            (ones, (given.second, pair)), shape=(n, len(pair))
        )
        parts = [net @ ((given.gradients[:, :, axis] @ scaled.T) * steep[given.first]) for axis in range(3)]
        return np.stack(parts, axis=1).reshape(3 * n, FEATURES)


class LinearModels:
    """A committee on one pool; whatever does not depend on the dear labels is computed once.

    :param cheap: the pool with cheap labels; ``dear`` with the dear ones.
    :param test: frames to predict.
    """

    def __init__(self, cheap: Frames, dear: Frames, test: Frames, *, members: int, seed: int) -> None:
        self._seed, self._first = seed, 3 * cheap.offsets
        self._apart = (dear.forces - cheap.forces).reshape(-1)
        pool, tested = surroundings(cheap), surroundings(test)
        mean, width = pool.values.mean(axis=0), pool.values.std(axis=0)
        drawn = [Features(1000 * seed + member, mean, width) for member in range(members)]
        self._pool = [features.design(pool) for features in drawn]
        self._test = [features.design(tested) for features in drawn]
        target = cheap.forces.reshape(-1)
        self.base = [
            (test @ solve(pool, target)).reshape(-1, 3) for pool, test in zip(self._pool, self._test, strict=True)
        ]

    def _change(self, member: int, rows: np.ndarray) -> np.ndarray:
        """(K,) coefficients of the difference."""
        places = np.concatenate([np.arange(self._first[row], self._first[row + 1]) for row in rows])
        return solve(self._pool[member][places], self._apart[places])

    def differences(self, rows: np.ndarray) -> np.ndarray:
        """(M, a, 3) difference of the levels on the pool, eV/Å, each member with its own draw of the labels.

        :param rows: of the pool, with the dear label.
        """
        found = []
        for member, pool in enumerate(self._pool):
            drawn = np.random.default_rng([self._seed, member, len(rows)]).choice(rows, len(rows))
            found.append((pool @ self._change(member, drawn)).reshape(-1, 3))
        return np.array(found)

    def dear_forces(self, rows: np.ndarray) -> np.ndarray:
        """(M, b, 3) dear forces on the test frames, eV/Å, each member with all the labels."""
        found = [test @ self._change(member, rows) for member, test in enumerate(self._test)]
        return np.array(self.base) + np.array(found).reshape(len(found), -1, 3)


def solve(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(K,) ridge fit; the width of the prior is such that it makes forces as large as the targets."""
    prior = float((target**2).mean()) / max(float((design**2).sum(axis=1).mean()), 1e-12)
    gram = design.T @ design + np.eye(design.shape[1]) * NOISE**2 / max(prior, 1e-12)
    return np.asarray(np.linalg.solve(gram, design.T @ target))
