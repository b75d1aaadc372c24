"""A small differentiable descriptor of atomic environments: radial moments of rank 0, 1 and 2.

For atom i, element c and radial function g_n, with r̂ the direction to a neighbour::

    M0 = Σ_j g_n(r_ij)      M1 = Σ_j g_n(r_ij) r̂      M2 = Σ_j g_n(r_ij) (r̂ r̂ᵀ − 1/3)
    G  = (M0, |M1|², |M2|²)

invariant under rotation, translation and permutation of equal atoms (the lowest moment-tensor invariants,
doi:10.1137/15M1054183). Gradients are analytic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matscipy.neighbours import neighbour_list
from scipy.sparse import csr_matrix

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.cells import boxed

#: Ranks of the moments: number, vector, traceless tensor.
_N_RANKS = 3


@dataclass(frozen=True)
class Neighbours:
    """Directed pairs within a cutoff.

    :param i: (p,) atom in the centre.
    :param j: (p,) its neighbour.
    :param distance: (p,) Å.
    :param direction: (p, 3) unit vectors from i to j (nearest or farther image).
    """

    i: Int[np.ndarray, "p"]
    j: Int[np.ndarray, "p"]
    distance: Float[np.ndarray, "p"]
    direction: Float[np.ndarray, "p 3"]


@dataclass(frozen=True)
class Invariants:
    """Descriptors with what is needed to differentiate them; see :meth:`EnvironmentDescriptor.evaluate`.

    :param values: (a, f) descriptor of each atom.
    """

    values: Float[np.ndarray, "a f"]
    neighbours: Neighbours
    row: Int[np.ndarray, "p"]
    moments: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class EnvironmentDescriptor:
    """Descriptor of the environments of every atom.

    :param species: atomic numbers of the neighbours it tells apart, ascending.
    :param cutoff_ang: neighbours farther away do not count; everything goes to zero smoothly there.
    :param n_radial: Gaussian radial functions, evenly spaced over the cutoff.

    >>> EnvironmentDescriptor(species=(14,), cutoff_ang=5.0, n_radial=4).size
    12
    """

    species: tuple[int, ...]
    cutoff_ang: float = 5.0
    n_radial: int = 4

    def __post_init__(self) -> None:
        """Check the parameters.

        :raises InvalidInputError: no species, or a cutoff or number of functions that is not positive.
        """
        if not self.species or list(self.species) != sorted(set(self.species)):
            raise InvalidInputError(f"species must be ascending atomic numbers, got {self.species}")
        if not (np.isfinite(self.cutoff_ang) and self.cutoff_ang > 0):
            raise InvalidInputError(f"cutoff_ang must be a positive length in Å, got {self.cutoff_ang}")
        if self.n_radial < 2:
            raise InvalidInputError(f"n_radial must be at least 2, got {self.n_radial}")

    @property
    def size(self) -> int:
        """Length of the descriptor of one atom."""
        return len(self.species) * self.n_radial * _N_RANKS

    def evaluate(
        self,
        numbers: Int[np.ndarray, "a"],
        positions: Float[np.ndarray, "a 3"],
        cell: Float[np.ndarray, "3 3"],
        pbc: np.ndarray,
    ) -> Invariants:
        """Descriptors of all atoms.

        :param numbers: (a,) atomic numbers.
        :param positions: (a, 3) Å.
        :param cell: (3, 3) Å, rows are lattice vectors.
        :param pbc: (3,) periodicity.
        :raises InvalidInputError: an element the descriptor was not made for.
        """
        channel = np.searchsorted(self.species, numbers)
        if (unknown := ~np.isin(numbers, self.species)).any():
            raise InvalidInputError(f"descriptor of {self.species} met atomic number {numbers[unknown][0]}")
        pairs = neighbours(numbers, positions, cell, pbc, self.cutoff_ang)
        row = pairs.i * len(self.species) + channel[pairs.j]
        g, _ = self._radial(pairs.distance)
        r = pairs.direction
        n, n_rows = self.n_radial, len(numbers) * len(self.species)
        collect = csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(n_rows, len(row)))
        outer = r[:, :, None] * r[:, None, :] - np.eye(3) / 3
        m0 = collect @ g
        m1 = (collect @ (g[:, :, None] * r[:, None, :]).reshape(len(r), 3 * n)).reshape(n_rows, n, 3)
        m2 = (collect @ (g[:, :, None] * outer.reshape(-1, 1, 9)).reshape(len(r), 9 * n)).reshape(n_rows, n, 3, 3)
        values = np.stack([m0, (m1**2).sum(axis=2), (m2**2).sum(axis=(2, 3))], axis=2)
        return Invariants(values.reshape(len(numbers), -1), pairs, row, (m0, m1, m2))

    def pull_back(
        self, invariants: Invariants, gradient: Float[np.ndarray, "a f"]
    ) -> tuple[Float[np.ndarray, "a 3"], Float[np.ndarray, "3 3"]]:
        """Derivatives of a function E of the descriptors: ∂E/∂r and ∂E/∂ε (strain).

        :param gradient: (a, f) ∂E/∂G.
        :returns: (a, 3) ∂E/∂r in the unit of E per Å, and (3, 3) ∂E/∂ε in the unit of E.
        """
        pairs, row = invariants.neighbours, invariants.row
        _, m1, m2 = invariants.moments
        by_rank = gradient.reshape(len(m1), self.n_radial, _N_RANKS)
        a0 = by_rank[..., 0][row]
        a1 = (2 * by_rank[..., 1, None] * m1)[row]
        a2 = (2 * by_rank[..., 2, None, None] * m2)[row]
        g, dg = self._radial(pairs.distance)
        r = pairs.direction
        a2r = np.einsum("pnab,pb->pna", a2, r)
        along = a0 + np.einsum("pna,pa->pn", a1 + a2r, r)
        across = a1 + 2 * a2r
        across = across - np.einsum("pna,pa->pn", across, r)[..., None] * r[:, None, :]
        pull = (dg * along).sum(axis=1)[:, None] * r
        pull += np.einsum("pn,pna->pa", g / pairs.distance[:, None], across)
        n = len(gradient)
        force = np.stack(
            [np.bincount(pairs.j, pull[:, k], n) - np.bincount(pairs.i, pull[:, k], n) for k in range(3)], axis=1
        )
        return force, pull.T @ (r * pairs.distance[:, None])

    def _radial(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(p, n) radial functions and their derivatives."""
        centres = np.linspace(0.3, 0.9, self.n_radial) * self.cutoff_ang
        width = 0.6 * self.cutoff_ang / self.n_radial
        x = np.pi * distance / self.cutoff_ang
        fade, dfade = 0.5 * (1 + np.cos(x)), -0.5 * np.pi / self.cutoff_ang * np.sin(x)
        shift = (distance[:, None] - centres) / width
        bell = np.exp(-0.5 * shift**2)
        return bell * fade[:, None], bell * (dfade[:, None] - shift / width * fade[:, None])


def neighbours(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff_ang: float
) -> Neighbours:
    """Directed pairs within a cutoff (Å), periodic images included; any cell, also none."""
    pbc = np.asarray(pbc, dtype=bool)
    moved, box = boxed(positions, np.where(pbc[:, None], cell, 0.0), pbc, padding=cutoff_ang + 1.0)
    i, j, d, vectors = neighbour_list(
        "ijdD", positions=moved, cell=box, pbc=pbc, numbers=np.asarray(numbers, dtype=np.int32), cutoff=cutoff_ang
    )
    return Neighbours(i, j, d, vectors / d[:, None])
