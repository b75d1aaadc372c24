"""A small linear potential, fitted to forces in a second: the energies and stresses that these forces belong to.

Local density components A_mL(i) = Σ_j g_m(r_ij) Y_L(r̂_ij), L = 0, 1, 2 (Cartesian), give per-atom invariants
B_mnL = A_mL · A_nL; with a pair term they span pair, embedding and three-body energies (the lowest orders of the atomic
cluster expansion, doi:10.1103/PhysRevB.99.014104). Energy, forces and stress are linear in the coefficients, so what is
fitted to forces alone predicts energies up to a constant per species, in the units and with the sign of the forces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from matscipy.neighbours import neighbour_list
from scipy import linalg, sparse

from aiida_mlip.kernel.cells import boxed
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.frames import Frames

_N_PAIR: Final[int] = 8
_N_BODY: Final[int] = 4
_INNER: Final[float] = 0.6
#: Cartesian components of degree L as (row, column) factors, weighted so that A·A is the scalar product of tensors.
_TENSOR: Final[tuple[tuple[int, int, float], ...]] = (
    (0, 0, 1.0),
    (1, 1, 1.0),
    (2, 2, 1.0),
    (1, 2, np.sqrt(2.0)),
    (0, 2, np.sqrt(2.0)),
    (0, 1, np.sqrt(2.0)),
)


@dataclass(frozen=True)
class Design:
    """Derivatives of energy, forces and stress of one frame by the K coefficients.

    :param energy: (K,) eV.
    :param forces: (a, 3, K) eV/Å.
    :param stress: (3, 3, K) eV/Å³; NaN where the frame is not periodic in three directions.

    A prediction has the same fields without the last axis.
    """

    energy: Float[np.ndarray, "*K"]
    forces: Float[np.ndarray, "a 3 *K"]
    stress: Float[np.ndarray, "3 3 *K"]


@dataclass(frozen=True)
class Probe:
    """Basis of the potential.

    :param cutoff: Å.
    :param species: atomic numbers it knows.
    """

    cutoff: float
    species: tuple[int, ...]

    def design(self, frames: Frames, row: int) -> Design:
        """Design of a row."""
        numbers, positions, cell, pbc = geometry(frames, row)
        return self.design_of(numbers, positions, cell, pbc)

    def design_of(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Design:
        """Design of a geometry: positions and cell in Å."""
        moved, box = boxed(positions, cell, pbc, padding=1.0)
        i, j, vectors = neighbour_list(
            "ijD", positions=moved, cell=box, pbc=pbc, numbers=numbers.astype(np.int32), cutoff=self.cutoff
        )
        kind = np.searchsorted(self.species, numbers)
        energies, gradients = [], []
        for energy, gradient in (self._pair_terms(i, j, vectors, kind), self._body_terms(i, vectors, kind)):
            energies.append(energy)
            gradients.append(gradient)
        slopes = np.concatenate(gradients, axis=2)  # (pairs, 3, K): dE/d(vector of the pair)
        n, flat = len(numbers), slopes.reshape(len(i), -1)
        ones, pair = np.ones(len(i)), np.arange(len(i))
        to_i = sparse.csr_matrix((ones, (i, pair)), shape=(n, len(i)))
        to_j = sparse.csr_matrix((ones, (j, pair)), shape=(n, len(i)))
        forces = (to_i @ flat - to_j @ flat).reshape(n, 3, -1)
        stress = np.einsum("pa,pbk->abk", vectors, slopes) / abs(np.linalg.det(box))
        if not np.all(pbc):
            stress = np.full_like(stress, np.nan)
        return Design(energy=np.concatenate(energies), forces=forces, stress=stress)

    def predict(self, frames: Frames, row: int, coefficients: Float[np.ndarray, "K"]) -> Design:
        """Energy, forces (a, 3) and stress (3, 3) of a row: :meth:`design` times coefficients, ten times faster."""
        numbers, positions, cell, pbc = geometry(frames, row)
        moved, box = boxed(positions, cell, pbc, padding=1.0)
        i, j, vectors = neighbour_list(
            "ijD", positions=moved, cell=box, pbc=pbc, numbers=numbers.astype(np.int32), cutoff=self.cutoff
        )
        kind, s = np.searchsorted(self.species, numbers), len(self.species)
        r = np.linalg.norm(vectors, axis=1)
        unit = vectors / r[:, None]
        n_pair = s * (s + 1) // 2 * _N_PAIR
        table = np.zeros((s * s, _N_PAIR))
        table[[a * s + b for a in range(s) for b in range(a, s)]] = coefficients[:n_pair].reshape(-1, _N_PAIR)
        values, slopes = self._radial(r, _N_PAIR)
        mine = table[np.minimum(kind[i], kind[j]) * s + np.maximum(kind[i], kind[j])]
        energy = float((mine * values).sum())
        gradient = (mine * slopes).sum(axis=1)[:, None] * unit
        values, slopes = self._radial(r, _N_BODY)
        gather = sparse.csr_matrix((np.ones(len(i)), (i, np.arange(len(i)))), shape=(len(kind), len(i)))
        upper = np.triu_indices(_N_BODY)
        blocks = coefficients[n_pair:].reshape(s, 3, len(upper[0]))
        for degree, (angular, angular_slope) in enumerate(_angular(unit, r)):
            weights = np.zeros((s, _N_BODY, _N_BODY))
            weights[:, upper[0], upper[1]] = blocks[:, degree]
            weights += weights.transpose(0, 2, 1)
            phi = (values[:, :, None] * angular[:, None, :]).reshape(len(r), -1)
            density = (gather @ phi).reshape(len(kind), _N_BODY, -1)
            response = np.einsum("imn,inc->imc", weights[kind], density)
            energy += 0.5 * float((density * response).sum())
            local = response[i]
            along = np.einsum("pmc,pm,pc->p", local, slopes, angular)
            gradient += along[:, None] * unit
            gradient += np.einsum("pc,pca->pa", np.einsum("pmc,pm->pc", local, values), angular_slope)
        n = len(numbers)
        forces = np.stack(
            [np.bincount(i, gradient[:, a], n) - np.bincount(j, gradient[:, a], n) for a in range(3)], axis=1
        )
        stress = vectors.T @ gradient / abs(np.linalg.det(box))
        if not np.all(pbc):
            stress = np.full_like(stress, np.nan)
        return Design(energy=np.array(energy), forces=forces, stress=stress)

    def _radial(self, r: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(pairs, count) Gaussians times a smooth cutoff, and their derivatives."""
        centres = np.linspace(_INNER * self.cutoff / 2, self.cutoff, count, endpoint=False)
        width = 1.2 * (centres[1] - centres[0])
        x = (r[:, None] - centres) / width
        gauss = np.exp(-0.5 * x**2)
        cut = (0.5 * (1 + np.cos(np.pi * r / self.cutoff)))[:, None]
        dcut = (-0.5 * np.pi / self.cutoff * np.sin(np.pi * r / self.cutoff))[:, None]
        return gauss * cut, gauss * (dcut - x / width * cut)

    def _pair_terms(
        self, i: np.ndarray, j: np.ndarray, vectors: np.ndarray, kind: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r = np.linalg.norm(vectors, axis=1)
        values, slopes = self._radial(r, _N_PAIR)
        s = len(self.species)
        channel = np.minimum(kind[i], kind[j]) * s + np.maximum(kind[i], kind[j])
        used = [a * s + b for a in range(s) for b in range(a, s)]
        select = (channel[:, None] == np.array(used)[None]).astype(float)
        energy = np.einsum("pc,pm->cm", select, values).reshape(-1)
        unit = vectors / r[:, None]
        gradient = np.einsum("pc,pm,pa->pacm", select, slopes, unit).reshape(len(r), 3, -1)
        return energy, gradient

    def _body_terms(self, i: np.ndarray, vectors: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = np.linalg.norm(vectors, axis=1)
        unit = vectors / r[:, None]
        values, slopes = self._radial(r, _N_BODY)
        gather = sparse.csr_matrix((np.ones(len(i)), (i, np.arange(len(i)))), shape=(len(kind), len(i)))
        m, n = np.triu_indices(_N_BODY)
        select = (kind[:, None] == np.arange(len(self.species))[None]).astype(float)
        energies, gradients = [], []
        for angular, angular_slope in _angular(unit, r):
            size = angular.shape[1]
            phi = (values[:, :, None] * angular[:, None, :]).reshape(len(r), -1)
            density = (gather @ phi).reshape(len(kind), _N_BODY, size)
            # d(g Y)/dr_a = g' r̂_a Y + g dY/dr_a
            dphi = (
                slopes[:, :, None, None] * unit[:, None, None, :] * angular[:, None, :, None]
                + values[:, :, None, None] * angular_slope[:, None, :, :]
            )
            invariants = np.einsum("imc,imc->im", density[:, m], density[:, n])
            energies.append(np.einsum("is,ik->sk", select, invariants))
            local = density[i]
            contracted = np.einsum("pnc,pmca->pnma", local, dphi)  # A_n · dφ_m
            gradient = contracted[:, n, m] + contracted[:, m, n]  # (pairs, mn, 3)
            gradients.append(np.einsum("ps,pka->pask", select[i], gradient))
        energy = np.concatenate(energies, axis=1).reshape(-1)
        return energy, np.concatenate(gradients, axis=3).reshape(len(r), 3, -1)


def _angular(unit: np.ndarray, r: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per degree: (pairs, c) Cartesian harmonics of the directions and (pairs, c, 3) their gradients."""
    n = len(r)
    eye = np.eye(3)
    dunit = (eye[None] - unit[:, :, None] * unit[:, None, :]) / r[:, None, None]  # (pairs, component, 3)
    second = np.stack([w * unit[:, a] * unit[:, b] for a, b, w in _TENSOR], axis=1)
    dsecond = np.stack(
        [w * (unit[:, a, None] * dunit[:, b] + unit[:, b, None] * dunit[:, a]) for a, b, w in _TENSOR], axis=1
    )
    return [(np.ones((n, 1)), np.zeros((n, 1, 3))), (unit, dunit), (second, dsecond)]


def fit(
    designs: list[Design], forces: list[np.ndarray], *, weights: np.ndarray, ridge: float
) -> Float[np.ndarray, "K"]:
    """Coefficients of the least-squares fit to forces.

    :param designs: one per frame.
    :param forces: (a, 3) eV/Å per frame; NaN components are left out.
    :param weights: (n,) weight of each frame.
    :param ridge: relative to the mean squared column of the scaled design.
    """
    size = len(designs[0].energy)
    gram, right = np.zeros((size, size)), np.zeros(size)
    for design, force, weight in zip(designs, forces, weights, strict=True):
        rows = design.forces.reshape(-1, size)
        target = force.reshape(-1)
        known = np.isfinite(target)
        gram += weight * rows[known].T @ rows[known]
        right += weight * rows[known].T @ target[known]
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-30 * max(np.trace(gram), 1e-300)))
    matrix = gram / np.outer(scale, scale) + ridge * np.eye(size)
    return np.asarray(linalg.solve(matrix, right / scale, assume_a="pos") / scale)
